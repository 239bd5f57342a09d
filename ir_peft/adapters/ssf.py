"""SSF: Scaling & Shifting Your Features (Lian et al., NeurIPS 2022, arXiv 2210.08823)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .config import AdapterConfig
from .core import Adapter
from .sites import channels


@dataclass(frozen=True, kw_only=True)
class SSFConfig(AdapterConfig):
    """Config of `SSF`, after every normalisation and linear layer of the transformer."""

    method: ClassVar[str] = "ssf"

    init_std: float = 0.0
    """Standard deviation of the noise on both factors at the start. 0 starts at the frozen model;
    the authors' code takes 0.02, which starts near it."""

    def __post_init__(self):
        super().__post_init__()
        if not (isinstance(self.init_std, int | float) and 0 <= self.init_std < float("inf")):
            raise ValueError(f"init_std={self.init_std!r} must be a number of at least 0")


class SSF(Adapter):
    """gamma * out + beta for each channel (Eq. 2), gamma = 1 and beta = 0 at the start."""

    def __init__(self, features: int, channel_axis: int, init_std: float):
        super().__init__()
        self.channel_axis = channel_axis
        self.scale = nn.Parameter(1 + init_std * torch.randn(features))
        self.shift = nn.Parameter(init_std * torch.randn(features))

    @classmethod
    def for_layer(cls, layer: nn.Module, config: SSFConfig) -> SSF:
        """Fits Linear, Conv2d, LayerNorm over the last axis and BatchNorm2d."""
        return cls(*channels(layer), config.init_std)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Any shape with the channels on their axis -> the same shape."""
        shape = [1] * out.dim()
        shape[self.channel_axis] = -1
        return (out * self.scale.view(shape) + self.shift.view(shape)).to(out.dtype)

    def merge(self, layer: nn.Module) -> dict[str, Tensor]:
        """The weight gamma W and the bias gamma b + beta; a layer without a bias gets one."""
        gamma = self.scale.view(-1, *[1] * (layer.weight.dim() - 1))  # (out, 1, ...)
        bias = self.shift if layer.bias is None else self.scale * layer.bias + self.shift
        return {"weight": gamma * layer.weight, "bias": bias}
