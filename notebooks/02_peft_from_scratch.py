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
# # PEFT from scratch: LoRA, Adapter, SSF and VPT in ten lines each
#
# *Parameter-efficient fine-tuning* (PEFT) adapts a large pretrained network to a new task by
# training a few percent of new parameters; the network itself stays frozen. Here you write four
# classic methods in plain PyTorch, put them into a real pretrained transformer and find out what
# they cost, what they save and what they do not.
#
# After this notebook you can
#
# - write LoRA, a bottleneck adapter, SSF and VPT as wrappers of a layer,
# - predict the number of their parameters for any transformer,
# - say which of them start as the frozen network, and why only one of two factors is zero,
# - fold an adapter into the weights, or say why that is impossible,
# - tell where the memory of training goes, and which part of it PEFT saves.
#
# You need PyTorch (`nn.Module`, autograd) and know what a transformer layer is.
#
# **One hour in class**
#
# | section | minutes | ask before you go on |
# |---|---:|---|
# | 1. One network, one new task | 6 | What is cheap to store for 100 tasks? |
# | 2. Four methods, ten lines each | 18 | Where does the method read, where does it write? |
# | 3. How many parameters? | 8 | Everybody predicts first, on paper |
# | 4. The start | 8 | Which factor may be zero? Both? |
# | 5. Folding it away | 6 | Which of the four can be a matrix? |
# | 6. Where the memory goes | 8 | Which bar will PEFT shorten? |
# | 7. Training all four | 5 | What would you need to rank them? |
# | 8. Summary | 1 | |
#
# The exercises are for home, or for a second hour. **Time** on two CPU cores: smoke half a minute,
# demo under 3 minutes. Memory below 2 GB. Nothing is downloaded.

# %% tags=["parameters"]
profile: str = "demo"  # smoke: plumbing in seconds; demo and full: the same, all figures
task: str = "lr4_noise30"  # the new task: lr4_noise30 or lr4_jpeg30
photo: str = "chelsea"  # shown and measured: astronaut, chelsea, coffee, rocket, china, flower
steps: int = 30  # of each training in section 7 (smoke: 2)
seed: int = 0  # of everything random; section 7 also takes the next one

# %%
import inspect
import math
import random
import re
import textwrap
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

warnings.filterwarnings("ignore", message="IProgress not found")  # Progress bars are text.
# %matplotlib inline

import ir_peft
from ir_peft import adapters, architecture_plots, metrics, plots
from ir_peft.data import degradations, patches, photos
from ir_peft.experiments import PROFILES

ROOT = next(path for path in [Path.cwd(), *Path.cwd().parents] if (path / "experiments").is_dir())
SMOKE = PROFILES[profile].name == "smoke"
WORK = ROOT / "runs" / profile / "peft"


def show(figure, name):
    """Write a figure to WORK and return it for display."""
    plots.save_figure(figure, WORK, name, smoke=SMOKE)
    return figure


# %% [markdown]
# ## 1. One network, one new task
#
# `ipt_mini` is a small sibling of IPT ([2012.00364](https://arxiv.org/abs/2012.00364)), pretrained
# by this project to enlarge, to remove noise and to remove rain. An encoder and a decoder of three
# transformer layers each see patches of 48 x 48 pixels as 256 tokens of width $d = 108$. The new
# task, `lr4_noise30`, was *not* part of its training: enlarge four times **and** remove the noise.


# %%
def backbone():
    """The pretrained network with its branch for the task."""
    model = ir_peft.load_backbone("ipt_mini")
    model.set_task(task)
    return model


[chosen] = [one for one in photos.test_set("photos6") if one.name == photo]
[(_, lq, gt)] = patches.make_test_pairs([chosen], degradations.TEST_TASKS[task], crop=192)
lq, gt = lq[None], gt[None]  # (1, 3, 48, 48) and (1, 3, 192, 192) in [0, 1]

frozen = backbone().requires_grad_(False)
pretrained = adapters.fingerprint(frozen)  # of all its weights
with torch.no_grad():
    y_frozen = frozen(lq)
psnr = metrics.psnr(y_frozen.clamp(0, 1), gt).item()
print(f"{ir_peft.count_parameters(frozen)[1]:,} parameters; PSNR {psnr:.2f} dB")
row = {"what we have": lq, f"frozen network, {psnr:.2f} dB": y_frozen, "what we want": gt}
show(
    architecture_plots.images({photo: {k: v[0].permute(1, 2, 0).numpy() for k, v in row.items()}}),
    "task",
)

# %% [markdown]
# The frozen network enlarges the noise together with the picture. *Full fine-tuning* would train
# all weights on pairs of the new task, and store all of them again: one network for each task. PEFT
# keeps one network and stores a small difference for each task.
#
# ## 2. Four methods, ten lines each
#
# Every method here takes the place of some *layers* of the network. A function does that: it
# freezes the network and puts `make(layer)` in the place of each layer whose name matches.


# %%
def insert(model, pattern, make):
    """Freeze a model and put make(layer) where a layer's whole name matches the pattern."""
    model.requires_grad_(False)
    for name, layer in list(model.named_modules()):
        if re.fullmatch(pattern, name):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, make(layer))
    return model


LAYER = r"body\.(encoder|decoder)\.layers\.\d+"  # a whole transformer layer
for name, module in frozen.named_modules():
    if name.startswith("body.decoder.layers.0."):
        print(f"{name:45} {type(module).__name__}")

# %% [markdown]
# A decoder layer has two attentions (the second one asks the encoder's output) and three norms, an
# encoder layer one and two. Now the methods.
#
# ### LoRA
#
# Hu et al., ICLR 2022 ([2106.09685](https://arxiv.org/abs/2106.09685)). The *change* of a weight
# matrix has low rank $r$:
#
# $$y = W x + \tfrac{\alpha}{r} B A x, \qquad A \in \mathbb R^{r \times i},\; B \in
# \mathbb R^{o \times r}, \quad B = 0 \text{ at the start.}$$


