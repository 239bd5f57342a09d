"""Many rows at once: each is one process, so that a machine's cores all have work.

Rows are small: two processes with one thread each do nearly twice the work of one with two.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import devices
from .adaptir_protocol import Sources
from .experiments import run
from .specs import Profile, Spec

MOST_JOBS = 8
"""Of the default; a process holds about 1 GB."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_jobs(profile: Profile) -> int:
    """A process a core; one on a GPU, and where seconds of training go into records."""
    alone = profile.trusted or profile.epochs is not None or devices.pick().type != "cpu"
    return 1 if alone else min(cores(), MOST_JOBS)


def run_all(
    specs: list[Spec],
    profile: Profile,
    root: str | Path = ".",
    sources: Sources | None = None,
    jobs: int | None = None,
) -> list[dict[str, Any]]:
    """Runs every spec under one progress bar and prints a line a record.

    Args:
        specs: what is run; those that share an adapter stay in one process.
        profile: how much effort each gets.
        root: as in `experiments.run`.
        sources: as in `experiments.run`.
        jobs: processes; None is `usual_jobs`.

    Returns:
        The records, in the order of the specs.

    Raises:
        ValueError: jobs is not positive.
        Exception: whatever stops a row; rows that have begun are finished first.
    """
    jobs = usual_jobs(profile) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs is the number of processes, at least 1, not {jobs}")
    groups: dict[str, list[int]] = {}
    for place, spec in enumerate(specs):
        groups.setdefault(spec.tag, []).append(place)
    jobs = min(jobs, len(groups))
    one = partial(run, profile=profile, root=root, sources=sources)
    done = _side_by_side(specs, groups, one, jobs) if jobs > 1 else _in_turn(specs, one)
    records: dict[int, dict[str, Any]] = {}
    with tqdm(total=len(specs), desc=f"rows ({profile.name})", unit="row") as bar:
        for place, record in done:
            records[place] = record
            bar.write(f"{specs[place].task:12} {specs[place].label:26} {_means(record)}")
            bar.update()
    return [records[place] for place in range(len(specs))]


def _in_turn(specs: list[Spec], one: partial) -> Iterator[tuple[int, dict[str, Any]]]:
    for place, spec in enumerate(specs):
        yield place, one(spec)


def _side_by_side(
    specs: list[Spec], groups: dict[str, list[int]], one: partial, jobs: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    threads = max(1, cores() // jobs)
    context = multiprocessing.get_context("spawn")  # A forked torch would hang.
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool:
        futures = {
            pool.submit(_group, [specs[place] for place in places], one): places
            for places in groups.values()
        }
        try:
            for future in as_completed(futures):
                yield from zip(futures[future], future.result(), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _group(specs: list[Spec], one: partial) -> list[dict[str, Any]]:
    return [one(spec, progress=False) for spec in specs]


def _means(record: dict[str, Any]) -> str:
    """Mean PSNR by test set."""
    sets: dict[str, list[float]] = {}
    for row in record["scores"]:
        name = row["image"].rpartition("/")[0] or record["profile"]["test_set"]
        sets.setdefault(name, []).append(row["psnr"])
    return ", ".join(f"{sum(each) / len(each):.2f} dB on {name}" for name, each in sets.items())
