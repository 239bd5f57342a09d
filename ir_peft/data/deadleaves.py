"""Dead leaves: endless synthetic images of occluding textured discs, with no photograph in them.

Discs of random size fall on a plane and hide each other (Matheron 1968; Lee, Mumford and Huang
2001). With radii of density r^-3 between two cut-offs every octave covers the same area, and the
images have the scale invariance, the sharp edges and the 1/f spectrum of photographs. Achddou,
Gousseau and Ladjal (2021) train restoration networks on them.

A picture takes three steps, on a canvas finer than the image: :func:`_drop` draws the discs,
:func:`_label` finds the front disc of every pixel, :func:`_paint` fills each disc with its colour
and texture. Box averages of the canvas then give anti-aliased edges.

:func:`dead_leaves_stereo` sees the same discs from two places: each disc has a disparity, the
nearer one the larger, and its texture moves with it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

__all__ = ["StereoScene", "dead_leaves", "dead_leaves_stereo"]

_STAMP_RADIUS = 20
"""Largest radius, in canvas pixels, that is painted by a precomputed stamp."""
_RATIO = 1.06
"""Radii form a geometric ladder with this step, so that discs share stamps."""
_TILE = 256
"""Side of the noise textures, which repeat without a seam."""


def dead_leaves(
    size: int | tuple[int, int],
    generator: torch.Generator,
    *,
    radii: tuple[float, float | None] = (1.0, None),
    exponent: float = 3.0,
    coverage: float = 4.0,
    texture: float = 1.0,
    palette: torch.Tensor | None = None,
    oversample: int = 2,
) -> torch.Tensor:
    """Draw one dead-leaves image.

    Args:
        size: Height and width in pixels; one number for a square.
        generator: Source of all randomness: the same state gives the same image. A CPU generator.
        radii: Smallest and largest radius in pixels; None is twice the image's longer side.
        exponent: The density of the radii is r^-exponent; 3 is scale-invariant, larger favours
            small discs.
        coverage: How many discs lie over a point on average; exp(-coverage) of the plane is left
            to the background, which is one more textured leaf.
        texture: Strength of the textures; 0 gives flat colours.
        palette: (P, 3) colours in [0, 1] that the leaves draw from; None draws random colours of
            correlated channels. Colours taken from photographs must be of training photographs.
        oversample: Canvas pixels per image pixel along each axis.

    Returns:
        (3, H, W) float32 in [0, 1] on the CPU.

    Raises:
        ValueError: a size, radius, coverage or oversample that is not positive, an exponent not
            above 1, a negative texture, or a palette that is not (P, 3) in [0, 1].
    """
    shape, ladder = _canvas(size, radii, exponent, coverage, texture, palette, oversample)
    centres, steps = _drop(shape, ladder, exponent, coverage, generator)
    labels = _label(shape, ladder, centres, steps)
    canvas = _paint(labels, len(steps) + 1, texture, oversample, palette, generator)
    return _average(canvas, oversample)


class StereoScene(NamedTuple):
    """A rectified pair with what is known of it: left[y, x] is the point right[y, x - d]."""

    left: torch.Tensor
    """(3, H, W) float32 in [0, 1]."""
    right: torch.Tensor
    """(3, H, W), of the same rows."""
    disparity: torch.Tensor
    """(H, W) float32, d = x_left - x_right >= 0 in pixels, of the left view; at edges, of the
    sample below and right of the pixel's centre."""
    occluded: torch.Tensor
    """(H, W) bool: the right view does not show all of the left view's pixel."""


