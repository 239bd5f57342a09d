"""Image files and arrays to tensors, and back."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ir_peft.files import atomic_path
from ir_peft.names import did_you_mean

__all__ = ["as_tensor", "centre", "read_image", "write_image", "write_strips"]

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

SIDES = {"WEBP": 16383, "JPEG": 65500}
"""Longest side of an image, where a format has one [pixels]."""


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """Turn (H, W, 3) uint8 into (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255


def centre(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """The middle of (3, H, W) whose sides are multiples; the odd pixel goes at the bottom right."""
    height, width = (side // multiple * multiple for side in image.shape[1:])
    if not height or not width:
        raise ValueError(f"an image of {tuple(image.shape[1:])} has no multiple of {multiple}")
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


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
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        raise FileNotFoundError(f"{path}: no such image file{did_you_mean(path.name, beside)}")
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
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"{path}: expected an RGB image (3, H, W), got {tuple(image.shape)}")
    write_strips(path, image.split(256, dim=1), *image.shape[1:])


def write_strips(path: str | Path, strips: Iterable[torch.Tensor], height: int, width: int) -> None:
    """Write an image file as `write_image` does, from its rows, which need not exist at once.

    The path is checked before the first strip is asked for. The image is kept as 4 bytes a pixel.

    Args:
        path: Its suffix chooses the format: .png, .jpg, .webp, .tif, .bmp.
        strips: (3, n, width) floating point, on the [0, 1] scale, from the top down.
        height: The sum of the n.
        width: Of the image, as height in pixels.

    Raises:
        ValueError: the suffix is unknown, the format is for smaller images, or a strip is not
            finite or has another shape.
        TypeError: a strip is not floating point.
        OSError: the folder cannot be written; an old file stays as it was.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: unknown image suffix; there are {', '.join(FORMATS)}")
    options = FORMATS[path.suffix.lower()]
    limit = SIDES.get(options["format"], max(height, width))
    if max(height, width) > limit:
        raise ValueError(
            f"{path}: {width} x {height} pixels, {options['format']} has at most {limit} a side"
        )
    with atomic_path(path) as temporary:
        canvas, top = Image.new("RGB", (width, height)), 0
        for strip in strips:
            if not strip.is_floating_point():
                raise TypeError(f"{path}: expected floating point in [0, 1], got {strip.dtype}")
            shape = tuple(strip.shape)
            if len(shape) != 3 or shape[::2] != (3, width) or top + shape[1] > height:
                raise ValueError(
                    f"{path}: a strip {shape} from row {top} on does not fit into an image "
                    f"{(3, height, width)}"
                )
            if not strip.isfinite().all():
                raise ValueError(f"{path}: the image has NaN or infinite pixels")
            levels = strip.detach().float().clamp(0, 1).mul_(255).round_().byte()
            pixels = np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())  # (n, width, 3)
            canvas.paste(Image.fromarray(pixels), (0, top))
            top += shape[1]
            del strip, levels, pixels  # Or they would stay alive while the next ones are made.
        if top != height:
            raise ValueError(f"{path}: {top} rows came of {height}")
        canvas.save(temporary, **options)
