"""Figures of matrices: heat maps with numbers in their cells, confusion, similarity of layers.

In the style of :mod:`ir_peft.plots`: DataFrames and arrays in, a matplotlib ``Figure`` out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figure_style import NothingToDrawError, new_figure, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["confusion_map", "heat_maps", "similarity_maps"]

_NOTHING = "#ececec"


def _cells(
    ax: Axes, shades: np.ndarray, texts: Sequence[Sequence[str]], look: str, norm: Normalize
) -> None:
    """Draw a matrix of colours with a text in each cell, dark on light and the reverse."""
    import matplotlib.pyplot as plt

    palette = plt.get_cmap(look).with_extremes(bad=_NOTHING)
    shown = np.ma.masked_invalid(shades)
    ax.imshow(shown, cmap=palette, norm=norm, aspect="auto")
    bright = palette(norm(shown)) @ (0.3, 0.59, 0.11, 0)
    for i, line in enumerate(texts):
        for j, text in enumerate(line):
            ink = "#777777" if text == "–" else "white" if bright[i, j] < 0.5 else "black"
            ax.text(
                j, i, text, ha="center", va="center", color=ink,
                fontsize=9,
            )  # fmt: skip
    ax.set_xticks(np.arange(shades.shape[1] + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(shades.shape[0] + 1) - 0.5, minor=True)
    ax.grid(visible=False)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)


def heat_maps(
    panels: Mapping[str, pd.DataFrame], *, signed: Collection[str] = (), ylabel: str = ""
) -> Figure:
    """Draw matrices of PSNR side by side, the number in each cell; NaN is "–".

    A column is one task and tasks differ in difficulty, so the colour of a cell is its distance
    from the best cell of its column. Signed panels hold differences: their colour is the number.

    Args:
        panels: Title -> lines x columns [dB]; the same lines in all panels.
        signed: Titles of panels that hold differences.
        ylabel: What a line is.

    Raises:
        NothingToDrawError: No cell of any panel has a number.
    """
    values = {title: frame.to_numpy(dtype=float) for title, frame in panels.items()}
    if all(np.isnan(matrix).all() for matrix in values.values()):
        raise NothingToDrawError("no cell of these panels was run")
    first = next(iter(panels.values()))
    with style():
        fig, axes = new_figure(
            0.42 * len(first) + 1.9, 3.6 * len(panels) + 1.2, ncols=len(panels), sharey=True
        )
        for ax, (title, frame) in zip(axes[0], panels.items(), strict=True):
            matrix = values[title]
            if title in signed:
                peak = max(np.nanmax(np.abs(matrix), initial=0), 0.1)
                shades, look, norm = matrix, "RdBu", TwoSlopeNorm(0, -peak, peak)
                form, bar = "{:+.2f}", "difference [dB]"
            else:
                run = np.where(np.isnan(matrix), -np.inf, matrix)
                shades = matrix - run.max(axis=0)
                shades = np.where(np.isfinite(shades), shades, np.nan)
                low = min(np.nanmin(shades, initial=0), -0.1)
                look, norm, form = "viridis", Normalize(low, 0), "{:.2f}"
                bar = "below the best of the column [dB]"
            texts = [["–" if v != v else form.format(v) for v in line] for line in matrix]
            _cells(ax, shades, texts, look, norm)
            ax.set_title(title)
            ax.set_xticks(range(len(frame.columns)), frame.columns, rotation=25, ha="right")
            image = ax.images[0]
            made = fig.colorbar(image, ax=ax, location="bottom", fraction=0.05, pad=0.02)
            made.set_label(bar, fontsize=9)
            made.ax.tick_params(labelsize=8)
            made.locator = MaxNLocator(5)
        axes[0, 0].set_yticks(range(len(first)), first.index)
        axes[0, 0].set_ylabel(ylabel)
    return fig


def confusion_map(counts: pd.DataFrame) -> Figure:
    """Draw how often each true class (line) was taken for each (column); right is the diagonal.

    Args:
        counts: Lines and columns are classes, the classes of the columns in the order of the
            lines; the colour is the share of the line.

    Raises:
        ValueError: Nothing was counted.
    """
    matrix = counts.to_numpy(dtype=float)
    if not matrix.sum() > 0:
        raise ValueError("these counts are all zero: nothing was classified")
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)
    texts = [[f"{cell:.0f}" if cell else "" for cell in line] for line in matrix]
    with style():
        fig, axes = new_figure(0.36 * len(counts) + 2.2, 0.5 * counts.shape[1] + 3)
        ax = axes[0, 0]
        _cells(ax, shares, texts, "Blues", Normalize(0, 1))
        ax.set_xticks(range(counts.shape[1]), counts.columns, rotation=35, ha="right")
        ax.set_yticks(range(len(counts)), counts.index)
        ax.set(xlabel="taken for", ylabel="done to the image")
        bar = fig.colorbar(ax.images[0], ax=ax, fraction=0.04, pad=0.02)
        bar.set_label("share of the line", fontsize=9)
    return fig


def similarity_maps(
    panels: Mapping[str, pd.DataFrame],
    *,
    groups: Sequence[str] = (),
    numbers: bool = False,
    columns: int = 4,
    label: str = "linear CKA",
) -> Figure:
    """Draw matrices of values between 0 and 1 on one scale, e.g. CKA of layers or of tasks.

    Args:
        panels: Title -> square matrix; index and columns name its lines and columns.
        groups: Name of the group of each line, e.g. its stage; lines are drawn between groups,
            whose names replace those of the lines. () writes the lines' own names.
        numbers: Write the value into each cell.
        columns: Panels in a line.
        label: Of the colour bar.
    """
    lines = -(-len(panels) // columns)
    wide = min(columns, len(panels))
    norm = Normalize(0, 1)
    with style():
        fig, axes = new_figure(
            3.0 * lines + 0.9, 3.0 * wide + 1.6, nrows=lines, ncols=wide, sharex=True, sharey=True
        )
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax, (title, frame) in zip(axes.flat, panels.items(), strict=False):
            matrix = frame.to_numpy(dtype=float)
            texts = [[f"{v:.2f}" if numbers and v == v else "" for v in line] for line in matrix]
            _cells(ax, matrix, texts, "magma", norm)
            ax.set_title(title, fontsize=10)
            ax.set_aspect("equal")
            names, places = list(frame.index), list(range(len(frame)))
            if len(groups):
                starts = [k for k in places if k == 0 or groups[k] != groups[k - 1]]
                ends = [*starts[1:], len(groups)]
                ax.grid(visible=False, which="minor")
                for start in starts[1:]:
                    ax.axhline(start - 0.5, color="white", linewidth=0.8)
                    ax.axvline(start - 0.5, color="white", linewidth=0.8)
                places = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
                names = [groups[k] for k in starts]
            ax.set_xticks(places, names, rotation=40, ha="right", fontsize=8)
            ax.set_yticks(places, names, fontsize=8)
        bar = fig.colorbar(axes.flat[0].images[0], ax=axes, fraction=0.03, pad=0.01, shrink=0.8)
        bar.set_label(label, fontsize=9)
    return fig
