"""The field's test protocol of stereo super-resolution, which ASteISR reports by, as data.

iPASSR's conventions: RGB of 8 bits without a border, the mean of both views, and *Left*, the left
view alone without its first 64 columns, which the published tables leave out for Flickr1024.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from .data.degradations import Bicubic
from .data.stereo_folders import StereoFolderPairs
from .evaluate import LEFT_COLUMNS, evaluate_stereo
from .names import did_you_mean

STEREO_PROTOCOLS: dict[str, int] = {"asteisr_x2": 2, "asteisr_x4": 4}
"""Scale by the protocol's name; the low resolution is that of the files."""
TEST_SETS = ("KITTI2012", "KITTI2015", "Middlebury", "Flickr1024")
"""Keys of `stereo_folders.STEREO_SETS`, in the order of the tables."""
COLUMNS = ("psnr_mean", "ssim_mean", f"psnr_left{LEFT_COLUMNS}", f"ssim_left{LEFT_COLUMNS}")


def evaluate_stereo_protocol(
    model: Callable[[Tensor], Tensor],
    root: str | Path,
    name: str,
    *,
    sets: tuple[str, ...] | None = None,
    strip_rows: int | str | None = None,
    any_count: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Scores a stereo model on the sets of a protocol.

    Args:
        model: (B, 2, 3, h, w) -> (B, 2, 3, s*h, s*w), an `ir_peft.Stereo` or a function.
        root: the folder that holds the data sets.
        name: a key of `STEREO_PROTOCOLS`.
        sets: only these of `TEST_SETS`; None is all.
        strip_rows: see `rows` of `restore_stereo`; the authors restore whole pairs.
        any_count: accept another number of pairs than the published one.
        progress: show progress bars.

    Returns:
        One dict a pair: protocol, set, and what `evaluate_stereo` gives.

    Raises:
        ValueError: no such protocol or set, or a model of another scale; as `find_stereo`, before a
            pair is restored; as `evaluate_stereo`.
        FileNotFoundError: a set is missing.
    """
    if name not in STEREO_PROTOCOLS:
        hint = did_you_mean(name, STEREO_PROTOCOLS) or "."
        raise ValueError(f"no protocol {name!r}{hint} There are {', '.join(STEREO_PROTOCOLS)}")
    chosen, scale = TEST_SETS if sets is None else tuple(sets), STEREO_PROTOCOLS[name]
    if not chosen or not set(chosen) <= set(TEST_SETS):
        raise ValueError(f"{name} has the sets {', '.join(TEST_SETS)}, not {chosen}")
    enlarges = getattr(model, "scale", scale)
    if enlarges != scale:
        raise ValueError(f"{name} is for models that enlarge by {scale}, this one by {enlarges}")
    files = {
        each: StereoFolderPairs(root, each, Bicubic(scale), any_count=any_count) for each in chosen
    }
    rows = []
    for each, pairs in files.items():
        found = evaluate_stereo(model, pairs, strip_rows=strip_rows, progress=progress)
        rows += [{"protocol": name, "set": each, **row} for row in found]
    return rows


def stereo_summary(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of means over pairs, a line a (protocol, set), with the convention below.

    Args:
        rows: from `evaluate_stereo_protocol`, of any protocols.
    """
    lines = [
        "| protocol | set | pairs | PSNR, mean [dB] | SSIM, mean | PSNR, Left [dB] | SSIM, Left |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, each in dict.fromkeys((row["protocol"], row["set"]) for row in rows):
        mine = [row for row in rows if (row["protocol"], row["set"]) == (name, each)]
        means = (sum(row[key] for row in mine) / len(mine) for key in COLUMNS)
        psnr, ssim, left_psnr, left_ssim = means
        lines.append(
            f"| {name} | {each} | {len(mine)} | {psnr:.2f} | {ssim:.4f} | {left_psnr:.2f} | "
            f"{left_ssim:.4f} |"
        )
    return "\n".join(lines) + (
        "\n\nRGB, results of 8 bits, no border, SSIM window uniform7; mean: of both views; "
        f"Left: the left view without its first {LEFT_COLUMNS} columns\n"
    )