def dead_leaves_stereo(
    size: int | tuple[int, int],
    generator: torch.Generator,
    *,
    max_disparity: float = 32.0,
    radii: tuple[float, float | None] = (4.0, None),
    exponent: float = 3.0,
    coverage: float = 4.0,
    texture: float = 1.0,
    palette: torch.Tensor | None = None,
    oversample: int = 2,
) -> StereoScene:
    """Draw one dead-leaves scene from two places.

    Disparities are uniform between 0 (the background) and the largest, in the order in which the
    discs hide each other: all occlusions are possible ones. Those of the visible pixels are mostly
    near ones, since nearer discs hide farther ones: with a largest of 32 pixels their quartiles are
    about 21, 26 and 29.5. Disparities are whole canvas pixels, so that both views show the same
    samples of each disc: 1 / oversample is their step.

    Args:
        size: Height and width of each view in pixels.
        generator: Source of all randomness, as in :func:`dead_leaves`.
        max_disparity: Largest disparity in pixels.
        radii: Smallest and largest radius. Smaller discs, each at a depth of its own, would hide
            more of the scene than things do in photographs.
        exponent: Of the density of the radii, as in :func:`dead_leaves`.
        coverage: Discs over a point.
        texture: Strength of the textures.
        palette: (P, 3) colours in [0, 1] or None.
        oversample: Canvas pixels per image pixel along each axis.

    Raises:
        ValueError: as :func:`dead_leaves`, or a negative max_disparity.
    """
    shape, ladder = _canvas(size, radii, exponent, coverage, texture, palette, oversample)
    (H, W), reach = shape, round(max_disparity * oversample)
    if max_disparity < 0:
        raise ValueError(f"impossible picture: max_disparity {max_disparity} is negative")
    # The right view sees what lies up to `reach` beyond the left view's right border.
    centres, steps = _drop((H, W + reach), ladder, exponent, coverage, generator)
    uniform = torch.rand(len(steps), generator=generator).sort().values
    disparity = np.concatenate([[0], np.rint(uniform.numpy() * reach)]).astype(np.int32)
    left = _seen_label(shape, ladder, centres, steps)
    shifted = centres - np.stack([np.zeros(len(steps)), disparity[1:]], axis=1)
    right = _seen_label(shape, ladder, shifted, steps)

    # Both views side by side, each pixel with its column in the left view: one painting.
    column = np.arange(W, dtype=np.int32)[None, :]
    columns = np.concatenate([np.broadcast_to(column, (H, W)), column + disparity[right]], axis=1)
    both = np.concatenate([left, right], axis=1)
    canvas = _paint(both, len(disparity), texture, oversample, palette, generator, columns)

    there = column - disparity[left]  # (H, W): where in the right view.
    seen = np.take_along_axis(right, np.maximum(there, 0), axis=1) == left
    hidden = ~seen | (there < 0)
    h, w, centre = H // oversample, W // oversample, oversample // 2
    return StereoScene(
        _average(canvas[:, :, :W], oversample),
        _average(canvas[:, :, W:], oversample),
        torch.from_numpy(disparity[left[centre::oversample, centre::oversample]]) / oversample,
        torch.from_numpy(hidden.reshape(h, oversample, w, oversample).any(axis=(1, 3))),
    )


def _canvas(
    size, radii, exponent, coverage, texture, palette, oversample
) -> tuple[tuple[int, int], np.ndarray]:
    """Check a picture's arguments; return its canvas's height and width, and its radii's bins."""
    H, W = (size, size) if isinstance(size, int) else size
    smallest, largest = radii[0], radii[1] if radii[1] is not None else 2 * max(H, W)
    largest = max(largest, smallest * _RATIO) if radii[1] is None else largest
    if min(H, W, oversample) < 1 or coverage <= 0 or texture < 0 or exponent <= 1:
        raise ValueError(
            f"impossible picture: size {H}x{W}, oversample {oversample}, coverage {coverage}, "
            f"texture {texture}, exponent {exponent}"
        )
    if not 0 < smallest < largest:
        raise ValueError(f"radii must be 0 < smallest < largest, got {smallest}, {largest}")
    if palette is not None and (
        palette.ndim != 2
        or palette.shape[1] != 3
        or len(palette) == 0
        or not (palette.min() >= 0 and palette.max() <= 1)
    ):
        raise ValueError(f"palette must be (P, 3) in [0, 1], got {tuple(palette.shape)}")
    shape = (H * oversample, W * oversample)
    return shape, _ladder(smallest * oversample, largest * oversample)


