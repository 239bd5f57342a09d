# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # AdaIR: one base, a small adapter for each damage
#
# Chen et al., *AdaIR: Exploiting Underlying Similarities of Image Restoration Tasks with
# Adapters*, 2024 ([arXiv 2404.11475](https://arxiv.org/abs/2404.11475)). Not to be confused with
# another AdaIR, on frequency mining ([2403.14614](https://arxiv.org/abs/2403.14614)).
#
# **What this notebook can and cannot check.** Only the abstract of the paper and third-party
# summaries of it are known to us. They give the idea and two numbers, "1.9 MB" and "7 hours" for a
# task. No table, no layer, no learning rate: those are *our choices* (section 13 lists them). So
# the questions of the paper are asked again here, on a small scale; its numbers are not compared.
#
# After this notebook you can
#
# - explain the two phases and derive the size of an adapter, and why 1.9 million parameters, not
#   megabytes, is the likely reading,
# - train an adapter for damage that its base has never seen, and show that the base is untouched,
# - read which pretraining transfers to which task, and what width, place and level of the adapter
#   matter,
# - measure where models of different tasks are alike (CKA),
# - serve many tasks from one network: swap adapters by image and by sample of a batch, let an
#   estimator choose, store them in 16 bits, and say what each of these costs.
#
# **Time** on two CPU cores that do nothing else: smoke under a minute; demo 3 minutes, one of them
# a live training; full hours. Rows that were never trained are printed as *not run*.
# **Before:** [00_quickstart](00_quickstart.ipynb), [01_backbones](01_backbones.ipynb). **Units:**
# PSNR is in dB on RGB, whole crops, outputs rounded to 8 bits.

# %% tags=["parameters"]
profile: str = "demo"  # smoke: plumbing in seconds; demo: committed records; full: trains every row
task: str = "jpeg"  # of the live training and the crops; the base has never seen jpeg
photo: str = "chelsea"  # shown in crops: astronaut, chelsea, coffee, rocket, china, flower
live_steps: int = 60  # steps of the live training (smoke: 6)
seed: int = 0  # of the checks

# %%
import inspect
import json
import math
import textwrap
import time
import warnings
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import pandas as pd
import torch
from IPython.display import Markdown, display
from matplotlib import pyplot as plt

warnings.filterwarnings("ignore", message="IProgress not found")  # Progress bars are text.
# %matplotlib inline

import ir_peft
from ir_peft import (
    adair_claims,
    adair_costs,
    adair_plots,
    adair_tables,
    adapters,
    architecture_plots,
    estimator,
    experiments,
    matrix_plots,
    metrics,
    plots,
    pretrain,
    results,
    similarity,
)
from ir_peft.backbones import WEIGHTS, bundled_tags
from ir_peft.backbones.restormer import Block
from ir_peft.data import degradations, patches, photos

ROOT = next(path for path in [Path.cwd(), *Path.cwd().parents] if (path / "experiments").is_dir())
PROFILE = experiments.PROFILES[profile]
SMOKE = PROFILE.name == "smoke"
if not PROFILE.trains and not photos.available(PROFILE.test_set):
    print(f"photos6 in place of {PROFILE.test_set}: see `ir-peft fetch {PROFILE.test_set}`")
    PROFILE = replace(PROFILE, test_set="photos6")
RECORDS, ADAPTERS = experiments.folders(PROFILE, experiments.git_state(ROOT), ROOT)
FIGURES = RECORDS.parent / "figures"
WORK = ROOT / "runs" / profile / "adair"
BACKBONE = "restormer_mini"
SPECS = experiments.load_specs(ROOT / "experiments" / "adair.toml")
PLAN = adair_tables.plan(SPECS)
TASKS = list(dict.fromkeys(PLAN["task"]))
LABELS = dict(PLAN.loc[PLAN["table"] == "multitask", ["row", "label"]].drop_duplicates().values)
FINDINGS = {}  # question -> the sentences computed from its table


def show(figure, name):
    """Write a figure to FIGURES and return it for display."""
    plots.save_figure(figure, FIGURES, f"adair-{name}", smoke=SMOKE)
    return figure


def report(question, frame, lines, digits=2):
    """Show a table, and under it what it says."""
    FINDINGS[question] = lines
    shown = results.to_markdown(adair_tables.display(frame, digits))
    display(Markdown(shown + "\n" + "\n".join(f"- {line}" for line in lines)))


def photograph(task, size, name=photo):
    """A photograph's centre crop, damaged and clean: lq and gt (1, 3, size, size)."""
    [chosen] = [one for one in photos.test_set("photos6") if one.name == name]
    [(_, lq, gt)] = patches.make_test_pairs([chosen], degradations.TEST_TASKS[task], crop=size)
    return lq[None], gt[None]


def psnr(image, gt):
    """PSNR of one image, both rounded to 8 bits as in the tables, in dB."""
    return metrics.psnr((image.clamp(0, 1) * 255).round() / 255, gt).item()


def picture(image):
    """(1, 3, H, W) -> (H, W, 3) for a figure."""
    return image[0].permute(1, 2, 0).numpy()


print(f"profile {PROFILE.name}: test set {PROFILE.test_set}, crops of {PROFILE.crop} px")

# %% [markdown]
# ## 1. The idea
#
# Noise, rain, blur and low resolution are different damages of the *same* photographs. A network
# that removes one of them must know what edges and textures look like, and so must one that removes
# another. Training a network for each task learns that knowledge again each time, and stores it
# again each time.
#
# AdaIR splits what is shared from what is not:
#
# ```text
#   phase 1, once:          clean photos -> synthetic damage -> base (all weights) -> clean photos
#   phase 2, for each task: damaged photos -> base (frozen) + adapter of this task -> clean photos
# ```
#
# The base needs no labels: photographs are damaged by a program and the network restores them
# (hence "self-supervised"). An adapter is a few percent of the base. The base is stored once.
#
# The damage in this notebook: eleven tasks. The base has met noise, rain, blur and enlarged
# images, never the other four.

