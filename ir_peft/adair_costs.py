"""What AdaIR's rows cost: time to a PSNR, parameters, files, memory, storage of many tasks.

As :mod:`ir_peft.adair_tables`: records and the plan of an experiment file in, tables out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .adair_tables import display, scores
from .time_to_psnr import seconds_to_reach

if TYPE_CHECKING:
    import pandas as pd

UNITS = {
    "trainable": (1e3, "trainable [K]"),
    "bytes": (1e3, "file [kB]"),
    "seconds": (60, "training [min]"),
    "reach": (60, "until scratch's PSNR [min]"),
    "peak_memory": (2**20, "peak memory [MiB]"),
    "all_bytes": (1e6, "all tasks, with the base [MB]"),
    "all_seconds": (60, "training of all tasks [min]"),
}
"""Column of :func:`cost` -> what it is divided by for readers, and its title."""


def cost(
    records: pd.DataFrame, curves: pd.DataFrame, planned: pd.DataFrame, table: str = "multitask"
) -> pd.DataFrame:
    """What each trained row of the multi-task table costs, for one task and for all.

    Args:
        records: From :func:`ir_peft.results.load_records`.
        curves: From :func:`ir_peft.results.load_curves`, of the same folder.
        planned: From :func:`plan`.
        table: The table.

    Returns:
        Index: the rows. Columns: ``label tasks`` (number of tasks run), per training
        ``trainable bytes seconds steps_per_second peak_memory``, ``reach`` (seconds to the
        validation PSNR that ``scratch`` ends with, mean over the tasks that reach it), ``reached``
        (their number, NaN where nothing was validated) of ``validated``, and for all tasks run
        ``all_seconds`` and ``all_bytes``, with the base in 32 bits where the row needs it.
    """
    import pandas as pd

    lines = scores(records, planned[planned["table"] == table])
    lines = lines[~lines["method"].isin(["bicubic", "frozen"])]
    ids = records[records["table"] == table]["id"] if len(records) else []
    single = set(lines[lines["trained"].map(len) == 1]["row"])
    own = curves[curves["id"].isin(ids) & curves["row"].isin(single)] if len(curves) else curves
    times = seconds_to_reach(own).groupby("row")["seconds"]
    out = []
    for row, part in lines.groupby("row", sort=False):
        run = part.dropna(subset=["psnr"])
        once = row not in single  # One training and one file serve all tasks.
        base = 0 if part["method"].iloc[0] == "full" else 4 * run["backbone_parameters"].max()
        total = run[["seconds", "adapter_bytes"]].agg("max" if once else "sum")
        out.append(
            {
                "row": row,
                "label": part["label"].iloc[0],
                "tasks": len(run),
                "trainable": run["trainable"].max(),
                "bytes": run["adapter_bytes"].mean(),
                **run[["seconds", "steps_per_second", "peak_memory"]].mean(),
                "all_seconds": total["seconds"] if len(run) else float("nan"),
                "all_bytes": total["adapter_bytes"] + base if len(run) else float("nan"),
            }
        )
    frame = pd.DataFrame(out).set_index("row")
    reached = {"reach": times.mean(), "reached": times.count(), "validated": times.size()}
    for place, (name, values) in enumerate(reached.items(), start=5):
        frame.insert(place, name, values.reindex(frame.index).astype(float))
    return frame


def in_units(costs: pd.DataFrame) -> pd.DataFrame:
    """What :func:`cost` returns as text for readers, in thousands, kilobytes and minutes."""
    out = costs[["label", "tasks"]].rename(columns={"label": "method"})
    for column, (unit, title) in UNITS.items():
        out[title] = costs[column] / unit
    return display(out, digits=1, missing="–")


def storage(
    model: float, adapters: Mapping[str, float], tasks: Iterable[int] = (1, 2, 4, 7, 10)
) -> pd.DataFrame:
    """Bytes on disk for T tasks: T models, T m, or one base and T adapters, m + T a.

    Args:
        model: Bytes m of one model, the base.
        adapters: Name -> bytes a of one adapter, e.g. in 32 and in 16 bits.
        tasks: Numbers of tasks T.

    Returns:
        Index: T. Columns: ``a model for each``, then ``base + <name>``.
    """
    import pandas as pd

    index = pd.Index(list(tasks), name="tasks")
    frame = pd.DataFrame({"a model for each": index * model}, index=index)
    for name, size in adapters.items():
        frame[f"base + {name}"] = model + index * size
    return frame
