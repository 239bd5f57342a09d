"""EDT: image pre-training for low-level vision (Li et al., IJCAI 2023, arXiv 2112.10175).

Shifted-window attention in crossed windows: one half of the channels attends in windows of (h, w),
the other in windows of (w, h). A convolutional head has skip connections to the tail. State-dict
keys are those of the authors' release, of which the super-resolution branches exist here. Adapters
find their sites by name: the group `body.layers.i`, `body.layers.i.residual_group.blocks.j.mlp`,
the Linears `qkv`, `proj`, `mlp.fc1`, `mlp.fc2` of the same block, and the end of the body
`body.norm`, `body.conv_after_body`, and `tail_sr_x4`.
"""

from __future__ import annotations

import math
from itertools import islice

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath
from torch import Tensor, nn

from .layers import (
    RGB_MEAN,
    Upsample,
    attention,
    head_padding,
    init_weights,
    mirror_pad,
    shift_features,
    to_image,
    to_tokens,
    window_partition,
    window_reverse,
)


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions, each with a leaky ReLU, beside a 1 x 1 convolution."""

    def __init__(self, channels: int, middle: int, out: int):
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, middle, 3, padding=1)
        self.conv_2 = nn.Conv2d(middle, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, H, W)."""
        y = F.leaky_relu(self.conv_1(x), 0.2)
        return F.leaky_relu(self.conv_2(y), 0.2) + self.shortcut(x)


class SkipBlock(nn.Module):
    """A convolution, then a residual block that also sees a feature map of the head."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1)
        self.block = ResBlock(2 * out, out, out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, channels, H, W) and (B, out, H, W) -> (B, out, H, W)."""
        return self.block(torch.cat((self.conv(x), skip), dim=1))


class Mlp(nn.Module):
    """Feed-forward network with a 5 x 5 depthwise convolution in its middle."""

    channels_last = True

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.in_features = self.out_features = dim
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = to_image(F.gelu(self.fc1(x)))
        return self.fc2(to_tokens(F.gelu(self.dwconv(x))))


