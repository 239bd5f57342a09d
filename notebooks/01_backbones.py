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
# # Backbones: five transformers that restore images
#
# An adapter changes a frozen network, so it is worth knowing what it changes. This notebook opens
# the five families of this package: **IPT** ([2012.00364](https://arxiv.org/abs/2012.00364)),
# **EDT** ([2112.10175](https://arxiv.org/abs/2112.10175)), **HAT**
# ([2205.04437](https://arxiv.org/abs/2205.04437)), **Restormer**
# ([2111.09881](https://arxiv.org/abs/2111.09881)) and **DAT**
# ([2308.03364](https://arxiv.org/abs/2308.03364)). Nothing is drawn by hand: every picture is
# measured on the network itself.
#
# After this notebook you can
#
# - say for each family which pixels (or channels) are mixed with which, and read it off a gradient,
# - name the layers that each adapter method attaches to, and find them by a regular expression,
# - derive the number of parameters of each network and say what one pixel costs,
# - tell features of pretrained weights from those of random ones,
# - load a checkpoint of the authors, and explain why a wrong or malicious file is refused.
#
# **Time** on two CPU cores: smoke under a minute, demo under 3 minutes. Memory below 2 GB, also for
# the large networks: they are built without values. **Before:**
# [00_quickstart](00_quickstart.ipynb).

# %% tags=["parameters"]
profile: str = "demo"  # smoke: plumbing in seconds; demo and full: the same, all figures
photo: str = "coffee"  # fed to the networks: astronaut, chelsea, coffee, rocket, china, flower
seed: int = 0  # of random weights

# %%
import io
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from matplotlib import pyplot as plt
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

warnings.filterwarnings("ignore", message="IProgress not found")  # Progress bars are text.
# %matplotlib inline

import ir_peft
from ir_peft import adapters, architecture_plots, plots
from ir_peft.backbones import BACKBONES, bundled_tags, hat, ipt
from ir_peft.data import photos
from ir_peft.experiments import PROFILES

ROOT = next(path for path in [Path.cwd(), *Path.cwd().parents] if (path / "experiments").is_dir())
SMOKE = PROFILES[profile].name == "smoke"
WORK = ROOT / "runs" / profile / "backbones"


def show(figure, name):
    """Write a figure to WORK and return it for display."""
    plots.save_figure(figure, WORK, name, smoke=SMOKE)
    return figure


