"""AdaIR's questions as tables: tasks, pretraining, ablation, unseen damage, picks.

The functions take records (:func:`ir_peft.results.load_records`) and the plan of an experiment
file (:func:`plan`): what was not run is an empty cell (NaN), never a missing line. PSNR is in dB, a
mean over the images of a record, then over seeds. Nothing here reads a file or knows a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .records import comparable
from .rendering import spread

if TYPE_CHECKING:
    import pandas as pd

BASES = {
    "none": "random weights",
    "identity": "clean from clean",
    "noise": "noise",
    "blur": "blur",
    "down_up": "down and up",
    "rain": "rain",
    "mixed": "one of the four",
    "random_order": "all four, random order",
}
"""What each base of the transfer study restored in its pretraining, in print order."""

OWN_TASK = {
    "noise": "denoise25",
    "rain": "derain_light",
    "blur": "gaussian_deblur",
    "down_up": "sr4_same_size",
}
"""The task that is a base's own: it restored that kind of damage in its pretraining."""

UNSEEN_TASKS = ("jpeg", "motion_deblur", "low_light", "haze")
"""Tasks of the multi-task table that its base never met in its pretraining."""

VARIANTS: dict[str, dict[str, str]] = {
    "width": {
        "width_5": "width 5",
        "width_10": "width 10",
        "width_21": "width 21",
        "width_42": "width 42",
        "width_share": "width C/4",
    },
    "position": {
        "mdta": "attention, width 42",
        "gdfn": "feed-forward, width 42",
        "width_21": "both, width 21",
    },
    "levels": {
        "encoder": "encoder",
        "latent": "latent",
        "decoder": "decoder, refinement",
        "width_21": "all levels",
    },
    "mode": {"width_21": "parallel", "serial": "serial"},
    "kind": {
        "width_21": "1x1",
        "dw3x3": "1x1, depthwise 3x3, 1x1",
        "conv3x3": "3x3, width C/16, feed-forward",
    },
}
"""What the ablation varies: group -> row -> the variant's name; the default is in every group."""

_PROTOCOL = ("profile", "steps", "batch_size", "lq_size", "test_set", "crop", "channel")
_COSTS = ["trainable", "backbone_parameters", "adapter_bytes", "steps"]
_SEEDS = ["psnr_sd", "psnr_spread", "seeds"]


def plan(specs: Iterable[Any]) -> pd.DataFrame:
    """What an experiment file plans, a line a (table, row, task), in file order.

    Args:
        specs: From :func:`ir_peft.experiments.load_specs`.

    Returns:
        Columns ``table row label task method pretrained trained``; the last is the tuple of tasks
        that the row is trained on.
    """
    import pandas as pd

    names = ["table", "row", "label", "task", "method", "pretrained"]
    lines = [
        {
            **{name: getattr(spec, name) for name in names},
            "trained": spec.train_tasks or (spec.task,),
        }
        for spec in specs
    ]
    return pd.DataFrame(lines).drop_duplicates(names, ignore_index=True)


def scores(records: pd.DataFrame, planned: pd.DataFrame) -> pd.DataFrame:
    """The lines of a plan with PSNR and costs, NaN where there is no record.

    Returns:
        The plan's columns, then ``psnr`` and the costs (means over seeds), ``psnr_sd`` (sample
        standard deviation over ``seeds`` of them, NaN for one) and ``psnr_spread`` (the best less
        the worst seed).

    Raises:
        ValueError: The records mix profiles, test images or conventions, or hold a run twice.
    """
    keys = ["table", "row", "task"]
    if records.empty:
        return planned.assign(**dict.fromkeys(["psnr", *_COSTS, *_SEEDS], float("nan")))
    adair = records[(records["paper"] == "adair") & records["table"].isin(planned["table"])]
    for column in _PROTOCOL:
        values = adair[column].drop_duplicates().tolist()
        if len(values) > 1:
            raise ValueError(
                f"these records differ in {column!r} {values} and cannot share a table: "
                f"select one of them (results.select(records, {column}=...))"
            )
    for _, part in adair.groupby(["table", "task"]):
        comparable(part)
    runs = adair.groupby([*keys, "id"])[["psnr", *_COSTS]].mean()
    by_row = runs.groupby(keys)
    psnr, seeds = by_row["psnr"], by_row.size()
    several = [psnr.std(), (psnr.max() - psnr.min()).where(seeds > 1), seeds.astype(float)]
    return planned.join(by_row.mean().assign(**dict(zip(_SEEDS, several, strict=True))), on=keys)


