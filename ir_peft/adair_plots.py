"""Figures of AdaIR's questions: tasks, strengths, variants, costs, storage, shared layers.

In the style of :mod:`ir_peft.plots`: what :mod:`ir_peft.adair_tables` returns in, a matplotlib
``Figure`` out. Rows that were not run (NaN) are left out; a figure without any is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .figure_style import NothingToDrawError, color, has_color, new_figure, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = [
    "cost_bars",
    "level_dots",
    "similarity_lines",
    "storage_bars",
    "task_dots",
    "variant_dots",
]

# Okabe and Ito's palette without yellow: groups and tasks, never methods.
_INKS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]

_TICKS = [*(-n for n in (20, 10, 5, 3, 2, 1, 0.5, 0.2)), 0, 0.2, 0.5, 1, 2, 3, 5, 10, 20]


def _dot(ax: Axes, x: float, y: float, ink: str, filled: bool, label: str | None = None) -> None:
    ax.plot(
        x, y, "o", color=ink, markersize=8, markeredgewidth=2, zorder=3, label=label,
        markerfacecolor=ink if filled else "white",
    )  # fmt: skip


def _legend(fig: Figure, axes: Sequence[Axes], columns: int = 4) -> None:
    """One legend above the panels, each name once."""
    once = {t: h for ax in axes for h, t in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(once.values(), once.keys(), loc="outside upper center", ncols=columns, fontsize=9)


def task_dots(by_task: pd.DataFrame, labels: Mapping[str, str], *, base: str = "frozen") -> Figure:
    """Draw what each row gains over the base, a line a task, a panel for tasks new to the base.

    The scale is linear up to 1 dB on either side and logarithmic beyond: new damage leaves tens of
    decibels to gain, known damage tenths.

    Args:
        by_task: From :func:`ir_peft.adair_tables.unseen_tasks`.
        labels: Row -> name, in drawing order; rows without a colour are left out.
        base: The row that the others are compared with.

    Raises:
        NothingToDrawError: No row was run on a task where the base was.
    """
    rows = [row for row in labels if row in by_task and row not in (base, "bicubic")]
    gains = by_task[rows].sub(by_task[base], axis=0)[[row for row in rows if has_color(row)]]
    if gains.isna().all(axis=None):
        raise NothingToDrawError(f"no row was run on a task where {base!r} was")
    shown = gains.dropna(how="all")
    seen = by_task.loc[shown.index, "seen"].astype(bool)
    titles = {True: "damage that the base knows", False: "damage that is new to the base"}
    parts = {titles[known]: shown[seen == known] for known in (True, False) if any(seen == known)}
    with style():
        fig, axes = new_figure(
            0.42 * len(shown) + 1.0 + 0.8 * len(parts),
            nrows=len(parts),
            height_ratios=[len(part) + 1 for part in parts.values()],
        )
        for ax, (title, part) in zip(axes[:, 0], parts.items(), strict=True):
            for row in part:
                for k, value in enumerate(part[row]):
                    if value == value:
                        _dot(ax, value, k, color(row), filled=True, label=labels[row])
            ax.axvline(0, color=color(base), ls="--", lw=1.4, label=labels.get(base, base))
            low, high = part.min(axis=None), part.max(axis=None)
            ax.set_xscale("symlog", linthresh=1, linscale=1.5)
            ax.set_xlim(min(1.3 * low, -0.1), max(1.3 * high, 0.1))
            ax.set_xticks([tick for tick in _TICKS if ax.get_xlim()[0] <= tick <= ax.get_xlim()[1]])
            ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:+g}" if v else "0"))
            ax.set_yticks(range(len(part)), part.index)
            ax.set_ylim(len(part) - 0.4, -0.6)
            ax.set_title(title, fontsize=10)
        axes[-1, 0].set_xlabel("PSNR above the frozen base [dB], logarithmic beyond 1 dB")
        _legend(fig, axes[:, 0])
    return fig


def level_dots(frame: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Draw PSNR at each tested strength: trained at one (filled) or at this very one (hollow).

    The height is relative to the adapter trained for the tested strength; a panel a strength
    trained at, named in its title.

    Args:
        frame: From :func:`ir_peft.adair_tables.unseen_levels`.
        labels: ``like`` -> name of the method.

    Raises:
        NothingToDrawError: No row was run at a strength for which an adapter was trained.
    """
    specialist = frame[frame["like"] == "adair"].set_index("task")["own"]
    shown = frame.assign(zero=frame["task"].map(specialist[~specialist.index.duplicated()]))
    shown = shown.dropna(subset=["psnr", "zero"])
    if shown.empty:
        raise NothingToDrawError("no row was run at a strength for which an adapter was trained")
    trained = list(dict.fromkeys(shown["trained"]))
    with style():
        fig, axes = new_figure(4.4, 4.3 * len(trained) + 0.8, ncols=len(trained))
        for ax, start in zip(axes[0], trained, strict=True):
            part = shown[shown["trained"] == start]
            tasks = list(dict.fromkeys(part["task"]))
            methods = list(dict.fromkeys(part["like"]))
            for k, like in enumerate(methods):
                own = part[part["like"] == like].set_index("task")
                x = np.array([tasks.index(task) for task in own.index]) + 0.18 * (
                    k - (len(methods) - 1) / 2
                )
                name = labels.get(like, like)
                for at, (_, r) in zip(x, own.iterrows(), strict=True):
                    low, high = r["psnr"] - r["zero"], r["own"] - r["zero"]
                    ax.plot([at, at], [low, high], color=color(like), lw=1.5, zorder=2)
                    if high == high:
                        _dot(ax, at, high, color(like), filled=False)
                    _dot(ax, at, low, color(like), filled=True, label=name)
            if part["base"].notna().any():
                first = part.drop_duplicates("task")
                for _, r in first.iterrows():
                    at = tasks.index(r["task"])
                    ax.hlines(
                        r["base"] - r["zero"], at - 0.4, at + 0.4, color=color("frozen"), ls="--",
                        label="frozen base",
                    )  # fmt: skip
            ax.axhline(0, color="#333333", lw=0.8)
            ax.set_xticks(range(len(tasks)), tasks)
            ax.set_xlim(-0.6, len(tasks) - 0.4)
            ax.set_title(f"trained on {start}")
            ax.grid(axis="x", visible=False)
        axes[0, 0].set_ylabel("PSNR relative to the adapter trained\nfor the tested strength [dB]")
        ax.plot([], [], "o", color="#444444", mfc="white", mew=2, label="trained at this strength")
        _legend(fig, axes[0], columns=5)
    return fig


