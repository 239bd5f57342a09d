"""The field's published data sets, in a folder that the user supplies.

Nothing is downloaded and nothing stands in for a missing set: a set is complete under its name or
an error says what is missing. `check(root)` lists what a folder holds; `folder_pairs` makes test
pairs and training patches of it. The layouts are those of the releases of AdaptIR, Restormer and
PromptIR (the folders `test/dehaze`, `test/derain`, ...) and of the sets' own archives; `*` is the
part of the file name, without suffix, that pairs two files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ir_peft.data.images import read_image
from ir_peft.names import did_you_mean

__all__ = [
    "FOLDER_SETS",
    "Check",
    "CheckRow",
    "FilePair",
    "FolderSet",
    "check",
    "find_pairs",
    "lookup",
    "read_pair",
]

SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class FolderSet:
    """Where a data set lies under the root, and how many images it has."""

    layouts: tuple[tuple[str, str | None], ...]
    """(clean, damaged) patterns, the first that exists counts; None where code makes the damage."""
    count: int | None
    """Number of clean images; None where it is not known."""
    scales: tuple[int, ...] = (1,)
    """Down-sampling factors of the damaged files; {scale} stands for one in the pattern."""
    shared: bool = False
    """Several damaged files belong to one clean one, named by what stands before their first _."""

    @property
    def has_damaged(self) -> bool:
        """Whether the set comes with damaged files."""
        return self.layouts[0][1] is not None

    def describe(self, scale: int = 1, damaged: bool = True) -> str:
        """The layouts that `find_pairs` looks for, and how many images."""
        ways = [[clean, *([low] if damaged and low else [])] for clean, low in self.layouts]
        listed = " or ".join(" with ".join(way) for way in ways).format(scale=scale)
        return listed + (f", {self.count} images" if self.count else "")


def _sr(folder: str, low: str, count: int) -> FolderSet:
    return FolderSet(((folder, low),), count, scales=(2, 3, 4))


def _sr_test(name: str, count: int, suffix: str = "x{scale}") -> FolderSet:
    files = f"{name}/HR/*", f"{name}/LR_bicubic/X{{scale}}/*{suffix}"
    in_artsr = tuple(f"ARTSR/{pattern}" for pattern in files)  # Where AdaptIR's release has them.
    return FolderSet((files, in_artsr), count, scales=(2, 3, 4))


def _flat(name: str, count: int) -> FolderSet:
    return FolderSet(((f"{name}/*", None),), count)


def _rain(name: str) -> FolderSet:
    return FolderSet(
        (
            (f"{name}/norain-*", f"{name}/rainy/rain-*"),
            (f"{name}/gt/norain-*", f"{name}/rainy/rain-*"),
            (f"{name}/target/*", f"{name}/input/*"),
            (f"derain/{name}/target/*", f"derain/{name}/input/*"),
        ),
        100,
    )


def _pairs(name: str, count: int | None) -> FolderSet:
    return FolderSet(((f"{name}/target/*", f"{name}/input/*"),), count)


FOLDER_SETS: dict[str, FolderSet] = {
    "DIV2K": _sr("DIV2K/DIV2K_train_HR/*", "DIV2K/DIV2K_train_LR_bicubic/X{scale}/*x{scale}", 800),
    "Flickr2K": _sr(
        "Flickr2K/Flickr2K_HR/*", "Flickr2K/Flickr2K_LR_bicubic/X{scale}/*x{scale}", 2650
    ),
    "Set5": _sr_test("Set5", 5),
    "Set14": _sr_test("Set14", 14),
    "B100": _sr_test("B100", 100),
    "Urban100": _sr_test("Urban100", 100),
    "Manga109": _sr_test("Manga109", 109, "_LRBI_x{scale}"),
    "WED": _flat("WED", 4744),
    "BSD400": _flat("BSD400", 400),
    "BSD68": _flat("BSD68", 68),
    "CBSD68": FolderSet((("CBSD68/*", None), ("denoise/bsd68/*", None)), 68),
    "Kodak24": _flat("Kodak24", 24),
    "McMaster": _flat("McMaster", 18),
    "RainTrainL": FolderSet((("RainTrainL/norain-*", "RainTrainL/rain-*"),), 200),
    "RainTrainH": FolderSet((("RainTrainH/norain-*", "RainTrainH/rain-*"),), None),
    "Rain100L": _rain("Rain100L"),
    "Rain100H": _rain("Rain100H"),
    "Test100": _pairs("Test100", None),
    "Test1200": _pairs("Test1200", 1200),
    "Test2800": _pairs("Test2800", 2800),
    "Rain13K": FolderSet(
        (
            ("Rain13K/target/*", "Rain13K/input/*"),
            ("train/Rain13K/target/*", "train/Rain13K/input/*"),
        ),
        None,
    ),
    "GoPro_train": FolderSet((("GoPro/train/target/*", "GoPro/train/input/*"),), 2103),
    "OTS": FolderSet((("OTS/clear/*", "OTS/hazy/*"),), 2061, shared=True),
    "GoPro_test": FolderSet(
        (("GoPro/test/target/*", "GoPro/test/input/*"), ("GoPro/target/*", "GoPro/input/*")), 1111
    ),
    "HIDE": _pairs("HIDE", 2025),
    "SOTS_outdoor": FolderSet(
        (
            ("SOTS/outdoor/gt/*", "SOTS/outdoor/hazy/*"),
            ("SOTS/target/*", "SOTS/input/*"),
            ("dehaze/target/*", "dehaze/input/*"),
        ),
        None,
        shared=True,
    ),
    "LOL_train": FolderSet(
        (
            ("LOLv1/Train/target/*", "LOLv1/Train/input/*"),
            ("LOLv1/our485/high/*", "LOLv1/our485/low/*"),
        ),
        485,
    ),
    "LOL_test": FolderSet(
        (
            ("LOLv1/Test/target/*", "LOLv1/Test/input/*"),
            ("LOLv1/eval15/high/*", "LOLv1/eval15/low/*"),
        ),
        15,
    ),
}
"""Every set that can be loaded, by name."""


@dataclass(frozen=True)
class FilePair:
    """Files of one image."""

    name: str
    """The pairing part of the file name."""
    gt: Path
    """The clean image."""
    lq: Path | None
    """The damaged image, where it is a file."""


def find_pairs(
    root: str | Path,
    name: str,
    *,
    scale: int = 1,
    damaged: bool = True,
    any_count: bool = False,
) -> list[FilePair]:
    """List the files of one data set, sorted by name.

    Args:
        root: The folder that holds the data sets.
        name: A key of :data:`FOLDER_SETS`.
        scale: Down-sampling factor of the damaged files.
        damaged: Whether the damaged files are wanted as well.
        any_count: Accept another number of images than the published one.

    Raises:
        ValueError: the set is unknown or has no such files, a file has no partner, or the number of
            images is wrong.
        FileNotFoundError: a folder of the set is missing.
    """
    root, known = Path(root), lookup(name)
    layouts, count = known.layouts, known.count
    if damaged and (not known.has_damaged or scale not in known.scales):
        raise ValueError(f"{name} has no damaged files at scale {scale}")
    found = [(clean, low) for clean, low in layouts if _match(root, clean, scale)]
    if not found:
        tried = " or ".join(clean for clean, _ in layouts)
        raise FileNotFoundError(f"{name} is not available: no images {tried} in {root}")
    clean, low = found[0]
    gt = _match(root, clean, scale)
    images = len(gt)
    if not damaged:
        lq = dict.fromkeys(gt)
    else:
        lq = _match(root, low, scale)
        if not lq:
            pattern = low.format(scale=scale)
            raise FileNotFoundError(f"{name} is not available: no images {pattern} in {root}")
        gt = _partners(known, gt, lq)
        alone = sorted(gt.keys() ^ lq.keys())
        if alone:
            raise ValueError(f"{name} x{scale}: {len(alone)} images without a partner: {alone[:5]}")
    if count is not None and images != count and not any_count:
        raise ValueError(f"{name} has {images} images in {root}, expected {count}")
    return [FilePair(key, gt[key], lq[key]) for key in sorted(gt)]


def _partners(known: FolderSet, gt: dict[str, Path], lq: dict[str, Path]) -> dict[str, Path]:
    """The clean files by the keys of their damaged files, and those without one by their own."""
    if not known.shared:
        return gt
    clean = {key: key.partition("_")[0] for key in lq}
    alone = gt.keys() - clean.values()
    return {key: gt[name] for key, name in clean.items() if name in gt} | {k: gt[k] for k in alone}


def lookup(name: str) -> FolderSet:
    """Look up a data set; ValueError with the nearest name where there is none."""
    if name not in FOLDER_SETS:
        hint = did_you_mean(name, FOLDER_SETS)
        raise ValueError(f"no data set {name!r}: there are {', '.join(FOLDER_SETS)}{hint}")
    return FOLDER_SETS[name]


def _match(root: Path, pattern: str, scale: int) -> dict[str, Path]:
    """Image files of a pattern by what `*` stands for; empty where the folder is missing."""
    folder, _, name = pattern.format(scale=scale).rpartition("/")
    before, _, after = name.partition("*")
    found: dict[str, Path] = {}
    if not (root / folder).is_dir():
        return found
    for path in sorted((root / folder).iterdir()):
        stem = path.stem
        if path.suffix.lower() not in SUFFIXES or stem.startswith("."):
            continue
        if len(stem) > len(before + after) and stem.startswith(before) and stem.endswith(after):
            key = stem[len(before) : len(stem) - len(after)]
            if key in found:
                raise ValueError(f"{found[key]} and {path} are the same image of the set")
            found[key] = path
    return found


def read_pair(pair: FilePair, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read (lq (3, h, w), gt (3, s h, s w)); up to s - 1 last rows and columns of gt are cropped.

    Archives of one set differ in whether the clean images were cropped to a multiple of s.
    """
    lq, gt = read_image(pair.lq), read_image(pair.gt)
    h, w = lq.shape[1:]
    if not _fits(gt.shape[1:], (h, w), scale):
        raise ValueError(
            f"{pair.gt} has {tuple(gt.shape[1:])} pixels, {pair.lq} {(h, w)}: not {scale} times"
        )
    return lq, gt[:, : scale * h, : scale * w]


