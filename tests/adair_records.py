"""Made-up records and curves of experiments/adair.toml, as data frames."""

from pathlib import Path

import pandas as pd

from ir_peft import adair_tables
from ir_peft.specs import load_specs

ROOT = Path(__file__).resolve().parents[1]
PLAN = adair_tables.plan(load_specs(ROOT / "experiments" / "adair.toml"))
TASKS = list(dict.fromkeys(PLAN["task"]))
IMAGES = ("a", "b")
BASE, ADAPTER = 1_144_443, 60_480
STEP_COSTS = pd.DataFrame(
    {"step_seconds": [0.3, 0.3, 0.2, 0.2, 0.3, 0.2], "saved_bytes": 2.0**20},
    ["scratch", "full", "lora", "adair", "all_full", "all_adair"],
)
LEVEL = {
    "bicubic": 20.0, "frozen": 26.0, "scratch": 25.0, "full": 28.0, "lora": 27.0, "adair": 27.5,
    "all_full": 26.5, "all_adair": 26.2,
}  # fmt: skip


def psnr_of(line):
    """A PSNR that tells the line apart: by the method's level and a bit for row and task."""
    order = PLAN["row"].unique().tolist()
    if line.table == "multitask":
        level = LEVEL[line.row]
    elif line.table == "unseen":
        level = LEVEL[line.row.split("_")[1]] - (2.0 if line.task != line.trained[0] else 0.0)
    else:
        level = 24.0 + (3.0 if line.method == "adair" else 0.0) + 0.01 * order.index(line.row)
    return level + 0.1 * TASKS.index(line.task)


def make_records(keep=lambda line: True, psnr=psnr_of, seed=0):
    """Records of the plan's lines that `keep` takes; image b scores 1 dB more than image a."""
    lines = []
    for line in filter(keep, PLAN.itertuples()):
        trains = line.method not in ("bicubic", "frozen")
        whole = line.method == "full"
        for k, image in enumerate(IMAGES):
            lines.append(
                {
                    "id": f"{line.table}-{line.task}-{line.row}-s{seed}",
                    "paper": "adair",
                    **{key: getattr(line, key) for key in ("table", "row", "label", "task")},
                    "method": line.method,
                    "backbone": f"restormer_mini_{line.table}",
                    "lr": 1e-3,
                    "adapter_lr": float("nan"),
                    "seed": seed,
                    **{"profile": "full", "steps": 300, "batch_size": 4, "lq_size": 64},
                    **{"test_set": "photos11", "crop": 288.0, "channel": "rgb"},
                    **{"precision": "no", "files": "", "weights": None, "set": ""},
                    **{"crop_border": 0, "round_to_uint8": True, "window": "gaussian11"},
                    "trainable": BASE if whole else ADAPTER if trains else 0,
                    "backbone_parameters": float("nan") if line.method == "bicubic" else BASE,
                    "adapter_bytes": 4 * BASE if whole else 4 * ADAPTER if trains else 0,
                    "seconds": 300.0 if whole else 200.0 if trains else 0.0,
                    "steps_per_second": 1.0 if trains else float("nan"),
                    "peak_memory": 2.0**30 if trains else float("nan"),
                    "peak_memory_what": "peak resident set size" if trains else None,
                    **{"device": "two cores", "commit": "abcdef01", "dirty": False},
                    "date": "2026-11-22T08:00:00Z",
                    "image": image,
                    "psnr": psnr(line) + k - 0.5,
                }
            )
    return pd.DataFrame(lines)


def make_curves(records, every=100):
    """Validations of each trained record, 1 dB more with each, the last 0.2 dB below its PSNR."""
    lines = []
    means = records.groupby("id").agg(
        row=("row", "first"), label=("label", "first"), task=("task", "first"),
        seed=("seed", "first"), psnr=("psnr", "mean"),
        trainable=("trainable", "max"), seconds=("seconds", "max"),
    )  # fmt: skip
    for name, one in means[means["trainable"] > 0].iterrows():
        for step in range(every // 2, 301, every // 2):
            point = {"step": step, "loss": 1 / step, "seconds": one.seconds * step / 300}
            validated = step % every == 0
            reached = one.psnr - 0.2 - (300 - step) / every if validated else float("nan")
            lines.append(
                {"id": name, "row": one.row, "label": one.label, "task": one.task,
                 "seed": one.seed, **point, "val_psnr": reached}
            )  # fmt: skip
    return pd.DataFrame(lines)
