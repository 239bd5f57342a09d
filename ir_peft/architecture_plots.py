"""Figures of what is inside a network: influence maps, sites, shares, feature maps.

In the style of :mod:`ir_peft.plots`: arrays and DataFrames in, a matplotlib ``Figure`` out; nothing
here knows a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation

from .figure_style import color, new_figure, style

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["images", "influence_maps", "share_bars", "site_maps"]

# Paul Tol's "light" palette: parts of a network, never methods.
_PARTS = ["#77aadd", "#ee8866", "#eedd88", "#bbcc33", "#ffaabb", "#dddddd", "#44bb99", "#99ddff"]
_NOTHING = "#d9d9d9"


def influence_maps(
    rows: Mapping[str, Mapping[str, np.ndarray | None]],
    marks: Mapping[str, tuple[int, int]],
    *,
    decades: int = 5,
    columns: int = 5,
) -> Figure:
    """Draw maps on one logarithmic scale, each relative to its maximum; exact zeros are grey.

    Args:
        rows: Row title -> panel title -> (H, W), not negative, or None for a panel without data.
            A row with more than ``columns`` panels goes on in the next line.
        marks: Panel title -> (row, column) of the position that the map belongs to.
        decades: Powers of ten below the maximum that colours tell apart.
        columns: Panels in a line.

    Raises:
        ValueError: A map is not two-dimensional, or has negative values or nothing but zeros.
    """
    lines = [
        (title if start == 0 else "", list(panels.items())[start : start + columns])
        for title, panels in rows.items()
        for start in range(0, len(panels), columns)
    ]
    look = plt.get_cmap("magma").with_extremes(bad=_NOTHING)
    scale = Normalize(-decades, 0)
    with style():
        fig, axes = new_figure(
            2.35 * len(lines) + 0.2, 2.1 * columns, nrows=len(lines), ncols=columns
        )
        for axs, (row, panels) in zip(axes, lines, strict=True):
            for ax in axs:
                ax.set_axis_off()
            # The row's title is the figure's: as the panel's it would take width from the others.
            axs[0].set_title("|", fontsize=11, pad=22 if row else 6, alpha=0)  # Room for it.
            above = axs[0].transAxes + ScaledTranslation(0, 22 / 72, fig.dpi_scale_trans)
            fig.text(0, 1, row, fontsize=11, weight="bold", transform=above, in_layout=False)
            for ax, (title, values) in zip(axs, panels, strict=False):
                ax.text(
                    0.5, 1.02, title, transform=ax.transAxes, fontsize=9, ha="center", va="bottom"
                )
                if values is None:
                    ax.set_box_aspect(1)
                    ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center", color="#888888")
                    continue
                values = np.asarray(values, dtype=np.float64)
                if values.ndim != 2 or values.min() < 0 or not values.max() > 0:
                    raise ValueError(f"the map {title!r} must be (H, W), not negative, not all 0")
                shown = np.ma.masked_equal(values / values.max(), 0)
                ax.imshow(np.ma.log10(shown).clip(-decades, 0), cmap=look, norm=scale)
                if title in marks:
                    i, j = marks[title]
                    ax.plot(j, i, "+", color="#00b7ff", markersize=7, markeredgewidth=1.4)
        bar = fig.colorbar(
            plt.cm.ScalarMappable(scale, look), ax=axes, fraction=0.02, pad=0.01, aspect=30
        )
        ticks = range(-decades, 1)
        bar.set_ticks(list(ticks), labels=[f"$10^{{{t}}}$" if t else "1" for t in ticks])
        bar.set_label("influence, relative to the largest (grey: exactly 0)", fontsize=9)
    return fig


def site_maps(blocks: Mapping[str, pd.DataFrame], *, columns: int = 3) -> Figure:
    """Draw the modules of a block as nested boxes and the methods that adapt them as dots.

    Args:
        blocks: Panel title -> a line a module, in the order of their calls. The index has names
            inside the block (``attn``, ``attn.qkv``); columns ``kind`` (text beside the name) and a
            boolean one for each method, by the name that :func:`ir_peft.figure_style.color` knows.
        columns: Panels in a line.
    """
    lines = -(-len(blocks) // columns)
    frames = list(blocks.values())
    tall = [max(len(f) for f in frames[i * columns : (i + 1) * columns]) for i in range(lines)]
    with style():
        fig, axes = new_figure(
            0.235 * sum(tall) + 1.35 * lines, 4.4 * columns, nrows=lines, ncols=columns,
            gridspec_kw={"height_ratios": tall},
        )  # fmt: skip
        for ax in axes.flat:
            ax.set_axis_off()
        for k, (ax, (title, frame)) in enumerate(zip(axes.flat, blocks.items(), strict=False)):
            methods = [name for name in frame if name != "kind"]
            names = list(frame.index)
            for y, name in enumerate(names):
                depth = name.count(".")
                inside = [n for n in names if n.startswith(f"{name}.")]
                parents = [n for n in names if name.startswith(f"{n}.")]
                left = 0.25 * len(parents)
                ax.add_patch(
                    Rectangle(
                        (left, y + 0.06), 10 - 2 * left, len(inside) + 0.88, lw=0.8, ec="#777777",
                        fc=("#eef3fa", "#ffffff")[len(parents) % 2] if inside else "#fbfbfb",
                        zorder=1 + depth,
                    )
                )  # fmt: skip
                short = name.removeprefix(f"{parents[-1]}.") if parents else name
                weight = "bold" if inside else "normal"
                ax.text(
                    left + 0.2, y + 0.5, short, va="center", fontsize=8, weight=weight, zorder=9
                )
                ax.text(
                    9.85 - left, y + 0.5, frame["kind"].iloc[y], va="center", ha="right",
                    fontsize=7, color="#666666", zorder=9,
                )  # fmt: skip
                if y % 2:
                    ax.axhspan(y, y + 1, 10.3 / 19, 1, color="#f2f2f2", zorder=0)
            for x, method in enumerate(methods):
                at = 10.8 + x * 8 / max(len(methods), 1)
                ax.text(
                    at, -0.15, method, rotation=55, ha="left", va="bottom", fontsize=7.5,
                    color=color(method), rotation_mode="anchor",
                )  # fmt: skip
                here = np.flatnonzero(frame[method].to_numpy())
                ax.scatter(np.full(len(here), at), here + 0.5, s=34, color=color(method), zorder=5)
            ax.set(xlim=(0, 19), ylim=(tall[k // columns], -2.6))
            ax.set_title(title, loc="left", fontsize=11, weight="bold")
    return fig


def share_bars(
    tables: Mapping[str, pd.DataFrame], *, notes: Mapping[str, Sequence[str]] | None = None
) -> Figure:
    """Draw stacked horizontal bars, a panel a table, with the parts' own colours throughout.

    Args:
        tables: Axis label -> a line a bar, a column a part, values not negative.
        notes: Axis label -> what is written behind each bar.
    """
    parts = list(dict.fromkeys(part for table in tables.values() for part in table))
    inks = dict(zip(parts, _PARTS * (len(parts) // len(_PARTS) + 1), strict=False))
    tall = [len(table) for table in tables.values()]
    with style():
        fig, axes = new_figure(
            0.36 * sum(tall) + 0.95 * len(tall) + 0.5, nrows=len(tall),
            gridspec_kw={"height_ratios": tall},
        )  # fmt: skip
        for ax, (label, table) in zip(axes[:, 0], tables.items(), strict=True):
            y, done = np.arange(len(table)), np.zeros(len(table))
            for part in table:
                values = table[part].to_numpy(dtype=float)
                ax.barh(y, values, left=done, color=inks[part], height=0.72, label=part, ec="white")
                done += values
            for k, note in enumerate((notes or {}).get(label, ())):
                ax.annotate(
                    note, (done[k], k), (4, 0), textcoords="offset points", va="center", fontsize=9
                )
            ax.set_yticks(y, table.index)
            ax.invert_yaxis()
            ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= 1.001 * done.max()])
            ax.set_xlim(0, 1.22 * done.max())  # Room for the notes.
            ax.set_xlabel(label)
            ax.grid(axis="y", visible=False)
        once = {
            t: h for ax in axes[:, 0] for h, t in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        fig.legend(
            once.values(), once.keys(), loc="outside upper center", ncols=min(6, len(once)),
            fontsize=9,
        )  # fmt: skip
    return fig


def images(rows: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw a table of images of any sizes, a line a row, each with its caption above it.

    Args:
        rows: Row title -> caption -> (H, W, 3) in [0, 1]; rows may differ in length.
    """
    columns = max(len(row) for row in rows.values())
    with style():
        fig, axes = new_figure(
            2.15 * len(rows), 1.85 * columns + 0.3, nrows=len(rows), ncols=columns
        )
        for axs, (title, row) in zip(axes, rows.items(), strict=True):
            for ax in axs:
                ax.grid(visible=False)
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
            axs[0].set_ylabel(title, fontsize=10, weight="bold")
            for ax, (caption, image) in zip(axs, row.items(), strict=False):
                ax.imshow(np.clip(image, 0, 1))
                ax.set_title(caption, fontsize=8)
    return fig
