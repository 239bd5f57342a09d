"""Stereo pairs to train on, and pairs to test on, from scenes and a degradation.

There are few rectified photographs to train on, so pairs are made: dead-leaves scenes, and layers
cut from the training photographs, each at a disparity of its own. What is trained so is trained on
layered pairs made from photographs, not on real stereo: say so with every number. Everywhere the
view is the first of the four axes, left first, and d = x_left - x_right >= 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from ir_peft.data.core import randint, uniform
from ir_peft.data.deadleaves import StereoScene, dead_leaves_stereo
from ir_peft.data.degradations import Degradation
from ir_peft.data.images import as_tensor
from ir_peft.data.patches import MARGIN, integer_scale, item_generator, test_generator
from ir_peft.data.photos import Photo
from ir_peft.data.stereo_photos import StereoPhoto

__all__ = ["AUGMENTATIONS", "StereoPatches", "augment_pair", "layered_pair", "make_stereo_pairs"]

CHANNELS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
AUGMENTATIONS = 4 * len(CHANNELS)
"""How many ways `augment_pair` knows."""


class StereoPatches(Dataset):
    """Seeded made-up pairs, as a map-style data set: item i is a pure function of (seed, i).

    An item draws its scene, the degradation of both views, and one of the 24 ways of
    `augment_pair`, all with its own generator. The scene is a little larger than the patch, so that
    no patch sees its border.

    Args:
        photos: Training photographs that layers are cut from.
        degradation: Makes the low-quality views; its scale must be an integer s.
        lq_size: Height and width of a low-quality view in pixels; ASteISR takes (32, 80), NAFSSR
            (30, 90).
        seed: Non-negative seed of the whole set.
        length: Number of items, usually steps times batch size.
        deadleaves_share: Probability that an item is a dead-leaves scene, in [0, 1]; the others are
            layered photographs.
        max_disparity: Largest disparity in high-resolution pixels.

    Raises:
        ValueError: an argument is out of range, or no photograph has room for a scene.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        degradation: Degradation,
        lq_size: tuple[int, int] = (32, 80),
        seed: int = 0,
        length: int = 1000,
        deadleaves_share: float = 0.5,
        max_disparity: int = 32,
    ):
        if min(lq_size) < 1 or length < 1 or seed < 0 or not 0 <= deadleaves_share <= 1:
            raise ValueError(
                "lq_size and length must be positive, seed >= 0, deadleaves_share in [0, 1]; got "
                f"{lq_size}, {length}, {seed}, {deadleaves_share}"
            )
        self.scale, self.degradation = integer_scale(degradation), degradation
        self.lq_size, self.seed, self.length = lq_size, seed, length
        self.deadleaves_share, self.max_disparity = deadleaves_share, max_disparity
        self.size = tuple(self.scale * (side + 2 * MARGIN) for side in lq_size)
        self.areas: list[np.ndarray] = []
        if deadleaves_share < 1:
            self.areas = _fitting(photos, self.size, max_disparity)

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> StereoScene:
        """The scene of an item, before degradation and augmentation, with its disparity."""
        return self._scene(item_generator(self.seed, index))

    def _scene(self, generator: torch.Generator) -> StereoScene:
        if torch.rand((), generator=generator) < self.deadleaves_share:
            return dead_leaves_stereo(self.size, generator, max_disparity=self.max_disparity)
        return layered_pair(self.size, generator, self.areas, max_disparity=self.max_disparity)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (lq (2, 3, h, w), gt (2, 3, s h, s w)), float32 in [0, 1]."""
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        generator = item_generator(self.seed, index)
        scene = self._scene(generator)
        pair = (torch.stack([scene.left, scene.right]) * 255).round() / 255
        lq = self.degradation(pair, generator)
        way = randint(AUGMENTATIONS, generator)
        m, s = MARGIN, self.scale
        return (
            augment_pair(lq[..., m:-m, m:-m], way),
            augment_pair(pair[..., s * m : -s * m, s * m : -s * m], way),
        )


def augment_pair(x: torch.Tensor, way: int) -> torch.Tensor:
    """Change (2, 3, H, W) in one of `AUGMENTATIONS` ways that keep a pair rectified.

    One of the 6 orders of the channels, a vertical flip or none, and a horizontal flip or none. The
    latter exchanges the views, otherwise disparities would change their sign. No rotations: rows
    must stay epipolar lines. Way 0 changes nothing.
    """
    flip, order = divmod(way, len(CHANNELS))
    x = x[:, list(CHANNELS[order])]
    x = x.flip(2) if flip & 1 else x
    return (x.flip(0, 3) if flip & 2 else x).contiguous()


def layered_pair(
    size: tuple[int, int],
    generator: torch.Generator,
    areas: Sequence[np.ndarray],
    *,
    max_disparity: int = 32,
    layers: tuple[int, int] = (3, 6),
) -> StereoScene:
    """Lay pieces of photographs over each other, each at a disparity of its own, the nearer larger.

    Disparities are whole pixels, so that no layer is resampled: both views show the same pixels.

    Args:
        size: Height and width of each view in pixels.
        generator: Source of all randomness: the same state gives the same pair. A CPU generator.
        areas: Photographs (H, W, 3) uint8, each at least of that height, and wider by
            max_disparity. A layer's is drawn with probability proportional to its pixels.
        max_disparity: Largest disparity in pixels.
        layers: Least and greatest number of layers over the background.

    Raises:
        ValueError: no area has room, or a size or a number is out of range.
    """
    (H, W), D = size, max_disparity
    if min(H, W) < 1 or D < 0 or not 0 <= layers[0] <= layers[1]:
        raise ValueError(f"impossible pair: size {size}, max_disparity {D}, layers {layers}")
    if not areas or any(a.shape[0] < H or a.shape[1] < W + D for a in areas):
        raise ValueError(f"layers of {size} with disparity {D} need areas of {H} x {W + D} pixels")
    count = 1 + layers[0] + randint(layers[1] - layers[0] + 1, generator)
    shifts = torch.randint(D + 1, (count,), generator=generator).sort().values.tolist()
    ends = np.cumsum([a.shape[0] * a.shape[1] for a in areas])
    views = torch.zeros(2, 3, H, W)
    owner = torch.zeros(2, H, W, dtype=torch.long)  # The layer that alone makes a pixel, or -1.
    disparity = torch.zeros(H, W)
    for layer, shift in enumerate(shifts):
        area = areas[int(np.searchsorted(ends, randint(int(ends[-1]), generator), side="right"))]
        y, x = (
            randint(area.shape[0] - H + 1, generator),
            randint(area.shape[1] - W - D + 1, generator),
        )
        piece = as_tensor(area[y : y + H, x : x + W + D])  # (3, H, W + D)
        shape = _blobs(H, W + D, generator) if layer else torch.ones(H, W + D)
        for view, d in enumerate((0, shift)):  # Column c of the right view shows column c + d.
            alpha = shape[:, d : d + W]
            views[view].lerp_(piece[:, :, d : d + W], alpha)
            owner[view] = torch.where(alpha == 1, layer, torch.where(alpha > 0, -1, owner[view]))
        disparity = torch.where(shape[:, :W] >= 0.5, float(shift), disparity)
    there = torch.arange(W) - disparity.long()  # (H, W)
    seen = owner[1].gather(1, there.clamp(min=0))
    occluded = (there < 0) | (seen != owner[0]) | (owner[0] < 0)
    return StereoScene(views[0], views[1], disparity, occluded)


def _blobs(H: int, W: int, generator: torch.Generator) -> torch.Tensor:
    """A random opacity (H, W): smooth noise above a threshold, with edges of a pixel's width."""
    cell = uniform(0.2, 0.8, generator) * H
    grid = torch.randn(1, 1, 3 + int(H / cell), 3 + int(W / cell), generator=generator)
    field = F.interpolate(grid, (2 * H, 2 * W), mode="bicubic", align_corners=True)
    share = uniform(0.1, 0.4, generator)
    inside = (field > field.flatten().kthvalue(int((1 - share) * field.numel())).values).float()
    return F.avg_pool2d(inside, 2)[0, 0]


