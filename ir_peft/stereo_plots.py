"""Figures of two views: training strategies, attention along a row, disparities, who gains.

In the style of :mod:`ir_peft.plots`: arrays and numbers in, a matplotlib ``Figure`` out; nothing
here knows a model. Numbers come from :mod:`ir_peft.stereo_analysis`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from .figure_style import color, new_figure, style

__all__ = [
    "attention_rows",
    "disparities",
    "gain_bars",
    "gain_maps",
    "gates",
    "scenes",
    "strategies",
]

_INKS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
_FROZEN, _TRAINED, _RANDOM = "#cfd8dc", "#f4a582", "#f7dcb4"
_UNKNOWN = "#d9d9d9"
_GROUPS = (0.1, 1.7, 3.9, 5.5)


def strategies(counts: Sequence[tuple[int, int]]) -> Figure:
    """Draw three ways to a network for stereo pairs: from scratch, fine-tuned, with adapters.

    Args:
        counts: Trained and all parameters of each of the three.
    """
    panels = [
        ("(a) from scratch", "random weights,\nall of them trained", _RANDOM, _RANDOM),
        ("(b) full fine-tuning", "pretrained weights,\nall of them trained", _TRAINED, _RANDOM),
        ("(c) adapters", "pretrained weights frozen,\nonly adapters trained", _FROZEN, _RANDOM),
    ]
    with style():
        fig, axes = new_figure(3.5, 12, ncols=3)
        for ax, (title, text, body, new), (trained, total) in zip(
            axes[0], panels, counts, strict=True
        ):
            ax.set_axis_off()
            ax.set(xlim=(-1.0, 8.2), ylim=(-1.9, 3.1), aspect="equal")
            ax.set_title(title, fontsize=12, weight="bold")
            for y, view in ((2.0, "left"), (0.0, "right")):
                ax.text(-1.0, y + 0.4, view, fontsize=9, va="center")
                ax.annotate(
                    "",
                    (8.2, y + 0.4),
                    (-0.1, y + 0.4),
                    zorder=0,
                    arrowprops={"arrowstyle": "-|>", "color": "#666666", "lw": 1.2},
                )
                for x in _GROUPS:
                    _box(ax, x, y, 1.3, 0.8, body, "group")
                    _box(ax, x + 0.5, y - 0.2, 0.3, 0.24, new)
            for x in _GROUPS[1::2]:  # After every second group.
                ax.plot([x + 1.6] * 2, [0.4, 2.4], color="#666666", lw=1.2, zorder=0)
                _box(ax, x + 1.36, 0.98, 0.48, 0.84, new, "×")
            ax.text(
                3.6, -0.55, f"{text}\n{trained:,} of {total:,} ({trained / total:.1%})",
                ha="center", va="top", fontsize=10, linespacing=1.35,
            )  # fmt: skip
        handles = [
            Rectangle((0, 0), 1, 1, fc=ink, ec="#555555") for ink in (_FROZEN, _TRAINED, _RANDOM)
        ]
        names = ["pretrained, frozen", "pretrained, trained", "new, trained"]
        names[2] += " (between the views ×: stereo; small: spatial adapter)"
        fig.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9)
    return fig


def _box(ax: Axes, x: float, y: float, w: float, h: float, ink: str, text: str = "") -> None:
    shape = FancyBboxPatch(
        (x, y), w, h, boxstyle="round,pad=0,rounding_size=0.08", fc=ink, ec="#555555", lw=0.9
    )
    ax.add_patch(shape)
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=8.5)


def scenes(
    rows: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]], reach: float
) -> Figure:
    """Draw stereo scenes with what is known of them, a line a scene.

    Args:
        rows: Title -> left and right (H, W, 3) in [0, 1], disparity (H, W) in pixels, occluded
            (H, W) bool, both of the left view.
        reach: Largest disparity, the end of the scale [px].
    """
    height, width = next(iter(rows.values()))[2].shape
    with style():
        fig, axes = new_figure(
            len(rows) * (3.6 * height / width + 0.1) + 0.4, 12, nrows=len(rows), ncols=3
        )
        _pictures(axes)
        for axs, (title, (left, right, disparity, hidden)) in zip(axes, rows.items(), strict=True):
            axs[0].imshow(np.clip(left, 0, 1))
            axs[1].imshow(np.clip(right, 0, 1))
            shown = axs[2].imshow(disparity, cmap="viridis", vmin=0, vmax=reach)
            shade = np.zeros((*hidden.shape, 4))
            shade[hidden] = (0.85, 0.1, 0.1, 1)
            axs[2].imshow(shade)
            axs[0].set_ylabel(title, fontsize=10)
        titles = ("left view", "right view", "disparity; red: not in the right view")
        for ax, title in zip(axes[0], titles, strict=True):
            ax.set_title(title, fontsize=10)
        bar = fig.colorbar(shown, ax=axes, fraction=0.015, pad=0.01)
        bar.set_label("disparity [px]", fontsize=9)
    return fig


def attention_rows(
    left: np.ndarray,
    right: np.ndarray,
    points: Sequence[tuple[int, int]],
    attention: Mapping[str, np.ndarray],
    disparity: np.ndarray,
) -> Figure:
    """Draw where some pixels of the left view look along their row of the right view.

    Args:
        left: (h, w, 3) in [0, 1], of the grid of the features.
        right: The same of the right view.
        points: (row, column) in the left view.
        attention: Layer -> (h, w, w) of the left view, rows that sum to 1.
        disparity: (h, w) in pixels of this grid, NaN where unknown.

    Raises:
        ValueError: A point has no known disparity.
    """
    for y, x in points:
        if not np.isfinite(disparity[y, x]):
            raise ValueError(f"the disparity at row {y}, column {x} is unknown")
    h, w = left.shape[:2]
    tall = 5.6 * h / w
    with style():
        fig = plt.figure(figsize=(12, tall + 0.6 + 1.5 * len(points)), layout="constrained")
        plt.close(fig)
        rows = len(points)
        grid = fig.add_gridspec(rows + 1, 2, height_ratios=[tall + 0.4] + [1.35] * rows)
        views = [fig.add_subplot(grid[0, k]) for k in range(2)]
        for ax, image, title in zip(views, (left, right), ("left view", "right view"), strict=True):
            ax.imshow(np.clip(image, 0, 1))
            ax.set_title(title)
        _pictures(np.array(views))
        for k, (y, x) in enumerate(points):
            ink, d = _INKS[k % len(_INKS)], disparity[y, x]
            look = {"ms": 13, "mew": 2.6, "color": ink}
            views[0].plot(x, y, "+", **look)
            views[1].axhline(y, color=ink, lw=0.9, alpha=0.8)
            views[1].plot(x - d, y, "+", **look)
            ax = fig.add_subplot(grid[k + 1, :])
            for (layer, maps), line in zip(attention.items(), ("-", ":", "--", "-."), strict=False):
                ax.plot(maps[y, x], line, color=ink, lw=1.6, label=layer)
            ax.axvline(x - d, color="black", lw=1, ls="--", label="true column")
            ax.axhline(1 / w, color="#999999", lw=0.9, label="uniform")
            ax.set(xlim=(0, w - 1), ylim=(0, None), ylabel="attention")
            ax.set_title(
                f"row {y}, column {x}: disparity {d:.1f} px", color=ink, fontsize=10, loc="left"
            )
            if k == 0:
                ax.legend(fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
            if k == rows - 1:
                ax.set_xlabel("column of the right view [px of the low-resolution image]")
    return fig


def disparities(panels: Mapping[str, np.ndarray], captions: Mapping[str, str]) -> Figure:
    """Draw disparity maps on one scale; unknown pixels are grey.

    Args:
        panels: Title -> (h, w) in pixels, NaN where unknown. The first sets the scale.
        captions: Title -> text below it, where there is any.
    """
    first = next(iter(panels.values()))
    low, high = np.nanpercentile(first, (1, 99))
    look = plt.get_cmap("viridis").with_extremes(bad=_UNKNOWN)
    h, w = first.shape
    lines = -(-len(panels) // 2)
    with style():
        fig, axes = new_figure(lines * (5.6 * h / w + 0.5), 12, nrows=lines, ncols=2)
        _pictures(axes)
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax, (title, values) in zip(axes.flat, panels.items(), strict=False):
            shown = ax.imshow(np.ma.masked_invalid(values), cmap=look, vmin=low, vmax=high)
            ax.set_title(title, fontsize=10)
            ax.set_xlabel(captions.get(title, ""), fontsize=9)
        bar = fig.colorbar(shown, ax=axes, fraction=0.02, pad=0.01, extend="both")
        bar.set_label("disparity [px]", fontsize=9)
    return fig


def gain_maps(photo: np.ndarray, maps: Mapping[str, np.ndarray], hidden: np.ndarray) -> Figure:
    """Draw where one restoration is nearer to the truth than another.

    Args:
        photo: (H, W, 3) in [0, 1], the left view.
        maps: Title -> (H, W) in dB, positive where it is nearer. The scale, the same for all, ends
            where 98 % of the values are inside.
        hidden: (H, W) bool, pixels that the right view does not show, marked in the photograph.
    """
    h, w = hidden.shape
    wide = 11.3 / (1 + len(maps))
    reach = max(np.percentile(np.abs(list(maps.values())), 98), 1e-3)
    with style():
        fig, axes = new_figure(wide * h / w + 0.5, 12, ncols=1 + len(maps))
        _pictures(axes)
        axes[0, 0].imshow(np.clip(photo, 0, 1))
        axes[0, 0].set_title("left view; red: not in the right view", fontsize=10)
        shade = np.zeros((h, w, 4))
        shade[hidden] = (0.85, 0.1, 0.1, 0.6)
        axes[0, 0].imshow(shade)
        for ax, (title, values) in zip(axes[0, 1:], maps.items(), strict=True):
            shown = ax.imshow(values, cmap="RdBu", vmin=-reach, vmax=reach)
            ax.set_title(title, fontsize=10)
        bar = fig.colorbar(shown, ax=axes, fraction=0.02, pad=0.01, extend="both")
        bar.set_label("gain [dB]", fontsize=9)
    return fig


def _pictures(axes: np.ndarray) -> None:
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)


def gain_bars(
    groups: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]], labels: Mapping[str, str]
) -> Figure:
    """Draw the PSNR gain over each part of a view, a panel a kind of parts, a bar a row.

    Args:
        groups: Title -> row of a table -> what :func:`ir_peft.stereo_analysis.gains` returns.
        labels: Row -> its name in the legend.
    """
    with style():
        parts = [len(next(iter(rows.values()))) for rows in groups.values()]
        fig, axes = new_figure(
            3.4, 12, ncols=len(groups), sharey=True, gridspec_kw={"width_ratios": parts}
        )
        for ax, (title, rows) in zip(axes[0], groups.items(), strict=True):
            width = 0.8 / len(rows)
            for k, (row, found) in enumerate(rows.items()):
                at = np.arange(len(found)) + (k - (len(rows) - 1) / 2) * width
                ax.bar(
                    at, [part["gain"] for part in found], width, color=color(row),
                    label=labels[row],
                )  # fmt: skip
            ticks = [f"{part['part']}\n{part['share']:.0%} of view" for part in found]
            ax.set_xticks(range(len(found)), ticks, fontsize=9)
            ax.axhline(0, color="black", lw=0.8)
            ax.set_title(title, fontsize=10)
            ax.grid(axis="x", visible=False)
            ax.tick_params(axis="x", length=0)
        axes[0, 0].set_ylabel("gain over frozen [dB]")
        fig.legend(
            *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9
        )
    return fig


def gates(values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw the factors beta and gamma of each stereo adapter, every channel a dot.

    Args:
        values: Layer -> beta (C,), gamma (C,).
    """
    with style():
        fig, axes = new_figure(3.2)
        ax = axes[0, 0]
        for k, pair in enumerate(values.values()):
            for name, ink, factors, at in zip(
                ("beta, into the left view", "gamma, into the right view"),
                _INKS, pair, (k - 0.18, k + 0.18), strict=False,
            ):  # fmt: skip
                spread = np.linspace(-0.12, 0.12, len(factors))
                ax.plot(at + spread, factors, "o", ms=3, color=ink, label=name if k == 0 else None)
        ax.axhline(0, color="black", lw=0.8)
        ax.set_xticks(range(len(values)), list(values))
        ax.grid(axis="x", visible=False)
        ax.set_ylabel("factor of each channel")
        fig.legend(loc="outside upper center", ncols=2, fontsize=9)
    return fig
