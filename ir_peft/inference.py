"""Restoring whole images: tiles with blended overlap, bounded memory, x8 self-ensemble."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

AUTO_TILE = 256  # Pixels of the degraded image; keeps DAT-light x4 under 2 GB on a CPU.
AUTO_MULTIPLE = 32  # Of the sides of smaller tiles; most windows divide it.


def restore(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: int | tuple[int, int] | str | None = None,
    overlap: int = 16,
    self_ensemble: bool = False,
    batch_size: int = 1,
) -> Tensor:
    """Restores an image, or a batch of images of one size, with the model in eval mode.

    Where tiles overlap, one fades into the other: over the overlap's middle half linearly, so that
    no tile's outermost quarter counts. Where all tiles agree the result is theirs bit for bit.
    Memory grows with the image by the result and by a row of tiles (see `restore_strips`).

    Args:
        model: (B, 3, h, w) -> (B, 3, s*h, s*w) for any h, w: a backbone, which pads by itself
            to its `size_multiple`, or a function.
        image: (3, H, W) or (B, 3, H, W), floating point in [0, 1], H and W of at least 1.
        tile: side of the tiles, or (height, width), in pixels of `image`, best multiples of
            `model.size_multiple`; None takes the image as a whole, "auto" the smallest tiles that
            are as few as those of 256.
        overlap: pixels of `image` that neighbouring tiles share at least.
        self_ensemble: average over the 8 flips and transpositions (EDSR, arXiv 1707.02921) of each
            tile, so that it takes no more memory.
        batch_size: tiles (or whole images) that go through the model at once.

    Returns:
        (3, sH, sW) or (B, 3, sH, sW) in [0, 1], on the device and of the dtype of `image`.

    Raises:
        TypeError: `image` is not a floating-point tensor.
        ValueError: its shape is another, it holds NaN or infinity, or an argument is out of range.
        FloatingPointError: the model's output is not finite.
    """
    out, done = None, 0
    for rows in restore_strips(model, image, tile, overlap, self_ensemble, batch_size):
        n, width = rows.shape[-2:]
        if out is None:
            s = width // image.shape[-1]
            out = rows.new_empty(*rows.shape[:-2], s * image.shape[-2], width)
        out[..., done : done + n, :] = rows
        done += n
        del rows  # Or it would stay alive while the next one is made.
    return out


def restore_strips(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: int | tuple[int, int] | str | None = "auto",
    overlap: int = 16,
    self_ensemble: bool = False,
    batch_size: int = 1,
) -> Iterator[Tensor]:
    """Restores as `restore` does, and yields the rows of the result as they are finished.

    The result as a whole never is in memory: an image of any height takes as much as two rows of
    tiles. With `data.images.write_strips` that is how `ir-peft restore` writes a photograph.

    Args:
        model: as in `restore`, as are all other arguments.
        image: (3, H, W) or (B, 3, H, W).
        tile: "auto" unless told otherwise.
        overlap: of neighbouring tiles.
        self_ensemble: average over 8 flips and transpositions.
        batch_size: tiles at once.

    Yields:
        (3, n, sW) or (B, 3, n, sW) in [0, 1], from the top down; the n add up to sH.

    Raises:
        As `restore`: at once what is wrong with the arguments, later what is with the model.
    """
    if not isinstance(image, Tensor) or not image.is_floating_point():
        what = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(
            f"expected a floating-point tensor in [0, 1], got {what}; see data.read_image"
        )
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or image.numel() == 0:
        raise ValueError(f"expected (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}")
    if not _finite(image):
        raise ValueError("the image has NaN or infinite values")
    size = tuple(image.shape[-2:])
    if tile == "auto":
        sides, overlap = (AUTO_TILE, AUTO_TILE), min(overlap, AUTO_TILE - 1)
    elif tile is None:
        sides, overlap = size, 0
    else:
        sides = tile if isinstance(tile, tuple) else (tile, tile)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(
            f"tile={tile!r} must be a number of pixels, None or 'auto', or two numbers"
        )
    if not 0 <= overlap < min(sides):
        raise ValueError(
            f"overlap={overlap} must be at least 0 and less than the tile, {min(sides)}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    h, w = (min(side, length) for side, length in zip(sides, size, strict=True))
    if tile == "auto":
        multiple = math.lcm(getattr(model, "size_multiple", 1), AUTO_MULTIPLE)
        h, w = (_even(length, AUTO_TILE, overlap, multiple) for length in size)
    return _strips(model, image.detach(), h, w, overlap, self_ensemble, batch_size)


def _strips(model, image, h, w, overlap, self_ensemble, batch_size) -> Iterator[Tensor]:
    """Row by row of tiles of h x w pixels: blended along the row, then with the row above.

    A tile's weight is a product of one factor for its row and one for its column, so the blend of
    all tiles is a blend of rows of tiles, each of them a blend along the row, and no buffer of
    weights is needed.
    """
    x = image.unsqueeze(0) if image.ndim == 3 else image  # (B, 3, H, W)
    B, _, H, W = x.shape
    tops, lefts = _starts(H, h, overlap), _starts(W, w, overlap)
    above = None  # (B, 3, s*k, sW): the k rows that the last row of tiles shares with this one.
    for row, (top, below) in enumerate(pairwise([*tops, H])):
        strip = None
        places = [(b, column) for b in range(B) for column in range(len(lefts))]
        for start in range(0, len(places), batch_size):
            chunk = places[start : start + batch_size]
            tiles = [(b, lefts[column]) for b, column in chunk]
            tiles = torch.stack([x[b, :, top : top + h, j : j + w] for b, j in tiles])
            restored = _run(model, tiles, self_ensemble)  # (batch, 3, s*h, s*w)
            if strip is None:
                s = restored.shape[-1] // w
                strip = x.new_zeros(B, restored.shape[1], s * h, s * W)
            for (b, column), piece in zip(chunk, restored, strict=True):
                columns = slice(s * lefts[column], s * (lefts[column] + w))
                share = _share([s * j for j in lefts], column, s * w, s * overlap)
                strip[b, :, :, columns].lerp_(piece, share.to(x))
        if above is not None:
            share = _share([s * i for i in tops], row, s * h, s * overlap)
            strip[:, :, : above.shape[2]].lerp_(above, (1 - share)[: above.shape[2], None].to(x))
        finished = s * (below - top)
        # Averaged first and clamped then, so what goes into the next average is not clamped yet.
        above = strip[:, :, finished:].clone()
        rows = strip[:, :, :finished].clamp_(0, 1)
        del strip, tiles, restored, piece  # Or they would stay alive while the next are made.
        yield rows[0] if image.ndim == 3 else rows
        del rows


def _run(model: Callable, tiles: Tensor, self_ensemble: bool) -> Tensor:
    """(B, 3, h, w) -> (B, 3, s*h, s*w) on the tiles' device, checked; the model in eval mode."""
    like = next(model.parameters(), tiles) if isinstance(model, nn.Module) else tiles
    mean = None
    with torch.inference_mode(), eval_mode(model):
        given = tiles.to(like.device, like.dtype)
        for count, (flips, transpose) in enumerate(
            _SYMMETRIES if self_ensemble else _SYMMETRIES[:1], start=1
        ):
            turned = given.flip(flips)  # Always a copy, which the model may overwrite.
            turned = turned.mT if transpose else turned
            out = model(turned)
            _check(turned, out)
            out = (out.mT if transpose else out).flip(flips).to(tiles.device, tiles.dtype)
            # A running mean: exact where all eight agree.
            mean = out if mean is None else mean + (out - mean) / count
        if not _finite(mean):
            raise FloatingPointError(
                "the model's output is not finite: its weights or its precision fail"
            )
    return mean


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


