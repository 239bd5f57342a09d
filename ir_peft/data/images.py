"""Image files and arrays to tensors, and back."""

from __future__ import annotations

import difflib
import os
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ir_peft.files import atomic_path

__all__ = ["as_tensor", "read_image", "write_image"]

FORMATS = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95},
    ".jpeg": {"format": "JPEG", "quality": 95},
    ".webp": {"format": "WEBP", "lossless": True},
    ".tif": {"format": "TIFF"},
    ".tiff": {"format": "TIFF"},
    ".bmp": {"format": "BMP"},
}
"""Suffixes that `write_image` knows, and how it writes them."""


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """Turn (H, W, 3) uint8 into (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255


def read_image(path: str | Path) -> torch.Tensor:
    """Read an image file, upright, as RGB.

    Transparency is laid over white, grey is repeated, the EXIF orientation is applied; of an
    animation or a stereo file the first frame counts. 16-bit grey keeps its precision; 16-bit
    colour is read as 8 bits.

    Returns:
        (3, H, W) float32 in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or not an image, or its values have no defined range.
    """
    path = Path(path)
    if not path.is_file():
        near = []
        if path.parent.is_dir():
            near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise FileNotFoundError(f"{path}: no such image file{hint}")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
            if image.mode == "F":
                raise ValueError("floating-point pixels, whose range is unknown")
            if image.mode == "I" or image.mode.startswith("I;16"):
                levels = np.asarray(image, dtype=np.int64)
                if levels.min() < 0 or levels.max() > 65535:
                    raise ValueError("integer pixels beyond 16 bits")
                grey = torch.from_numpy(levels / 65535).float()
                return grey.expand(3, *grey.shape).contiguous()
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return as_tensor(np.asarray(image.convert("RGB")))
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error


def write_image(path: str | Path, image: torch.Tensor) -> None:
    """Write an image file atomically, clamped and rounded to 8 bits; WebP is lossless.

    Args:
        path: Its suffix chooses the format: .png, .jpg, .webp, .tif, .bmp.
        image: (3, H, W) floating point, on the [0, 1] scale.

    Raises:
        ValueError: the suffix is unknown, or the image is not RGB or not finite.
        TypeError: the image is not floating point.
        OSError: the folder cannot be written; an old file stays as it was.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: unknown image suffix; there are {', '.join(FORMATS)}")
    if not image.is_floating_point():
        raise TypeError(f"{path}: expected floating point in [0, 1], got {image.dtype}")
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"{path}: expected an RGB image (3, H, W), got {tuple(image.shape)}")
    if not image.isfinite().all():
        raise ValueError(f"{path}: the image has NaN or infinite pixels")
    levels = (image.detach().float().clamp(0, 1) * 255).round().byte()
    pixels = np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())  # (H, W, 3)
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, **FORMATS[path.suffix.lower()])
