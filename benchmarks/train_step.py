"""Time and memory of one training step, ours beside the reference, in one process.

All networks of a row have the same weights, inputs and precision, and their steps take turns, so
that whatever else the machine does hits all of them; reported is the median of the ratios of
neighbouring steps, with quartiles. Loss: the mean absolute output.

    forward   no gradients
    full      forward, backward and AdamW step of every parameter
    frozen    all weights frozen; the input needs a gradient, so backward runs through every layer
    peft      an adapter trains, all weights are frozen: forward, backward, AdamW step

A peft step of ours stands beside three of the reference: its full step; `frozen`, which carries no
adapter at all, the hardest comparison; and `adapted`, the same adapter in the layers of the same
names, where the reference has such layers (an adapter on a site of ours has no place in it).

Bytes saved for backward are exact: unique storages that autograd keeps, without parameters. Peak
memory is that of one step above what is in use before it. Missed goals come with a profile.
Each row is written when it is measured; `--resume` keeps rows of this commit and these settings.

Usage: python benchmarks/train_step.py dat_light hat --rounds 9
       python benchmarks/train_step.py --device cuda --precision bf16 --compile ours
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import harness
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from train_step_report import misses, write_report

from ir_peft import attach_adapter, create_backbone
from ir_peft.adapters import ADAPTERS
from ir_peft.adapters.config import resolve_config
from ir_peft.files import write_text
from ir_peft.provenance import device_name, git_state, versions


@dataclass(frozen=True)
class Case:
    """A network and its input."""

    backbone: str
    input: tuple[int, int, int, int]
    """(B, 3, h, w)."""
    methods: tuple[str, ...]
    """Adapters of the peft mode; those that are not registered or have no defaults are left out."""
    sizes: dict[str, Any] = field(default_factory=dict)
    """Arguments of the backbone's class where it is shrunk."""
    shrunk: str = ""
    """What was shrunk, in words."""


CASES = {
    "dat_light": Case("dat_light", (4, 3, 32, 32), ("lora", "adaptir")),
    "dat": Case(
        "dat", (1, 3, 32, 32), ("lora", "asteisr_spatial"), {"depths": (6, 6)}, "2 of 6 groups"
    ),
    "hat": Case(
        "hat", (1, 3, 32, 32), ("asteisr_spatial", "lora"), {"depths": (6, 6)}, "2 of 6 groups"
    ),
    "ipt": Case(
        "ipt",
        (1, 3, 48, 48),
        ("adaptir", "lora"),
        {"depth": 2, "scales": (4,)},
        "2 of 12 layers in encoder and decoder, one of six branches",
    ),
    "restormer": Case(
        "restormer",
        (1, 3, 64, 64),
        ("adair", "lora"),
        {"depths": (1, 2, 2, 2), "refinement": 1},
        "12 of 44 blocks",
    ),
}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


@dataclass
class Runner:
    """A network with what it trains, and its step."""

    model: nn.Module
    x: torch.Tensor
    mode: str
    precision: str
    compiled: bool = False

    def __post_init__(self):
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6) if trained else None
        self.call = torch.compile(self.model) if self.compiled else self.model
        if self.mode == "frozen":
            self.x = self.x.clone().requires_grad_()

    def __call__(self) -> None:
        """One step."""
        dtype, device = PRECISIONS[self.precision], self.x.device.type
        autocast = nullcontext() if dtype is None else torch.autocast(device, dtype)
        with torch.set_grad_enabled(self.mode != "forward"), autocast:
            loss = self.call(self.x).float().abs().mean()
        if self.mode == "forward":
            return
        loss.backward()
        if self.optimizer:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.x.grad = None


def rows_of(case: Case) -> list[tuple[str, str | None]]:
    """(mode, adapter) of each row."""
    with torch.device("meta"):
        known = create_backbone(case.backbone, **case.sizes).adapter_defaults
    methods = [m for m in case.methods if m in ADAPTERS and m in known]
    return [("forward", None), ("full", None), *(("peft", m) for m in methods), ("frozen", None)]


def runners(
    case: Case, mode: str, method: str | None, precision: str, compiled: str, device: torch.device
) -> dict[str, Runner]:
    """Ours and what it is compared with, by name."""
    x = torch.rand(case.input, generator=torch.Generator().manual_seed(0)).to(device)

    def build(ours: bool, mode: str, precision: str = precision, method: str | None = None):
        torch.manual_seed(0)
        model = create_backbone(case.backbone, **case.sizes).eval().to(device)
        config = resolve_config(model, method, {}) if method else None
        if not ours:
            model = harness.reference_of(model)
        model.requires_grad_(mode == "full")
        if config is not None:
            attach_adapter(model, config, seed=0)
        return Runner(model, x, mode, precision, compiled in ("both", "ours" if ours else ""))

    found = {"ours": build(True, mode, method=method)}
    if mode != "peft":
        found[mode] = build(False, mode)
        return found
    found["full"] = build(False, "full")
    found["frozen"] = build(False, "frozen")
    try:
        found["adapted"] = build(False, "peft", method=method)
    except (ValueError, TypeError) as error:  # The reference has no such layers.
        print(f"  the reference takes no {method}: {error}"[:200])
    if precision != "fp32":
        found["full fp32"] = build(False, "full", "fp32")
    return found