def _even(length: int, tile: int, overlap: int, multiple: int) -> int:
    """Side of the smallest tiles, a multiple, of which `length` needs no more than of `tile`."""
    if length <= tile:
        return length
    count = math.ceil((length - overlap) / (tile - overlap))
    side = math.ceil((length + (count - 1) * overlap) / count)
    return min(tile, math.ceil(side / multiple) * multiple)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along one axis; the last tile ends with the image."""
    return [*range(0, length - tile, max(1, tile - overlap)), length - tile]


def _share(starts: list[int], number: int, tile: int, overlap: int) -> Tensor:
    """A tile's weight along an axis over the sum of its own and those of the tiles before; (tile,).

    Averaging with these shares, one tile after the other, gives the weighted mean. Where no tile
    has a weight yet the share is 1.
    """
    weight = _weight(starts, number, tile, overlap)
    before = torch.zeros_like(weight)
    for earlier, start in enumerate(starts[:number]):
        shift = starts[number] - start
        if shift < tile:
            before[: tile - shift] += _weight(starts, earlier, tile, overlap)[shift:]
    return torch.where(before > 0, weight / (before + weight), 1.0)


def _weight(starts: list[int], number: int, tile: int, overlap: int) -> Tensor:
    """(tile,): 1, and where the tile is cut 0 for a quarter of the overlap, rising over a half."""
    pixels = torch.arange(tile, dtype=torch.float64) + 0.5
    fade = ((pixels - overlap / 4) / max(overlap / 2, 0.5)).clamp(0, 1)
    weight = torch.ones_like(fade)
    if number > 0:
        weight = fade
    if number < len(starts) - 1:
        weight = torch.minimum(weight, fade.flip(0))
    return weight


def _finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite, without a temporary of the tensor's size."""
    return all(extreme.isfinite() for extreme in x.aminmax())


def _check(tiles: Tensor, restored: Tensor) -> None:
    """ValueError unless output over input side is one whole number for both sides."""
    (B, _, h, w), shape = tiles.shape, restored.shape
    s = shape[-1] // w
    if len(shape) != 4 or s < 1 or (shape[0], shape[2], shape[3]) != (B, s * h, s * w):
        raise ValueError(
            f"the model turned {tuple(tiles.shape)} into {tuple(shape)}, which is not "
            "(B, C, s*h, s*w) for a whole number s"
        )
