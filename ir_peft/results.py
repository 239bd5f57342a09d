"""From records to tables: DataFrames, Markdown and LaTeX, ours beside the paper's numbers.

Every number of a table is read from a record or from ``results/paper_numbers.csv``; every sentence
above and under a table is computed from them. Nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .claims import PAPER_NAMES, claims, foot, head
from .files import write_text
from .records import (
    comparable,
    compare,
    comparison_report,
    load_curves,
    load_paper_numbers,
    load_records,
    select,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ROWS",
    "claims",
    "compare",
    "comparison_report",
    "display",
    "head",
    "load_curves",
    "load_paper_numbers",
    "load_records",
    "per_image",
    "select",
    "table",
    "to_latex",
    "to_markdown",
    "write_tables",
]

# Rows of each table in print order; a row without a record is printed as "not run".
ROWS: dict[str, dict[str, str]] = {
    "hybrid": {
        "bicubic": "Bicubic",
        "frozen": "Frozen",
        "full": "Full fine-tuning",
        "tail": "Tail only",
        "bitfit": "BitFit",
        "bitfit_tail": "BitFit + tail",
        "lora": "LoRA",
        "lora_tail": "LoRA + tail",
        "houlsby": "Adapter (Houlsby)",
        "houlsby_tail": "Adapter (Houlsby) + tail",
        "adaptformer": "AdaptFormer",
        "adaptformer_tail": "AdaptFormer + tail",
        "adaptir": "AdaptIR",
        "adaptir_tail": "AdaptIR + tail",
        "adaptir_ends": "AdaptIR + both ends",
    },
    "multitask": {
        "bicubic": "Input",
        "frozen": "Base, frozen",
        "scratch": "From scratch",
        "all_full": "All in one, full fine-tuning",
        "full": "Full fine-tuning",
        "all_adair": "All in one, AdaIR",
        "lora": "LoRA",
        "adair": "AdaIR",
    },
}

SHORT = (
    "method", "trainable", "PSNR [dB]", "SSIM", "over bicubic [dB]", "below full [dB]",
    "paper Set14", "paper Urban100",
)  # fmt: skip
"""Columns of the short version of a table, the one of the README."""


def table(
    records: pd.DataFrame,
    *,
    task: str,
    paper: str | None = None,
    name: str | None = None,
    profile: str | None = None,
    backbone: str | None = None,
    rows: Mapping[str, str] | None = None,
    paper_numbers: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Make one table: a line a row, ours beside the paper's.

    PSNR and SSIM are means over the images of each record, then over seeds; ``psnr_sd`` and
    ``ssim_sd`` are sample standard deviations over seeds (NaN for one seed). Costs are means over
    seeds.

    Args:
        records: From :func:`load_records`.
        task: The task, e.g. ``"lr4_noise30"``.
        paper: Keep the records of this paper's table; needed if there are several.
        name: Keep the records of this table; needed if there are several.
        profile: Keep the records of this profile; needed if there are several.
        backbone: Keep the records of this backbone; needed if there are several.
        rows: Row -> label in print order; default: ``ROWS`` of the table, then further rows found.
        paper_numbers: From :func:`load_paper_numbers` (the default).

    Returns:
        Columns ``row label seeds trainable share psnr psnr_sd ssim ssim_sd gain gap seconds
        steps_per_second peak_memory adapter_bytes``, then ``paper params``, ``paper <set>`` (PSNR)
        and ``paper flags`` (sets whose printed value is a probable typo). ``share`` is trainable /
        backbone parameters (NaN where no record tells the latter), ``gain`` is against bicubic,
        ``gap`` is full minus this row [dB]. A row that was not run has ``seeds`` 0 and NaN.

    Raises:
        ValueError: Nothing matches, or the records must not share a column.
    """
    import pandas as pd

    chosen = select(records, task=task, paper=paper, table=name, profile=profile, backbone=backbone)
    chosen = comparable(chosen)
    found = dict(chosen.drop_duplicates("row")[["row", "label"]].values.tolist())
    rows = dict(ROWS.get(chosen["table"].iloc[0], {}) if rows is None else rows)
    labels = {**rows, **found}

    costs = ["trainable", "adapter_bytes", "seconds", "steps_per_second", "peak_memory"]
    runs = chosen.groupby(["row", "id"], sort=False)[["psnr", "ssim", *costs]].mean()
    byrow = runs.groupby("row")
    out = byrow.mean().join(byrow[["psnr", "ssim"]].std().add_suffix("_sd"))
    out["seeds"] = byrow.size()
    out["share"] = out["trainable"] / chosen["backbone_parameters"].max()
    out = out.reindex(list(labels))
    out["seeds"] = out["seeds"].fillna(0).astype(int)
    nothing = pd.Series(float("nan"), index=["psnr"])
    out["gain"] = out["psnr"] - (out.loc["bicubic"] if "bicubic" in out.index else nothing)["psnr"]
    out["gap"] = (out.loc["full"] if "full" in out.index else nothing)["psnr"] - out["psnr"]
    out.insert(0, "label", [labels[row] for row in out.index])
    order = ["label", "seeds", "trainable", "share", "psnr", "psnr_sd", "ssim", "ssim_sd"]
    out = out[[*order, "gain", "gap", *costs[2:], "adapter_bytes"]]
    out.index.name = "row"

    numbers = load_paper_numbers() if paper_numbers is None else paper_numbers
    published = _published(numbers, chosen["paper"].iloc[0], task)
    if not published.empty:
        lookup = published.reindex([PAPER_NAMES.get(row) for row in out.index])
        out[lookup.columns] = lookup.to_numpy()
    return out.reset_index()


