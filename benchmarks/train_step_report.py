"""Goals of `train_step.py`, whether a record meets them, and the Markdown report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ir_peft.files import write_text


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio between ours and a network of the reference."""

    words: str
    device: str
    mode: str
    against: str
    """Which network of the row; see `train_step.py`."""
    bound: float
    families: tuple[str, ...] = ()
    """Names that a backbone's name starts with; none means all."""
    quantity: str = "speedup"
    """"speedup", at least the bound, or "saved", a share of bytes, at most the bound."""

    def applies(self, row: dict[str, Any], backbone: str, device: str) -> bool:
        """Whether a row of a backbone on a device is to meet it."""
        family = not self.families or backbone.startswith(self.families)
        return (
            (self.device, self.mode) == (device, row["mode"])
            and self.against in row["networks"]
            and family
        )

    def reached(self, row: dict[str, Any]) -> float:
        """The row's ratio."""
        theirs = row["networks"][self.against]
        if self.quantity == "speedup":
            return theirs["speedup"]["median"]
        return row["networks"]["ours"]["saved_bytes"] / theirs["saved_bytes"]

    def met(self, row: dict[str, Any]) -> bool:
        """Whether the ratio keeps the bound."""
        reached = self.reached(row)
        return reached >= self.bound if self.quantity == "speedup" else reached <= self.bound

    def show(self, value: float) -> str:
        """A ratio as people write it."""
        return f"{value:.2f}x" if self.quantity == "speedup" else f"{100 * value:.0f} %"


SAME = "not slower than the reference"
GOALS = (
    Goal(
        "PEFT step of HAT and DAT, reference's full step",
        "cpu", "peft", "full", 2.0, ("dat", "hat"),
    ),
    Goal(
        "PEFT step of HAT and DAT, same weights frozen, same adapter",
        "cpu", "peft", "adapted", 1.4, ("dat", "hat"),
    ),
    Goal(
        "PEFT step of HAT and DAT, same weights frozen, no adapter at all",
        "cpu", "peft", "frozen", 1.4, ("dat", "hat"),
    ),
    Goal(f"Inference {SAME}", "cpu", "forward", "forward", 1.0),
    Goal(f"Full step {SAME}", "cpu", "full", "full", 1.0),
    Goal(f"Frozen step {SAME}", "cpu", "frozen", "frozen", 1.0),
    Goal(f"PEFT step {SAME} with the same adapter", "cpu", "peft", "adapted", 1.0),
    Goal(
        "Bytes saved in a PEFT step, of the reference's full step",
        "cpu", "peft", "full", 0.5, quantity="saved",
    ),
    Goal("PEFT step in bf16, reference's full step in fp32", "cuda", "peft", "full fp32", 3.0),
    Goal("PEFT step in bf16, reference's full step in bf16", "cuda", "peft", "full", 1.5),
)  # fmt: skip


def misses(row: dict[str, Any], backbone: str, device: str) -> list[Goal]:
    """The goals that a row is to meet and does not."""
    return [goal for goal in GOALS if goal.applies(row, backbone, device) and not goal.met(row)]


def bound_by(goal: Goal, row: dict[str, Any], machine: dict[str, float]) -> str:
    """Why a row misses a goal, from what was measured."""
    ours, theirs = row["networks"]["ours"], row["networks"][goal.against]
    if goal.quantity == "saved":
        allowed = goal.bound * theirs["saved_bytes"]
        return (
            f"Ours keeps {ours['saved_bytes'] / 2**20:.0f} MiB, "
            f"{(ours['saved_bytes'] - allowed) / 2**20:.0f} MiB above the bound; only computing "
            "more activations again, for time, would close this."
        )
    spent = row["profile"]["ours"]
    target = theirs["seconds"] / goal.bound
    kernels = ("attention", "matrix products", "convolutions")
    shares = {kind: spent["shares"][kind] for kind in kernels}
    floor = sum(shares.values()) * ours["seconds"]
    largest = max(spent["shares"], key=lambda kind: spent["shares"][kind])
    words = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares.items())
    products = spent["gflop"] / machine["gflops"]
    text = (
        f"The goal is {target:.3f} s, ours takes {ours['seconds']:.3f} s. The kernels that stay "
        f"whatever surrounds them ({words}) take {floor:.3f} s: without all the rest the ratio "
        f"would be {theirs['seconds'] / floor:.2f}x. "
    )
    if floor > target:
        text += (
            f"So the kernels themselves bind, {max(shares, key=lambda kind: shares[kind])} first: "
        )
    else:
        text += f"So what surrounds them binds; the largest share of all has {largest}: "
    page = spent["page_faults"] * 4096 / 2**20
    return text + (
        f"{spent['gflop']:.1f} GFLOP would take {products:.3f} s at the machine's "
        f"{machine['gflops']:.0f} GFLOP/s; {page:.0f} MiB of fresh pages cost "
        f"{spent['system_seconds']:.3f} s of system time; {spent['copies']} calls copy."
    )


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """A Markdown table, numbers to the right of the first column."""
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def goals_part(records: dict[str, dict[str, Any]]) -> str:
    """One line a goal and case, and why the missed ones are missed."""
    rows, reasons = [], []
    for goal in GOALS:
        found = False
        for device, name, case, row in rows_of(records):
            if not goal.applies(row, case["backbone"], device):
                continue
            found, met = True, goal.met(row)
            label = f"{name}, {row['method']}" if row["method"] else name
            bound = ("at least " if goal.quantity == "speedup" else "at most ") + goal.show(
                goal.bound
            )
            verdict = "met" if met else "**missed**"
            rows.append((goal.words, label, bound, goal.show(goal.reached(row)), verdict))
            if not met:
                reasons.append(f"- {goal.words}: {label}. {bound_by(goal, row, case['machine'])}")
        if not found:
            rows.append((goal.words, "–", f"{goal.show(goal.bound)}", "–", "not yet measured"))
    head = ("goal", "case", "bound", "reached", "")
    text = "## Goals\n\n" + table(head, rows)
    if reasons:
        text += "\n### What binds where a goal is missed\n\n" + "\n".join(reasons) + "\n"
    return text


