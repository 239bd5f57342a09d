"""The papers' adaptation at their own size: time, memory and bytes of full fine-tuning and PEFT.

Needs no trained weights and no data. Records are written one by one and a second call goes on where
the first one stopped: finished records of the same code are kept. A GPU run of at most 8 minutes:

    PYTHONPATH=. python benchmarks/paper_scale.py --budget 480

In a copy without `.git` add `--commit HASH`. References need spandrel and spandrel-extra-arches;
without these their rows say so. `--device cpu --size small` runs tiny versions, to see that all
works and what a record looks like: they enter no table. `--table` measures nothing and rewrites
paper_scale.md from the records and from counts that need no device; without their file,
results/benchmarks/paper_scale-exact.json, these are made anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from paper_scale_bills import BILLS, PRECISIONS, Job, plan
from paper_scale_step import build, count, matmul_rate, release, serve
from paper_scale_table import table

from ir_peft import count_parameters
from ir_peft.files import write_text
from ir_peft.provenance import device_name, git_state, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "benchmarks"
COUNTS = RESULTS / "paper_scale-exact.json"
MEASURED = ("ir_peft/adapters/*.py", "ir_peft/backbones/*.py", "benchmarks/paper_scale_*.py")
"""Files that a record depends on, but for the table's."""
LIMITS = {"eager": 60.0, "compiled": 240.0}
"""Seconds after which a job is given up, compilation included."""
LEAST = {"eager": 10.0, "compiled": 45.0}
"""Seconds that must be left for a job to be started."""
FINISHED = ("ok", "out of memory", "failed", "timeout")
"""Outcomes that another call would not change, unlike "skipped" and "died"."""

Ask = Callable[[Job, int, float], dict[str, Any] | None]


class Worker:
    """A process that measures, so that a job can be stopped and a broken device left behind."""

    def __init__(self, device: str, spend: float):
        self.device, self.spend = device, spend
        self.process: Any = None

    def __call__(self, job: Job, batch: int, limit: float) -> dict[str, Any] | None:
        """The outcome of a job; None where it took longer than `limit` seconds."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other, self.device))
            self.process.start()
            other.close()
        try:
            self.pipe.send((job, batch, self.spend))
            outcome = self.pipe.recv() if self.pipe.poll(limit) else None
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            outcome = {"status": "died", "reason": f"the process ended with exit code {code}"}
        if outcome is None or outcome["status"] in ("failed", "died"):
            self.close()  # A failed kernel leaves the device unusable for its process.
        return outcome

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
            self.process = None


def code_digest() -> str:
    """SHA-256 of what is measured: two records with the same one come from the same code."""
    digest = hashlib.sha256()
    files = {file for pattern in MEASURED for file in ROOT.glob(pattern)}
    for file in sorted(files - {ROOT / "benchmarks" / "paper_scale_table.py"}):
        digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def read(path: Path) -> dict[str, Any]:
    """A file of records or counts; empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes it atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def counts(path: Path) -> dict[str, Any]:
    """Counts of every method at full size, by "bill/method": read where still true, else made."""
    known = read(path)
    for bill in BILLS.values():
        for method in bill.methods:
            name = f"{bill.key}/{method}"
            old = known.get(name, {})
            now = count_parameters(build(bill, method, "paper", torch.device("meta")))
            if (old.get("trainable"), old.get("total")) != now:
                print(f"counting {name}", flush=True)
                known[name] = count(bill, method)
                write(path, known)
    return known


def first_batch(job: Job, records: dict[str, Any]) -> int:
    """The schedule's batch, or the largest that full fine-tuning could take, to compare at one."""
    bill = BILLS[job.bill]
    whole = Job(job.bill, bill.whole, job.precision, "eager", "ours", job.size)
    return records.get(whole.key, {}).get("batch", bill.batch if job.size == "paper" else 2)


