"""Checks of the stereo data sets in the user's folder: files, sizes, and what the views show."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ir_peft.data.degradations import Bicubic
from ir_peft.data.folders import CheckRow
from ir_peft.data.stereo_folders import (
    STEREO_SETS,
    StereoFiles,
    StereoSet,
    alone,
    leaked_pairs,
    read_both,
    read_views,
    views,
)

__all__ = ["check_stereo", "doubts", "median_disparity", "row_offset"]


def median_disparity(left: torch.Tensor, right: torch.Tensor) -> float:
    """A rough disparity x_left - x_right of (3, H, W) views: negative where they are exchanged.

    Block matching at about 192 columns; the median over the more textured half of the pixels.
    """
    k = max(1, left.shape[2] // 192)
    small = (F.avg_pool2d(view.mean(0)[None, None], k) for view in (left, right))
    left, right = (v - F.avg_pool2d(v, 9, 1, 4, count_include_pad=False) for v in small)
    reach = left.shape[3] // 3
    tried = sorted(range(-reach, reach + 1), key=abs)  # Of equals the least, the first, counts.
    costs = []
    for d in tried:
        cost = (left - F.pad(right, (d, -d))).abs()  # right[x - d] at x
        cost[..., : max(d, 0)] = 1  # Nothing arrives there.
        cost[..., left.shape[3] + min(d, 0) :] = 1
        costs.append(F.avg_pool2d(cost, 7, 1, 3, count_include_pad=False))
    best = torch.tensor(tried)[torch.cat(costs, dim=1)[0].argmin(0)]  # (h, w)
    texture = F.avg_pool2d(left.abs(), 7, 1, 3)[0, 0]
    middle = slice(reach // 2, left.shape[3] - reach // 2)
    return k * best[:, middle][texture[:, middle] >= texture.median()].median().item()


def row_offset(left: torch.Tensor, right: torch.Tensor, reach: int = 8) -> int:
    """By how many rows the content of the left view lies below that of the right; (3, H, W) each.

    Where the correlation of the differences between neighbouring rows' means is largest.
    """
    rows = (view.mean(dim=(0, 2)).diff() for view in (left, right))
    a, b = (r - r.mean() for r in rows)
    n, reach = len(a), min(reach, len(a) // 4)

    def score(dy: int) -> float:
        upper, lower = a[max(0, dy) : n + min(0, dy)], b[max(0, -dy) : n + min(0, -dy)]
        return (upper * lower).mean().item()

    return max(sorted(range(-reach, reach + 1), key=abs), key=score)  # The first of equals.


def doubts(left: torch.Tensor, right: torch.Tensor) -> list[str]:
    """What speaks against a pair with equal rows, left view first; (3, H, W) each."""
    if offset := row_offset(left, right):
        return [f"the views look off by {offset} rows"]
    disparity = median_disparity(left, right)  # Matched along rows, so rows must agree.
    return [f"the views look exchanged, disparity {disparity:.0f}"] if disparity < 0 else []


def check_stereo(root: str | Path, *, progress: bool = True) -> tuple[CheckRow, ...]:
    """Check every stereo set below a folder; reads each image completely.

    Beyond what `folders.check` does: of all but patches, views that look exchanged or off by rows,
    and pairs to train on that are pairs of the test set;
    of the test sets, low resolution that is not the bicubic of the high one, and a PSNR of bicubic
    enlargement other than the published one, as where Middlebury is not halved.
    """
    return tuple(
        _check_row(Path(root), name, known, scale, progress)
        for name, known in STEREO_SETS.items()
        for scale in known.scales
    )


def _check_row(root: Path, name: str, known: StereoSet, scale: int, progress: bool) -> CheckRow:
    found = views(root, known, scale)
    count = len(next(iter(found.values())))
    missing = next((pattern for pattern, files in found.items() if not files), None)
    if missing is not None:
        return CheckRow(name, scale, missing, count, known.count)
    problems = [f"{path}: without a partner" for path in alone(found)]
    if known.count is not None and count != known.count:
        problems.append(f"{count} pairs, expected {known.count}")
    left, right, *low = found.values()
    errors: list[float] = []  # Of bicubic enlargement [dB], one a view.
    common = sorted(set.intersection(*(set(files) for files in found.values())))
    for key in tqdm(common, desc=f"{name} x{scale}", unit="pair", disable=not progress):
        files = StereoFiles(
            key, (left[key], right[key]), (low[0][key], low[1][key]) if low else None
        )
        try:
            lq, gt = read_both(files, scale) if low else (None, read_views(files.hr))
        except ValueError as error:
            problems.append(str(error))
            continue
        if known.bicubic or not low:
            problems += [f"{files.hr[0]}: {doubt}" for doubt in doubts(*gt)]
        if known.bicubic:
            problems += _content(files, lq, gt, scale, errors)
    if known.test_set and not problems:  # All of them can be read.
        pairs = [StereoFiles(key, (left[key], right[key]), None) for key in common]
        try:
            problems += leaked_pairs(root, name, pairs)
        except ValueError as error:
            problems.append(str(error))
    if known.bicubic and not problems:
        measured, published = sum(errors) / len(errors), known.bicubic[scale]
        if abs(measured - published) > 0.3:
            hint = "; Middlebury must be halved first" if name == "Middlebury" else ""
            problems.append(
                f"bicubic enlargement has {measured:.2f} dB, published are {published:.2f}: these "
                f"are other images{hint}"
            )
    return CheckRow(name, scale, None, count, known.count, tuple(problems))


def _content(files: StereoFiles, lq, gt, scale: int, errors: list[float]) -> list[str]:
    """Low resolution that is not the bicubic of the high one; appends the PSNR of each view."""
    problems = []
    difference = (Bicubic(scale)(gt) - lq).abs().mean().item() * 255
    if difference > 1:
        problems.append(
            f"{files.lr[0]}: {difference:.1f} grey levels from the bicubic of its high resolution"
        )
    enlarged = Bicubic(Fraction(1, scale))(lq)
    errors += (-10 * (enlarged - gt).square().mean(dim=(1, 2, 3)).log10()).tolist()
    return problems