def _wide(lines: pd.DataFrame, index: str, values: str = "psnr") -> pd.DataFrame:
    """Lines of a plan as a matrix, tasks as columns; both orders are the plan's."""
    wide = lines.pivot(index=index, columns="task", values=values)
    wide = wide.reindex(index=lines[index].unique(), columns=lines["task"].unique())
    return wide.rename_axis(columns=None)


def grid(records: pd.DataFrame, planned: pd.DataFrame, table: str = "multitask") -> pd.DataFrame:
    """PSNR of every row of a table (index) on every task.

    Returns:
        Columns ``label``, the tasks, ``mean`` (NaN unless all tasks of the table were run).

    Raises:
        ValueError: The plan has no such table, or records that must not share one.
    """
    chosen = planned[planned["table"] == table]
    if chosen.empty:
        raise ValueError(f"no table {table!r}; planned: {sorted(set(planned['table']))}")
    lines = scores(records, chosen)
    wide = _wide(lines, "row")
    labels = lines.drop_duplicates("row").set_index("row")["label"]
    wide["mean"] = wide.mean(axis=1, skipna=False)
    wide.insert(0, "label", labels)
    return wide


def printed_grid(
    records: pd.DataFrame, planned: pd.DataFrame, table: str = "multitask"
) -> pd.DataFrame:
    """:func:`grid` as text, with ± the deviation over (n) seeds where there are several."""
    shown = display(grid(records, planned, table))
    lines = scores(records, planned[planned["table"] == table])
    for _, one in lines[lines["seeds"] > 1].iterrows():
        text = spread(one["psnr"], one["psnr_sd"], int(one["seeds"]), 2)
        shown.loc[one["row"], one["task"]] = text
    return shown


def seeds_spread(records: pd.DataFrame, planned: pd.DataFrame) -> float:
    """The best less the worst seed [dB] where that is largest; NaN without several seeds.

    Rows from random weights, which scatter more and are far behind, are left out.
    """
    lines = scores(records, planned)
    return lines.loc[lines["pretrained"].eq(True), "psnr_spread"].max()


