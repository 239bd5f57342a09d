"""Figures in one style: DataFrames and arrays in, a matplotlib ``Figure`` out.

Every method keeps one colour in every figure (a palette that colour-blind readers can tell apart);
a row with the trained tail is drawn filled, the adapter alone hollow. The functions take what
:mod:`ir_peft.results` returns; nothing here reads a file or knows a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .figure_style import (
    COLORS,
    WIDTH,
    color,
    has_color,
    new_figure,
    place_labels,
    reference_lines,
    save_figure,
    stamp,
    style,
)
from .variant_plots import (
    LEAST_SPAN,
    ablation,
    leave_out_scratch,
    overview,
    psnr_dots,
    scalability,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = [
    "COLORS",
    "ablation",
    "alone_or_with_tail",
    "channel_bars",
    "color",
    "crops",
    "curves",
    "efficiency_bars",
    "has_color",
    "overview",
    "radial_spectrum",
    "save_figure",
    "scalability",
    "spectra",
    "stamp",
    "style",
    "tradeoff",
]

# Okabe and Ito without yellow, for curves that are not methods.
_INKS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]


def _run(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows with a result; one of them at least must have trained something."""
    run = table[table["psnr"].notna()]
    if not (run["trainable"] > 0).any():
        raise ValueError("the table has no trained row with a result: nothing has been run")
    return run


def _filled(row: str) -> bool:
    """Whether a row trains the tail, or everything."""
    return row.endswith(("_tail", "_ends")) or row in ("full", "scratch", "tail")


def efficiency_bars(table: pd.DataFrame) -> Figure:
    """Draw trainable parameters, time and memory of a training step, and PSNR, a line a method.

    Args:
        table: From :func:`ir_peft.results.table`. Rows without training have no cost bars, costs
            that were not measured no panel.
    """
    run = _run(table).iloc[::-1]
    panels = [
        ("trainable", 1e3, "trainable [K], log scale"),
        ("step_seconds", 1e-3, "training step [ms]"),
        ("saved_bytes", 2**20, "saved for backward [MiB]"),
        ("psnr", 1, "PSNR [dB]"),
    ]
    panels = [panel for panel in panels if (run.loc[run["trainable"] > 0, panel[0]] > 0).any()]
    with style():
        fig, axes = new_figure(
            0.34 * len(run) + 1.1, 3 * len(panels), ncols=len(panels), sharey=True
        )
        y = np.arange(len(run))
        for ax, (column, unit, title) in zip(axes[0], panels, strict=True):
            ax.set_title(title, fontsize=10)
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
            if column == "psnr":
                psnr_dots(ax, run)
            else:
                costs = (run["trainable"] > 0) & (run[column] > 0)
                values = np.where(costs, run[column] / unit, np.nan)
                _cost_bars(ax, run, values, log=column == "trainable")
        axes[0, 0].set_yticks(y, run["label"])
        axes[0, 0].set_ylim(-0.6, len(run) - 0.4)
    return fig


def _cost_bars(ax: Axes, run: pd.DataFrame, values: np.ndarray, *, log: bool) -> None:
    """Draw one cost [the panel's unit] of each row, NaN where there is none."""
    bars = ax.barh(
        np.arange(len(run)), values, color=[color(row) for row in run["row"]], height=0.7
    )
    for bar, row in zip(bars, run["row"], strict=True):
        bar.set_alpha(1.0 if _filled(row) else 0.6)
    low, high = np.nanmin(values), np.nanmax(values)
    for k, value in enumerate(values):
        if value == value:
            ax.annotate(
                f"{value:.{0 if high >= 100 else 1}f}", (value, k), (4, 0),
                textcoords="offset points", va="center", fontsize=8.5,
            )  # fmt: skip
    if log:
        ax.set_xscale("log")
        ax.set_xlim(low / 3, high * 6)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_xlim(0, high * 1.28)


