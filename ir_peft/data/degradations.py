"""Degradations as seeded objects: ``d(x, generator) -> y``.

x is an RGB image (3, H, W) or a batch (B, 3, H, W), floating point on the [0, 1] scale; y has the
dtype and device of x, values in [0, 1] unless the class says otherwise, and the size of x divided
by ``d.scale`` (rounded up). Values outside [0, 1] are not an error: what saves 8 bits clips them.

All randomness comes from the generator. A batch is degraded image by image in order, so it equals
the same images degraded one after the other with the same generator, bit for bit.

``quantize`` says what a step that stands for a file leaves behind: "round" is a saved image,
"truncate" is ``astype(uint8)``, which lowers the mean by half a grey level, None keeps floats.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image

from ir_peft.data.core import (
    Compose,
    Degradation,
    OneOf,
    Quantize,
    RandomOrder,
    Range,
    check_kernel_size,
    check_quantize,
    check_range,
    draw,
    to_8_bit,
    uniform,
)
from ir_peft.data.filters import bicubic_resize, convolve, gaussian_kernel, path_kernel
from ir_peft.data.weather import Haze, LowLight, Rain
from ir_peft.names import did_you_mean

__all__ = [
    "TASKS",
    "TEST_TASKS",
    "Bicubic",
    "Compose",
    "Degradation",
    "DownUp",
    "GaussianBlur",
    "GaussianNoise",
    "Haze",
    "JPEG",
    "LowLight",
    "MotionBlur",
    "OneOf",
    "Rain",
    "RandomOrder",
    "bicubic_resize",
    "task",
]


@dataclass(frozen=True)
class GaussianNoise(Degradation):
    """White Gaussian noise, ``clip(x + N(0, (sigma / 255)^2))``, independent in each channel."""

    sigma: float | Range
    """Standard deviation in grey levels of 255; a pair draws it uniformly for each image."""
    quantize: Quantize = None
    """What is left after the noise: floats, rounded or truncated 8 bits."""
    clip: bool = True
    """Whether the sum is clipped to [0, 1]; 8 bits always are."""

    def __post_init__(self):
        check_range("sigma", self.sigma, low=0)
        check_quantize(self.quantize)
        if self.quantize and not self.clip:
            raise ValueError("8-bit values are clipped: quantize needs clip=True")

    def _apply(self, x, generator):
        sigma = draw(self.sigma, generator)
        noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        if self.quantize is not None:
            # An 8-bit image arrives as k/255; rounding brings back k, which truncation would
            # otherwise lower to k - 1 where the product falls just below it.
            levels = x.double() * 255
            levels = torch.where((levels - levels.round()).abs() < 1e-4, levels.round(), levels)
            return to_8_bit((levels + sigma * noise.double()) / 255, self.quantize).to(x.dtype)
        y = x + sigma / 255 * noise
        return y.clamp(0, 1) if self.clip else y


@dataclass(frozen=True)
class JPEG(Degradation):
    """JPEG compression with 4:2:0 chroma: coded and decoded in memory. x is rounded to 8 bits."""

    quality: int
    """libjpeg quality, 1 to 100."""
    swap_channels: bool = False
    """Codes B, G, R as if it were R, G, B, as AdaptIR's release does; the result is RGB again."""

    random: ClassVar[bool] = False

    def __post_init__(self):
        if not (isinstance(self.quality, int) and 1 <= self.quality <= 100):
            raise ValueError(f"quality must be an integer from 1 to 100, got {self.quality!r}")

    def _apply(self, x, generator):
        pixels = (x.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()  # (H, W, 3)
        if self.swap_channels:
            pixels = pixels[..., ::-1]
        buffer = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.save(buffer, format="JPEG", quality=self.quality, subsampling="4:2:0")
        pixels = np.array(Image.open(buffer))
        if self.swap_channels:
            pixels = pixels[..., ::-1].copy()
        return torch.from_numpy(pixels).permute(2, 0, 1).to(x) / 255


@dataclass(frozen=True)
class Bicubic(Degradation):
    """MATLAB's bicubic ``imresize`` by 1 / scale: the field's low-resolution images."""

    scale: int | Fraction = 4
    """Down-sampling factor; below 1 enlarges, so Compose(Bicubic(4), Bicubic(Fraction(1, 4)))
    keeps the size."""
    quantize: Literal["round"] | None = "round"
    """"round" is a saved 8-bit file of an 8-bit image, as MATLAB makes it (rounded after each of
    the two passes); None keeps floats. Both stay in [0, 1]."""

    random: ClassVar[bool] = False

    def __post_init__(self):
        if not isinstance(self.scale, (int, Fraction)) or self.scale <= 0:
            raise ValueError(f"scale must be a positive int or Fraction, got {self.scale!r}")
        if self.quantize not in (None, "round"):
            raise ValueError(f"quantize must be None or 'round', got {self.quantize!r}")

    def _apply(self, x, generator):
        factor = 1 / Fraction(self.scale)
        if self.quantize is None:
            return bicubic_resize(x, factor).clamp(0, 1)
        return bicubic_resize((x.clamp(0, 1) * 255).round().byte(), factor).to(x) / 255


@dataclass(frozen=True)
class DownUp(Degradation):
    """A low-resolution image at its old size: saved by `Bicubic(s)`, enlarged by bicubic again."""

    scales: tuple[int, ...] = (4,)
    """Down-sampling factors; each image draws one."""
    quantize: Quantize = None
    """What is left: floats, rounded or truncated 8 bits."""

    def __post_init__(self):
        good = isinstance(self.scales, tuple) and self.scales
        if not good or not all(isinstance(s, int) and s > 1 for s in self.scales):
            raise ValueError(f"scales must be a tuple of integers above 1, got {self.scales!r}")
        check_quantize(self.quantize)

    @property
    def random(self) -> bool:
        """Only a choice of factors needs a generator."""
        return len(self.scales) > 1

    def _apply(self, x, generator):
        index = 0 if generator is None else int(uniform(0, len(self.scales), generator))
        s = self.scales[index]
        enlarged = bicubic_resize(Bicubic(s)(x), s)  # A side grows to the next multiple of s.
        cropped = enlarged[:, : x.shape[1], : x.shape[2]].clamp(0, 1)
        return to_8_bit(cropped, self.quantize)


@dataclass(frozen=True)
class GaussianBlur(Degradation):
    """Isotropic Gaussian blur; the border is continued by its last pixel."""

    sigma: float | Range = 2.0
    """Standard deviation in pixels; a pair draws it uniformly for each image."""
    kernel_size: int = 21
    """Odd width of the kernel in pixels."""
    quantize: Quantize = None
    """What is left: floats, rounded or truncated 8 bits."""

    def __post_init__(self):
        check_range("sigma", self.sigma, low=1e-3)
        check_kernel_size(self.kernel_size)
        check_quantize(self.quantize)

    @property
    def random(self) -> bool:
        """Only a range of widths needs a generator."""
        return isinstance(self.sigma, tuple)

    def _apply(self, x, generator):
        sigma = draw(self.sigma, generator)
        kernel = gaussian_kernel(self.kernel_size, sigma)
        return to_8_bit(convolve(x, kernel), self.quantize)


@dataclass(frozen=True)
class MotionBlur(Degradation):
    """Blur along a random path: a straight line, or an arc whose direction turns as it goes.

    The kernel is the path sampled evenly, splatted bilinearly, centred at its centroid.
    """

    length: float | Range = (8.0, 20.0)
    """Length of the path in pixels; a pair draws it uniformly for each image."""
    turn: float = 1.5
    """Largest turn of the direction over the whole path, in radians; 0 gives straight lines."""
    kernel_size: int = 21
    """Odd width of the kernel in pixels, at least the longest path + 1."""
    quantize: Quantize = None
    """What is left: floats, rounded or truncated 8 bits."""

    def __post_init__(self):
        check_range("length", self.length, low=0)
        check_kernel_size(self.kernel_size)
        check_quantize(self.quantize)
        longest = max(self.length) if isinstance(self.length, tuple) else self.length
        if self.kernel_size < longest + 1:
            raise ValueError(f"kernel_size {self.kernel_size} cannot hold a path of {longest} px")

    def kernel(self, generator: torch.Generator) -> torch.Tensor:
        """Draw one kernel: (kernel_size, kernel_size) float64, non-negative, sum 1."""
        length = draw(self.length, generator)
        angle = uniform(0, 2 * math.pi, generator)
        return path_kernel(
            self.kernel_size, length, angle, uniform(-self.turn, self.turn, generator)
        )

    def _apply(self, x, generator):
        return to_8_bit(convolve(x, self.kernel(generator)), self.quantize)


TASKS: dict[str, Degradation] = {
    # AdaptIR's hybrid tasks: a saved low-resolution file, damaged a second time.
    "lr4_noise30": Compose(Bicubic(4), GaussianNoise(30, quantize="truncate")),
    "lr4_jpeg30": Compose(Bicubic(4), JPEG(30)),
    "sr2": Bicubic(2),
    "sr3": Bicubic(3),
    "sr4": Bicubic(4),
    # Super-resolution in a network without an upsampler.
    "sr4_same_size": DownUp((4,), quantize="round"),
    "denoise15": GaussianNoise(15, quantize="truncate"),
    "denoise25": GaussianNoise(25, quantize="truncate"),
    "denoise30": GaussianNoise(30, quantize="truncate"),
    "denoise50": GaussianNoise(50, quantize="truncate"),
    "derain_light": Rain("light", quantize="round"),
    "derain_heavy": Rain("heavy", quantize="round"),
    "low_light": LowLight(quantize="round"),
    "haze": Haze(quantize="round"),
    "gaussian_deblur": GaussianBlur(2.0, quantize="round"),
    "motion_deblur": MotionBlur(quantize="round"),
    "jpeg": JPEG(30),
}
"""Degradation of each task's training images."""

TEST_TASKS: dict[str, Degradation] = TASKS | {
    # AdaptIR tests denoising on clipped floats although it trains on truncated 8 bits.
    f"denoise{sigma}": GaussianNoise(sigma)
    for sigma in (15, 25, 30, 50)
}
"""Degradation of each task's test images: as in training, but for denoising."""


def task(name: str, split: Literal["train", "test"] = "train") -> Degradation:
    """Look up a task's degradation.

    Args:
        name: A key of :data:`TASKS`.
        split: "train" or "test".

    Raises:
        KeyError: no task has that name.
        ValueError: split is neither.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if name not in TASKS:
        hint = did_you_mean(name, TASKS) or "."
        raise KeyError(f"no task {name!r}{hint} Known: {', '.join(TASKS)}")
    return (TASKS if split == "train" else TEST_TASKS)[name]
