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
# # AdaptIR: three experts beside a frozen layer
#
# Guo et al., *Parameter Efficient Adaptation for Image Restoration with Heterogeneous
# Mixture-of-Experts*, NeurIPS 2024 ([arXiv 2312.08881](https://arxiv.org/abs/2312.08881)).
#
# After this notebook you can
#
# - explain the module's three branches and how they are combined, and find each equation in the
#   code,
# - derive its number of parameters and say why it changes nothing before training,
# - train it on a pretrained IPT, the paper's backbone made small, and place it among eight other
#   methods on ten tasks,
# - say what each branch adds, how the method grows with its width, what its branches respond to,
# - say what bounds an adapter that sits only in the body of a network, and measure that bound.
#
# **Time** on two CPU cores: smoke under a minute; demo 2 minutes, half of them a live training, and
# some more where `ir-peft reproduce` has not scored the rows yet; full 5 hours. **Before:**
# [00_quickstart](00_quickstart.ipynb), [02_peft_from_scratch](02_peft_from_scratch.ipynb).
# **Units:** PSNR is in dB, of the Y channel unless said otherwise, without a border of the scale,
# outputs rounded to 8 bits.

# %% tags=["parameters"]
profile: str = "demo"  # smoke: plumbing in seconds; demo: shipped adapters; full: trains every row
task: str = "lr4_noise30"  # of the figures and the live training: lr4_noise30 or lr4_jpeg30
photo: str = "chelsea"  # shown in the crops: astronaut, chelsea, coffee, rocket, china, flower
live_steps: int = 100  # steps of the live training (smoke: 8)
seed: int = 0  # of the checks
solutions: bool = False  # also run the solution cells that train (demo: 7 minutes more)

# %%
import inspect
import json
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from torch import nn

warnings.filterwarnings("ignore", message="IProgress not found")  # Progress bars are text.
# %matplotlib inline

import ir_peft
from ir_peft import adapters, claims, experiments, metrics, overview, plots, results, verdicts
from ir_peft.data import degradations, patches, photos

ROOT = next(path for path in [Path.cwd(), *Path.cwd().parents] if (path / "experiments").is_dir())
PROFILE = experiments.PROFILES[profile]
SMOKE = PROFILE.name == "smoke"
if not PROFILE.trains and not photos.available(PROFILE.test_set):
    print(f"photos6 in place of {PROFILE.test_set}: see `ir-peft fetch {PROFILE.test_set}`")
    PROFILE = replace(PROFILE, test_set="photos6")
RECORDS, ADAPTERS = experiments.folders(PROFILE, experiments.git_state(ROOT), ROOT)
COMMITTED = results.load_records(ROOT / "results" / "records")
FIGURES = RECORDS.parent / "figures"
BACKBONE = "ipt_mini"


def show(figure, name, about=task):
    """Write a figure to FIGURES and return it for display."""
    plots.save_figure(figure, FIGURES, f"adaptir-{name}-{about}", smoke=SMOKE)
    return figure


def shows(sentence):
    """What a figure shows here, computed."""
    return Markdown(f"**What it shows here:** {sentence}")


print(f"profile {PROFILE.name}: test set {PROFILE.test_set}")

# %% [markdown]
# ## 1. The idea
#
# A large restoration transformer is frozen. For each new degradation only a small module is
# trained, one beside the feed-forward network (FFN) of every block. It reads what the FFN reads
# and adds to what the FFN returns:
#
# ```text
#           x ──┬── LN ──┬── FFN (frozen) ──(+)──(+)── x'
#               │        └── AdaptIR ────────┘    │
#               └─────────────────────────────────┘
# ```
#
# Why not LoRA? A *hybrid* degradation (noise on top of down-sampling, say) asks for local detail,
# global structure and a choice of channels at once. LoRA and bottleneck adapters are one map
# applied to every position alike, and their features, the authors find, respond alike to every
# degradation. AdaptIR is a small mixture of three *different* experts: a local one, a global one
# that works on the spectrum, and one that weighs channels.

# %% [markdown]
# ## 2. The equations
#
# Let $x$ be the normalised tokens, an image of $d$ channels. The module works in $h \ll d$
# channels:
#
# $$z = \mathrm{BN}(W_\text{head}\, x), \qquad \mathrm{AdaptIR}(x) = W_\text{tail}\,(c \odot s).$$
#
# **LIM**, local interaction, sees 3 x 3 neighbours. The depthwise kernel has low rank:
#
# $$l = \mathrm{DWConv}_{3\times3}(z;\, AB), \qquad A \in \mathbb R^{h\times r},\;
# B \in \mathbb R^{r\times 9}.$$
#
# **FAM**, frequency affine, sees the whole image. It scales and shifts the amplitude and the
# phase of each channel's spectrum:
#
# $$g = \big\lvert \mathcal F^{-1}\big( \alpha\, e^{i\varphi} \big) \big\rvert, \qquad
# \alpha = w_\alpha \lvert\mathcal F z\rvert + b_\alpha, \qquad
# \varphi = w_\varphi \angle\mathcal F z + b_\varphi.$$
#
# **CGM**, channel gating, sees channels. A softmax over the positions $p$ pools, an MLP scores:
#
# $$c = \mathrm{MLP}\Big(\sum_p \mathrm{softmax}_p(w^\top z)\, z_p\Big).$$
#
# The *adaptive feature ensemble* mixes the two spatial branches. Each is gated by the *other*
# one:
#
# $$s = a \odot l + b \odot g, \qquad a = \sigma(\text{gate}_c(\mathrm{GAP}\, g)) \in (0,1)^h,
# \qquad b = \sigma(\text{gate}_s(l)) \in (0,1)^{H\times W}.$$
#
# **Two versions of the paper exist.** Version 1 (2023) has a channel *shift* module and sums the
# branches; version 2 (NeurIPS 2024) has channel gating and the crossed gates. The code here is
# **version 2**, as the authors released it. The only complete tables available are those of
# **version 1**: every comparison below is between these two.

