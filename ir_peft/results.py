"""From records to tables: DataFrames, Markdown and LaTeX, ours beside the paper's numbers.

Every number of a table is read from a record or from ``results/paper_numbers.csv``; every sentence
above and under a table is computed from them. Nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .claims import PAPER_NAMES, check, claims, foot, head
from .files import write_text
from .overview import overview
from .records import (
    comparable,
    compare,
    comparison_report,
    load_curves,
    load_paper_numbers,
    load_records,
    load_step_costs,
    select,
)
from .rendering import SHORT, display, to_latex, to_markdown
from .stereo_tables import pages as stereo_pages
from .table_rows import BY_SIZE, borrowed, planned, with_borrowed

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "claims",
    "compare",
    "comparison_report",
    "display",
    "head",
    "load_curves",
    "load_paper_numbers",
    "load_records",
    "load_step_costs",
    "per_image",
    "planned",
    "select",
    "table",
    "to_latex",
    "to_markdown",
    "with_borrowed",
    "write_tables",
]

PAGES = {"asteisr": stereo_pages}
"""Paper -> its own pages: (table, records, task -> table, curves) -> file name -> content."""


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
    step_costs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Make one table: a line a row, ours beside the paper's.

    PSNR and SSIM are means over the images of each record, by test set and then over the sets where
    there are several, then over seeds; ``psnr_sd`` and ``ssim_sd`` are sample standard deviations
    over seeds, ``psnr_spread`` is the best minus the worst seed (all NaN for one seed). Seconds
    and bytes of a step are not those of the trainings, which shared their machine with other work,
    but of a benchmark in which the methods take turns.

    Args:
        records: From :func:`load_records`.
        task: The task, e.g. ``"lr4_noise30"``.
        paper: Keep the records of this paper's table; needed if there are several.
        name: Keep the records of this table; needed if there are several.
        profile: Keep the records of this profile; needed if there are several.
        backbone: Keep the records of this backbone; needed if there are several.
        rows: Row -> label in print order; default: :func:`planned`, then further rows found.
        paper_numbers: From :func:`load_paper_numbers` (the default).
        step_costs: From :func:`load_step_costs` (the default).

    Returns:
        Columns ``row label method width seeds trainable share psnr psnr_sd psnr_spread ssim ssim_sd
        gain gap step_seconds saved_bytes adapter_bytes table task against``, then ``ours <set>``
        (PSNR) where images belong to published sets, then ``paper params``, ``paper <set>`` (PSNR)
        and ``paper flags`` (sets whose printed value is a probable typo). ``ssim ours <set>`` and
        ``ssim paper <set>`` are the SSIM of these columns. ``share`` is trainable
        / backbone parameters (NaN where no record tells the latter), ``gain`` is against bicubic,
        or in a table without it the first borrowed row, which ``against`` names, ``gap`` is full
        minus this row [dB]. A row that was not run has ``seeds`` 0 and NaN.

    Raises:
        ValueError: Nothing matches, or the records must not share a column.
    """
    import numpy as np
    import pandas as pd

    chosen = with_borrowed(records)
    chosen = select(chosen, task=task, paper=paper, table=name, profile=profile, backbone=backbone)
    chosen = comparable(chosen)
    paper, name = chosen.iloc[0][["paper", "table"]]
    rows = planned(paper, name, task) if rows is None else rows
    labels = {**rows, **dict(chosen[["row", "label"]].drop_duplicates("row").values.tolist())}

    costs = ["trainable", "adapter_bytes"]
    scores = ["psnr", "ssim"]
    bysets = chosen.groupby(["row", "id", "set"], sort=False)[[*scores, *costs]].mean()
    byrow = bysets.groupby(["row", "id"], sort=False).mean().groupby("row")
    out = byrow.mean().join(byrow[["psnr", "ssim"]].std().add_suffix("_sd"))
    out["psnr_spread"] = (byrow["psnr"].max() - byrow["psnr"].min()).where(byrow.size() > 1)
    out["seeds"] = byrow.size()
    measured = step_costs if step_costs is not None else load_step_costs(chosen["backbone"].iloc[0])
    for cost in ("step_seconds", "saved_bytes"):
        out[cost] = np.nan if measured is None else measured[cost].reindex(out.index)
    out["share"] = out["trainable"] / chosen["backbone_parameters"].max()
    out = out.join(chosen.groupby("row")[["method", "width"]].first()).reindex(list(labels))
    out["seeds"] = out["seeds"].fillna(0).astype(int)
    base = next((row for row in ("bicubic", *borrowed(paper, name)) if row in out.index), None)
    psnr = out["psnr"].to_dict()
    out["gain"] = out["psnr"] - psnr.get(base, float("nan"))
    out["gap"] = psnr.get("full", float("nan")) - out["psnr"]
    out["label"] = list(labels.values())
    out["table"], out["task"], out["against"] = name, task, _words(base, labels.get(base, ""))
    order = ["label", "method", "width", "seeds", "trainable", "share", "psnr", "psnr_sd"]
    order += ["psnr_spread", "ssim", "ssim_sd", "gain", "gap", "step_seconds", "saved_bytes"]
    order += ["adapter_bytes"]
    out = out[[*order, "table", "task", "against"]]
    if (paper, name) in BY_SIZE:
        methods, _ = pd.factorize(out["method"], use_na_sentinel=False)
        out = out.iloc[np.lexsort((out["trainable"], methods))]
    out.index.name = "row"
    for test_set in filter(None, chosen["set"].unique()):
        ours = bysets.xs(test_set, level="set").groupby("row")[scores].mean()
        out[f"ours {test_set}"], out[f"ssim ours {test_set}"] = ours["psnr"], ours["ssim"]

    numbers = load_paper_numbers() if paper_numbers is None else paper_numbers
    published = _published(numbers, paper, task)
    # The paper's numbers stand beside its methods at its sizes, not beside variants of them.
    if not published.empty and not borrowed(paper, name):
        lookup = published.reindex([PAPER_NAMES.get(row) for row in out.index])
        out[lookup.columns] = lookup.to_numpy()
    return out.reset_index()


