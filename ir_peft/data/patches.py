"""Training patches and test pairs, made from photographs and a degradation.

A degradation that begins with Bicubic(s) stands for the field's released low-resolution files: the
whole area is downsampled once and kept like a saved file, the same patch is cut from both, and the
steps that follow damage the low-resolution patch (AdaptIR's protocol). Any other degradation is
applied to the high-resolution patch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from ir_peft.data.core import randint
from ir_peft.data.deadleaves import dead_leaves
from ir_peft.data.degradations import Bicubic, Compose, Degradation
from ir_peft.data.images import as_tensor
from ir_peft.data.photos import Photo

__all__ = [
    "Patches",
    "augment",
    "integer_scale",
    "item_generator",
    "make_test_pairs",
    "split_bicubic",
    "TaskPatches",
    "test_generator",
]

MARGIN = 2
"""Low-resolution pixels around a dead-leaves patch that are cut off: no patch sees the border."""


class Patches(Dataset):
    """Seeded random patches, as a map-style data set: item i is a pure function of (seed, i).

    Workers, resumed runs and shuffling therefore see exactly the same items. Photographs are held
    as uint8 in memory. An area is drawn with probability proportional to its pixels (areas smaller
    than a patch are left out), then a place, one of the 8 flips and rotations (the identity is one
    of them), then the degradation, all with the item's own generator.

    Args:
        photos: Where the patches come from.
        degradation: Makes the low-quality image; its scale must be an integer s.
        lq_size: Side p of the low-quality patch in pixels; the target's side is s p.
        seed: Non-negative seed of the whole set.
        length: Number of items, usually steps times batch size.
        deadleaves_share: Probability that an item is a dead-leaves image instead, in [0, 1].

    Raises:
        ValueError: no area is as large as a patch, or an argument is out of range.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        degradation: Degradation,
        lq_size: int,
        seed: int = 0,
        length: int = 1000,
        deadleaves_share: float = 0.0,
    ):
        if lq_size < 1 or length < 1 or seed < 0 or not 0 <= deadleaves_share <= 1:
            raise ValueError(
                "lq_size and length must be positive, seed >= 0, deadleaves_share in [0, 1]; got "
                f"{lq_size}, {length}, {seed}, {deadleaves_share}"
            )
        self.scale = integer_scale(degradation)
        self.lq_size, self.seed, self.length = lq_size, seed, length
        self.deadleaves_share = deadleaves_share
        self.bicubic, self.rest = split_bicubic(degradation)
        side = self.scale * lq_size
        areas = [area for photo in photos for area in photo.areas]
        fitting = [area for area in areas if min(area.shape[:2]) >= side]
        if not fitting and deadleaves_share < 1:
            largest = max((min(area.shape[:2]) for area in areas), default=0)
            raise ValueError(
                f"lq_size {lq_size} x scale {self.scale} needs an area of {side} x {side} pixels; "
                f"the largest square among {len(photos)} photographs is {largest} x {largest}"
            )
        self._pairs = [self._pair(as_tensor(area)) for area in fitting]
        pixels = [gt.shape[1] * gt.shape[2] for _, gt in self._pairs]
        self._ends = np.cumsum(pixels, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (lq (3, p, p), gt (3, s p, s p)), float32 in [0, 1]."""
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        generator = item_generator(self.seed, index)
        p, s = self.lq_size, self.scale
        if self.deadleaves_share and torch.rand((), generator=generator) < self.deadleaves_share:
            image = dead_leaves(s * (p + 2 * MARGIN), generator)
            lq, gt = self._pair((image * 255).round() / 255)
            y = x = MARGIN
        else:
            lq, gt = self._draw_area(generator)
            y = randint(lq.shape[1] - p + 1, generator)
            x = randint(lq.shape[2] - p + 1, generator)
        turn = randint(8, generator)
        gt = augment(_to_float(gt[:, s * y : s * (y + p), s * x : s * (x + p)]), turn)
        if self.bicubic is None:
            return self.rest(gt, generator).contiguous(), gt
        lq = augment(_to_float(lq[:, y : y + p, x : x + p]), turn)
        return (lq if self.rest is None else self.rest(lq, generator).contiguous()), gt

    def _draw_area(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        pixel = randint(int(self._ends[-1]), generator)
        return self._pairs[int(np.searchsorted(self._ends, pixel, side="right"))]

    def _pair(self, gt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Crop an image to a multiple of s and downsample it; 8-bit images come back as uint8.

        Where the degradation does not begin with Bicubic, the first of the pair is a view that
        stands for the places of the low-quality pixels only.
        """
        s = self.scale
        height, width = (side - side % s for side in gt.shape[1:])
        gt = gt[:, :height, :width]
        stored = (gt * 255).round().byte()
        if self.bicubic is None:
            return stored[:, ::s, ::s], stored
        lq = self.bicubic(gt)
        return (lq * 255).round().byte() if self.bicubic.quantize else lq, stored


class TaskPatches(Dataset):
    """Patches of several tasks, one task a step: item i belongs to step i // batch_size.

    The task of a step is drawn uniformly, as a pure function of (seed, step), so that a resumed run
    meets the tasks of the uninterrupted one. Scales may differ between tasks.

    Args:
        photos: Where the patches come from.
        tasks: Degradation of each task.
        batch_size: Items of a step.
        **options: Of every task's `Patches`: lq_size, seed, length, deadleaves_share.
    """

    def __init__(
        self, photos: Sequence[Photo], tasks: dict[str, Degradation], batch_size: int, **options
    ):
        self.sets = {name: Patches(photos, d, **options) for name, d in tasks.items()}
        self.batch_size = batch_size
        first = next(iter(self.sets.values()))
        self.seed, self.length = first.seed, first.length

    def __len__(self) -> int:
        return self.length

    def task(self, step: int) -> str:
        """Name of the task of one step."""
        names = list(self.sets)
        # Beyond the items' own numbers, so that no item shares the generator.
        return names[randint(len(names), item_generator(self.seed, self.length + step))]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (lq (3, p, p), gt (3, s p, s p)) of the step's task, float32 in [0, 1]."""
        return self.sets[self.task(index // self.batch_size)][index]


def make_test_pairs(
    photos: Sequence[Photo], degradation: Degradation, crop: int | None = None
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Degrade test photographs; the noise of each depends on its data set and name only.

    Args:
        photos: The test photographs.
        degradation: Makes the low-quality image from the whole (cropped) photograph; any rounding
            is its own.
        crop: Side in pixels of a centred square that is cut out first; None keeps the photograph.
            Afterwards it is cropped at the top left to a multiple of the scale.

    Returns:
        (name, lq (3, h, w), gt (3, s h, s w)) for each photograph, float32 in [0, 1].

    Raises:
        ValueError: a photograph is smaller than the crop or than the scale.
    """
    s = integer_scale(degradation)
    pairs = []
    for photo in photos:
        gt = as_tensor(photo.image)
        height, width = gt.shape[1:]
        if min(height, width, crop or height) < max(crop or 1, s):
            raise ValueError(
                f"{photo.name} is {width} x {height} pixels, too small for crop {crop}, scale {s}"
            )
        if crop is not None:
            top, left = (height - crop) // 2, (width - crop) // 2
            gt = gt[:, top : top + crop, left : left + crop]
        gt = gt[:, : gt.shape[1] // s * s, : gt.shape[2] // s * s].contiguous()
        lq = degradation(gt, test_generator(photo.dataset, photo.name)).contiguous()
        pairs.append((photo.name, lq, gt))
    return pairs


def split_bicubic(degradation: Degradation) -> tuple[Bicubic | None, Degradation | None]:
    """Split off a leading Bicubic that does all of the down-sampling, and what follows it.

    Returns:
        (Bicubic(s), rest or None), or (None, degradation) where it does not begin that way.
    """
    steps = degradation.steps if isinstance(degradation, Compose) else (degradation,)
    first, rest = steps[0], steps[1:]
    if not isinstance(first, Bicubic) or any(step.scale != 1 for step in rest):
        return None, degradation
    return first, Compose(*rest) if rest else None


def integer_scale(degradation: Degradation) -> int:
    """The down-sampling factor as an int; ValueError where it is not a positive integer."""
    if degradation.scale < 1 or degradation.scale != int(degradation.scale):
        raise ValueError(f"{degradation!r}: scale {degradation.scale} is not a positive integer")
    return int(degradation.scale)


def item_generator(seed: int, index: int) -> torch.Generator:
    """A CPU generator for one item, well mixed from (seed, index)."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def test_generator(dataset: str, name: str) -> torch.Generator:
    """The generator of one test image: every method and every order of images meets its noise."""
    digest = hashlib.sha256(f"{dataset}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


# pytest must not take the function for a test where a test module imports it.
test_generator.__test__ = False


def augment(x: torch.Tensor, turn: int) -> torch.Tensor:
    """Flip or rotate (..., H, W): turn % 4 quarter turns, after a flip where turn >= 4."""
    x = x.flip(-1) if turn >= 4 else x
    return torch.rot90(x, turn % 4, (-2, -1)).contiguous()


def _to_float(x: torch.Tensor) -> torch.Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x
