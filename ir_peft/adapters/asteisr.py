"""ASteISR: spatial adapters in every block and stereo adapters between the two views.

Adapting Single Image Super-resolution Pre-trained Model for Efficient Stereo Image
Super-resolution (arXiv 2407.03598), as released. Stereo adapters are the SCAM of NAFSSR (Chu et
al., CVPRW 2022, arXiv 2204.08714) with a temperature. One deviation: the release trains with the
backbone's stochastic depth, widened to the adapted branch; here a frozen backbone is in eval mode
while its adapters train, so nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bottleneck import Bottleneck
from .config import AdapterConfig
from .core import Adapter, active_adapter, adapter_parts
from .sites import matches, widths

_PAIRED: ContextVar[bool] = ContextVar("paired", default=False)


@contextmanager
def paired_views() -> Iterator[None]:
    """Inside, samples 2i and 2i + 1 of a batch are the left and the right view of one scene."""
    token = _PAIRED.set(True)
    try:
        yield
    finally:
        _PAIRED.reset(token)


@dataclass(frozen=True, kw_only=True)
class ASteISRSpatialConfig(AdapterConfig):
    """Config of `SpatialAdapter` alone."""

    method: ClassVar[str] = "asteisr_spatial"

    ratio: float = 0.25
    """Width of the bottleneck over the channels, rounded down."""

    def __post_init__(self):
        super().__post_init__()
        self.require_above_zero("ratio")


@dataclass(frozen=True, kw_only=True)
class ASteISRStereoConfig(AdapterConfig):
    """Config of `StereoAdapter` alone."""

    method: ClassVar[str] = "asteisr_stereo"

    temperature: float = 1.5
    """Factor of the logits; 1 is NAFSSR's attention, larger is sharper."""
    start: str = "random"
    """Of the projections that are compared: "random" as the authors', "identity" (ours) compares
    normalised features as they are, which finds many matches before any training."""

    def __post_init__(self):
        super().__post_init__()
        self.require_above_zero("temperature")
        self.require_one_of("start", "random", "identity")


@dataclass(frozen=True, kw_only=True)
class ASteISRConfig(ASteISRSpatialConfig, ASteISRStereoConfig):
    """Config of both adapters: `ASteISR`."""

    method: ClassVar[str] = "asteisr"

    stereo_modules: str | tuple[str, ...] | None = None
    """Those of `target_modules` that get the stereo adapter, written like them; the others get the
    spatial one. None takes the backbone's default."""


class SpatialAdapter(Bottleneck):
    """out + W_2 gelu(W_1 out + b_1) + b_2 for each pixel, of width D -> ratio D -> D.

    W_1 is normal of std 0.02 cut at two units; W_2 and both biases are zero.
    """

    @classmethod
    def for_layer(cls, layer: nn.Module, config: ASteISRSpatialConfig) -> SpatialAdapter:
        """Fits Linear, Conv2d and the sites of a backbone."""
        site = widths(layer)
        dim = site.out_features
        adapter = cls(
            dim,
            dim,
            max(1, int(dim * config.ratio)),
            form="sequential",
            activation="gelu",
            scale=1.0,
            channels_last=site.channels_last,
        )
        nn.init.trunc_normal_(adapter.down.weight, std=0.02)
        return adapter


