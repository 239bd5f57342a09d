"""BitFit: training only the biases (Ben Zaken et al., ACL 2022, arXiv 2106.10199)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .config import AdapterConfig
from .core import Adapter
from .sites import channels


@dataclass(frozen=True, kw_only=True)
class BitFitConfig(AdapterConfig):
    """Config of `BitFit`; `target_modules` must be layers that have a bias."""

    method: ClassVar[str] = "bitfit"


class BitFit(Adapter):
    """out + b: the change of the layer's bias, zero at the start."""

    def __init__(self, features: int, channel_axis: int):
        super().__init__()
        self.channel_axis = channel_axis
        self.bias = nn.Parameter(torch.zeros(features))

    @classmethod
    def for_layer(cls, layer: nn.Module, config: BitFitConfig) -> BitFit:
        """Fits Linear, Conv2d, LayerNorm over the last axis and BatchNorm, each with a bias."""
        features, axis = channels(layer)
        if layer.bias is None:
            raise TypeError(f"BitFit needs a layer with a bias for each channel, not {layer}")
        return cls(features, axis)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Any shape with the channels on their axis -> the same shape."""
        shape = [1] * out.dim()
        shape[self.channel_axis] = -1
        return out + self.bias.view(shape).to(out.dtype)

    def merge(self, layer: nn.Module) -> dict[str, Tensor]:
        """The layer's bias plus b."""
        return {"bias": layer.bias + self.bias}
