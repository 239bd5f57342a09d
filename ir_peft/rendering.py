"""From DataFrames to text: the strings of a table, as Markdown and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SHORT = (
    "method", "trainable", "PSNR [dB]", "SSIM", "below full [dB]", "paper Set14", "paper Urban100",
)  # fmt: skip
"""Columns of the short version of a table, the one of the README, beside "over ..."."""
PAPER_SETS = {"B100": "BSDS100", "LOL_test": "LOLv1"}
"""The paper's name of a test set of ours, in the tables where the two differ."""


def _clean(value: float, pattern: str) -> str:
    """Format a number; NaN becomes an empty cell."""
    return "" if value != value else pattern.format(value)


def _cost(value: float, pattern: str) -> str:
    """Format a cost; 0 and NaN, of rows that train nothing, become a dash."""
    return pattern.format(value) if value > 0 else "–"


def spread(mean: float, sd: float, seeds: int, digits: int) -> str:
    """Format a mean; with standard deviation and number of seeds where there are several."""
    text = _clean(mean, f"{{:.{digits}f}}")
    return text if sd != sd else f"{text} ± {sd:.{digits}f} ({seeds})"


def _short(count: float) -> str:
    """Parameters as the paper prints them: 693K, 119M."""
    if count != count:
        return "–"
    return f"{count / 1e6:.0f}M" if count >= 1e6 else f"{count / 1e3:.0f}K"


def display(frame: pd.DataFrame) -> pd.DataFrame:
    """Format :func:`table` for readers: strings, units, "not run", probable typos starred."""
    import pandas as pd

    sets = [column for column in frame if column.startswith("paper ")][1:-1]
    ours = [column for column in frame if column.startswith("ours ")]
    over = f"over {frame['against'].iloc[0]} [dB]"
    lines = []
    for _, r in frame.iterrows():
        line = {
            "method": r["label"],
            "trainable": _clean(r["trainable"], "{:,.0f}"),
            "% of backbone": _clean(100 * r["share"], "{:.2f}"),
            "PSNR [dB]": spread(r["psnr"], r["psnr_sd"], r["seeds"], 2),
            "SSIM": spread(r["ssim"], r["ssim_sd"], r["seeds"], 4),
            over: _clean(r["gain"], "{:+.2f}"),
            "below full [dB]": _clean(r["gap"], "{:.2f}"),
            "step [ms]": _cost(1e3 * r["step_seconds"], "{:.0f}"),
            "saved for backward [MiB]": _cost(r["saved_bytes"] / 2**20, "{:.1f}"),
            "adapter file [kB]": _cost(r["adapter_bytes"] / 1e3, "{:.1f}"),
        }
        if not r["seeds"]:
            line = {k: v if k == "method" else "" for k, v in line.items()} | {
                "PSNR [dB]": "not run"
            }
        if sets:
            flags = r["paper flags"] if isinstance(r["paper flags"], str) else ""
            line["paper #param"] = _short(r["paper params"])
            for column in sets:
                star = "*" if column.removeprefix("paper ") in flags.split() else ""
                line[column] = _clean(r[column], "{:.2f}") + star or "–"
        for column in ours:  # Ours before the paper's, both with SSIM where there is one.
            name = column.removeprefix("ours ")
            line[name] = _clean(r[column], "{:.2f}") + _clean(r[f"ssim {column}"], " / {:.4f}")
            for printed in {f"paper {name}", f"paper {PAPER_SETS.get(name)}"} & set(sets):
                ssim = r.get(f"ssim {printed}", float("nan"))
                line[printed] = line.pop(printed) + _clean(ssim, " / {:.4f}")
        lines.append(line)
    shown = pd.DataFrame(lines)
    optional = (over, "below full [dB]", "step [ms]", "saved for backward [MiB]")
    return shown.drop(columns=[c for c in optional if shown[c].isin(["", "–"]).all()])


def to_markdown(shown: pd.DataFrame) -> str:
    """Render strings as a Markdown table; every column but the first is aligned right.

    Two asterisks are bold, a single one is an asterisk.
    """
    lines = [list(shown.columns), ["---"] + ["---:"] * (shown.shape[1] - 1), *shown.values.tolist()]
    escaped = [
        [re.sub(r"\||(?<!\*)\*(?!\*)", r"\\\g<0>", str(cell)) for cell in line] for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


def to_latex(shown: pd.DataFrame, caption: str = "", notes: Sequence[str] = ()) -> str:
    """Render strings as a LaTeX ``table`` (needs booktabs and graphicx)."""
    lines = [" & ".join(map(_tex, line)) + r" \\" for line in shown.values.tolist()]
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\caption{" + _tex(caption) + "}",
            r"\resizebox{\linewidth}{!}{%",
            r"\begin{tabular}{l" + "r" * (shown.shape[1] - 1) + "}",
            r"\toprule",
            " & ".join(map(_tex, shown.columns)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            *[r"\par\footnotesize " + _tex(note) for note in notes],
            r"\end{table}",
            "",
        ]
    )


def _tex(text: object) -> str:
    """Escape one text for LaTeX; Markdown's backquotes and bold marks are dropped."""
    text = str(text).replace("`", "").replace("**", "").replace("±", r"$\pm$").replace("–", "--")
    return text.translate({ord(c): "\\" + c for c in "&%#_"}).replace(" > ", " $>$ ")