def _published(numbers: pd.DataFrame, paper: str, task: str) -> pd.DataFrame:
    """The paper's PSNR of one task: a line a method, columns as in :func:`table`."""
    numbers = numbers[(numbers["paper"] == paper) & (numbers["version"] == "v1")]
    numbers = numbers[(numbers["task"] == task) & (numbers["metric"] == "psnr")]
    if numbers.empty:
        return numbers.set_index("method")[[]]
    sets = numbers["dataset"].unique()
    wide = numbers.pivot(index="method", columns="dataset", values="value")[sets]
    wide = wide.add_prefix("paper ")
    wide.insert(0, "paper params", numbers.groupby("method")["params"].first())
    flagged = numbers[numbers["flag"] != ""].groupby("method")["dataset"].agg(" ".join)
    return wide.assign(**{"paper flags": flagged.reindex(wide.index).fillna("")})


def per_image(records: pd.DataFrame, *, task: str, metric: str = "psnr", **wanted) -> pd.DataFrame:
    """PSNR (or SSIM) per image: a line an image and ``mean``, a column a row of the table.

    ``wanted`` narrows the records as in :func:`select`; several seeds are averaged.
    """
    chosen = comparable(select(records, task=task, **wanted))
    wide = chosen.pivot_table(index="image", columns="row", values=metric, sort=False)
    known = list(ROWS.get(chosen["table"].iloc[0], {}))
    wide = wide[sorted(wide.columns, key=lambda row: (row not in known, [*known, row].index(row)))]
    wide.loc["mean"] = wide.mean()
    return wide.rename_axis(columns=None)


def _clean(value: float, pattern: str) -> str:
    """Format a number; NaN becomes an empty cell."""
    return "" if value != value else pattern.format(value)


def _cost(value: float, pattern: str) -> str:
    """Format a cost; 0 and NaN, of rows that train nothing, become a dash."""
    return pattern.format(value) if value > 0 else "–"


def _spread(mean: float, sd: float, seeds: int, digits: int) -> str:
    """Mean, with the standard deviation and the number of seeds where there are several."""
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
    lines = []
    for _, r in frame.iterrows():
        line = {
            "method": r["label"],
            "trainable": _clean(r["trainable"], "{:,.0f}"),
            "% of backbone": _clean(100 * r["share"], "{:.2f}"),
            "PSNR [dB]": _spread(r["psnr"], r["psnr_sd"], r["seeds"], 2),
            "SSIM": _spread(r["ssim"], r["ssim_sd"], r["seeds"], 4),
            "over bicubic [dB]": _clean(r["gain"], "{:+.2f}"),
            "below full [dB]": _clean(r["gap"], "{:.2f}"),
            "train [s]": _cost(r["seconds"], "{:.0f}"),
            "steps/s": _cost(r["steps_per_second"], "{:.2f}"),
            "peak memory [MiB]": _cost(r["peak_memory"] / 2**20, "{:.0f}"),
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
        lines.append(line)
    return pd.DataFrame(lines)


def to_markdown(shown: pd.DataFrame) -> str:
    """Render strings as a Markdown table; every column but the first is aligned right."""
    lines = [list(shown.columns), ["---"] + ["---:"] * (shown.shape[1] - 1), *shown.values.tolist()]
    escaped = [
        [str(cell).replace("|", r"\|").replace("*", r"\*") for cell in line] for line in lines
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


def write_tables(
    records: pd.DataFrame,
    folder: str | Path,
    *,
    notes: str = "",
    paper_numbers: pd.DataFrame | None = None,
    **wanted: str,
) -> list[Path]:
    """Write every table of the records.

    The files are ``<paper>-<table>-<task>`` with ``.md``, ``-short.md``, ``.tex``, ``-images.csv``.

    Args:
        records: From :func:`load_records`.
        folder: Made if it does not exist; files are replaced atomically.
        notes: A sentence for every head, e.g. where the backbone's weights come from.
        paper_numbers: From :func:`load_paper_numbers` (the default).
        **wanted: Narrows the records, e.g. ``profile="full"``.

    Returns:
        The files written.
    """
    numbers = load_paper_numbers() if paper_numbers is None else paper_numbers
    chosen = select(records, **wanted)
    if chosen.empty:
        raise ValueError("there are no records to make a table of: nothing has been run")
    made = []
    for (paper, name, task), part in chosen.groupby(["paper", "table", "task"]):
        frame = table(part, task=task, paper_numbers=numbers)
        images = per_image(part, task=task)
        bottom = foot(frame, images, numbers, task, paper)
        made.append((f"{paper}-{name}-{task}", frame, images, part, bottom))
    written = []
    # All tables exist before the first file is written: an error above leaves the folder as it was.
    for stem, frame, images, part, bottom in made:
        top = f"{head(part, frame)} {notes}".strip()
        shown, digits = display(frame), images.map("{:.2f}".format).rename_axis("PSNR [dB]")
        labels = frame.set_index("row")["label"]
        digits = digits.rename(columns=labels).T.reset_index(names="PSNR [dB]")
        listed = "\n".join("- " + line.replace("* P", r"\* P") for line in bottom)
        text = f"# {stem}\n\n{top}\n\n{to_markdown(shown)}\n{listed}\n\n## Per image\n\n"
        contents = {
            f"{stem}.md": text + to_markdown(digits),
            f"{stem}-short.md": to_markdown(shown[[c for c in SHORT if c in shown]]),
            f"{stem}.tex": to_latex(shown, top, bottom),
            f"{stem}-images.csv": images.round(6).to_csv(),
        }
        for name, content in contents.items():
            write_text(Path(folder) / name, content)
            written.append(Path(folder) / name)
    return written
