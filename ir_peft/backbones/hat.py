"""HAT: Hybrid Attention Transformer for image super-resolution (Chen et al., CVPR 2023).

arXiv 2205.04437. A block adds window attention and a convolution branch with channel attention; a
group of blocks ends with attention from windows to larger, overlapping ones. State-dict keys are
those of the authors' release. Adapters find their sites by name: in
`layers.g.residual_group.blocks.b` (g a group, b a block) the modules `attn`, `conv_block`, `mlp`,
the Linears `attn.qkv`, `attn.proj`, `mlp.fc1`, `mlp.fc2`, and `spatial_site` on the sum of both
branches; in `layers.g.residual_group.overlap_attn` the Linears `qkv`, `proj` and the module `mlp`;
`layers.g.stereo_site` on the output of a group's convolution, before the group's residual sum; and
the end `norm`, `conv_after_body`, `conv_before_upsample`, `upsample`, `conv_last`.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from . import near_identity
from .hat_attention import OverlapAttention, WindowAttention
from .layers import (
    RGB_MEAN,
    Conv2d,
    Pointwise,
    Upsample,
    init_weights,
    reflect_pad,
    shortest_ratio,
    to_image,
    to_tokens,
)

VARIANTS = {
    "hat_s": {"dim": 144, "depths": (6,) * 6, "compress_ratio": 24, "squeeze_factor": 24},
    "hat": {"dim": 180, "depths": (6,) * 6, "compress_ratio": 3, "squeeze_factor": 30},
    "hat_l": {"dim": 180, "depths": (6,) * 12, "compress_ratio": 3, "squeeze_factor": 30},
    "hat_mini": {
        "dim": 48, "depths": (2,) * 4, "heads": 3, "window": 8, "compress_ratio": 3,
        "squeeze_factor": 12, "features": 32,
    },
}  # fmt: skip


class Site(nn.Identity):
    """A place for an adapter, without parameters: (B, H, W, C) -> the same tensor."""

    channels_last = True

    def __init__(self, dim: int):
        super().__init__()
        self.in_features = self.out_features = dim


class Mlp(nn.Module):
    """fc2(gelu(fc1(x)))."""

    channels_last = True

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.in_features = self.out_features = dim
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class ChannelGate(nn.Module):
    """x times a gate in (0, 1) for each channel, made of the channels' means over all pixels."""

    def __init__(self, dim: int, squeeze_factor: int):
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            Pointwise(dim, dim // squeeze_factor),
            nn.ReLU(inplace=True),
            Pointwise(dim // squeeze_factor, dim),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.attention(x)


class CAB(nn.Module):
    """Channel attention block: two convolutions and a gate."""

    channels_last = True

    def __init__(self, dim: int, compress_ratio: int, squeeze_factor: int):
        super().__init__()
        self.in_features = self.out_features = dim
        self.cab = nn.Sequential(
            Conv2d(dim, dim // compress_ratio, 3, padding=1),
            nn.GELU(),
            Conv2d(dim // compress_ratio, dim, 3, padding=1),
            ChannelGate(dim, squeeze_factor),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return to_tokens(self.cab(to_image(x)))


class Block(nn.Module):
    """HAB: x + (attn(LN(x)) + conv_scale * conv_block(LN(x))), then x + mlp(LN(x))."""

    def __init__(self, dim, heads, window, shift, cab: CAB, conv_scale, hidden, drop_path):
        super().__init__()
        self.conv_scale = conv_scale
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, shift)
        self.conv_block = cab
        self.spatial_site = Site(dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C), H and W multiples of the window -> (B, H, W, C)."""
        y = self.norm1(x)
        both = torch.add(self.drop_path(self.attn(y)), self.conv_block(y), alpha=self.conv_scale)
        x = x + self.spatial_site(both)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class OverlapBlock(OverlapAttention):
    """OCAB: x + attention(LN(x)), then x + mlp(LN(x)), as one module with its Linears."""

    channels_last = True

    def __init__(self, dim: int, heads: int, window: int, reach: int, hidden: int):
        super().__init__(dim, heads, window, reach)
        self.in_features = self.out_features = dim
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C), H and W multiples of the window -> (B, H, W, C)."""
        x = x + super().forward(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Blocks(nn.Module):
    """The blocks of a group, the odd ones with shifted windows, then the overlapping attention."""

    def __init__(self, blocks: list[Block], overlap_attn: OverlapBlock):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.overlap_attn = overlap_attn

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        for block in self.blocks:
            x = block(x)
        return self.overlap_attn(x)


class Group(nn.Module):
    """RHAG: x + conv(blocks(x))."""

    def __init__(self, dim: int, blocks: Blocks):
        super().__init__()
        self.residual_group = blocks
        self.conv = Conv2d(dim, dim, 3, padding=1)
        self.stereo_site = Site(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return x + self.stereo_site(to_tokens(self.conv(to_image(self.residual_group(x)))))


class HAT(nn.Module):
    """(B, 3, h, w) in [0, 1] -> (B, 3, scale * h, scale * w), any h, w >= 1.

    The input is continued by reflection to multiples of the window. Every block takes means over
    all pixels, so the output of a part of an image differs from that part of the whole's output.

    Args:
        name: the architecture's name, kept with the adapters made for it.
        scale: 1, 2, 3, 4 or 8.
        dim: channels C of the body.
        depths: blocks in each group.
        heads: attention heads.
        window: side of the attention windows.
        overlap_ratio: side of the overlapping windows over `window`, less one.
        compress_ratio: C over the width of the convolution branch.
        squeeze_factor: C over the width of its channel gate.
        conv_scale: factor of the convolution branch.
        expansion: width of the feed-forward network over C.
        features: channels of the upsampler.
        drop_path: stochastic depth, rising linearly to this rate in the last block.
    """

    def __init__(
        self,
        *,
        name: str,
        scale: int,
        dim: int = 180,
        depths: tuple[int, ...] = (6,) * 6,
        heads: int = 6,
        window: int = 16,
        overlap_ratio: float = 0.5,
        compress_ratio: int = 3,
        squeeze_factor: int = 30,
        conv_scale: float = 0.01,
        expansion: float = 2.0,
        features: int = 64,
        drop_path: float = 0.1,
    ):
        super().__init__()
        if scale not in (1, 2, 3, 4, 8):
            raise ValueError(f"{name} can be built at scale 1, 2, 3, 4 and 8, not at {scale}")
        if dim % heads:
            raise ValueError(f"dim={dim} must be a multiple of heads={heads}")
        reach = window + int(overlap_ratio * window)
        if (reach - window) % 2 or not window < reach <= 2 * window:
            raise ValueError(
                f"overlap_ratio={overlap_ratio} must widen windows of {window} by equal margins, "
                "by no more than their size"
            )
        self.name = name
        self.scale = scale
        self.size_multiple = window
        self.adapter_defaults = adapter_defaults(dim)
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = Conv2d(3, dim, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=nn.LayerNorm(dim)))
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        hidden = int(dim * expansion)
        self.layers = nn.ModuleList()
        for depth in depths:
            blocks = []
            for i in range(depth):
                shift = i % 2 * (window // 2)
                cab = CAB(dim, compress_ratio, squeeze_factor)
                blocks.append(
                    Block(dim, heads, window, shift, cab, conv_scale, hidden, next(rates))
                )
            overlap = OverlapBlock(dim, heads, window, reach, hidden)
            self.layers.append(Group(dim, Blocks(blocks, overlap)))
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = Conv2d(dim, dim, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(
            Conv2d(dim, features, 3, padding=1), nn.LeakyReLU(inplace=True)
        )
        self.upsample = Upsample(scale, features)
        self.conv_last = Conv2d(features, 3, 3, padding=1)
        self.apply(init_weights)

    @property
    def mask_leak(self) -> bool:
        """Whether unshifted windows are masked as shifted ones are, as in ASteISR's checkpoints."""
        return any(attn.mask_shift != attn.shift for attn in self._window_attentions())

    @mask_leak.setter
    def mask_leak(self, leak: bool) -> None:
        for attn in self._window_attentions():
            attn.mask_shift = attn.window // 2 if leak else attn.shift

    def _window_attentions(self) -> list[WindowAttention]:
        return [module for module in self.modules() if isinstance(module, WindowAttention)]

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w), multiples of the window: all groups and the last norm."""
        x = self.patch_embed(to_tokens(x))
        for layer in self.layers:
            x = layer(x)
        return to_image(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 3, scale * h, scale * w)."""
        h, w = x.shape[2:]
        x = reflect_pad(x - self.mean, self.size_multiple)
        x = self.conv_first(x.contiguous(memory_format=torch.channels_last))
        x = self.conv_after_body(self.forward_features(x)) + x
        x = self.conv_last(self.upsample(self.conv_before_upsample(x)))
        return x[..., : h * self.scale, : w * self.scale] + self.mean


def adapter_defaults(dim: int) -> dict[str, dict]:
    """Sites and widths of each method on a HAT."""
    block = r"layers\.\d+\.residual_group\.blocks\.\d+\."
    linears = block + r"(attn\.(qkv|proj)|mlp\.fc[12])"
    hidden = max(2, dim // 10)
    spatial, stereo = block + "spatial_site", r"layers\.\d*[13579]\.stereo_site"
    return {
        "asteisr": {"target_modules": f"{spatial}|{stereo}", "stereo_modules": stereo},
        "asteisr_spatial": {"target_modules": spatial},
        "asteisr_stereo": {"target_modules": stereo},
        "adaptir": {"target_modules": block + "mlp", "hidden": hidden, "gate": max(1, hidden // 4)},
        "lora": {"target_modules": linears, "r": 4, "alpha": 4},
        "adair": {"target_modules": block + "(attn|mlp)", "width": hidden},
        "houlsby": {"target_modules": block + "(attn|mlp)", "bottleneck": hidden},
        "adaptformer": {"target_modules": block + "mlp", "bottleneck": 2 * hidden},
        "ssf": {"target_modules": block + r"(attn\.(qkv|proj)|mlp\.fc[12]|norm[12])"},
        "fact": {"target_modules": linears, "r": 4 * hidden},
        "bitfit": {"target_modules": block + r"(attn\.(qkv|proj)|mlp\.fc[12]|norm[12])"},
    }


def hat_s(scale: int = 4, **overrides) -> HAT:
    """HAT-S: 9.6 million parameters at x4."""
    return HAT(name="hat_s", scale=scale, **{**VARIANTS["hat_s"], **overrides})


def hat(scale: int = 4, **overrides) -> HAT:
    """HAT: 20.8 million parameters at x4."""
    return HAT(name="hat", scale=scale, **{**VARIANTS["hat"], **overrides})


def hat_l(scale: int = 4, **overrides) -> HAT:
    """HAT-L: 40.8 million parameters at x4."""
    return HAT(name="hat_l", scale=scale, **{**VARIANTS["hat_l"], **overrides})


def hat_mini(scale: int = 4, **overrides) -> HAT:
    """HAT at small numbers, for a laptop: half a million parameters.

    Its random weights begin near the identity, see `near_identity`.
    """
    options = {**VARIANTS["hat_mini"], "drop_path": 0.0, **overrides}
    model = HAT(name="hat_mini", scale=scale, **options)
    near_identity.hat(model)
    return model


def checkpoint_filter(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the tensors of the authors' files that the model rebuilds: indices and masks."""
    rebuilt = ("relative_position_index_SA", "relative_position_index_OCA", "attn_mask")
    return {key: value for key, value in state.items() if not key.endswith(rebuilt)}


def detect(state: dict[str, Tensor]) -> tuple[str, dict] | None:
    """(architecture, hyper-parameters) of a HAT state dict, None for any other family.

    `conv_scale` and `drop_path` leave no trace in a state dict and keep their defaults.

    Raises:
        ValueError: a HAT that is not built here, or one with ASteISR's adapters inside.
    """
    first = "layers.0.residual_group.blocks.0."
    overlap = "layers.{}.residual_group.overlap_attn.relative_position_bias_table"
    squeeze = first + "conv_block.cab.3.attention.1.weight"
    if not all(key in state for key in ("conv_first.weight", squeeze, overlap.format(0))):
        return None
    if any(".S_Adapter." in key or ".stereo_adapter." in key for key in state):
        raise ValueError(
            "this is an ASteISR checkpoint, a HAT with adapters inside; ir_peft.load_stereo "
            "loads it"
        )
    if "absolute_pos_embed" in state:
        raise ValueError(
            "this HAT has absolute position embeddings; HAT is built without them here"
        )
    for key in ("conv_after_body.weight", "patch_embed.norm.weight"):
        if key not in state:
            raise ValueError(f"this HAT is of another make than the release: it has no {key}")
    dim, channels = state["conv_first.weight"].shape[:2]
    if channels != 3:
        raise ValueError(f"this HAT takes images of {channels} channels, not 3")
    found = (re.fullmatch(r"layers\.(\d+)\..*\.blocks\.(\d+)\.norm1\.weight", key) for key in state)
    groups = [int(match[1]) for match in found if match]
    depths = tuple(groups.count(group) for group in range(max(groups) + 1))
    heads = {state[overlap.format(group)].shape[1] for group in range(len(depths))}
    if len(heads) > 1:
        raise ValueError(f"this HAT has groups with different numbers of heads, {sorted(heads)}")
    window = (math.isqrt(len(state[first + "attn.relative_position_bias_table"])) + 1) // 2
    reach = math.isqrt(len(state[overlap.format(0)])) + 1 - window
    features = state["conv_last.weight"].shape[1]
    steps = (state.get(f"upsample.{i}.weight") for i in (0, 2, 4))
    settings = {
        "scale": math.prod(math.isqrt(len(step) // features) for step in steps if step is not None),
        "dim": dim,
        "depths": depths,
        "heads": heads.pop(),
        "window": window,
        "overlap_ratio": shortest_ratio(reach - window, window),
        "compress_ratio": dim // len(state[first + "conv_block.cab.0.weight"]),
        "squeeze_factor": dim // len(state[squeeze]),
        "expansion": shortest_ratio(len(state[first + "mlp.fc1.weight"]), dim),
        "features": features,
    }
    for name, variant in VARIANTS.items():
        if all(settings[key] == value for key, value in variant.items()):
            return name, settings
    return "hat", settings