def _average(canvas: np.ndarray, k: int) -> torch.Tensor:
    """(3, k H, k W) -> (3, H, W), box means in [0, 1]."""
    _, H, W = canvas.shape
    image = canvas.reshape(3, H // k, k, W // k, k).mean(axis=(2, 4))
    return torch.from_numpy(image.clip(0, 1))


@lru_cache(maxsize=64)
def _ladder(smallest: float, largest: float) -> np.ndarray:
    """Edges of the radius bins, (n + 1,), geometric from smallest to largest."""
    n = max(1, round(math.log(largest / smallest) / math.log(_RATIO)))
    return np.geomspace(smallest, largest, n + 1)


def _drop(
    shape: tuple[int, int],
    ladder: np.ndarray,
    exponent: float,
    coverage: float,
    generator: torch.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the discs that can touch the canvas, the hindmost first.

    Each radius bin is a Poisson process of its own, so small discs need only a small margin.

    Returns:
        Centres (n, 2), in canvas pixels, y and x; the bin of each disc (n,).
    """
    radius = np.sqrt(ladder[:-1] * ladder[1:])
    weight = radius ** (1 - exponent)  # r^-exponent times the bin's width, which is ~ r
    density = coverage * weight / (weight * np.pi * radius**2).sum()  # discs per canvas pixel
    extent = np.stack([side + 2 * radius for side in shape], axis=1)  # (bins, 2)
    expected = torch.from_numpy(density * extent.prod(axis=1))
    counts = torch.poisson(expected, generator=generator).long()
    order = torch.randperm(int(counts.sum()), generator=generator).numpy()
    steps = np.repeat(np.arange(len(radius)), counts.numpy())[order]
    places = torch.rand(len(steps), 2, generator=generator, dtype=torch.float64).numpy()
    return places * extent[steps] - radius[steps, None], steps


def _label(
    shape: tuple[int, int], ladder: np.ndarray, centres: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """Index of the front disc of every canvas pixel, counted from 1; 0 is the background."""
    H, W = shape
    pad = 2 * _STAMP_RADIUS + 3  # A centre may lie one radius outside and reach one further.
    labels = np.zeros((H + 2 * pad, W + 2 * pad), dtype=np.int32)
    flat = labels.reshape(-1)
    stride = labels.shape[1]
    radius = np.sqrt(ladder[:-1] * ladder[1:])
    first_large = int(np.searchsorted(radius, _STAMP_RADIUS, side="right"))

    # Discs ascend within a group, so where two of it meet, the assignment keeps the front one.
    corner = np.rint(centres + pad).astype(np.int64)
    start = corner[:, 0] * stride + corner[:, 1]
    by_step = np.argsort(steps, kind="stable")
    bounds = np.searchsorted(steps[by_step], np.arange(first_large + 1))
    for step in range(first_large):
        group = by_step[bounds[step] : bounds[step + 1]]
        index = start[group, None] + _stamp(radius[step], stride)
        flat[index] = np.maximum(flat[index], (group + 1).astype(np.int32)[:, None])

    inner = labels[pad : pad + H, pad : pad + W]
    for disc in by_step[bounds[first_large] :]:
        (y, x), r = centres[disc], radius[steps[disc]]
        top, left = max(0, math.ceil(y - r)), max(0, math.ceil(x - r))
        bottom, right = min(H, math.floor(y + r) + 1), min(W, math.floor(x + r) + 1)
        box = inner[top:bottom, left:right]
        dy, dx = np.arange(top, bottom) - y, np.arange(left, right) - x
        inside = dx[None, :] ** 2 <= (r * r - dy**2)[:, None]
        np.maximum(box, inside * np.int32(disc + 1), out=box)
    return np.ascontiguousarray(inner)


def _seen_label(
    shape: tuple[int, int], ladder: np.ndarray, centres: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """As `_label`, where discs may lie anywhere left or right of the canvas."""
    radius = np.sqrt(ladder[:-1] * ladder[1:])[steps]
    x = centres[:, 1]
    near = np.flatnonzero((x >= -radius) & (x <= shape[1] + radius))
    index = np.concatenate([[0], near + 1]).astype(np.int32)
    return index[_label(shape, ladder, centres[near], steps[near])]


@lru_cache(maxsize=1024)
def _stamp(radius: float, stride: int) -> np.ndarray:
    """Offsets, in a flat canvas of that stride, of the pixels of a disc."""
    n = math.ceil(radius)
    y, x = np.mgrid[-n : n + 1, -n : n + 1]
    inside = y**2 + x**2 <= radius**2
    return (y * stride + x)[inside]


def _paint(
    labels: np.ndarray,
    leaves: int,
    texture: float,
    oversample: int,
    palette: torch.Tensor | None,
    generator: torch.Generator,
    columns: np.ndarray | None = None,
) -> np.ndarray:
    """Fill every leaf: ``colour + direction (gradient + grating + noise)``; (3, H, W) float32.

    Only leaves that are seen are drawn, so the cost does not depend on how many lie below. Textures
    are functions of the row and the column; `columns` (H, W), integers, are others than 0 ... W-1.
    """
    H, W = labels.shape
    seen = np.flatnonzero(np.bincount(labels.reshape(-1), minlength=leaves))
    rename = np.zeros(leaves, dtype=np.int32)
    rename[seen] = np.arange(len(seen), dtype=np.int32)
    labels = rename[labels]
    n = len(seen)
    u = torch.rand(16, n, generator=generator).numpy()
    normal = torch.randn(7, n, generator=generator).numpy()

    if palette is None:
        # Luma is uniform; the channels follow it with a small difference of their own.
        colour = (0.02 + 0.96 * u[0]) + 0.08 * normal[:3] * (0.3 + 1.4 * u[1])
    else:
        colour = palette.float().numpy()[(u[0] * len(palette)).astype(np.int64)].T
    direction = 1 + 0.15 * normal[3:6]  # (3, n): textures are nearly grey

    # Per leaf: which textures, how strong. Contrast has a heavy tail, as in photographs.
    strength = texture * 0.06 * np.exp(0.8 * normal[6])
    kind = u[2]
    gradient = strength * (u[3] < 0.6)
    grating = 1.2 * strength * (kind < 0.3)
    noise = strength * ((kind >= 0.3) & (kind < 0.85))

    # Gratings of 3 to 40 image pixels a period, at any angle; gradients over the whole image.
    angle = 2 * np.pi * u[4]
    frequency = 2 * np.pi / (oversample * 3 * (40 / 3) ** u[5])
    slope = 4 * gradient / max(H, W)
    tilt = 2 * np.pi * u[6]
    bank, kinds = _noise_bank()
    which = (u[7] * kinds).astype(np.int64) * _TILE * _TILE
    jump = (u[8] * _TILE).astype(np.int64), (u[9] * _TILE).astype(np.int64)

    y = np.arange(H, dtype=np.float32)[:, None]
    columns = np.arange(W)[None, :] if columns is None else columns
    x = columns.astype(np.float32)

    def spread(values: np.ndarray) -> np.ndarray:
        """Give every pixel the value of its leaf."""
        return values.astype(np.float32).take(labels)

    phase = spread(frequency * np.sin(angle)) * y + spread(frequency * np.cos(angle)) * x
    level = spread(grating) * np.sin(phase + spread(2 * np.pi * u[10]))
    level += spread(slope * np.sin(tilt)) * (y - H / 2) + spread(slope * np.cos(tilt)) * (x - W / 2)
    row = (np.arange(H)[:, None] + jump[0].take(labels)) % _TILE
    column = (columns + jump[1].take(labels)) % _TILE
    level += spread(noise) * bank.take(which.take(labels) + row * _TILE + column)
    return np.stack([spread(colour[c]) + spread(direction[c]) * level for c in range(3)])


@lru_cache(maxsize=1)
def _noise_bank() -> tuple[np.ndarray, int]:
    """Seamless noise textures of unit variance, flat float32, and how many there are.

    Their amplitude falls as 1/f^a, from white noise (a = 0) to clouds (a = 2).
    """
    generator = torch.Generator().manual_seed(0)
    f = torch.hypot(torch.fft.fftfreq(_TILE)[:, None], torch.fft.rfftfreq(_TILE)[None, :])
    f[0, 0] = math.inf  # no mean
    tiles = []
    for a in (0.0, 0.5, 1.0, 1.25, 1.5, 2.0):
        white = torch.randn(_TILE, _TILE, generator=generator)
        tile = torch.fft.irfft2(torch.fft.rfft2(white) * f**-a, s=(_TILE, _TILE))
        tiles.append((tile / tile.std()).numpy())
    return np.stack(tiles).reshape(-1), len(tiles)