class StereoAdapter(Adapter):
    """Attention along the rows (epipolar lines) of two views, from each to the other.

    With Q = W_1 LN(x) and V = W_2 x, for each view with its own weights, and rows of W pixels:

        left  + beta  * softmax(temperature / sqrt(C) Q_l Q_r^T) V_r
        right + gamma * softmax(temperature / sqrt(C) Q_r Q_l^T) V_l

    beta and gamma, one factor a channel, are zero at the start. The batch must be one of pairs, as
    `ir_peft.Stereo` calls the backbone; where it is not said to be, that is an error, since an even
    batch of single images looks alike.

    Args:
        channels: C.
        temperature: factor of the logits.
        channels_last: (2B, H, W, C) if true, (2B, C, H, W) if not.
        start: of W_1, "random" or "identity".
    """

    def __init__(
        self, channels: int, temperature: float, *, channels_last: bool, start: str = "random"
    ):
        super().__init__()
        self.channels_last = channels_last
        self.scale = temperature * channels**-0.5
        self.norm_l = nn.LayerNorm(channels, eps=1e-6)
        self.norm_r = nn.LayerNorm(channels, eps=1e-6)
        self.l_proj1 = nn.Linear(channels, channels)
        self.r_proj1 = nn.Linear(channels, channels)
        self.l_proj2 = nn.Linear(channels, channels)
        self.r_proj2 = nn.Linear(channels, channels)
        self.beta = nn.Parameter(torch.zeros(channels))
        self.gamma = nn.Parameter(torch.zeros(channels))
        if start == "identity":
            for projection in (self.l_proj1, self.r_proj1):
                nn.init.eye_(projection.weight)
                nn.init.zeros_(projection.bias)
        self.watch: Callable[[Tensor], None] | None = None
        """Receives the attention of each pass, (B, 2, H, W, W); see `attention_maps`."""

    @classmethod
    def for_layer(cls, layer: nn.Module, config: ASteISRStereoConfig) -> StereoAdapter:
        """Fits Linear and Conv2d on whole images and the sites of a backbone."""
        site = widths(layer)
        return cls(
            site.out_features,
            config.temperature,
            channels_last=site.channels_last,
            start=config.start,
        )

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Out (2B, H, W, C) or (2B, C, H, W), views inner -> the same shape.

        Memory grows with B H W, or with B H W^2 where attention has no fused kernel or is watched.

        Raises:
            ValueError: called without `ir_peft.Stereo`, with an odd batch, or not with images.
        """
        if not _PAIRED.get():
            raise ValueError(
                "a stereo adapter needs both views of a scene: call "
                "ir_peft.Stereo(model) with (B, 2, 3, h, w) in place of the model itself"
            )
        if out.dim() != 4 or len(out) % 2:
            raise ValueError(
                "a stereo adapter reads pairs of images, 4 axes and an even batch, not "
                f"{tuple(out.shape)}"
            )
        y = out if self.channels_last else out.movedim(1, -1)
        left, right = y.unflatten(0, (-1, 2)).unbind(1)  # (B, H, W, C) each
        q_l, q_r = self.l_proj1(self.norm_l(left)), self.r_proj1(self.norm_r(right))
        v_l, v_r = self.l_proj2(left), self.r_proj2(right)
        if self.watch is None:
            r2l = F.scaled_dot_product_attention(q_l, q_r, v_r, scale=self.scale)  # H as heads
            l2r = F.scaled_dot_product_attention(q_r, q_l, v_l, scale=self.scale)
        else:
            logits = (q_l @ q_r.mT * self.scale).float()  # (B, H, W, W)
            weights = torch.stack([logits.softmax(-1), logits.mT.softmax(-1)], dim=1)
            self.watch(weights.detach())
            r2l, l2r = weights[:, 0].to(v_r) @ v_r, weights[:, 1].to(v_l) @ v_l
        change = torch.stack([self.beta * r2l, self.gamma * l2r], dim=1).flatten(0, 1)
        return out + (change if self.channels_last else change.movedim(-1, 1)).to(out.dtype)


class ASteISR(Adapter):
    """Both adapters: stereo ones at `stereo_modules`, spatial ones at the other targets."""

    @classmethod
    def for_layers(cls, layers: dict[str, nn.Module], config: ASteISRConfig) -> dict[str, Adapter]:
        """One adapter a layer.

        Raises:
            ValueError: no layer, or every layer, is one of `stereo_modules`.
            TypeError: a layer fits neither.
        """
        stereo = {name for name in layers if matches(name, config.stereo_modules or ())}
        if not 0 < len(stereo) < len(layers):
            other = "asteisr_stereo" if stereo else "asteisr_spatial"
            raise ValueError(
                f"stereo_modules={config.stereo_modules!r} are {len(stereo)} of {len(layers)} "
                f"layers, which leaves one kind of adapter only: set it, or use {other!r}"
            )
        built = {}
        for name, layer in layers.items():
            kind = StereoAdapter if name in stereo else SpatialAdapter
            built |= kind.for_layers({name: layer}, config)
        return built


@contextmanager
def attention_maps(model: nn.Module, rows: slice = slice(None)) -> Iterator[dict[str, Tensor]]:
    """Inside, each pass leaves the attention of the active stereo adapters in the dict it gives.

    Args:
        model: a model with stereo adapters; called as `ir_peft.Stereo(model)` inside.
        rows: of the features to keep; all of them take H W^2 values a view.

    Yields:
        Layer -> (B, 2, rows, W, W) in fp32, on the model's device: of the last pass, [b, 0, y, i]
        is how the left view's pixel i of row y attends to the right view's row, [b, 1, y, i] the
        reverse.

    Raises:
        ValueError: the active adapter has no stereo adapters.
    """
    name = active_adapter(model)
    parts = adapter_parts(model, name).adapters if name is not None else {}
    stereo = {key: part for key, part in parts.items() if isinstance(part, StereoAdapter)}
    if not stereo:
        raise ValueError(f"the active adapter, {name!r}, has no stereo adapters")
    maps: dict[str, Tensor] = {}
    for key, adapter in stereo.items():
        adapter.watch = lambda weights, key=key: maps.update({key: weights[:, :, rows].clone()})
    try:
        yield maps
    finally:
        for adapter in stereo.values():
            adapter.watch = None