# %% [markdown]
# ## 3. The code
#
# What follows is printed from the package, not copied into the notebook. An adapter is one
# function of a frozen layer's input and output, `forward(x, out)`. AdaptIR's projects down, lets
# the experts work, projects up and adds:


# %%
def source(thing):
    """Show the package's own source of a function or class."""
    display(Markdown(f"```python\n{textwrap.dedent(inspect.getsource(thing))}```"))


source(adapters.AdaptIR.forward)

# %% [markdown]
# **Ensemble.** The crossed gates are one line; the channel score multiplies the sum. Any branch
# can be switched off, which is how the paper's ablations are run.

# %%
source(adapters.AdaptIR.experts)

# %% [markdown]
# **Local.** The depthwise kernel is stored as a product of two small matrices. At $h = 24$ that
# saves nothing (396 weights instead of 216, and the rank cannot exceed 9): it is kept because it
# is the authors' module.

# %%
source(adapters.AdaptIR.local)

# %% [markdown]
# **Global.** Scaling and shifting the amplitude of a channel's spectrum changes every position at
# once. The spectrum is computed in 32 bits also under mixed precision.

# %%
source(adapters.AdaptIR.spectral)

# %% [markdown]
# **Channels.** A softmax over positions decides where to look, a small MLP turns what is found
# into one score a channel. The score is not squashed: it may be negative.

# %%
source(adapters.AdaptIR.channel_score)

# %% [markdown]
# ## 4. Five checks
#
# Each statement about the module is tested here on the small pretrained IPT. A failing check
# stops the notebook.

# %%
torch.manual_seed(seed)
model = ir_peft.load_backbone(BACKBONE)
model.set_task(task)  # IPT has a head, a query and a tail for each group of tasks
pretrained = adapters.fingerprint(model)
x = torch.rand(2, 3, 48, 48)
with torch.no_grad():
    before = model(x)
ir_peft.attach_adapter(model, "adaptir")
with torch.no_grad():
    after = model(x)
    trained_like = adapters.train_mode(model)(x)  # BatchNorm of the adapters on batch statistics
assert torch.equal(before, after) and torch.equal(before, trained_like)
ir_peft.print_trainable_parameters(model)
print("1. attached, the network's output is the same, bit for bit")

# %% [markdown]
# The reason is $W_\text{tail} = 0$. It also means that at the first step nothing else *can*
# learn: the gradient of every other parameter passes through $W_\text{tail}$ and vanishes there.

# %%
model(x).square().mean().backward()
alive = {
    name.split(".adaptir.")[1]
    for name, parameter in adapters.trainable_parameters(model).items()
    if parameter.grad is not None and parameter.grad.abs().max() > 0
}
assert alive == {"tail.weight"}
print(f"2. at step 0 a gradient reaches only {alive}")
model.zero_grad()

# %% [markdown]
# **Parameters.** Count them from the equations, then ask the model. On IPT ($d = 576$, $h = 24$,
# $r = 12$, gate width $m = 3$, 24 layers) the formula must give the size of the authors' release,
# 697,656 (0.6 % of IPT).


