"""All tasks of a table on one page: PSNR of every row, and what became of every claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .rendering import spread, to_markdown
from .verdicts import Claim

if TYPE_CHECKING:
    import pandas as pd

NO_ADAPTERS = ("bicubic", "frozen", "full")
"""Methods without an adapter."""
WHOLE = ("full", "scratch")
"""Rows in which the backbone is trained, with adapters or without."""
VERDICTS = {True: "holds", False: "does not hold", None: "open"}


def best_adapters(frame: pd.DataFrame) -> list[str]:
    """The rows of the best adapter alone, beside which nothing else is trained.

    Several if they are printed alike; none if none was run.
    """
    alone = ~frame["method"].isin(NO_ADAPTERS) & ~frame["row"].isin(WHOLE)
    alone &= ~frame["row"].str.endswith(("_tail", "_ends"))
    printed = frame[alone].set_index("row")["psnr"].dropna().round(2)
    return printed[printed == printed.max()].index.tolist()


def scores(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """PSNR of every row on every task, as strings; the best adapter alone of each task is bold.

    Args:
        frames: Task -> table, from :func:`ir_peft.results.table`.

    Returns:
        Columns ``method trainable`` and one a task; a row that a task does not have is a dash.
    """
    import pandas as pd

    every = pd.concat(frames.values(), ignore_index=True)
    best = {task: best_adapters(frame) for task, frame in frames.items()}
    lines = []
    for row, mine in every.groupby("row", sort=False):
        counts = mine["trainable"].dropna().drop_duplicates()
        sizes = " to ".join(f"{count:,.0f}" for count in sorted({*counts[:1], *counts.nlargest(1)}))
        line = {"method": mine["label"].iloc[0], "trainable": sizes or "–"}
        for task, frame in frames.items():
            here = frame[frame["row"] == row]
            text = "–"
            if len(here):
                r = here.iloc[0]
                text = spread(r["psnr"], r["psnr_sd"], r["seeds"], 2) or "not run"
            line[task] = f"**{text}**" if row in best[task] else text
        lines.append(line)
    return pd.DataFrame(lines)


def verdicts(checks: Mapping[str, Sequence[Claim]]) -> pd.DataFrame:
    """What became of every claim on every task, as strings.

    Args:
        checks: Task -> the claims of its table.
    """
    import pandas as pd

    titles = dict.fromkeys(text.split(": ")[0] for found in checks.values() for _, text in found)
    lines = []
    for title in titles:
        line = {"claim": title}
        for task, found in checks.items():
            here = [VERDICTS[holds] for holds, text in found if text.split(": ")[0] == title]
            line[task] = here[0] if here else "–"
        lines.append(line)
    return pd.DataFrame(lines)


def overview(
    stem: str, frames: Mapping[str, pd.DataFrame], checks: Mapping[str, Sequence[Claim]]
) -> str:
    """The page: scores, then claims.

    Args:
        stem: The tables' common name, ``<paper>-<table>``.
        frames: Task -> table, from :func:`ir_peft.results.table`.
        checks: Task -> the claims of its table.
    """
    firsts = [
        label
        for frame in frames.values()
        for label in frame.set_index("row")["label"][best_adapters(frame)]
    ]
    counts = Counter(firsts).most_common()
    text = f"# {stem}\n\nMean PSNR [dB] over the test images of each task"
    text += "; ± is the sample standard deviation over (n) seeds" if _several(frames) else ""
    text += ". Bold: the best adapter alone"
    if counts:
        text += ", " + ", ".join(f"{label} on {count}" for label, count in counts)
        text += f" of {len(frames)} tasks"
    text += ". Channels, images, costs and evidence stand in each task's own table, "
    text += ", ".join(f"[{task}]({stem}-{task}.md)" for task in frames)
    text += f".\n\n{to_markdown(scores(frames))}"
    grid = verdicts(checks)
    return text if grid.empty else f"{text}\n{to_markdown(grid)}"


def _several(frames: Mapping[str, pd.DataFrame]) -> bool:
    return max(frame["seeds"].max() for frame in frames.values()) > 1
