"""The windowed inference of IPT's authors (`forward_chop` of huawei-noah/Pretrained-IPT)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def chop(
    restore: Callable[[Tensor], Tensor], x: Tensor, p: int, s: int, batch_size: int = 64
) -> Tensor:
    """Restores an image from the centres of overlapping windows.

    Windows of side p start at every multiple of p/4 and give their central half; those at the top
    and at the left give their outer margin as well. One more row and column of windows ends at the
    lower right corner; they give what lies beyond the middle of their overlap with the regular
    ones. Where several windows give a pixel, it is their mean.

    Args:
        restore: (B, 3, p, p) -> (B, 3, s * p, s * p).
        x: (B, 3, H, W) with H, W >= p.
        p: side of the windows, a multiple of 4.
        s: scale.
        batch_size: windows restored at once.

    Returns:
        (B, 3, s * H, s * W).
    """
    B, _, H, W = x.shape
    rows, columns = _weights(H, p, s), _weights(W, p, s)
    places = [(b, i, j) for i in rows for j in columns for b in range(B)]
    out = x.new_zeros(B, 3, s * H, s * W)
    first = []  # The window in the upper left corner of each image.
    for chunk in (places[k : k + batch_size] for k in range(0, len(places), batch_size)):
        windows = restore(torch.stack([x[b, :, i : i + p, j : j + p] for b, i, j in chunk]))
        for window, (b, i, j) in zip(windows, chunk, strict=True):
            weight = torch.outer(rows[i], columns[j]).to(out)
            out[b, :, s * i : s * (i + p), s * j : s * (j + p)] += window * weight
            if len(first) < B:
                first.append(window)
    # Along the top the authors let this window alone fill its whole width.
    margin, end = s * p // 4, min(s * p, _split(W, p, s))
    out[..., :margin, :end] = torch.stack(first)[..., :margin, :end].to(out)
    return out


def _split(length: int, p: int, s: int) -> int:
    """The output pixel from which on the window at the far end stands alone."""
    rest = (length - p) % (p // 4)
    return s * (length - rest) - s * (p - rest) // 2


def _weights(length: int, p: int, s: int) -> dict[int, Tensor]:
    """Each window's start along one axis -> its share (s * p,) of the output pixels it covers."""
    starts = range(0, length - p + 1, p // 4)
    share = torch.zeros(len(starts), s * length)
    for row, start in zip(share, starts, strict=True):
        row[s * (start + p // 4 if start else 0) : s * (start + p - p // 4)] = 1
    share /= share.sum(dim=0).clamp(min=1)
    share[:, _split(length, p, s) :] = 0
    weights = {i: row[s * i : s * (i + p)] for i, row in zip(starts, share, strict=True)}
    last = weights.setdefault(length - p, torch.zeros(s * p))
    last[_split(length, p, s) - s * (length - p) :] = 1
    return weights
