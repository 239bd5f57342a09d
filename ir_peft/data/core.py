"""What degradations are built on: the base class, their combinations, the arguments they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch

__all__ = [
    "Compose",
    "Degradation",
    "OneOf",
    "Quantize",
    "RandomOrder",
    "Range",
    "check_kernel_size",
    "check_quantize",
    "check_range",
    "draw",
    "randint",
    "to_8_bit",
    "uniform",
]

Quantize = Literal["round", "truncate"] | None
Range = tuple[float, float]


class Degradation:
    """Base of all degradations: checks, batch loop and dtype; a subclass writes ``_apply``."""

    scale: int | Fraction = 1
    """How much smaller the output is."""
    random: ClassVar[bool] = True
    """Whether a generator is required."""

    def __call__(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Degrade an image or a batch.

        Args:
            x: (3, H, W) or (B, 3, H, W), floating point in [0, 1].
            generator: Source of all randomness; its device may differ from that of x. May be
                omitted where nothing is random.

        Returns:
            The degraded images, same number of axes, same dtype and device.

        Raises:
            TypeError: x is not floating point, or a random degradation has no generator.
            ValueError: x is not RGB or is empty.
        """
        if not x.is_floating_point():
            raise TypeError(f"expected a floating-point image in [0, 1], got {x.dtype}")
        if x.ndim not in (3, 4) or x.shape[-3] != 3 or x.numel() == 0:
            raise ValueError(f"expected RGB, (3, H, W) or (B, 3, H, W), got {tuple(x.shape)}")
        if self.random and generator is None:
            raise TypeError(f"{self!r} is random: pass a torch.Generator")
        work = x if x.dtype == torch.float64 else x.float()
        if x.ndim == 3:
            return self._apply(work, generator).to(x.dtype)
        return torch.stack([self._apply(image, generator) for image in work]).to(x.dtype)

    def _apply(self, x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Degrade one float32 or float64 image (3, H, W)."""
        raise NotImplementedError


@dataclass(frozen=True, init=False)
class Compose(Degradation):
    """Several degradations, one after the other: ``Compose(Bicubic(4), GaussianNoise(30))``."""

    steps: tuple[Degradation, ...]
    """Applied from left to right."""

    def __init__(self, *steps: Degradation):
        wrong = [step for step in steps if not isinstance(step, Degradation)]
        if wrong or not steps:
            raise TypeError(f"Compose takes one or more degradations, got {wrong or 'none'}")
        object.__setattr__(self, "steps", steps)

    @property
    def scale(self) -> int | Fraction:
        """Product of the steps' scales."""
        return math.prod(step.scale for step in self.steps)

    @property
    def random(self) -> bool:
        """Whether any step needs a generator."""
        return any(step.random for step in self.steps)

    def _apply(self, x, generator):
        for step in self.steps:
            x = step(x, generator)
        return x


@dataclass(frozen=True, init=False)
class OneOf(Degradation):
    """One of several degradations of the same scale, each image drawing its own uniformly."""

    choices: tuple[Degradation, ...]
    """What is drawn from."""

    def __init__(self, *choices: Degradation):
        _same_scale("OneOf", choices)
        object.__setattr__(self, "choices", choices)

    @property
    def scale(self) -> int | Fraction:
        """That of every choice."""
        return self.choices[0].scale

    def _apply(self, x, generator):
        return self.choices[randint(len(self.choices), generator)](x, generator)


@dataclass(frozen=True, init=False)
class RandomOrder(Degradation):
    """All of several degradations that keep the size, each image in an order of its own."""

    steps: tuple[Degradation, ...]
    """What is applied."""

    def __init__(self, *steps: Degradation):
        _same_scale("RandomOrder", steps)
        if steps[0].scale != 1:
            raise ValueError(f"RandomOrder takes degradations that keep the size, got {steps[0]!r}")
        object.__setattr__(self, "steps", steps)

    def _apply(self, x, generator):
        for index in torch.randperm(
            len(self.steps), generator=generator, device=generator.device
        ).tolist():
            x = self.steps[index](x, generator)
        return x


def _same_scale(name: str, degradations: Sequence[Degradation]) -> None:
    wrong = [d for d in degradations if not isinstance(d, Degradation)]
    if wrong or not degradations:
        raise TypeError(f"{name} takes one or more degradations, got {wrong or 'none'}")
    scales = {d.scale for d in degradations}
    if len(scales) > 1:
        raise ValueError(f"{name} takes degradations of one scale, got {sorted(scales)}")


def randint(high: int, generator: torch.Generator) -> int:
    """Draw one integer from 0 to high - 1."""
    return int(torch.randint(high, (), generator=generator, device=generator.device))


def to_8_bit(x: torch.Tensor, quantize: Quantize) -> torch.Tensor:
    """Bring [0, 1] values to the grid k / 255; None leaves them alone."""
    if quantize is None:
        return x
    levels = x.clamp(0, 1) * 255
    return (levels.round() if quantize == "round" else levels.floor()) / 255


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One number drawn uniformly."""
    return low + (high - low) * torch.rand((), generator=generator, device=generator.device).item()


def draw(value: float | Range, generator: torch.Generator | None) -> float:
    """The value itself, or one drawn uniformly where it is a range."""
    return uniform(*value, generator) if isinstance(value, tuple) else value


def check_range(name: str, value: float | Sequence[float], low: float) -> None:
    """Raise ValueError unless value is a number >= low or an ordered pair of such numbers."""
    ends = value if isinstance(value, tuple) else (value, value)
    if len(ends) != 2 or not low <= ends[0] <= ends[1] < math.inf:
        raise ValueError(f"{name} must be a number >= {low} or a pair (low, high), got {value!r}")


def check_quantize(quantize: str | None) -> None:
    """Raise ValueError for a rounding that does not exist."""
    if quantize not in (None, "round", "truncate"):
        raise ValueError(f"quantize must be None, 'round' or 'truncate', got {quantize!r}")


def check_kernel_size(size: int) -> None:
    """Raise ValueError unless a kernel of that size has a centre pixel."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {size}")
