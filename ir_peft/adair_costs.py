"""What AdaIR's rows cost: time to a PSNR, parameters, files, memory, storage of many tasks.

As :mod:`ir_peft.adair_tables`: records and the plan of an experiment file in, tables out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .adair_tables import display, scores
from .records import load_step_costs
from .time_to_psnr import seconds_to_reach

if TYPE_CHECKING:
    import pandas as pd

UNITS = {
    "trainable": (1e3, "trainable [K]"),
    "bytes": (1e3, "file [kB]"),
    "step_seconds": (1e-3, "training step [ms]"),
    "reached": (1, "tasks that reach scratch's PSNR"),
    "reach_steps": (1, "steps until then, at most"),
    "reach_seconds": (60, "minutes until then, at most"),
    "saved_bytes": (2**20, "saved for backward [MiB]"),
    "all_bytes": (1e6, "all tasks, with the base [MB]"),
    "all_seconds": (60, "training of all tasks [min]"),
}
"""Column of :func:`cost` -> what it is divided by for readers, and its title."""


def cost(
    records: pd.DataFrame,
    curves: pd.DataFrame,
    planned: pd.DataFrame,
    step_costs: pd.DataFrame | None = None,
    table: str = "multitask",
) -> pd.DataFrame:
    """What each trained row of the multi-task table costs, for one task and for all.

    Times are steps times the seconds of a step as a benchmark measured them, all rows taking turns:
    the trainings shared their machine with other work.

    Args:
        records: From :func:`ir_peft.results.load_records`.
        curves: From :func:`ir_peft.results.load_curves`, of the same folder.
        planned: From :func:`ir_peft.adair_tables.plan`.
        step_costs: From :func:`ir_peft.records.load_step_costs` (the default); what it lacks is
            NaN.
        table: The table.

    Returns:
        Index: the rows. Columns: ``label tasks`` (number of tasks run), per training
        ``trainable bytes``, per step ``step_seconds saved_bytes``, ``reach_steps`` and
        ``reach_seconds`` (until the first validation at the PSNR that ``scratch`` ends with, mean
        over the ``common`` tasks in which every row gets there), ``reached`` (the row's own tasks
        that do, NaN where nothing was validated) of ``validated``, and for all tasks run
        ``all_seconds`` and ``all_bytes``, with the base in 32 bits where the row needs it.
    """
    import pandas as pd

    lines = scores(records, planned[planned["table"] == table])
    lines = lines[~lines["method"].isin(["bicubic", "frozen"])]
    ids = records[records["table"] == table]["id"] if len(records) else []
    single = set(lines[lines["trained"].map(len) == 1]["row"])
    own = curves[curves["id"].isin(ids) & curves["row"].isin(single)] if len(curves) else curves
    # Steps in the place of seconds: a step's time is the benchmark's.
    steps = seconds_to_reach(own.assign(seconds=own["step"]) if len(own) else own)
    everywhere = steps.groupby("task")["seconds"].transform(lambda found: found.notna().all())
    common = steps[everywhere.astype(bool)].groupby("row")["seconds"]
    steps = steps.groupby("row")["seconds"]
    if step_costs is None and len(records):
        step_costs = load_step_costs(records["backbone"].iloc[0])
    if step_costs is None:
        step_costs = pd.DataFrame(columns=["step_seconds", "saved_bytes"], dtype=float)
    out = []
    for row, part in lines.groupby("row", sort=False):
        run = part.dropna(subset=["psnr"])
        once = row not in single  # One training and one file serve all tasks.
        base = 0 if part["method"].iloc[0] == "full" else 4 * run["backbone_parameters"].max()
        files = run["adapter_bytes"].agg("max" if once else "sum")
        length = run["steps"].agg("max" if once else "sum")
        out.append(
            {
                "row": row,
                "label": part["label"].iloc[0],
                "tasks": len(run),
                "trainable": run["trainable"].max(),
                "bytes": run["adapter_bytes"].mean(),
                "steps": length,
                "all_bytes": files + base if len(run) else float("nan"),
            }
        )
    frame = pd.DataFrame(out).set_index("row")
    found = {"reach_steps": common.mean(), "common": common.count()}
    found |= {"reached": steps.count(), "validated": steps.size()}
    for name, values in {**found, **step_costs[["step_seconds", "saved_bytes"]]}.items():
        frame[name] = values.reindex(frame.index).astype(float).where(frame["tasks"] > 0)
    frame["reach_seconds"] = frame["reach_steps"] * frame["step_seconds"]
    frame["all_seconds"] = frame["steps"] * frame["step_seconds"]
    return frame.drop(columns="steps")


def in_units(costs: pd.DataFrame) -> pd.DataFrame:
    """What :func:`cost` returns as text for readers, in the units of :data:`UNITS`."""
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
