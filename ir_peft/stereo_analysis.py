"""What an exchange between two views is worth: does attention find the disparity, who gains?

Plain tensors in, tensors and numbers out; nothing here knows a model. Disparities belong to the
left view: its pixel x shows what the right view has at x - d, d >= 0; NaN where it is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def matches(attention: Tensor) -> Tensor:
    """The disparity that attention points at: x - argmax_j A[x, j], (..., W, W) -> (..., W)."""
    return torch.arange(attention.shape[-2], device=attention.device) - attention.argmax(-1)


def occluded(disparity: Tensor, slack: float = 1.0) -> Tensor:
    """Which pixels of the left view the right view does not show, from the disparity alone.

    Those that leave the image, and those where a pixel of the same row with a disparity that is
    larger by more than `slack` arrives at the same column. A gap in a nearer surface that is
    stretched hides nothing. Unknown pixels are not occluded.

    Args:
        disparity: (H, W) in pixels.
        slack: in pixels; a slanted surface does not hide itself.

    Returns:
        (H, W) bool.
    """
    known = disparity.isfinite()
    d = torch.where(known, disparity, -torch.inf)
    there = torch.arange(d.shape[1], device=d.device) - torch.where(known, disparity, 0.0)
    column = there.round().long()
    outside = column < 0
    column = column.clamp(min=0)
    nearest = torch.full_like(d, -torch.inf)
    nearest.scatter_reduce_(1, column, torch.where(outside, -torch.inf, d), "amax")
    return known & (outside | (nearest.gather(1, column) > d + slack))


def to_grid(disparity: Tensor, scale: int) -> Tensor:
    """(H, W) -> (H // s, W // s) on the degraded image's grid and in its pixels.

    The median of each s x s square over s, which at an edge is that of one of the sides; NaN where
    a pixel of the square is unknown.
    """
    return _squares(disparity, scale).median(-1).values / scale  # NaN if one of them is.


def share_on_grid(mask: Tensor, scale: int) -> Tensor:
    """(H, W) bool -> (H // s, W // s): the share of each s x s square that is true."""
    return _squares(mask.float(), scale).mean(-1)


def _squares(x: Tensor, s: int) -> Tensor:
    """(H, W) -> (H // s, W // s, s * s)."""
    h, w = x.shape[0] // s, x.shape[1] // s
    x = x[: h * s, : w * s].reshape(h, s, w, s)
    return x.transpose(1, 2).reshape(h, w, s * s)


def textured(image: Tensor, radius: int = 2) -> Tensor:
    """The half of the pixels around which grey values change most along the row.

    Args:
        image: (3, H, W).
        radius: of the square window over which squared differences are averaged.

    Returns:
        (H, W) bool, true above the median.
    """
    step = F.pad(image.mean(0).diff(dim=1).square(), (0, 1))[None, None]
    side = 2 * radius + 1
    energy = F.avg_pool2d(step, side, 1, radius, count_include_pad=False)[0, 0]
    return energy > energy.median()


def hit_rate(found: Tensor, truth: Tensor, where: Tensor, tolerance: float) -> float:
    """Share of the pixels of `where` whose disparity is known and found within `tolerance`.

    Args:
        found: (H, W).
        truth: (H, W), NaN where unknown: those pixels do not count.
        where: (H, W) bool.
        tolerance: in pixels, itself included.

    Raises:
        ValueError: no pixel counts.
    """
    counted = _counted(truth, where)
    return ((found - truth).abs()[counted] <= tolerance).float().mean().item()


def chance_rates(truth: Tensor, where: Tensor, tolerance: float) -> dict[str, float]:
    """What `hit_rate` gives to those who do not look.

    Returns:
        "random": a column of the row drawn at random; "constant": the one whole disparity that hits
        most often, which knows the truth but not the image.
    """
    counted = _counted(truth, where)
    columns = torch.arange(truth.shape[1], device=truth.device)
    aim = (columns - truth)[counted]  # (N,), column in the right view
    hits = ((columns[:, None] - aim).abs() <= tolerance).float()  # (W, N)
    d = truth[counted]
    constants = [((k - d).abs() <= tolerance).float().mean().item() for k in columns.tolist()]
    return {"random": hits.mean().item(), "constant": max(constants)}


def mass_near(attention: Tensor, truth: Tensor, where: Tensor, tolerance: float) -> float:
    """Mean attention within `tolerance` of the true column: (H, W, W), truth and where (H, W)."""
    counted = _counted(truth, where)
    columns = torch.arange(truth.shape[1], device=truth.device)
    aim = (columns - truth)[counted][:, None]
    near = (columns - aim).abs() <= tolerance  # (N, W)
    return (attention[counted] * near).sum(-1).mean().item()


def _counted(truth: Tensor, where: Tensor) -> Tensor:
    counted = where & truth.isfinite()
    if not counted.any():
        raise ValueError("no pixel with a known disparity is left to count")
    return counted


def psnr_over(image: Tensor, truth: Tensor, where: Tensor) -> float:
    """PSNR [dB] over the pixels of `where`, all channels in one mean: (3, H, W), (H, W) bool."""
    if not where.any():
        raise ValueError("no pixel to take a mean over")
    error = _rounded(image).sub(_rounded(truth)).square().mean(0)
    return -10 * error[where].mean().log10().item()


def gain_map(before: Tensor, after: Tensor, truth: Tensor, side: int = 15) -> Tensor:
    """By how many dB `after` is nearer to the truth than `before`, around each pixel.

    The ratio of the mean squared errors over side x side pixels (side odd), kept finite by an error
    of a hundredth of a grey level squared: (3, H, W) three times -> (H, W).
    """
    floor = 0.01 / 255**2
    errors = [
        F.avg_pool2d(
            _rounded(x).sub(_rounded(truth)).square().mean(0)[None, None],
            side, 1, side // 2, count_include_pad=False,
        )[0, 0]
        for x in (before, after)
    ]  # fmt: skip
    return 10 * ((errors[0] + floor) / (errors[1] + floor)).log10()


def _rounded(image: Tensor) -> Tensor:
    return (image.double().clamp(0, 1) * 255).round() / 255


def regions(disparity: Tensor, edges: Sequence[float]) -> dict[str, dict[str, Tensor]]:
    """Parts of the left view: by what the right view shows of them, and by disparity.

    Args:
        disparity: (H, W) in pixels.
        edges: rising limits; the visible pixels of each part have lower <= d < upper.

    Returns:
        "visibility" -> {"visible", "occluded", "unknown"} and "disparity" -> {"8-18 px", ...},
        (H, W) bool each; empty parts are left out.
    """
    known, hidden = disparity.isfinite(), occluded(disparity)
    visible = known & ~hidden
    parts = {
        "visibility": {"visible": visible, "occluded": hidden, "unknown": ~known},
        "disparity": {
            f"{low:g}–{high:g} px": visible & (disparity >= low) & (disparity < high)
            for low, high in zip(edges[:-1], edges[1:], strict=True)
        },
    }
    return {kind: {k: v for k, v in each.items() if v.any()} for kind, each in parts.items()}


def gains(
    before: Tensor, after: Tensor, truth: Tensor, parts: Mapping[str, Tensor]
) -> list[dict[str, str | float]]:
    """PSNR of two restorations over each part: part, share (of the image), before, after, gain."""
    rows = []
    for name, where in parts.items():
        values = [psnr_over(image, truth, where) for image in (before, after)]
        row = {"part": name, "share": where.float().mean().item()}
        rows.append(row | {"before": values[0], "after": values[1], "gain": values[1] - values[0]})
    return rows


def densest_box(mask: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height, width of the box of this size with most true pixels, the first of equals.

    Raises:
        ValueError: the box is larger than the mask (H, W).
    """
    h, w = size
    if h > mask.shape[0] or w > mask.shape[1]:
        raise ValueError(f"a box of {h} x {w} does not fit into {tuple(mask.shape)}")
    sums = F.pad(mask.long().cumsum(0).cumsum(1), (1, 0, 1, 0))
    counts = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    top, left = divmod(int(counts.argmax()), counts.shape[1])
    return top, left, h, w
