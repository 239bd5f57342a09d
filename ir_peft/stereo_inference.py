"""Restoring stereo pairs in strips of whole rows, and pairs in image files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from .data.images import as_tensor, read_image
from .inference import AUTO_MULTIPLE, AUTO_TILE, restore
from .stereo import Stereo


class _Folded(nn.Module):
    """A stereo model on batches of views, left and right in turn: (2B, 3, h, w)."""

    def __init__(self, model: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model = model  # A module is registered, so that its mode and device are seen.

    def forward(self, x: Tensor) -> Tensor:
        """(2B, 3, h, w) -> (2B, 3, s*h, s*w)."""
        return self.model(x.unflatten(0, (-1, 2))).flatten(0, 1)


def restore_stereo(
    model: Callable[[Tensor], Tensor],
    pair: Tensor,
    rows: int | str | None = None,
    overlap: int = 16,
    self_ensemble: bool = False,
) -> Tensor:
    """Restores a pair, or a batch of pairs, with the model in eval mode.

    Tiles are strips over the whole width, blended where they overlap: attention between the views
    spans a row, and a narrower tile could not see what it looks for. Backbones that take means over
    all pixels (HAT) give another result in strips than of the whole.

    Args:
        model: (B, 2, 3, h, w) -> (B, 2, 3, s*h, s*w), an `ir_peft.Stereo` or a function.
        pair: (2, 3, H, W) or (B, 2, 3, H, W), left view first, floating point in [0, 1].
        rows: of each strip; None takes all rows at once, "auto" as many as make the pixels of a
            tile of 256.
        overlap: rows that neighbouring strips share at least.
        self_ensemble: average over vertical flips and horizontal ones, which exchange the views.

    Returns:
        (2, 3, sH, sW) or (B, 2, 3, sH, sW) in [0, 1].

    Raises:
        TypeError, ValueError, FloatingPointError: as `restore`; a backbone in place of a `Stereo`,
            views that are not two.
    """
    if hasattr(model, "size_multiple") and not isinstance(model, Stereo):
        raise TypeError(f"{type(model).__name__} restores single images: ir_peft.Stereo(model)")
    shape = tuple(pair.shape) if isinstance(pair, Tensor) else ()
    if len(shape) not in (4, 5) or shape[-4:-2] != (2, 3) or not pair.numel():
        what = shape or type(pair).__name__
        raise ValueError(f"expected a pair (2, 3, H, W) or (B, 2, 3, H, W), got {what}")
    if rows is not None and rows != "auto" and (type(rows) is not int or rows < 1):
        raise ValueError(f"rows={rows!r} must be a number of rows, None or 'auto'")
    H, W = pair.shape[-2:]
    if rows == "auto":
        rows = max(1, AUTO_TILE**2 // W // AUTO_MULTIPLE) * AUTO_MULTIPLE
        overlap = min(overlap, rows - 1)
    tile = None if rows is None or rows >= H else (rows, W)
    folded, mean = _Folded(model), None
    ways = [(False, False), (True, False), (False, True), (True, True)]
    for count, way in enumerate(ways if self_ensemble else ways[:1], start=1):
        views = _flip(pair, *way).reshape(-1, 3, H, W)
        out = restore(folded, views, tile, min(overlap, W - 1), batch_size=2)
        out = _flip(out.unflatten(0, (*pair.shape[:-3],)), *way)
        mean = out if mean is None else mean + (out - mean) / count
    return mean


def _flip(pair: Tensor, vertical: bool, horizontal: bool) -> Tensor:
    """(..., 2, 3, H, W) upside down, or mirrored with the views exchanged."""
    pair = pair.flip(-2) if vertical else pair
    return pair.flip(-1, -4) if horizontal else pair


def read_pair(*paths: str | Path) -> Tensor:
    """Reads a stereo pair: two files, or one with two views.

    Args:
        *paths: the left and the right image; or one .mpo of a 3D camera (frame 0 is the left view),
            or one image with the views side by side, the left one at the left.

    Returns:
        (2, 3, H, W) float32 in [0, 1], left first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is no image, the views differ in size, or one file holds no two views.
    """
    if len(paths) not in (1, 2):
        raise ValueError(f"a pair is one file or two, got {len(paths)}")
    views = [read_image(path) for path in paths]
    if len(paths) == 1:
        with Image.open(paths[0]) as file:
            frames = getattr(file, "n_frames", 1)
            if frames > 2:
                raise ValueError(f"{paths[0]}: {frames} frames, a pair has two")
            if frames == 2:
                file.seek(1)  # Upright like the first.
                second = ImageOps.exif_transpose(file).convert("RGB")
                views.append(as_tensor(np.asarray(second)))
        width = views[0].shape[2]
        if frames == 1 and width % 2:
            raise ValueError(
                f"{paths[0]}: {width} columns and one frame are no two views side by side"
            )
        views = views if frames == 2 else list(views[0].split(width // 2, dim=2))
    left, right = views
    if left.shape != right.shape:
        raise ValueError(
            f"{' and '.join(map(str, paths))}: the views differ in size, "
            f"{tuple(left.shape[1:])} and {tuple(right.shape[1:])}"
        )
    return torch.stack([left, right])