def _words(row: str | None, label: str) -> str:
    """How a sentence calls the row that gains are against."""
    if row == "frozen":
        return "the frozen model"
    if row == "bicubic":
        return f"the {label.lower()}" if label.startswith("Input") else label.lower()
    return label


def _published(numbers: pd.DataFrame, paper: str, task: str) -> pd.DataFrame:
    """The paper's scores of one task: a line a method, columns as in :func:`table`."""
    numbers = numbers[(numbers["paper"] == paper) & (numbers["version"] == "v1")]
    numbers = numbers[numbers["task"] == task]
    ssim = numbers[numbers["metric"] == "ssim"]
    numbers = numbers[numbers["metric"] == "psnr"]
    if numbers.empty:
        return numbers.set_index("method")[[]]
    sets = numbers["dataset"].unique()
    wide = numbers.pivot(index="method", columns="dataset", values="value")[sets]
    wide = wide.add_prefix("paper ")
    wide.insert(0, "paper params", numbers.groupby("method")["params"].first())
    flagged = numbers[numbers["flag"] != ""].groupby("method")["dataset"].agg(" ".join)
    wide = wide.assign(**{"paper flags": flagged.reindex(wide.index).fillna("")})
    second = ssim.pivot(index="method", columns="dataset", values="value")
    return wide.join(second.add_prefix("ssim paper "))


