"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., ICLR 2022, arXiv 2106.09685)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .config import AdapterConfig
from .core import Adapter
from .wrappers import unwrapped


@dataclass(frozen=True, kw_only=True)
class LoRAConfig(AdapterConfig):
    """Config of `LoRA`."""

    method: ClassVar[str] = "lora"

    r: int = 8
    """Rank of the update."""
    alpha: float = 8
    """The update is scaled by alpha / r."""

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("r")


class LoRA(Adapter):
    """h = W_0 x + (alpha / r) B A x (Eq. 3), A (r, in) random and B (out, r) zero at the start.

    On a convolution A has its kernel, stride and padding and r output channels, and B is 1x1.
    """

    run_is_forward = True

    def __init__(self, lora_A: nn.Module, lora_B: nn.Module, scaling: float):
        super().__init__()
        self.lora_A = lora_A
        self.lora_B = lora_B
        self.scaling = scaling
        nn.init.kaiming_uniform_(lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(lora_B.weight)

    @classmethod
    def for_layer(cls, layer: nn.Module, config: LoRAConfig) -> LoRA:
        """Fits nn.Linear and nn.Conv2d without groups."""
        r, scaling = config.r, config.alpha / config.r
        if isinstance(layer, nn.Linear):
            A = nn.Linear(layer.in_features, r, bias=False)
            B = nn.Linear(r, layer.out_features, bias=False)
            return cls(A, B, scaling)
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            shape = {
                key: getattr(layer, key)
                for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
            }
            A = nn.Conv2d(layer.in_channels, r, bias=False, **shape)
            B = nn.Conv2d(r, layer.out_channels, 1, bias=False)
            return cls(A, B, scaling)
        raise TypeError(f"LoRA needs a Linear, or a Conv2d without groups, not {layer}")

    def run(self, layer: nn.Module, x: Tensor, *args, **kwargs) -> Tensor:
        """The layer with the merged weights, where that costs less than adding up the outputs.

        So it is with more tokens than channels: W_0 + (alpha / r) B A is small beside several
        passes over all tokens. In half precision it would round the update away.
        """
        inner = unwrapped(layer)
        tokens = x.numel() // self.lora_A.weight.shape[1]
        half = inner.weight.dtype.itemsize < 4 or torch.is_autocast_enabled(x.device.type)
        if half or tokens < sum(inner.weight.shape[:2]):
            return super().run(layer, x, *args, **kwargs)
        return functional_call(inner, self.merge(inner), (x, *args), kwargs)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """X and out as the layer has them -> the shape of `out`."""
        return out + self.lora_B(self.lora_A(x) * self.scaling).to(out.dtype)

    def merge(self, layer: nn.Module) -> dict[str, Tensor]:
        """W_0 + (alpha / r) B A."""
        A, B = (
            self.lora_A.weight.flatten(1),
            self.lora_B.weight.flatten(1),
        )  # (r, in * k * k), (out, r)
        return {"weight": layer.weight + self.scaling * (B @ A).view_as(layer.weight)}
