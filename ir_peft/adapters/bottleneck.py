"""Bottleneck adapters.

Parameter-Efficient Transfer Learning for NLP (Houlsby et al., ICML 2019, arXiv 1902.00751) and
AdaptFormer (Chen et al., NeurIPS 2022, arXiv 2205.13535).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from .config import AdapterConfig
from .core import Adapter
from .sites import widths


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig(AdapterConfig):
    """What the configs of `Bottleneck` share; use `HoulsbyConfig` or `AdaptFormerConfig`."""

    bottleneck: int = 12
    """Width between the two projections."""
    form: str = "sequential"
    """"sequential" reads the layer's output, "parallel" its input; both add to the output."""
    activation: str = "gelu"
    """"gelu" or "relu"."""
    scale: float = 1.0
    """Fixed factor of what is added."""

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("bottleneck")
        self.require_one_of("form", "sequential", "parallel")
        self.require_one_of("activation", "gelu", "relu")


@dataclass(frozen=True, kw_only=True)
class HoulsbyConfig(BottleneckConfig):
    """Houlsby's "Adapter": after attention and after the FFN, inside the residual branch."""

    method: ClassVar[str] = "houlsby"


@dataclass(frozen=True, kw_only=True)
class AdaptFormerConfig(BottleneckConfig):
    """AdaptFormer's AdaptMLP without its LayerNorm: beside the FFN, on the FFN's own input."""

    method: ClassVar[str] = "adaptformer"

    bottleneck: int = 24
    form: str = "parallel"
    activation: str = "relu"
    scale: float = 0.1


class Beside(Adapter):
    """out + A(z), z the layer's input or its output, A a function of channels-last images.

    Args:
        form: "parallel" (z = x) or "sequential" (z = out).
        channels_last: (B, ..., C) if true, (B, C, H, W) if not.
    """

    def __init__(self, form: str, channels_last: bool):
        super().__init__()
        self.form = form
        self.channels_last = channels_last

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """X and out (B, ..., C) or (B, C, H, W) -> the shape of `out`."""
        z = x if self.form == "parallel" else out
        if not self.channels_last:
            z = z.movedim(1, -1)  # (B, H, W, C)
        z = self.change(z)
        if not self.channels_last:
            z = z.movedim(-1, 1)
        return out + z.to(out.dtype)

    def change(self, z: Tensor) -> Tensor:
        """A: (B, ..., in_features) -> (B, ..., out_features)."""
        raise NotImplementedError


class Bottleneck(Beside):
    """out + scale * (W_up f(W_down z + b_down) + b_up), z the layer's output or its input.

    W_down is Kaiming-uniform, W_up and both biases are zero.

    Args:
        in_features: channels of z.
        out_features: channels of the layer's output.
        bottleneck: width of the projection.
        form: "sequential" (z = out) or "parallel" (z = x).
        activation: "gelu" or "relu".
        scale: fixed factor.
        channels_last: (B, ..., C) if true, (B, C, H, W) if not.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bottleneck: int,
        *,
        form: str,
        activation: str,
        scale: float,
        channels_last: bool,
    ):
        super().__init__(form, channels_last)
        self.activation = {"gelu": F.gelu, "relu": F.relu}[activation]
        self.scale = scale
        self.down = nn.Linear(in_features, bottleneck)
        self.up = nn.Linear(bottleneck, out_features)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    @classmethod
    def for_layer(cls, layer: nn.Module, config: BottleneckConfig) -> Bottleneck:
        """Fits Linear, Conv2d and the sites of a backbone."""
        site = widths(layer, keeps_size=config.form == "parallel")
        return cls(
            site.in_features if config.form == "parallel" else site.out_features,
            site.out_features,
            config.bottleneck,
            form=config.form,
            activation=config.activation,
            scale=config.scale,
            channels_last=site.channels_last,
        )

    def change(self, z: Tensor) -> Tensor:
        """(B, ..., in_features) -> (B, ..., out_features)."""
        return self.up(self.activation(self.down(z))) * self.scale