# %%
side = 64 if SMOKE else 128
samples = {name: photograph(name, side)[0] for name in TASKS}
_, clean = photograph(TASKS[0], side)
views = {name: picture(lq) for name, lq in samples.items()} | {"clean": picture(clean)}
known = [name for name in TASKS if name not in adair_tables.UNSEEN_TASKS]
show(
    architecture_plots.images(
        {
            "the base\nknows": {name: views[name] for name in known},
            "new to it": {name: views[name] for name in [*adair_tables.UNSEEN_TASKS, "clean"]},
        }
    ),
    "tasks",
)

# %% [markdown]
# ## 2. The equations and the code
#
# **Phase 1.** With clean images $y$ and a family $\mathcal D$ of degradations, the base
# $F_\theta$ minimises
#
# $$\min_\theta \; \mathbb E_{y,\, d \sim \mathcal D} \; \lVert F_\theta(d(y)) - y \rVert_1 .$$
#
# What $\mathcal D$ should be is a question of the paper. Here there are four kinds of damage. The
# base of this notebook draws *one of the four* for each image; the bases of section 7 learn from a
# single kind, from all four *in random order*, or from undamaged images.

# %%
kinds = pd.DataFrame(
    [(adair_tables.BASES[name], f"`{damage!r}`") for name, damage in pretrain.SINGLES.items()],
    columns=["kind", "damage of the training images"],
)
display(Markdown(results.to_markdown(kinds)))

# %% [markdown]
# **Phase 2.** $\theta$ is frozen. For task $r$ with damage $d_r$ only the adapter's weights
# $\phi_r$ are trained:
#
# $$\min_{\phi_r} \; \mathbb E_y \; \lVert F_{\theta, \phi_r}(d_r(y)) - y \rVert_1 .$$
#
# A block of Restormer is `x = x + branch(norm(x))`, once with attention between channels (MDTA)
# and once with a gated feed-forward network (GDFN):


# %%
def source(thing):
    """Show the package's own source of a function or class."""
    display(Markdown(f"```python\n{textwrap.dedent(inspect.getsource(thing))}```"))


source(Block.forward)

# %% [markdown]
# Beside each branch stands a bottleneck of width $w \ll C$. With $h = \mathrm{norm}(x)$:
#
# $$x \leftarrow x + \mathrm{branch}(h) + A(h), \qquad
# A(h) = W_\text{up}\, \mathrm{GELU}(W_\text{down}\, h), \quad
# W_\text{down} \in \mathbb R^{w \times C}, \; W_\text{up} \in \mathbb R^{C \times w}.$$
#
# Both maps are 1x1 convolutions, so $A$ sees one pixel at a time: what neighbours say reaches it
# through the frozen layers. The *serial* form reads the branch's output instead,
# $u = \mathrm{branch}(h)$, $x \leftarrow x + u + A(u)$. In the code an adapter is one function of
# a frozen layer's input and output; these are the lines that run:

# %%
source(adapters.AdaIR.forward)
source(adapters.AdaIR.change)

# %% [markdown]
# ## 3. How large is it? Reading "1.9 MB"
#
# One adapter at width $w$ on $C$ channels has $2 w C$ weights; a block has two. Over the 44 blocks
# of the full Restormer $\sum C = 7{,}488$, so $4 w \cdot 7{,}488$ in all: 1,916,928 at $w = 64$.
# That is 7.3 % of Restormer's 26.1 million parameters, and a third-party summary of the paper says
# "less than 8 %". Were "1.9 MB" megabytes of 32-bit numbers, it would be 1.8 %. So we read 1.9
# *million parameters*. The number does not say which design it is: several meet it. All are counted
# here on the full network, built without values (on PyTorch's *meta* device).

# %%
DESIGNS = {
    "two a block, C-64-C (default)": ("adair", {}, 1_916_928),
    "the same with biases": ("adair", {"bias": True}, 1_937_536),
    "one a block (attention), C-128-C": (
        "adair",
        {"position": "mdta", "width": 128},
        1_916_928,
    ),
    "two a block, C-C/4-C": ("adair", {"width": "C/4"}, 1_815_552),
    "two a block, C-C/4-C, depthwise 3x3 inside": (
        "adair",
        {"width": "C/4", "kind": "conv1x1_dw3x3"},
        1_849_248,
    ),
    "two a block, C-64-C, depthwise 3x3 inside": ("adair", {"kind": "conv1x1_dw3x3"}, 1_967_616),
    "one a block, 3x3 convolutions, C/16": (
        "adair",
        {"kind": "conv3x3", "width": "C/16", "position": "gdfn"},
        2_042_496,
    ),
    "LoRA, r = 16, on all 1x1 convolutions": ("lora", {}, 1_913_472),
    "two a block, C-16-C (the other reading)": ("adair", {"width": 16}, 479_232),
}


def counted(method, changes):
    """(trainable, total) parameters on the full Restormer, without memory."""
    with torch.device("meta"):
        model = ir_peft.create_backbone("restormer")
        ir_peft.attach_adapter(model, method, **changes)
    return ir_peft.count_parameters(model)


sizes = []
for design, (method, changes, expected) in DESIGNS.items():
    trained, total = counted(method, changes)
    assert trained == expected
    sizes.append(
        {
            "design": design,
            "parameters": f"{trained:,}",
            "% of the base": f"{100 * trained / (total - trained):.2f}",
            "file, 32 bits [MB]": f"{4 * trained / 1e6:.2f}",
            "fits 1.9": "millions" if f"{trained / 1e6:.1f}" == "1.9" else
            "megabytes" if f"{4 * trained / 1e6:.1f}" == "1.9" else "-",
        }
    )  # fmt: skip
FULL_ADAPTER, FULL_TOTAL = counted("adair", {})
FULL_BASE = FULL_TOTAL - FULL_ADAPTER
assert FULL_ADAPTER == 4 * 64 * 7_488 == 1_916_928 and FULL_BASE == 26_126_644
display(Markdown(results.to_markdown(pd.DataFrame(sizes))))

