"""The field's stereo data sets, in a folder that the user supplies.

The layouts are those of iPASSR's and NAFSSR's preparations: `test/<set>/hr/<scene>/hr0.png` (left)
and `hr1.png`, `test/<set>/lr_x4/<scene>/lr0.png` and `lr1.png`; training patches as
`patches_x4/<number>/{hr0,hr1,lr0,lr1}.png`; and Flickr1024 as released, `0001_L.png`, `0001_R.png`.
Middlebury's high-resolution images are halved before anything else. As in `folders` a set is
complete under its name or an error says what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Dataset

from ir_peft.data.core import randint
from ir_peft.data.degradations import Degradation
from ir_peft.data.folders import SUFFIXES
from ir_peft.data.images import read_image
from ir_peft.data.patches import (
    MARGIN,
    integer_scale,
    item_generator,
    split_bicubic,
    test_generator,
)
from ir_peft.data.stereo import AUGMENTATIONS, augment_pair
from ir_peft.names import did_you_mean

__all__ = [
    "STEREO_SETS",
    "StereoFiles",
    "StereoFolderPairs",
    "StereoFolderPatches",
    "alone",
    "find_stereo",
    "leaked_pairs",
    "read_both",
    "read_views",
    "views",
]


@dataclass(frozen=True)
class StereoSet:
    """Where a data set lies under the root, and what is known of it."""

    hr: tuple[str, str]
    """Patterns of the left and the right view; `*` is the scene."""
    lr: tuple[str, str] | None
    """Alike for the low-resolution views, with {scale}; None where code makes them."""
    count: int | None
    """Number of pairs; None where it is not known."""
    scales: tuple[int, ...] = (1,)
    """Down-sampling factors of the low-resolution views; 1 where there are none."""
    bicubic: dict[int, float] = field(default_factory=dict)
    """Published PSNR of bicubic enlargement at each scale, RGB, mean of both views [dB]."""
    test_set: str | None = None
    """The set whose pairs may lie among its own, as files of one release."""


def _test(name: str, count: int, x2: float, x4: float) -> StereoSet:
    return StereoSet(
        tuple(f"test/{name}/hr/*/hr{view}" for view in (0, 1)),
        tuple(f"test/{name}/lr_x{{scale}}/*/lr{view}" for view in (0, 1)),
        count,
        (2, 4),
        {2: x2, 4: x4},
    )


def _patches(scale: int, count: int) -> StereoSet:
    folder = f"patches_x{scale}/*"
    hr, lr = ((f"{folder}/{kind}0", f"{folder}/{kind}1") for kind in ("hr", "lr"))
    return StereoSet(hr, lr, count, (scale,))


STEREO_SETS: dict[str, StereoSet] = {
    "stereo_patches_x2": _patches(2, 298_143),
    "stereo_patches_x4": _patches(4, 49_020),
    "Flickr1024": _test("Flickr1024", 112, 24.94, 21.82),
    "KITTI2012": _test("KITTI2012", 20, 28.51, 24.58),
    "KITTI2015": _test("KITTI2015", 20, 28.61, 24.38),
    "Middlebury": _test("Middlebury", 5, 30.60, 26.40),
    "Flickr1024_raw": StereoSet(
        ("Flickr1024/*_L", "Flickr1024/*_R"), None, None, test_set="Flickr1024"
    ),
}
"""Every set that can be loaded, by name."""


@dataclass(frozen=True)
class StereoFiles:
    """Files of one pair."""

    name: str
    """The scene."""
    hr: tuple[Path, Path]
    """Left and right, high resolution."""
    lr: tuple[Path, Path] | None
    """Alike, low resolution, where they are files."""


def find_stereo(
    root: str | Path, name: str, scale: int = 1, *, any_count: bool = False
) -> list[StereoFiles]:
    """List the pairs of one data set, sorted and paired by the scene's name.

    Args:
        root: The folder that holds the data sets.
        name: A key of :data:`STEREO_SETS`.
        scale: Of the low-resolution files; 1 leaves them alone.
        any_count: Accept another number of pairs than the published one.

    Raises:
        ValueError: the set is unknown or has no such files, a view has no partner, or the number of
            pairs is wrong.
        FileNotFoundError: the set is missing.
    """
    root, known = Path(root), _lookup(name)
    if scale != 1 and (known.lr is None or scale not in known.scales):
        raise ValueError(f"{name} has no low-resolution files at scale {scale}")
    found = views(root, known, scale)
    for pattern, files in found.items():
        if not files:
            raise FileNotFoundError(f"{name} is not available: no images {pattern} in {root}")
    left_over = alone(found)
    if left_over:
        raise ValueError(f"{name}: {len(left_over)} files without a partner: {left_over[:3]}")
    left, right, *low = found.values()
    if known.count is not None and len(left) != known.count and not any_count:
        raise ValueError(f"{name} has {len(left)} pairs in {root}, expected {known.count}")
    return [
        StereoFiles(key, (left[key], right[key]), (low[0][key], low[1][key]) if low else None)
        for key in sorted(left)
    ]


def _lookup(name: str) -> StereoSet:
    if name not in STEREO_SETS:
        hint = did_you_mean(name, STEREO_SETS)
        raise ValueError(f"no stereo set {name!r}: there are {', '.join(STEREO_SETS)}{hint}")
    return STEREO_SETS[name]


def views(root: Path, known: StereoSet, scale: int) -> dict[str, dict[str, Path]]:
    """Files of each view by scene: high resolution left and right, then low where wanted."""
    patterns = [*known.hr, *(known.lr if known.lr and scale != 1 else ())]
    return {pattern.format(scale=scale): _match(root, pattern, scale) for pattern in patterns}


def _match(root: Path, pattern: str, scale: int) -> dict[str, Path]:
    """Image files by what `*` stands for, which is one folder or a part of the file's name."""
    pattern = pattern.format(scale=scale)
    name = re.compile(re.escape(pattern).replace(r"\*", "([^/]+)"))
    found: dict[str, Path] = {}
    for path in sorted(root.glob(f"{pattern}.*")):
        match = name.fullmatch(path.relative_to(root).with_suffix("").as_posix())
        if match is None or path.suffix.lower() not in SUFFIXES or match[1].startswith("."):
            continue
        if match[1] in found:
            raise ValueError(f"{found[match[1]]} and {path} are the same view of the set")
        found[match[1]] = path
    return found