def tradeoff(table: pd.DataFrame) -> Figure:
    """Draw PSNR against trainable parameters (log scale).

    Lines, if near: bicubic, frozen, and from scratch, which after few steps is far behind.
    """
    run = _run(table)
    trained = run[(run["trainable"] > 0) & (run["row"] != "scratch")]
    trained = trained.sort_values("psnr", ascending=False)
    with style():
        fig, axes = new_figure(5.2)
        ax = axes[0, 0]
        ax.set_xscale("log")
        for _, r in trained.iterrows():
            ax.errorbar(
                r["trainable"], r["psnr"], yerr=0 if r["psnr_sd"] != r["psnr_sd"] else r["psnr_sd"],
                marker="o", markersize=8, color=color(r["row"]), capsize=3, markeredgewidth=2,
                markerfacecolor=color(r["row"]) if _filled(r["row"]) else "white",
            )  # fmt: skip
        references = ["bicubic", "frozen", "scratch"]
        levels = reference_lines(ax, run, references, trained["psnr"], vertical=False)
        shown = [*trained["psnr"], *levels]
        middle, span = (max(shown) + min(shown)) / 2, max(max(shown) - min(shown), LEAST_SPAN)
        ax.set_ylim(middle - 0.6 * span, middle + 0.6 * span)
        ax.set_xlim(trained["trainable"].min() / 3, trained["trainable"].max() * 3)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1e3:,g}K"))
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set(xlabel="trainable parameters (log scale)", ylabel="PSNR [dB]")
        if trained["row"].str.endswith("_tail").any():
            ax.plot([], [], "o", color="#444444", mfc="white", mew=2, label="adapter alone")
            ax.plot([], [], "o", color="#444444", mew=2, label="with trained tail")
        fig.legend(loc="outside upper center", ncols=4, fontsize=9)
        points = [
            (r["trainable"], r["psnr"], r["label"], color(r["row"])) for _, r in trained.iterrows()
        ]
        place_labels(ax, points, levels)
    return fig


def alone_or_with_tail(table: pd.DataFrame) -> Figure:
    """Draw the PSNR of each adapter alone (hollow) and with the trained tail (filled), joined.

    Dashed lines: what needs no adapter (bicubic, frozen, tail only) and full fine-tuning.
    """
    run = _run(table).set_index("row", drop=False)
    methods = [row for row in run.index if f"{row}_tail" in run.index][::-1]
    if not methods:
        raise ValueError(
            f"no method has both rows, alone and _tail; the table has {list(run.index)}"
        )
    with style():
        fig, axes = new_figure(0.5 * len(methods) + 1.7)
        ax = axes[0, 0]
        for y, row in enumerate(methods):
            alone, tail = run.loc[row, "psnr"], run.loc[f"{row}_tail", "psnr"]
            ax.plot([alone, tail], [y, y], color=color(row), linewidth=2.5, zorder=2)
            ax.scatter(alone, y, s=80, facecolor="white", edgecolor=color(row), lw=2.2, zorder=3)
            ax.scatter(tail, y, s=80, color=color(row), zorder=3)
            for value, side in (
                (alone, -1 if alone <= tail else 1),
                (tail, 1 if alone <= tail else -1),
            ):
                ax.annotate(
                    f"{value:.2f}", (value, y), (9 * side, 0), textcoords="offset points",
                    va="center", ha="left" if side > 0 else "right", fontsize=9, zorder=4,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                )  # fmt: skip
        points = run.loc[[*methods, *(f"{row}_tail" for row in methods)], "psnr"]
        references = ["frozen", "bicubic", "tail", "full"]
        reference_lines(ax, run, references, points, vertical=True, reach=3)
        fig.legend(loc="outside upper center", ncols=4, fontsize=9)
        low, high = ax.get_xlim()
        ax.set_xlim(low - 0.05 * (high - low), high + 0.08 * (high - low))
        ax.set_yticks(range(len(methods)), run.loc[methods, "label"])
        ax.set_ylim(-0.6, len(methods) - 0.4)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("PSNR [dB]   (hollow: adapter alone, filled: with trained tail)")
    return fig