def rows_of(records: dict[str, dict[str, Any]]):
    """(device, case name, case, row) of everything measured in default settings."""
    for stem, record in records.items():
        device, *options = stem.removeprefix("train_step-").split("-")
        if device == "cpu" and options or device == "cuda" and options[:1] != ["bf16"]:
            continue
        for name, case in record["cases"].items():
            for row in case["rows"]:
                yield device, name, case, row


def record_part(stem: str, record: dict[str, Any]) -> str:
    """Everything measured with one device and setting."""
    text = f"## {stem}\n"
    for name, case in record["cases"].items():
        shrunk = f" ({case['shrunk']})" if case["shrunk"] else ""
        dirty = ", uncommitted changes" if case["git"]["dirty"] else ""
        text += (
            f"\n### {name}{shrunk}\n\nInput {' x '.join(map(str, case['input']))}; "
            f"{case['device']}; {case['settings']['rounds']} rounds, "
            f"{CLOCKS[case['settings']['clock']]}; torch {case['versions']['torch']}; "
            f"commit {case['git']['commit'][:7]}{dirty}; {case['date'][:10]}.\n\n"
        )
        rows = []
        for row in case["rows"]:
            for other, entry in row["networks"].items():
                ratio = entry.get("speedup")
                rows.append((
                    row["mode"] if other == "ours" else "",
                    (row["method"] or "") if other == "ours" else "",
                    other if other == "ours" else f"reference, {other}",
                    f"{entry['seconds']:.3f}",
                    f"{ratio['median']:.2f}x ({ratio['q25']:.2f} to {ratio['q75']:.2f})"
                    if ratio else "",
                    f"{entry['saved_bytes'] / 2**20:.0f}" if "saved_bytes" in entry else "",
                    f"{entry['peak_bytes'] / 2**20:.0f}",
                ))  # fmt: skip
        head = (
            "mode",
            "adapter",
            "network",
            "seconds",
            "ours is faster by",
            "saved MiB",
            "peak MiB",
        )
        text += table(head, rows)
        for row in case["rows"]:
            if "profile" in row:
                text += profile_part(row)
    return text


def profile_part(row: dict[str, Any]) -> str:
    """Where the networks of a row with a missed goal spend their time."""
    rows = []
    for name, spent in row["profile"].items():
        kinds = sorted(spent["shares"], key=lambda kind: -spent["shares"][kind])
        shares = ", ".join(f"{kind} {100 * spent['shares'][kind]:.0f} %" for kind in kinds)
        top = ", ".join(
            f"{op['name'].removeprefix('aten::')} {100 * op['share']:.0f} %"
            for op in spent["operators"][:4]
        )
        faults = f"{spent['page_faults']}, {spent['system_seconds']:.2f} s"
        rows.append((name, shares, top, faults, spent["copies"]))
    title = " ".join(filter(None, (row["mode"], row["method"])))
    head = ("network", "kinds of operators", "largest operators", "page faults, system", "copies")
    return f"\nProfile of one step, {title}:\n\n" + table(head, rows)


CLOCKS = {
    "wall": "wall time",
    "cpu": "processor time, as other work shared the machine",
}
INTRODUCTION = """# One training step, ours beside the reference

Written by `benchmarks/train_step.py` from the records beside this file; its docstring defines the
modes. The reference is the public implementation in spandrel and spandrel-extra-arches, with the
same weights, inputs, batch, threads and precision, in one process; steps take turns. Ratios are
medians over rounds, in brackets the quartiles. In a PEFT step ours trains the adapter; `full` is
the reference training all weights, `frozen` the reference with frozen weights and no adapter, with
a gradient of the input so that backward runs through every layer, `adapted` the reference with
frozen weights and the same adapter at the layers of the same names.
"""


def write_report(folder: Path) -> None:
    """Writes `train_step.md` from all records in the folder."""
    paths = sorted(folder.glob("train_step-*.json"))
    records = {path.stem: json.loads(path.read_text()) for path in paths}
    parts = [INTRODUCTION, goals_part(records)]
    parts += [record_part(stem, record) for stem, record in records.items()]
    path = folder / "train_step.md"
    write_text(path, "\n".join(parts))
    print(f"wrote {path}")
