"""AdaIR's tables and figures as files: one page for each question, from records alone.

A page has a head (where its numbers come from), its tables, and under each table what it says. The
study's seven small tables of bases are one page; so are the eleven tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import adair_claims, adair_costs, adair_plots, adair_tables, claims, matrix_plots, plots
from .figure_style import NothingToDrawError
from .files import write_text
from .rendering import to_markdown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RESTORMER, RESTORMER_ADAPTER = 26_126_644, 1_916_928
"""Parameters of the full Restormer and of one adapter for it in the default design."""

PANELS = {"alone": "base alone", "adapted": "with an adapter", "gain": "what the adapter adds"}
"""Names of the transfer study's matrices."""

ADAPTERS = ("lora", "adair", "all_adair")
"""Rows of the multi-task table that train an adapter."""

SHORT_BASES = (
    "These bases had 1,500 steps of pretraining each, the base of the other pages 10,000; "
    "its strength is not to be compared with theirs."
)
"""A sentence under the transfer study, see `pretrain.RECIPES`."""

_PAPER = "The paper's own tables are not known to us, so none of its numbers stands beside ours."


@dataclass(frozen=True)
class Study:
    """What the pages are made of."""

    records: pd.DataFrame
    """From `results.load_records`, AdaIR's only."""
    curves: pd.DataFrame
    """From `results.load_curves`, of the same folder."""
    planned: pd.DataFrame
    """From `adair_tables.plan`: what was not run is named as such."""

    @property
    def spread(self) -> float:
        """What seeds scatter by [dB]; NaN without several seeds."""
        return adair_tables.seeds_spread(self.records, self.planned)

    @property
    def labels(self) -> dict[str, str]:
        """Row of the multi-task table -> its label."""
        rows = self.planned[self.planned["table"] == "multitask"]
        return dict(rows[["row", "label"]].drop_duplicates().values.tolist())


Section = tuple[str, "pd.DataFrame", "list[str]"]
"""Heading ('' for none), table as text, sentences under it."""


def _multitask(study: Study) -> list[Section]:
    grid = adair_tables.grid(study.records, study.planned)
    shown = adair_tables.printed_grid(study.records, study.planned)
    tasks = [name for name in grid if name not in ("label", "mean")]
    best = grid.loc[list(ADAPTERS), tasks].dropna(axis=1, how="all").idxmax()
    for task, row in best.items():
        shown.loc[row, task] = f"**{shown.loc[row, task]}**"
    lines = adair_tables.scores(study.records, study.planned)
    sizes = lines[lines["table"] == "multitask"].groupby("row")["trainable"].max()
    counts = [f"{count:,.0f}" if count == count else "" for count in sizes.reindex(shown.index)]
    shown.insert(1, "trainable", counts)
    sentences = adair_claims.multitask(grid, study.spread)
    if len(best):
        sentences.append("Bold: the best adapter for the task.")
    return [("", shown.rename(columns={"label": "method"}), sentences)]


def _transfer(study: Study) -> list[Section]:
    panels = adair_tables.transfer(study.records, study.planned)
    tested = study.planned.loc[study.planned["method"] == "frozen", "table"]
    sections = []
    for key, name in PANELS.items():
        frame = panels[key]
        if key != "adapted":  # Random weights alone restore nothing: the plan has no such line.
            frame = frame[("transfer-" + frame.index).isin(tested)]
        shown = adair_tables.display(frame.rename(index=adair_tables.BASES))
        sections.append((name.capitalize(), shown.reset_index(names="pretrained on"), []))
    sections[-1][2].append(SHORT_BASES)
    sections[-1][2].extend(adair_claims.transfer(panels, study.spread))
    return sections


def _unseen(study: Study) -> list[Section]:
    levels = adair_tables.unseen_levels(study.records, study.planned)
    columns = {
        "label": "method", "task": "tested on", "psnr": "PSNR", "own": "trained for it",
        "lost": "lost", "base": "base alone",
    }  # fmt: skip
    shown = adair_tables.display(levels[list(columns)].rename(columns=columns))
    by_task = adair_tables.unseen_tasks(study.records, study.planned)
    columns = {
        "task": "task", "seen": "the base knows it", "bicubic": "input", "frozen": "base alone",
        "over base": "adapter over base", "over scratch": "over scratch",
        "below full": "below full fine-tuning",
    }  # fmt: skip
    kinds = adair_tables.display(by_task.reset_index()[list(columns)].rename(columns=columns))
    return [
        ("Another strength", shown, adair_claims.unseen_levels(levels, study.spread)),
        ("Another kind of damage", kinds, adair_claims.unseen_tasks(by_task)),
    ]


def _ablation(study: Study) -> list[Section]:
    frame = adair_tables.ablation(study.records, study.planned)
    shown = adair_tables.display(frame.drop(columns=["row", "trainable"]))
    counts = frame["trainable"].map(lambda count: f"{count:,.0f}" if count > 0 else "")
    shown.insert(2, "trainable", counts)
    return [("", shown, adair_claims.ablation(frame, study.spread))]


def _cost(study: Study) -> list[Section]:
    frame = adair_costs.cost(study.records, study.curves, study.planned)
    return [("", adair_costs.in_units(frame), adair_claims.cost(frame))]


