"""IPT: Pre-Trained Image Processing Transformer (Chen et al., CVPR 2021, arXiv 2012.00364).

One encoder-decoder transformer over patches of 48 x 48 pixels; a head, a tail and a decoder query
for each task. `checkpoint_filter` turns the authors' keys into ours and `official_state_dict` ours
into theirs: here the feed-forward network is a module, and q, k, v are Linears of their own.
Adapters find their sites by name: `body.encoder.layers.i.self_attn` and `.ffn`, the same and
`.multihead_attn` in `body.decoder`, the Linears `q`, `k`, `v`, `out_proj`, `linear1`, `linear2` in
them, and `head` and `tail`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..names import did_you_mean
from . import near_identity
from .chop import chop
from .ipt_checkpoint import VARIANTS, checkpoint_filter, detect, official_state_dict
from .layers import (
    RGB_MEAN,
    Conv2d,
    Upsample,
    attention,
    full_precision,
    mirror_pad,
    to_image,
    to_tokens,
)

__all__ = ["IPT", "checkpoint_filter", "detect", "ipt", "ipt_mini", "official_state_dict"]

SCALES = (2, 3, 4, 1, 1, 1)
"""Scale of each branch of the released model: SR x2, x3, x4, rain, noise 30, noise 50."""

TASK_MAP = {
    "sr_2": 0,
    "sr_3": 1,
    "sr_4": 2,
    "lr4_noise30": 2,
    "lr4_jpeg30": 2,
    "derainL": 3,
    "derainH": 3,
    "denoise_30": 4,
    "denoise_50": 5,
    "low_light": 5,
}
"""The branch that each task takes, by the task's name in the AdaptIR release."""

ALIASES = {
    "sr2": "sr_2",
    "sr3": "sr_3",
    "sr4": "sr_4",
    "derain_light": "derainL",
    "derain_heavy": "derainH",
    "denoise30": "denoise_30",
    "denoise50": "denoise_50",
}
"""Other spellings of the tasks in `TASK_MAP`."""


class MeanShift(nn.Conv2d):
    """Adds sign * rgb_range * (mean colour); frozen."""

    def __init__(self, rgb_range: float, sign: int):
        super().__init__(3, 3, 1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias.data = sign * rgb_range * torch.tensor(RGB_MEAN)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W), in full precision: half has too few digits for 0..255."""
        with full_precision(x.device):
            return super().forward(x.to(self.weight.dtype))


class ResBlock(nn.Module):
    """Two 5 x 5 convolutions beside the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            Conv2d(channels, channels, 5, padding=2),
            nn.ReLU(inplace=True),
            Conv2d(channels, channels, 5, padding=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.body(x)


class Attention(nn.Module):
    """Multi-head attention between all tokens of a patch."""

    channels_last = True

    def __init__(self, dim: int, heads: int, out_bias: bool):
        super().__init__()
        self.in_features = self.out_features = dim
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=out_bias)

    def forward(
        self, x: Tensor, query: Tensor | None = None, memory: Tensor | None = None
    ) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C): attention to x itself or to `memory` (B, H, W, C).

        `query` (H, W, C) is added to what q, and in self-attention k, is made of.
        """
        asking = x if query is None else x + query
        q = self.q(asking)
        k = self.k(asking if memory is None else memory)
        v = self.v(x if memory is None else memory)
        q, k, v = (rearrange(y, "b h w (g d) -> b g (h w) d", g=self.heads) for y in (q, k, v))
        return self.out_proj(attention(q, k, v).transpose(1, 2).reshape(x.shape))


class FFN(nn.Module):
    """Feed-forward network with a ReLU."""

    channels_last = True

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.in_features = self.out_features = dim
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.linear2(F.relu(self.linear1(x)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward network, each on the layer-normed input (Eq. 2)."""

    channels_last = True
    any_tokens = True  # H x W is a number of tokens and no grid: all attend to all.

    def __init__(self, dim: int, heads: int, hidden: int, out_bias: bool):
        super().__init__()
        self.in_features = self.out_features = dim
        self.self_attn = Attention(dim, heads, out_bias)
        self.ffn = FFN(dim, hidden)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.self_attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class DecoderLayer(EncoderLayer):
    """The encoder's layer with attention to the encoder's output in between (Eq. 3)."""

    def __init__(self, dim: int, heads: int, hidden: int, out_bias: bool):
        super().__init__(dim, heads, hidden, out_bias)
        self.multihead_attn = Attention(dim, heads, out_bias)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, query: Tensor, memory: Tensor) -> Tensor:
        """(B, H, W, C) with query (H, W, C) and memory (B, H, W, C) -> (B, H, W, C)."""
        x = x + self.self_attn(self.norm1(x), query)
        x = x + self.multihead_attn(self.norm2(x), query, memory)
        return x + self.ffn(self.norm3(x))


