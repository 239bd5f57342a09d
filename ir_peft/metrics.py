"""PSNR and SSIM, one value an image, with every convention in the arguments.

The field's numbers differ by tenths of a decibel with the channel, the border and the rounding, so
none of them is implied: the caller says them and they travel with the number.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

__all__ = ["psnr", "rgb_to_y", "ssim"]

Channel = Literal["rgb", "y"]
Window = Literal["gaussian11", "uniform7"]


def psnr(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    crop_border: int = 0,
    channel: Channel = "rgb",
    round_to_uint8: bool = True,
) -> torch.Tensor:
    """Peak signal-to-noise ratio, ``10 log10(255^2 / MSE)``, of each image.

    Args:
        x: Restored images, (B, 3, H, W) or (3, H, W), floating point on the [0, 1] scale.
        y: Reference images of the same shape.
        crop_border: Pixels removed from each of the four sides first; the field removes the scale
            in super-resolution and nothing elsewhere.
        channel: "rgb" averages the squared error over the three channels; "y" compares the luma
            of :func:`rgb_to_y`.
        round_to_uint8: Both images are clamped to [0, 1] and rounded to 8 bits first, as a saved
            file would be. False compares the values as they are, unclamped.

    Returns:
        float64 tensor (B,) in dB; inf where the two images are equal. B is 1 for (3, H, W).

    Raises:
        TypeError: x or y is not a floating-point tensor.
        ValueError: shapes that differ or are not RGB, NaN or infinity, nothing left of the image
            after the crop, an unknown channel.
    """
    x, y = _prepare(x, y, crop_border, channel, round_to_uint8)
    mse = (x - y).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / mse)


def ssim(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    crop_border: int = 0,
    channel: Channel = "rgb",
    window: Window = "gaussian11",
    round_to_uint8: bool = True,
) -> torch.Tensor:
    """Structural similarity of each image (Wang et al. 2004), K1 = 0.01, K2 = 0.03, L = 255.

    The mean is over the positions where the window lies wholly inside the image; "rgb" averages
    the three channels' values.

    Args:
        x: Restored images, as in :func:`psnr`.
        y: Reference images of the same shape.
        crop_border: As in :func:`psnr`.
        channel: As in :func:`psnr`.
        window: "gaussian11" is the paper's 11x11 Gaussian with sigma 1.5, which MATLAB-style
            evaluation uses; "uniform7" is the 7x7 box with sample covariance that
            ``skimage.metrics.structural_similarity`` uses unless told otherwise.
        round_to_uint8: As in :func:`psnr`.

    Returns:
        float64 tensor (B,), at most 1; 1 where the two images are equal.

    Raises:
        TypeError: x or y is not a floating-point tensor.
        ValueError: as in :func:`psnr`, an unknown window, or an image smaller than the window.
    """
    if window == "gaussian11":
        taps = [math.exp(-(k**2) / (2 * 1.5**2)) for k in range(-5, 6)]
        taps, covariance_norm = [t / sum(taps) for t in taps], 1.0
    elif window == "uniform7":
        taps, covariance_norm = [1 / 7] * 7, 49 / 48
    else:
        raise ValueError(f"unknown window {window!r}; use 'gaussian11' or 'uniform7'")
    x, y = _prepare(x, y, crop_border, channel, round_to_uint8)
    if min(x.shape[-2:]) < len(taps):
        raise ValueError(
            f"the image is {x.shape[-2]}x{x.shape[-1]} after a border of {crop_border}, smaller "
            f"than the {len(taps)}x{len(taps)} window {window!r}"
        )
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (
        _filter_valid(z, taps) for z in (x, y, x * x, y * y, x * y)
    )
    var_x = covariance_norm * (mean_xx - mean_x**2)
    var_y = covariance_norm * (mean_yy - mean_y**2)
    cov = covariance_norm * (mean_xy - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    return similarity.mean(dim=(1, 2, 3))


def rgb_to_y(rgb: torch.Tensor) -> torch.Tensor:
    """Luma of MATLAB's ``rgb2ycbcr``: ``Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255``.

    Args:
        rgb: (B, 3, H, W) on the 0-255 scale.

    Returns:
        (B, 1, H, W) between 16 and 235, not rounded.
    """
    r, g, b = rgb.unbind(dim=1)
    return (16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255).unsqueeze(1)


def _prepare(
    x: torch.Tensor, y: torch.Tensor, crop_border: int, channel: str, round_to_uint8: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check both images; return them as float64 (B, C, H, W) on the 0-255 scale."""
    if x.shape != y.shape:
        raise ValueError(f"the images differ in shape: {tuple(x.shape)} and {tuple(y.shape)}")
    if x.ndim not in (3, 4) or x.shape[-3] != 3 or x.numel() == 0:
        raise ValueError(f"expected (B, 3, H, W) or (3, H, W), got {tuple(x.shape)}")
    if channel not in ("rgb", "y"):
        raise ValueError(f"unknown channel {channel!r}; use 'rgb' or 'y'")
    if crop_border < 0 or min(x.shape[-2:]) <= 2 * crop_border:
        raise ValueError(
            f"crop_border={crop_border} leaves nothing of a {x.shape[-2]}x{x.shape[-1]} image"
            if crop_border >= 0
            else f"crop_border must be 0 or more, got {crop_border}"
        )
    return tuple(_scale_to_255(z, crop_border, channel, round_to_uint8) for z in (x, y))


def _scale_to_255(
    z: torch.Tensor, crop_border: int, channel: str, round_to_uint8: bool
) -> torch.Tensor:
    if not z.is_floating_point():
        raise TypeError(f"expected floating-point images on the [0, 1] scale, got {z.dtype}")
    z = z.detach().double()
    z = z.unsqueeze(0) if z.ndim == 3 else z
    if not z.isfinite().all():
        raise ValueError("the image has NaN or infinite values, so it has no PSNR or SSIM")
    if crop_border:
        z = z[..., crop_border:-crop_border, crop_border:-crop_border]
    z = (z.clamp(0, 1) * 255).round() if round_to_uint8 else z * 255
    return rgb_to_y(z) if channel == "y" else z


def _filter_valid(z: torch.Tensor, taps: list[float]) -> torch.Tensor:
    """Separable window mean of each channel where the window fits: (B, C, H, W) -> smaller.

    A sum of shifted images is ten times as fast on a CPU as a float64 convolution.
    """
    for dim in (-2, -1):
        length = z.shape[dim] - len(taps) + 1
        total = taps[0] * z.narrow(dim, 0, length)
        for k, tap in enumerate(taps[1:], start=1):
            total.add_(z.narrow(dim, k, length), alpha=tap)
        z = total
    return z