def storages(study: Study) -> dict[str, pd.DataFrame]:
    """Bytes on disk for T tasks: of the small network by its files, of the full one by count.

    A value takes 4 bytes, in half precision 2; what else is in a file are names and shapes.
    """
    costs = adair_costs.cost(study.records, study.curves, study.planned)
    whole, own = costs.loc[["full", "scratch"], "bytes"].max(), costs.loc["adair"]
    found = {}
    if whole > 0 and own["bytes"] > 0:
        files = {"adapters": own["bytes"], "adapters, 16 bits": own["bytes"] - 2 * own["trainable"]}
        found["restormer_mini, files"] = adair_costs.storage(whole, files)
    counted = {"adapters": 4 * RESTORMER_ADAPTER, "adapters, 16 bits": 2 * RESTORMER_ADAPTER}
    return found | {"Restormer, by count": adair_costs.storage(4 * RESTORMER, counted)}


def _storage(study: Study) -> list[Section]:
    return [
        (
            f"{name} [MB]",
            adair_tables.display(frame / 1e6, digits=1).reset_index(),
            adair_claims.storage(frame),
        )
        for name, frame in storages(study).items()
    ]


def _transfer_figure(study: Study) -> Figure:
    panels = adair_tables.transfer(study.records, study.planned)
    named = {PANELS[k]: frame.rename(index=adair_tables.BASES) for k, frame in panels.items()}
    return matrix_plots.heat_maps(
        named, signed=[PANELS["gain"]], ylabel="the base was pretrained on"
    )


def _ablation_figure(study: Study) -> Figure:
    base = adair_tables.grid(study.records, study.planned).loc["frozen"].drop("label").to_dict()
    return adair_plots.variant_dots(adair_tables.ablation(study.records, study.planned), base)


def _curves_figure(task: str) -> Callable[[Study], Figure]:
    def draw(study: Study) -> Figure:
        # Rows of several tasks are validated on the first of them: no curve for this task.
        alone = study.planned["trained"].map(lambda trained: trained == (task,))
        rows = study.planned.loc[alone & study.planned["table"].eq("multitask"), "row"]
        own = study.records[study.records["table"].eq("multitask") & study.records["task"].eq(task)]
        ids = own.loc[own["row"].isin(rows), "id"]
        mine = study.curves[study.curves["id"].isin(ids)] if len(study.curves) else own[:0]
        if mine.empty:
            raise NothingToDrawError(f"no row was trained on {task}")
        return plots.curves(mine)

    return draw


TABLES: dict[str, tuple[tuple[str, ...], Callable[[Study], list[Section]]]] = {
    "multitask": (("multitask",), _multitask),
    "transfer": (("transfer-",), _transfer),
    "unseen": (("unseen", "multitask"), _unseen),
    "ablation": (("ablation",), _ablation),
    "cost": (("multitask",), _cost),
    "storage": (("multitask",), _storage),
}
"""Page -> what the names of the experiment file's tables begin with that it shows, its sections.

Without records of the first there is no page."""

FIGURES: dict[str, Callable[[Study], Figure]] = {
    "multitask": lambda s: adair_plots.task_dots(
        adair_tables.unseen_tasks(s.records, s.planned), s.labels
    ),
    "transfer": _transfer_figure,
    "unseen": lambda s: adair_plots.level_dots(
        adair_tables.unseen_levels(s.records, s.planned), s.labels
    ),
    "ablation": _ablation_figure,
    "cost": lambda s: adair_plots.cost_bars(adair_costs.cost(s.records, s.curves, s.planned)),
    "storage": lambda s: adair_plots.storage_bars(storages(s)),
    "denoise25-curves": _curves_figure("denoise25"),
    "jpeg-curves": _curves_figure("jpeg"),
}
"""Figure -> what draws it."""


def write_tables(study: Study, folder: str | Path, *, notes: str = "") -> list[Path]:
    """Write the pages whose tables were run as ``adair-<page>.md``.

    Args:
        study: Records of one profile.
        folder: Made if it does not exist; files are replaced atomically.
        notes: A sentence for every head.

    Returns:
        The files written.

    Raises:
        ValueError: The records must not share a table, see `adair_tables.scores`.
    """
    pages = {}
    for name, (needed, sections) in TABLES.items():
        names = study.records["table"].str
        if not names.startswith(needed[0]).any():
            continue
        used = study.records[names.startswith(needed)]
        text = f"# adair-{name}\n\n{claims.head(used, used.iloc[:0])} {_PAPER} {notes}".strip()
        for heading, shown, sentences in sections(study):
            text += f"\n\n## {heading}" if heading else ""
            listed = "".join(f"- {line}\n" for line in sentences)
            text += f"\n\n{to_markdown(shown)}\n{listed}".rstrip()
        if name not in ("cost", "storage"):
            text += f"\n- {adair_claims.seeds(study.spread)}"
        pages[f"adair-{name}.md"] = f"{text}\n"
    for file, text in pages.items():
        write_text(Path(folder) / file, text)
    return [Path(folder) / file for file in pages]


def figures(study: Study) -> Iterator[tuple[str, Figure]]:
    """Draw each of :data:`FIGURES` for which something was run; the others are named."""
    for name, draw in FIGURES.items():
        try:
            figure = draw(study)
        except NothingToDrawError as error:
            print(f"no figure adair-{name}: {error}")
        else:
            yield name, figure


def write_figures(study: Study, folder: str | Path, *, smoke: bool = False) -> list[Path]:
    """Write the figures as ``adair-<name>.png`` and ``.svg``; stamped in the smoke profile."""
    written: list[Path] = []
    for name, figure in figures(study):
        written += plots.save_figure(figure, folder, f"adair-{name}", smoke=smoke)
    return written
