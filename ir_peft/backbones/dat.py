"""DAT: Dual Aggregation Transformer for image super-resolution (Chen et al., ICCV 2023, arXiv 2308.03364).

Blocks alternate spatial-window attention (two window shapes, one for each half of the channels) and
channel attention. State-dict keys are those of the authors' release. Adapters find their sites by name:
`layers.i.blocks.j.attn`, `.ffn`, the Linears `attn.qkv`, `attn.proj`, `ffn.fc1`, `ffn.fc2`, and the end of the
body `norm`, `conv_after_body`, `upsample`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from .layers import (
    RGB_MEAN,
    ResidualConv,
    Upsample,
    UpsampleOneStep,
    attention,
    head_padding,
    init_weights,
    shift_features,
    to_image,
    to_tokens,
    window_partition,
    window_reverse,
)


class SpatialGate(nn.Module):
    """x1 * DWConv(LN(x2)), the halves of the channels of x: (B, H, W, 2C) -> (B, H, W, C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=-1)
        return x1 * to_tokens(self.conv(to_image(self.norm(x2))))


class SGFN(nn.Module):
    """Spatial-gate feed-forward network (Eq. 9): (B, H, W, C) -> (B, H, W, C)."""

    channels_last = True

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.in_features = self.out_features = dim
        self.fc1 = nn.Linear(dim, hidden)
        self.sg = SpatialGate(hidden // 2)
        self.fc2 = nn.Linear(hidden // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.sg(F.gelu(self.fc1(x))))


class PositionBias(nn.Module):
    """Dynamic relative position bias of an h x w window: a small MLP over the offsets -> (heads, N, N), fp32."""

    def __init__(self, dim: int, heads: int, h: int, w: int):
        super().__init__()
        self.window = (h, w)
        self.pos_proj = nn.Linear(2, dim)
        self.pos1 = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, dim))
        self.pos2 = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, dim))
        self.pos3 = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, heads))
        self._own = len(list(self.parameters()))
        self._kept: tuple[list, Tensor] | None = None

    def forward(self) -> Tensor:
        parameters = list(self.parameters())
        # A trained bias changes at each step, and one with an adapter inside when the adapter is switched.
        changing = len(parameters) != self._own or any(p.requires_grad for p in parameters)
        if changing or torch.compiler.is_compiling():
            self._kept = None
            return self.build()
        # The bias of frozen weights is a constant, built once for these very values.
        values = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]
        if self._kept is None or self._kept[0] != values:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = values, self.build().contiguous()
        return self._kept[1]

    def build(self) -> Tensor:
        """The bias from the weights: (heads, N, N)."""
        h, w = self.window
        weight = (
            self.pos_proj.weight
            if isinstance(self.pos_proj, nn.Linear)
            else next(self.parameters())
        )
        rows = torch.arange(h, device=weight.device)
        columns = torch.arange(w, device=weight.device)
        offsets = torch.cartesian_prod(
            torch.arange(1 - h, h, device=weight.device),
            torch.arange(1 - w, w, device=weight.device),
        ).to(weight.dtype)  # ((2h-1) * (2w-1), 2)
        with torch.autocast(weight.device.type, enabled=False):
            table = self.pos3(self.pos2(self.pos1(self.pos_proj(offsets))))  # (offsets, heads)
        token = torch.cartesian_prod(rows, columns)  # (N, 2)
        between = token[:, None] - token[None, :]  # (N, N, 2)
        index = (between[..., 0] + h - 1) * (2 * w - 1) + between[..., 1] + w - 1
        return table[index].permute(2, 0, 1)


