"""DAT: Dual Aggregation Transformer (Chen et al., ICCV 2023, arXiv 2308.03364).

Blocks alternate spatial-window attention (two window shapes, one for each half of the channels) and
channel attention. State-dict keys are those of the authors' release. Adapters find their sites by
name: `layers.i.conv`, `layers.i.blocks.j`, its `.attn` and `.ffn`, the Linears `attn.qkv`,
`attn.proj`, `ffn.fc1` and `ffn.fc2`, and the end of the body `norm`, `conv_after_body`, `upsample`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from .dat_checkpoint import REBUILT, checkpoint_filter, detect
from .gates import FrozenSpatialGate
from .layers import (
    RGB_MEAN,
    Conv2d,
    DynamicPositionBias,
    Pointwise,
    ResidualConv,
    Upsample,
    UpsampleOneStep,
    attention,
    full_precision,
    head_padding,
    init_weights,
    shift_features,
    to_image,
    to_tokens,
    window_partition,
    window_reverse,
)

__all__ = ["DAT", "REBUILT", "checkpoint_filter", "dat", "dat_light", "dat_s", "detect"]


class SpatialGate(nn.Module):
    """The gate of `SGFN`: x1 * DWConv(LN(x2)) for the halves x1, x2 of gelu(x)'s channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, 2C) -> (B, H, W, C)."""
        kinds = type(self.norm), type(self.conv)
        trained = any(p.requires_grad for p in self.parameters()) or kinds != (nn.LayerNorm, Conv2d)
        plain = x.is_meta or torch.compiler.is_compiling()  # The meta device knows no autocast.
        eager = not (plain or torch.is_autocast_enabled(x.device.type))
        if eager and x.requires_grad and not trained:
            return FrozenSpatialGate.apply(x, self.norm, self.conv)
        x1, x2 = F.gelu(x).chunk(2, dim=-1)
        return x1 * to_tokens(self.conv(to_image(self.norm(x2))))


