"""Synthetic weather and light: rain streaks, haze and under-exposure of clean photographs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from ir_peft.data.core import (
    Degradation,
    Quantize,
    Range,
    check_quantize,
    check_range,
    draw,
    to_8_bit,
    uniform,
)
from ir_peft.data.filters import convolve, streak_kernel

__all__ = ["Haze", "LowLight", "Rain"]


@dataclass(frozen=True)
class _Streaks:
    """One level of rain: how many directions, how dense, how long (pixels), how bright."""

    layers: int
    density: float
    length: Range
    brightness: Range


_RAIN = {
    "light": _Streaks(layers=1, density=0.0012, length=(10, 24), brightness=(0.3, 0.8)),
    "heavy": _Streaks(layers=4, density=0.002, length=(12, 36), brightness=(0.5, 1.0)),
}


@dataclass(frozen=True)
class Rain(Degradation):
    """Synthetic rain, ``x + S (1 - x)``: anti-aliased bright streaks S over the clean image.

    "light" has one direction; "heavy" has four, denser and longer, after the one-type and
    five-type streaks of Rain100L and Rain100H (Yang et al. 2017). It is not their images: the input
    PSNR is about 27 and 14 dB on photographs, but the streaks are this module's own.
    """

    level: Literal["light", "heavy"] = "light"
    """Density, number of directions, length and brightness of the streaks."""
    quantize: Quantize = None
    """What is left: floats, rounded or truncated 8 bits."""

    def __post_init__(self):
        if self.level not in _RAIN:
            raise ValueError(f"unknown rain level {self.level!r}; there are {sorted(_RAIN)}")
        check_quantize(self.quantize)

    def _apply(self, x, generator):
        rain = _RAIN[self.level]
        H, W = x.shape[-2:]
        streaks = torch.zeros(1, H, W, dtype=x.dtype, device=x.device)
        for _ in range(rain.layers):
            length = draw(rain.length, generator)
            kernel = streak_kernel(length, math.pi / 2 + uniform(-0.6, 0.6, generator))
            # Drops also fall outside the frame, as far as their streaks reach into it.
            r = kernel.shape[-1] // 2
            size = (2, H + 2 * r, W + 2 * r)
            where, light = torch.rand(size, generator=generator, device=generator.device).to(x)
            low, high = rain.brightness
            drops = (where < rain.density) * (low + (high - low) * light)
            layer = convolve(drops.unsqueeze(0), kernel)[:, r : r + H, r : r + W].clamp(0, 1)
            streaks = 1 - (1 - streaks) * (1 - layer)
        return to_8_bit(x + streaks * (1 - x), self.quantize)


@dataclass(frozen=True)
class Haze(Degradation):
    """Scattering model, ``x t + A (1 - t)`` with ``t = exp(-beta depth)`` (Koschmieder).

    The depth in [0, 1] is made up: farther towards the top, plus a smooth random field.
    """

    beta: float | Range = (0.6, 1.8)
    """Scattering coefficient; a pair draws it uniformly for each image."""
    airlight: float | Range = (0.7, 1.0)
    """Grey value A of the haze; a pair draws it uniformly for each image."""
    quantize: Quantize = None
    """What is left: floats, rounded or truncated 8 bits."""

    def __post_init__(self):
        check_range("beta", self.beta, low=0)
        check_range("airlight", self.airlight, low=0)
        check_quantize(self.quantize)

    def _apply(self, x, generator):
        beta, airlight = draw(self.beta, generator), draw(self.airlight, generator)
        H, W = x.shape[-2:]
        coarse = torch.rand(1, 1, 5, 5, generator=generator, device=generator.device).to(x)
        field = F.interpolate(coarse, size=(H, W), mode="bilinear", align_corners=True)[0]
        rise = torch.linspace(1, 0, H, dtype=x.dtype, device=x.device).view(1, H, 1)
        t = torch.exp(-beta * (0.2 + 0.5 * rise + 0.3 * field))
        return to_8_bit(x * t + airlight * (1 - t), self.quantize)


@dataclass(frozen=True)
class LowLight(Degradation):
    """Under-exposure, ``beta (alpha x)^gamma`` (Lv et al. 2018, MBLLEN), with sensor noise.

    The noise has variance ``(shot^2 dark + read^2)``, so it grows with the light that is left.
    """

    gamma: float | Range = (1.5, 3.5)
    """Exponent; a pair draws it uniformly for each image, as for the next two."""
    alpha: float | Range = (0.9, 1.0)
    """Gain before the exponent."""
    beta: float | Range = (0.5, 1.0)
    """Gain after the exponent."""
    shot: float = 0.02
    """Standard deviation of the signal-dependent noise at full light, on the [0, 1] scale."""
    read: float = 0.005
    """Standard deviation of the noise in the dark, on the [0, 1] scale."""
    quantize: Quantize = None
    """What is left: floats, rounded or truncated 8 bits."""

    def __post_init__(self):
        for name in ("gamma", "alpha", "beta", "shot", "read"):
            check_range(name, getattr(self, name), low=0)
        check_quantize(self.quantize)

    def _apply(self, x, generator):
        gamma, alpha, beta = (draw(v, generator) for v in (self.gamma, self.alpha, self.beta))
        noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        dark = beta * (alpha * x.clamp(0, 1)) ** gamma
        noisy = dark + (self.shot**2 * dark + self.read**2).sqrt() * noise
        return to_8_bit(noisy.clamp(0, 1), self.quantize)
