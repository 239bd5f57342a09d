"""Everything in one go: experiments, tables, figures, comparison, notebooks."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .adaptir_protocol import Sources, fit
from .backbones import bundled_tags
from .experiments import Profile, Spec, folders, load_specs, run_id
from .files import atomic_path
from .names import did_you_mean
from .provenance import git_state
from .sweep import run_all

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NOTES = (
    "Seconds and bytes of a step, where given, are those of `benchmarks/methods.py`: one task of "
    "the backbone, all methods taking turns."
)
"""A sentence for the head of every table."""

PAPER_NOTES = (
    "Training and test follow the released code of AdaptIR where `adaptir_protocol` does not say "
    "otherwise. AdaptIR has one width for all tasks here, in the paper's columns one for each."
)
"""Sentences for the head of a table in the paper's own protocol."""


def reproduce(profile: Profile, root: str | Path = ".", jobs: int | None = None) -> None:
    """Runs every experiment file and every notebook of a checkout in one profile.

    The profile smoke runs one task and seed of each row.

    Tables and figures go to `runs/<profile>/`, those of trusted records to `results/`; executed
    notebooks always to `runs/<profile>/notebooks/`. A profile that only recomputes is compared
    with the committed records.

    Args:
        profile: how much effort each row gets.
        root: the checkout.
        jobs: rows at once, see `sweep.run_all`.

    Raises:
        FileNotFoundError: `root` is no checkout of the project.
        RuntimeError: a recomputed value is off by more than 0.01 dB.
    """
    from . import results

    root = Path(root).resolve()
    files = sorted((root / "experiments").glob("*.toml"))
    notebooks = sorted((root / "notebooks").glob("[0-9]*.py"))
    if not files or not notebooks:
        raise FileNotFoundError(
            f"{root} has no experiments/*.toml and notebooks/*.py: run this in a checkout"
        )
    records, _ = folders(profile, git_state(root), root)
    planned = [spec for file in files for spec in load_specs(file)]
    specs = ready(planned, profile, root)
    if profile.name == "smoke":
        specs = list({(spec.paper, spec.table, spec.row): spec for spec in specs}.values())
    ids = {record["id"] for record in run_all(specs, profile, root, jobs=jobs)}
    frame, curves = results.load_records(records), results.load_curves(records)
    frame = frame[frame["id"].isin(ids)]  # The folder may hold other runs, on other images.
    for path in write_results(frame, curves, planned, records.parent, profile):
        print(f"wrote {path.relative_to(root)}")
    if not profile.trains:
        compare(frame, root)
    for notebook in notebooks:
        target = root / "runs" / profile.name / "notebooks" / notebook.with_suffix(".ipynb").name
        print(f"executing {notebook.name} -> {target.relative_to(root)}")
        execute(notebook, target, {"profile": profile.name})


def ready(specs: list[Spec], profile: Profile, root: Path) -> list[Spec]:
    """The specs that can run here; the tables of the others are printed.

    A profile that recomputes needs a committed record, one that trains the backbone.
    """
    if profile.trains:
        able = [spec for spec in specs if not spec.pretrained or _has_weights(spec.backbone)]
        lacking = sorted({spec.backbone for spec in specs if not _has_weights(spec.backbone)})
        why = f"there are no weights of {', '.join(lacking)} (ir-peft pretrain TAG makes small ones"
        why += ", run --profile paper takes the authors')"
    else:
        paths = (root / "results" / "records").glob("*.json")
        committed = [json.loads(path.read_text(encoding="utf-8"))["spec"] for path in paths]
        able = [spec for spec in specs if spec.to_dict() in committed]
        why = "no record of them is committed yet (ir-peft run FILE --profile full trains them)"
    waiting = Counter(f"{spec.paper}-{spec.table}" for spec in specs if spec not in able)
    if waiting:
        listed = ", ".join(f"{table} ({count})" for table, count in waiting.items())
        print(f"rows left out: {listed}; {why}")
    return able


def _has_weights(backbone: str) -> bool:
    return backbone in bundled_tags() or Path(backbone).is_file()


def write_paper_tables(
    specs: list[Spec], profile: Profile, sources: Sources, root: str | Path = "."
) -> list[Path]:
    """Tables of those of the specs that were run, here or earlier, with the paper's columns."""
    from . import results

    root = Path(root).resolve()
    records, _ = folders(profile, git_state(root), root)
    ids = {run_id(spec, fit(profile, spec, sources)) for spec in specs}
    frame = results.load_records(records)
    frame = frame[frame["id"].isin(ids)]
    return results.write_tables(frame, records.parent / "tables", notes=f"{NOTES} {PAPER_NOTES}")


def write_results(
    frame: pd.DataFrame, curves: pd.DataFrame, planned: list[Spec], folder: Path, profile: Profile
) -> list[Path]:
    """Writes all tables and figures: AdaIR's a question each, the others a table and task each.

    Args:
        frame: from `results.load_records`.
        curves: from `results.load_curves`, of the same folder.
        planned: what the experiment files ask for, run or not.
        folder: gets `tables/` and `figures/`.
        profile: of the records.
    """
    from . import adair_pages, adair_tables, results

    adair = frame["paper"] == "adair"
    tables, pictures = folder / "tables", folder / "figures"
    written = results.write_tables(frame[~adair], tables, notes=NOTES, curves=curves)
    written += write_figures(frame[~adair], curves, pictures, profile)
    if adair.any():
        plan = adair_tables.plan(spec for spec in planned if spec.paper == "adair")
        study = adair_pages.Study(frame[adair], curves, plan)
        written += adair_pages.write_tables(study, tables, notes=NOTES)
        written += adair_pages.write_figures(study, pictures, smoke=profile.name == "smoke")
    return written


