"""Restoring whole images: tiles with blended overlap, bounded memory, x8 self-ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

AUTO_TILE = 256  # Pixels of the degraded image; keeps DAT-light x4 under 2 GB on a CPU.


def restore(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: int | str | None = None,
    overlap: int = 16,
    self_ensemble: bool = False,
    batch_size: int = 1,
) -> Tensor:
    """Restores an image, or a batch of images of one size, with the model in eval mode.

    Where tiles overlap, their outputs are averaged with weights that fall linearly towards the
    tile's edges. The average runs in one buffer of the output's size, so memory grows with the
    image only by that; where all tiles agree the result is theirs bit for bit.

    Args:
        model: (B, 3, h, w) -> (B, 3, s*h, s*w) for any h, w: a backbone, which pads by itself
            to its `size_multiple`, or a function.
        image: (3, H, W) or (B, 3, H, W), floating point in [0, 1], H and W of at least 1.
        tile: side of the tiles in pixels of `image`, best a multiple of `model.size_multiple`; None
            takes the image as a whole, "auto" tiles of 256 where it is larger.
        overlap: pixels of `image` that neighbouring tiles share at least.
        self_ensemble: average over the 8 flips and transpositions (EDSR, arXiv 1707.02921).
        batch_size: tiles (or whole images) that go through the model at once.

    Returns:
        (3, sH, sW) or (B, 3, sH, sW) in [0, 1], on the device and of the dtype of `image`.

    Raises:
        TypeError: `image` is not a floating-point tensor.
        ValueError: its shape is another, it holds NaN or infinity, or an argument is out of range.
        FloatingPointError: the model's output is not finite.
    """
    if not isinstance(image, Tensor) or not image.is_floating_point():
        what = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(
            f"expected a floating-point tensor in [0, 1], got {what}; see data.read_image"
        )
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or image.numel() == 0:
        raise ValueError(f"expected (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}")
    if not image.isfinite().all():
        raise ValueError("the image has NaN or infinite values")
    if tile == "auto":
        tile, overlap = AUTO_TILE, min(overlap, AUTO_TILE - 1)
    elif tile is None:
        tile, overlap = max(image.shape[-2:]), 0
    if type(tile) is not int or tile < 1:
        raise ValueError(f"tile={tile!r} must be a number of pixels, None or 'auto'")
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap={overlap} must be at least 0 and less than the tile, {tile}")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")

    x = image.unsqueeze(0) if image.ndim == 3 else image  # (B, 3, H, W)
    with torch.inference_mode(), eval_mode(model):
        out = _tiled(model, x, tile, overlap, batch_size)  # (B, 3, sH, sW)
        for count, (flips, transpose) in enumerate(
            _SYMMETRIES[1:] if self_ensemble else (), start=2
        ):
            turned = x.flip(flips)
            turned = _tiled(model, turned.mT if transpose else turned, tile, overlap, batch_size)
            turned = turned.mT if transpose else turned
            out += (
                turned.flip(flips) - out
            ) / count  # A running mean: exact where all eight agree.
    if not out.isfinite().all():
        raise FloatingPointError(
            "the model's output is not finite: its weights or its precision fail"
        )
    out = out.clamp(0, 1)  # Outside inference mode, so that autograd may use the result.
    return out[0] if image.ndim == 3 else out


_SYMMETRIES = [
    (flips, transpose) for transpose in (False, True) for flips in ((), (-1,), (-2,), (-2, -1))
]


@contextmanager
def eval_mode(model: Callable) -> Iterator[None]:
    """Inside, every module of the model is in eval mode; afterwards each is as it was."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode


def _tiled(model: Callable, x: Tensor, tile: int, overlap: int, batch_size: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, sH, sW), the weighted mean of the tiles' outputs; not clamped."""
    B, _, H, W = x.shape
    like = next(model.parameters(), x) if isinstance(model, nn.Module) else x
    h, w = min(tile, H), min(tile, W)
    corners = [
        (b, top, left)
        for b in range(B)
        for top in _starts(H, h, overlap)
        for left in _starts(W, w, overlap)
    ]
    mean = None
    for start in range(0, len(corners), batch_size):
        chunk = corners[start : start + batch_size]
        tiles = torch.stack([x[b, :, i : i + h, j : j + w] for b, i, j in chunk])
        restored = model(tiles.to(like.device, like.dtype)).to(x.device, x.dtype)
        s = _scale(tiles, restored)
        if mean is None:
            mean = x.new_zeros(B, restored.shape[1], s * H, s * W)
            total = x.new_zeros(B, s * H, s * W)
            # Without a neighbour the ramp cancels out: the image's border is not weakened.
            ramps = [_ramp(s * n, s * overlap).to(x) for n in (h, w)]
            weight = ramps[0][:, None] * ramps[1][None, :]  # (s*h, s*w)
        for (b, i, j), piece in zip(chunk, restored, strict=True):
            rows, columns = slice(s * i, s * (i + h)), slice(s * j, s * (j + w))
            total[b, rows, columns] += weight
            here = mean[b, :, rows, columns]
            here += (piece - here) * (weight / total[b, rows, columns])
    return mean


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along one axis; the last tile ends with the image."""
    return [*range(0, length - tile, max(1, tile - overlap)), length - tile]


def _ramp(length: int, overlap: int) -> Tensor:
    """(length,) weights: rising over `overlap` pixels, 1 between, falling over `overlap` pixels."""
    distance = torch.arange(length) + 0.5
    distance = torch.minimum(distance, distance.flip(0))
    return (distance / max(overlap, 0.5)).clamp(max=1)


def _scale(tiles: Tensor, restored: Tensor) -> int:
    """Output side over input side; ValueError unless it is one whole number for both sides."""
    (B, _, h, w), shape = tiles.shape, restored.shape
    s = shape[-1] // w
    if len(shape) != 4 or s < 1 or (shape[0], shape[2], shape[3]) != (B, s * h, s * w):
        raise ValueError(
            f"the model turned {tuple(tiles.shape)} into {tuple(shape)}, which is not "
            "(B, C, s*h, s*w) for a whole number s"
        )
    return s
