"""Linear filters on image planes that the degradations are made of: resizing and blur kernels."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import torch
import torch.nn.functional as F

__all__ = [
    "bicubic_resize",
    "bicubic_weights",
    "convolve",
    "gaussian_kernel",
    "path_kernel",
    "streak_kernel",
]


def bicubic_resize(x: torch.Tensor, scale: float | Fraction) -> torch.Tensor:
    """Resize as MATLAB's ``imresize(x, scale, 'bicubic')`` does, antialiasing included.

    Keys' kernel with a = -0.5, widened by 1 / scale when shrinking; the border is mirrored with
    its last pixel repeated; rows first, then columns. A uint8 image is rounded and clipped after
    each of the two passes, as in MATLAB; a floating-point one may overshoot its range.

    Args:
        x: (..., H, W), floating point or uint8.
        scale: Size factor, for example Fraction(1, 3), 0.25 or 4.

    Returns:
        (..., ceil(scale H), ceil(scale W)) of the same dtype and device.

    Raises:
        TypeError: x is neither floating point nor uint8.
        ValueError: scale is not positive, or x has no pixels.
    """
    if not (x.is_floating_point() or x.dtype == torch.uint8):
        raise TypeError(f"expected floating point or uint8, got {x.dtype}")
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"expected an image (..., H, W) with pixels, got {tuple(x.shape)}")
    H, W = x.shape[-2:]
    work = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    work = torch.float64 if x.dtype == torch.uint8 else work
    rows = bicubic_weights(H, scale).to(x.device, work)
    columns = bicubic_weights(W, scale).to(x.device, work)
    y = x.to(work).reshape(-1, H, W)
    # One image plane a product keeps the result independent of the batch.
    y = torch.stack([_like(x, _like(x, rows @ plane) @ columns.mT) for plane in y])
    return y.to(x.dtype).reshape(*x.shape[:-2], *y.shape[-2:])


@lru_cache(maxsize=256)
def bicubic_weights(length: int, scale: float | Fraction) -> torch.Tensor:
    """Matrix (ceil(scale length), length) in float64 that resizes one axis; its rows sum to 1."""
    out = math.ceil(scale * length)
    shrink = min(float(scale), 1.0)
    # Output pixel i has its centre at input coordinate u, both counted from 0.
    u = (torch.arange(out, dtype=torch.float64) + 0.5) / float(scale) - 0.5
    first = torch.floor(u - 2 / shrink).long()
    taps = first[:, None] + torch.arange(math.ceil(4 / shrink) + 2)  # (out, taps)
    weights = _keys_cubic(shrink * (u[:, None] - taps))
    weights /= weights.sum(dim=1, keepdim=True)
    mirrored = taps.remainder(2 * length)
    mirrored = torch.where(mirrored < length, mirrored, 2 * length - 1 - mirrored)
    return torch.zeros(out, length, dtype=torch.float64).scatter_add_(1, mirrored, weights)


def _keys_cubic(t: torch.Tensor) -> torch.Tensor:
    """Cubic convolution kernel, a = -0.5 (Keys 1981, Eq. 15)."""
    t = t.abs()
    inner = 1.5 * t**3 - 2.5 * t**2 + 1
    outer = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return torch.where(t <= 1, inner, torch.where(t <= 2, outer, 0.0))


def _like(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Round and clip y to 8 bits where x has 8 bits; halves round up, as in MATLAB."""
    return (y + 0.5).floor().clamp(0, 255) if x.dtype == torch.uint8 else y


def convolve(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Convolve (C, H, W) with one odd square kernel, same size, last pixel continued.

    Large kernels go through the Fourier domain, where their size costs nothing.
    """
    r = kernel.shape[-1] // 2
    padded = F.pad(x.unsqueeze(0), (r, r, r, r), mode="replicate")[0]
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel.to(padded), s=size)
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * r :, 2 * r :]


def gaussian_kernel(size: int, sigma: float) -> torch.Tensor:
    """Isotropic Gaussian: (size, size) float64, sum 1; size is odd."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    taps = torch.exp(-(offsets**2) / (2 * sigma**2))
    taps /= taps.sum()
    return taps[:, None] * taps[None, :]


def path_kernel(size: int, length: float, angle: float, turn: float) -> torch.Tensor:
    """Blur kernel of a path: (size, size) float64, non-negative, sum 1; size is odd.

    The path is length pixels long, heads in the mean direction angle (radians, x to the right, y
    down) and turns evenly by turn in all. It is sampled evenly, splatted bilinearly and centred
    at its centroid.
    """
    steps = torch.linspace(0, 1, 8 * size, dtype=torch.float64)
    heading = angle + turn * (steps - 0.5)
    points = torch.stack([heading.sin(), heading.cos()]).cumsum(1) * length / len(steps)
    points += size // 2 - points.mean(1, keepdim=True)  # (2, n): y and x
    corner = points.floor()
    fraction = points - corner
    kernel = torch.zeros(size, size, dtype=torch.float64)
    for dy in (0, 1):
        for dx in (0, 1):
            in_y = fraction[0] if dy else 1 - fraction[0]
            in_x = fraction[1] if dx else 1 - fraction[1]
            y, x = (corner + torch.tensor([[dy], [dx]])).long().clamp(0, size - 1)
            kernel.index_put_((y, x), in_y * in_x, accumulate=True)
    return kernel / kernel.sum()


def streak_kernel(length: float, angle: float, width: float = 0.6) -> torch.Tensor:
    """Kernel of one rain streak: peak 1, Gaussian across (sigma = width), soft ends."""
    r = math.ceil(length / 2) + 3
    y, x = torch.meshgrid(*2 * [torch.arange(-r, r + 1, dtype=torch.float64)], indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    ends = (length / 2 + 0.5 - along.abs()).clamp(0, 1)
    return ends * torch.exp(-(across**2) / (2 * width**2))
