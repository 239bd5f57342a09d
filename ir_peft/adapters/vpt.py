"""VPT: Visual Prompt Tuning (Jia et al., ECCV 2022, arXiv 2203.12119), its deep form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .config import AdapterConfig
from .core import Adapter


@dataclass(frozen=True, kw_only=True)
class VPTConfig(AdapterConfig):
    """Config of `VPT`, around whole layers of a transformer with global attention."""

    method: ClassVar[str] = "vpt"

    prompts: int = 64
    """Tokens added in front of those that enter each layer, and removed behind it."""
    init_std: float = 0.02
    """Standard deviation of the prompts at the start."""

    def __post_init__(self):
        super().__post_init__()
        self.require_positive("prompts")
        if not (isinstance(self.init_std, int | float) and 0 <= self.init_std < float("inf")):
            raise ValueError(f"init_std={self.init_std!r} must be a number of at least 0")


class VPT(Adapter):
    """[_, x'] = L([P, x]) (Eq. 5): the layer's tokens attend to prompts P as to each other.

    The one adapter that is not the identity at the start, with any prompts: they take their share
    of every softmax. Codes of the tokens, such as a decoder's query, are zero at the prompts, and a
    memory has none. Like the paper's, and unlike keys and values alone, prompts go through the
    whole layer, which costs as much as so many more pixels.

    Args:
        prompts: number of tokens n.
        dim: channels C of the layer.
        init_std: standard deviation of the prompts.
    """

    def __init__(self, prompts: int, dim: int, init_std: float):
        super().__init__()
        self.prompts = nn.Parameter(init_std * torch.randn(prompts, dim))

    @classmethod
    def for_layer(cls, layer: nn.Module, config: VPTConfig) -> VPT:
        """Fits layers with the attribute `any_tokens`, as IPT's."""
        if not getattr(layer, "any_tokens", False):
            raise TypeError(
                "VPT adds tokens, so it needs a layer that maps any number of them with attention "
                "between all (attribute any_tokens), such as body.encoder.layers.0 of an IPT; "
                f"layers with windows, convolutions or attention over channels, and parts of "
                f"layers, have no place for them: {type(layer).__name__}"
            )
        return cls(config.prompts, layer.in_features, config.init_std)

    def run(self, layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """X (B, H, W, C), codes of its tokens (H, W, C), all else as it is -> (B, H, W, C)."""
        B, n = len(x), len(self.prompts)
        prompts = self.prompts.to(x.dtype).expand(B, -1, -1)
        tokens = torch.cat([prompts, x.flatten(1, 2)], dim=1)  # (B, n + N, C)

        def extended(other: Any) -> Any:
            if not (isinstance(other, Tensor) and other.shape == x.shape[1:]):
                return other
            zeros = other.new_zeros(n, other.shape[-1])
            return torch.cat([zeros, other.flatten(0, 1)])[None]  # (1, n + N, C)

        args = [extended(other) for other in args]
        kwargs = {key: extended(other) for key, other in kwargs.items()}
        return self(x, layer(tokens[:, None], *args, **kwargs))

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """X (B, H, W, C), out (B, 1, n + N, C) -> (B, H, W, C), without the prompts."""
        return out[:, 0, len(self.prompts) :].reshape(x.shape)