class SGFN(nn.Module):
    """Spatial-gate feed-forward network (Sec. 3.3)."""

    channels_last = True

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.in_features = self.out_features = dim
        self.fc1 = nn.Linear(dim, hidden)
        self.sg = SpatialGate(hidden // 2)
        self.fc2 = nn.Linear(hidden // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.fc2(self.sg(self.fc1(x)))


class WindowAttention(nn.Module):
    """Attention inside h x w windows with a position bias, for one half of the heads."""

    def __init__(self, dim: int, heads: int, h: int, w: int, shift: bool):
        super().__init__()
        self.heads = heads
        self.window = (h, w)
        self.shift = (h // 2, w // 2) if shift else None
        self.pos = DynamicPositionBias(dim // 4 // 4, heads, h, w)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Three of (B, H, W, C), H and W multiples of the window -> (B, H, W, C)."""
        B, H, W, C = q.shape
        (h, w), d = self.window, C // self.heads
        extra = [q.new_zeros(1, 1, 1, head_padding(d, q.device))] * 3
        if self.shift:
            dh, dw = self.shift
            q, k, v = (x.roll((-dh, -dw), dims=(1, 2)) for x in (q, k, v))
            spare = head_padding(d + 2, q.device)
            features = shift_features(H, W, dh, dw, spare, q.device)  # (3, H, W, 2 + spare)
            extra = (features * d**0.25).to(q.dtype).split(1)  # The product is divided by d ** 0.5.
        q, k, v = (self.to_windows(x, e) for x, e in zip((q, k, v), extra, strict=True))
        out = attention(q, k, v, self.pos(), scale=d**-0.5)[..., :d]  # (B * nW, heads, N, d)
        out = out.transpose(1, 2).unflatten(1, (h, w)).unflatten(0, (B, H // h, W // w))
        out = window_reverse(out).flatten(3)  # (B, H, W, C)
        return out.roll(self.shift, dims=(1, 2)) if self.shift else out

    def to_windows(self, x: Tensor, extra: Tensor) -> Tensor:
        """(B, H, W, heads * d) -> (B * nW, heads, N, d + e) in one copy.

        `extra` (1, H, W, e), also with H = W = 1, is appended to every head.
        """
        x = x.unflatten(-1, (self.heads, -1))
        extra = extra.unsqueeze(3).expand(*x.shape[:-1], -1)
        views = (
            window_partition(t, *self.window).transpose(4, 5).transpose(3, 4) for t in (x, extra)
        )
        return torch.cat(list(views), dim=-1).flatten(4, 5).flatten(0, 2)


def squeeze(dim: int, hidden: int, out: int) -> list[nn.Module]:
    """The layers of a gate: (B, dim, H, W) -> (B, out, H, W)."""
    down, up = Pointwise(dim, hidden), Pointwise(hidden, out)
    return [down, nn.BatchNorm2d(hidden), nn.GELU(), up]


class Local(nn.Sequential):
    """gelu(BN(DWConv(x))): (B, C, H, W) -> the same shape.

    With fixed statistics the norm is a scale and a shift, which the convolution's weights take on.
    """

    def __init__(self, dim: int):
        conv = Conv2d(dim, dim, 3, padding=1, groups=dim)
        super().__init__(conv, nn.BatchNorm2d(dim), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        conv, norm, gelu = self
        if norm.training or type(conv) is not Conv2d or type(norm) is not nn.BatchNorm2d:
            return super().forward(x)
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = (conv.bias - norm.running_mean) * scale + norm.bias
        return gelu(conv._conv_forward(x, conv.weight * scale.view(-1, 1, 1, 1), shift))


class Interaction(nn.Module):
    """What both attentions share: a depthwise convolution of v, and the adaptive interaction."""

    channels_last = True

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.in_features = self.out_features = dim
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dwconv = Local(dim)
        self.channel_interaction = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), *squeeze(dim, dim // 8, dim)
        )
        self.spatial_interaction = nn.Sequential(*squeeze(dim, dim // 16, 1))

    def channel_gate(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, 1, 1, C) in (0, 1)."""
        return to_tokens(self.channel_interaction(to_image(x))).sigmoid()

    def spatial_gate(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, 1) in (0, 1)."""
        return to_tokens(self.spatial_interaction(to_image(x))).sigmoid()


class SpatialAttention(Interaction):
    """Adaptive spatial self-attention (Sec. 3.2)."""

    def __init__(self, dim: int, heads: int, split_size: tuple[int, int], shift: bool):
        super().__init__(dim, heads)
        h, w = split_size
        self.multiple = max(h, w)
        self.attns = nn.ModuleList(
            WindowAttention(dim // 2, heads // 2, *window, shift) for window in ((h, w), (w, h))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), any H and W."""
        _, H, W, C = x.shape
        qkv = self.qkv(x)  # (B, H, W, 3C)
        bottom, right = -H % self.multiple, -W % self.multiple
        if bottom or right:
            qkv = F.pad(qkv, (0, 0, 0, right, 0, bottom))
        q0, q1, k0, k1, v0, v1 = qkv.split(C // 2, dim=-1)
        conv = to_tokens(self.dwconv(to_image(torch.cat((v0, v1), dim=-1)[:, :H, :W])))
        attended = torch.cat((self.attns[0](q0, k0, v0), self.attns[1](q1, k1, v1)), dim=-1)
        attended = attended[:, :H, :W]
        return self.proj(
            torch.addcmul(attended * self.channel_gate(conv), self.spatial_gate(attended), conv)
        )


class ChannelAttention(Interaction):
    """Adaptive channel self-attention (Sec. 3.2): d x d attention inside each head."""

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        _, H, W, C = x.shape
        q, k, v = self.qkv(x).split(C, dim=-1)  # each (B, H, W, C)
        conv = to_tokens(self.dwconv(to_image(v)))
        attended = (v.flatten(1, 2) @ self.weights(q, k).to(v.dtype)).unflatten(1, (H, W))
        return self.proj(
            torch.addcmul(attended * self.spatial_gate(conv), self.channel_gate(attended), conv)
        )

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Two of (B, H, W, C) -> attention weights (B, C of k, C of q), zero between heads, fp32.

        All heads go through one C x C product: the products between heads cost less than copying
        q, k and v apart. Normalising the logits in place of q and k also saves passes over them.
        """
        C, d = q.shape[-1], q.shape[-1] // self.heads
        head = torch.arange(C, device=q.device) // d
        with full_precision(q.device):
            q, k = q.flatten(1, 2).float(), k.flatten(1, 2).float()  # (B, N, C)
            q_norm = torch.linalg.vector_norm(q, dim=1, keepdim=True).clamp_min(1e-12)  # (B, 1, C)
            k_norm = torch.linalg.vector_norm(k, dim=1, keepdim=True).clamp_min(1e-12)
            logits = k.transpose(1, 2) @ q / (k_norm.transpose(1, 2) * q_norm)
            logits = logits * self.temperature.flatten()[head]
            return logits.masked_fill(head[:, None] != head, float("-inf")).softmax(dim=1)


class Block(nn.Module):
    """x + attn(LN(x)), then x + ffn(LN(x)); even blocks attend in windows, odd over channels."""

    channels_last = True

    def __init__(self, dim, heads, split_size, expansion, drop_path, group: int, index: int):
        super().__init__()
        self.in_features = self.out_features = dim
        self.norm1 = nn.LayerNorm(dim)
        if index % 2 == 0:
            shift = index % 4 == 2 if group % 2 == 0 else index % 4 == 0
            self.attn: nn.Module = SpatialAttention(dim, heads, split_size, shift)
        else:
            self.attn = ChannelAttention(dim, heads)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.ffn = SGFN(dim, int(dim * expansion))
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class Group(nn.Module):
    """Residual group: x + conv(blocks(x))."""

    def __init__(self, dim, heads, split_size, expansion, drop_paths, light: bool, group: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, heads, split_size, expansion, rate, group, index)
            for index, rate in enumerate(drop_paths)
        )
        self.conv = ResidualConv(dim) if light else Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        y = x
        for block in self.blocks:
            y = block(y)
        return x + to_tokens(self.conv(to_image(y)))


class DAT(nn.Module):
    """Shallow convolution, residual groups of blocks, convolution and upsampler.

    Args:
        name: the architecture's name, kept with the adapters made for it.
        scale: 2, 3 or 4.
        dim: channels C of the body.
        depths: blocks in each residual group.
        heads: attention heads.
        split_size: the window (h, w) of one half of the channels; the other half has (w, h).
        expansion: width of the feed-forward network over C.
        light: three-convolution groups and a one-step upsampler (DAT-light).
        drop_path: stochastic depth, rising linearly to this rate in the last block.
    """

    size_multiple = 1  # Windows are padded inside the attention.

    def __init__(
        self,
        *,
        name: str,
        scale: int,
        dim: int = 180,
        depths: tuple[int, ...] = (6,) * 6,
        heads: int = 6,
        split_size: tuple[int, int] = (8, 32),
        expansion: float = 4.0,
        light: bool = False,
        drop_path: float = 0.1,
    ):
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"{name} exists at scale 2, 3 and 4, not at {scale}")
        self.name = name
        self.scale = scale
        self.adapter_defaults = adapter_defaults(dim, depths)
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = Conv2d(3, dim, 3, padding=1)
        self.before_RG = nn.Sequential(nn.Identity(), nn.LayerNorm(dim))
        count = sum(depths)
        rates = [drop_path * i / max(1, count - 1) for i in range(count)]
        self.layers = nn.ModuleList()
        for group, depth in enumerate(depths):
            drop_paths, rates = rates[:depth], rates[depth:]
            self.layers.append(Group(dim, heads, split_size, expansion, drop_paths, light, group))
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = ResidualConv(dim) if light else Conv2d(dim, dim, 3, padding=1)
        if light:
            self.upsample: nn.Module = UpsampleOneStep(scale, dim)
        else:
            self.conv_before_upsample = nn.Sequential(
                Conv2d(dim, 64, 3, padding=1), nn.LeakyReLU(inplace=True)
            )
            self.upsample = Upsample(scale, 64)
            self.conv_last = Conv2d(64, 3, 3, padding=1)
        self.light = light
        self.apply(init_weights)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w): all residual groups and the last norm."""
        x = self.before_RG(to_tokens(x))
        for layer in self.layers:
            x = layer(x)
        return to_image(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B, 3, scale * h, scale * w), any h, w >= 1."""
        x = self.conv_first((x - self.mean).contiguous(memory_format=torch.channels_last))
        x = self.conv_after_body(self.forward_features(x)) + x
        if self.light:
            return self.upsample(x) + self.mean
        return self.conv_last(self.upsample(self.conv_before_upsample(x))) + self.mean


def adapter_defaults(dim: int, depths: tuple[int, ...]) -> dict[str, dict]:
    """Sites and widths of each method; on DAT-light each adds about 35 thousand parameters.

    `ssf` and `bitfit` have no width, so their size is what it is. ASteISR's has the paper's ratios
    (33,750 and 3 x 15,000 on DAT-light); its stereo adapters sit as on HAT, after the convolution
    of every second group, or after every sixth block where there is one group only.
    """
    block = r"layers\.\d+\.blocks\.\d+\."
    linears = r"attn\.qkv|attn\.proj|ffn\.fc1|ffn\.fc2"
    hidden = dim // 5  # 12 on DAT-light, the width that the AdaptIR release takes on EDT-B.
    sixth = "|".join(map(str, range(min(5, depths[0] - 1), depths[0], 6)))
    stereo = r"layers\.\d*[13579]\.conv" if len(depths) > 1 else rf"layers\.0\.blocks\.({sixth})"
    spatial = block + "attn"
    return {
        "asteisr": {"target_modules": f"{spatial}|{stereo}", "stereo_modules": stereo},
        "asteisr_spatial": {"target_modules": spatial},
        "asteisr_stereo": {"target_modules": stereo},
        "adaptir": {
            "target_modules": block + "ffn",
            "hidden": hidden,
            "rank": hidden // 2,
            "gate": hidden // 4,
        },
        "lora": {"target_modules": f"{block}({linears})", "r": 3, "alpha": 3},
        "adair": {"target_modules": block + "(attn|ffn)", "width": 8},
        "houlsby": {"target_modules": block + "(attn|ffn)", "bottleneck": 8},
        "adaptformer": {"target_modules": block + "ffn", "bottleneck": 16},
        "ssf": {"target_modules": f"{block}({linears}|norm1|norm2)"},
        "fact": {"target_modules": f"{block}({linears})", "r": 30},
        "bitfit": {"target_modules": f"{block}({linears}|norm1|norm2)"},
    }


def dat_light(scale: int = 4, **overrides) -> DAT:
    """DAT-light: 573 thousand parameters at x4."""
    settings = {"dim": 60, "depths": (18,), "expansion": 2.0, "light": True}
    return DAT(name="dat_light", scale=scale, **{**settings, **overrides})


def dat_s(scale: int = 4, **overrides) -> DAT:
    """DAT-S: 11.2 million parameters at x4."""
    settings = {"split_size": (8, 16), "expansion": 2.0}
    return DAT(name="dat_s", scale=scale, **{**settings, **overrides})


def dat(scale: int = 4, **overrides) -> DAT:
    """DAT: 14.8 million parameters at x4."""
    return DAT(name="dat", scale=scale, **overrides)