class WindowAttention(nn.Module):
    """Attention inside h x w windows with a position bias, for one half of the heads."""

    def __init__(self, dim: int, heads: int, h: int, w: int, shift: bool):
        super().__init__()
        self.heads = heads
        self.window = (h, w)
        self.shift = (h // 2, w // 2) if shift else None
        self.pos = PositionBias(dim // 4 // 4, heads, h, w)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Three of (B, H, W, C), H and W multiples of the window -> (B, H, W, C)."""
        B, H, W, C = q.shape
        (h, w), d = self.window, C // self.heads
        extra = [q.new_zeros(1, 1, 1, head_padding(d, q.device))] * 3
        if self.shift:
            dh, dw = self.shift
            q, k, v = (x.roll((-dh, -dw), dims=(1, 2)) for x in (q, k, v))
            spare = head_padding(d + 4, q.device)
            features = shift_features(H, W, dh, dw, spare, q.device)  # (3, H, W, 4 + spare)
            extra = (features * d**0.25).to(q.dtype).split(1)  # The product is divided by d ** 0.5.
        q, k, v = (self.to_windows(x, e) for x, e in zip((q, k, v), extra, strict=True))
        out = attention(q, k, v, self.pos(), scale=d**-0.5)[..., :d]  # (B * nW, heads, N, d)
        out = out.transpose(1, 2).unflatten(1, (h, w)).unflatten(0, (B, H // h, W // w))
        out = window_reverse(out).flatten(3)  # (B, H, W, C)
        return out.roll(self.shift, dims=(1, 2)) if self.shift else out

    def to_windows(self, x: Tensor, extra: Tensor) -> Tensor:
        """(B, H, W, heads * d), and (1, H, W, e) for every head -> (B * nW, heads, N, d + e), in one copy."""
        x = x.unflatten(-1, (self.heads, -1))
        extra = extra.unsqueeze(3).expand(*x.shape[:-1], -1)
        views = (
            window_partition(t, *self.window).transpose(4, 5).transpose(3, 4) for t in (x, extra)
        )
        return torch.cat(list(views), dim=-1).flatten(4, 5).flatten(0, 2)


class Interaction(nn.Module):
    """What both kinds of attention share: a depthwise branch on v and the adaptive interaction (Eq. 6-8)."""

    channels_last = True

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.in_features = self.out_features = dim
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dwconv = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.BatchNorm2d(dim), nn.GELU()
        )
        self.channel_interaction = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(dim, dim // 8, 1),
            nn.BatchNorm2d(dim // 8),
            nn.GELU(),
            nn.Conv2d(dim // 8, dim, 1),
        )
        self.spatial_interaction = nn.Sequential(
            nn.Conv2d(dim, dim // 16, 1),
            nn.BatchNorm2d(dim // 16),
            nn.GELU(),
            nn.Conv2d(dim // 16, 1, 1),
        )

    def channel_gate(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, 1, 1, C) in (0, 1)."""
        return to_tokens(self.channel_interaction(to_image(x))).sigmoid()

    def spatial_gate(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, 1) in (0, 1)."""
        return to_tokens(self.spatial_interaction(to_image(x))).sigmoid()


class SpatialAttention(Interaction):
    """Adaptive spatial self-attention (Sec. 3.2): (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, heads: int, split_size: tuple[int, int], shift: bool):
        super().__init__(dim, heads)
        h, w = split_size
        self.multiple = max(h, w)
        self.attns = nn.ModuleList(
            WindowAttention(dim // 2, heads // 2, *window, shift) for window in ((h, w), (w, h))
        )

    def forward(self, x: Tensor) -> Tensor:
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
    """Adaptive channel self-attention (Sec. 3.2): d x d attention inside each head; shapes as above."""

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        _, H, W, C = x.shape
        q, k, v = self.qkv(x).split(C, dim=-1)  # each (B, H, W, C)
        conv = to_tokens(self.dwconv(to_image(v)))
        attended = (v.flatten(1, 2) @ self.weights(q, k).to(v.dtype)).unflatten(1, (H, W))
        return self.proj(
            torch.addcmul(attended * self.spatial_gate(conv), self.channel_gate(attended), conv)
        )

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Attention weights transposed, zero between heads: (B, C, C), in fp32.

        All heads go through one C x C product: no head is copied, which costs more than the products across heads.
        """
        with torch.autocast(q.device.type, enabled=False):
            q, k = (x.flatten(1, 2).float() for x in (q, k))  # (B, N, C)
            norms = (
                torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12) for x in (q, k)
            )
            nq, nk = norms  # (B, 1, C)
            C = q.shape[-1]
            d = C // self.heads
            logits = k.transpose(1, 2) @ q / (nk.transpose(1, 2) * nq)  # (B, C, C), rows are keys
            logits = logits * self.temperature.flatten().repeat_interleave(d)
            head = torch.arange(C, device=q.device) // d
            return logits.masked_fill(head[:, None] != head, float("-inf")).softmax(dim=1)


class Block(nn.Module):
    """x + attn(LN(x)), then x + ffn(LN(x)); even blocks attend in windows, odd ones over channels."""

    def __init__(self, dim, heads, split_size, expansion, drop_path, group: int, index: int):
        super().__init__()
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
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class Group(nn.Module):
    """Residual group: x + conv(blocks(x)), tokens in and out (B, H, W, C)."""

    def __init__(self, dim, heads, split_size, expansion, drop_paths, light: bool, group: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, heads, split_size, expansion, rate, group, index)
            for index, rate in enumerate(drop_paths)
        )
        self.conv = ResidualConv(dim) if light else nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.blocks:
            y = block(y)
        return x + to_tokens(self.conv(to_image(y)))


class DAT(nn.Module):
    """(B, 3, h, w) in [0, 1] -> (B, 3, scale * h, scale * w), any h, w >= 1.

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
        self.adapter_defaults = adapter_defaults(dim)
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.before_RG = nn.Sequential(nn.Identity(), nn.LayerNorm(dim))
        rates = torch.linspace(0, drop_path, sum(depths)).tolist()
        self.layers = nn.ModuleList()
        for group, depth in enumerate(depths):
            drop_paths, rates = rates[:depth], rates[depth:]
            self.layers.append(Group(dim, heads, split_size, expansion, drop_paths, light, group))
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = ResidualConv(dim) if light else nn.Conv2d(dim, dim, 3, padding=1)
        if light:
            self.upsample: nn.Module = UpsampleOneStep(scale, dim)
        else:
            self.conv_before_upsample = nn.Sequential(
                nn.Conv2d(dim, 64, 3, padding=1), nn.LeakyReLU(inplace=True)
            )
            self.upsample = Upsample(scale, 64)
            self.conv_last = nn.Conv2d(64, 3, 3, padding=1)
        self.light = light
        self.apply(init_weights)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w): all residual groups and the last norm."""
        x = self.before_RG(to_tokens(x))
        for layer in self.layers:
            x = layer(x)
        return to_image(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first((x - self.mean).contiguous(memory_format=torch.channels_last))
        x = self.conv_after_body(self.forward_features(x)) + x
        if self.light:
            return self.upsample(x) + self.mean
        return self.conv_last(self.upsample(self.conv_before_upsample(x))) + self.mean


def adapter_defaults(dim: int) -> dict[str, dict]:
    """Sites and widths of each method on a DAT; budgets match at about 6 % of DAT-light (35k values)."""
    block = r"layers\.\d+\.blocks\.\d+\."
    hidden = max(2, dim // 5)  # 12 on DAT-light, the width that the AdaptIR release takes on EDT-B.
    return {
        "adaptir": {"target_modules": block + "ffn", "hidden": hidden, "gate": max(1, hidden // 4)},
        "lora": {"target_modules": block + r"(attn\.(qkv|proj)|ffn\.fc[12])", "r": 3, "alpha": 3},
        "houlsby": {"target_modules": block + "(attn|ffn)", "bottleneck": 8},
        "adaptformer": {"target_modules": block + "ffn", "bottleneck": 16},
        "bitfit": {"target_modules": block + r"(attn\.(qkv|proj)|ffn\.fc[12]|norm[12])"},
    }


def dat_light(scale: int = 4, **overrides) -> DAT:
    """DAT-light: 573 thousand parameters at x4."""
    settings = {"dim": 60, "depths": (18,), "split_size": (8, 32), "expansion": 2.0, "light": True}
    return DAT(name="dat_light", scale=scale, **{**settings, **overrides})


def dat_s(scale: int = 4, **overrides) -> DAT:
    """DAT-S: 11.2 million parameters at x4."""
    settings = {"split_size": (8, 16), "expansion": 2.0}
    return DAT(name="dat_s", scale=scale, **{**settings, **overrides})


def dat(scale: int = 4, **overrides) -> DAT:
    """DAT: 14.8 million parameters at x4."""
    return DAT(name="dat", scale=scale, **overrides)


def checkpoint_filter(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the tensors of the authors' files that the model rebuilds: masks, indices, offsets."""
    rebuilt = ("attn_mask_0", "attn_mask_1", "relative_position_index", "rpe_biases")
    return {key: value for key, value in state.items() if not key.endswith(rebuilt)}


def detect(state: dict[str, Tensor]) -> tuple[str, dict] | None:
    """(architecture, hyper-parameters) of a DAT state dict, None for any other family."""
    needed = ("conv_first.weight", "before_RG.1.weight", "layers.0.blocks.0.ffn.sg.conv.weight")
    if not all(key in state for key in needed):
        return None
    dim = state["conv_first.weight"].shape[0]
    blocks = {tuple(map(int, key.split(".")[1:4:2])) for key in state if ".ffn.fc1.weight" in key}
    depths = tuple(sum(group == i for group, _ in blocks) for i in range(max(blocks)[0] + 1))
    light = "conv_last.weight" not in state
    if light:
        scale = math.isqrt(state["upsample.0.weight"].shape[0] // 3)
    else:
        stages = [
            state[key].shape[0] // 64
            for key in ("upsample.0.weight", "upsample.2.weight")
            if key in state
        ]
        scale = math.isqrt(math.prod(stages))
    expansion = state["layers.0.blocks.0.ffn.fc1.weight"].shape[0] / dim
    settings = {
        "scale": scale,
        "dim": dim,
        "depths": depths,
        "expansion": expansion,
        "light": light,
    }
    offsets = state.get("layers.0.blocks.0.attn.attns.0.rpe_biases")
    if offsets is not None:
        settings["split_size"] = tuple(int(v) + 1 for v in offsets[-1])
    name = "dat_light" if light else "dat_s" if expansion == 2 else "dat"
    return name, settings