def curves(curve: pd.DataFrame) -> Figure:
    """Draw loss and, where there is any, validation PSNR against steps.

    Args:
        curve: From :func:`ir_peft.results.load_curves`, of one task: columns ``row label seed step
            loss`` and optionally ``val_psnr``. Dashed: the adapter alone; thin: further seeds.
    """
    palette = list(COLORS.values())
    panels = [("loss", "training loss (L1)")]
    if "val_psnr" in curve and curve["val_psnr"].notna().any():
        panels.append(("val_psnr", "validation PSNR [dB]"))
    with style():
        fig, axes = new_figure(4.2, 12 if len(panels) == 2 else WIDTH, ncols=len(panels))
        for ax, (column, title) in zip(axes[0], panels, strict=True):
            lines = dict(iter(curve.dropna(subset=[column]).groupby(["row", "seed"])))
            for row, seed in sorted(lines, key=lambda key: (palette.index(color(key[0])), *key)):
                line = lines[row, seed].sort_values("step")
                first = seed == min(other for name, other in lines if name == row)
                ax.plot(
                    line["step"], line[column], color=color(row), linewidth=1.8 if first else 0.8,
                    linestyle="-" if _filled(row) else "--",
                    label=line["label"].iloc[0] if first else None,
                )  # fmt: skip
            ax.set(xlabel="step", title=title)
        if len(panels) == 2:
            leave_out_scratch(axes[0, 1], curve.dropna(subset=["val_psnr"]))
        axes[0, 0].set_yscale("log")
        axes[0, 0].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes[0, 0].yaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside right center", fontsize=9)
    return fig