def per_image(records: pd.DataFrame, *, task: str, metric: str = "psnr", **wanted) -> pd.DataFrame:
    """PSNR (or SSIM) per image: a line an image and ``mean``, a column a row of the table.

    Where the images belong to several sets, ``mean`` is the mean of the sets' means.
    ``wanted`` narrows the records as in :func:`select`; several seeds are averaged.
    """
    chosen = comparable(select(with_borrowed(records), task=task, **wanted))
    wide = chosen.pivot_table(index="image", columns="row", values=metric, sort=False)
    known = list(planned(*chosen.iloc[0][["paper", "table", "task"]]))
    wide = wide[sorted(wide.columns, key=lambda row: (row not in known, [*known, row].index(row)))]
    sets = wide.index.str.rpartition("/").get_level_values(0)
    wide.loc["mean"] = wide.groupby(sets).mean().mean()
    return wide.rename_axis(columns=None)


def write_tables(
    records: pd.DataFrame,
    folder: str | Path,
    *,
    notes: str = "",
    paper_numbers: pd.DataFrame | None = None,
    curves: pd.DataFrame | None = None,
    **wanted: str,
) -> list[Path]:
    """Write every table of the records.

    The files are ``<paper>-<table>-<task>`` with ``.md``, ``-short.md``, ``.tex``, ``-images.csv``;
    a table with several tasks has ``<paper>-<table>-overview.md`` as well, and papers of
    :data:`PAGES` have pages of their own.

    Args:
        records: From :func:`load_records`.
        folder: Made if it does not exist; files are replaced atomically.
        notes: A sentence for every head, e.g. where the backbone's weights come from.
        paper_numbers: From :func:`load_paper_numbers` (the default).
        curves: From :func:`load_curves`, for pages on the course of trainings.
        **wanted: Narrows the records, e.g. ``profile="full"``.

    Returns:
        The files written.
    """
    numbers = load_paper_numbers() if paper_numbers is None else paper_numbers
    chosen = with_borrowed(select(records, **wanted))
    if chosen.empty:
        raise ValueError("there are no records to make a table of: nothing has been run")
    contents: dict[str, str] = {}
    # All tables exist before the first file is written: an error leaves the folder as it was.
    for (paper, name), parts in chosen.groupby(["paper", "table"]):
        frames, checks = {}, {}
        for task, part in parts.groupby("task"):
            frames[task] = frame = table(part, task=task, paper_numbers=numbers)
            images = per_image(part, task=task)
            checks[task] = check(frame, images, paper)
            bottom = foot(frame, images, numbers, task, paper)
            top = f"{head(part, frame)} {notes}".strip()
            sets = [one for one in part["set"].unique() if one]
            contents |= _files(f"{paper}-{name}-{task}", frame, images, top, bottom, sets)
        if len(frames) > 1:
            contents[f"{paper}-{name}-overview.md"] = overview(f"{paper}-{name}", frames, checks)
        if paper in PAGES:
            contents |= PAGES[paper](name, parts, frames, curves)
    for file, content in contents.items():
        write_text(Path(folder) / file, content)
    return [Path(folder) / file for file in contents]


def _files(
    stem: str,
    frame: pd.DataFrame,
    images: pd.DataFrame,
    top: str,
    bottom: Sequence[str],
    sets: Sequence[str],
) -> dict[str, str]:
    """File name -> content of one table; published `sets` have hundreds of images."""
    shown = display(frame)
    short = [column for column in shown if column in SHORT or column.startswith("over ")]
    if sets:
        kept = {"method", "trainable", *sets}
        short = [name for name in shown if name in kept or name.startswith("paper ")]
    digits = images.map("{:.2f}".format).rename(columns=frame.set_index("row")["label"])
    digits = digits.rename_axis("PSNR [dB]").T.reset_index(names="PSNR [dB]")
    listed = "\n".join("- " + line.replace("* P", r"\* P") for line in bottom)
    text = f"# {stem}\n\n{top}\n\n{to_markdown(shown)}\n{listed}\n"
    return {
        f"{stem}.md": text if sets else f"{text}\n## Per image\n\n{to_markdown(digits)}",
        f"{stem}-short.md": to_markdown(shown[short]),
        f"{stem}.tex": to_latex(shown, top, bottom),
        f"{stem}-images.csv": images.round(6).to_csv(),
    }
