"""Claimed, per step, extrapolated: the table of the papers' training costs, from records alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from paper_scale_bills import BILLS, MODES, PRECISIONS, Bill

MISSING = "not yet measured on a GPU"
GIB = 2**30
HEAD = """\
# What the papers' training costs

Made by `benchmarks/paper_scale.py`; do not edit. A step is forward, L1 loss, backward and AdamW on
random images at the paper's patch size, of networks with random weights, without data loading;
median of several. fp32 is without TF32, bf16 is autocast; compiled is each transformer block by
itself. Memory is the most that tensors took. Hours are steps of the schedule times the step time,
where a batch that does not fit is made of several steps. Time and memory ratios are those of the
paper's adapter over full fine-tuning, which for ASteISR trains its adapters as well; a claim is the
paper's, on its own hardware.
"""


def table(exact: dict[str, Any], found: Iterable[dict[str, Any]]) -> str:
    """The Markdown page.

    Args:
        exact: counts by "bill/method", see `paper_scale_step.count`.
        found: files of records of GPUs at the papers' size.
    """
    parts = [HEAD]
    files = [file["records"] for file in found]
    for records in files or [{}]:
        parts += [_settled(records), _beside(records)]
    parts += [_counts(exact), _schedules(files)]
    parts += [_trouble(records) for records in files]
    return "\n".join(part for part in parts if part)


def _rows(head: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; columns of numbers are those whose head ends with a colon."""
    names = head.split(" | ")
    marks = ["---:" if name.endswith(":") else "---" for name in names]
    lines = [[name.rstrip(":") for name in names], marks, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _get(records, bill: Bill, method: str, precision="fp32", mode="eager", who="ours"):
    """A record that was measured, else None."""
    record = records.get(f"{bill.key}/{method}/{precision}/{mode}/{who}")
    return record if record and record["status"] == "ok" else None


def hours(bill: Bill, record: dict[str, Any]) -> float:
    """The schedule at the record's step time."""
    steps = bill.iterations * bill.batch / record["batch"]
    return steps * record["step_seconds"]["median"] / 3600


def _settled(records: dict[str, Any]) -> str:
    """Claims beside what was measured, a line a bill, precision and mode."""
    ways = [(p, m) for m in MODES for p in PRECISIONS] if records else [("fp32", "eager")]
    rows = []
    for bill in BILLS.values():
        for precision, mode in ways:
            pair = [_get(records, bill, m, precision, mode) for m in (bill.whole, bill.adapter)]
            if records and not any(pair):
                continue
            full, adapter = pair
            both = full and adapter
            fair = both and full["batch"] == adapter["batch"]
            times = both and f"{hours(bill, adapter) / hours(bill, full):.2f}"
            memory = fair and f"{adapter['peak_bytes'] / full['peak_bytes']:.2f}"
            if both and not fair:
                memory = f"batches {adapter['batch']} and {full['batch']}"
            ratios = (
                (times, "claimed", bill.time_ratio),
                (memory, "claimed", bill.memory_ratio),
            )
            cells = [f"{r or MISSING}" + (f" ({w} {c})" if c else "") for r, w, c in ratios]
            allowed = (
                adapter and bill.hours and bill.hours * 3600 / adapter["step_seconds"]["median"]
            )
            rows.append(
                [
                    f"{bill.paper}, {bill.backbone}", f"{precision}, {mode}",
                    "; ".join(bill.claims) or "none on this backbone",
                    _batch(bill, full or adapter), *(_step(r) for r in pair),
                    *(f"{hours(bill, r):.1f} h" if r else MISSING for r in pair), *cells,
                    f"{allowed:,.0f} steps in {bill.hours:g} h" if allowed
                    else MISSING if bill.hours else "–",
                ]
            )  # fmt: skip
    head = (
        "paper, backbone | computed | claimed | batch | full, per step | adapter, per step | "
        "full, whole schedule: | adapter, whole schedule: | time ratio: | memory ratio: | "
        "the claimed hours hold:"
    )
    return f"## Claimed, per step, extrapolated\n\n{_origin(records)}\n\n{_rows(head, rows)}"


def _origin(records: dict[str, Any]) -> str:
    """Where the numbers come from."""
    if not records:
        return f"**{MISSING[0].upper()}{MISSING[1:]}.** Claims and counts below need none."
    good = records.values()
    device = ", ".join(sorted({r["device"] for r in good}))
    commits = ", ".join(sorted({str(r["git"]["commit"])[:7] for r in good}))
    torch = ", ".join(sorted({r["versions"]["torch"] for r in good}))
    rates = {p: max(r["matmul_flops"][p] for r in good) / 1e12 for p in PRECISIONS}
    text = ", ".join(f"{rate:.0f} in {p}" for p, rate in rates.items())
    dirty = any(r["git"]["dirty"] for r in good) or len({r["code"] for r in good}) > 1
    note = " Not all rows come from one clean commit." if dirty else ""
    dates = sorted(r["date"][:10] for r in good)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        f"Measured on {device}, {when}, torch {torch}, commit {commits}. Its matrix products run "
        f"at {text} TFLOP/s; percentages are of that rate.{note}"
    )