def alone(found: dict[str, dict[str, Path]]) -> list[str]:
    """Files of scenes that another view lacks."""
    common = set.intersection(*(set(files) for files in found.values()))
    return [
        str(path) for files in found.values() for key, path in files.items() if key not in common
    ]


def leaked_pairs(root: str | Path, name: str, pairs: Sequence[StereoFiles]) -> list[str]:
    """Pairs of a set that are pairs of its test set, as a sentence on each.

    Names say nothing, since the parts of a release are numbered alike. A pair is one to test on
    where its left view begins with the pixels of a test view, which may lack rows at the bottom and
    columns at the right. Resized or lossy copies are not found, and nothing is where the test set
    is not under the root. Reads every left view once.

    Raises:
        ValueError: a view cannot be read.
    """
    if _lookup(name).test_set is None:
        return []
    root, known = Path(root), _lookup(_lookup(name).test_set)
    tests: dict[bytes, list[Path]] = {}
    for path in _match(root, known.hr[0], 1).values():
        tests.setdefault(_corner(read_image(path)), []).append(path)
    found = []
    for pair in pairs if tests else ():
        view = read_image(pair.hr[0])
        for path in tests.get(_corner(view), ()):
            test = read_image(path)
            if torch.equal(view[:, : test.shape[1], : test.shape[2]], test):
                found.append(f"{pair.hr[0]} is the test view {path}: take the pair out of {name}")
    return found


def _corner(view: torch.Tensor) -> bytes:
    """What tells most images apart without holding them all in memory."""
    return view[:, :16, :16].numpy().tobytes()


def read_views(paths: tuple[Path, Path]) -> torch.Tensor:
    """(2, 3, H, W); ValueError where the views differ in size."""
    left, right = (read_image(path) for path in paths)
    if left.shape != right.shape:
        sizes = f"{tuple(left.shape[1:])} and {tuple(right.shape[1:])}"
        raise ValueError(f"{paths[0]} and {paths[1].name} differ in size: {sizes}")
    return torch.stack([left, right])


