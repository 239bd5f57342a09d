"""What a claim is, and when a difference of PSNR decides it.

Rows with several seeds say how far chance alone moves a row: by their spread, the best minus the
worst seed. A difference within it decides nothing, and none below `SEEDS` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

Claim = tuple["bool | None", str]
"""Whether it holds (None: not decided), and the sentence, ``title: evidence``."""

WORDS = {True: "Holds here", False: "Does not hold here", None: "Not decided here"}


RESOLUTION = 0.005
"""Differences below it are printed as 0.00 dB."""
SEEDS = 0.05
"""The largest spread of three seeds [dB] where there are three; rows with one seed may move so."""


def chance(spread: float) -> float:
    """The largest difference [dB] that decides nothing, from the seeds' spread (NaN: one seed)."""
    return SEEDS if spread != spread else max(SEEDS, spread)


def verdict(leads: Iterable[float], spread: float) -> bool | None:
    """Whether all leads [dB] are real: None if the least may be chance."""
    least = min(leads)
    return None if abs(least) <= chance(spread) else bool(least > 0)


def seeds_spread(rows: pd.DataFrame, *names: str) -> float:
    """The largest spread over seeds [dB] of some rows; NaN where none has several seeds."""
    return rows.loc[list(names), "psnr_spread"].max()


def beside(lead: float, spread: float, other: str = "") -> str:
    """A lead as text: ``+0.05 dB against LoRA, beyond the seeds' spread of 0.03 dB``."""
    text = f"{lead:+.2f} dB" + (f" against {other}" if other else "")
    if spread != spread:
        return text
    side = "beyond" if abs(lead) > spread else "within"
    return f"{text}, {side} the seeds' spread of {spread:.2f} dB"


def leads(rows: pd.DataFrame, us: str, others: Sequence[str], title: str) -> Claim:
    """The claim that one row leads some others; it cannot hold before all of them were run.

    Args:
        rows: A table indexed by row.
        us: The row that leads.
        others: The rows behind it.
        title: The claim.
    """
    psnr = rows["psnr"].dropna()
    run = [row for row in others if row in psnr]
    if us not in psnr or not run:
        return None, f"{title}: needs {us} and {' or '.join(others)}"
    spread = seeds_spread(rows, us, *run)
    ahead = psnr[us] - psnr[run]
    text = f"{title}: {rows['label'][us]} against "
    text += ", ".join(f"{rows['label'][row]} {lead:+.2f} dB" for row, lead in ahead.items())
    text += f"; the seeds' spread is {spread:.2f} dB" if spread == spread else ""
    missing = [row for row in others if row not in psnr]
    text += f"; not run: {', '.join(missing)}" if missing else ""
    holds = verdict(ahead, spread)
    return (None if holds and missing else holds), text