# %%
def size(d, h, r, m):
    """Parameters of one AdaptIR module."""
    head, norm, tail = d * h + h, 2 * h, h * d
    lim, fam = h * r + r * 9 + h, 4 * h
    cgm = (h + 1) + (h * (h // 2) + h // 2) + (h // 2 * h + h)
    gates = (h * m + m) + (m * h + h) + (h + 1)
    return head + norm + lim + fam + cgm + gates + tail


assert 24 * size(d=576, h=24, r=12, m=3) == 697_656
assert 36 * size(d=180, h=12, r=6, m=3) == 173_412  # EDT-B, the paper's second backbone
config = model.adapter_defaults["adaptir"]
h, m = config["hidden"], config["gate"]
modules = [module for module in model.modules() if isinstance(module, adapters.AdaptIR)]
d = modules[0].head.in_channels
trainable, total = ir_peft.count_parameters(model)
each = size(d, h, h // 2, m)
assert trainable == len(modules) * each
print(f"3. {len(modules)} x {each:,} = {trainable:,} parameters here (d={d}, h={h}, m={m})")

# %%
one = modules[0]
u = torch.randn(2, h, 16, 16)
with torch.no_grad():
    g, l = one.spectral(u), one.local(u)  # noqa: E741 (the paper's symbols)
    a, b = one.channel_gate(g).sigmoid(), one.spatial_gate(l).sigmoid()
assert torch.allclose(g, u.abs(), atol=1e-5)
assert (a == 0.5).all() and (b == 0.5).all()
print(f"4. FAM starts as |u|: largest deviation {(g - u.abs()).abs().max():.1e}")
print("5. both gates start at 0.5: local and global count the same")

# %% [markdown]
# ## 5. The experiment
#
# The paper's backbone, made small: `ipt_mini` (1.4 M parameters, the paper's IPT has 119 M) was
# pretrained on IPT's six tasks, SR x2, x3, x4, light rain, noise 30 and 50. It is frozen, with
# head and tail. Each method then learns each of ten tasks: some that the backbone knows (SR,
# noise, light rain), some that it never saw (the *hybrid* LR4&Noise30 and LR4&JPEG30, heavy rain,
# low light). All rows get the same patches in the same order, AdamW, the same number of steps, the
# same schedule and an L1 loss. Each method has one learning rate for all tasks: the best of a grid
# after 100 steps of LR4&Noise30, on validation photographs. VPT, Adapter, LoRA, AdaptFormer, FacT
# and AdaptIR have about 40 thousand values (3 % of the backbone); SSF and BitFit have fewer
# because they have no width.
#
# One row of a table is one section of [adaptir_ipt.toml](../experiments/adaptir_ipt.toml) or
# [adaptir_ipt_same_size.toml](../experiments/adaptir_ipt_same_size.toml), and `experiments.run`
# turns it into one record. In the demo profile it loads the shipped adapter and computes its
# scores again; a record that exists already is reused. Here this is done for the rows of one task;
# the overview in section 7 reads the committed records of all of them.

# %%
specs = [
    spec
    for spec in experiments.load_specs(ROOT / "experiments" / "adaptir_ipt.toml")
    if spec.task in (task, "lr4_noise30")  # sections 9 and 10 vary this one
]
if SMOKE:
    kept = ("bicubic", "frozen", "full", "lora", "houlsby", "adaptir")
    kept += ("adaptir_2", "lora_1", "houlsby_1", "no_ensemble", "dora")
    specs = [spec for spec in specs if spec.row in kept and spec.seed == 0]
made = [experiments.run(spec, PROFILE, root=ROOT, progress=False) for spec in specs]
records = results.load_records(RECORDS)
records = records[records["id"].isin([record["id"] for record in made])]
print(f"{len(made)} records in {RECORDS.relative_to(ROOT)}, {records['image'].nunique()} images")

# %% [markdown]
# ## 6. Training one of them, live
#
# The training of the row *AdaptIR*, from the same start on the same patches. The shipped run
# halves its learning rate for the first time after half of its steps; until then the live run must
# follow it.

# %%
spec = next(spec for spec in specs if (spec.row, spec.task) == ("adaptir", task))
shipped = next(record for record in made if record["id"] == experiments.run_id(spec, PROFILE))
full = PROFILE if SMOKE else experiments.PROFILES["full"]
steps = 8 if SMOKE else live_steps
live = replace(full, name="live", trains=True, steps=steps, schedule="constant")


def loss_on(model, batch):
    """L1 of a fixed batch, the model as it is in use."""
    lq, gt = batch
    return (ir_peft.restore(model, lq) - gt).abs().mean().item()


learner = experiments.adapted_model(spec, live)
data = experiments.training_set(spec, live)
batch = tuple(torch.stack(part) for part in zip(*(data[i] for i in range(4)), strict=True))
start = loss_on(learner, batch)
result = ir_peft.train(
    learner,
    data,
    steps=live.steps,
    batch_size=live.batch_size,
    lr=spec.lr,
    schedule=live.schedule,
    seed=spec.seed,
    log_every=max(1, full.steps // 30),
    progress=False,
)
end = loss_on(learner, batch)
pace = result.steps / result.seconds
print(f"{result.steps} steps in {result.seconds:.0f} s, {pace:.2f} steps/s")
print(f"loss on four fixed patches: {start:.4f} -> {end:.4f}")

# %%
with plots.style():
    figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
    plt.close(figure)
    curve = [point for point in shipped["curve"] if "loss" in point]
    for points, look in (
        (curve, {"color": "#bbbbbb", "lw": 3, "label": "record"}),
        (result.curve, {"color": plots.color("adaptir"), "marker": "o", "ms": 4, "label": "live"}),
    ):
        axes.plot([p["step"] for p in points], [p["loss"] for p in points], **look)
    axes.set(xlabel="step", ylabel="training loss (L1)", title=f"{spec.label}, {task}")
    axes.legend()
recorded = {point["step"]: point["loss"] for point in curve if point["step"] <= full.steps // 2}
common = [p for p in result.curve if p["step"] in recorded]
apart = max(abs(p["loss"] / recorded[p["step"]] - 1) for p in common) if common else float("nan")
print(f"{len(common)} common points, at most {100 * apart:.1f} % apart")
show(figure, "live")

# %% [markdown]
# ## 7. The tables
#
# First all tasks at a glance, from the committed records (PSNR in dB; the mean of three seeds
# where a ± stands).

# %%
for name in ("ipt", "ipt-same-size"):
    every = results.select(COMMITTED, table=name)
    frames = {one: results.table(part, task=one) for one, part in every.groupby("task")}
    display(Markdown(results.to_markdown(overview.scores(frames))))

# %% [markdown]
# Now the chosen task in detail. Ours is on the left, the paper's first version on the right.
# Compare **rows with each other**, not digits across: the backbone, the images and the length of
# the training differ (section 14). The sentences under the table are computed from it, whether
# they please or not.


# %%
def report(records, table, task):
    """Show one table of one task with its head and its foot."""
    part = results.select(records, table=table, task=task)
    frame = results.table(records, task=task, name=table)
    images = results.per_image(records, task=task, table=table)
    costs = ["step [ms]", "saved for backward [MiB]", "adapter file [kB]"]
    shown = results.display(frame).drop(columns=costs, errors="ignore")
    lines = claims.foot(frame, images, results.load_paper_numbers(), task)
    text = [
        results.head(part, frame),
        results.to_markdown(shown),
        "\n".join(f"- {line}" for line in lines),
    ]
    display(Markdown("\n\n".join(text)))
    return frame


PEFT = ("vpt", "houlsby", "lora", "adaptformer", "ssf", "fact", "bitfit", "adaptir")
labels = {spec.row: spec.label for spec in specs if (spec.table, spec.task) == ("ipt", task)}
frame = report(records, "ipt", task)

# %% [markdown]
# The methods of Hugging Face `peft` are injected into the same layers as our LoRA, by `peft`
# itself: one line of the experiment file names the config (`method = "peft"`).

# %%
if "peft" in set(records["table"]):
    report(records, "peft", "lr4_noise30")

# %% [markdown]
# ## 8. What it costs
#
# Trainable parameters, time and memory of a training step, and PSNR of each row. Time and memory
# were measured side by side, with all methods taking turns
# ([benchmarks/methods.py](../benchmarks/methods.py)). An adapter saves *storage*: its file holds
# only what was trained. What it saves of time and memory depends on the method.

# %%
costs = results.load_step_costs(BACKBONE)
show(plots.efficiency_bars(frame), "efficiency")

# %%
psnrs = frame.set_index("row")["psnr"].dropna()
share = (costs / costs.loc["full"]).reindex([row for row in PEFT if row in psnrs])
shows(
    "of full fine-tuning's step the adapters take "
    f"{share['step_seconds'].min():.2f} ({labels[share['step_seconds'].idxmin()]}) to "
    f"{share['step_seconds'].max():.2f} ({labels[share['step_seconds'].idxmax()]}) of the time and "
    f"keep {share['saved_bytes'].min():.2f} ({labels[share['saved_bytes'].idxmin()]}) to "
    f"{share['saved_bytes'].max():.2f} ({labels[share['saved_bytes'].idxmax()]}) of the bytes; "
    f"AdaptIR {share.loc['adaptir', 'step_seconds']:.2f} and "
    f"{share.loc['adaptir', 'saved_bytes']:.2f}."
)

# %%
show(plots.tradeoff(frame), "tradeoff")

# %%
alone = psnrs[[row for row in PEFT if row in psnrs]].sort_values(ascending=False)
shows(
    f"the adapters lie between {alone.iloc[-1]:.2f} dB ({labels[alone.index[-1]]}) and "
    f"{alone.iloc[0]:.2f} dB ({labels[alone.index[0]]}), the frozen network at "
    f"{psnrs['frozen']:.2f}, full fine-tuning at {psnrs['full']:.2f} and the enlarged input at "
    f"{psnrs['bicubic']:.2f} dB."
)

# %% [markdown]
# ## 9. Does it grow with its width?
#
# The paper's scalability figure: the same methods at other widths and ranks.

# %%
sizes = report(records, "scaling", "lr4_noise30")
show(plots.scalability(sizes), "scalability", "lr4_noise30")

# %%
ours = sizes[sizes["method"] == "adaptir"].dropna(subset=["psnr"])
others = sizes[~sizes["method"].isin(["adaptir", "frozen", "full"])]["psnr"].max()
enough = ours[ours["psnr"] > others]["trainable"].min()
shows(
    f"AdaptIR goes from {ours['psnr'].iloc[0]:.2f} to at most {ours['psnr'].max():.2f} dB and "
    + (
        f"passes the best of the others at any size ({others:.2f} dB) with {enough:,.0f} values."
        if enough == enough
        else f"does not pass the best of the others ({others:.2f} dB)."
    )
)

# %% [markdown]
# ## 10. What each part is worth
#
# Every variant of the module is the same training with one part switched off, made dense or put
# elsewhere. The grey band is what three seeds of the whole module scatter by: a difference inside
# it means nothing.

# %%
variants = report(records, "ablation", "lr4_noise30")
show(plots.ablation(variants), "ablation", "lr4_noise30")

# %%
change = variants.set_index("label")["gain"].dropna().iloc[1:]
shows(
    f"{(change < -verdicts.SEEDS).sum()} of {len(change)} variants lose more than the "
    f"{verdicts.SEEDS} dB that seeds may scatter by, most of all {change.idxmin()} "
    f"({change.min():+.2f} dB); {(change > verdicts.SEEDS).sum()} gain more, most of all "
    f"{change.idxmax()} ({change.max():+.2f} dB)."
)

# %% [markdown]
# ## 11. What the branches respond to
#
# The paper explains AdaptIR by its *responses*: "other methods' features respond alike to every
# degradation", its own do not. Here is the same test. For each task the shipped adapter of that
# task sees the same photographs, damaged as its task says; we keep what every adapter of the body
# **adds** to its layer. A Fourier curve is the log amplitude of these features at each spatial
# frequency, relative to frequency zero, averaged over channels, photographs and layers.

# %%
SHOWN = {
    "sr4": "ipt",
    "lr4_noise30": "ipt",
    "lr4_jpeg30": "ipt",
    "denoise50": "ipt-same-size",
    "derain_heavy": "ipt-same-size",
    "low_light": "ipt-same-size",
}
if SMOKE:  # Only the rows of one task were trained.
    SHOWN = {task: "ipt"}


def adapted(row, name, table="ipt"):
    """The backbone for a task, with the trained adapter of a row."""
    tag = f"adaptir/{table}/{name}-{row}"
    chosen = ir_peft.load_backbone(BACKBONE)
    chosen.set_task(name)
    return ir_peft.load_adapter(chosen, ADAPTERS / tag if PROFILE.trains else tag).eval()


def windows(name):
    """The same photographs, damaged as a task says: one window of IPT each, (6, 3, 48, 48)."""
    degradation = degradations.TEST_TASKS[name]
    crop = 48 * patches.integer_scale(degradation)
    pairs = patches.make_test_pairs(photos.test_set("photos6"), degradation, crop=crop)
    return torch.stack([lq for _, lq, _ in pairs])


def responses(row, name, table):
    """What every adapter of the body adds to its layer: (layers * 6, d, 16, 16)."""
    found = []

    def keep(layer, inputs, out):
        found.append((out - layer.base_layer(*inputs)).permute(0, 3, 1, 2))

    chosen = adapted(row, name, table)
    for module in chosen.modules():
        if isinstance(module, adapters.AdaptedLayer):
            module.register_forward_hook(keep)
    with torch.no_grad():
        chosen(windows(name))
    return torch.cat(found).numpy()


by_method = {
    label: {name: responses(row, name, table) for name, table in SHOWN.items()}
    for row, label in {"houlsby": "Adapter", "lora": "LoRA", "adaptir": "AdaptIR"}.items()
}
spread = {}
for label, features in by_method.items():
    drawn = np.stack([plots.radial_spectrum(feature)[1][1:] for feature in features.values()])
    shape = drawn - drawn.mean(axis=1, keepdims=True)
    spread[label] = {"height": drawn.std(axis=0).mean(), "shape": shape.std(axis=0).mean()}
show(plots.spectra(by_method), "responses", "tasks")

# %%
spread = pd.DataFrame(spread).T
most = spread.idxmax()
display(spread.round(2).rename_axis("standard deviation between tasks"))
Markdown(
    "The *height* of a curve says how large the constant part of the response is (frequency zero; "
    "Adapter has a bias that adds one), its *shape* which frequencies it prefers. **What it shows "
    f"here:** between degradations {most['height']} differs most in height and {most['shape']} in "
    "shape. The paper's claim that AdaptIR's curves differ and the others' do not "
    f"{'holds' if set(most) == {'AdaptIR'} else 'is **not** seen'} in this measurement."
)

# %% [markdown]
# **LIM and FAM.** The local branch should pass high frequencies, the spectral one low ones. We
# record the normalised input $z$ of every module and let both branches work on it.


# %%
def experts(name, table):
    """z, LIM and FAM of every module, each (layers * 6, h, 16, 16), and the scores (layers, h)."""
    parts = {"z": [], "LIM": [], "FAM": [], "CGM": []}

    def keep(adapter, inputs, out):
        z = adapter.BN(adapter.head(inputs[0].permute(0, 3, 1, 2)))
        for key, part in (("z", z), ("LIM", adapter.local(z)), ("FAM", adapter.spectral(z))):
            parts[key].append(part)
        parts["CGM"].append(adapter.channel_score(z).mean(dim=0).flatten()[None])

    chosen = adapted("adaptir", name, table)
    for module in chosen.modules():
        if isinstance(module, adapters.AdaptIR):
            module.register_forward_hook(keep)
    with torch.no_grad():
        chosen(windows(name))
    return {key: torch.cat(values).numpy() for key, values in parts.items()}


by_task = {name: experts(name, table) for name, table in SHOWN.items()}
lead = {}
for name, parts in by_task.items():
    lim, fam = (plots.radial_spectrum(parts[key])[1] for key in ("LIM", "FAM"))
    lead[name] = (lim - fam)[len(lim) // 2 :].mean()
panels = {name: {key: parts[key] for key in ("LIM", "FAM")} for name, parts in by_task.items()}
show(plots.spectra(panels), "lim-fam", "tasks")

# %%
held = [name for name, value in lead.items() if value > 0]
Markdown(
    f"**What it shows here:** in the upper half of the frequencies LIM lies above FAM in "
    f"{len(held)} of {len(lead)} tasks (by {min(lead.values()):+.2f} to {max(lead.values()):+.2f} "
    "in log amplitude). Part of this is the absolute value in FAM: it adds a constant, which is "
    "frequency zero."
)

# %% [markdown]
# **CGM.** The score of each channel, in the last module of the body, averaged over the
# photographs. It is not squashed: a channel may be amplified, muted or turned round.

# %%
last = {name: parts["CGM"][-1] for name, parts in by_task.items()}
show(plots.channel_bars(last, title="channel scores of the last module"), "channels", "tasks")

# %%
scores = np.stack(list(last.values()))
turned = np.mean([np.sign(column).min() != np.sign(column).max() for column in scores.T])
Markdown(
    f"**What it shows here:** {100 * turned:.0f} % of the channels have a score of one sign in "
    "some task and of the other in another (each task has an adapter of its own, so its channels "
    "are its own too)."
)

# %% [markdown]
# ## 12. What it looks like


# %%
def photograph(name, size):
    """The chosen photograph, centred crop: lq (1, 3, h, w) and gt (1, 3, 4h, 4w)."""
    [chosen] = [one for one in photos.test_set("photos6") if one.name == photo]
    [(_, lq, gt)] = patches.make_test_pairs([chosen], degradations.TEST_TASKS[name], crop=size)
    return lq[None], gt[None]


def psnr(image, gt, channel="y"):
    """PSNR of one image, in dB."""
    return metrics.psnr(image.clamp(0, 1), gt, crop_border=4, channel=channel).item()


def comparison(images, gt):
    """Crops of every image beside the photograph and the truth."""
    side = gt.shape[-1]
    box = (side // 4, side // 7, side // 3, side // 3)
    views = {name: image[0].permute(1, 2, 0).numpy() for name, image in images.items()}
    under = {name: psnr(image, gt) for name, image in images.items()}
    truth = gt[0].permute(1, 2, 0).numpy()
    views["ground truth"] = truth
    return plots.crops(truth, box, views, under, columns=5, title=f"{photo}, {task}")


lq, gt = photograph(task, PROFILE.crop)
images = {"bicubic": degradations.bicubic_resize(lq, 4).clamp(0, 1)}
frozen_ipt = ir_peft.load_backbone(BACKBONE)
frozen_ipt.set_task(task)
images["Frozen"] = ir_peft.restore(frozen_ipt, lq)
for row in filter(labels.get, ["vpt", "ssf", "lora", "houlsby", "adaptformer", "adaptir", "full"]):
    images[labels[row]] = ir_peft.restore(adapted(row, task), lq)
show(comparison(images, gt), "crops")

# %%
scores = {name: psnr(image, gt) for name, image in images.items()}
best = max((name for name in scores if name != labels["full"]), key=scores.get)
shows(
    f"on this photograph {best} comes nearest to the truth without full fine-tuning, "
    f"{scores[best]:.2f} dB against {scores[labels['full']]:.2f}."
)

# %% [markdown]
# ## 13. A second backbone, and what bounds an adapter
#
# DAT-light x4 (0.57 M parameters, the authors' weights, trained for clean SR x4 only) learns the
# two hybrid tasks. Every method has two rows: the adapter **alone**, and with the **tail**
# (`norm`, `conv_after_body` and `upsample`, the network's last three modules) trained beside it;
# one more trains the first convolution, too. The rows are in
# [experiments/adaptir.toml](../experiments/adaptir.toml).

# %%
dat_specs = experiments.load_specs(ROOT / "experiments" / "adaptir.toml")
if SMOKE:
    rows = ("bicubic", "frozen", "full", "tail", "adaptir", "adaptir_tail")
    dat_specs = [spec for spec in dat_specs if spec.task == task and spec.row in rows]
dat_made = [experiments.run(spec, PROFILE, root=ROOT, progress=False) for spec in dat_specs]
dat_records = results.load_records(RECORDS)
dat_records = dat_records[dat_records["id"].isin([record["id"] for record in dat_made])]
dat_frame = report(dat_records, "hybrid", task)

# %% [markdown]
# For LR4&JPEG30 no published numbers are available to this project; our rows are compared with
# each other only.

# %%
for other in sorted(set(dat_records["task"]) - {task}):
    report(dat_records, "hybrid", other)

# %% [markdown]
# Each line joins an adapter alone (hollow) with the same adapter plus the trained tail (filled).

# %%
show(plots.alone_or_with_tail(dat_frame), "tail")

# %%
reach = dat_frame.set_index("row")["psnr"].dropna()
pairs = [row for row in reach.index if f"{row}_tail" in reach.index]
shows(
    f"alone the adapters reach {reach[pairs].min():.2f} to {reach[pairs].max():.2f} dB, with the "
    f"tail {min(reach[f'{row}_tail'] for row in pairs):.2f} to "
    f"{max(reach[f'{row}_tail'] for row in pairs):.2f} dB; the tail alone {reach['tail']:.2f} dB, "
    f"bicubic {reach['bicubic']:.2f} dB."
)


# %%
def restored_by(row, lq):
    """What a trained row on DAT-light makes of a photograph."""
    spec = next(spec for spec in dat_specs if (spec.row, spec.task) == (row, task))
    source = ADAPTERS / spec.tag if PROFILE.trains else spec.tag
    return ir_peft.restore(ir_peft.load_adapter(ir_peft.load_backbone("dat_light_x4"), source), lq)


# %% [markdown]
# On LR4&Noise30 all adapters alone stop near each other, whatever their design, and below a row
# that trains nothing but the tail. So the bound is not the adapter's. (On LR4&JPEG30 the damage
# is milder and there is less to lose.)
#
# Write down what the network does after its body. With $f$ the features of the first convolution,
# $h$ what the body returns, LN the final `norm`, $C$ `conv_after_body` and $U$ `upsample`,
#
# $$\hat y = U\big(\,C(\mathrm{LN}(h)) + f\,\big) + \text{mean}, \qquad
# f = \texttt{conv\_first}(x).$$
#
# The noisy input reaches the output through $f$, *past the body*. An adapter in the body can only
# change $h$: it has to produce the negative of the noise and send it through LN and $C$. Two
# suspects, then:
#
# - LN fixes the size of its output at every pixel, so a large correction may be impossible;
# - $C$ squeezes 60 channels through 15, so some corrections may be impossible in any size.
#
# **A test that no adapter can pass better.** Let the tensor itself be free: start from the
# network's own values at one of three places and fit it by gradient descent until the *output*
# comes as near as it can to a given target (squared error). No training set, no generalisation,
# no adapter: what is still wrong afterwards, the frozen rest cannot express. If LN is the
# culprit, freeing its output must help; if it is $C$, only freeing the output of $C$ helps.


# %% [markdown]
# The three places, each with the network's own value there and with what the network does after
# it up to the sum with $f$:

# %%
frozen = ir_peft.load_backbone("dat_light_x4").requires_grad_(False)
lq, gt = photograph(task, 64 if SMOKE else 192)
with torch.no_grad():
    f = frozen.conv_first(lq - frozen.mean)  # (1, C, h, w)
    seen = {}
    hook = frozen.norm.register_forward_pre_hook(lambda _, inputs: seen.update(h=inputs[0]))
    z = frozen.forward_features(f)  # (1, C, h, w), the output of norm
    hook.remove()

C, U = frozen.conv_after_body, frozen.upsample
PLACES = {
    "input of norm": (seen["h"], lambda free: C(frozen.norm(free).permute(0, 3, 1, 2))),
    "output of norm": (z, C),
    "output of conv_after_body": (C(z), lambda free: free),
}


def reach(place, target, steps=5 if SMOKE else 200):
    """The image nearest to `target` that a free tensor at `place` gives: (1, 3, 4h, 4w)."""
    value, rest = PLACES[place]
    free = nn.Parameter(value.clone())
    optimizer = torch.optim.Adam([free], lr=0.1 * value.std().item())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = (U(rest(free) + f) + frozen.mean - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return U(rest(free) + f) + frozen.mean


# %% [markdown]
# Two targets: the truth, which no method can know, and what full fine-tuning made of this very
# image.

# %%
full_row, alone = restored_by("full", lq), restored_by("adaptir", lq)
oracle = {place: reach(place, gt) for place in PLACES}
imitation = {place: reach(place, full_row) for place in PLACES}
limits = pd.DataFrame(
    {
        f"{target}, {channel.upper()}": [psnr(image, gt, channel) for image in fitted.values()]
        for target, fitted in {"to the truth": oracle, "to full fine-tuning": imitation}.items()
        for channel in ("y", "rgb")
    },
    index=pd.Index(PLACES, name="free tensor, fitted"),
)
print(f"{photo}, {task}, centre crop of {gt.shape[-1]} px. PSNR against the truth [dB]:")
limits.round(2)

# %%
views = {f"free: {place}": image[0].permute(1, 2, 0).numpy() for place, image in imitation.items()}
views["full fine-tuning"] = full_row[0].permute(1, 2, 0).numpy()
under = {f"free: {place}": psnr(image, gt, "rgb") for place, image in imitation.items()}
under["full fine-tuning"] = psnr(full_row, gt, "rgb")
side = gt.shape[-1]
box = (side // 8, 0, side // 2, side // 2)
title = f"{photo}, {task}\nimitating full fine-tuning, PSNR in RGB"
show(
    plots.crops(gt[0].permute(1, 2, 0).numpy(), box, views, under, columns=2, title=title), "limit"
)

# %% [markdown]
# **How much of the noise is out of reach?** For the linear parts this has an exact answer. Noise
# $n$ on the input appears in the output as $U\,\texttt{conv\_first}\,n$; what the body can set
# against it lies in the range of $U C_4$, with $C_4$ the last convolution of $C$: 15 channels a
# pixel for an output of 48 values (4 x 4 pixels, 3 colours). At each spatial frequency both are
# small matrices, so the share of the noise inside the range is one projection.


# %%
def transfer(conv, n):
    """The 3 x 3 convolution as a matrix (out, in) at each of n x n spatial frequencies."""
    kernel = nn.functional.pad(conv.weight, (0, n - 3, 0, n - 3)).roll((-1, -1), (-2, -1))
    return torch.fft.fft2(kernel).permute(2, 3, 0, 1)  # (n, n, out, in)


def reachable_share(model, n=48):
    """Share of the noise energy in the output that the frozen tail can cancel."""
    upsample = transfer(model.upsample[0], n)
    noise = upsample @ transfer(model.conv_first, n)  # (n, n, 48, 3)
    span = torch.linalg.qr(upsample @ transfer(model.conv_after_body[-1], n)).Q  # (n, n, 48, 15)
    return ((span.mH @ noise).abs().square().sum() / noise.abs().square().sum()).item()


share = reachable_share(frozen)
norm_gain, conv_gain = limits.diff().iloc[1], limits.diff().iloc[2]
freed = limits.diff().iloc[1:].rename_axis("gained [dB] by freeing the").round(2)
gap = psnr(full_row, gt, "rgb") - psnr(alone, gt, "rgb")
lost = psnr(full_row, gt, "rgb") - limits["to full fine-tuning, RGB"].iloc[1]
print(f"noise energy that the frozen end can cancel: {100 * share:.0f} %")
print(f"AdaptIR alone is {gap:.2f} dB (RGB) below full fine-tuning on this photograph;")
print(f"{lost:.2f} dB of them no adapter in the body could win")
freed + 0.0  # Without minus signs before zeros.

# %% [markdown]
# The norm is acquitted: a body that chooses the input of `norm` gets as far as one that chooses
# its output. The bound is the frozen `conv_after_body`. Its 15 channels learned to add *detail*
# to a clean image, not to take noise out of the shortcut.
#
# The last columns say what this costs. They belong to a body that knows exactly what full
# fine-tuning would answer and has only the frozen end of the network to say it with. What it
# cannot say is mostly *colour* noise: 15 numbers a pixel nearly suffice for the brightness of 16
# output pixels, not for their 48 colour values. Hence the loss is larger in RGB, which the
# training loss measures, than in Y, which the tables report.
#
# Training the tail helps twice: `conv_after_body` may choose other directions, and `upsample` may
# turn the noise down where it comes in, through $f$. The row *AdaptIR + both ends* goes to the
# root and also trains `conv_first`, which makes $f$.
#
# IPT, the paper's backbone, has no such bottleneck: its body returns all 64 channels of the
# features that its shortcut carries (18 in the small one), so an adapter in the body can cancel
# whatever they hold. The rows *+ tail* of section 7 measure what the tail is worth there.

# %% [markdown]
# What each part contributes, on both tasks:

# %%
parts = {}
for name in sorted(set(dat_records["task"])):
    chosen = results.table(results.select(dat_records, task=name), task=name)
    scores = chosen.set_index("row")["psnr"]
    parts[name] = {
        "tail only, over frozen": scores["tail"] - scores["frozen"],
        "AdaptIR alone, over frozen": scores["adaptir"] - scores["frozen"],
        "AdaptIR + tail, over tail only": scores["adaptir_tail"] - scores["tail"],
        "AdaptIR + tail, over AdaptIR alone": scores["adaptir_tail"] - scores["adaptir"],
        "left to full fine-tuning": scores["full"] - scores["adaptir_tail"],
    }
pd.DataFrame(parts).rename_axis("PSNR [dB]").round(2)

# %% [markdown]
# The two tasks are mirror images. Noise that enters past the body is the tail's affair: there the
# tail brings most of the gain and any adapter adds little to it. JPEG's blocks ask for context
# that three convolutions do not see: there the adapter brings most of the gain and the tail
# little.

# %%
images = {"bicubic": degradations.bicubic_resize(lq, 4).clamp(0, 1)}
images["Frozen"] = ir_peft.restore(frozen, lq)
dat_labels = {spec.row: spec.label for spec in dat_specs}
candidates = ["lora", "adaptir", "tail", "lora_tail", "adaptir_tail", "adaptir_ends", "full"]
for row in filter(dat_labels.get, candidates):
    images[dat_labels[row]] = restored_by(row, lq)
show(comparison(images, gt), "dat-crops")

# %% [markdown]
# ## 14. What differs from the paper
#
# | | paper (tables: version 1) | IPT here | DAT-light here |
# |---|---|---|---|
# | module | channel shift, plain sum | version 2: channel gating, crossed gates | the same |
# | backbone | IPT, 119 M | the same design, 1.4 M | 0.57 M |
# | it knows | SR, noise, light rain | the same six tasks | clean SR x4 only |
# | width | tuned per task, 0.3 to 0.8 % | $h = 24$, 3 % | $h = 12$, 6 % |
# | training data | DIV2K and Flickr2K, 3450 images | 11 photographs | the same |
# | steps, batch | 107,500, 16 | 300, 4 | 300, 4 |
# | patch, rate | 48 px, 1e-4 | 48 px, by method | 32 px, 1e-3 |
# | test images | Set5 to Manga109 | 11 photographs, crops | the same, larger crops |
# | rain, low light | Rain100L and H, LOL | synthetic, on our photographs | - |
# | test noise | drawn in the order of the images | one generator an image | the same |
# | initial weights | one module copied into all layers | each module its own | the same |
#
# (The training line of the paper is that of the released code; the paper's own is not known to
# us. `ir-peft run experiments/adaptir_paper.toml --profile paper` runs it, see the README.)
#
# A table at this scale can say whether the *order* of the methods and the *mechanism* carry over.
# It cannot confirm or refute the paper's decibels.

# %% [markdown]
# ## 15. Summary
#
# - AdaptIR adds, beside each FFN, a module of three experts: local (depthwise convolution),
#   global (scaled spectrum), channel (softmax-pooled score). Crossed gates mix the first two, the
#   third weighs the result.
# - It starts as nothing at all: $W_\text{tail} = 0$. On IPT it has 697,656 parameters, by formula
#   and by count.
# - On damage that the backbone has never seen it is the best adapter of its size here, as the paper
#   claims (on LR4&JPEG30 within chance). Where the backbone knows SR and noise, no adapter has
#   anything to win.
# - The place counts: beside a sublayer, not behind it. The spectral branch needs the local one
#   beside it; that channel gating and the crossed gates add something is not seen in so short a
#   training.
# - On DAT-light an adapter in the body can do only what the frozen end of the network can express.
#   The bound is `conv_after_body`, not `norm`, and training the tail (43 thousand parameters)
#   lifts it. IPT has no such bottleneck.
# - The paper's backbone is 85 times larger and its training 350 times longer: its decibels are
#   neither confirmed nor refuted.

# %% [markdown]
# ## 16. Exercises
#
# Fill in the cell behind each exercise. Outside the students' edition a solution follows it; those
# that train run only with `solutions = True`.


# %%
def check(number, answer, right):
    """Say whether an answer is right; None is no answer yet."""
    known = {None: "no answer yet", True: "right", False: "not yet"}
    print(f"{number}: {known[None if answer is None else bool(right(answer))]}")


# %% [markdown]
# **1.** How many parameters would AdaptIR have on the larger DAT ($d = 180$, 36 blocks) with $h =
# 12$, $m = 3$? And which term dominates?

# %%
answer_1 = None  # your number

# %% tags=["solution"]
answer_1 = 36 * size(d=180, h=12, r=6, m=3)
projections = 36 * (2 * 180 * 12 + 12)
share_1 = projections / answer_1
print(f"{answer_1:,}, of which {100 * share_1:.0f} % are head and tail: the experts are cheap")

# %%
check(1, answer_1, lambda n: n == 36 * size(d=180, h=12, r=6, m=3))

# %% [markdown]
# **2.** Without the crossed gates ($s = l + g$), how many parameters does the module lose on
# the small IPT? Check it with `AdaptIRConfig`.

# %%
answer_2 = None  # your number

# %% tags=["solution"]
plain = ir_peft.attach_adapter(ir_peft.load_backbone(BACKBONE), "adaptir", ensemble=False)
answer_2 = trainable - ir_peft.count_parameters(plain)[0]
assert answer_2 == len(modules) * ((h * m + m) + (m * h + h) + (h + 1))
print(f"{answer_2:,} of {trainable:,}")

# %%
check(2, answer_2, lambda n: n == len(modules) * (2 * h * m + m + h + h + 1))

# %% [markdown]
# **3.** FAM starts as $|u|$, not as $u$. What is lost by the absolute value, and which other
# branch still has it? Feed a wave that changes sign through `spectral` and through `local`.

# %%
wave = torch.sin(torch.arange(16.0) / 2).expand(1, h, 16, 16)

# %% tags=["solution"]
with torch.no_grad():
    lost = torch.equal(one.spectral(wave) >= 0, torch.ones_like(wave, dtype=torch.bool))
    kept = (one.local(wave).amin() < 0).item()
print(f"the sign is lost by FAM: {lost}; LIM, a linear filter, still has both signs: {kept}")

# %% [markdown]
# **4.** Section 11 mixes all layers. Draw LIM and FAM of the chosen task for the first and the
# last module alone (`by_task` holds them, six photographs a layer). Where does the adapter add
# detail?

# %%
layers = {}  # "first" and "last" -> {"LIM": ..., "FAM": ...}

# %% tags=["solution"]
layers = {
    place: {key: by_task[task][key][part] for key in ("LIM", "FAM")}
    for place, part in {"first": slice(0, 6), "last": slice(-6, None)}.items()
}
plots.spectra(layers)

# %%
check(
    4,
    layers or None,
    lambda found: all(len(found[place]["LIM"]) == 6 for place in ("first", "last")),
)

# %% [markdown]
# **5.** Which of the three modules of DAT-light's tail has to be trained? Predict it from section
# 13, then
# train AdaptIR with each of them alone.

# %%
prediction = ("norm", "conv_after_body", "upsample")  # put them in the order of their use

# %% tags=["solution"]
dat_spec = next(one for one in dat_specs if (one.row, one.task) == ("adaptir_tail", task))
dat_data = experiments.training_set(dat_spec, live)
gains = []
for saved in ((), ("norm",), ("conv_after_body",), ("upsample",)) if solutions else ():
    trial = experiments.adapted_model(replace(dat_spec, modules_to_save=saved), live)
    ir_peft.train(
        trial, dat_data, steps=live.steps, batch_size=live.batch_size, lr=dat_spec.lr,
        schedule=live.schedule, seed=seed, progress=False,
    )  # fmt: skip
    image = ir_peft.restore(trial, lq)
    gains.append({"trained too": saved, "Y": psnr(image, gt), "RGB": psnr(image, gt, "rgb")})
pd.DataFrame(gains).round(2) if solutions else "not run: set solutions = True"

# %% [markdown]
# ## The claims of this notebook, asserted

# %%
assert adapters.fingerprint(learner) == pretrained, "training changed the frozen weights"
assert end < start, "the live training did not lower the loss"
assert set(frame.loc[frame["psnr"].notna(), "row"]) == {
    spec.row for spec in specs if (spec.table, spec.task) == ("ipt", task)
}
for record in [*made, *dat_made]:
    stored = json.loads((RECORDS / f"{record['id']}.json").read_text(encoding="utf-8"))
    assert stored["scores"] == record["scores"]
drawn = ("live", "efficiency", "tradeoff", "crops", "tail", "limit", "dat-crops")
drawn = [f"{name}-{task}" for name in drawn]
drawn += ["scalability-lr4_noise30", "ablation-lr4_noise30"]
for name in (*drawn, "responses-tasks", "lim-fam-tasks", "channels-tasks"):
    for ending in ("png", "svg"):
        assert (FIGURES / f"adaptir-{name}.{ending}").stat().st_size > 0
if not SMOKE and task == "lr4_noise30":
    assert norm_gain.abs().max() < 0.1, "section 13 blames the wrong module"
    assert conv_gain.filter(like="RGB").min() > 1, "section 13 blames the wrong module"
    assert parts[task]["AdaptIR + tail, over AdaptIR alone"] > 0, "the tail did not help"
if not SMOKE:  # The summary's third and fourth point.
    peers = ["vpt", "houlsby", "lora", "adaptformer", "fact"]
    for name in ("lr4_noise30", "lr4_jpeg30", "derain_heavy", "low_light"):
        seen = results.select(COMMITTED[COMMITTED["table"].str.startswith("ipt")], task=name)
        scores = results.table(seen, task=name).set_index("row")["psnr"]
        assert scores["adaptir"] > scores[peers].max(), f"another adapter leads on {name}"
    loss = variants.set_index("row")["gain"]
    assert loss[["fam", "fam_cgm", "mlp_sequential", "attention_sequential"]].max() < -0.2
print("all claims hold")