def write_figures(
    frame: pd.DataFrame, curves: pd.DataFrame, folder: Path, profile: Profile
) -> list[Path]:
    """Draws the figures that belong to each table, see `figures`; stamped in the smoke profile."""
    from matplotlib import pyplot

    from . import plots, results

    written = []
    for (paper, name), records in results.with_borrowed(frame).groupby(["paper", "table"]):
        for kind, figure in figures(f"{paper}-{name}", records, curves):
            stem, smoke = f"{paper}-{name}-{kind}", profile.name == "smoke"
            written += plots.save_figure(figure, folder, stem, smoke=smoke)
            pyplot.close(figure)
    return written


def figures(name: str, records: pd.DataFrame, curves: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """The figures of one table, each with the end of its file's name.

    A table of methods has an overview of its tasks, a trade-off for each, and cost and curves for
    the two tasks with the most runs; where the tail was trained as well, what that changes. Tables
    of variants have one figure, or none: those without colours are left to the notebooks.
    """
    from . import plots, results

    tables = {task: results.table(part, task=task) for task, part in records.groupby("task")}
    variants = {
        "adaptir-ablation": "ablation",
        "adaptir-scaling": "scalability",
        "asteisr-ablation": "ablation",
    }
    if name in variants:
        for task, table in tables.items():
            if table["gain"].notna().sum() > 1:  # The reference and a variant were run.
                yield f"{task}-{variants[name]}", getattr(plots, variants[name])(table)
        return
    tables = {task: table for task, table in tables.items() if (table["trainable"] > 0).any()}
    if not all(plots.has_color(row) for table in tables.values() for row in table["row"]):
        return
    if len(tables) > 1:
        yield "overview", plots.overview(tables)
    own = {"asteisr-hat": stereo_figures}
    if name in own:
        yield from own[name](tables)
    runs = records.groupby("task")["id"].nunique().nlargest(2)
    for task, table in tables.items():
        yield f"{task}-tradeoff", plots.tradeoff(table)
        if task in runs:
            mine = records[records["task"] == task]
            yield f"{task}-efficiency", plots.efficiency_bars(table)
            yield f"{task}-curves", plots.curves(curves[curves["id"].isin(mine["id"])])
        ran = set(table.loc[table["psnr"].notna(), "row"])
        if any(f"{row}_tail" in ran for row in ran):
            yield f"{task}-tail", plots.alone_or_with_tail(table)


def stereo_figures(tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
    """ASteISR's training strategies beside the others, with the counts of their rows if all ran."""
    from . import stereo_plots

    for task, table in tables.items():
        trained = table.set_index("row")["trainable"].dropna()
        if {"scratch", "full", "asteisr"} <= set(trained.index):
            every = trained["full"]  # All weights and both adapters.
            counts = [(int(trained[row]), int(every)) for row in ("scratch", "full", "asteisr")]
            yield f"{task}-strategies", stereo_plots.strategies(counts)


def compare(frame: pd.DataFrame, root: Path) -> None:
    """Prints how recomputed and committed scores agree; RuntimeError where they do not."""
    from . import results

    committed = results.load_records(root / "results" / "records")
    images = set(frame["image"]) & set(committed["image"])
    keep = [side[side["image"].isin(images)] for side in (frame, committed)]
    compared = results.compare(*keep)
    print(results.comparison_report(compared))
    off = compared["status"].isin(["off", "only in a"]) | (compared["ssim_difference"].abs() > 1e-3)
    if off.any() or not (compared["status"] == "equal").any():
        raise RuntimeError("recomputed scores differ from the committed records, see above")


def execute(notebook: str | Path, target: str | Path, parameters: Mapping[str, Any]) -> Path:
    """Executes a py:percent notebook with papermill into `target` (.ipynb).

    Args:
        notebook: the .py file.
        target: the executed copy, .ipynb.
        parameters: values for its `parameters` cell.

    Raises:
        ValueError: the notebook has no such parameter (papermill itself would only warn and go on
            with defaults).
        papermill.PapermillExecutionError: a cell failed; the executed part is kept for reading.
    """
    import jupytext
    import papermill

    notebook, target = Path(notebook).resolve(), Path(target).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    source = target.with_suffix(".source.ipynb")
    with atomic_path(source) as temporary:
        jupytext.write(jupytext.read(notebook), temporary, fmt="ipynb")
    known = papermill.inspect_notebook(str(source))
    for name in parameters:
        if name not in known:
            hint = did_you_mean(name, known) or "."
            raise ValueError(
                f"{notebook.name} has no parameter {name!r}{hint} It has {sorted(known)}"
            )
    os.environ.setdefault("MPLBACKEND", "agg")
    papermill.execute_notebook(
        str(source),
        str(target),
        parameters=dict(parameters),
        cwd=str(notebook.parent),
        kernel_name="python3",
        progress_bar=True,
    )
    source.unlink()
    return target