# %% [markdown]
# ## 4. Checks
#
# A failing check stops the notebook. The base from here on is `restormer_mini`, the same
# architecture with 1.1 million parameters, pretrained by this project; width 21 gives the adapter
# nearly the full network's share.

# %%
torch.manual_seed(seed)
model = ir_peft.load_backbone(BACKBONE)
pretrained = adapters.fingerprint(model)
keys = set(model.state_dict())
x = torch.rand(1, 3, 24, 32)
with torch.no_grad():
    before = model(x)
    for mode, position, levels in product(
        ("parallel", "serial"), ("mdta", "gdfn", "both"), ("encoder", "latent", "decoder", "all")
    ):
        ir_peft.attach_adapter(model, "adair", mode=mode, position=position, levels=levels)
        assert torch.equal(model(x), before), (mode, position, levels)
        ir_peft.unload(model)
assert set(model.state_dict()) == keys and adapters.fingerprint(model) == pretrained
print("1. attached, the output is the base's, bit for bit: 2 modes x 3 positions x 4 levels")

ir_peft.attach_adapter(model, "adair", seed=seed)
model(x).square().mean().backward()
learns = adapters.trainable_parameters(model)
moved = {name.split(".")[-2] for name, p in learns.items() if p.grad.abs().max() > 0}
assert moved == {"up"}
print("2. at step 0 a gradient reaches only W_up: everything else waits behind its zeros")

width = model.adapter_defaults["adair"]["width"]
modules = [m for m in model.modules() if isinstance(m, adapters.AdaIR)]
trainable, _ = ir_peft.count_parameters(model)
assert trainable == sum(2 * width * m.down.in_features for m in modules)
print(f"3. {len(modules)} adapters of width {width}, sum of 2 w C: {trainable:,} parameters")
ir_peft.print_trainable_parameters(model)

# %% [markdown]
# ## 5. The experiment
#
# Every row of [experiments/adair.toml](../experiments/adair.toml) gets the same patches in the same
# order, the same steps and the same test crops. One section of the file is one row, and
# `experiments.run` makes it one record. This notebook reads the committed records of the full
# profile (in *smoke* it trains a few rows itself, two steps each, to test the plumbing), and
# computes two rows again from their shipped weights to see that the records are right.

# %%
if SMOKE:
    few = {
        *LABELS, "none_adair", "mixed_frozen", "mixed_adair", "noise25_scratch", "noise25_adair",
        "width_5", "width_21", "mdta", "latent",
    } - {"all_full", "all_adair"}  # fmt: skip
    wanted = [
        spec
        for spec in SPECS
        if spec.row in few
        and spec.seed == 0
        and (
            spec.task in ("denoise25", task)
            or (spec.task == "denoise50" and spec.row in ("adair", "noise25_adair"))
        )
        and (spec.table != "ablation" or spec.task == "denoise25")
    ]
else:
    wanted = SPECS
if PROFILE.trains:
    able = [s for s in wanted if not s.pretrained or s.backbone in bundled_tags()]
    made = [experiments.run(spec, PROFILE, root=ROOT, progress=False) for spec in able]
    source_folder, ids = RECORDS, [record["id"] for record in made]
else:
    source_folder, planned = ROOT / "results" / "records", [spec.to_dict() for spec in SPECS]
    stored = [json.loads(p.read_text(encoding="utf-8")) for p in source_folder.glob("adair-*.json")]
    stored = [record for record in stored if record["profile"]["name"] == "full"]
    ids = [record["id"] for record in stored if record["spec"] in planned]


def of_these(read):
    """Records or curves of this notebook's rows; nothing where nothing was run."""
    frame = read(source_folder) if ids else pd.DataFrame()
    return frame[frame["id"].isin(ids)] if len(frame) else frame


records, curves = of_these(results.load_records), of_these(results.load_curves)
per_table = pd.Series([one.table for one in SPECS]).value_counts(sort=False).to_frame("planned")
ran = (
    records.drop_duplicates("id").groupby("table").size() if len(records) else pd.Series(dtype=int)
)
per_table["run"] = ran.reindex(per_table.index).fillna(0).astype(int)
SPREAD = adair_tables.seeds_spread(records, PLAN)  # What seeds scatter by: less decides nothing.
print(f"{len(ids)} of {len(SPECS)} rows have a record in {source_folder.relative_to(ROOT)}")
per_table.T


# %%
def spec_of(row, task):
    """The multi-task table's row, its seed 0."""
    wanted = ("multitask", row, task, 0)
    return next(s for s in SPECS if (s.table, s.row, s.task, s.seed) == wanted)


def weights_of(row, task):
    """Folder of a row's trained weights, None where it was not trained."""
    tag = spec_of(row, task).tag
    try:
        return adapters.find_adapter(ADAPTERS / tag if PROFILE.trains else tag)
    except FileNotFoundError:
        return None


def model_of(row, task):
    """The trained network of a row; models that were trained whole as plain networks."""
    spec = spec_of(row, task)
    network = experiments.adapted_model(spec, replace(PROFILE, trains=True))
    if not spec.learns:
        return network
    ir_peft.load_adapter(ir_peft.unload(network), weights_of(row, task))
    return (ir_peft.merge_and_unload(network) if spec.method == "full" else network).eval()


TRAINED = [name for name in TASKS if weights_of("adair", name)]
print(f"adapters to work with: {', '.join(TRAINED) or 'none yet, so some sections say not run'}")
if not PROFILE.trains and task in TRAINED:
    again = [
        experiments.run(spec_of(row, task), PROFILE, root=ROOT, progress=False)
        for row in ("frozen", "adair")
    ]
    fresh = results.load_records(RECORDS)
    fresh = fresh[fresh["id"].isin([record["id"] for record in again])]
    committed = records[records["table"].eq("multitask") & records["task"].eq(task)]
    same = committed["row"].isin(fresh["row"]) & committed["image"].isin(fresh["image"])
    committed = committed[same & committed["seed"].eq(0)]
    print(results.comparison_report(results.compare(fresh, committed)))

# %% [markdown]
# ### Training one, live
#
# The adapter for the chosen task, from the frozen base. Then the promise is checked: not one bit of
# the base has changed, and no gradient was ever kept for it.