def run(
    jobs: Iterable[Job],
    ask: Ask,
    records: dict[str, Any],
    stamp: dict[str, Any],
    flops: Callable[[Job], int],
    save: Callable[[], None],
    budget: float,
) -> int:
    """Measures what is not finished, in order, within `budget` seconds; returns what is left.

    Args:
        jobs: what there is to measure.
        ask: see `Worker`.
        records: by key; changed in place, a record as soon as it is known.
        stamp: goes into every record; its "code" tells whether an old one is still true.
        flops: of a step of the schedule's batch.
        save: called after every change of `records`.
        budget: seconds.
    """
    start, left = time.monotonic(), 0
    for job in jobs:
        old = records.get(job.key, {})
        if old.get("code") == stamp["code"] and old.get("status") in FINISHED:
            continue
        spare = budget - (time.monotonic() - start)
        limit = LIMITS[job.mode]
        outcome = None
        if spare >= LEAST[job.mode]:
            outcome = ask(job, first_batch(job, records), min(limit, spare))
            if outcome is None and spare >= limit:
                outcome = {"status": "timeout", "reason": f"no end after {limit:.0f} s"}
        if outcome is None:
            left += 1
            continue
        text = f"{outcome['status']} {outcome.get('reason', '')}"
        if outcome["status"] == "ok":
            median = outcome["step_seconds"]["median"]
            outcome["flops_per_step"] = flops(job) * outcome["batch"] / BILLS[job.bill].batch
            outcome["flops_per_second"] = outcome["flops_per_step"] / median
            outcome["matmul_share"] = (
                outcome["flops_per_second"] / stamp["matmul_flops"][job.precision]
            )
            text = f"batch {outcome['batch']}, {median:.4f} s, {outcome['matmul_share']:.1%}"
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        records[job.key] = vars(job) | outcome | stamp | {"date": date}
        save()
        print(f"{job.key}: {text}", flush=True)
    return left


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("paper", "small"), default="paper")
    parser.add_argument("--budget", type=float, default=480, help="seconds in all")
    parser.add_argument("--seconds", type=float, default=5, help="of timed steps a record")
    parser.add_argument("--only", default="", help="regular expression: keys of records to measure")
    parser.add_argument("--commit", help="where there is no .git to ask")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="measure nothing, rewrite the table")
    options = parser.parse_args(words)
    if options.table:
        return options
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here: see --device cpu --size small, or --table")
    if options.device == "cpu" and options.size == "paper":
        parser.error("a step at paper size takes minutes on a CPU: add --size small")
    return options


def measure(options: argparse.Namespace, exact: dict[str, Any], start: float) -> None:
    """Measures within the budget, which began at `start`, and writes the records."""
    device = torch.device(options.device)
    name = device_name() if options.device == "cuda" else "cpu"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    small = "-small" if options.size == "small" else ""
    path = options.out / f"paper_scale-{slug}{small}.json"
    content = read(path) or {"device_type": options.device, "size": options.size, "records": {}}
    side = 8192 if options.device == "cuda" else 512
    git = git_state(ROOT)
    if options.commit:
        git = {"commit": options.commit, "dirty": None}
    stamp = {
        "code": code_digest(),
        "git": git,
        "versions": versions(),
        "device": device_name(),
        "matmul_flops": {p: matmul_rate(p, device, side) for p in PRECISIONS},
    }
    release(device)  # The worker is to have all of its memory.
    print(f"{stamp['device']}: {stamp['matmul_flops']} FLOP/s", flush=True)
    jobs = [job for job in plan(options.size) if re.search(options.only, job.key)]

    def flops(job: Job) -> int:
        if options.size == "paper":
            return exact[f"{job.bill}/{job.method}"]["flops"]
        return count(BILLS[job.bill], job.method, "small")["flops"]

    worker = Worker(options.device, options.seconds)
    try:
        spare = options.budget - (time.monotonic() - start)
        left = run(
            jobs, worker, content["records"], stamp, flops,
            save=lambda: write(path, content), budget=spare,
        )  # fmt: skip
    finally:
        worker.close()
    print(f"{left} of {len(jobs)} records left: call again" if left else "all records are made")


def main(words: list[str] | None = None) -> None:
    """Measures within the budget, then writes the table."""
    options, start = arguments(words), time.monotonic()
    exact: dict[str, Any] = {}
    if options.table or options.size == "paper":
        exact = counts(COUNTS)
    if not options.table:
        measure(options, exact, start)
    if exact:
        files = sorted(options.out.glob("paper_scale-*.json"))
        found = [content for content in map(read, files) if measured(content)]
        write_text(options.out / "paper_scale.md", table(exact, found))


def measured(content: dict[str, Any]) -> bool:
    """Whether a file holds records of a GPU at the papers' size: nothing else enters the table."""
    return (content.get("device_type"), content.get("size")) == ("cuda", "paper")


if __name__ == "__main__":
    main()
