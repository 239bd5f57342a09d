"""Figures of AdaIR's questions: what is drawn is what the tables hold."""

import numpy as np
import pandas as pd
import pytest

from ir_peft import adair_costs, adair_plots, adair_tables, matrix_plots, plots

from .adair_records import ADAPTER, BASE, PLAN, STEP_COSTS, make_curves, make_records

EMPTY = pd.DataFrame()
LABELS = dict(PLAN[PLAN["table"] == "multitask"][["row", "label"]].drop_duplicates().values)


@pytest.fixture(scope="module")
def records():
    return make_records(lambda line: line.table != "transfer-rain")


def texts(fig):
    """Every text that is drawn."""
    fig.draw_without_rendering()
    found = fig.findobj(lambda artist: hasattr(artist, "get_text"))
    return [artist.get_text() for artist in found if artist.get_visible()]


def points(ax):
    """Places of the dots in one panel."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in ax.lines
        if line.get_marker() == "o" and len(line.get_xdata())
    ]


def test_heat_maps_write_each_number_and_colour_by_the_distance_from_the_best(records):
    panels = adair_tables.transfer(records, PLAN)
    fig = matrix_plots.heat_maps(panels, signed=["gain"])
    drawn = texts(fig)
    assert drawn.count("–") == 12 + 8  # rain in three panels, random weights in two
    assert drawn.count("+3.01") == 6 * 4
    assert f"{panels['adapted'].loc['noise', 'denoise25']:.2f}" in drawn
    shades = fig.axes[1].images[0].get_array()
    column = panels["adapted"]["denoise25"]
    assert shades.max() == 0 and shades[:, 0].min() == pytest.approx(column.min() - column.max())
    assert fig.axes[0].get_yticklabels()[0].get_text() == "none"
    with pytest.raises(ValueError, match="no cell"):
        matrix_plots.heat_maps({"a": panels["alone"] * np.nan})


def test_confusion_map_shades_shares_of_the_line():
    counts = pd.DataFrame([[3, 1], [0, 0]], ["a", "b"], ["a", "b"])
    fig = matrix_plots.confusion_map(counts)
    shades = fig.axes[0].images[0].get_array()
    assert shades[0].tolist() == [0.75, 0.25] and shades[1].mask.all()
    assert {"3", "1", "taken for"} <= set(texts(fig))
    with pytest.raises(ValueError, match="all zero"):
        matrix_plots.confusion_map(counts * 0)


def test_similarity_maps_name_groups_or_lines():
    frame = pd.DataFrame([[1.0, 0.5], [0.5, 1.0]], ["p", "q"], ["p", "q"])
    fig = matrix_plots.similarity_maps({"t": frame}, numbers=True)
    assert {"t", "p", "q", "1.00", "0.50", "linear CKA"} <= set(texts(fig))
    fig = matrix_plots.similarity_maps({"t": frame, "u": frame}, groups=["g", "g"])
    assert "p" not in texts(fig) and texts(fig).count("g") >= 1
    assert fig.axes[0].images[0].get_clim() == (0, 1)


def test_similarity_lines_check_the_number_of_layers():
    fig = adair_plots.similarity_lines({"adair": [1, 0.5]}, ["g", "h"], {"adair": "AdaIR"})
    assert fig.axes[0].lines[0].get_ydata().tolist() == [1, 0.5]
    assert fig.axes[0].lines[0].get_color() == plots.color("adair")
    assert "AdaIR" in texts(fig)
    with pytest.raises(ValueError, match="'adair' has 2 layers, the groups 3"):
        adair_plots.similarity_lines({"adair": [1, 0.5]}, ["g", "h", "h"])


def test_task_dots_are_gains_over_the_base(records):
    frame = adair_tables.unseen_tasks(records, PLAN)
    fig = adair_plots.task_dots(frame, LABELS)
    known, new = map(points, fig.axes)
    assert (len(known), len(new)) == (6 * 7, 6 * 4)  # without the base and the input
    assert sorted({round(x, 2) for x, _ in known + new}) == [-1.0, 0.2, 0.5, 1.0, 1.5, 2.0]
    assert {"damage that is new to the base", "AdaIR", "haze"} <= set(texts(fig))
    assert len(adair_plots.task_dots(frame[frame["seen"]], LABELS).axes) == 1
    with pytest.raises(ValueError, match="no row was run"):
        adair_plots.task_dots(adair_tables.unseen_tasks(EMPTY, PLAN), LABELS)


def test_level_dots_have_the_specialist_as_zero(records):
    frame = adair_tables.unseen_levels(records, PLAN)
    fig = adair_plots.level_dots(frame, LABELS)
    assert [ax.get_title() for ax in fig.axes[:2]] == [
        "trained on denoise25", "trained on derain_light"
    ]  # fmt: skip
    heights = sorted({round(y, 2) for _, y in points(fig.axes[0])})
    assert heights == [-4.5, -2.5, -2.0, -1.5, 0.0, 0.5]
    with pytest.raises(ValueError, match="no row was run"):
        adair_plots.level_dots(adair_tables.unseen_levels(EMPTY, PLAN), LABELS)


def test_level_dots_without_the_other_methods_specialists(records):
    keep = (records["table"] == "unseen") | records["row"].isin(["adair"])
    fig = adair_plots.level_dots(adair_tables.unseen_levels(records[keep], PLAN), LABELS)
    assert "From scratch" in texts(fig) and "frozen base" not in texts(fig)


def test_variant_dots_draw_a_panel_a_task_that_was_run(records):
    frame = adair_tables.ablation(records, PLAN)
    fig = adair_plots.variant_dots(frame, {"jpeg": 26.0})
    assert len(fig.axes) == 1 and len(points(fig.axes[0])) == len(frame)
    assert {"width 5   60.5K", "levels", "frozen base"} <= set(texts(fig))
    with pytest.raises(ValueError, match="no variant"):
        adair_plots.variant_dots(adair_tables.ablation(EMPTY, PLAN))


def test_cost_bars_say_what_was_not_measured(records):
    cost = adair_costs.cost(records, make_curves(records), PLAN, STEP_COSTS)
    fig = adair_plots.cost_bars(cost)
    widths = [bar.get_width() for bar in fig.axes[1].patches]
    assert widths[::-1][0] == pytest.approx(4 * BASE / 1e3)
    assert widths[::-1][3] == pytest.approx(4 * ADAPTER / 1e3)
    assert "1.5 (11/11)" in texts(fig) and "not measured" not in texts(fig)
    unmeasured = adair_costs.cost(records, EMPTY, PLAN)
    assert "not measured" in texts(adair_plots.cost_bars(unmeasured))
    with pytest.raises(ValueError, match="no trained row"):
        adair_plots.cost_bars(adair_costs.cost(EMPTY, EMPTY, PLAN))


def test_storage_bars_are_megabytes():
    frame = adair_costs.storage(4e6, {"adapters": 1e6}, tasks=(1, 3))
    fig = adair_plots.storage_bars({"small": frame})
    assert [bar.get_height() for bar in fig.axes[0].patches] == [4.0, 12.0, 5.0, 7.0]
    assert {"small", "base + adapters", "12.0"} <= set(texts(fig))