def variant_dots(frame: pd.DataFrame, base: Mapping[str, float] | None = None) -> Figure:
    """Draw the PSNR of the adapter's variants, a panel a task, a block of lines a group.

    Args:
        frame: From :func:`ir_peft.adair_tables.ablation`.
        base: Task -> PSNR of the frozen base [dB], drawn as a line.

    Raises:
        NothingToDrawError: No variant was run.
    """
    tasks = [task for task in frame.columns[4:] if frame[task].notna().any()]
    if not tasks:
        raise NothingToDrawError("no variant was run")
    shown = frame[frame[tasks].notna().any(axis=1)]
    groups = list(dict.fromkeys(shown["group"]))
    y = np.arange(len(shown)) + shown["group"].map(groups.index).to_numpy() * 0.7
    names = [
        f"{r['variant']}   {r['trainable'] / 1e3:.1f}K" for _, r in shown.iterrows()
    ]  # fmt: skip
    with style():
        fig, axes = new_figure(0.34 * len(shown) + 1.9, ncols=len(tasks), sharey=True)
        for ax, task in zip(axes[0], tasks, strict=True):
            for at, (_, r) in zip(y, shown.iterrows(), strict=True):
                if r[task] == r[task]:
                    ink = _INKS[groups.index(r["group"]) % len(_INKS)]
                    default = r["row"] == "width_21"
                    _dot(ax, r[task], at, ink, filled=default)
                    ax.annotate(
                        f"{r[task]:.2f}", (r[task], at), (8, 0), textcoords="offset points",
                        va="center", fontsize=8,
                    )  # fmt: skip
            if base and base.get(task, np.nan) == base.get(task):
                ax.axvline(base[task], color=color("frozen"), ls="--", lw=1.4, label="frozen base")
            low, high = ax.get_xlim()
            ax.set_xlim(low, high + 0.2 * (high - low))  # Room for the last number.
            ax.set(title=task, xlabel="PSNR [dB]")
            ax.grid(axis="y", visible=False)
        axes[0, 0].set_yticks(y, names)
        axes[0, 0].invert_yaxis()
        for group in groups:
            middle = y[(shown["group"] == group).to_numpy()].mean()
            axes[0, -1].text(
                1.02, middle, group, transform=axes[0, -1].get_yaxis_transform(), va="center",
                color=_INKS[groups.index(group) % len(_INKS)], fontsize=10,
            )  # fmt: skip
        axes[0, 0].plot([], [], "o", color="#444444", mew=2, label="the default")
        axes[0, 0].plot([], [], "o", color="#444444", mfc="white", mew=2, label="a variant")
        _legend(fig, axes[0])
    return fig