def _fitting(photos: Sequence[Photo], size: tuple[int, int], reach: int) -> list[np.ndarray]:
    """The areas of photographs with room for a layer."""
    H, W = size[0], size[1] + reach
    areas = [area for photo in photos for area in photo.areas]
    fitting = [area for area in areas if area.shape[0] >= H and area.shape[1] >= W]
    if not fitting:
        raise ValueError(
            f"none of the {len(areas)} areas of {len(photos)} photographs has room for a layer of "
            f"{H} x {W} pixels: take a smaller lq_size or max_disparity, or deadleaves_share=1"
        )
    return fitting


def make_stereo_pairs(
    photos: Sequence[StereoPhoto], degradation: Degradation, crop: tuple[int, int] | None = None
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Degrade photographed pairs to test on; noise depends on the pair's name and the view only.

    Args:
        photos: The pairs.
        degradation: Makes the low-quality views, each on its own.
        crop: Height and width of a centred part that is cut out first; None keeps the whole.
            Afterwards it is cropped at the top left to a multiple of the scale.

    Returns:
        (name, lq (2, 3, h, w), gt (2, 3, s h, s w)) for each pair, float32 in [0, 1].

    Raises:
        ValueError: a pair is smaller than the crop or than the scale.
    """
    s = integer_scale(degradation)
    pairs = []
    for photo in photos:
        gt = torch.stack([as_tensor(photo.left), as_tensor(photo.right)])
        H, W = gt.shape[2:]
        h, w = crop or (H, W)
        if h > H or w > W or min(h, w) < s:
            raise ValueError(f"{photo.name} is {H} x {W} pixels: not for crop {crop}, scale {s}")
        top, left = (H - h) // 2, (W - w) // 2
        gt = gt[..., top : top + h // s * s, left : left + w // s * s].contiguous()
        lq = degradation(gt, test_generator("stereo", photo.name)).contiguous()
        pairs.append((photo.name, lq, gt))
    return pairs