class Stack(nn.Module):
    """Layers one after another, each with the same other arguments."""

    def __init__(self, layers: Iterable[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        for layer in self.layers:
            x = layer(x, *others)
        return x


class Body(nn.Module):
    """The transformer; a token is a square of `patch_dim` pixels. Arguments as in `IPT`."""

    def __init__(self, channels, patch_size, patch_dim, heads, depth, expansion, queries, out_bias):
        super().__init__()
        self.patch_dim = patch_dim
        tokens, dim = (patch_size // patch_dim) ** 2, channels * patch_dim**2
        hidden = expansion * dim
        self.linear_encoding = nn.Linear(dim, dim)
        self.mlp_head = nn.Sequential(  # The Identity is a Dropout of rate 0 in the release.
            nn.Linear(dim, hidden), nn.Identity(), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
        )
        self.query_embed = nn.Embedding(queries, dim * tokens)
        layers = dim, heads, hidden, out_bias
        self.encoder = Stack(EncoderLayer(*layers) for _ in range(depth))
        self.decoder = Stack(DecoderLayer(*layers) for _ in range(depth))
        self.position_encoding = nn.ModuleDict({"pe": nn.Embedding(tokens, dim)})

    def forward(self, x: Tensor, branch: int) -> Tensor:
        """(B, channels, patch_size, patch_size) -> the same shape."""
        x = to_tokens(F.pixel_unshuffle(x, self.patch_dim))  # (B, H, W, C)
        x = x + self.linear_encoding(x)
        position = self.position_encoding["pe"].weight.view(x.shape[1:])
        query = self.query_embed.weight[branch].view(x.shape[1:])
        memory = self.encoder(x + position)
        x = self.decoder(memory, query, memory)
        x = x + self.mlp_head(x)
        return F.pixel_shuffle(to_image(x), self.patch_dim)


class IPT(nn.Module):
    """(B, 3, h, w) in [0, 1] -> (B, 3, scale * h, scale * w), any h, w >= 1.

    The transformer sees patches of 48 x 48 pixels and nothing else. An input of this size, as in
    training, goes through once. A larger one goes through the authors' scheme (`forward_chop`), in
    training as well: about one pass for every 12 x 12 pixels. A side below 48 is first continued in
    its mirror up to 48, and the output is cropped.

    Args:
        name: the architecture's name, kept with the adapters made for it.
        task: see `set_task`; None takes SR x4, or the task of the given scale.
        scale: the task's scale, or None.
        scales: of the branches: the release's six, or one, as in its files for single tasks.
        channels: of the head and the tail.
        patch_size: side of the patches; a multiple of 4 and of `patch_dim`.
        patch_dim: side p of a token; the body's width is channels * p * p.
        heads: attention heads.
        depth: layers of the encoder, and of the decoder.
        expansion: width of the feed-forward networks over the body's.
        queries: task queries; None: one for each branch.
        out_bias: biases in the attentions' output projections, which some versions of torch add.
        rgb_range: of the colours inside.
    """

    def __init__(
        self,
        *,
        name: str,
        task: str | int | None = None,
        scale: int | None = None,
        scales: tuple[int, ...] = SCALES,
        channels: int = 64,
        patch_size: int = 48,
        patch_dim: int = 3,
        heads: int = 12,
        depth: int = 12,
        expansion: int = 4,
        queries: int | None = None,
        out_bias: bool = False,
        rgb_range: float = 255,
    ):
        super().__init__()
        if tuple(scales) != SCALES and not (len(scales) == 1 and scales[0] in SCALES):
            raise ValueError(f"{name} has branches of scales {SCALES} or one of them, not {scales}")
        if patch_size % math.lcm(4, patch_dim) or channels * patch_dim**2 % heads:
            raise ValueError(
                "patch_size needs a multiple of 4 and patch_dim, the width one of heads"
            )
        self.name = name
        self.scales = tuple(scales)
        self.patch_size = self.size_multiple = patch_size
        self.rgb_range = rgb_range
        self.tasks = dict(TASK_MAP)
        if len(scales) == 1:
            self.tasks = {t: 0 for t, branch in TASK_MAP.items() if SCALES[branch] == scales[0]}
        self.set_task(self._default_task(scale) if task is None else task)
        if scale not in (None, self.scale):
            raise ValueError(f"{name}: task {self.task!r} has scale {self.scale}, not {scale}")
        self.adapter_defaults = adapter_defaults(channels * patch_dim**2)
        self.sub_mean = MeanShift(rgb_range, -1)
        self.add_mean = MeanShift(rgb_range, 1)
        C, queries = channels, queries or len(scales)
        self.head = nn.ModuleList(
            nn.Sequential(Conv2d(3, C, 3, padding=1), ResBlock(C), ResBlock(C)) for _ in scales
        )
        self.body = Body(C, patch_size, patch_dim, heads, depth, expansion, queries, out_bias)
        self.tail = nn.ModuleList(
            nn.Sequential(Upsample(s, C), Conv2d(C, 3, 3, padding=1)) for s in scales
        )

    def _default_task(self, scale: int | None) -> str:
        if scale is None:
            return "sr_4" if "sr_4" in self.tasks else next(iter(self.tasks))
        fits = [task for task, branch in self.tasks.items() if self.scales[branch] == scale]
        if not fits:
            raise ValueError(f"{self.name} has scales {sorted(set(self.scales))}, not {scale}")
        if len({self.tasks[task] for task in fits}) > 1:
            raise ValueError(f"scale {scale} has several branches: give task, one of {fits}")
        return fits[0]

    def set_task(self, task: str | int) -> None:
        """Switches head, query and tail, and with them the attributes `task` and `scale`.

        Args:
            task: a key of the attribute `tasks` or of `ALIASES`, or the index of a branch.

        Raises:
            ValueError: the model has no such task.
        """
        indices = {branch: name for name, branch in reversed(self.tasks.items())}
        name = indices.get(task) if isinstance(task, int) else ALIASES.get(task, task)
        if name not in self.tasks:
            hint = did_you_mean(str(task), self.tasks) or "."
            raise ValueError(f"{self.name} has no task {task!r}{hint} Known: {list(self.tasks)}")
        self.task = name
        self.scale = self.scales[self.tasks[name]]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 3, scale * h, scale * w); see the class on sizes."""
        h, w = x.shape[-2:]
        p, s = self.patch_size, self.scale
        if h == w == p:
            return self.forward_patch(x)
        return self.forward_chop(mirror_pad(x, max(h, p), max(w, p)))[..., : s * h, : s * w]

    def forward_patch(self, x: Tensor) -> Tensor:
        """One pass: (B, 3, p, p) -> (B, 3, scale * p, scale * p), p = patch_size."""
        branch = self.tasks[self.task]
        x = self.sub_mean(x * self.rgb_range).contiguous(memory_format=torch.channels_last)
        x = self.head[branch](x)
        x = self.tail[branch](self.body(x, branch) + x)
        return self.add_mean(x) / self.rgb_range

    def forward_chop(self, x: Tensor, batch_size: int = 64) -> Tensor:
        """The authors' scheme for h, w >= patch_size; see `chop`."""
        return chop(self.forward_patch, x, self.patch_size, self.scale, batch_size)


def adapter_defaults(dim: int) -> dict[str, dict]:
    """Sites and widths of each method on an IPT: those of the AdaptIR paper at its width, 576."""
    layer = r"body\.(encoder|decoder)\.layers\.\d+\."
    hidden = max(2, dim // 24)
    return {
        "adaptir": {"target_modules": layer + "ffn", "hidden": hidden, "gate": max(1, hidden // 8)},
        "lora": {"target_modules": layer + r"\w+_attn\.(q|v)", "r": 12, "alpha": 12},
        "adair": {"target_modules": layer + "(self_attn|ffn)", "width": max(1, dim // 48)},
        "houlsby": {"target_modules": layer + "(self_attn|ffn)", "bottleneck": max(1, dim // 48)},
        "adaptformer": {"target_modules": layer + "ffn", "bottleneck": hidden},
        "vpt": {"target_modules": layer.removesuffix(r"\."), "prompts": 64},
        "ssf": {"target_modules": layer + r"(\w+_attn\.(q|k|v|out_proj)|ffn\.linear[12]|norm\d)"},
        "fact": {"target_modules": layer + r"\w+_attn\.\w+", "r": max(2, 76 * dim // 576)},
        "bitfit": {"target_modules": layer + r"(ffn\.linear[12]|norm[123])"},
    }


def ipt(scale: int | None = None, **overrides) -> IPT:
    """IPT with its six branches: 119 million parameters."""
    return IPT(name="ipt", scale=scale, **overrides)


def ipt_mini(scale: int | None = None, **overrides) -> IPT:
    """IPT with its six branches at small numbers: 1.4 million parameters.

    Its random weights begin near the identity, see `near_identity`.
    """
    model = IPT(name="ipt_mini", scale=scale, **{**VARIANTS["ipt_mini"], **overrides})
    near_identity.ipt(model)
    return model