def read_both(files: StereoFiles, s: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Low (2, 3, h, w) and high resolution (2, 3, s h, s w); ValueError where they do not fit."""
    lq, gt = read_views(files.lr), read_views(files.hr)
    h, w = lq.shape[2:]
    if tuple(gt.shape[2:]) != (s * h, s * w):
        raise ValueError(
            f"{files.hr[0]} has {tuple(gt.shape[2:])} pixels, {files.lr[0]} {(h, w)}: not {s} times"
        )
    return lq, gt


def _plan(name: str, degradation: Degradation) -> tuple[int, int, Degradation | None]:
    """(scale, scale of the files to read or 1, what the code adds)."""
    s, (bicubic, rest) = integer_scale(degradation), split_bicubic(degradation)
    if bicubic is not None and s > 1 and _lookup(name).lr is not None:
        return s, s, rest
    return s, 1, degradation


class StereoFolderPairs(Sequence):
    """Test pairs of a set, read when indexed: (name, lq (2, 3, h, w), gt (2, 3, s h, s w)).

    Args:
        root: The folder that holds the data sets.
        name: A key of :data:`STEREO_SETS`.
        degradation: One that begins with Bicubic(s) reads the set's low-resolution files, if it has
            any, and adds the steps that follow; any other is applied to the high resolution.
        any_count: Accept another number of pairs than the published one.

    Raises:
        ValueError, FileNotFoundError: as :func:`find_stereo`, before anything is read.
    """

    def __init__(
        self, root: str | Path, name: str, degradation: Degradation, *, any_count: bool = False
    ):
        self.name = name
        self.scale, files, self.rest = _plan(name, degradation)
        self.pairs = find_stereo(root, name, files, any_count=any_count)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor, torch.Tensor]:
        files, s = self.pairs[index], self.scale
        if files.lr is not None:
            lq, gt = read_both(files, s)
        else:
            gt = read_views(files.hr)
            lq = gt = gt[..., : gt.shape[2] // s * s, : gt.shape[3] // s * s].contiguous()
        if self.rest is not None:
            lq = self.rest(lq, test_generator(self.name, files.name)).contiguous()
        return files.name, lq, gt


class StereoFolderPatches(Dataset):
    """Seeded random patches of sets on disk: the counterpart of `stereo.StereoPatches`.

    Item i is a pure function of (seed, i): a pair drawn uniformly over all sets, a place, the same
    in both views, one of the 24 ways of `augment_pair`, then the steps after Bicubic.

    Args:
        root: The folder that holds the data sets.
        names: Keys of :data:`STEREO_SETS`.
        degradation: As in :class:`StereoFolderPairs`; where the code downsamples, it does a part
            that is a little larger than the patch.
        lq_size: Height and width of a low-quality view in pixels; the default is all of the
            published patches.
        seed: Non-negative seed of the whole set.
        length: Number of items, usually steps times batch size.
        any_count: Accept other numbers of pairs than the published ones.

    Raises:
        ValueError: as :func:`find_stereo`, and where pairs are those of a test set under the root.
        FileNotFoundError: a set is missing.
    """

    def __init__(
        self,
        root: str | Path,
        names: Sequence[str],
        degradation: Degradation,
        lq_size: tuple[int, int] = (30, 90),
        seed: int = 0,
        length: int = 1000,
        *,
        any_count: bool = False,
    ):
        if isinstance(names, str) or not names:
            raise ValueError(f"names must be one or more data sets in a tuple, got {names!r}")
        if min(lq_size) < 1 or length < 1 or seed < 0:
            raise ValueError("lq_size and length must be positive and seed >= 0")
        self.lq_size, self.seed, self.length = lq_size, seed, length
        self.pairs: list[tuple[StereoFiles, Degradation | None]] = []
        for name in names:
            self.scale, files, rest = _plan(name, degradation)
            found = find_stereo(root, name, files, any_count=any_count)
            if leaked := leaked_pairs(root, name, found):
                raise ValueError(f"{len(leaked)} test pairs to train on: {'; '.join(leaked[:3])}")
            self.pairs += [(pair, rest) for pair in found]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (lq (2, 3, h, w), gt (2, 3, s h, s w)); ValueError where a pair is too small."""
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        generator = item_generator(self.seed, index)
        files, rest = self.pairs[randint(len(self.pairs), generator)]
        s, way = self.scale, randint(AUGMENTATIONS, generator)
        if files.lr is not None:
            lq, gt = read_both(files, s)
            lq, gt = self._cut(files, lq, gt, 0, generator)
            lq, gt = augment_pair(lq, way), augment_pair(gt, way)
            return (lq if rest is None else rest(lq, generator).contiguous()), gt
        gt = read_views(files.hr)
        _, gt = self._cut(files, gt[..., ::s, ::s], gt, MARGIN, generator)
        lq, m = rest(gt, generator), MARGIN
        lq, gt = lq[..., m:-m, m:-m], gt[..., s * m : -s * m, s * m : -s * m]
        return augment_pair(lq, way), augment_pair(gt, way)

    def _cut(self, files, lq, gt, margin, generator) -> tuple[torch.Tensor, torch.Tensor]:
        """One place, drawn at random, from both."""
        s, (h, w) = self.scale, (side + 2 * margin for side in self.lq_size)
        rows, columns = (side // s for side in gt.shape[2:])
        if rows < h or columns < w:
            raise ValueError(f"{files.hr[0]}: too small for patches of {s * h} x {s * w} pixels")
        y, x = randint(rows - h + 1, generator), randint(columns - w + 1, generator)
        return (
            lq[..., y : y + h, x : x + w],
            gt[..., s * y : s * (y + h), s * x : s * (x + w)],
        )