# %%
full = PROFILE if SMOKE else experiments.PROFILES["full"]
steps = 6 if SMOKE else live_steps
live = replace(full, name="live", trains=True, steps=steps, schedule="constant")
spec = spec_of("adair", task)
learner = experiments.adapted_model(spec, live)
data = experiments.training_set(spec, live)
lq, gt = (torch.stack(part) for part in zip(*(data[i] for i in range(4)), strict=True))


def loss_now():
    """L1 of four fixed patches."""
    return (ir_peft.restore(learner, lq) - gt).abs().mean().item()


start = loss_now()
result = ir_peft.train(
    learner, data, steps=steps, batch_size=live.batch_size, lr=spec.lr, schedule=live.schedule,
    seed=spec.seed, log_every=max(1, full.steps // 30), progress=False,
)  # fmt: skip
end = loss_now()
assert adapters.fingerprint(learner) == pretrained, "training changed the base"
frozen = [p for p in learner.parameters() if not p.requires_grad]
assert frozen and all(p.grad is None for p in frozen)
print(
    f"{result.steps} steps in {result.seconds:.0f} s; loss of four patches {start:.4f} -> {end:.4f}"
)
print(f"{sum(p.numel() for p in frozen):,} frozen values: same bits as before, no gradients")

# %%
with plots.style():
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    plt.close(figure)
    if len(curves):
        own = curves["row"].eq("adair") & curves["task"].eq(task) & curves["seed"].eq(0)
        recorded = curves[own].sort_values("step")
        axes.plot(recorded["step"], recorded["loss"], color="#bbbbbb", lw=3, label="record")
    axes.plot(
        [p["step"] for p in result.curve], [p["loss"] for p in result.curve],
        color=plots.color("adair"), marker="o", ms=4, label="live",
    )  # fmt: skip
    axes.set(xlabel="step", ylabel="training loss (L1)", title=f"{spec.label}, {task}")
    axes.legend()
show(figure, "live")

# %% [markdown]
# ## 6. One base for eleven tasks
#
# Each line is one way to serve all tasks: the damaged input, the base alone, a model trained for
# each task from random weights or from the base, an adapter of each of two kinds for each task, and
# one model or one adapter for all tasks together. **Always look at the base alone first**: on
# damage that it knows there is little left to gain. Four rows have three seeds on two tasks, which
# say how far chance alone moves a row.

# %%
grid = adair_tables.grid(records, PLAN)
shown = adair_tables.printed_grid(records, PLAN)
report("tasks", shown, [*adair_claims.multitask(grid, SPREAD), adair_claims.seeds(SPREAD)])

# %%
by_task = adair_tables.unseen_tasks(records, PLAN)


def anything(frame):
    """Whether a table has a number."""
    return bool(frame.select_dtypes("number").notna().any(axis=None))


if anything(by_task[[row for row in LABELS if row not in ("bicubic", "frozen")]]):
    display(show(adair_plots.task_dots(by_task, LABELS), "multitask"))
else:
    print("no figure: no trained row of this table was run")

# %% [markdown]
# What it looks like on one photograph:

# %%
lq, gt = photograph(task, PROFILE.crop)
views, under = {"input": picture(lq)}, {"input": psnr(lq, gt)}
for row in ("frozen", "scratch", "lora", "adair", "full"):
    if row == "frozen" or weights_of(row, task):
        image = ir_peft.restore(model_of(row, task), lq)
        views[LABELS[row]], under[LABELS[row]] = picture(image), psnr(image, gt)
image = ir_peft.restore(learner, lq)
views[f"AdaIR, {steps} steps live"], under[f"AdaIR, {steps} steps live"] = (
    picture(image),
    psnr(image, gt),
)
views["ground truth"] = picture(gt)
zoom = gt.shape[-1] // 3
box = (zoom, zoom, zoom, zoom)
show(plots.crops(picture(gt), box, views, under, columns=4, title=f"{photo}, {task}"), "crops")

# %% [markdown]
# ## 7. Which pretraining transfers to which task?
#
# Eight bases with the same effort, which differ only in what they restored. *Clean from clean* is a
# pretraining that learns nothing about damage: what the others have to beat. On *random weights*
# only the adapter is trained (such a base alone restores nothing and is not tested).
#
# Rows are bases, columns are tasks. Tasks differ in difficulty, so a cell's colour is its distance
# from the best base for the same task; in the third panel it is what the adapter adds.

# %%
panels = adair_tables.transfer(records, PLAN)
titles = {"alone": "base alone", "adapted": "with an adapter", "gain": "what the adapter adds"}
named = {titles[key]: frame.rename(index=adair_tables.BASES) for key, frame in panels.items()}
FINDINGS["transfer"] = adair_claims.transfer(panels, SPREAD)
display(Markdown("\n".join(f"- {line}" for line in FINDINGS["transfer"])))
if any(map(anything, panels.values())):
    ylabel = "the base was pretrained on"
    figure = matrix_plots.heat_maps(named, signed=[titles["gain"]], ylabel=ylabel)
    display(show(figure, "transfer"))
else:
    print("no heat map: no base of the transfer study was run")

# %% [markdown]
# Reading it: the diagonal of *base alone* shows what a base was trained for. If tasks share much,
# the second panel is flatter than the first: the adapter makes up for the wrong pretraining. If a
# column stays dark in the second panel too, what that task needs cannot be added by a small adapter
# beside frozen layers.

# %% [markdown]
# ## 8. Width, position, level
#
# One thing is changed at a time; where it changes the size, the width makes up for it if it can
# (one position gets twice the width). Filled: the default.

# %%
variants = adair_tables.ablation(records, PLAN)
sizes = variants["trainable"].map(lambda count: f"{count:,.0f}" if count > 0 else "")
shown = variants.drop(columns="row").assign(trainable=sizes)
report("ablation", shown, adair_claims.ablation(variants, SPREAD))
if anything(variants[variants.columns[4:]]):
    base = grid.loc["frozen", TASKS].to_dict()
    display(show(adair_plots.variant_dots(variants, base), "ablation"))
else:
    print("no figure: no variant was run")

# %% [markdown]
# ## 9. Damage that was not trained for
#
# **Another strength.** An adapter is trained at one strength and tested at others. Beside it stands
# the same method trained for the strength that is tested: the difference is what is lost. The paper
# is said to generalise better here than models trained for one task alone.

# %%
levels = adair_tables.unseen_levels(records, PLAN)
columns = ["label", "task", "psnr", "own", "lost", "base"]
named = {"psnr": "PSNR", "own": "trained for it", "lost": "lost", "base": "base alone"}
report(
    "strengths", levels[columns].rename(columns=named), adair_claims.unseen_levels(levels, SPREAD)
)
if (
    len(levels.dropna(subset=["psnr"]))
    and levels.loc[levels["like"] == "adair", "own"].notna().any()
):
    display(show(adair_plots.level_dots(levels, LABELS), "strengths"))
else:
    print("no figure: no row was run at a strength for which an adapter was trained")

# %% [markdown]
# **Another kind.** The base has never met JPEG, motion blur, low light or haze. The figure of
# section 6 sets these tasks apart; in numbers:

# %%
shown = by_task[["seen", "bicubic", "frozen", "over base", "over scratch", "below full"]]
shown = shown.rename(columns={"bicubic": "input", "frozen": "base alone"}).reset_index()
report("new damage", shown, adair_claims.unseen_tasks(by_task))

# %% [markdown]
# ## 10. What it costs
#
# Seconds and bytes of a step were measured side by side
# ([benchmarks/methods.py](../benchmarks/methods.py)). *Until scratch's PSNR* is the training after
# which a validation first reaches what training from scratch ends with; validations are its
# resolution, and in brackets stands on how many tasks it was reached. An adapter saves storage
# first. Gradients of frozen weights are not computed, and the inputs that only they need are not
# kept; the signal still has to go back through the whole network.

# %%
costs = adair_costs.cost(records, curves, PLAN)
report("cost", adair_costs.in_units(costs), adair_claims.cost(costs))
if costs["tasks"].any():
    display(show(adair_plots.cost_bars(costs), "cost"))
else:
    print("no figure: no trained row was run")

# %% [markdown]
# **Storage for T tasks**: $T m$ for $T$ models of $m$ bytes, $m + T a$ for one base and $T$
# adapters of $a$ bytes. On the left the files of the small network as they are on disk (the adapter
# trained live), on the right the full Restormer by count.

# %%
ir_peft.save_adapter(learner, WORK / "live")
ir_peft.save_adapter(learner, WORK / "live-fp16", dtype="fp16")


def bytes_of(folder):
    """Bytes of an adapter's weights on disk."""
    return (folder / "adapter_model.safetensors").stat().st_size


mini = adair_costs.storage(
    (WEIGHTS / f"{BACKBONE}.safetensors").stat().st_size,
    {"adapters": bytes_of(WORK / "live"), "adapters, 16 bits": bytes_of(WORK / "live-fp16")},
)
large = adair_costs.storage(
    4 * FULL_BASE, {"adapters": 4 * FULL_ADAPTER, "adapters, 16 bits": 2 * FULL_ADAPTER}
)
STORED = {f"{BACKBONE}, files": mini, "Restormer, by count": large}
lines = [
    f"{name}: {line}" for name, frame in STORED.items() for line in adair_claims.storage(frame)
]
megabytes = pd.concat(STORED, axis=1) / 1e6
megabytes.columns = [f"{name}: {way} [MB]" for name, way in megabytes.columns]
report("storage", megabytes.reset_index(), lines, digits=1)
show(adair_plots.storage_bars(STORED), "storage")

# %% [markdown]
# ## 11. Where do tasks share?
#
# If tasks share knowledge, networks trained for different tasks must compute similar things
# somewhere. *Linear CKA* (Kornblith et al., [1905.00414](https://arxiv.org/abs/1905.00414))
# compares what two layers say about the same $n$ samples, $X \in \mathbb R^{n \times p}$ and
# $Y \in \mathbb R^{n \times q}$, columns centred:
#
# $$\mathrm{CKA}(X, Y) = \frac{\lVert Y^\top X \rVert_F^2}
# {\lVert X^\top X \rVert_F \, \lVert Y^\top Y \rVert_F} \in [0, 1].$$
#
# It is 1 if one layer is a rotation and scaling of the other, whatever the widths. (Whether the
# paper measures similarity, and how, is not known to us.) All models see the same images: each
# photograph with each task's damage. A sample is one cell of an 8 x 8 grid over one image.

# %%
CKA_TASKS = [t for t in ("denoise25", "derain_light", "gaussian_deblur", "jpeg") if t in TRAINED]
KINDS = [row for row in ("scratch", "full", "adair") if all(weights_of(row, t) for t in CKA_TASKS)]
BLOCKS = r"(encoder_level\d|latent|decoder_level\d|refinement)\.\d+"
names = [one.name for one in photos.test_set("photos6")][: 1 if SMOKE else 2]
probes = [photograph(t, 64 if SMOKE else 128, n)[0][0] for n in names for t in CKA_TASKS]
seen, by_layer, stages = {}, {}, []
for row in KINDS if len(CKA_TASKS) > 1 else []:
    for t in CKA_TASKS:
        seen[row, t] = similarity.features(model_of(row, t), BLOCKS, probes)
if seen:
    torch.manual_seed(seed)
    for t in ("one", "two"):  # What two networks have in common before they learn anything.
        untrained = ir_peft.create_backbone(BACKBONE).eval()
        seen["untrained", t] = similarity.features(untrained, BLOCKS, probes)
    blocks = list(next(iter(seen.values())))
    stages = [name.split(".")[0].replace("_level", " ") for name in blocks]
    for row in [*KINDS, "untrained"]:
        own = [found for (kind, _), found in seen.items() if kind == row]
        by_layer[row] = [
            sum(similarity.linear_cka(a[b], b_[b]) for a, b_ in combinations(own, 2))
            / math.comb(len(own), 2)
            for b in blocks
        ]
    lines = []
    for row in KINDS:
        mean = pd.Series(by_layer[row]).groupby(stages, sort=False).mean()
        lines.append(
            f"{LABELS[row]}: tasks are most alike in {mean.idxmax()} (CKA {mean.max():.2f}), least "
            f"in {mean.idxmin()} ({mean.min():.2f}); {sum(by_layer[row]) / len(blocks):.2f} in the "
            "mean over all blocks."
        )
    alike = {row: sum(values) / len(blocks) for row, values in by_layer.items()}
    above = [LABELS[row] for row in KINDS if alike[row] > alike["untrained"]]
    lines.append(
        f"Two untrained networks: {alike['untrained']:.2f} in the mean. "
        + (f"Above it: {', '.join(above)}." if above else "Training for tasks drives them apart.")
    )
    FINDINGS["similarity"] = lines
    display(Markdown("\n".join(f"- {line}" for line in lines)))
    labels = LABELS | {"untrained": "two untrained networks"}
    display(show(adair_plots.similarity_lines(by_layer, stages, labels), "cka-layers"))
else:
    print("not run: CKA needs trained weights of two tasks at least")

# %% [markdown]
# *The mean over all pairs of tasks, block by block along the network.* Mind what the curves start
# from: models from scratch share the seed of their initial weights, fine-tuned ones and adapters
# share the base. With the adapters the frozen layers are shared by construction; a fall shows
# where the adapters turn the features to their task.
#
# Layer against layer for one pair of tasks, and task against task at the end of each stage:

# %%
if seen:
    first, second = CKA_TASKS[0], CKA_TASKS[-1]
    maps = {
        f"{LABELS[row]}": pd.DataFrame(
            similarity.cka_map(seen[row, first], seen[row, second]).numpy(), blocks, blocks
        )
        for row in KINDS
    }
    figure = matrix_plots.similarity_maps(maps, groups=stages, label=f"CKA, {first} / {second}")
    display(show(figure, "cka-pairs"))
    last = {stage: block for stage, block in zip(stages, blocks, strict=True)}
    row = KINDS[0]
    maps = {
        stage: pd.DataFrame(
            [
                [similarity.linear_cka(seen[row, a][block], seen[row, b][block]) for b in CKA_TASKS]
                for a in CKA_TASKS
            ],
            CKA_TASKS,
            CKA_TASKS,
        )
        for stage, block in last.items()
    }
    label = f"linear CKA, {LABELS[row].lower()}"
    display(show(matrix_plots.similarity_maps(maps, numbers=True, label=label), "cka-tasks"))
else:
    print("not run")

# %% [markdown]
# ## 12. One network, many tasks: swapping
#
# All adapters are attached to *one* base, the one trained a minute ago among them. `set_adapter`
# changes the task between two images. How long does it take, from memory and from disk, against
# loading another network?

# %%
bank = ir_peft.load_backbone(BACKBONE)
for name in TRAINED:
    ir_peft.load_adapter(bank, weights_of("adair", name), name=name)
ir_peft.load_adapter(bank, WORK / "live", name="live")
bank.eval()


def median_seconds(action, repeats):
    """Median time of a call."""
    taken = []
    for k in range(repeats):
        begin = time.perf_counter()
        action(k)
        taken.append(time.perf_counter() - begin)
    return sorted(taken)[repeats // 2]


def from_disk(k):
    """Attach an adapter from its file; all of them are removed after the measurement."""
    ir_peft.load_adapter(bank, WORK / "live", name=f"disk{k}")


cycle = [*TRAINED, "live"]
repeats = 3 if SMOKE else 9
seconds = {
    "set_adapter (in memory)": median_seconds(
        lambda k: ir_peft.set_adapter(bank, cycle[k % len(cycle)]), repeats
    ),
    "load_adapter (from disk)": median_seconds(from_disk, repeats),
    "load_backbone (another network)": median_seconds(lambda k: ir_peft.load_backbone(BACKBONE), 3),
}
for k in range(repeats):
    ir_peft.unload(bank, f"disk{k}")
ir_peft.set_adapter(bank, "live")
times = pd.DataFrame({"what": seconds.keys(), "median of one swap [s]": seconds.values()})
swap, load, other = seconds.values()
line = f"A swap takes {swap:.4f} s in memory and {load:.4f} s from disk; loading another network "
line += f"takes {other:.4f} s, {other / swap:.0f} times as long as a swap in memory."
report("swapping", times, [line], digits=4)

# %% [markdown]
# **By sample.** A batch may hold images of different damage. `per_sample` runs the frozen layers
# once over the whole batch and each adapter on its own samples; `None` is the base alone.

# %%
crop = 48 if SMOKE else 96
assigned = [*TRAINED[:4], "live", None]
damaged = [photograph(name if name in TASKS else task, crop)[0] for name in assigned]
_, truth = photograph(task, crop)


@torch.no_grad()
def together(_):
    """One batch, an adapter for each sample."""
    with ir_peft.per_sample(bank, assigned):
        return bank(torch.cat(damaged))


@torch.no_grad()
def one_by_one(_):
    """The same images alone, swapping between them."""
    outputs = []
    for name, image in zip(assigned, damaged, strict=True):
        if name is None:
            with ir_peft.disable_adapters(bank):
                outputs.append(bank(image))
        else:
            outputs.append(ir_peft.set_adapter(bank, name)(image))
    return torch.cat(outputs)


outputs = together(0)
apart = (outputs - one_by_one(0)).abs().max().item()
assert apart < 1e-4
spent = [median_seconds(way, 3) for way in (together, one_by_one)]
print(
    f"{len(assigned)} images: {spent[0]:.2f} s in one batch, {spent[1]:.2f} s one by one;", end=" "
)
print(f"the outputs differ by at most {apart:.1e}")
captions = [name or "no adapter" for name in assigned]
rows = {
    side: {
        f"{name}\n{psnr(image, truth):.2f} dB": picture(image)
        for name, image in zip(captions, images, strict=True)
    }
    for side, images in {"in": damaged, "out": outputs.split(1)}.items()
}
show(architecture_plots.images(rows), "per-sample")

# %% [markdown]
# **Who chooses?** A user may not know the damage. A small classifier of patches looks at the image
# and names it (`ir_peft.estimator`; `ir-peft restore --task auto` uses it). Its confusion matrix
# first: which damage is taken for which.

# %%
if estimator.WEIGHTS.is_file():
    judge = estimator.load_estimator()
    print(
        f"the estimator of the package, {sum(p.numel() for p in judge.parameters()):,} parameters"
    )
else:
    fit = estimator.Fit(steps=2 if SMOKE else 60)
    judge, taken = estimator.fit(photos.train_photos(), fit, progress=False)
    print("the package has no estimator yet: tools/train_estimator.py trains one")
    print(f"in its place: one of {fit.steps} steps, trained here in {taken:.0f} s")
tests = photos.test_set(PROFILE.test_set)[: PROFILE.images]
tested = max(estimator.SIDE, PROFILE.crop)  # Side of the crops that it judges.
classes = list(estimator.CLASSES)
counts = pd.DataFrame(0, index=classes, columns=classes)
judged = []
for name in classes:
    damage = degradations.TEST_TASKS.get(name, degradations.GaussianNoise(0.0))
    for image, lq, gt in patches.make_test_pairs(tests, damage, crop=tested):
        shares = estimator.estimate(judge, lq)
        counts.loc[name, max(shares, key=shares.get)] += 1
        if name in TRAINED:
            # It may only choose what there is an adapter for, or to leave the image alone.
            picked = max((estimator.CLEAN, *TRAINED), key=shares.get)
            judged.append((name, image, picked, lq[None], gt[None]))
right = sum(counts.loc[name, name] for name in classes) / counts.to_numpy().sum()
print(f"{100 * right:.0f} % of {counts.to_numpy().sum()} images are recognised")
show(matrix_plots.confusion_map(counts), "confusion")

# %% [markdown]
# A wrong name need not cost much: an adapter for a neighbouring strength may do nearly as well. So
# the loss is measured in dB, against an oracle that always takes the task's own adapter.


# %%
def score(name, lq, gt):
    """PSNR with the adapter `name`; of the image as it is for an image that is taken as clean."""
    if name == estimator.CLEAN:
        return psnr(lq, gt)
    return psnr(ir_peft.restore(ir_peft.set_adapter(bank, name), lq), gt)


recorded = {}
if len(records) and tested == PROFILE.crop:  # The records have the oracle's scores on these crops.
    own = records[records["table"].eq("multitask") & records["row"].eq("adair")]
    own = own[own["seed"].eq(0)]  # The adapters at hand.
    recorded = own.set_index(["task", "image"])["psnr"].to_dict()
picks = []
for name, image, picked, lq, gt in judged:
    oracle = recorded.get((name, image)) or score(name, lq, gt)
    reached = oracle if picked == name else score(picked, lq, gt)
    picks.append({"task": name, "picked": picked, "oracle": oracle, "psnr": reached})
if picks:
    chosen = adair_tables.picking(pd.DataFrame(picks))
    names = {"right": "share right", "oracle": "PSNR, oracle", "psnr": "PSNR, picked"}
    shown = chosen.rename(columns=names | {"lost": "lost [dB]", "worst": "worst image [dB]"})
    report("estimator", shown.reset_index(), adair_claims.picking(chosen))
else:
    print("not run: there are no trained adapters to choose from")

# %% [markdown]
# **In 16 bits.** `save_adapter(..., dtype="fp16")` halves the file; the adapters that come with the
# package are stored so, while the records hold what was measured in 32 bits. What does it cost in
# dB? A hundredth is the limit: no table here shows less.

# %%
halved = []
for name in cycle:
    ir_peft.save_adapter(bank, WORK / f"{name}-fp32", name=name)
    ir_peft.save_adapter(bank, WORK / f"{name}-fp16", name=name, dtype="fp16")
    ir_peft.load_adapter(bank, WORK / f"{name}-fp16", name=f"{name}_fp16")
    lq, gt = photograph(name if name in TASKS else task, PROFILE.crop)
    exact = recorded.get((name, photo)) or score(name, lq, gt)
    rounded = score(f"{name}_fp16", lq, gt)
    ir_peft.unload(bank, f"{name}_fp16")
    halved.append(
        {
            "adapter": name,
            "32 bits [bytes]": bytes_of(WORK / f"{name}-fp32"),
            "16 bits [bytes]": bytes_of(WORK / f"{name}-fp16"),
            "PSNR, 32 bits": exact,
            "change [dB]": rounded - exact,
        }
    )
halved = pd.DataFrame(halved)
worst = halved["change [dB]"].abs().max()
smaller = halved["16 bits [bytes]"].sum() / halved["32 bits [bytes]"].sum()
line = f"Adapters in 16 bits: {100 * smaller:.0f} % of the bytes; PSNR changes by at most "
report("16 bits", halved, [f"{line}{worst:.4f} dB (one photograph a task)."], digits=4)

# %% [markdown]
# ## 13. What differs from the paper
#
# The body of the paper is not available to this project. *Unknown* means that we do not know the
# paper's choice; the switch is where ours can be changed.
#
# | | paper | here | switch |
# |---|---|---|---|
# | base | Restormer (third-party) | `restormer_mini`, 1.1 M; the full by count | `backbone` |
# | adapter's layers | unknown | 1x1, GELU, 1x1, no bias | `kind`, `act`, `bias` |
# | adapter's size | "1.9 MB", < 8 % | width 21, 5 % (full: 64, 7 %) | `width` |
# | places | unknown | both branches, every block, parallel | `position`, `mode`, `levels` |
# | start | unknown | $W_\text{up} = 0$ | `init` |
# | phase 1: damage | synthetic, else unknown | one of four an image | `pretrain.TRANSFER` |
# | phase 1: steps | unknown | 10,000; section 7: 1,500; full: 300,000 | `pretrain.RECIPES` |
# | tasks | noise, rain, blur, SR (third-party) | these and four more | `tasks` of a row |
# | phase 2: effort | "7 hours", GPU unknown | minutes, AdamW 3e-3 | the profile, `lr` |
# | images, metric | unknown | the package's photographs, PSNR on RGB | the profile |
# | CKA, estimator, per sample, 16 bits | not known to be in it | ours | |
#
# A study at this scale can say whether the *idea* carries: which order the methods have, what
# transfers. It cannot confirm or refute the paper's decibels.

# %% [markdown]
# ## 14. Summary
#
# - Phase 1 makes one base from synthetic damage; phase 2 trains, for each task, a bottleneck beside
#   the two branches of every block. Zero at the start, it begins as the base itself, and training
#   leaves the base untouched to the bit.
# - On the full Restormer the default has 1,916,928 parameters, 7.3 % of the base; the paper's "1.9
#   MB" fits millions of parameters, and several designs.
# - One base serves all tasks: adapters are swapped by image or by sample.
#
# What the tables of this run say, computed:

# %%
text = [
    f"**{name.capitalize()}**\n" + "\n".join(f"- {x}" for x in found)
    for name, found in FINDINGS.items()
]
display(Markdown("\n\n".join(text)))

# %% [markdown]
# ## 15. Exercises
#
# The solutions follow each exercise.
#
# **1.** Position `mdta` alone with width 128 has as many parameters on the full Restormer as both
# positions with width 64. What width gives `latent` alone the same number? ($C = 384$ in its 8
# blocks.)

# %%
answer_1 = None  # your width

# %% tags=["solution"]
answer_1 = FULL_ADAPTER / (4 * 8 * 384)
assert counted("adair", {"levels": "latent", "width": int(answer_1)})[0] == FULL_ADAPTER
print(f"width {answer_1:.0f}: 4 w C in each of 8 blocks; {answer_1 / 384:.0%} of the channels")

# %% [markdown]
# **2.** From how many tasks on is one base with adapters smaller than a model for each task? Give
# the condition for any $m$ and $a$, and the number for the full Restormer.

# %%
answer_2 = None  # the smallest T

# %% tags=["solution"]
# T m > m + T a  <=>  T > m / (m - a): two tasks are enough as soon as a < m / 2.
answer_2 = math.floor(FULL_BASE / (FULL_BASE - FULL_ADAPTER)) + 1
assert answer_2 == 2 and large.loc[2, "a model for each"] > large.loc[2, "base + adapters"]
print(
    f"T > m / (m - a) = {FULL_BASE / (FULL_BASE - FULL_ADAPTER):.3f}, so from {answer_2} tasks on"
)

# %% [markdown]
# **3.** LoRA can be merged into the weights, so it costs nothing when the network is used. Can this
# adapter? Try it, and say which property of the equation decides. What if the activation is `none`?

# %%
answer_3 = None  # "yes" or "no", and why

# %% tags=["solution"]
try:
    ir_peft.merge_and_unload(learner)
    answer_3 = "yes"
except TypeError as error:
    answer_3 = "no"
    print(f"no: {error}")
assert answer_3 == "no" and ir_peft.active_adapter(learner) is not None
# Without an activation W_up W_down is one 1x1 convolution of the branch's input. It is linear, but
# it stands beside attention and beside a gated network, which are not: no weight of them holds it.

# %% [markdown]
# **4.** CKA does not change if one side's channels are rotated together or scaled together. Show
# it. Does it change if a single channel is scaled?

# %%
features = torch.randn(256, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
answer_4 = {}  # "rotated", "scaled", "one channel scaled" -> CKA with `features`

# %% tags=["solution"]
rotation = torch.linalg.qr(features[:8]).Q
stretched = features.clone()
stretched[:, 0] *= 10
answer_4 = {
    "rotated": similarity.linear_cka(features, features @ rotation),
    "scaled": similarity.linear_cka(features, 10 * features),
    "one channel scaled": similarity.linear_cka(features, stretched),
}
assert abs(answer_4["rotated"] - 1) < 1e-9 and abs(answer_4["scaled"] - 1) < 1e-9
assert answer_4["one channel scaled"] < 0.9
print({name: round(value, 3) for name, value in answer_4.items()}, ": loud channels decide")

# %% [markdown]
# **5.** With `init="default"` the second projection starts at random. How far from the base's
# output does training begin, in dB between the two? Why can no later layer simply undo it?

# %%
answer_5 = None  # PSNR between the base's output and the adapted one at step 0

# %% tags=["solution"]
lq, _ = photograph(task, 64)
base = ir_peft.load_backbone(BACKBONE)
own = ir_peft.restore(base, lq)
ir_peft.attach_adapter(base, "adair", init="default", seed=seed)
answer_5 = psnr(ir_peft.restore(base, lq), own)
print(f"{answer_5:.1f} dB: {len(modules)} random changes add up along the residual stream and pass")
print("norms, softmax and gates, which are not linear: what comes later cannot subtract them")

# %% [markdown]
# ## The claims of this notebook, asserted

# %%
assert FULL_ADAPTER == 1_916_928 and FULL_BASE == 26_126_644
assert adapters.fingerprint(learner) == adapters.fingerprint(bank) == pretrained
assert end < start, "the live training did not lower the loss"
assert apart < 1e-4, "a batch with an adapter for each sample is not what each gives alone"
assert bytes_of(WORK / "live-fp16") < 0.6 * bytes_of(WORK / "live")
assert mini.loc[10, "a model for each"] > 5 * mini.loc[10, "base + adapters"]
for name in ("tasks", "live", "crops", "storage", "per-sample", "confusion"):
    for ending in ("png", "svg"):
        assert (FIGURES / f"adair-{name}.{ending}").stat().st_size > 0
if not SMOKE:
    assert worst < 0.01, "16 bits cost more than a hundredth of a decibel"
if len(records):
    # What the table prints is what the records hold.
    one = records[records["table"].eq("multitask") & records["task"].eq("denoise25")]
    for row, scores in one.groupby("row")["psnr"]:
        assert math.isclose(grid.loc[row, "denoise25"], scores.mean())
print("all claims hold")