def _batch(bill: Bill, record: dict[str, Any] | None) -> str:
    """The batch in use beside the schedule's."""
    what = "pairs" if bill.views == 2 else "patches"
    wanted = f"{bill.batch} {what} of {bill.patch[0]}x{bill.patch[1]}"
    if record and record["batch"] < bill.batch:
        return f"{record['batch']}, the largest that fits, for {wanted}"
    return wanted


def _step(record: dict[str, Any] | None) -> str:
    """Time with its spread, memory and efficiency of one step."""
    if not record:
        return MISSING
    q25, median, q75 = (1000 * record["step_seconds"][q] for q in ("q25", "median", "q75"))
    memory = record["peak_bytes"] / GIB
    return (
        f"{median:.1f} ms ({q25:.1f} to {q75:.1f}), {1000 / median:.2f} steps/s, {memory:.1f} GiB, "
        f"{record['flops_per_second'] / 1e12:.0f} TFLOP/s ({record['matmul_share']:.0%})"
    )


def _beside(records: dict[str, Any]) -> str:
    """Ours over the reference, at equal batches."""
    rows = []
    for bill in BILLS.values():
        for method in ("full", "lora"):
            for mode in MODES:
                for precision in PRECISIONS:
                    way = bill, method, precision, mode
                    ours, theirs = (_get(records, *way, who) for who in ("ours", "reference"))
                    if not (ours and theirs):
                        continue
                    scale = ours["batch"] / theirs["batch"]
                    time = ours["step_seconds"]["median"] / theirs["step_seconds"]["median"] / scale
                    memory = f"{ours['peak_bytes'] / theirs['peak_bytes']:.2f}"
                    if scale != 1:
                        memory = f"batches {ours['batch']} and {theirs['batch']}"
                    name = f"{bill.paper}, {bill.backbone}"
                    rows.append([name, method, f"{precision}, {mode}", f"{time:.2f}", memory])
    title = "## Ours over the reference implementation\n\n"
    if not rows:
        return f"{title}{MISSING[0].upper()}{MISSING[1:]}.\n"
    return title + _rows("paper, backbone | method | computed | time a sample: | memory:", rows)


def _counts(exact: dict[str, Any]) -> str:
    """What needs no device."""
    rows = []
    for bill in BILLS.values():
        backbone, whole = exact[f"{bill.key}/full"], exact[f"{bill.key}/{bill.whole}"]
        for method in bill.methods:
            one = exact[f"{bill.key}/{method}"]
            rows.append(
                [
                    f"{bill.paper}, {bill.backbone}", method, f"{one['trainable']:,}",
                    f"{one['trainable'] / backbone['total']:.2%}",
                    f"{one['optimizer_bytes'] / 1e6:,.1f} MB",
                    f"{one['checkpoint_bytes'] / 1e6:,.1f} MB",
                    f"{one['flops'] / 1e12:.2f}", f"{one['flops'] / whole['flops']:.2f}",
                ]
            )  # fmt: skip
    head = (
        "paper, backbone | method | trainable: | of the backbone: | AdamW state: | checkpoint: | "
        "TFLOP a step: | over full:"
    )
    text = (
        "## Counts, exact without a device\n\nTensors in float32. The state is that after a step: "
        "parameters of branches that a task does not use get none. TFLOP are of the schedule's "
        "batch: convolutions and matrix products, forward and backward. Frozen weights save their "
        "own gradients, a third of them at most: a larger saving of time is not of these.\n\n"
    )
    return text + _rows(head, rows)


def _schedules(files: list[dict[str, Any]]) -> str:
    """What the hours stand on."""
    lines = ["## Schedules", ""]
    for bill in BILLS.values():
        kind = "published" if bill.published else "our proxy schedule, the paper's is not published"
        lines.append(f"- {bill.paper}, {bill.backbone}: {bill.schedule} ({kind}).")
        if not bill.scratch:
            continue
        steps = bill.scratch_pixels / (bill.batch * bill.patch[0] * bill.patch[1])
        found = (_get(records, bill, bill.whole) for records in files)
        each = [f"{hours(bill, r) * steps / bill.iterations:,.0f} h" for r in found if r]
        at = ", ".join(each) or MISSING
        lines.append(
            f"  From scratch instead: {bill.scratch} (published), {bill.scratch_pixels:.3g} pixels "
            f"or {steps:,.0f} such steps at equal cost a pixel; full, fp32, "
            f"eager: {at}."
        )
    return "\n".join(lines) + "\n"


def _trouble(records: dict[str, Any]) -> str:
    """Records without a time, and why."""
    rows = [
        [key, record["status"], " ".join(str(record.get("reason", "")).split()).replace("|", "/")]
        for key, record in records.items()
        if record["status"] != "ok"
    ]
    return f"## Not measured, and why\n\n{_rows('record | status | reason', rows)}" if rows else ""
