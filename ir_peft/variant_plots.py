"""Figures of several tasks or of variants: overview, PSNR against size, ablation.

As in :mod:`ir_peft.plots`, DataFrames of :func:`ir_peft.results.table` in, a ``Figure`` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from .figure_style import color, near, new_figure, place_labels, reference_lines, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


LEAST_SPAN = 0.3
"""What an axis shows at least [dB], so that chance, some hundredths, does not look like a lead."""


def psnr_dots(ax: Axes, run: pd.DataFrame) -> None:
    """Draw the PSNR of each row as a dot, from below upwards, with seeds' standard deviation.

    The axis covers the rows trained from pretrained weights; a row far off them, untrained or from
    scratch, is an arrow with its number.

    Args:
        ax: One panel.
        run: Rows of a table, the lowest first; one without a result stays empty.
    """
    trained = run.loc[(run["trainable"] > 0) & (run["row"] != "scratch"), "psnr"]
    inside = np.array(near(run["psnr"], trained))
    low, high = run.loc[inside, "psnr"].min(), run.loc[inside, "psnr"].max()
    span = max(high - low, LEAST_SPAN)
    left, right = high - 1.1 * span, high + 0.45 * span
    ax.set_xlim(left, right)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    for y, (_, r) in enumerate(run.iterrows()):
        value = r["psnr"]
        if value != value:
            continue
        ink = color(r["row"])
        at = min(max(value, left + 0.03 * (right - left)), right - 0.03 * (right - left))
        if inside[y]:
            ax.hlines(y, left, value, color=ink, linewidth=1.5)
            ax.scatter(value, y, color=ink, s=40, zorder=3)
            if r["psnr_sd"] == r["psnr_sd"]:
                ax.errorbar(value, y, xerr=r["psnr_sd"], fmt="none", ecolor="#444444", capsize=3)
                at += r["psnr_sd"]  # The number stands behind the bar.
        else:
            ax.scatter(at, y, color=ink, s=40, marker="<" if value < left else ">")
        ax.annotate(
            f"{value:.2f}", (at, y), (7 if value <= right else -7, 0), textcoords="offset points",
            va="center", fontsize=8.5, ha="left" if value <= right else "right",
        )  # fmt: skip


def leave_out_scratch(ax: Axes, curve: pd.DataFrame) -> None:
    """Fit the axis of validation to the pretrained rows; a line says where scratch ends."""
    scratch = curve["row"] == "scratch"
    values = curve.loc[~scratch, "val_psnr"]
    if scratch.any() and len(values):
        middle = (values.max() + values.min()) / 2
        span = max(values.max() - values.min(), LEAST_SPAN)
        ax.set_ylim(middle - 0.6 * span, middle + 0.6 * span)
        last = curve[scratch].sort_values("step").iloc[-1]
        ax.text(
            0.02, 0.02, f"{last['label']}: {last['val_psnr']:.2f} dB at the end (off the axis)",
            transform=ax.transAxes, fontsize=9, color=color("scratch"),
        )  # fmt: skip


def overview(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the PSNR of every row, a panel a task, each panel with its own axis.

    Args:
        frames: Task -> table. Rows without a result on a task are left blank there.
    """
    labels: dict[str, str] = {}
    for frame in frames.values():
        run = frame[frame["psnr"].notna()]
        labels |= dict(zip(run["row"], run["label"], strict=True))
    rows = list(labels)[::-1]
    with style():
        height = 0.3 * len(rows) + 1.2
        fig, axes = new_figure(height, 2 + 2.3 * len(frames), ncols=len(frames), sharey=True)
        for ax, (task, frame) in zip(axes[0], frames.items(), strict=True):
            run = frame[frame["psnr"].notna()].set_index("row", drop=False)
            psnr_dots(ax, run.reindex(rows))
            ax.set_title(task, fontsize=10)
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
        axes[0, 0].set_yticks(range(len(rows)), [labels[row] for row in rows])
        axes[0, 0].set_ylim(-0.6, len(rows) - 0.4)
        fig.supxlabel("PSNR [dB]", fontsize=10)
    return fig