@dataclass(frozen=True)
class CheckRow:
    """What a folder holds of one data set at one scale."""

    name: str
    """The data set."""
    scale: int
    """Down-sampling factor of the damaged files; 1 where both sizes are equal."""
    missing: str | None
    """The files that were looked for and not found; None where the set is there."""
    found: int = 0
    """Number of clean images."""
    expected: int | None = None
    """Published number of images, where known."""
    problems: tuple[str, ...] = ()
    """Files without partner, of the wrong size, or unreadable; wrong number of images."""

    @property
    def ok(self) -> bool:
        """Whether the set can be used under its name."""
        return self.missing is None and not self.problems


@dataclass(frozen=True)
class Check:
    """The result of :func:`check`; prints as a table."""

    root: Path
    """The folder that was checked."""
    rows: tuple[CheckRow, ...]
    """One row a set and scale."""

    def __str__(self) -> str:
        lines = [f"{'set':18} {'scale':>5} {'found':>6} {'expected':>8}  state ({self.root})"]
        for row in self.rows:
            state = f"not available: no {row.missing}" if row.missing else "ok"
            state = f"{len(row.problems)} problem(s)" if row.problems else state
            expected = "?" if row.expected is None else row.expected
            lines.append(f"{row.name:18} {row.scale:>5} {row.found:>6} {expected:>8}  {state}")
            lines += [f"    {problem}" for problem in row.problems[:5]]
            if len(row.problems) > 5:
                lines.append(f"    ... and {len(row.problems) - 5} more")
        return "\n".join(lines)


