"""FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer.

Jie & Deng, AAAI 2023, arXiv 2212.03145; the Tucker form, FacT-TK.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .config import AdapterConfig
from .core import Adapter


@dataclass(frozen=True, kw_only=True)
class FacTConfig(AdapterConfig):
    """Config of `FacT`."""

    method: ClassVar[str] = "fact"

    r: int = 16
    """Rank of all three modes of the core."""
    scale: float = 1.0
    """Fixed factor of the update."""
    dropout: float = 0.1
    """Rate between the core and V while the adapter trains, as in the authors' code."""

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("r")
        if not (isinstance(self.dropout, int | float) and 0 <= self.dropout < 1):
            raise ValueError(f"dropout={self.dropout!r} must be a number from 0 to below 1")


class Factors(nn.Module):
    """What all layers share: U (d, r), V (r, d), zero at the start, and the core C (r, r, r)."""

    def __init__(self, d: int, r: int):
        super().__init__()
        self.U = nn.Parameter(torch.empty(d, r))
        self.V = nn.Parameter(torch.zeros(r, d))
        self.C = nn.Parameter(torch.empty(r, r, r))
        nn.init.kaiming_uniform_(self.U.mT, a=math.sqrt(5))  # The bound of a Linear d -> r.
        nn.init.xavier_uniform_(self.C)


class FacT(Adapter):
    """h = W_0 x + s V^T (C x_3 p)^T U^T x: one update tensor for all layers (Eq. 5, Tucker).

    Every d x d block of a weight is one slice of the tensor, with a column p of P (r) of its own: a
    layer of a * d inputs and b * d outputs has a * b of them. The first layer of the adapter holds
    the shared factors.

    Args:
        factors: shared by all layers of the adapter.
        P: (r, a, b), the columns of this layer.
        scale: s.
        dropout: rate.
        holder: registers the factors here; the other layers only refer to them.
    """

    def __init__(self, factors: Factors, P: Tensor, scale: float, dropout: float, holder: bool):
        super().__init__()
        self.P = nn.Parameter(P)
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self._shared = (factors,)  # In a tuple, which hides a module from nn.Module.
        if holder:
            self.factors = factors

    @classmethod
    def for_layers(cls, layers: dict[str, nn.Module], config: FacTConfig) -> dict[str, FacT]:
        """Fits nn.Linear layers whose widths are all multiples of the smallest, d."""
        for name, layer in layers.items():
            if not isinstance(layer, nn.Linear):
                raise TypeError(f"fact cannot adapt {name!r}: FacT needs a Linear, not {layer}")
        d = min(min(layer.in_features, layer.out_features) for layer in layers.values())
        blocks = {}
        for name, layer in layers.items():
            if layer.in_features % d or layer.out_features % d:
                raise TypeError(
                    f"fact cannot adapt {name!r}: its widths {layer.in_features} and "
                    f"{layer.out_features} are no multiples of the smallest of all layers, {d}"
                )
            blocks[name] = (layer.in_features // d, layer.out_features // d)
        factors = Factors(d, config.r)
        P = torch.empty(config.r, sum(a * b for a, b in blocks.values()))
        nn.init.xavier_uniform_(P)
        columns = iter(P.split([a * b for a, b in blocks.values()], dim=1))
        return {
            name: cls(
                factors,
                next(columns).unflatten(1, size).clone(),  # (r, a, b)
                config.scale,
                config.dropout,
                holder=i == 0,
            )
            for i, (name, size) in enumerate(blocks.items())
        }

    def core(self) -> Tensor:
        """C x_3 P for the blocks of this layer: (a, r, b, r)."""
        return torch.einsum("rst,tab->arbs", self._shared[0].C, self.P)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """X (..., a * d), out (..., b * d) -> the shape of `out`."""
        U, V = self._shared[0].U, self._shared[0].V
        a, r, b, _ = (core := self.core()).shape
        y = x.unflatten(-1, (a, -1)) @ U  # (..., a, r)
        y = y.flatten(-2) @ core.reshape(a * r, b * r)  # (..., b * r)
        y = self.dropout(y).unflatten(-1, (b, r)) @ V  # (..., b, d)
        return out + (self.scale * y.flatten(-2)).to(out.dtype)

    def merge(self, layer: nn.Module) -> dict[str, Tensor]:
        """W_0 plus the layer's slices of the update tensor."""
        U, V = self._shared[0].U, self._shared[0].V
        delta = torch.einsum("ir,arbs,so->boai", U, self.core(), V)  # (b, d, a, d)
        return {"weight": layer.weight + self.scale * delta.reshape(layer.weight.shape)}