class WindowAttention(nn.Module):
    """Attention inside h x w windows; a depthwise convolution of v in each window adds position."""

    def __init__(self, dim: int, heads: int, h: int, w: int, shift: bool):
        super().__init__()
        self.heads = heads
        self.window = (h, w)
        self.shift = (h // 2, w // 2) if shift else None
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Three of (B, H, W, C), H and W multiples of the window -> (B, H, W, C)."""
        B, H, W, C = q.shape
        (h, w), d = self.window, C // self.heads
        extra = [q.new_zeros(1, 1, 1, head_padding(d, q.device))] * 3
        if self.shift:
            dh, dw = self.shift
            q, k, v = (x.roll((-dh, -dw), dims=(1, 2)) for x in (q, k, v))
            features = shift_features(H, W, dh, dw, head_padding(d + 2, q.device), q.device)
            extra = (features * d**0.25).to(q.dtype).split(1)  # The product is divided by d ** 0.5.
        local = self.lepe(to_image(window_partition(v, h, w).flatten(0, 2)))  # (B * nW, C, h, w)
        q, k, v = (self.to_windows(x, e) for x, e in zip((q, k, v), extra, strict=True))
        out = attention(q, k, v, scale=d**-0.5)[..., :d]  # (B * nW, heads, N, d)
        out = rearrange(out, "n g (h w) d -> n h w (g d)", h=h) + to_tokens(local)
        out = window_reverse(out.unflatten(0, (B, H // h, W // w)))
        return out.roll(self.shift, dims=(1, 2)) if self.shift else out

    def to_windows(self, x: Tensor, extra: Tensor) -> Tensor:
        """(B, H, W, C), `extra` (1, H, W, e) appended to all heads -> (B * nW, heads, N, d + e)."""
        x = x.unflatten(-1, (self.heads, -1))
        extra = extra.unsqueeze(3).expand(*x.shape[:-1], -1)
        views = [window_partition(y, *self.window) for y in (x, extra)]  # (B, y, x, h, w, heads, d)
        views = [y.permute(0, 1, 2, 5, 3, 4, 6) for y in views]
        return torch.cat(views, dim=-1).flatten(4, 5).flatten(0, 2)


class Block(nn.Module):
    """x + attention(LN(x)), then x + mlp(LN(x)); in odd blocks the windows are shifted."""

    def __init__(self, dim, heads, window, expansion, drop_path, shift: bool):
        super().__init__()
        h, w = window
        self.norm1 = nn.LayerNorm(dim)
        self.attns = nn.ModuleList(
            WindowAttention(dim // 2, heads, *size, shift) for size in ((h, w), (w, h))
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * expansion))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C), H and W multiples of both sides of the window -> (B, H, W, C)."""
        halves = self.qkv(self.norm1(x)).chunk(6, dim=-1)  # q, k, v, each in two halves
        attended = [attn(*halves[i::2]) for i, attn in enumerate(self.attns)]
        x = x + self.drop_path(self.proj(torch.cat(attended, dim=-1)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Group(nn.Module):
    """x + blocks(x)."""

    channels_last = True

    def __init__(self, dim, heads, window, expansion, drop_paths):
        super().__init__()
        self.in_features = self.out_features = dim
        blocks = (
            Block(dim, heads, window, expansion, rate, shift=i % 2 == 1)
            for i, rate in enumerate(drop_paths)
        )
        self.residual_group = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        y = x
        for block in self.residual_group["blocks"]:
            y = block(y)
        return x + y


class Body(nn.Module):
    """x + conv(groups(x)). Arguments as in `EDT`."""

    def __init__(self, dim, depths, heads, window, expansion, drop_path):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(dim)})
        rates = iter([drop_path * i / max(1, sum(depths) - 1) for i in range(sum(depths))])
        self.layers = nn.ModuleList(
            Group(dim, heads, window, expansion, list(islice(rates, depth))) for depth in depths
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y = self.patch_embed["norm"](to_tokens(x))
        for layer in self.layers:
            y = layer(y)
        return x + self.conv_after_body(to_image(self.norm(y)))


class EDT(nn.Module):
    """Convolutional head, transformer body and convolutional tail over a bilinear enlargement.

    Sides are continued in their mirror to the next multiple of both sides of the window, 24, and
    the output is cropped. (The authors' inference adds 24 pixels more where a side is a multiple
    already; their training, like this model, does not.)

    Args:
        name: the architecture's name, kept with the adapters made for it.
        scale: 2, 3 or 4, of the branch in use.
        scales: of the branches that exist; None: only the one in use.
        dim: channels C of the body.
        depths: blocks in each group.
        heads: attention heads of each half of the channels.
        window: (h, w) of one half of the channels; the other half has (w, h).
        expansion: width of the feed-forward network over C.
        features: channels of the first convolution; each residual block of the head doubles them.
        head_depth: residual blocks in the head, and in the tail.
        drop_path: stochastic depth, rising linearly to this rate in the last block.
    """

    def __init__(
        self,
        *,
        name: str,
        scale: int,
        scales: tuple[int, ...] | None = None,
        dim: int = 180,
        depths: tuple[int, ...] = (6,) * 6,
        heads: int = 6,
        window: tuple[int, int] = (6, 24),
        expansion: float = 2.0,
        features: int = 32,
        head_depth: int = 2,
        drop_path: float = 0.1,
    ):
        super().__init__()
        self.name = name
        self.scales = (scale,) if scales is None else tuple(scales)
        if not self.scales or not set(self.scales) <= {2, 3, 4}:
            raise ValueError(f"{name} exists at scale 2, 3 and 4, not at {self.scales}")
        self.set_scale(scale)
        self.size_multiple = math.lcm(*window)
        self.adapter_defaults = adapter_defaults(dim)
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.body = Body(dim, depths, heads, window, expansion, drop_path)
        widths = [features * 2**i for i in range(head_depth + 1)]
        for s in self.scales:
            head: list[nn.Module] = [nn.Conv2d(3, features, 3, padding=1)]
            head += [ResBlock(widths[i], widths[i], widths[i + 1]) for i in range(head_depth)]
            head.append(nn.Conv2d(widths[-1], dim, 3, padding=1))
            self.add_module(f"head_sr_x{s}", nn.ModuleList(head))
            sizes = [dim, *widths[:0:-1]]  # Channels before, between and after the skip blocks.
            tail: list[nn.Module] = [SkipBlock(sizes[i], sizes[i + 1]) for i in range(head_depth)]
            tail += [Upsample(s, widths[1]), nn.Conv2d(widths[1], 3, 3, padding=1)]
            self.add_module(f"tail_sr_x{s}", nn.ModuleList(tail))

    def set_scale(self, scale: int) -> None:
        """Switches to the branch of this scale; ValueError where there is none."""
        if scale not in self.scales:
            raise ValueError(f"{self.name} has branches of scales {self.scales}, not of {scale}")
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B, 3, scale * h, scale * w), any h, w >= 1."""
        (h, w), m, s = x.shape[-2:], self.size_multiple, self.scale
        x = mirror_pad(x, h + -h % m, w + -w % m) - self.mean
        first, *blocks, last = self.get_submodule(f"head_sr_x{s}")
        y = first(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for block in blocks:
            y = block(y)
            skips.append(y)
        y = self.body(last(y))
        *blocks, upsample, last = self.get_submodule(f"tail_sr_x{s}")
        for block in blocks:
            y = block(y, skips.pop())
        y = last(upsample(y))
        y = y + F.interpolate(x, scale_factor=s, mode="bilinear", align_corners=False) + self.mean
        return y[..., : s * h, : s * w]


def adapter_defaults(dim: int) -> dict[str, dict]:
    """Sites and widths of each method.

    `adaptir` is the AdaptIR release's on EDT-B: 173,412 parameters. The others' sizes on EDT are
    not published; theirs are chosen to come near.
    """
    block = r"body\.layers\.\d+\.residual_group\.blocks\.\d+\."
    hidden = max(2, dim // 14)
    spatial, stereo = block + "proj", r"body\.layers\.\d*[13579]"
    return {
        "asteisr": {"target_modules": f"{spatial}|{stereo}", "stereo_modules": stereo},
        "asteisr_spatial": {"target_modules": spatial},
        "asteisr_stereo": {"target_modules": stereo},
        "adaptir": {"target_modules": block + "mlp", "hidden": hidden, "gate": max(1, hidden // 4)},
        "lora": {"target_modules": block + "(qkv|proj)", "r": 4, "alpha": 4},
        "adair": {"target_modules": block + "(proj|mlp)", "width": max(1, dim // 30)},
        "houlsby": {"target_modules": block + "(proj|mlp)", "bottleneck": max(1, dim // 30)},
        "adaptformer": {"target_modules": block + "mlp", "bottleneck": hidden},
        "ssf": {"target_modules": block + r"(qkv|proj|mlp\.fc[12]|norm[12])"},
        "fact": {"target_modules": block + "(qkv|proj)", "r": 53},
        "bitfit": {"target_modules": block + r"(qkv|proj|mlp\.fc[12]|norm[12])"},
    }


def edt_b(scale: int = 4, **overrides) -> EDT:
    """EDT-B: 11.6 million parameters at x4."""
    return EDT(name="edt_b", scale=scale, **overrides)


def checkpoint_filter(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the masks of the authors' files, which the model rebuilds."""
    return {k: v for k, v in state.items() if not k.endswith(("attn_mask_h", "attn_mask_v"))}


def detect(state: dict[str, Tensor]) -> tuple[str, dict] | None:
    """(architecture, hyper-parameters) of an EDT state dict, None for any other family.

    Heads and windows leave no trace in the parameters: heads are taken to be 15 wide, windows
    6 x 24. Of several branches the one of the largest scale is in use at first.
    """
    stem = "body.layers.0.residual_group.blocks.0."
    scales = tuple(s for s in (2, 3, 4) if f"head_sr_x{s}.0.weight" in state)
    needed = ("body.norm.weight", stem + "attns.0.lepe.weight", stem + "mlp.dwconv.weight")
    if not scales or not all(key in state for key in needed):
        return None
    dim = state["body.norm.weight"].shape[0]
    blocks = {tuple(k.split(".")[2:6:3]) for k in state if k.startswith("body.layers.")}
    groups = max(int(group) for group, _ in blocks) + 1
    head = f"head_sr_x{scales[-1]}."
    settings = {
        "scale": scales[-1],
        "scales": scales,
        "dim": dim,
        "depths": tuple(sum(int(group) == i for group, _ in blocks) for i in range(groups)),
        "heads": max(1, dim // 30),
        "expansion": state[stem + "mlp.dwconv.weight"].shape[0] / dim,
        "features": state[head + "0.weight"].shape[0],
        "head_depth": sum(k.startswith(head) and k.endswith("shortcut.weight") for k in state),
    }
    return "edt_b", settings
