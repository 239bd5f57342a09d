"""What an experiment on two views has of its own: the pairs it trains, validates and tests on.

`experiments.run` does the rest, for one view and for two. Rows without a stereo adapter go the same
way, each view as if it were alone, so that all rows see the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from .data import degradations, patches, photos, stereo, stereo_photos
from .evaluate import LEFT_COLUMNS, evaluate_stereo
from .specs import Profile, Spec

TEST_SETS: dict[str, tuple[str, ...]] = {
    "stereo3": stereo_photos.STEREO_PHOTOS,
    "motorcycle": ("motorcycle",),
}
"""Photographed pairs; the second set needs no download."""
VALIDATION_PAIRS = 6
VALIDATE_EVERY = 20
"""Steps between two validations at most: rows are compared by the steps to an equal PSNR."""


def stereo_profile(profile: Profile) -> Profile:
    """The profile with a stereo test set in place of its photographs, and with `VALIDATE_EVERY`.

    The test set is `stereo3`; where its files are not in the cache and no trusted record is made,
    it is `motorcycle`.
    """
    there = all(map(stereo_photos.available, TEST_SETS["stereo3"]))
    test_set = "stereo3" if there or profile.trusted else "motorcycle"
    every = min(profile.validate_every, VALIDATE_EVERY)
    return replace(profile, test_set=test_set, validate_every=every)


def patch_size(spec: Spec, profile: Profile) -> tuple[int, int]:
    """Height and width of a degraded view in pixels, as 2 : 5; the paper's is (32, 80)."""
    height = spec.patch or profile.lq_size
    return height, 5 * height // 2


def _pairs(spec: Spec, size: tuple[int, int], tiles: list, **options: Any) -> stereo.StereoPatches:
    task = degradations.TASKS[spec.task]
    # Of a wider range a patch would show too little twice.
    reach = patches.integer_scale(task) * size[1] // 5
    return stereo.StereoPatches(tiles, task, size, max_disparity=reach, **options)


def training_set(spec: Spec, profile: Profile) -> stereo.StereoPatches:
    """Seeded made-up pairs, half of them dead leaves, half layers of the training photographs.

    The largest disparity is a fifth of the patch's width.
    """
    length = profile.steps * profile.batch_size
    size = patch_size(spec, profile)
    return _pairs(spec, size, photos.train_photos(), seed=spec.seed, length=length)


def validation_pairs(spec: Spec, profile: Profile) -> list[tuple[str, Tensor, Tensor]]:
    """(name, lq, gt) of a few layered pairs of photographs that no training patch holds."""
    height, width = patch_size(spec, profile)
    scale = patches.integer_scale(degradations.TASKS[spec.task])
    while scale * width < LEFT_COLUMNS + 7:  # "Left" is to have room for a box of SSIM.
        height, width = height + 1, 5 * (height + 1) // 2
    tiles = photos.validation_photos()
    data = _pairs(spec, (height, width), tiles, length=VALIDATION_PAIRS, deadleaves_share=0)
    return [(f"layered{i}", *data[i]) for i in range(len(data))]


def test_pairs(spec: Spec, profile: Profile) -> list[tuple[str, Tensor, Tensor]]:
    """(name, lq, gt) of the photographed pairs: their middle rows, as many as the crop, whole.

    Raises:
        FileNotFoundError: a pair is not in the cache.
    """
    rows = min(profile.crop, spec.crop or profile.crop)
    task = degradations.TEST_TASKS[spec.task]
    pairs = []
    for photo in stereo_photos.stereo_photos(TEST_SETS[profile.test_set])[: profile.images]:
        height, width = photo.left.shape[:2]
        pairs += stereo.make_stereo_pairs([photo], task, crop=(min(rows, height), width))
    return pairs


def score(model: Callable[[Tensor], Tensor], pairs: list, progress: bool) -> list[dict[str, Any]]:
    """`evaluate_stereo`, with the means over both views under the names that all tables have."""
    rows = evaluate_stereo(model, pairs, progress=progress)
    return [{key.removesuffix("_mean"): value for key, value in row.items()} for row in rows]


# pytest must not take the function for a test where a test module imports it.
test_pairs.__test__ = False
