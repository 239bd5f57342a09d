"""Which rows a table has and in what order: those of its experiment file, and borrowed ones.

The print order is that of the file, so that a row is named in one place. A table of variants shows
rows of another table of its file beside its own: what the variants are compared with.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"

BORROWED: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("adaptir", "ablation"): ("ipt", ("adaptir",)),
    ("adaptir", "scaling"): ("ipt", ("frozen", "full", "adaptir", "houlsby", "lora", "fact")),
    ("adaptir", "peft"): ("ipt", ("frozen", "full", "lora", "adaptir")),
    ("asteisr", "ablation"): ("hat", ("asteisr",)),
}
"""(paper, table) -> the table that it borrows from, and the rows, printed first."""

BY_SIZE = (("adaptir", "scaling"),)
"""Tables that are printed method by method, each from its smallest to its largest size."""


def borrowed(paper: str, table: str) -> tuple[str, ...]:
    """Rows that a table shows from another one, in print order; () for most."""
    return BORROWED.get((paper, table), ("", ()))[1]


@cache
def _content(path: Path, changed: int) -> dict[str, Any]:
    """What an experiment file says; read again after a change."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def planned(paper: str, table: str, task: str) -> dict[str, str]:
    """Row -> label of one table in print order, as the files in ``experiments/`` ask for them.

    Borrowed rows come first. Empty where no file has the table, e.g. outside of a checkout.
    """
    tables: dict[str, dict[str, str]] = {}
    for path in sorted(EXPERIMENTS.glob("*.toml")):
        content = _content(path, path.stat().st_mtime_ns)
        for name, row in content["rows"].items():
            row = {**content.get("defaults", {}), **row}
            if row["paper"] == paper and task in row["tasks"]:
                tables.setdefault(row["table"], {})[name] = row["label"]
    source, names = BORROWED.get((paper, table), ("", ()))
    there = tables.get(source, {})
    return {name: there[name] for name in names if name in there} | tables.get(table, {})


def with_borrowed(records: pd.DataFrame) -> pd.DataFrame:
    """Give every table the records that it borrows; twice is the same as once.

    Args:
        records: From :func:`ir_peft.records.load_records`.

    Returns:
        The records, and copies of borrowed ones (same ``id``) whose ``table`` is the borrower.
    """
    import pandas as pd

    parts = [records]
    for (paper, table), (source, names) in BORROWED.items():
        if records.empty:
            break
        mine = records[(records["paper"] == paper) & (records["table"] == table)]
        from_there = (records["paper"] == paper) & (records["table"] == source)
        there = records[from_there & records["row"].isin(names)]
        same = ["task", "profile", "backbone"]
        there = there.merge(mine[same].drop_duplicates(), on=same)
        parts.append(there[~there["id"].isin(mine["id"])].assign(table=table))
    return pd.concat(parts, ignore_index=True)
