"""Figures of the inside of networks: what is drawn is what was given."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from ir_peft import architecture_plots as figures
from ir_peft.figure_style import color


def drawn(fig):
    """The axes with something in them."""
    fig.draw_without_rendering()
    return [ax for ax in fig.axes if ax.get_images() or ax.patches or ax.collections]


def words(ax):
    return [text.get_text() for text in ax.texts]


def test_influence_is_logarithmic_and_exact_zeros_are_grey():
    values = np.array([[1e-9, 0.02], [0.0, 2.0]])
    fig = figures.influence_maps({"a row": {"a map": values, "no data": None}}, {"a map": (1, 1)})
    first, second = fig.axes[:2]
    shown = first.get_images()[0].get_array()
    assert shown.mask.tolist() == [[False, False], [True, False]]
    assert np.allclose(shown[~shown.mask], [-5, -2, 0])  # Relative to 2, and never below 1e-5.
    assert to_hex(first.get_images()[0].cmap.get_bad()) == "#d9d9d9"
    assert [line.get_xydata().tolist() for line in first.lines] == [[[1.0, 1.0]]]
    assert not second.get_images() and words(second) == ["no data", "none"]
    assert fig.texts[0].get_text() == "a row"


def test_influence_maps_of_a_long_row_go_on_in_the_next_line():
    maps = {str(k): np.full((2, 3), k + 1.0) for k in range(5)}
    fig = figures.influence_maps({"row": maps}, {}, columns=3)
    assert [words(ax)[0] for ax in fig.axes if ax.get_images()] == list(maps)
    assert len(fig.axes) == 2 * 3 + 1  # and the colour bar


@pytest.mark.parametrize("values", [np.zeros((2, 2)), -np.ones((2, 2)), np.ones(3)])
def test_a_map_that_is_none_is_an_error(values):
    with pytest.raises(ValueError, match="the map 'odd' must be"):
        figures.influence_maps({"row": {"odd": values}}, {})


def test_sites_are_nested_boxes_with_a_dot_for_each_adapted_module():
    frame = pd.DataFrame(
        {
            "kind": ["Attention 8", "Linear 4", "Linear 4", "Mlp 9"],
            "lora": [False, True, True, False],
            "adaptir": [False, False, False, True],
        },
        index=["attn", "attn.q", "attn.out.v", "mlp"],
    )
    fig = figures.site_maps({"a block": frame, "short": frame.iloc[3:]}, columns=2)
    ax, short = drawn(fig)
    assert ax.get_title(loc="left") == "a block"
    assert {"attn", "q", "out.v", "mlp", "Linear 4", "lora", "adaptir"} <= set(words(ax))
    dots = {
        to_hex(dots.get_facecolor()[0]): dots.get_offsets()[:, 1].tolist()
        for dots in ax.collections
    }
    assert dots == {color("lora"): [1.5, 2.5], color("adaptir"): [3.5]}
    boxes = {round(box.get_y()): box for box in ax.patches if box.get_zorder() > 0}
    assert boxes[0].get_height() > 2.8  # `attn` holds the two lines below it.
    assert boxes[1].get_x() > boxes[0].get_x() and boxes[3].get_x() == boxes[0].get_x()
    assert sum(len(dots.get_offsets()) for dots in short.collections) == 1


def test_shares_are_stacked_and_keep_their_colours():
    one = pd.DataFrame({"attention": [30.0, 50.0], "FFN": [70.0, 50.0]}, index=["a", "b"])
    two = pd.DataFrame({"FFN": [3.0], "norm": [1.0]}, index=["c"])
    fig = figures.share_bars({"%": one, "ms": two}, notes={"%": ["1 M", "2 M"]})
    first, second = fig.axes
    bars = {b.get_label(): [(r.get_x(), r.get_width()) for r in b] for b in first.containers}
    assert bars == {"attention": [(0, 30), (0, 50)], "FFN": [(30, 70), (50, 50)]}
    ink = {b.get_label(): to_hex(b[0].get_facecolor()) for b in first.containers}
    other = {b.get_label(): to_hex(b[0].get_facecolor()) for b in second.containers}
    assert ink["FFN"] == other["FFN"] and other["norm"] not in ink.values()
    assert words(first) == ["1 M", "2 M"] and not words(second)
    assert max(first.get_xticks()) <= 100 < first.get_xlim()[1]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["attention", "FFN", "norm"]


def test_images_of_any_size_stand_in_a_table():
    rows = {
        "a": {"x": np.zeros((2, 3, 3)), "y": np.full((4, 4, 3), 2.0)},
        "b": {"x": np.ones((5, 2, 3))},
    }
    fig = figures.images(rows)
    shown = [ax for ax in fig.axes if ax.get_images()]
    assert [ax.get_images()[0].get_array().shape[:2] for ax in shown] == [(2, 3), (4, 4), (5, 2)]
    assert shown[1].get_images()[0].get_array().max() == 1  # Clipped to what can be shown.
    assert [ax.get_ylabel() for ax in fig.axes[::2]] == ["a", "b"]


def test_a_long_row_title_takes_no_width_from_the_panels():
    panels = {str(i): np.ones((8, 8)) for i in range(5)}
    widths = []
    for row in ("short", "Weights: " + "a network and where it is from, " * 3):
        figure = figures.influence_maps({row: panels}, {})
        figure.draw_without_rendering()
        widths.append([ax.get_window_extent().width for ax in figure.axes[:5]])
    np.testing.assert_allclose(widths[0], widths[1], rtol=0.02)
    assert min(widths[1]) > 100