def cost_bars(frame: pd.DataFrame) -> Figure:
    """Draw what each trained row costs: parameters, file, time to a PSNR, memory, a line a row.

    Args:
        frame: From :func:`ir_peft.adair_costs.cost`.

    Raises:
        NothingToDrawError: No row was run.
    """
    run = frame[frame["tasks"] > 0].iloc[::-1]
    if run.empty:
        raise NothingToDrawError("no trained row was run")
    panels = [
        ("trainable", 1e3, "trainable [K]"),
        ("bytes", 1e3, "file [kB]"),
        ("all_bytes", 1e6, "all tasks, with the base [MB]"),
        ("step_seconds", 1e-3, "training step [ms]"),
        ("reach_seconds", 60, "until scratch's PSNR [min]"),
        ("saved_bytes", 2**20, "saved for backward [MiB]"),
    ]
    with style():
        fig, axes = new_figure(0.72 * len(run) + 2.4, 11, nrows=2, ncols=3, sharey=True)
        for ax, (column, unit, title) in zip(axes.flat, panels, strict=True):
            values = run[column].to_numpy(dtype=float) / unit
            ax.barh(range(len(run)), values, color=[color(row) for row in run.index], height=0.7)
            top = np.nanmax(values, initial=0)
            digits = 0 if top >= 100 else 1
            for k, value in enumerate(values):
                if value == value:
                    text = f"{value:,.{digits}f}"
                    if column == "reach_seconds":
                        text += f" ({run['reached'].iloc[k]:.0f}/{run['validated'].iloc[k]:.0f})"
                    ax.annotate(
                        text, (value, k), (4, 0), textcoords="offset points", va="center",
                        fontsize=8.5,
                    )  # fmt: skip
            if not top:
                ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center")
            ax.set_xlim(0, 1.4 * top or 1)
            ax.set_title(title, fontsize=10)
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
        for ax in axes[:, 0]:
            ax.set_yticks(range(len(run)), run["label"])
    return fig


def storage_bars(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the megabytes of T tasks: a model for each, or one base and T adapters.

    Args:
        panels: Title -> frame from :func:`ir_peft.adair_costs.storage`.
    """
    inks = ["#444444", color("adair"), color("all_adair"), *_INKS]
    with style():
        fig, axes = new_figure(3.6, 5.6 * len(panels) + 0.4, ncols=len(panels))
        for ax, (title, frame) in zip(axes[0], panels.items(), strict=True):
            width = 0.88 / frame.shape[1]
            for k, (name, sizes) in enumerate(frame.items()):
                x = np.arange(len(frame)) + (k - (frame.shape[1] - 1) / 2) * width
                bars = ax.bar(x, sizes / 1e6, width, color=inks[k], label=name)
                top = frame.to_numpy().max() / 1e6
                form = "{:,.0f}" if top >= 100 else "{:.1f}"
                ax.bar_label(bars, [form.format(size / 1e6) for size in sizes], fontsize=6.5)
            ax.set_xticks(range(len(frame)), frame.index)
            ax.set(title=title, xlabel="tasks", ylabel="on disk [MB]")
            ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g}"))
            ax.grid(axis="x", visible=False)
        _legend(fig, axes[0])
    return fig


def similarity_lines(
    lines: Mapping[str, Sequence[float]],
    groups: Sequence[str],
    labels: Mapping[str, str] | None = None,
    *,
    ylabel: str = "linear CKA",
) -> Figure:
    """Draw a value between 0 and 1 for each layer, a curve a kind of model.

    Args:
        lines: Row of the multi-task table, or another name -> a value a layer.
        groups: The stage of each layer; lines are drawn between stages.
        labels: Name of a curve -> its text in the legend.
        ylabel: What the value is.

    Raises:
        ValueError: A curve has another number of layers than ``groups``.
    """
    for name, values in lines.items():
        if len(values) != len(groups):
            raise ValueError(f"{name!r} has {len(values)} layers, the groups {len(groups)}")
    starts = [k for k in range(len(groups)) if k == 0 or groups[k] != groups[k - 1]]
    ends = [*starts[1:], len(groups)]
    with style():
        fig, axes = new_figure(4.2)
        ax = axes[0, 0]
        for k, (name, values) in enumerate(lines.items()):
            ink = color(name) if has_color(name) else _INKS[k % len(_INKS)]
            ax.plot(range(len(values)), values, marker="o", markersize=5, color=ink)
            ax.lines[-1].set_label((labels or {}).get(name, name))
        for start in starts[1:]:
            ax.axvline(start - 0.5, color="#cccccc", linewidth=1)
        middles = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
        ax.set_xticks(middles, [groups[k] for k in starts], rotation=20, ha="right")
        ax.grid(axis="x", visible=False)
        ax.set(ylabel=ylabel, ylim=(min(0.0, *map(min, lines.values())), 1.03))
        _legend(fig, [ax])
    return fig
