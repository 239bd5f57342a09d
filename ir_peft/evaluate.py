"""Scores of a model on pairs of degraded and clean images, one row an image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torch import Tensor
from tqdm import tqdm

from . import metrics
from .inference import restore
from .stereo_inference import restore_stereo

LEFT_COLUMNS = 64
"""What the protocol of iPASSR leaves out of the left view: columns that the right may not see."""


def evaluate(
    model: Callable[[Tensor], Tensor],
    pairs: Iterable[tuple[str, Tensor, Tensor]],
    *,
    crop_border: int,
    channel: metrics.Channel,
    window: metrics.Window = "gaussian11",
    tile: int | str | None = None,
    overlap: int = 16,
    self_ensemble: bool = False,
    progress: bool = True,
) -> list[dict[str, str | float]]:
    """Restores each degraded image and compares it with the clean one, both rounded to 8 bits.

    No image is skipped: whatever fails on one ends the evaluation with an error that names it.

    Args:
        model: (B, 3, h, w) -> (B, 3, s*h, s*w); a backbone, or a function such as bicubic resizing.
        pairs: (name, lq (3, h, w), gt (3, s*h, s*w)), floating point in [0, 1].
        crop_border: pixels left out at each side of the images.
        channel: "rgb" or "y", see `metrics.psnr`.
        window: of SSIM, see `metrics.ssim`.
        tile: see `inference.restore`, as for overlap and self_ensemble.
        overlap: pixels that neighbouring tiles share.
        self_ensemble: average over 8 flips and transpositions.
        progress: show a progress bar.

    Returns:
        One dict a pair, in order: image (its name), psnr (dB), ssim, seconds (restoring it).

    Raises:
        ValueError: no pairs, or an image of the wrong shape or with values that are not finite.
        TypeError: an image is not a floating-point tensor.
        FloatingPointError: the model's output is not finite.
    """
    if not isinstance(pairs, Sequence):  # One that reads files is not to be held in memory.
        pairs = list(pairs)
    if not pairs:
        raise ValueError("there are no image pairs to evaluate")
    rows = []
    for name, lq, gt in tqdm(pairs, desc="evaluate", unit="image", disable=not progress):
        try:
            start = time.perf_counter()
            sr = restore(model, lq, tile, overlap, self_ensemble)
            seconds = time.perf_counter() - start
            if sr.shape != gt.shape:
                raise ValueError(
                    f"restored to {tuple(sr.shape)}, but the clean one is {tuple(gt.shape)}"
                )
            psnr = metrics.psnr(sr, gt, crop_border=crop_border, channel=channel).item()
            ssim = metrics.ssim(
                sr, gt, crop_border=crop_border, channel=channel, window=window
            ).item()
        except (TypeError, ValueError, FloatingPointError) as error:
            raise type(error)(f"image {name!r}: {error}") from error
        rows.append({"image": name, "psnr": psnr, "ssim": ssim, "seconds": seconds})
    return rows


def evaluate_stereo(
    model: Callable[[Tensor], Tensor],
    pairs: Iterable[tuple[str, Tensor, Tensor]],
    *,
    strip_rows: int | str | None = None,
    overlap: int = 16,
    self_ensemble: bool = False,
    progress: bool = True,
) -> list[dict[str, str | float]]:
    """Restores each stereo pair and scores it by the field's stereo protocol.

    RGB, rounded to 8 bits, no border; SSIM with a 7 x 7 box (scikit-image's default). No pair is
    skipped: whatever fails on one ends the evaluation with an error that names it.

    Args:
        model: (B, 2, 3, h, w) -> (B, 2, 3, s*h, s*w), an `ir_peft.Stereo` or a function.
        pairs: (name, lq (2, 3, h, w), gt (2, 3, s*h, s*w)), floating point in [0, 1], left first.
        strip_rows: see `rows` of `restore_stereo`, as for overlap and self_ensemble.
        overlap: rows that neighbouring strips share.
        self_ensemble: average over 4 flips.
        progress: show a progress bar.

    Returns:
        One dict a pair, in order: image (its name), seconds, and with psnr (dB) and ssim in place
        of X: X_left, X_right of each view, X_mean their mean, the tables' "(Left + Right) / 2", and
        X_left64, the tables' "Left", of the left view without its first 64 columns.

    Raises:
        ValueError: no pairs, or one of the wrong shape or with values that are not finite.
        TypeError: a pair is not a floating-point tensor.
        FloatingPointError: the model's output is not finite.
    """
    if not isinstance(pairs, Sequence):  # As above.
        pairs = list(pairs)
    if not pairs:
        raise ValueError("there are no stereo pairs to evaluate")
    rows = []
    for name, lq, gt in tqdm(pairs, desc="evaluate", unit="pair", disable=not progress):
        try:
            if lq.ndim != 4:
                raise ValueError(f"expected a pair (2, 3, H, W), got {tuple(lq.shape)}")
            if gt.shape[-1] < LEFT_COLUMNS + 7:
                raise ValueError(
                    f"{gt.shape[-1]} columns leave {max(0, gt.shape[-1] - LEFT_COLUMNS)} beside "
                    f'the first {LEFT_COLUMNS}, which "Left" leaves out: SSIM needs 7'
                )
            start = time.perf_counter()
            sr = restore_stereo(model, lq, strip_rows, overlap, self_ensemble)
            row = {"image": name, "seconds": time.perf_counter() - start}
            if sr.shape != gt.shape:
                raise ValueError(
                    f"restored to {tuple(sr.shape)}, but the clean one is {tuple(gt.shape)}"
                )
            cut = [x[0, :, :, LEFT_COLUMNS:] for x in (sr, gt)]
            ssim = partial(metrics.ssim, window="uniform7")
            for key, score in (("psnr", metrics.psnr), ("ssim", ssim)):
                left, right = score(sr, gt).tolist()
                row[f"{key}_left"], row[f"{key}_right"] = left, right
                row[f"{key}_mean"] = (left + right) / 2
                row[f"{key}_left{LEFT_COLUMNS}"] = score(*cut).item()
        except (TypeError, ValueError, FloatingPointError) as error:
            raise type(error)(f"pair {name!r}: {error}") from error
        rows.append(row)
    return rows