def photograph(side):
    """The centre of the photograph: (1, 3, side, side) in [0, 1]."""
    [chosen] = [one for one in photos.test_set("photos6") if one.name == photo]
    image = photos.as_tensor(chosen.image)  # (3, H, W)
    top, left = ((length - side) // 2 for length in image.shape[1:])
    return image[None, :, top : top + side, left : left + side]


# %% [markdown]
# ## 1. One skeleton, five bodies
#
# All five networks share a skeleton. With the input $x$, a first convolution (the *head*), a
# *body* of transformer blocks and a *tail* that makes the image,
#
# $$f = \text{head}(x), \qquad \hat y = \text{tail}\big(\text{body}(f) + f\big).$$
#
# (Restormer adds $x$ itself to the output instead.) A block is, in all of them,
#
# $$x \leftarrow x + \text{attention}(\mathrm{LN}(x)), \qquad
# x \leftarrow x + \text{FFN}(\mathrm{LN}(x)).$$
#
# They differ in three answers: what is a **token**, which tokens **attend** to each other, and
# where else positions or channels are mixed.
#
# - **IPT**: a token is a square of 3 x 3 pixels; all 256 tokens of a 48-pixel patch attend to each
#   other, and a decoder asks the encoder's tokens as well.
# - **EDT**: a token is a pixel. Half of the channels attend in windows of 6 x 24, the other half in
#   24 x 6; every second block shifts them. The FFN holds a 5 x 5 depthwise convolution.
# - **HAT**: a token is a pixel. Windows of 16 x 16, shifted in every second block; at the end of a
#   group, each window asks the 24 x 24 pixels around it. Beside attention stands a convolution
#   branch that weighs channels by their means over the whole image.
# - **Restormer**: a token is a pixel, on the four scales of a U-Net. Attention runs between
#   **channels**: a C x C matrix made from the whole image. Depthwise convolutions mix neighbours.
# - **DAT**: a token is a pixel. Even blocks attend in windows of 8 x 32 and 32 x 8, odd ones
#   between channels; gates and depthwise convolutions join the two.
#
# Pretrained weights come with the package for some of them. For the others the weights here are
# random: they show what an *architecture* can do, not what a trained network does. Every figure
# says which it is.

# %%
# Small networks. `ipt_mini` and `hat_mini` by their own names would begin near the identity, a help
# in training; as small versions of `ipt` and `hat` their weights are random like the others'.
LABORATORY = {
    "IPT": ("ipt", ipt.VARIANTS["ipt_mini"]),
    "EDT": ("edt_b", {"dim": 60, "depths": (2, 2), "heads": 2}),
    "HAT": ("hat", hat.VARIANTS["hat_mini"]),
    "Restormer": ("restormer_mini", {}),
    "DAT": ("dat_light", {}),
}
TAGS = {}  # family -> the bundled weights with the largest scale
for tag in bundled_tags():
    one = ir_peft.load_backbone(tag)
    family = type(one).__name__
    if family in LABORATORY and one.scale >= TAGS.get(family, ("", 0))[1]:
        TAGS[family] = (tag, one.scale)
TAGS = {family: TAGS[family][0] for family in LABORATORY if family in TAGS}


def network(family, pretrained=True):
    """A small member of a family, frozen: with bundled weights if there are any and asked for."""
    if pretrained and family in TAGS:
        return ir_peft.load_backbone(TAGS[family]).requires_grad_(False)
    torch.manual_seed(seed)
    name, changes = LABORATORY[family]
    return ir_peft.create_backbone(name, **changes).eval().requires_grad_(False)


NETWORKS = {family: network(family) for family in LABORATORY}
pd.DataFrame(
    {
        "network": [model.name for model in NETWORKS.values()],
        "weights": [TAGS.get(family, "random") for family in NETWORKS],
        "scale": [model.scale for model in NETWORKS.values()],
        "parameters": [f"{ir_peft.count_parameters(model)[1]:,}" for model in NETWORKS.values()],
    },
    index=pd.Index(NETWORKS, name="family"),
)

# %% [markdown]
# ## 2. Who listens to whom: one layer
#
# Choose one position $p$ of a layer's output $y$ and ask how much each position $q$ of its input
# $x$ matters to it. The derivative answers: with a random direction $v$ in channel space,
#
# $$I_p(q) = \Big\lVert \frac{\partial\, (v \cdot y_p)}{\partial x_q} \Big\rVert_2 .$$
#
# Where it is exactly zero, $q$ cannot reach $p$ in this layer, whatever the image. Two hooks are
# enough: one replaces the layer's input by a leaf that records its gradient, the other catches the
# output.


# %%
def to_tokens(x, module):
    """(B, H, W, C) of either memory layout; only Restormer's modules have channels second."""
    return x if getattr(module, "channels_last", True) else x.permute(0, 2, 3, 1)


def layer_influence(model, x, layers, at=(0.46, 0.55)):
    """Influence on one output position of parts of a network, in one pass.

    `layers`: title -> (name of the module whose input is watched, of the one whose output is).
    Returns title -> (map (H, W), (i, j)).
    """
    seen, hooks = {}, []

    def watch(title, first, last):
        def enter(_, inputs):
            leaf = inputs[0].detach().requires_grad_()
            seen[title, "x"] = leaf
            return (leaf, *inputs[1:])

        def leave(_, inputs, out):
            seen[title, "y"] = out

        hooks.append(first.register_forward_pre_hook(enter))
        hooks.append(last.register_forward_hook(leave))

    ends = {t: tuple(map(model.get_submodule, names)) for t, names in layers.items()}
    for title, (first, last) in ends.items():
        watch(title, first, last)
    model(x)
    for hook in hooks:
        hook.remove()
    maps = {}
    for title, (first, last) in ends.items():
        y = to_tokens(seen[title, "y"], last)
        i, j = (int(share * length) for share, length in zip(at, y.shape[1:3], strict=True))
        v = torch.randn(y.shape[-1], generator=torch.Generator().manual_seed(seed))
        (gradient,) = torch.autograd.grad(y[0, i, j] @ v, seen[title, "x"])
        maps[title] = to_tokens(gradient, first)[0].norm(dim=-1), (i, j)
    return maps


# %%
SIDE = 48 if SMOKE else 96
x = photograph(SIDE)
edt_block, hat_group = "body.layers.0.residual_group.blocks.", "layers.0.residual_group."
LAYERS = {
    "IPT": {"IPT: attention, tokens of 3 x 3": ["body.encoder.layers.0.self_attn"] * 2},
    "EDT": {
        "EDT: crossed windows": [f"{edt_block}0.qkv", f"{edt_block}0.proj"],
        "EDT: the same, shifted": [f"{edt_block}1.qkv", f"{edt_block}1.proj"],
    },
    "HAT": {
        "HAT: window": [f"{hat_group}blocks.0.attn"] * 2,
        "HAT: shifted window": [f"{hat_group}blocks.1.attn"] * 2,
        "HAT: overlapping windows": [f"{hat_group}overlap_attn.{part}" for part in ("qkv", "proj")],
        "HAT: convolution branch": [f"{hat_group}blocks.0.conv_block"] * 2,
    },
    "Restormer": {"Restormer: channels": ["encoder_level1.0.attn"] * 2},
    "DAT": {
        "DAT: crossed windows": ["layers.0.blocks.0.attn"] * 2,
        "DAT: channels": ["layers.0.blocks.1.attn"] * 2,
    },
}
measured = {}
for family, layers in LAYERS.items():
    patch = x[..., :48, :48] if family == "IPT" else x  # one of IPT's patches
    measured |= layer_influence(NETWORKS[family], patch, layers)
reach = {title: (influence > 0).sum().item() for title, (influence, _) in measured.items()}
origin = ", ".join(f"{family} {TAGS.get(family, 'random')}" for family in LABORATORY)
figure = architecture_plots.influence_maps(
    {
        f"Weights: {origin}": {
            title: influence.numpy() for title, (influence, _) in measured.items()
        }
    },
    {title: at for title, (_, at) in measured.items()},
)
show(figure, "layers")

# %% [markdown]
# *One position (cross) of one attention layer and the input positions that influence it. Grey is
# exactly zero.* Three kinds can be told apart at a glance:
#
# - **A hard edge.** Window attention (EDT, HAT) does not see beyond its window. The shift moves the
#   edge, so two blocks in a row see further than one. HAT's overlapping windows ask from a small
#   window into a larger one.
# - **A sharp core and an even, faint rest.** Attention between *channels* weighs its C x C matrix
#   from all pixels, so each pixel of the image has a say, and each a small one: about
#   $1/(H\,W)$ of it. HAT's convolution branch and DAT's gates do the same through a mean over the
#   image.
# - **Everything at once.** IPT attends between all tokens of its patch, and to nothing outside.
#
# DAT's spatial attention is a mixture: the cross of its two windows stands on the faint floor of
# its channel gate.

# %%
m = NETWORKS["HAT"].size_multiple  # the side of HAT's windows
overlap = NETWORKS["HAT"].get_submodule(f"{hat_group}overlap_attn").reach
assert max(reach["HAT: window"], reach["HAT: shifted window"]) <= m**2
assert reach["HAT: overlapping windows"] <= overlap**2
assert reach["IPT: attention, tokens of 3 x 3"] == 256
assert reach["EDT: crossed windows"] == 2 * 6 * 24 - 6 * 6  # both windows hold the middle
for title in ("Restormer: channels", "DAT: channels"):
    assert reach[title] == measured[title][0].numel()
pd.Series(reach, name="positions that influence one").to_frame()

# %% [markdown]
# ## 3. Who listens to whom: the whole network
#
# The same question for a whole network: how much does each *input pixel* matter to one *output
# pixel* (its three colours added)? First with random weights, then with pretrained ones where the
# package has them.


# %%
def pixel_influence(model, x):
    """Influence of each input pixel on the output pixel above the input's (i, j)."""
    x, s = x.clone().requires_grad_(), model.scale
    i, j = (int(share * length) for share, length in zip((0.46, 0.55), x.shape[2:], strict=True))
    out = model(x)[0, :, s * i + s // 2, s * j + s // 2].sum()
    (gradient,) = torch.autograd.grad(out, x)
    return gradient[0].norm(dim=0), (i, j)


def radius(influence, at, share):
    """Distance [pixels] from `at` that holds this share of the influence."""
    i, j = torch.meshgrid(*map(torch.arange, influence.shape), indexing="ij")
    distance = ((i - at[0]) ** 2 + (j - at[1]) ** 2).sqrt().flatten()
    order = distance.argsort()
    sums = influence.flatten()[order].cumsum(0) / influence.sum()
    return distance[order][(sums < share).sum()].item()


seen = {"random weights": {}, "pretrained weights": {}}
marks, rows = {}, []
for family in LABORATORY:
    trained = family in TAGS
    runs = {"random weights": network(family, pretrained=False)}
    runs |= {"pretrained weights": NETWORKS[family]} if trained else {}
    for weights, model in runs.items():
        influence, marks[family] = pixel_influence(model, x)
        seen[weights][family] = influence.numpy()
        rows.append(
            {
                "family": family,
                "weights": weights.split()[0],
                "50 % within [px]": radius(influence, marks[family], 0.5),
                "90 % within [px]": radius(influence, marks[family], 0.9),
                "exactly zero": f"{(influence == 0).float().mean().item():.0%}",
            }
        )
    if not trained:
        seen["pretrained weights"][family] = None
show(architecture_plots.influence_maps(seen, marks, decades=8), "networks")

# %%
fields = pd.DataFrame(rows).set_index(["family", "weights"])
fields.round(1)

# %% [markdown]
# *One output pixel (cross) and the input pixels it depends on.* What to see:
#
# - IPT restores an image from patches of 48 x 48 pixels, so there is a hard border, and the picture
#   shows the union of the patches that the pixel is averaged from.
# - EDT's reach grows with each pair of blocks, a window at a time.
# - HAT, Restormer and DAT have at least one mean over the whole image: no input pixel is without
#   influence. So a *tile* of an image never gives exactly what the whole image gives; it comes
#   near, because the far influence is faint. (Section 10, exercise 3.)
# - The reach of an architecture is a possibility. How much of it is used, the weights decide:
#   compare the two rows where there are two. In DAT-light training widens the circle that holds 90
#   % of the influence from 3 to 34 pixels, and the arms of its crossed windows show.

# %% [markdown]
# ## 4. Where adapters attach
#
# An adapter hangs on a module by its *name*. Each backbone knows, for each method, the names that
# the papers' settings mean on it (`model.adapter_defaults`): plain data, mostly a regular
# expression and a width.

# %%
model = NETWORKS["HAT"]
for method in ("adaptir", "lora"):
    print(f"{method:8}", model.adapter_defaults[method])


# %% [markdown]
# To know what such an expression hits, attach the adapter and look where it sits. The models here
# are built on PyTorch's *meta* device: they have shapes but no values, so this costs no memory.


# %%
def on_meta(name, **changes):
    """A backbone without values, in eval mode, frozen."""
    with torch.device("meta"):
        return ir_peft.create_backbone(name, **changes).eval().requires_grad_(False)


def sites(model, method, **changes):
    """Names of the layers that a method adapts, and how many parameters it trains."""
    with torch.device(next(model.parameters()).device):
        ir_peft.attach_adapter(model, method, **changes)
    trained = ir_peft.count_parameters(model)[0]
    found = [name for name, module in model.named_modules() if isinstance(module, ir_peft.Adapter)]
    ir_peft.unload(model)
    return [n.replace(".base_layer", "").removesuffix(".adapters.default") for n in found], trained


SMALL = ("ipt_mini", "edt_b", "hat_mini", "restormer_mini", "dat_light")
HOLLOW = {name: on_meta(name) for name in SMALL}
SITES, counts = {}, {}  # network -> method -> names of layers
for name, model in HOLLOW.items():
    total = ir_peft.count_parameters(model)[1]
    for method in model.adapter_defaults:
        names, trained = sites(model, method)
        SITES.setdefault(name, {})[method] = names
        counts.setdefault(method, {})[name] = f"{len(names)} ({trained / total:.1%})"
pd.DataFrame(counts).T.fillna("-").rename_axis("layers adapted (share trained)")

# %% [markdown]
# Now one block of each family, its modules in the order in which they are called, and the methods
# that attach to them. The boxes are read from the running model (forward hooks), the dots from the
# adapters that were attached.


# %%
def call_order(model, x):
    """The modules in the order of their first call: name -> module."""
    names, called = {module: name for name, module in model.named_modules()}, {}

    def note(module, _):
        called.setdefault(names[module], module)

    hooks = [module.register_forward_pre_hook(note) for module in names]
    model(x)
    for hook in hooks:
        hook.remove()
    return called


def block_table(model, where, prefix):
    """The modules of one block that have parameters or adapters, and which methods adapt them."""
    x = torch.zeros(1, 3, 48, 48, device="meta")
    hit = {name for names in where.values() for name in names}
    lines = {}
    for name, module in call_order(model, x).items():
        inner = name.removeprefix(f"{prefix}.")
        size = sum(parameter.numel() for parameter in module.parameters())
        if inner != name and (size or name in hit):
            adapted = {method: name in names for method, names in where.items()}
            lines[inner] = {"kind": f"{type(module).__name__}  {size:,}", **adapted}
    frame = pd.DataFrame.from_dict(lines, orient="index")
    kept = [m for m in where if frame[m].any()]
    # Parts of an adapted or named box are of interest, the inside of the others is not.
    wanted = [
        name
        for name in frame.index
        if name.count(".") < 2 or any(frame.loc[name, method] for method in kept)
    ]
    return frame.loc[wanted, ["kind", *kept]]


BLOCKS = {
    "IPT, a decoder layer": ("ipt_mini", "body.decoder.layers.0"),
    "EDT, a block": ("edt_b", "body.layers.0.residual_group.blocks.0"),
    "HAT, a block": ("hat_mini", "layers.0.residual_group.blocks.0"),
    "Restormer, a block": ("restormer_mini", "latent.0"),
    "DAT, a spatial block": ("dat_light", "layers.0.blocks.0"),
    "DAT, a channel block": ("dat_light", "layers.0.blocks.1"),
}
tables = {}
for title, (name, prefix) in BLOCKS.items():
    tables[title] = block_table(HOLLOW[name], SITES[name], prefix)
show(architecture_plots.site_maps(tables), "sites")

# %% [markdown]
# *One block a panel. Grey text: class and parameters. A dot: the method adapts this module.* The
# pattern is the same in all families: some methods adapt the whole FFN (AdaptIR, AdaptFormer), some
# attention and FFN (AdaIR, Houlsby), some single linear layers (LoRA, FacT) and some also the norms
# (SSF, BitFit). (ASteISR's stereo modules sit between blocks and do not show here.) The name of the
# site differs from family to family (`ffn` or `mlp`), the idea does not: that is why a backbone,
# and not an adapter, holds the list.

# %% [markdown]
# ## 5. Where the parameters are
#
# Four building blocks suffice. A linear layer from $i$ to $o$ channels has $io + o$ parameters, a
# $k \times k$ convolution $k^2 io + o$, a depthwise one $k^2 c + c$, a layer norm $2c$.


# %%
def linear(i, o):
    """Weights and biases of a linear layer or a 1 x 1 convolution."""
    return i * o + o


def conv(i, o, k=3):
    """Weights and biases of a k x k convolution."""
    return k * k * i * o + o


def depthwise(c, k=3):
    """Weights and biases of a k x k convolution of each channel alone."""
    return k * k * c + c


def upsampler(s, c):
    """By 2 as often as needed or by 3 once: a convolution to s^2 c channels, then a shuffle."""
    return conv(c, 9 * c) if s == 3 else int(math.log2(s)) * conv(c, 4 * c)


# %% [markdown]
# **HAT.** A block has two norms ($4C$), attention ($W_{qkv}$: $C \to 3C$, $W_o$: $C \to C$, and a
# bias table of $(2w-1)^2$ offsets for each head), the convolution branch ($C \to C/\beta \to C$
# with a gate $C \to C/\gamma \to C$) and the FFN ($C \to 2C \to C$). A group adds one overlapping
# attention block, whose table has $(w + m - 1)^2$ offsets for the larger windows of $m = 1.5 w$,
# and a convolution.


# %%
def hat_parameters(C, depths, heads, w, beta, gamma, features, s):
    """HAT, formula by formula."""
    m = w + w // 2
    attention = linear(C, 3 * C) + linear(C, C)
    ffn = linear(C, 2 * C) + linear(2 * C, C)
    branch = conv(C, C // beta) + conv(C // beta, C)
    branch += linear(C, C // gamma) + linear(C // gamma, C)
    block = 4 * C + attention + (2 * w - 1) ** 2 * heads + branch + ffn
    overlap = 4 * C + attention + (w + m - 1) ** 2 * heads + ffn
    groups = sum(depth * block + overlap + conv(C, C) for depth in depths)
    ends = conv(3, C) + 4 * C + conv(C, C)
    ends += conv(C, features) + upsampler(s, features) + conv(features, 3)
    return groups + ends


# %% [markdown]
# **IPT.** A token of 3 x 3 pixels with 64 channels is $d = 576$ wide. Attention has four matrices
# *without* biases, $4d^2$; the FFN goes $d \to 4d \to d$; a norm is $2d$. The encoder has 12
# layers, the decoder 12 with a second attention and a third norm. In front of the encoder stand a
# linear layer and 256 trained positions, behind the decoder one more FFN; each of six tasks has its
# own query (256 tokens), head and tail. Two fixed colour shifts count 12 each.


# %%
def ipt_parameters(c, depth, scales=(2, 3, 4, 1, 1, 1), p=3, patch=48):
    """IPT, formula by formula."""
    d, tokens = c * p * p, (patch // p) ** 2
    ffn = linear(d, 4 * d) + linear(4 * d, d)
    encoder = depth * (4 * d * d + ffn + 2 * 2 * d)
    decoder = depth * (2 * 4 * d * d + ffn + 3 * 2 * d)
    around = linear(d, d) + tokens * d + len(scales) * tokens * d + ffn
    heads = len(scales) * (conv(3, c) + 4 * conv(c, c, k=5))
    tails = sum(upsampler(s, c) + conv(c, 3) for s in scales)
    return encoder + decoder + around + heads + tails + 2 * (3 * 3 + 3)


# %% [markdown]
# **EDT.** Attention as in HAT but without a table; instead a 3 x 3 depthwise convolution of $v$ for
# each half of the channels. The FFN has a 5 x 5 depthwise convolution in its middle. The head
# doubles its channels from 32 to 128 in two residual blocks (two convolutions beside a 1 x 1), and
# the tail goes back with two more that also see the head's features.


# %%
def edt_parameters(C, depths, s, c=32):
    """EDT with one scale, formula by formula."""

    def residual(i, middle, o):
        return conv(i, middle) + conv(middle, o) + linear(i, o)

    def skip(i, o):
        return conv(i, o) + residual(2 * o, o, o)

    attention = linear(C, 3 * C) + linear(C, C) + 2 * depthwise(C // 2)
    ffn = linear(C, 2 * C) + depthwise(2 * C, k=5) + linear(2 * C, C)
    body = sum(depths) * (4 * C + attention + ffn) + 4 * C + conv(C, C)
    head = conv(3, c) + residual(c, c, 2 * c) + residual(2 * c, 2 * c, 4 * c) + conv(4 * c, C)
    tail = skip(C, 4 * c) + skip(4 * c, 2 * c) + upsampler(s, 2 * c) + conv(2 * c, 3)
    return body + head + tail


# %% [markdown]
# **Restormer.** No convolution has a bias. Attention: $3C^2$ and a depthwise $9 \cdot 3C$ for q, k,
# v, $C^2$ at the end, one temperature for each head. The gated FFN is $h = \lfloor 2.66\,C \rfloor$
# wide: $2hC$ in, $9 \cdot 2h$ depthwise, $hC$ out. Norms have $2C$ with a bias, $C$ without (the
# denoising release). The U-Net has $C = 48, 96, 192, 384$ going down; going up, level 1 stays at 96
# channels.


# %%
def restormer_parameters(dim, depths, refinement, norm=2, heads=(1, 2, 4, 8)):
    """Restormer, formula by formula; norm = 2 with biases, 1 without."""

    def block(C, heads):
        h = int(2.66 * C)
        attention = 3 * C * C + 9 * 3 * C + C * C + heads
        return attention + 2 * h * C + 9 * 2 * h + h * C + 2 * norm * C

    widths = [dim * 2**level for level in range(4)]
    up_widths = [widths[1], widths[1], widths[2]]
    encoder = sum(n * block(C, g) for n, C, g in zip(depths, widths, heads, strict=True))
    decoder = sum(n * block(C, g) for n, C, g in zip(depths[:3], up_widths, heads[:3], strict=True))
    refine = refinement * block(2 * dim, heads[0])
    down = sum(9 * C * C // 2 for C in widths[:3])
    up = sum(9 * C * 2 * C for C in widths[1:])
    reduce = 2 * widths[2] * widths[2] + 2 * widths[1] * widths[1]
    ends = 9 * 3 * dim + 9 * 2 * dim * 3
    return encoder + decoder + refine + down + up + reduce + ends


# %% [markdown]
# **DAT.** Each attention is joined by a depthwise convolution with BatchNorm and by two small gates
# ($C \to C/8 \to C$ and $C \to C/16 \to 1$, each with a BatchNorm in between). A spatial block also
# has two MLPs that turn offsets into position biases, a channel block one temperature for each
# head. The FFN goes $C \to eC$, gates one half with the other (norm and depthwise convolution) and
# goes back from $eC/2$.


# %%
def dat_parameters(C, depths, heads, e, light, s):
    """DAT, formula by formula."""

    def gate(hidden, out):
        return linear(C, hidden) + 2 * hidden + linear(hidden, out)

    def position(width, out):
        return (
            linear(2, width)
            + 2 * (2 * width + linear(width, width))
            + 2 * width
            + out * (width + 1)
        )

    three = conv(C, C // 4) + linear(C // 4, C // 4) + conv(C // 4, C)
    group = three if light else conv(C, C)
    shared = linear(C, 3 * C) + linear(C, C) + depthwise(C) + 2 * C + gate(C // 8, C)
    shared += gate(C // 16, 1)
    half = int(e * C) // 2
    ffn = linear(C, 2 * half) + 2 * half + depthwise(half) + linear(half, C)
    spatial = shared + 2 * position(C // 2 // 16, heads // 2)
    channel = shared + heads
    blocks = sum(
        4 * C + ffn + (channel if index % 2 else spatial)
        for depth in depths
        for index in range(depth)
    )
    ends = conv(3, C) + 4 * C + group
    ends += conv(C, 3 * s * s) if light else conv(C, 64) + upsampler(s, 64) + conv(64, 3)
    return blocks + len(depths) * group + ends


# %% [markdown]
# Now the reckoning: each formula against a model that was built, and against the totals of the
# papers and releases.

# %%
SIX = (6,) * 6
FORMULAS = {  # what to build, the formula's result, the total of the release (None: our own size)
    "ipt": ({}, ipt_parameters(64, 12), 118_892_394),
    "edt_b": ({}, edt_parameters(180, SIX, 4), 11_627_067),
    "hat_s": ({}, hat_parameters(144, SIX, 6, 16, 24, 24, 64, 4), 9_621_183),
    "hat": ({}, hat_parameters(180, SIX, 6, 16, 3, 30, 64, 4), 20_772_507),
    "hat_l": ({}, hat_parameters(180, SIX + SIX, 6, 16, 3, 30, 64, 4), 40_846_575),
    "restormer": ({}, restormer_parameters(48, (4, 6, 6, 8), 4), 26_126_644),
    "restormer, BiasFree": (
        {"norm": "BiasFree"},
        restormer_parameters(48, (4, 6, 6, 8), 4, norm=1),
        26_111_668,
    ),
    "dat": ({}, dat_parameters(180, SIX, 6, 4, False, 4), None),
    "dat_s": ({}, dat_parameters(180, SIX, 6, 2, False, 4), None),
    "dat_light": ({}, dat_parameters(60, (18,), 6, 2, True, 4), 572_766),
    "ipt_mini": ({}, ipt_parameters(12, 3), None),
    "hat_mini": ({}, hat_parameters(48, (2,) * 4, 3, 8, 3, 12, 32, 4), None),
    "restormer_mini": ({}, restormer_parameters(16, (1, 2, 2, 2), 1), None),
}
assert {name.split(",")[0] for name in FORMULAS} == set(BACKBONES), "a backbone has no formula"
PAPER_SIZE, reckoning = {}, []
for title, (changes, formula, release) in FORMULAS.items():
    name = title.split(",")[0]
    PAPER_SIZE[title] = on_meta(name, **changes)
    built = ir_peft.count_parameters(PAPER_SIZE[title])[1]
    assert formula == built, f"{title}: the formula says {formula:,}, the model has {built:,}"
    assert release in (None, built), f"{title}: {built:,}, released: {release:,}"
    reckoning.append({"formula": f"{formula:,}", "built": f"{built:,}", "released": release})
table = pd.DataFrame(reckoning, index=pd.Index(FORMULAS, name="network"))
table["released"] = [f"{n:,.0f}" if n == n else "-" for n in table["released"].astype(float)]
table

# %% [markdown]
# Where do they sit? Each parameter is put into one part by its name; a parameter that fits none
# would stop the notebook.

# %%
PARTS = {  # the first that is found in a name takes it
    "position": r"position|query_embed|\.pos\.|bias_table",
    "norm": r"norm|before_RG",
    "attention": r"attn|\.qkv|blocks\.\d+\.proj",
    "FFN": r"ffn|mlp",
    "convolution in the body": r"conv_block|conv_after|layers\.\d+\.conv\.|down\d|up\d|reduce",
    "head and tail": r"head|tail|conv_(first|before|last)|patch_embed|upsample|output|mean|linear_",
}


def parts_of(model):
    """Parameters of a model by part."""
    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
        sizes[part] += parameter.numel()
    assert sum(sizes.values()) == ir_peft.count_parameters(model)[1]
    return sizes


SHOWN = ("ipt", "edt_b", "hat", "restormer", "dat", "dat_light")
sizes = pd.DataFrame({name: parts_of(PAPER_SIZE[name]) for name in SHOWN}).T
shares = 100 * sizes.div(sizes.sum(axis=1), axis=0)
label = "share of the parameters [%]"
notes = {label: [f"{n / 1e6:.2f} M" for n in sizes.sum(axis=1)]}
show(architecture_plots.share_bars({label: shares}, notes=notes), "parameters")

# %% [markdown]
# *Where the parameters of each network sit.* Attention and FFN hold over four fifths of IPT, EDT,
# Restormer and DAT; HAT spends nearly half on convolutions. Adapters sit in attention and FFN. Head
# and tail are small, yet notebook [03](03_adaptir.ipynb) shows that a frozen tail can decide what
# an adapter achieves.

# %% [markdown]
# ## 6. What a pixel costs
#
# Parameters are storage, not time. `torch.utils.flop_counter` counts the floating-point operations
# (an addition or a multiplication is one) of matrix products and convolutions while a model runs;
# on the meta device it runs without computing. Inputs have the size of the papers' training
# patches.

# %%
PATCHES = {"ipt": 48, "edt_b": 48, "hat": 64, "restormer": 128, "dat": 64, "dat_light": 64}
if SMOKE:
    PATCHES = {"ipt": 48, "dat_light": 64}
OPERATIONS = {
    "convolutions": ("convolution",),
    "linear layers": ("addmm", "mm"),
    "products of attention": ("bmm", "baddbmm"),
}


def flops(model, side):
    """Floating-point operations for each input pixel, by kind."""
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, side, side, device="meta"))
    counted = {str(op).split(".")[1]: n for op, n in counter.get_flop_counts()["Global"].items()}
    kinds = {kind: sum(counted.pop(op, 0) for op in ops) for kind, ops in OPERATIONS.items()}
    assert not counted, f"not assigned to a kind: {counted}"
    return {kind: count / side**2 for kind, count in kinds.items()}


operations = pd.DataFrame({name: flops(PAPER_SIZE[name], side) for name, side in PATCHES.items()}).T
cost = operations.sum(axis=1)
totals = {name: ir_peft.count_parameters(PAPER_SIZE[name])[1] for name in PATCHES}
label = "million operations for each input pixel"
notes = {label: [f"{cost[name] / totals[name]:.2f} a weight" for name in PATCHES]}
show(architecture_plots.share_bars({label: operations / 1e6}, notes=notes), "operations")

# %% [markdown]
# *Operations for each input pixel, and how many that is for each weight.* Where a token is a pixel,
# every weight of the body is used at every pixel, with one multiplication and one addition: about 2
# operations for each weight and pixel (EDT, HAT, DAT), and more where attention itself weighs in.
# IPT uses its weights once for nine pixels. Restormer's weights sit mostly at the coarsest scale,
# where one position stands for 64 pixels. So the largest network is not the slowest one.
#
# **Check by hand.** Attention between $N$ tokens of width $d$ multiplies two matrices, $QK^\top$
# and $AV$, with $2Nd$ operations each for every token. IPT has 36 such pairs of products (12
# encoder layers, 12 decoder layers with two) between $N = 256$ tokens of width 576, and a token for
# 9 pixels:

# %%
by_hand = 36 * 2 * (2 * 256 * 576) / 9
assert math.isclose(by_hand, operations.loc["ipt", "products of attention"])
print(f"IPT, products of attention: {by_hand / 1e6:.3f} million operations a pixel, as counted")
if "restormer" in operations.index:
    macs = operations.loc["restormer"] * 256**2 / 2 / 1e9
    rest = macs.drop("products of attention").sum()
    print(f"Restormer, 256 x 256 pixels: {macs.sum():.1f} G multiply-adds, {rest:.1f} G without")
    print("the products of attention")

# %% [markdown]
# (Other papers give Restormer 140 G multiply-adds for 256 x 256 pixels, NAFNet's table for one
# ([2204.04676](https://arxiv.org/abs/2204.04676)). That is the count without the products of
# attention: a counter that looks at layers only does not see them.)
#
# **Memory in training.** Backpropagation needs the inputs of many operations again, so the forward
# pass keeps them. How much it keeps can be measured: `saved_tensors_hooks` shows every tensor that
# autograd stores. A frozen linear layer need not keep its input (only the gradient of its weight
# would use it), but softmax, norms and activation functions still must, as soon as anything
# *before or beside* them is trained.


# %%
def saved_bytes(model, x):
    """Bytes that a forward pass keeps for the backward pass, parameters not counted."""
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


patch = photograph(48)  # the side of IPT's patches
memory = {}
for family in LABORATORY:
    model, used = network(family), {}
    used["all weights"] = saved_bytes(model.requires_grad_(True), patch)
    model.requires_grad_(False)
    for method in ("adaptir", "lora", "bitfit"):
        adapters.train_mode(ir_peft.attach_adapter(model, method))
        used[method] = saved_bytes(model, patch)
        ir_peft.unload(model)
    convs = [m for m in call_order(model, patch).values() if isinstance(m, nn.Conv2d)]
    [*_, last] = (m for m in convs if m.in_channels > 3)  # IPT's colour shift is none.
    last.requires_grad_(True)
    used["last convolution"] = saved_bytes(model, patch)
    model.requires_grad_(False)
    assert saved_bytes(model, patch) == 0
    memory[family] = {row: n / patch[0, 0].numel() / 1e3 for row, n in used.items()}
memory = pd.DataFrame(memory).rename_axis("trained, kB kept for each input pixel")
memory.round(1)

# %% [markdown]
# Something trained in *every* block keeps half to four fifths of what full training keeps: the
# gradient has to travel through every layer behind the first trained one, and an adapter keeps
# inputs of its own. Training the last convolution alone keeps little: the gradient ends there. (On
# top come gradients and the optimiser's two averages, three numbers for each *trained* weight:
# there an adapter does save nearly everything. On a CPU narrow heads are padded for speed, so a GPU
# keeps somewhat less.)

# %% [markdown]
# ## 7. What pretrained features look like
#
# A feature map has 16 to several hundred channels, a picture three. *Principal component analysis*
# finds the three directions in channel space along which the features of this image vary most; they
# become red, green and blue. Colours of different pictures cannot be compared, structures can.


# %%
def features(model, x):
    """The output of each block for one image: name -> (H, W, C)."""
    found, hooks, n = {}, [], 1
    for site in sites(model, "adaptir")[0]:  # the FFN of each block
        ffn, block = model.get_submodule(site), site.rpartition(".")[0]

        def catch(_, inputs, out, block=block, ffn=ffn):
            found[block] = to_tokens(out, ffn)

        hooks.append(model.get_submodule(block).register_forward_hook(catch))
    if hasattr(model, "patch_size"):  # IPT sees patches; side by side they are the image again.
        n = x.shape[-1] // model.patch_size
        x = rearrange(x, "1 c (i h) (j w) -> (i j) c h w", i=n, j=n)
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return {
        block: rearrange(feature, "(i j) h w c -> (i h) (j w) c", i=n, j=n)
        for block, feature in found.items()
    }


def components(feature):
    """(H, W, C) -> variances of the principal components (C,), and the first three as an image."""
    flat = feature.flatten(0, 1).double()
    flat = flat - flat.mean(dim=0)
    variances, directions = torch.linalg.eigh(flat.T @ flat / len(flat))
    image = flat @ directions[:, [-1, -2, -3]]
    low, high = image.quantile(0.02, dim=0), image.quantile(0.98, dim=0)
    image = ((image - low) / (high - low)).clamp(0, 1)
    return variances.flip(0).clamp(min=0), image.unflatten(0, feature.shape[:2]).float().numpy()


side = 48 if SMOKE else 192
x = photograph(side)
spectra, pictures = {}, {}
for family in LABORATORY:
    runs = {"random": network(family, pretrained=False)}
    runs |= {TAGS[family]: NETWORKS[family]} if family in TAGS else {}
    for weights, model in runs.items():
        found = {name: components(feature) for name, feature in features(model, x).items()}
        spectra[family, weights] = {name: variances for name, (variances, _) in found.items()}
        names, last = list(found), len(found) - 1
        chosen = dict.fromkeys(names[round(k * last / 4)] for k in range(5))
        row = {"input": x[0].permute(1, 2, 0).numpy()}
        row |= {name.replace(".residual_group", ""): found[name][1] for name in chosen}
        pictures[f"{family}\n{weights}"] = row
show(architecture_plots.images(pictures), "features")

# %% [markdown]
# *Features of one photograph after five blocks of each network, first to last.* **Pretrained**
# features are organised: edges, texture and smooth areas take different colours. **Random** ones
# are filtered copies of the input: a random network mixes, but it has nothing to say. In IPT the
# borders of the patches show, because no patch knows its neighbours.
#
# One number for this: the *effective rank*. If the principal components have the shares $p_1, p_2,
# \dots$ of the variance, it is $\exp(-\sum_k p_k \log p_k)$: 1 if one direction says it all, $C$ if
# all say the same amount (Roy and Vetterli, 2007).


# %%
def effective_rank(variances):
    """exp(entropy) of the shares of the variance."""
    shares = variances / variances.sum()
    return torch.exp(torch.special.entr(shares).sum()).item()


ranks = {
    key: [effective_rank(variances) for variances in spectrum.values()]
    for key, spectrum in spectra.items()
}
with plots.style():
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    plt.close(figure)
    for k, family in enumerate(LABORATORY):
        for weights in ("random", TAGS.get(family)):
            if (family, weights) not in ranks:
                continue
            values, [*_, last] = ranks[family, weights], spectra[family, weights].values()
            look = {"color": f"C{k}", "ls": ":" if weights == "random" else "-", "lw": 1.8}
            label = f"{family}, {weights}"
            depth = np.linspace(0, 1, len(values))
            axes[0].plot(depth, values, marker=".", label=label, **look)
            axes[1].plot(range(1, len(last) + 1), last / last.sum(), **look)
    axes[0].set(xlabel="depth (first to last block)", ylabel="effective rank", ylim=(0, None))
    axes[1].set(xlabel="principal component of the last block", ylabel="share of the variance")
    axes[1].set(xscale="log", yscale="log", ylim=(1e-6, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
show(figure, "rank")

# %% [markdown]
# *Left: effective rank of the features along the network. Right: the spectrum of the last block.*
# Random windows and convolutions keep few directions: a photograph has few (neighbouring pixels
# agree, and so do its three colours) and random layers add none. Restormer's hill in the middle is
# its U-Net, which turns neighbouring positions into channels. Training on super-resolution spreads
# the variance of DAT-light over ten times as many directions, block by block:

# %%
last = {f"{family}, {weights}": values[-1] for (family, weights), values in ranks.items()}
width = {
    f"{family}, {weights}": len(list(spectrum.values())[-1])
    for (family, weights), spectrum in spectra.items()
}
pd.DataFrame({"effective rank of the last block": last, "channels": width}).round(1)

# %% [markdown]
# ## 8. Loading a checkpoint of the authors
#
# `load_backbone("file.pth")` takes the files that the authors publish. It opens their containers
# (`params_ema`, ...), removes prefixes (`module.`), recognises family, scale and widths by names
# and shapes, drops what can be computed, and then loads *strictly*: every tensor, or none. No
# published file is downloaded here, so let us make one of the same layout: a small HAT, under the
# names that the authors' code writes.

# %%
WORK.mkdir(parents=True, exist_ok=True)
torch.manual_seed(seed)
original = ir_peft.create_backbone("hat_mini", scale=2).eval()
state = dict(original.state_dict())
window = original.size_multiple
state["relative_position_index_SA"] = torch.zeros(window**2, window**2, dtype=torch.long)
state["relative_position_index_OCA"] = torch.zeros(window**2, 144, dtype=torch.long)
official = WORK / "official_layout.pth"
torch.save({"params_ema": {f"module.{key}": value for key, value in state.items()}}, official)

loaded = ir_peft.load_backbone(official)
with torch.no_grad():
    assert torch.equal(loaded(x[..., :24, :24]), original(x[..., :24, :24]))
print(f"recognised: {loaded.name} x{loaded.scale}; its output is the original's, bit for bit")

# %% [markdown]
# IPT is the one family whose keys change: the authors keep q, k and v in one matrix and the two
# layers of the FFN loose in the block. Here q, k, v are linear layers of their own and the FFN is a
# module, because adapters need them as sites. A filter translates, and its inverse gives the
# authors' names back:

# %%
ours = network("IPT").state_dict()
theirs = ipt.official_state_dict(ours)
torch.save(theirs, WORK / "ipt_layout.pth")
again = ir_peft.load_backbone(WORK / "ipt_layout.pth")
assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.items())
layer = "body.encoder.layers.0."
names = {
    "theirs": [f"{k[len(layer) :]} {tuple(v.shape)}" for k, v in theirs.items() if layer in k],
    "ours": [f"{k[len(layer) :]} {tuple(v.shape)}" for k, v in ours.items() if layer in k],
}
pd.DataFrame({side: pd.Series(keys) for side, keys in names.items()}).fillna("")

# %% [markdown]
# **What goes wrong, goes wrong loudly.** A wrong family, a missing tensor, a value that is not a
# number, a file that wants to run code: each is an error that says what was found, before a model
# is touched. The last one matters most. A `.pth` file is a *pickle*, and a pickle may name any
# Python function to be called when it is opened.


# %%
class Trap:
    """A pickle of this object asks its reader to create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return io.open, (str(self.path), "w")


sprung = WORK / "sprung"
sprung.unlink(missing_ok=True)
norm = state["norm.weight"].clone()
norm[3] = float("nan")
FILES = {
    "another family than asked for": state,
    "a tensor is missing": {k: v for k, v in state.items() if k != "norm.bias"},
    "a tensor of another shape": state | {"norm.bias": torch.zeros(7)},
    "not a number": state | {"norm.weight": norm},
    "code inside": {"params": Trap(sprung)},
}
refused = []
for title, content in FILES.items():
    torch.save(content, WORK / "refused.pth")
    name = "restormer" if title.startswith("another") else None
    try:
        ir_peft.load_backbone(WORK / "refused.pth", name=name)
    except ValueError as error:
        refused.append(title)
        print(f"{title}:\n  {str(error).replace(str(WORK), '...')}\n")
assert refused == list(FILES) and not sprung.exists()
print("the trap did not go off")

# %% [markdown]
# ## 9. Summary
#
# - One skeleton, five bodies. What differs is what a token is and who attends to whom: all tokens
#   of a patch (IPT), windows (EDT, HAT, DAT) or channels (Restormer, DAT).
# - A gradient shows it: window attention has edges, channel attention and means over the image
#   reach everywhere, faintly.
# - Adapters attach by name. The names are data of the backbone, and attaching is the way to see
#   them.
# - Every parameter of every network here can be derived from four building blocks.
# - Parameters are not cost. A weight is used once a token, and a token may be nine pixels (IPT), or
#   64 (the deepest level of Restormer).
# - Official files load strictly, or not at all.

# %% [markdown]
# ## 10. Exercises
#
# Fill in the cell behind each exercise. Outside the students' edition a solution follows it.
#
# **1.** HAT-L is HAT with 12 groups instead of 6. Predict its parameters from HAT's total,
# 20,772,507, and from calls of `hat_parameters` with at most one group. Why does HAT-S not help?

# %%
answer_1 = None  # your number

# %% tags=["solution"]
six_groups, one_group = 20_772_507, hat_parameters(180, (6,), 6, 16, 3, 30, 64, 4)
no_group = hat_parameters(180, (), 6, 16, 3, 30, 64, 4)  # the ends
answer_1 = six_groups + 6 * (one_group - no_group)
assert answer_1 == ir_peft.count_parameters(PAPER_SIZE["hat_l"])[1]
print(f"{answer_1:,}, twice HAT less one pair of ends ({no_group:,})")
print("HAT-S has as many groups as HAT: it is narrower, not shorter")

# %% [markdown]
# **2.** A new adapter shall sit on `qkv` of DAT's *channel* attention only. Write the regular
# expression (it must match the whole name) and check that it hits all of them and nothing else.

# %%
answer_2 = None  # for instance r"layers\.0\.blocks\.1\.attn\.qkv", which hits one

# %% tags=["solution"]
answer_2 = r"layers\.\d+\.blocks\.\d*[13579]\.attn\.qkv"
hit, _ = sites(PAPER_SIZE["dat_light"], "lora", target_modules=answer_2)
channel = [
    f"{name}.qkv"
    for name, module in PAPER_SIZE["dat_light"].named_modules()
    if type(module).__name__ == "ChannelAttention"
]
assert hit == channel and len(hit) == 9
print(*hit, sep="\n")

# %% [markdown]
# **3.** To restore a large image tile by tile, each tile needs a *halo*: surroundings that are
# restored with it and thrown away. How wide must it be for EDT with two blocks (`depths=(2,)`), so
# that a pixel comes out as in the whole image? Read it off the influence map: the halo is the
# largest distance, along rows or columns, of a pixel with influence. Then test it: change
# everything beyond.

# %%
edt = ir_peft.create_backbone("edt_b", dim=60, depths=(2,), heads=2).eval().requires_grad_(False)
answer_3 = None  # pixels

# %% tags=["solution"]
canvas = torch.rand(1, 3, 120, 120, generator=torch.Generator().manual_seed(seed))
influence, (i, j) = pixel_influence(edt, canvas)
rows, columns = influence.nonzero().T
answer_3 = max((rows - i).abs().max().item(), (columns - j).abs().max().item())
other = 1 - canvas
inside = (slice(None), slice(None), slice(rows.min(), rows.max() + 1))
inside += (slice(columns.min(), columns.max() + 1),)
other[inside] = canvas[inside]
s = edt.scale
pixel = (0, slice(None), s * i + s // 2, s * j + s // 2)
with torch.no_grad():
    difference = (edt(canvas)[pixel] - edt(other)[pixel]).abs().max().item()
assert difference < 1e-6 and answer_3 < 54
print(f"{answer_3} pixels for this one; beyond them everything may change: {difference:.0e}")
print("HAT, Restormer and DAT have no finite halo (section 3): their tiles only come near")

# %% [markdown]
# **4.** IPT attends to all tokens of a 48-pixel patch. What would the products of attention cost
# for each pixel if a patch had 96 pixels, and what does Restormer's attention between channels cost
# when the image doubles its side?

# %%
answer_4 = None  # two factors

# %% tags=["solution"]
large = flops(on_meta("ipt", patch_size=96), 96)["products of attention"]
small = flops(on_meta("ipt"), 48)["products of attention"]
twice = [flops(on_meta("restormer_mini"), n)["products of attention"] for n in (64, 128)]
answer_4 = (large / small, twice[1] / twice[0])
assert answer_4 == (4.0, 1.0)
print(f"IPT: {answer_4[0]:.0f} times as much, four times as many tokens answer each token;")
print(f"Restormer: {answer_4[1]:.0f} times, a C x C matrix does not grow with the image")

# %% [markdown]
# ## The claims of this notebook, asserted

# %%
for name in ("layers", "networks", "sites", "parameters", "operations", "features", "rank"):
    for ending in ("png", "svg"):
        assert (WORK / f"{name}.{ending}").stat().st_size > 0
for family in ("HAT", "Restormer", "DAT"):
    assert (seen["random weights"][family] > 0).all(), f"{family} should reach everywhere"
if not SMOKE:
    assert (seen["random weights"]["IPT"] == 0).any(), "IPT should not see beyond its patches"
    assert cost["ipt"] < cost["hat"] and totals["ipt"] > totals["hat"]
    kept = memory.loc[["adaptir", "lora"]] / memory.loc["all weights"]
    assert kept.to_numpy().min() > 0.4 and kept.to_numpy().max() < 0.9
    wide = fields["90 % within [px]"]["DAT"]
    assert wide["pretrained"] > 5 * wide["random"], "section 3 says that training widens the view"
    held = shares["attention"] + shares["FFN"]
    assert all(held.drop("hat") > 80) and 40 < shares.loc["hat", "convolution in the body"] < 50
    assert all(memory.loc["last convolution"] < 0.2 * memory.loc["all weights"])
    assert ranks["DAT", TAGS["DAT"]][-1] > 2 * ranks["DAT", "random"][-1]
print("all claims hold")
