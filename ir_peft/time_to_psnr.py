"""How long training takes until a validation reaches a PSNR, from the curves of records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def seconds_to_reach(
    curves: pd.DataFrame, targets: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Training time until a validation first reaches a PSNR; validations are the resolution.

    Args:
        curves: From :func:`ir_peft.results.load_curves`, one record a (row, task, seed).
        targets: Task -> PSNR [dB]; None takes what the row ``scratch`` ends with.

    Returns:
        A line a (row, task): ``target`` [dB], ``seconds`` (mean over seeds; NaN where it is never
        reached), ``first`` (reached at the first validation, so ``seconds`` is an upper bound).
        No lines where nothing was validated.
    """
    import pandas as pd

    columns = ["row", "task", "target", "seconds", "first"]
    if "val_psnr" not in curves:
        return pd.DataFrame(columns=columns)
    seen = curves.dropna(subset=["val_psnr"]).sort_values("step")
    if targets is None:
        ends = seen[seen["row"] == "scratch"].groupby(["task", "seed"])["val_psnr"].last()
        targets = ends.groupby("task").mean().to_dict()
    lines = []
    for (row, task, _), curve in seen.groupby(["row", "task", "seed"], sort=False):
        if task in targets:
            there = curve[curve["val_psnr"] >= targets[task]]
            seconds = there["seconds"].iloc[0] if len(there) else float("nan")
            first = bool(curve["val_psnr"].iloc[0] >= targets[task])
            lines.append((row, task, targets[task], seconds, first))
    frame = pd.DataFrame(lines, columns=columns)
    if frame.empty:
        return frame
    grouped = frame.groupby(["row", "task"], sort=False, as_index=False)
    return grouped.agg({"target": "mean", "seconds": "mean", "first": "all"})[columns]
