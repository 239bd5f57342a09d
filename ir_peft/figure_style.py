"""The one style of every figure: palette, fonts, widths, labels, stamp and files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0
"""Width of a figure over the full text [inch]."""

# Okabe and Ito's palette, extended by Paul Tol's muted one.
COLORS = {
    "bicubic": "#999999",
    "frozen": "#666666",
    "full": "#000000",
    "full_single": "#3d5a80",
    "tail": "#8c6d31",
    "bitfit": "#cc79a7",
    "lora": "#e69f00",
    "houlsby": "#56b4e9",
    "adaptformer": "#009e73",
    "adaptir": "#d55e00",
    "adair": "#0072b2",
    "scratch": "#661100",
    "all_full": "#117733",
    "all_adair": "#6699cc",
    "asteisr": "#882255",
    "asteisr_spatial": "#aa4499",
    "asteisr_stereo": "#332288",
    "vpt": "#2166ac",
    "ssf": "#999933",
    "fact": "#7b3fa0",
    "peft_lora": "#4477aa",
    "dora": "#ee6677",
    "loha": "#228833",
    "oft": "#66ccee",
    "ia3": "#aa3377",
    "vera": "#bbbb33",
}
_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "svg.hashsalt": "ir_peft",
    "svg.fonttype": "path",
    "image.interpolation": "nearest",
}


class NothingToDrawError(ValueError):
    """A figure without a single point: none of its rows was run."""


@contextmanager
def style() -> Iterator[None]:
    """Set the project's matplotlib settings inside a ``with`` block."""
    import matplotlib as mpl

    with mpl.rc_context(_RC):
        yield


def _method(row: str) -> str:
    return row.removesuffix("_tail").removesuffix("_ends")


def has_color(row: str) -> bool:
    """Whether a row is a method with a colour of its own."""
    return _method(row) in COLORS


def color(row: str) -> str:
    """Return the colour of a row or method; ``<method>_tail`` has the method's colour."""
    method = _method(row)
    if method not in COLORS:
        raise KeyError(f"{row!r} has no colour; plots.COLORS has {sorted(COLORS)}")
    return COLORS[method]


def new_figure(height: float, width: float = WIDTH, **kwargs) -> tuple[Figure, np.ndarray]:
    """Make a figure and its axes (a 2-D array).

    pyplot forgets the figure at once: a notebook then shows it once, as the value of its cell.
    """
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(figsize=(width, height), layout="constrained", squeeze=False, **kwargs)
    plt.close(fig)
    return fig, axes


def stamp(fig: Figure, text: str = "smoke, not a result") -> Figure:
    """Write a large pale text across a figure."""
    with style():
        fig.text(
            0.5, 0.5, text, rotation=20, fontsize=4 * fig.get_figwidth(), weight="bold",
            color="#b00000", alpha=0.35, zorder=100, ha="center", va="center",
        )  # fmt: skip
    return fig


def save_figure(
    fig: Figure, folder: str | Path, name: str, *, smoke: bool = False
) -> tuple[Path, Path]:
    """Write ``<name>.png`` and ``<name>.svg``; the same figure gives the same bytes.

    Args:
        fig: The figure.
        folder: Made if it does not exist; files are replaced atomically.
        name: File name without its ending.
        smoke: Stamp the figure "smoke, not a result" first.
    """
    if smoke:
        stamp(fig)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        path = folder / f"{name}.{ending}"
        part = folder / f".{name}.{os.getpid()}.{ending}"
        try:
            with style():
                fig.savefig(part, metadata=metadata, bbox_inches="tight", facecolor="white")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        written.append(path)
    return written[0], written[1]


def near(levels: Sequence[float], points: Sequence[float], reach: float = 0.75) -> list[bool]:
    """Which levels an axis over the points shows without squeezing the points together.

    Args:
        levels: PSNRs of references [dB].
        points: PSNRs that the figure is about [dB].
        reach: How far a level may be off, in ranges of the points.
    """
    low, high = min(points), max(points)
    room = reach * max(high - low, 0.1)
    return [low - room <= level <= high + room for level in levels]


def reference_lines(
    ax: Axes,
    table: pd.DataFrame,
    rows: Sequence[str],
    points: Sequence[float],
    *,
    vertical: bool,
    reach: float = 0.75,
) -> list[float]:
    """Draw a dashed line at the PSNR of each of the rows that exists; the legend names it.

    A row far off the points, see :func:`near`, has its number in the legend, but no line.

    Returns:
        The PSNRs drawn [dB].
    """
    values = table.set_index("row")[["label", "psnr"]]
    wanted = values.loc[[row for row in rows if row in values.index]]
    shown = wanted[near(wanted["psnr"], points, reach)]
    for row, (label, psnr) in wanted.iterrows():
        text = f"{label} {psnr:.2f} dB"
        if row in shown.index:
            line = ax.axvline if vertical else ax.axhline
            line(psnr, color=color(row), ls="--", lw=1.4, zorder=1, label=text)
        else:
            ax.plot([], [], " ", label=f"{text} (off the axis)")
    return shown["psnr"].tolist()


def place_labels(
    ax: Axes,
    points: Sequence[tuple[float, float, str, str]],
    levels: Sequence[float] = (),
    between: Sequence[tuple[float, float]] = (),
) -> None:
    """Label points, each as near as nothing else is hit.

    Args:
        ax: Axes with their final limits.
        points: x, y, text, colour of each point; the text is drawn in a darker shade.
        levels: Heights of horizontal lines that labels keep off.
        between: Further places x, y that labels keep off, e.g. along lines between the points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    fig = ax.figure
    fig.draw_without_rendering()
    renderer = FigureCanvasAgg(fig).get_renderer()
    dots = ax.transData.transform([(x, y) for x, y, _, _ in points])
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in dots]
    inside = ax.get_window_extent()
    rulers = ax.transData.transform([(points[0][0], level) for level in levels])
    taken += [Bbox.from_extents(inside.x0, y - 2, inside.x1, y + 2) for _, y in rulers]
    if between:
        taken += [Bbox.from_bounds(x - 2, y - 2, 4, 4) for x, y in ax.transData.transform(between)]
    around = [(9, 0, "left"), (-9, 0, "right"), (8, 9, "left"), (8, -9, "left")]
    around += [(-8, 9, "right"), (-8, -9, "right"), (0, 11, "center"), (0, -11, "center")]
    places = [(dx * far, dy * far, at) for far in (1, 2, 3.2, 4.5) for dx, dy, at in around]
    for k, (x, y, text, ink) in enumerate(points):
        others = taken[:k] + taken[k + 1 :]
        shade = tuple(0.75 * part for part in to_rgb(ink))
        best = None
        for dx, dy, at in places:
            note = ax.annotate(
                text, (x, y), (dx, dy), textcoords="offset points", color=shade, fontsize=9,
                ha=at, va="center", zorder=4,
                arrowprops={"arrowstyle": "-", "color": shade, "lw": 0.6, "shrinkB": 4}
                if abs(dx) + abs(dy) > 18 else None,
            )  # fmt: skip
            note.update_positions(renderer)
            # Text.get_window_extent leaves out the arrow, which may cross other points.
            box = Text.get_window_extent(note, renderer).padded(1)
            hits = sum(box.overlaps(other) for other in others)
            hits += not (inside.x0 <= box.x0 and box.x1 <= inside.x1)
            hits += not (inside.y0 <= box.y0 and box.y1 <= inside.y1)
            if best is None or hits < best[0]:
                if best is not None:
                    best[1].remove()
                best = (hits, note, box)
            else:
                note.remove()
            if hits == 0:
                break
        taken.append(best[2])
