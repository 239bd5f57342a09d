"""Result records: read, checked, compared.

A record is one JSON file that :func:`ir_peft.experiments.run` writes. This module turns folders of
them, and the published numbers, into DataFrames; it knows no model and imports files only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

PAPER_NUMBERS = Path(__file__).resolve().parents[1] / "results" / "paper_numbers.csv"
STEP_COSTS = PAPER_NUMBERS.parent / "benchmarks"

# What has to be equal before two records may stand in one column.
_CONVENTIONS = ("backbone", "profile", "steps", "batch_size", "lq_size", "test_set", "crop")
_CONVENTIONS += ("precision", "files", "weights")
_METRIC = ("channel", "crop_border", "round_to_uint8", "window")
_TOP_KEYS = ("id", "spec", "profile", "curve", "seconds", "steps_per_second", "peak_memory")
_TOP_KEYS += ("parameters", "adapter_bytes", "scores", "metric", "git", "device", "date")


def _read(folders: Sequence[str | Path]) -> list[dict]:
    """Read every ``*.json`` of the folders, checked, in the order of their ids."""
    records, origin = [], {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder of records")
        for path in sorted(folder.glob("*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is not a readable JSON file: {error}") from error
            missing = (
                [key for key in _TOP_KEYS if key not in record]
                if isinstance(record, dict)
                else _TOP_KEYS
            )
            if missing:
                raise ValueError(f"{path} is not a record of ir_peft: it lacks {missing}")
            if record["id"] in origin:
                raise ValueError(
                    f"record {record['id']!r} stands in both {origin[record['id']]} and {path}; "
                    "remove one of them"
                )
            if not record["scores"]:
                raise ValueError(f"{path} has no scores: the run was not evaluated")
            if any(score["psnr"] != score["psnr"] for score in record["scores"]):
                raise ValueError(f"{path} has a PSNR that is not a number: the run diverged")
            origin[record["id"]] = path
            records.append((path, record))
    return sorted(records, key=lambda item: item[1]["id"])


def _number(value: float | None) -> float:
    """A number, NaN where the record has none."""
    return float("nan") if value is None else float(value)


def _backbone_parameters(record: dict) -> float:
    """Parameters of the backbone alone; NaN where the record cannot tell (bicubic; old ones)."""
    counts = record["parameters"]
    # Records without the entry: the frozen row is the backbone, the others count what they add.
    alone = counts["total"] if record["spec"]["method"] == "frozen" else None
    return _number(counts.get("backbone", alone))


def _width(adapter: dict) -> float:
    """Width or rank of the adapter where the row chooses one, else NaN."""
    chosen = [adapter[key] for key in ("hidden", "bottleneck", "r") if key in adapter]
    return _number(chosen[0] if chosen else None)


def _flat(path: Path, record: dict) -> dict:
    """One record as flat columns, without curve and scores."""
    spec, profile, metric = record["spec"], record["profile"], record["metric"]
    memory = record["peak_memory"] or {"bytes": None, "what": None}  # None: nothing was trained
    try:
        return {
            "id": record["id"],
            **{k: spec[k] for k in ("paper", "table", "row", "label", "backbone", "task")},
            **{"method": spec["method"], "lr": _number(spec.get("lr")), "seed": spec["seed"]},
            "adapter_lr": _number(spec.get("adapter_lr")),
            "width": _width(spec.get("adapter", {})),
            "profile": profile["name"],
            **{k: profile.get(k) for k in ("steps", "batch_size", "test_set")},
            **{k: profile.get(k) for k in ("precision", "weights")},
            "files": ", ".join(f"{k} {n:,}" for k, n in profile.get("files", {}).items()),
            "lq_size": spec.get("patch") or profile.get("lq_size"),
            "crop": _number(
                min(filter(None, (spec.get("crop"), profile.get("crop"))), default=None)
            ),
            **{k: metric[k] for k in _METRIC},
            "trainable": record["parameters"]["trainable"],
            "total": record["parameters"]["total"],
            "backbone_parameters": _backbone_parameters(record),
            "adapter_bytes": record["adapter_bytes"],
            "seconds": record["seconds"],
            "steps_per_second": _number(record["steps_per_second"]),
            "peak_memory": _number(memory["bytes"]),
            "peak_memory_what": memory["what"],
            "commit": record["git"]["commit"] or "unknown",
            "dirty": record["git"]["dirty"],
            "device": record["device"],
            "date": record["date"],
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a record of ir_peft: it lacks {error}") from error


def load_records(*folders: str | Path) -> pd.DataFrame:
    """Read the records of some folders in long form.

    Args:
        *folders: Folders with one JSON file a record.

    Returns:
        One line a (record, image): ``image``, ``set`` (what stands before the ``/`` in the image's
        name, or ''), ``psnr`` [dB], ``ssim``, ``image_seconds``, of stereo pairs ``psnr_left``,
        ``ssim_left64`` and the like, and the record's flat columns (``id row label task trainable
        seconds ...``), sorted by id.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: A file is broken, is no record, has no scores, or an id occurs twice.
    """
    import pandas as pd

    lines = []
    for path, record in _read(folders):
        flat = _flat(path, record)
        for score in record["scores"]:
            line = {key: value for key, value in score.items() if key != "seconds"}
            line["set"] = score["image"].rpartition("/")[0]
            lines.append({**flat, **line, "image_seconds": score.get("seconds")})
    return pd.DataFrame(lines)


def load_curves(*folders: str | Path) -> pd.DataFrame:
    """Read the training curves: one line a logged step, with id, row, label, task and seed."""
    import pandas as pd

    names = ("id", "row", "label", "task", "seed")
    lines = []
    for path, record in _read(folders):
        flat = _flat(path, record)
        lines += [{**{k: flat[k] for k in names}, **point} for point in record["curve"]]
    return pd.DataFrame(lines)


def load_paper_numbers(path: str | Path | None = None) -> pd.DataFrame:
    """Read the published numbers; ``flag`` is '' where a cell is clean."""
    import pandas as pd

    path = Path(path or PAPER_NUMBERS)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: pass the path of paper_numbers.csv")
    numbers = pd.read_csv(path, dtype={"flag": str, "note": str, "dataset": str, "backbone": str})
    texts = ["dataset", "flag", "note", "backbone"]
    return numbers.fillna(dict.fromkeys(texts, ""))


def load_step_costs(backbone: str, folder: str | Path | None = None) -> pd.DataFrame | None:
    """Read what `benchmarks/methods.py` measured: time and memory of a step of every method.

    Returns:
        A line a row, ``step_seconds``, ``of_full`` (median of the ratios of neighbouring steps),
        ``saved_bytes`` and ``optimizer_bytes``; None where this backbone was not measured.
    """
    import pandas as pd

    for path in sorted(Path(folder or STEP_COSTS).glob("methods*-cpu.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["backbone"] == backbone:
            costs = pd.DataFrame(record["rows"]).set_index("row")
            costs["of_full"] = costs["of_full"].str["median"]
            costs = costs[["seconds", "of_full", "saved_bytes", "optimizer_bytes"]]
            return costs.rename(columns={"seconds": "step_seconds"})
    return None


def select(records: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """Keep the lines whose columns equal the wanted values; an error names what exists."""
    for column, value in wanted.items():
        if value is None:
            continue
        if records.empty:
            raise ValueError(f"no record is left for {column}={value!r}: nothing has been run")
        exists = sorted(records[column].unique())
        if value not in exists:
            raise ValueError(f"no record has {column}={value!r}; the records have {exists}")
        records = records[records[column] == value]
    return records


def comparable(records: pd.DataFrame) -> pd.DataFrame:
    """Refuse records that must not share a column: conventions, images, or two runs of a seed."""
    for column in ("paper", "table", "task", *_CONVENTIONS, *_METRIC):
        values = records[column].drop_duplicates().tolist()
        if len(values) > 1:
            raise ValueError(
                f"these records differ in {column!r} {values} and cannot share a column: "
                "select one of them (profile=..., backbone=..., or results.select)"
            )
    images = records.groupby("id")["image"].agg(lambda names: tuple(sorted(names)))
    if images.nunique() > 1:
        few = images[images != images.mode()[0]].index.tolist()
        raise ValueError(f"these records were scored on other images than the rest: {few}")
    for (row, seed), ids in records.groupby(["row", "seed"])["id"].unique().items():
        if len(ids) > 1:
            raise ValueError(f"row {row!r}, seed {seed} has several records {list(ids)}: keep one")
    return records


def compare(a: pd.DataFrame, b: pd.DataFrame, *, tolerance: float = 0.01) -> pd.DataFrame:
    """Compare two sets of records row by row and image by image.

    Args:
        a: From :func:`load_records`, e.g. scores recomputed from the shipped adapters.
        b: The same, e.g. the committed records.
        tolerance: Largest accepted difference of PSNR [dB].

    Returns:
        One line a (task, row, seed, image), with ``psnr_a psnr_b psnr_difference
        ssim_difference status``; status is ``equal``, ``off``, ``only in a`` or ``only in b``.

    Raises:
        ValueError: A common row was scored by another metric convention or on other crops.
    """
    keys = ["paper", "table", "backbone", "task", "row", "seed", "image"]
    rules = ["crop", *_METRIC]
    for name, side in (("a", a), ("b", b)):
        twice = side[side.duplicated(keys)]
        if len(twice):
            raise ValueError(f"{name} has a row twice: {twice['id'].unique().tolist()}; select one")
    both = a[[*keys, *rules, "psnr", "ssim"]].merge(
        b[[*keys, *rules, "psnr", "ssim"]],
        on=keys,
        how="outer",
        suffixes=("_a", "_b"),
        indicator="status",
    )
    common = both[both["status"] == "both"]
    for rule in rules:
        left, right = common[f"{rule}_a"], common[f"{rule}_b"]
        differ = common[(left != right) & ~(left.isna() & right.isna())]
        if len(differ):
            raise ValueError(
                f"rows {sorted(set(differ['row']))} differ in {rule!r}: not comparable"
            )
    for metric in ("psnr", "ssim"):
        both[f"{metric}_difference"] = both[f"{metric}_a"] - both[f"{metric}_b"]
    # The slack of 1e-9 keeps a difference of exactly one tolerance inside, whatever the rounding.
    # Two infinite PSNRs (identical images) are equal although their difference is NaN.
    same = (both["psnr_difference"].abs() <= tolerance + 1e-9) | (both["psnr_a"] == both["psnr_b"])
    sides = {"left_only": "only in a", "right_only": "only in b"}
    status = both["status"].astype(str).map(lambda side: sides.get(side, "off"))
    both["status"] = status.where(~same, "equal")
    return both[[*keys, "psnr_a", "psnr_b", "psnr_difference", "ssim_difference", "status"]]


def comparison_report(compared: pd.DataFrame, *, tolerance: float = 0.01) -> str:
    """Say in one paragraph what :func:`compare` found; rows that are off are named."""
    counts = compared["status"].value_counts()
    n = counts.get("equal", 0) + counts.get("off", 0)
    lines = [f"{counts.get('equal', 0)} of {n} values agree to {tolerance} dB."]
    for (task, row), group in compared[compared["status"] == "off"].groupby(["task", "row"]):
        worst = group.loc[group["psnr_difference"].abs().idxmax()]
        lines.append(
            f"OFF: {task} {row}: {len(group)} image(s), worst {worst['image']} "
            f"{worst['psnr_difference']:+.3f} dB."
        )
    for side in ("only in a", "only in b"):
        if counts.get(side, 0):
            rows = sorted(set(compared.loc[compared["status"] == side, "row"]))
            lines.append(f"{counts[side]} value(s) {side}: rows {', '.join(rows)}.")
    return "\n".join(lines)