def transfer(records: pd.DataFrame, planned: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """PSNR by what the base was pretrained on (lines) and the task (columns).

    Returns:
        ``alone``: the bare base; ``adapted``: with an adapter trained for the task; ``gain``:
        the second minus the first. Lines are those of :data:`BASES` that the plan has.
    """
    lines = scores(records, planned[planned["table"].str.startswith("transfer-")])
    lines = lines.assign(base=lines["table"].str.removeprefix("transfer-"))
    bases, tasks = [b for b in BASES if b in set(lines["base"])], lines["task"].unique()
    alone, adapted = (
        _wide(lines[lines["method"] == method], "base").reindex(index=bases, columns=tasks)
        for method in ("frozen", "adair")
    )
    return {"alone": alone, "adapted": adapted, "gain": adapted - alone}


def ablation(records: pd.DataFrame, planned: pd.DataFrame) -> pd.DataFrame:
    """PSNR of the adapter's variants, a line a (group, variant) of :data:`VARIANTS`.

    Returns:
        Columns ``group row variant trainable``, then the tasks.

    Raises:
        ValueError: The plan's ablation has a row that no group names, or lacks one.
    """
    import pandas as pd

    lines = scores(records, planned[planned["table"] == "ablation"])
    named = {row for rows in VARIANTS.values() for row in rows}
    if named != set(lines["row"]):
        differ = sorted(named.symmetric_difference(lines["row"]))
        raise ValueError(f"adair_tables.VARIANTS and the plan's ablation differ in {differ}")
    wide = _wide(lines, "row")
    wide.insert(0, "trainable", lines.groupby("row")["trainable"].max())
    order = [
        {"group": group, "row": row, "variant": name}
        for group, rows in VARIANTS.items()
        for row, name in rows.items()
    ]
    return pd.DataFrame(order).join(wide, on="row")


def unseen_levels(records: pd.DataFrame, planned: pd.DataFrame) -> pd.DataFrame:
    """Trained at one strength, tested at others, beside the same method trained for each strength.

    Returns:
        A line a (row of table ``unseen``, tested task): ``trained`` (the task it was trained on),
        ``row``, ``like`` (the row of the multi-task table that is the same method), ``label``,
        ``task``, ``psnr``, ``own`` (PSNR of ``like``, trained for this very task with the same
        seeds), ``lost`` (own - psnr) and ``base`` (the frozen base).
    """
    if len(records):  # Other seeds than those of the table would add their scatter to the loss.
        seeds = records.loc[records["table"] == "unseen", "seed"]
        records = records[records["seed"].isin(seeds) | ~records["table"].eq("multitask")]
    lines = scores(records, planned[planned["table"].isin(["multitask", "unseen"])])
    single = lines[(lines["table"] == "multitask") & (lines["trained"].map(len) == 1)]
    same = ["method", "pretrained", "task"]
    own = single[[*same, "row", "psnr"]].rename(columns={"row": "like", "psnr": "own"})
    out = lines[lines["table"] == "unseen"].merge(own, on=same, how="left")
    base = single[single["row"] == "frozen"].set_index("task")["psnr"]
    out["base"] = out["task"].map(base)
    out["trained"] = out["trained"].str[0]
    out["lost"] = out["own"] - out["psnr"]
    return out[["trained", "row", "like", "label", "task", "psnr", "own", "lost", "base"]]


def unseen_tasks(records: pd.DataFrame, planned: pd.DataFrame) -> pd.DataFrame:
    """The multi-task table by task: is the damage new to the base, and what the adapter gains.

    Returns:
        Index: the tasks, those the base knows first. Columns: ``seen``, one a row of the table,
        then ``over base``, ``over scratch`` and ``below full``, all of AdaIR [dB].
    """
    by_task = grid(records, planned).drop(columns=["label", "mean"]).T.rename_axis(columns=None)
    by_task.insert(0, "seen", ~by_task.index.isin(UNSEEN_TASKS))
    by_task["over base"] = by_task["adair"] - by_task["frozen"]
    by_task["over scratch"] = by_task["adair"] - by_task["scratch"]
    by_task["below full"] = by_task["full"] - by_task["adair"]
    by_task = by_task.sort_values("seen", ascending=False, kind="stable")
    return by_task.rename_axis(index="task")


def picking(picks: pd.DataFrame) -> pd.DataFrame:
    """What it costs to let an estimator pick the adapter.

    Args:
        picks: A line an image: ``task`` (what was done to it), ``picked`` (the adapter taken),
            ``oracle`` (PSNR with the task's own adapter), ``psnr`` (with the one picked) [dB].

    Returns:
        A line a task and one for ``all``: ``images``, ``right`` (share picked rightly), ``oracle``,
        ``psnr`` (means), ``lost`` (their difference) and ``worst`` (the largest loss of an image).
    """
    import pandas as pd

    lines = picks.assign(
        right=picks["task"] == picks["picked"], lost=picks["oracle"] - picks["psnr"]
    )
    lines = pd.concat([lines, lines.assign(task="all")])
    by_task = lines.groupby("task", sort=False)
    out = by_task[["right", "oracle", "psnr", "lost"]].mean()
    out.insert(0, "images", by_task.size())
    return out.assign(worst=by_task["lost"].max())


def display(frame: pd.DataFrame, digits: int = 2, missing: str = "not run") -> pd.DataFrame:
    """A frame as text for readers: numbers with ``digits`` decimals, ``missing`` for NaN."""

    def text(cell: object) -> str:
        if isinstance(cell, bool):
            return "yes" if cell else "no"
        if isinstance(cell, float):
            return missing if cell != cell else f"{cell:.{digits}f}"
        return f"{cell:,}" if isinstance(cell, int) else str(cell)

    return frame.astype(object).map(text)
