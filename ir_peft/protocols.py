"""Test protocols of Restormer and of the all-in-one papers, as data: every convention has a name.

Their numbers for one task differ by the noise, the crop, the channel and the rounding, so two
protocols never share a column. Restormer (arXiv 2111.09881): an own convention for each task.
PromptIR (arXiv 2306.13090): one convention for three tasks, taken over for five by later papers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import metrics
from .data.folders import find_pairs, read_pair
from .data.images import centre, read_image
from .inference import restore
from .names import did_you_mean

Channel = Literal["rgb", "y_uint8"]
Noise = Literal["float_each_seed0", "uint8_running_seed0"]


@dataclass(frozen=True)
class Protocol:
    """How one task is tested."""

    sets: tuple[str, ...]
    """Test sets, keys of `folders.FOLDER_SETS`."""
    source: str
    """Whose convention it is, and where it departs from the authors' script."""
    sigma: int | None = None
    """Gaussian noise in grey levels of 255; None for sets that come damaged."""
    noise: Noise = "float_each_seed0"
    """"float_each_seed0": numpy's generator starts at 0 for every image, floats beyond [0, 1] stay;
    "uint8_running_seed0": it starts at 0 for a set and runs on through the images, sorted by name;
    the sum is clipped and cut off to 8 bits."""
    multiple: int = 1
    """Images are cut around their centre to a multiple of this, before the noise."""
    channel: Channel = "rgb"
    """"rgb", or "y_uint8": luma of the 8-bit image, rounded to 8 bits as MATLAB's `rgb2ycbcr`."""
    window: metrics.Window | None = None
    """SSIM window; None where the authors' SSIM is not one of ours, or is not computed."""
    rounded: bool = True
    """Whether the restored image is rounded to 8 bits before it is scored."""


_NOISE = Protocol(
    sets=("CBSD68", "Kodak24", "McMaster", "Urban100"),
    source="Restormer, Gaussian colour denoising: saved as PNG, PSNR on RGB without a border",
    sigma=25,
)
_ALL_IN_ONE = Protocol(
    sets=("CBSD68",),
    source="PromptIR, all-in-one: the set is called BSD68 there; its noise follows the order of "
    "the folder's listing, here the sorted names, and starts anew for each strength",
    noise="uint8_running_seed0",
    multiple=16,
    window="uniform7",
    rounded=False,
)
_PAIRED = "PromptIR, all-in-one: RGB floats, whole image cut to a multiple of 16"
PROTOCOLS: dict[str, Protocol] = {
    "restormer_denoise15": replace(_NOISE, sigma=15),
    "restormer_denoise25": _NOISE,
    "restormer_denoise50": replace(_NOISE, sigma=50),
    "restormer_derain": Protocol(
        sets=("Rain100L", "Rain100H", "Test100", "Test1200", "Test2800"),
        source="Restormer, deraining: MATLAB's Y of the saved image, SSIM 11 x 11",
        channel="y_uint8",
        window="gaussian11",
    ),
    "restormer_motion_deblur": Protocol(
        sets=("GoPro_test", "HIDE"),
        source="Restormer, motion deblurring: RGB of the saved image; the authors' SSIM, MATLAB's "
        "on three axes, reads higher and is not computed here",
    ),
    "promptir_denoise15": replace(_ALL_IN_ONE, sigma=15),
    "promptir_denoise25": replace(_ALL_IN_ONE, sigma=25),
    "promptir_denoise50": replace(_ALL_IN_ONE, sigma=50),
    "promptir_derain": replace(_ALL_IN_ONE, sets=("Rain100L",), source=_PAIRED),
    "promptir_dehaze": replace(_ALL_IN_ONE, sets=("SOTS_outdoor",), source=_PAIRED),
    "promptir_deblur": replace(_ALL_IN_ONE, sets=("GoPro_test",), source=_PAIRED),
    "promptir_low_light": replace(_ALL_IN_ONE, sets=("LOL_test",), source=_PAIRED),
}
"""Protocol by name."""

ALL_IN_ONE: dict[str, tuple[str, ...]] = {
    "three_tasks": (
        "promptir_dehaze", "promptir_derain",
        "promptir_denoise15", "promptir_denoise25", "promptir_denoise50",
    ),
    "five_tasks": (
        "promptir_dehaze", "promptir_derain", "promptir_denoise25", "promptir_deblur",
        "promptir_low_light",
    ),
}  # fmt: skip
"""Columns of the all-in-one tables, in their order; the printed average is the columns' mean."""