def check(root: str | Path, *, progress: bool = True) -> Check:
    """Check every known data set below a folder; reads each image completely.

    Per set and scale: there or missing, the number of images against the published one, a partner
    for every file, clean size = scale x damaged size, files that cannot be read.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    sizes: dict[Path, tuple[int, int] | str] = {}
    rows = [
        _check_row(root, name, known, scale, sizes, progress)
        for name, known in FOLDER_SETS.items()
        for scale in known.scales
    ]
    return Check(root, tuple(rows))


def _check_row(
    root: Path,
    name: str,
    known: FolderSet,
    scale: int,
    sizes: dict[Path, tuple[int, int] | str],
    progress: bool,
) -> CheckRow:
    clean, low = next(
        (layout for layout in known.layouts if _match(root, layout[0], scale)), known.layouts[0]
    )
    gt, lq = _match(root, clean, scale), _match(root, low, scale) if low else {}
    if not gt or (low and not lq):
        missing = low.format(scale=scale) if gt and low else clean
        return CheckRow(name, scale, missing, len(gt), known.count)
    problems = []
    if known.count is not None and len(gt) != known.count:
        problems.append(f"{len(gt)} images, expected {known.count}")
    images, gt = len(gt), _partners(known, gt, lq)
    if low:
        problems += [f"{gt[key]}: no damaged partner" for key in sorted(gt.keys() - lq.keys())]
        problems += [f"{lq[key]}: no clean partner" for key in sorted(lq.keys() - gt.keys())]
    paths = [path for path in (*gt.values(), *lq.values()) if path not in sizes]
    for path in tqdm(paths, desc=f"{name} x{scale}", unit="file", disable=not progress):
        try:
            height, width = read_image(path).shape[1:]
            sizes[path] = height, width
        except ValueError as error:
            sizes[path] = str(error)
    problems += [sizes[p] for p in (*gt.values(), *lq.values()) if isinstance(sizes[p], str)]
    for key in sorted(gt.keys() & lq.keys()):
        large, small = sizes[gt[key]], sizes[lq[key]]
        if isinstance(large, str) or isinstance(small, str) or _fits(large, small, scale):
            continue
        problems.append(f"{gt[key]}: {large} pixels, not {scale} x {small}")
    return CheckRow(name, scale, None, images, known.count, tuple(problems))


def _fits(large: Sequence[int], small: Sequence[int], scale: int) -> bool:
    """Whether the clean size is scale x the damaged one, or has up to scale - 1 pixels more."""
    return all(0 <= a - scale * b < scale for a, b in zip(large, small, strict=True))