# %%
class LoRA(nn.Module):
    """Takes the place of a linear layer."""

    def __init__(self, layer, r, alpha):
        super().__init__()
        self.layer, self.scaling = layer, alpha / r
        self.lora_A = nn.Linear(layer.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, layer.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.layer(x) + self.scaling * self.lora_B(self.lora_A(x))


# %% [markdown]
# ### Adapter
#
# Houlsby et al., ICML 2019 ([1902.00751](https://arxiv.org/abs/1902.00751)). A small network with
# a bottleneck of width $b$ reads what attention or FFN *return*, and adds to it:
#
# $$y' = y + W_\text{up}\, \mathrm{GELU}(W_\text{down}\, y + b_\text{down}) + b_\text{up}.$$


# %%
class Bottleneck(nn.Module):
    """Takes the place of an attention or a feed-forward network."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.out_features, width)
        self.up = nn.Linear(width, layer.out_features)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, *inputs):
        y = self.layer(*inputs)
        return y + self.up(F.gelu(self.down(y)))


# %% [markdown]
# ### SSF
#
# Lian et al., NeurIPS 2022 ([2210.08823](https://arxiv.org/abs/2210.08823)). *Scale and shift your
# features*: two numbers for each channel behind every norm and every linear layer,
# $y' = \gamma \odot y + \beta$.


# %%
class SSF(nn.Module):
    """Takes the place of a linear layer or a layer norm."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.ones(len(layer.weight)))
        self.shift = nn.Parameter(torch.zeros(len(layer.weight)))

    def forward(self, x):
        return self.scale * self.layer(x) + self.shift


# %% [markdown]
# ### VPT
#
# Jia et al., ECCV 2022 ([2203.12119](https://arxiv.org/abs/2203.12119)), the *deep* form. $n$
# trained tokens, the prompts $P$, go through each layer in front of the image's tokens and are
# thrown away behind it: $[\,\cdot\,, x'] = L([P, x])$. The image's tokens attend to the prompts as
# to each other. (A decoder layer also gets a query, which is added to the tokens; the prompts have
# none.)


# %%
class VPT(nn.Module):
    """Takes the place of a whole transformer layer."""

    def __init__(self, layer, n):
        super().__init__()
        self.layer = layer
        self.prompts = nn.Parameter(0.02 * torch.randn(n, layer.in_features))

    def forward(self, x, query=None, memory=None):  # x (B, H, W, C), query (H, W, C)
        n, C = self.prompts.shape
        tokens = torch.cat([self.prompts.expand(len(x), n, C), x.flatten(1, 2)], dim=1)
        if query is None:
            out = self.layer(tokens[:, None])  # (B, 1, n + H W, C), an "image" of one line
        else:
            query = torch.cat([query.new_zeros(n, C), query.flatten(0, 1)])
            out = self.layer(tokens[:, None], query[None], memory)
        return out[:, 0, n:].reshape(x.shape)


# %% [markdown]
# ### Is it right?
#
# The package has all four. With the *same weights*, its networks and ours must give the same image.
# At the start most methods change nothing, so we first move all new parameters away from there.
# The widths are chosen so that LoRA, Adapter and VPT have about 40 thousand parameters, 3 % of the
# network. SSF has no width to choose.

# %%
OURS = {  # method of the package -> the layers' names, our wrapper, its settings in the package
    "lora": (LAYER + r"\.\w+_attn\.(q|v)", lambda m: LoRA(m, 10, 10), {"r": 10, "alpha": 10}),
    "houlsby": (LAYER + r"\.(self_attn|ffn)", lambda m: Bottleneck(m, 15), {"bottleneck": 15}),
    "ssf": (LAYER + r"\.(\w+_attn\.(q|k|v|out_proj)|ffn\.linear[12]|norm\d)", SSF, {}),
    "vpt": (LAYER, lambda m: VPT(m, 64), {"prompts": 64}),
}
LABELS = {"lora": "LoRA", "houlsby": "Adapter", "ssf": "SSF", "vpt": "VPT"}
OTHERS = {"adaptformer": "AdaptFormer", "bitfit": "BitFit"}  # remarks and exercises


def trained(model):
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def twins(method, pattern, make, settings):
    """Our network and the package's, with the same weights everywhere."""
    torch.manual_seed(seed)
    ours = insert(backbone(), pattern, make)
    for parameter in trained(ours).values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    # The package stores a tensor of a layer under "<layer>.<method>.<tensor>".
    state = {
        f"{layer}.{method}.{tensor}": parameter
        for layer, module in ours.named_modules()
        if re.fullmatch(pattern, layer)
        for tensor, parameter in trained(module).items()
    }
    theirs = ir_peft.attach_adapter(backbone(), method, target_modules=pattern, **settings)
    adapters.load_adapter_state_dict(theirs, state)  # An error unless all names and shapes agree.
    return ours, theirs


def compare(ours, theirs):
    """A line of the table: size, effect on the image, and how far ours is from theirs."""
    with torch.no_grad():
        y, y_package = ours(lq), theirs(lq)
    size = sum(parameter.numel() for parameter in trained(ours).values())
    effect, apart = ((y - other).abs().max().item() for other in (y_frozen, y_package))
    assert size == ir_peft.count_parameters(theirs)[0]
    assert apart < 1e-4 * effect
    return {
        "new parameters": f"{size:,}",
        "they change the image by": f"{effect:.1e}",
        "ours and the package's differ by": f"{apart:.1e}",
    }


for method, (pattern, _, _) in OURS.items():
    assert pattern == frozen.adapter_defaults[method]["target_modules"]  # The paper's layers.
pairs = {method: twins(method, *parts) for method, parts in OURS.items()}
pd.DataFrame({LABELS[method]: compare(*pair) for method, pair in pairs.items()}).T

# %% [markdown]
# The same images, bit for bit or up to rounding. So the package does the same; it only cuts it in
# two. What a method *computes* is a function of the layer's input and output,
# `forward(x, out)`; *calling* the layer is `run`, the same for nearly all methods:


# %%
def source(thing):
    """Show the package's own source of a function."""
    display(Markdown(f"```python\n{textwrap.dedent(inspect.getsource(thing))}```"))


source(adapters.Adapter.run)
source(adapters.LoRA.forward)
source(adapters.SSF.forward)

# %% [markdown]
# Because an adapter does not own the layer, several can stand beside one layer, be switched off and
# be taken away again. VPT has to act *before* the layer, so it has a `run` of its own. (So has
# LoRA, for speed only: with many tokens it is cheaper to add $BA$ to $W$ once.)

# %% [markdown]
# ## 3. How many parameters?
#
# Take the full-size IPT: width $d = 576$, $L = 12$ encoder and $L = 12$ decoder layers. With three
# attentions in each pair of layers there are $3L$ attentions, of four $d \times d$ matrices each,
# and $2L$ FFNs ($d \to 4d \to d$).
#
# | method | where | parameters there | in all |
# |---|---|---|---|
# | LoRA | q and v of every attention | $2dr$ | $3L \cdot 2 \cdot 2dr$ |
# | Adapter | behind the first attention and the FFN | $2db + b + d$ | $2L \cdot 2\,(2db + b + d)$ |
# | AdaptFormer | beside the FFN | $2db + b + d$ | $2L\,(2db + b + d)$ |
# | SSF | every output of a norm or a linear layer | 2 a channel | $2L\,(11d + 16d)$ |
# | VPT | every layer | $nd$ | $2L\,nd$ |
# | BitFit | every bias | | $L\,(7d + 8d)$ |
#
# (An encoder layer has $2d$ outputs of norms, $4d$ of attention and $5d$ of the FFN, $11d$; a
# decoder layer one norm and one attention more, $16d$. BitFit trains the biases; IPT's attention
# has none.) The paper of notebook 03 takes $r = 12$, $b = 12$ for Adapter, $b = 24$ for AdaptFormer
# and $n = 64$.
#
# **Write your six numbers down before you run the next cell.**


# %%
def predict(d, L, r, b, b_beside, n):
    """Trained parameters of each method, by formula."""
    return {
        "lora": 3 * L * 2 * (2 * d * r),
        "houlsby": 2 * L * 2 * (2 * d * b + b + d),
        "adaptformer": 2 * L * (2 * d * b_beside + b_beside + d),
        "ssf": 2 * L * (11 * d + 16 * d),
        "vpt": 2 * L * n * d,
        "bitfit": L * (7 * d + 8 * d),
    }


def measure(name, method, **settings):
    """The same, counted on the built network: without values, so it needs no memory."""
    with torch.device("meta"):
        model = ir_peft.attach_adapter(ir_peft.create_backbone(name), method, **settings)
    return ir_peft.count_parameters(model)[0]


predicted = predict(d=576, L=12, r=12, b=12, b_beside=24, n=64)
measured = {method: measure("ipt", method) for method in predicted}
assert predicted == measured
PRINTED = {"lora": 995, "houlsby": 691, "adaptformer": 677, "ssf": 373, "vpt": 884}  # thousands
assert all(measured[method] // 1000 == thousands for method, thousands in PRINTED.items())
total = measure("ipt", "full")
one_more = {  # the price of one more unit of width
    m: predict(576, 12, 13, 13, 25, 65)[m] - n for m, n in predicted.items()
}
pd.DataFrame(
    {
        "predicted": [f"{n:,}" for n in predicted.values()],
        "measured": [f"{n:,}" for n in measured.values()],
        "of IPT": [f"{n / total:.2%}" for n in measured.values()],
        "in the AdaptIR paper": [f"{PRINTED[m]}K" if m in PRINTED else "-" for m in measured],
        "one unit of width more": [f"{n:,}" if n else "-" for n in one_more.values()],
    },
    index=pd.Index([(LABELS | OTHERS)[m] for m in measured], name=f"IPT, {total:,} parameters"),
)

# %% [markdown]
# The widths are not comparable: a unit of LoRA's rank costs six prompts. Comparisons of methods
# should be made at equal budgets, as below. And the same formulas for the small network:

# %%
small = predict(d=108, L=3, r=10, b=15, b_beside=30, n=64)
widths = {m: settings for m, (_, _, settings) in OURS.items()} | {"adaptformer": {"bottleneck": 30}}
assert one_more["lora"] == 6 * one_more["vpt"]
assert all(abs(small[m] / 40_000 - 1) < 0.05 for m in ("lora", "houlsby", "vpt"))
assert small == {m: measure("ipt_mini", m, **widths.get(m, {})) for m in small}
print(*(f"{(LABELS | OTHERS)[m]}: {n:,}" for m, n in small.items()), sep=", ")

# %% [markdown]
# ## 4. The start
#
# Training should begin where the pretrained network is, not at a damaged copy of it. Which methods
# start as the frozen network, bit for bit?

# %%
STARTS = {
    "LoRA": ("lora", {}),
    "Adapter": ("houlsby", {}),
    "AdaptFormer": ("adaptformer", {}),
    "AdaptIR": ("adaptir", {}),
    "BitFit": ("bitfit", {}),
    "SSF, scale 1 and shift 0": ("ssf", {}),
    "SSF, plus noise of 0.02 (its authors)": ("ssf", {"init_std": 0.02}),
    "VPT, noise of 0.02": ("vpt", {}),
    "VPT, prompts of zero": ("vpt", {"init_std": 0.0}),
}
begins = {}
for label, (method, settings) in STARTS.items():
    model = ir_peft.attach_adapter(backbone(), method, seed=seed, **settings)
    with torch.no_grad():
        y = model(lq)
    change = metrics.psnr(y.clamp(0, 1), gt).item() - psnr
    begins[label] = {
        "the same, bit for bit": torch.equal(y, y_frozen),
        "largest difference": f"{(y - y_frozen).abs().max().item():.1e}",
        "change of the PSNR [dB]": f"{change:+.2f}",
    }
begins = pd.DataFrame(begins).T
other = [label for label, same in begins["the same, bit for bit"].items() if not same]
assert other == list(STARTS)[-3:]
begins

# %% [markdown]
# LoRA, the bottlenecks and AdaptIR add zero; SSF *can* start as the identity, although its authors
# add noise. VPT cannot: even a prompt of zeros takes its share of every softmax.
#
# **Why zero in one factor only?** With $\Delta = B A x$ and the loss $\ell$,
#
# $$\frac{\partial \ell}{\partial B} = \frac{\partial \ell}{\partial \Delta} (A x)^\top, \qquad
# \frac{\partial \ell}{\partial A} = B^\top \frac{\partial \ell}{\partial \Delta}\, x^\top.$$
#
# Each gradient contains the *other* factor. With $B = 0$ the first step can move only $B$; after
# it, $A$ learns as well. With $A = 0$ it is the other way round. With both zero, nothing ever
# moves. (One patch, AdamW with a learning rate of $10^{-3}$:)

# %%
START = {  # what is zero at the start
    "B (LoRA)": ("lora_B",),
    "A": ("lora_A",),
    "both": ("lora_A", "lora_B"),
    "none": (),
}


def gradient_norms(model):
    """The size of the gradient of each kind of tensor, over all layers."""
    norms = {}
    for name, parameter in trained(model).items():
        kind = next(k for k in ("lora_A", "lora_B") if k in name)
        norms[kind] = norms.get(kind, 0) + parameter.grad.square().sum().item()
    return {kind: square**0.5 for kind, square in norms.items()}


def first_steps(zero, count=2):
    """Gradients of LoRA before each of the first steps, and the loss before and after them."""
    torch.manual_seed(seed)
    model = insert(backbone(), *OURS["lora"][:2])
    for name, parameter in trained(model).items():
        bound = parameter.shape[1] ** -0.5  # as nn.Linear begins
        nn.init.uniform_(parameter, -bound, bound)
        if any(kind in name for kind in zero):
            nn.init.zeros_(parameter)
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-3)
    norms, losses = [], []
    for step in range(count + 1):
        loss = F.l1_loss(model(lq), gt)
        losses.append(loss.item())
        if step < count:
            optimizer.zero_grad()
            loss.backward()
            norms.append(gradient_norms(model))
            optimizer.step()
    return norms, losses


table, steps_of = {}, {}
for label, zero in START.items():
    norms, losses = steps_of[label] = first_steps(zero)
    table[label] = {
        f"gradient of {kind[-1]}, step {step}": f"{norms[step][kind]:.1e}"
        if norms[step][kind]
        else "0"
        for step in (0, 1)
        for kind in ("lora_A", "lora_B")
    } | {"loss, step 0": f"{losses[0]:.5f}", "after 2 steps": f"{losses[-1]:.5f}"}
pd.DataFrame(table).T.rename_axis("zero at the start")

# %%
both, b_zero, none = steps_of["both"], steps_of["B (LoRA)"], steps_of["none"]
assert b_zero[0][0]["lora_A"] == 0 < b_zero[0][1]["lora_A"]  # A wakes up after one step.
assert all(norm == 0 for norms in both[0] for norm in norms.values())
assert len(set(both[1])) == 1  # The loss never changes.
assert none[1][0] != b_zero[1][0] == both[1][0]  # Only "none" starts somewhere else.

# %% [markdown]
# The same holds for a bottleneck with $W_\text{up} = 0$. SSF and VPT have one factor only, so they
# learn from the first step on. All but one kind: a shift behind the **key** projection adds the
# same number to all logits of a query, and the softmax does not see it. Its gradient is rounding:

# %%
model = insert(backbone(), *OURS["ssf"][:2])
F.l1_loss(model(lq), gt).backward()
shifts = {
    kind: max(p.grad.abs().max().item() for n, p in trained(model).items() if f".{kind}.shift" in n)
    for kind in ("q", "k", "v", "out_proj", "linear1", "linear2")
}
assert shifts["k"] < 1e-3 * min(shift for kind, shift in shifts.items() if kind != "k")
pd.Series({kind: f"{shift:.0e}" for kind, shift in shifts.items()}).to_frame(
    "largest gradient of a shift"
).T

# %% [markdown]
# ## 5. Folding it away
#
# After training, is the adapter a burden at inference? LoRA's output is linear in $x$, and so is a
# scaled and shifted linear layer:
#
# $$W x + \tfrac\alpha r B A x = \big(W + \tfrac\alpha r B A\big)\, x, \qquad
# \gamma \odot (W x + b) + \beta = (\gamma W)\, x + (\gamma \odot b + \beta).$$
#
# So both can be *folded* into the weights, and the network is as fast as before. (A layer norm ends
# with such a scale and shift, so SSF folds there, too. Where a layer has no bias, $\beta$ becomes
# one.) A bottleneck has a GELU inside, and prompts change the layer's input, not its weights.

# %%
folded, refused = {}, {}
for method, (ours, theirs) in pairs.items():
    try:
        folded[method] = ir_peft.merge_and_unload(theirs)
    except TypeError as error:
        refused[method] = str(error)
        continue
    assert not ir_peft.adapter_names(theirs)
    with torch.no_grad():
        y, y_folded = ours(lq), folded[method](lq)
    apart = (y - y_folded).abs().max().item()
    assert apart < 1e-4 * (y - y_frozen).abs().max()
    more = ir_peft.count_parameters(theirs)[1] - ir_peft.count_parameters(frozen)[1]
    print(
        f"{LABELS[method]}: folded, the image differs by {apart:.0e}; {more:,} parameters are left"
    )
assert list(folded) == ["lora", "ssf"] and list(refused) == ["houlsby", "vpt"]
for method, message in refused.items():
    print(f"{LABELS[method]}: refused. {message}")

# %% [markdown]
# What it is worth: the processor time of a forward pass as a multiple of the frozen network's. The
# networks take turns in random order, and waiting for other work on the machine does not count.

# %%
racers = {"frozen": frozen}
for method, (ours, _) in pairs.items():
    racers[LABELS[method]] = ours
    if method in folded:
        racers[f"{LABELS[method]}, folded"] = folded[method]
rounds, turns = [], random.Random(seed)
with torch.no_grad():
    for _ in range(3 if SMOKE else 15):
        seconds = {}
        for name in turns.sample(list(racers), len(racers)):
            began = time.process_time()
            racers[name](lq)
            seconds[name] = time.process_time() - began
        rounds.append(seconds)
rounds = pd.DataFrame(rounds).iloc[1:]  # The first round warms up.
ratios = rounds.div(rounds["frozen"], axis=0).median()
print(f"frozen: {1000 * rounds['frozen'].median():.0f} ms for a patch of 48 x 48 pixels")
ratios[list(racers)].round(2).to_frame("processor time, over the frozen network's")

# %% [markdown]
# The folded networks compute what the frozen one computes (SSF with a few biases more). So what
# they differ from 1 by is the noise of the clock, and the other rows must be read with it. VPT is
# slow in earnest: its prompts go through every layer (exercise 6). The price of folding is that
# there is again one network for each task, which cannot be swapped in milliseconds.

# %% [markdown]
# ## 6. Where the memory goes
#
# Training holds four things in memory: the **weights**, a **gradient** for each trained weight,
# the **optimiser's state** (AdamW: two averages for each trained weight), and the **activations**
# that the forward pass saves because the backward pass needs them. The first three are arithmetic.
# The fourth is measured: `saved_tensors_hooks` shows every tensor that autograd saves.


# %%
def saved_bytes(model, x):
    """Bytes that a forward pass saves for the backward pass, parameters not counted."""
    kept = {}
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # The tensor itself would hold its graph, and that the tensor.

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(x)
    return sum(kept.values()) if out.requires_grad else 0


def empty(name):
    """A network with one branch and zeros for weights: for counting bytes, values do not matter."""
    with torch.device("meta"):
        model = ir_peft.create_backbone(name, scales=(4,))
    model.to_empty(device="cpu").requires_grad_(False)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def tail_only(model):
    model.tail.requires_grad_(True)
    return model


TRAINED = {
    "everything": lambda model: model.requires_grad_(True),
    **{LABELS[m]: lambda model, m=m: insert(model, *OURS[m][:2]) for m in OURS},
    "tail only": tail_only,
}


def bill(name, prepare, count):
    """Bytes of the four kinds, for a batch of `count` patches."""
    model = prepare(empty(name))
    trainable, total = ir_peft.count_parameters(model)
    one = saved_bytes(model, torch.zeros(1, 3, 48, 48))
    return {
        "weights": 4 * total,
        "gradients": 4 * trainable,
        "optimiser": 8 * trainable,
        "activations": count * one,  # Each patch saves the same.
    }


BATCHES = {"ipt_mini": 2} if SMOKE else {"ipt_mini": 16, "ipt": 16}
bills = {
    name: pd.DataFrame({row: bill(name, prepare, n) for row, prepare in TRAINED.items()}).T
    for name, n in BATCHES.items()
}

# %% [markdown]
# Before we look: is the arithmetic true? A real step of AdamW leaves real gradients and averages,
# and two patches save twice as much as one.

# %%
for prepare in TRAINED.values():
    model = prepare(empty("ipt_mini"))
    zeros = torch.zeros(2, 3, 48, 48)
    said = bill("ipt_mini", prepare, 2)
    assert saved_bytes(model, zeros) == said["activations"]
    optimizer = torch.optim.AdamW(trained(model).values())
    model(zeros).sum().backward()
    optimizer.step()
    averages = [v for state in optimizer.state.values() for k, v in state.items() if k != "step"]
    assert sum(p.grad.nbytes for p in trained(model).values()) == said["gradients"]
    assert sum(average.nbytes for average in averages) == said["optimiser"]
print("gradients, optimiser and activations: as predicted, to the byte")

# %%
tables = {
    f"{name}, batch of {BATCHES[name]} patches [MB]": frame / 1e6 for name, frame in bills.items()
}
notes = {label: [f"{n:,.0f} MB" for n in frame.sum(axis=1)] for label, frame in tables.items()}
show(architecture_plots.share_bars(tables, notes=notes), "memory")

# %% [markdown]
# *Memory of training, both networks with the one branch that the task needs. Activations are those
# of one patch times the batch.* The activations alone:

# %%
shares = pd.DataFrame(
    {
        name: frame["activations"] / frame.loc["everything", "activations"]
        for name, frame in bills.items()
    }
)
shares.map("{:.0%}".format).rename_axis("activations, of those of full fine-tuning")

# %% [markdown]
# - **Gradients and optimiser** all but disappear. For a large network and a small batch that is
#   most of the memory.
# - **Activations stay, mostly.** The gradient has to travel through every layer behind the first
#   adapter, and softmax, norms and activation functions need what they saw. What is saved are
#   inputs of frozen linear layers: only the gradient of the frozen weight would have used them.
# - **SSF keeps more activations than full fine-tuning**: the gradient of $\gamma$ needs the output
#   of every layer, which nobody else had to keep. Few parameters are not little memory.
# - **Tail only** keeps little: no gradient ever enters the transformer.
#
# So how about adapting only the last layers? The gradient then ends at the first adapted one:

# %%
names = [name for name, _ in frozen.named_modules() if re.fullmatch(LAYER, name)]
depths = [0, 3, 6] if SMOKE else range(len(names) + 1)
kept = {}
for k in depths:
    last = "|".join(re.escape(name) for name in names[len(names) - k :])
    for method in ("lora", "houlsby"):
        pattern, make, _ = OURS[method]
        inside = pattern.removeprefix(LAYER)
        model = tail_only(insert(empty("ipt_mini"), f"({last}){inside}" if k else "-", make))
        kept.setdefault(LABELS[method], {})[k] = saved_bytes(model, torch.zeros(1, 3, 48, 48)) / 1e6
kept = pd.DataFrame(kept)
everything = bills["ipt_mini"].loc["everything", "activations"] / BATCHES["ipt_mini"] / 1e6
with plots.style():
    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    plt.close(figure)
    for method in ("lora", "houlsby"):
        column = kept[LABELS[method]]
        axes.plot(column.index, column, marker="o", color=plots.color(method), label=column.name)
    axes.axhline(everything, color=plots.color("full"), ls="--", lw=1.4, label="everything")
    axes.set(xlabel="layers adapted, counted from the end (0: the tail only)", ylim=(0, None))
    axes.set(ylabel="saved activations [MB a patch]", xticks=list(depths))
    axes.legend()
show(figure, "depth")

# %% [markdown]
# *`ipt_mini`: activations against the number of adapted layers (the tail is trained in all
# points).* Each layer that a gradient has to cross costs the same; an encoder layer (4 to 6), with
# one attention, costs less than a decoder layer. This, not the number of parameters, decides
# whether training fits.
#
# **On disk** there are neither gradients nor activations, and the saving is complete:

# %%
WORK.mkdir(parents=True, exist_ok=True)
state = {key: value.contiguous() for key, value in frozen.state_dict().items()}
save_file(state, WORK / "backbone.safetensors")
disk = {"backbone": (WORK / "backbone.safetensors").stat().st_size}
for method, (_, _, settings) in OURS.items():
    model = ir_peft.attach_adapter(backbone(), method, seed=seed, **settings)
    folder = ir_peft.save_adapter(model, WORK / method)
    disk[LABELS[method]] = (folder / "adapter_model.safetensors").stat().st_size
disk = pd.Series(disk)
pd.DataFrame(
    {
        "one file [kB]": [f"{size / 1e3:,.0f}" for size in disk],
        "100 tasks [MB]": [
            f"{(100 * size + (name != 'backbone') * disk['backbone']) / 1e6:,.0f}"
            for name, size in disk.items()
        ],
    },
    index=disk.index,
)

# %% [markdown]
# ## 7. Training all four
#
# The same patches in the same order for all, AdamW, equal budgets but for SSF. The loss of a step
# depends mostly on which patches it drew, so each loss is also divided by the *frozen* network's
# loss on the very same patches. Three runs: two seeds (other patches, other initial values), and a
# learning rate three times as large. **Bet on an order before you look.**

# %%
RUNS = [(seed, 1e-3), (seed + 1, 1e-3), (seed, 3e-3)]  # seed, learning rate
count, unseen = (2, 1) if SMOKE else (steps, 8)
runs = {f"seed {s}, learning rate {lr:g}": (s, lr) for s, lr in RUNS[: 1 if SMOKE else 3]}


def drawn(images, s, length):
    """Seeded patches of the task."""
    return patches.Patches(images, degradations.TASKS[task], lq_size=48, seed=s, length=length)


def stack(data, indices):
    """A batch (lq, gt) of some patches."""
    return tuple(torch.stack(part) for part in zip(*(data[i] for i in indices), strict=True))


def loss_on(model, pairs):
    """L1 on fixed patches, the model as it is in use."""
    with torch.no_grad():
        return F.l1_loss(model(pairs[0]), pairs[1]).item()


held_out = stack(drawn(photos.validation_photos(), 1000, unseen), range(unseen))
curves, final = {}, {}
for label, (s, lr) in runs.items():
    data = drawn(photos.train_photos(), s, 2 * count)
    base = [loss_on(frozen, stack(data, (2 * i, 2 * i + 1))) for i in range(count)]
    for method, (_, _, settings) in OURS.items():
        model = ir_peft.attach_adapter(backbone(), method, seed=s, **settings)
        result = ir_peft.train(
            model, data, steps=count, batch_size=2, lr=lr, schedule="constant", log_every=1,
            seed=s, progress=False,
        )  # fmt: skip
        assert adapters.fingerprint(model) == pretrained, "training changed the frozen weights"
        losses = pd.Series([point["loss"] for point in result.curve], index=range(1, count + 1))
        curves[label, method] = losses, losses / base
        share = loss_on(model, held_out) / loss_on(frozen, held_out)
        final.setdefault(label, {})[LABELS[method]] = share
print(f"{len(curves)} trainings of {count} steps; the frozen weights are unchanged in all of them")

# %%
with plots.style():
    lines = (len(runs) + 2) // 2
    figure, axes = plt.subplots(
        lines, 2, figsize=(11, 3.2 * lines), layout="constrained", squeeze=False
    )
    plt.close(figure)
    first, *others = axes.flat
    for method in OURS:
        look = {"color": plots.color(method), "lw": 1.8, "label": LABELS[method]}
        first.plot(curves[next(iter(runs)), method][0], **look)
        for ax, label in zip(others, runs, strict=True):
            ax.plot(curves[label, method][1].rolling(5, min_periods=1).mean(), **look)
    first.set(title=f"training loss (L1), {next(iter(runs))}")
    first.legend()
    lowest = min(ax.get_ylim()[0] for ax in others)
    for ax, label in zip(others, runs, strict=True):
        ax.axhline(1, color=plots.color("frozen"), ls="--", lw=1.4)
        ax.set(title=f"divided by the frozen network's, {label}", ylim=(lowest, None))
    for ax in axes[-1]:
        ax.set_xlabel("step")
show(figure, "training")

# %% [markdown]
# *Top left: the loss as it is. The others: divided by the frozen network's on the same patches,
# mean of five steps.*

# %%
final = pd.DataFrame(final)
orders = {label: tuple(final[label].sort_values().index) for label in final}
for label, order in orders.items():
    print(f"{label}, best first: {', '.join(order)}")
final.round(3).rename_axis("loss on patches never trained on, over the frozen network's")

# %% [markdown]
# All four learn. Which one is best? **A training this short decides nothing.** It shows who is
# *fast at the start*, and the starts differ: LoRA needs a step before $A$ moves. With the defaults,
# the two seeds agree with each other, which looks like evidence, but they share one learning rate.
# With the other one, the winner is the last on the unseen patches. A ranking takes a learning rate
# chosen for each method, a training until nothing moves, several seeds and whole photographs.
# Notebook [03](03_adaptir.ipynb) goes some of this way.

# %% [markdown]
# ## 8. Summary
#
# - A PEFT method is a small module that reads what a frozen layer reads or returns and changes what
#   it returns. Each of the four is ten lines.
# - Its parameters follow from widths and counts; predict them before you build.
# - Zero in one factor makes the start exact, zero in both makes it final.
# - What is linear in the layer's input folds into the weights; a bottleneck and prompts do not.
# - PEFT saves gradients, optimiser state and storage. Activations stay, unless the adapted layers
#   are the last ones.

# %% [markdown]
# ## 9. Exercises
#
# Fill in the cell behind each exercise; the check after it measures your answer. Outside the
# students' edition a solution stands in between.

# %%
verdicts = {}  # number of the exercise -> right or not


def check(number, answer, right):
    """Say whether an answer is right; None is no answer yet."""
    if answer is None:
        print(f"{number}: no answer yet")
        return
    verdicts[number] = bool(right(answer))
    print(f"{number}: {'right' if verdicts[number] else 'not yet'}")


def agrees(method, make, **settings):
    """Whether a wrapper gives what the package's method gives, at the package's layers."""
    pattern = frozen.adapter_defaults[method]["target_modules"]
    try:
        compare(*twins(method, pattern, make, settings))
    except (AssertionError, ValueError) as error:
        print(error or "the outputs differ")
        return False
    return True


# %% [markdown]
# **1.** *BitFit* ([2106.10199](https://arxiv.org/abs/2106.10199)) trains biases only. Write it as a
# wrapper of a layer that adds the change of the bias; call the parameter `bias`. Can it be folded?

# %%
bitfit = None  # bitfit(layer) returns the module that takes the layer's place


# %% tags=["solution"]
class BitFit(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.bias = nn.Parameter(torch.zeros(len(layer.weight)))

    def forward(self, x):
        return self.layer(x) + self.bias


bitfit = BitFit
print("It folds: the sum of two biases is a bias.")

# %%
check(1, bitfit, lambda make: agrees("bitfit", make))

# %% [markdown]
# **2.** *AdaptFormer* ([2205.13535](https://arxiv.org/abs/2205.13535)) stands *beside* the FFN: a
# bottleneck of width 30 that reads what the FFN reads, with a ReLU and a fixed factor of 0.1. Start
# from `Bottleneck`.

# %%
adaptformer = None  # adaptformer(layer) returns the module that takes the layer's place


# %% tags=["solution"]
class AdaptFormer(Bottleneck):
    def __init__(self, layer):
        super().__init__(layer, 30)

    def forward(self, x):
        return self.layer(x) + 0.1 * self.up(F.relu(self.down(x)))


adaptformer = AdaptFormer


# %%
check(2, adaptformer, lambda make: agrees("adaptformer", make, bottleneck=30))

# %% [markdown]
# **3.** On the full-size IPT: how many parameters has LoRA of rank 12 on *all* linear layers of
# attention and FFN, and what is the largest rank with which it stays within the budget of Adapter
# (section 3)?

# %%
answer_3 = None  # (parameters, rank)

# %% tags=["solution"]
d, L = 576, 12
one_rank = 3 * L * 4 * (d + d) + 2 * L * 2 * (d + 4 * d)  # of i x o: i + o
answer_3 = (12 * one_rank, measured["houlsby"] // one_rank)
print(
    f"{answer_3[0]:,}; {one_rank:,} a rank. One budget buys rank {answer_3[1]} everywhere", end=""
)
print(f" or rank {measured['houlsby'] // one_more['lora']} on q and v.")

# %%
EVERY = LAYER + r"\.(\w+_attn\.(q|k|v|out_proj)|ffn\.linear[12])"


def right_3(answer):
    """Counts of built networks, at the two ranks around the budget."""
    sizes = {
        r: measure("ipt", "lora", r=r, target_modules=EVERY) for r in (12, answer[1], answer[1] + 1)
    }
    budget = measured["houlsby"]
    return sizes[12] == answer[0] and sizes[answer[1]] <= budget < sizes[answer[1] + 1]


check(3, answer_3, right_3)

# %% [markdown]
# **4.** Why $\alpha / r$? Leave it out (a factor of 1 for every rank). With AdamW, every entry of
# $B$ moves by about the learning rate in the first step, whatever its gradient. If the image
# changes by $c\, r^e$ in this step, what is $e$? And with $\alpha / r$?

# %%
answer_4 = None  # (exponent without, exponent with alpha / r), whole numbers

# %% tags=["solution"]
answer_4 = (1, 0)
print("Each of the r rows of A gets a column of B that moves the loss down, all of one size.")
print("Their sum grows like r; alpha / r takes that back, and a learning rate fits all ranks.")


# %%
def first_change(r, alpha):
    """How much the image changes in LoRA's first step."""
    torch.manual_seed(seed)
    model = insert(backbone(), OURS["lora"][0], lambda layer: LoRA(layer, r, alpha))
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-3)
    start = model(lq)
    F.l1_loss(start, gt).backward()
    optimizer.step()
    with torch.no_grad():
        return (model(lq) - start).abs().mean().item()


def right_4(answer):
    """Slopes of log change over log rank, between ranks 4 and 32."""
    without = [first_change(r, alpha=r) for r in (4, 32)]
    divided = [first_change(r, alpha=8) for r in (4, 32)]
    slopes = [
        torch.tensor(high / low).log().item() / math.log(8) for low, high in (without, divided)
    ]
    print("measured exponents:", *(f"{slope:.2f}" for slope in slopes))
    return tuple(answer) == tuple(round(slope) for slope in slopes)


check(4, answer_4, right_4)

# %% [markdown]
# **5.** *DoRA* ([2402.09353](https://arxiv.org/abs/2402.09353)) trains the direction of each row of
# the weight by LoRA and its length by a number of its own: $W' = m\, V / \lVert V \rVert$ with
# $V = W + \frac\alpha r BA$, row by row, and $m$ the lengths of the rows of $W$ at the start. Write
# it for linear layers; call the parameters `lora_A`, `lora_B` (linear layers) and `magnitude`.

# %%
dora = None  # dora(layer, r, alpha) returns the module that takes the layer's place


# %% tags=["solution"]
class DoRA(LoRA):
    def __init__(self, layer, r, alpha):
        super().__init__(layer, r, alpha)
        self.magnitude = nn.Parameter(layer.weight.norm(dim=1))

    def forward(self, x):
        V = self.layer.weight + self.scaling * self.lora_B.weight @ self.lora_A.weight
        return F.linear(x, (self.magnitude / V.norm(dim=1))[:, None] * V, self.layer.bias)


dora = DoRA


# %%
def right_5(make):
    """The start, the number of parameters, and PyTorch's own weight norm."""
    torch.manual_seed(seed)
    model = insert(backbone(), OURS["lora"][0], lambda layer: make(layer, 10, 10))
    with torch.no_grad():
        begins = torch.allclose(model(lq), y_frozen, atol=1e-6)
    sized = sum(p.numel() for p in trained(model).values()) == small["lora"] + 18 * 108
    layer = nn.Linear(24, 16)
    one = make(layer, 4, 8)
    for parameter in (one.lora_B.weight, one.magnitude):
        parameter.data += 0.1 * torch.randn_like(parameter)
    other = nn.Linear(24, 16)
    other.weight.data = layer.weight + 2 * one.lora_B.weight @ one.lora_A.weight
    other.bias = layer.bias
    nn.utils.parametrizations.weight_norm(
        other
    ).parametrizations.weight.original0.data = one.magnitude[:, None]
    x = torch.randn(5, 24)
    equal = torch.allclose(one(x), other(x), atol=1e-5)
    print(f"the start is exact: {begins}, size: {sized}, as weight_norm: {equal}")
    return begins and sized and equal


check(5, dora, right_5)

# %% [markdown]
# **6.** Prompts have few parameters, but they go through the layers as tokens. How many
# floating-point operations (a multiplication and an addition are two) do 64 prompts in each of the
# 24 layers add to IPT, for one patch of 256 tokens? Count matrix products only: the linear layers,
# $Q K^\top$ and its product with $V$. What share of IPT's own operations is that?

# %%
answer_6 = None  # operations

# %% tags=["solution"]
d, N, n, L = 576, 256, 64, 12
square = 4 * d * ((N + n) ** 2 - N**2)  # self-attention: two products of all pairs of tokens
cross = 4 * d * n * N  # The encoder's output, which prompts ask, has no prompts.
encoder = 2 * n * (4 * d**2 + 8 * d**2) + square
decoder = 2 * n * ((4 + 2) * d**2 + 8 * d**2) + square + cross  # Of the second only q and out.
answer_6 = L * (encoder + decoder)


# %%
def operations(*method):
    """Of a forward pass of IPT for one patch."""
    with torch.device("meta"):
        model = ir_peft.create_backbone("ipt").eval()
        for name in method:
            ir_peft.attach_adapter(model, name)
    with FlopCounterMode(display=False) as counter:
        model.requires_grad_(False)(torch.zeros(1, 3, 48, 48, device="meta"))
    return counter.get_total_flops()


def right_6(answer):
    """The difference of two counts."""
    own, more = operations(), operations("vpt") - operations()
    if answer == more:
        print(f"{more / 1e9:.2f} billion operations, {more / own:.0%} of IPT's {own / 1e9:.1f}")
    return answer == more


check(6, answer_6, right_6)

# %% [markdown]
# ## The claims of this notebook, asserted

# %%
assert adapters.fingerprint(frozen) == pretrained
assert not [number for number, right in verdicts.items() if not right], "an answer is not right yet"
for name in ("task", "memory", "depth", "training"):
    for ending in ("png", "svg"):
        assert (WORK / f"{name}.{ending}").stat().st_size > 0
for frame in bills.values():
    assert (
        frame.loc[["LoRA", "Adapter", "SSF"], "optimiser"]
        < 0.05 * frame.loc["everything", "optimiser"]
    ).all()
    assert frame.loc["SSF", "activations"] > frame.loc["everything", "activations"]
    assert (
        frame.loc[["LoRA", "Adapter"], "activations"].min()
        > 0.5 * frame.loc["everything", "activations"]
    )
    assert frame.loc["tail only", "activations"] < 0.3 * frame.loc["everything", "activations"]
assert kept.apply(lambda column: column.is_monotonic_increasing).all()
assert disk.drop("backbone").max() < 0.05 * disk["backbone"]
if not SMOKE:
    assert (final < 1).all(axis=None), "section 7 says that all four learn"
    if (task, steps, seed) == ("lr4_noise30", 30, 0):
        one, two, faster = orders.values()
        assert one[0] == two[0] == faster[-1], "section 7 says that the winner becomes the last"
print("all claims hold")