def evaluate_protocol(
    model: Callable[[Tensor], Tensor],
    root: str | Path,
    name: str,
    *,
    sets: tuple[str, ...] | None = None,
    tile: int | str | None = None,
    any_count: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Scores a model that keeps the size of the image on the sets of a protocol.

    Args:
        model: (B, 3, h, w) -> (B, 3, h, w).
        root: the folder that holds the data sets.
        name: a key of `PROTOCOLS`.
        sets: only these of its sets; None is all.
        tile: see `inference.restore`; the authors restore whole images.
        any_count: accept another number of images than the published one.
        progress: show a progress bar.

    Returns:
        One dict an image: protocol, set, image, psnr (dB), and ssim where the protocol has one.

    Raises:
        ValueError: no such protocol, or a set it does not have; as `find_pairs`, before an image is
            restored; or an image that is smaller than the protocol's multiple.
        FileNotFoundError: a set is missing.
    """
    if name not in PROTOCOLS:
        hint = did_you_mean(name, PROTOCOLS) or "."
        raise ValueError(f"no protocol {name!r}{hint} There are {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    chosen = protocol.sets if sets is None else tuple(sets)
    if not chosen or not set(chosen) <= set(protocol.sets):
        raise ValueError(f"{name} has the sets {', '.join(protocol.sets)}, not {chosen}")
    files = {
        each: find_pairs(root, each, damaged=protocol.sigma is None, any_count=any_count)
        for each in chosen
    }
    rows = []
    bar = tqdm(total=sum(map(len, files.values())), desc=name, unit="image", disable=not progress)
    for each, pairs in files.items():
        generator = np.random.RandomState(0)
        for pair in pairs:
            if protocol.sigma is None:
                lq, gt = (centre(x, protocol.multiple) for x in read_pair(pair, 1))
            else:
                gt = centre(read_image(pair.gt), protocol.multiple)
                if protocol.noise == "float_each_seed0":
                    generator = np.random.RandomState(0)
                lq = noisy(gt, protocol.sigma, protocol.noise, generator)
            scores = score(restore(model, lq, tile), gt, protocol)
            rows.append({"protocol": name, "set": each, "image": pair.name, **scores})
            bar.update()
    bar.close()
    return rows


def noisy(gt: Tensor, sigma: int, noise: Noise, generator: np.random.RandomState) -> Tensor:
    """Adds the protocol's noise to (3, H, W); numpy draws it in the order (H, W, 3)."""
    drawn = generator.normal(0, 1, (*gt.shape[1:], 3))
    added = torch.from_numpy(drawn).permute(2, 0, 1) * sigma  # (3, H, W), grey levels
    if noise == "float_each_seed0":
        return (gt.double() + added / 255).to(gt.dtype)
    levels = (gt.double() * 255).round() + added
    return (levels.clamp(0, 255).floor() / 255).to(gt.dtype)


def score(restored: Tensor, gt: Tensor, protocol: Protocol) -> dict[str, float]:
    """PSNR, and SSIM where the protocol has one, of (3, H, W) in [0, 1]."""
    if protocol.channel == "y_uint8":
        # Three times the same channel: a mean over channels is its value.
        restored, gt = (_luma(x).expand(3, -1, -1) for x in (restored, gt))
    options = {"channel": "rgb", "round_to_uint8": protocol.rounded}
    found = {"psnr": metrics.psnr(restored, gt, **options).item()}
    if protocol.window is not None:
        found["ssim"] = metrics.ssim(restored, gt, window=protocol.window, **options).item()
    return found


def _luma(x: Tensor) -> Tensor:
    """(3, H, W) in [0, 1] -> (1, H, W), Y of its 8 bits, itself of 8 bits."""
    return metrics.rgb_to_y((x[None].double().clamp(0, 1) * 255).round())[0].round() / 255


def convention(protocol: Protocol) -> str:
    """What a number of the protocol means, in words."""
    words = ["PSNR on RGB" if protocol.channel == "rgb" else "PSNR on Y of 8 bits"]
    if protocol.window is not None:
        words.append(f"SSIM window {protocol.window}")
    if protocol.sigma is not None:
        kept = "floats, anew for each image" if protocol.noise == "float_each_seed0" else "8 bits"
        words.append(f"noise {protocol.sigma} kept as {kept}")
    if protocol.multiple > 1:
        words.append(f"images cut to a multiple of {protocol.multiple}")
    words.append("results of 8 bits" if protocol.rounded else "results as floats")
    return ", ".join(words)


def summary(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of means over images, a line a (protocol, set), with its convention.

    Under it stands the average of each all-in-one table whose columns are complete.

    Args:
        rows: from `evaluate_protocol`, of any protocols.
    """
    lines = [
        "| protocol | set | images | PSNR [dB] | SSIM | convention |",
        "|---|---|---:|---:|---:|---|",
    ]
    for name, each in dict.fromkeys((row["protocol"], row["set"]) for row in rows):
        mine = [row for row in rows if (row["protocol"], row["set"]) == (name, each)]
        psnr = sum(row["psnr"] for row in mine) / len(mine)
        ssim = f"{sum(row['ssim'] for row in mine) / len(mine):.4f}" if "ssim" in mine[0] else "–"
        said = convention(PROTOCOLS[name])
        lines.append(f"| {name} | {each} | {len(mine)} | {psnr:.2f} | {ssim} | {said} |")
    run = {row["protocol"] for row in rows}
    for table, names in ALL_IN_ONE.items():
        if run >= set(names):
            lines += [
                "",
                f"{table}: {all_in_one_average(rows, table)['average']:.2f} dB on average",
            ]
    return "\n".join(lines) + "\n"


def all_in_one_average(rows: list[dict[str, Any]], table: str) -> dict[str, float]:
    """PSNR of each column of an all-in-one table and their mean, as it is printed.

    Args:
        rows: from `evaluate_protocol`, of every protocol of the table.
        table: a key of `ALL_IN_ONE`.

    Raises:
        ValueError: there is no such table, or a column has no rows.
    """
    if table not in ALL_IN_ONE:
        raise ValueError(f"no table {table!r}; there are {', '.join(ALL_IN_ONE)}")
    columns = {}
    for name in ALL_IN_ONE[table]:
        values = [row["psnr"] for row in rows if row["protocol"] == name]
        if not values:
            raise ValueError(f"{table} needs {', '.join(ALL_IN_ONE[table])}; no rows of {name}")
        columns[name] = sum(values) / len(values)
    return columns | {"average": sum(columns.values()) / len(columns)}
