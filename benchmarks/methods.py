"""One training step of every method, side by side: seconds, bytes kept for backward, bytes on disk.

The rows are those of a table of an experiment file, on one backbone and one task, with the table's
adapters at their start; the methods' steps take turns, so that whatever else the machine does hits
all of them. Times are medians, ratios are medians over rounds of neighbouring steps (quartiles
beside them). Loss: the mean absolute output.

    saved       unique storages that autograd keeps for backward, without parameters
    optimizer   AdamW's two moments of what trains, in float32
    file        parameters and buffers that `save_adapter` writes

Rows on two views take as many pairs.

Usage: python benchmarks/methods.py
       python benchmarks/methods.py --device cuda --rounds 20
       python benchmarks/methods.py --file experiments/asteisr.toml --tables hat --task sr4 --name N
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import harness
import torch
from train_step import Runner

from ir_peft import adapters, devices, experiments, results, stereo_experiments
from ir_peft.files import write_text
from ir_peft.provenance import device_name, git_state, versions
from ir_peft.specs import Spec

FILE = "experiments/adaptir_ipt.toml"
TABLES = ("ipt", "peft")
CLOCKS = {"wall": "wall time", "cpu": "processor time"}
"""Which times, in words; processor time is what a busy machine does not change."""


def rows_of(file: Path, task: str, tables: Sequence[str] = TABLES) -> dict[str, Spec]:
    """The rows that train; the first is full fine-tuning."""
    chosen = [
        spec
        for spec in experiments.load_specs(file)
        if spec.learns and spec.table in tables and (spec.task, spec.seed) == (task, 0)
    ]
    chosen.sort(key=lambda spec: spec.row != "full")
    return {spec.row: spec for spec in chosen}


def steps_of(rows: dict[str, Spec], batch: int, device: torch.device) -> dict[str, Runner]:
    """The step of every row."""
    profile = experiments.PROFILES["full"]
    steps = {}
    for row, spec in rows.items():
        side = spec.patch or profile.lq_size
        shape = (3, side, side)
        if spec.stereo:
            shape = (2, 3, *stereo_experiments.patch_size(spec, profile))
        x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
        model = adapters.train_mode(experiments.adapted_model(spec, profile).to(device))
        steps[row] = Runner(model, x.to(device), "peft", "fp32")
    return steps


def measure(
    steps: dict[str, Runner], rounds: int, device: torch.device, clock: str = "wall"
) -> list[dict[str, Any]]:
    """One entry a row; for `clock` see `harness.alternate`."""
    times = harness.alternate(steps, rounds, device, clock=clock)
    first = next(iter(steps))
    entries = []
    for row, step in steps.items():
        trained = [p for p in step.model.parameters() if p.requires_grad]
        entries.append(
            {
                "row": row,
                "trainable": sum(p.numel() for p in trained),
                "seconds": torch.tensor(times[row], dtype=torch.float64).median().item(),
                "of_full": harness.ratio(times[row], times[first]),
                "saved_bytes": harness.saved_bytes(step.model, step),
                "optimizer_bytes": 2 * sum(p.numel() * p.element_size() for p in trained),
                "file_bytes": sum(
                    tensor.numel() * tensor.element_size()
                    for tensor in adapters.adapter_state_dict(step.model).values()
                ),
            }
        )
    return entries


def report(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    full = record["rows"][0]
    lines = [
        {
            "method": row["label"],
            "trainable": f"{row['trainable']:,}",
            "step [ms]": f"{1e3 * row['seconds']:.0f}",
            "time of full's": "{median:.2f} ({q25:.2f} to {q75:.2f})".format(**row["of_full"]),
            "saved [MiB]": f"{row['saved_bytes'] / 2**20:.1f}",
            "bytes of full's": f"{row['saved_bytes'] / full['saved_bytes']:.2f}",
            "optimizer [MiB]": f"{row['optimizer_bytes'] / 2**20:.2f}",
            "file [MiB]": f"{row['file_bytes'] / 2**20:.2f}",
        }
        for row in record["rows"]
    ]
    import pandas as pd

    git = record["git"]
    dirty = " with uncommitted changes" if git["dirty"] else ""
    what, columns = (part.replace("\n    ", "\n- ") for part in __doc__.split("\n\n")[1:3])
    return (
        f"# One training step of every method\n\nBackbone `{record['backbone']}`, task "
        f"`{record['task']}`, batch {record['batch']}, float32, {record['rounds']} rounds, "
        f"{CLOCKS[record['clock']]}, {record['device']}, commit {git['commit'][:7]}{dirty}, "
        f"{record['date'][:10]}. Written by `benchmarks/methods.py`. {what}\n\n- "
        f"{columns.strip()}\n\n"
        f"{results.to_markdown(pd.DataFrame(lines))}"
    )


def main() -> None:
    """Measures, prints and writes one JSON file a device and the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, default=Path(FILE))
    parser.add_argument("--tables", nargs="+", default=TABLES, help="of the file")
    parser.add_argument("--task", default="lr4_noise30")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("--name", default="methods", help="of the files; tables read methods*")
    options = parser.parse_args()
    device = devices.pick(options.device)
    rows = rows_of(options.file, options.task, options.tables)
    steps = steps_of(rows, options.batch, device)
    record = {
        "backbone": next(iter(rows.values())).backbone,
        "task": options.task,
        "batch": options.batch,
        "rounds": options.rounds,
        "clock": options.clock,
        "device": device_name(device),
        "versions": versions(),
        "git": git_state(Path.cwd()),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rows": [
            {"label": rows[entry["row"]].label, **entry}
            for entry in measure(steps, options.rounds, device, options.clock)
        ],
    }
    write_text(
        options.out / f"{options.name}-{device.type}.json", json.dumps(record, indent=1) + "\n"
    )
    write_text(options.out / f"{options.name}.md", report(record))
    print(report(record))


if __name__ == "__main__":
    main()