def crops(
    photo: np.ndarray,
    box: tuple[int, int, int, int],
    images: Mapping[str, np.ndarray],
    psnr: Mapping[str, float] | None = None,
    *,
    columns: int = 4,
    title: str = "",
) -> Figure:
    """Draw a photograph with a marked rectangle, and that rectangle of every result beside it.

    Args:
        photo: (H, W, 3) in [0, 1], the ground truth.
        box: Top, left, height, width of the rectangle [pixels of ``photo``].
        images: Caption -> (H, W, 3) in [0, 1], of the photograph's size, in drawing order.
        psnr: Caption -> PSNR [dB], written under the caption where given.
        columns: Crops in a line.
        title: Name of the photograph and the task.

    Raises:
        ValueError: The rectangle leaves the photograph, or an image has another size.
    """
    top, left, height, width = box
    if min(box) < 0 or not height or not width:
        raise ValueError(f"box {box} is (top, left, height, width), all positive")
    if top + height > photo.shape[0] or left + width > photo.shape[1]:
        raise ValueError(f"box {box} leaves the photograph of {photo.shape[:2]}")
    for name, image in images.items():
        if image.shape != photo.shape:
            raise ValueError(f"{name!r} is {image.shape}, the photograph is {photo.shape}")
    lines = -(-len(images) // columns)
    crop_w = 1.9
    crop_h = crop_w * height / width
    tall = lines * (crop_h + 0.45)
    photo_w = min(max(tall * photo.shape[1] / photo.shape[0], 2.5), 5.0)
    with style():
        fig = plt.figure(
            figsize=(photo_w + columns * (crop_w + 0.06), tall + 0.35), layout="constrained"
        )
        plt.close(fig)
        grid = fig.add_gridspec(lines, columns + 1, width_ratios=[photo_w] + [crop_w] * columns)
        ax = fig.add_subplot(grid[:, 0])
        ax.imshow(np.clip(photo, 0, 1))
        for ink, weight in (("black", 4), ("#ffd400", 2)):
            ax.add_patch(
                Rectangle((left - 0.5, top - 0.5), width, height, fill=False, ec=ink, lw=weight)
            )
        ax.set_title(title)
        ax.set_axis_off()
        for k, (name, image) in enumerate(images.items()):
            ax = fig.add_subplot(grid[k // columns, k % columns + 1])
            ax.imshow(np.clip(image[top : top + height, left : left + width], 0, 1))
            text = f"{name}\n{psnr[name]:.2f} dB" if psnr and name in psnr else name
            ax.set_xlabel(text, fontsize=9)
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            ax.spines[:].set_visible(False)
    return fig


def radial_spectrum(features: np.ndarray, *, bins: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Average the log amplitude of feature maps over circles of equal frequency.

    ``A(f) = mean over images, log of the mean over channels of |FFT2|``, averaged over rings of
    equal radius, minus its value at zero frequency. Amplitudes, not complex values, are averaged
    over channels, so that channels of opposite sign do not cancel.

    Args:
        features: (B, C, H, W) or (C, H, W).
        bins: Rings between zero and the highest frequency along an axis; empty ones are left out.

    Returns:
        Frequency [fraction of the Nyquist frequency, 0 first] and relative log amplitude.
    """
    features = np.asarray(features, dtype=np.float64)
    features = features[None] if features.ndim == 3 else features
    if features.ndim != 4:
        raise ValueError(f"features are (B, C, H, W) or (C, H, W), not {features.shape}")
    height, width = features.shape[2:]
    amplitude = np.abs(np.fft.fft2(features)).mean(axis=1)  # (B, H, W)
    # The floor keeps the logarithm finite where a frequency is absent.
    log = np.log(np.maximum(amplitude, 1e-12 * amplitude.max())).mean(axis=0)  # (H, W)
    radius = 2 * np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    ring = np.ceil(np.round(radius * bins, 9)).astype(int)  # ring 0 is zero frequency alone
    keep = ring <= bins
    count = np.bincount(ring[keep], minlength=bins + 1)
    filled = count > 0
    sums = np.bincount(ring[keep], log[keep], minlength=bins + 1)
    middle = np.bincount(ring[keep], radius[keep], minlength=bins + 1)
    return middle[filled] / count[filled], sums[filled] / count[filled] - log[0, 0]


def spectra(panels: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw radially averaged log amplitudes of feature maps, relative to zero frequency.

    Args:
        panels: Panel title -> curve name -> features (B, C, H, W), e.g. method -> task, or
            task -> branch. A curve keeps its colour in all panels.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    inks = dict(zip(names, _INKS * (len(names) // len(_INKS) + 1), strict=False))
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    with style():
        fig, axes = new_figure(
            3.1 * rows + 0.5, 3.4 * columns + 1.6, nrows=rows, ncols=columns,
            sharex=True, sharey=True,
        )  # fmt: skip
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax, (title, lines) in zip(axes.flat, panels.items(), strict=False):
            for name, features in lines.items():
                ax.plot(*radial_spectrum(features), color=inks[name], label=name, linewidth=1.8)
            ax.set(title=title, xlim=(0, 1))
        fig.supxlabel("frequency / Nyquist", fontsize=10)
        fig.supylabel("log amplitude relative to f = 0", fontsize=10)
        lines = {
            t: h for ax in axes.flat for h, t in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        fig.legend(lines.values(), lines.keys(), loc="outside right center", fontsize=9)
    return fig


def channel_bars(weights: Mapping[str, np.ndarray], *, title: str = "") -> Figure:
    """Draw one panel of bars a task: the weight each channel gets, on one common scale.

    Args:
        weights: Panel title -> (C,), e.g. the channel scores of AdaptIR's gating module.
        title: Above the panels.
    """
    with style():
        fig, axes = new_figure(
            1.5 * len(weights) + 0.9, nrows=len(weights), sharex=True, sharey=True
        )
        for ax, (name, values), ink in zip(
            axes[:, 0], weights.items(), _INKS * len(weights), strict=False
        ):
            values = np.asarray(values, dtype=np.float64)
            if values.ndim != 1:
                raise ValueError(f"weights of {name!r} are (C,), not {values.shape}")
            ax.bar(np.arange(len(values)), values, color=ink, width=0.8)
            ax.axhline(0, color="#333333", linewidth=0.8)
            ax.set_title(name, loc="left", fontsize=10)
            ax.grid(axis="x", visible=False)
        axes[-1, 0].set_xlabel("channel")
        fig.supylabel("channel score", fontsize=10)
        fig.suptitle(title)
    return fig