def measure(
    case: Case,
    mode: str,
    method: str | None,
    rounds: int,
    clock: str,
    device: torch.device,
    **options: str,
) -> dict[str, Any]:
    """One row."""
    steps = runners(case, mode, method, device=device, **options)
    times = harness.alternate(steps, rounds, device, warm_up=1, clock=clock)
    row: dict[str, Any] = {"mode": mode, "method": method, "networks": {}}
    for name, step in steps.items():
        seconds = torch.tensor(times[name], dtype=torch.float64).median().item()
        row["networks"][name] = {"seconds": seconds, "peak_bytes": harness.peak_bytes(step, device)}
        if mode != "forward":
            row["networks"][name]["saved_bytes"] = harness.saved_bytes(step.model, step)
        if name != "ours":
            row["networks"][name]["speedup"] = harness.ratio(times[name], times["ours"])
    missed = misses(row, case.backbone, device.type)
    if missed:
        row["profile"] = {"ours": profile(steps["ours"], device)}
        against = next((goal.against for goal in missed if goal.against in steps), None)
        if against:
            row["profile"][against] = profile(steps[against], device)
    return row


def profile(step: Runner, device: torch.device) -> dict[str, Any]:
    """Where a step spends its time, and its products and convolutions in GFLOP."""
    found = harness.profiled(step, device)
    with FlopCounterMode(display=False) as counter:
        step()
    return found | {"gflop": counter.get_total_flops() / 1e9}


def show(name: str, row: dict[str, Any]) -> None:
    """Prints a row and what it spends where a goal is missed."""
    ours = row["networks"]["ours"]
    line = f"{name:10} {row['mode']:8} {row['method'] or '':16} {ours['seconds']:7.3f} s"
    for other, entry in row["networks"].items():
        if other != "ours":
            line += f"  {entry['speedup']['median']:5.2f}x {other}"
            if "saved_bytes" in ours:
                line += f" ({100 * ours['saved_bytes'] / entry['saved_bytes']:.0f} % saved)"
    print(line, flush=True)
    for operator in row.get("profile", {}).get("ours", {}).get("operators", []):
        print(f"    {100 * operator['share']:5.1f} % {operator['name']} x {operator['calls']}")


def read(path: Path) -> dict[str, Any]:
    """The record, empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {"cases": {}}


def main() -> None:
    """Measures the cases, prints them and writes one JSON file a device and the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--compile", choices=("none", "ours", "both"), default="none")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: this process's processor time, for a busy machine; with one thread, fair",
    )
    parser.add_argument("--keep-heap", action="store_true", help=harness.keep_heap.__doc__)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--report", action="store_true", help="only write the report again")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    if options.report:
        write_report(options.out)
        return
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"unknown: {sorted(unknown)}; there are {', '.join(CASES)}")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here: run with --device cpu")
    if device.type == "cuda" and options.clock == "cpu":
        parser.error("--clock cpu does not see what a GPU does")
    if options.keep_heap:
        harness.keep_heap()
    chosen = {"precision": options.precision, "compiled": options.compile}
    settings = chosen | {"rounds": options.rounds, "keep_heap": options.keep_heap}
    settings["clock"] = options.clock
    git = git_state(Path.cwd())
    words = [device.type, options.precision if options.precision != "fp32" else ""]
    words += ["compile" if options.compile != "none" else "", "heap" if options.keep_heap else ""]
    path = options.out / f"train_step-{'-'.join(filter(None, words))}.json"
    done = read(path)["cases"] if options.resume else {}
    rates = harness.machine_rates(device, options.clock)
    for name in options.cases:
        case, old = CASES[name], done.get(name, {})
        same = old.get("settings") == settings and old["git"]["commit"] == git["commit"]
        entry: dict[str, Any] = {
            "backbone": case.backbone,
            "input": case.input,
            "shrunk": case.shrunk,
            "settings": settings,
            "device": device_name() if device.type == "cpu" else torch.cuda.get_device_name(),
            "machine": rates,
            "versions": versions(),
            "git": git,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "rows": old["rows"] if same else [],
        }
        for mode, method in rows_of(case):
            if any((row["mode"], row["method"]) == (mode, method) for row in entry["rows"]):
                continue
            row = measure(case, mode, method, options.rounds, options.clock, device, **chosen)
            show(name, row)
            entry["rows"].append(row)
            record = read(path)  # Another process may have written another case meanwhile.
            record["cases"][name] = entry
            write_text(path, json.dumps(record, indent=1) + "\n")
    write_report(options.out)


if __name__ == "__main__":
    main()