def scalability(table: pd.DataFrame) -> Figure:
    """Draw PSNR against trainable parameters (log scale), a line a method, a point a size.

    Points carry the width or rank; lines mark the frozen and the fully trained network, if near.

    Args:
        table: Rows of several sizes of some methods, e.g. the table ``scaling``.
    """
    run = table[table["psnr"].notna()]
    sized = run[run["width"].notna() & (run["trainable"] > 0)].sort_values("trainable")
    if sized["method"].value_counts().max() < 2 or sized.empty:
        raise ValueError("the table has no method with two sizes: run the rows of `scaling`")
    with style():
        fig, axes = new_figure(5.2)
        ax = axes[0, 0]
        ax.set_xscale("log")
        between: list[tuple[float, float]] = []
        for method, part in sized.groupby("method", sort=False):
            x, y = part["trainable"].to_numpy(dtype=float), part["psnr"].to_numpy()
            ink, name = color(method), part["label"].iloc[0].split(",")[0]
            ax.plot(x, y, "o-", color=ink, linewidth=1.8, label=name)
            ax.errorbar(x, y, yerr=part["psnr_sd"].fillna(0), fmt="none", ecolor=ink, capsize=3)
            fine = np.geomspace(x[0], x[-1], 100)
            between += zip(fine, np.interp(np.log(fine), np.log(x), y), strict=True)
        levels = reference_lines(ax, run, ["frozen", "full"], sized["psnr"], vertical=False)
        shown = [*sized["psnr"], *levels]
        room = 0.1 * (max(shown) - min(shown)) + 0.01
        ax.set_ylim(min(shown) - room, max(shown) + room)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1e3:,g}K"))
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set(xlabel="trainable parameters (log scale); numbers: width or rank")
        ax.set_ylabel("PSNR [dB]")
        fig.legend(loc="outside upper center", ncols=4, fontsize=9)
        points = [
            (r["trainable"], r["psnr"], f"{r['width']:.0f}", color(r["method"]))
            for _, r in sized.iterrows()
        ]
        place_labels(ax, points, levels, between)
    return fig


def ablation(table: pd.DataFrame) -> Figure:
    """Draw what each variant gains or loses against the reference, with the spread of its seeds.

    Args:
        table: The reference first, then the variants; ``gain`` is against the reference. The band
            is as wide as the best seed of the reference is from its worst, to both sides: a bar
            inside it may be chance, and is pale.
    """
    run = table[table["psnr"].notna()]
    reference, variants = run.iloc[0], run.iloc[:0:-1]
    if reference["gain"] != 0 or variants.empty:
        raise ValueError("the table needs its reference as the first row, and a variant that ran")
    spread = reference["psnr_spread"]
    y = np.arange(len(variants))
    with style():
        fig, axes = new_figure(0.32 * len(variants) + 1.4)
        ax = axes[0, 0]
        if spread == spread:
            text = f"spread of {reference['seeds']} seeds of {reference['label']}, {spread:.2f} dB"
            ax.axvspan(-spread, spread, color="#dddddd", zorder=0, label=text)
        bars = ax.barh(y, variants["gain"], color=color(reference["row"]), height=0.65, zorder=2)
        for bar, gain in zip(bars, variants["gain"], strict=True):
            bar.set_alpha(0.45 if abs(gain) <= spread else 1.0)
        for k, gain in enumerate(variants["gain"]):
            ax.annotate(
                f"{gain:+.3f}", (gain, k), (4 if gain >= 0 else -4, 0), fontsize=8.5,
                textcoords="offset points", va="center", ha="left" if gain >= 0 else "right",
            )  # fmt: skip
        ax.axvline(0, color="#333333", linewidth=0.9, zorder=3)
        ax.margins(x=0.15)
        names = variants["label"] + variants["trainable"].map("  ({:,.0f})".format)
        ax.set_yticks(y, names)
        ax.set_ylim(-0.6, len(variants) - 0.4)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(
            f"PSNR against {reference['label']} ({reference['psnr']:.2f} dB, "
            f"{reference['trainable']:,.0f} values) [dB]"
        )
        if spread == spread:
            fig.legend(loc="outside upper center", fontsize=9)
    return fig
