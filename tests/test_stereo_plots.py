"""Figures of two views: what is drawn, from numbers given by hand."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ir_peft import stereo_analysis, stereo_plots
from ir_peft.figure_style import save_figure

matplotlib.use("agg")
RNG = np.random.default_rng(0)
H, W = 8, 20
PHOTO = RNG.random((H, W, 3))


def texts(fig):
    fig.draw_without_rendering()
    return [text.get_text() for text in fig.findobj(matplotlib.text.Text) if text.get_text()]


def test_strategies_name_what_is_trained():
    fig = stereo_plots.strategies([(100, 100), (100, 100), (5, 100)])
    assert sum("5 of 100 (5.0%)" in text for text in texts(fig)) == 1
    assert {"(a) from scratch", "(b) full fine-tuning", "(c) adapters"} <= set(texts(fig))


def test_scenes_mark_what_is_hidden():
    hidden = np.zeros((H, W), dtype=bool)
    hidden[:, :4] = True
    scene = (PHOTO, PHOTO, np.full((H, W), 4.0), hidden)
    fig = stereo_plots.scenes({"one": scene, "two": scene}, 8)
    values, shade = (image.get_array() for image in fig.axes[5].images)
    assert (values == 4).all() and (shade[..., 3] == hidden).all()
    assert fig.axes[5].images[0].get_clim() == (0, 8)
    assert fig.axes[3].get_ylabel() == "two"


def test_attention_rows_mark_the_true_column():
    disparity = np.full((H, W), 3.0)
    disparity[0] = np.nan
    attention = {"group 2": np.full((H, W, W), 1 / W), "group 4": np.eye(W)[None].repeat(H, 0)}
    fig = stereo_plots.attention_rows(PHOTO, PHOTO, [(2, 9), (5, 14)], attention, disparity)
    assert len(fig.axes) == 4
    lines = {line.get_label(): line for line in fig.axes[2].get_lines()}
    assert lines["true column"].get_xdata() == [6, 6]
    assert lines["group 4"].get_ydata().argmax() == 9
    assert "row 5, column 14: disparity 3.0 px" in texts(fig)
    with pytest.raises(ValueError, match="row 0, column 4 is unknown"):
        stereo_plots.attention_rows(PHOTO, PHOTO, [(0, 4)], attention, disparity)


def test_disparities_share_the_scale_of_the_first():
    truth = RNG.uniform(2, 9, (H, W))
    truth[0] = np.nan
    fig = stereo_plots.disparities({"truth": truth, "found": 3 * truth}, {"found": "50 %"})
    images = [ax.images[0] for ax in fig.axes[:2]]
    assert images[0].get_clim() == images[1].get_clim()
    assert images[0].get_array().mask[0].all()
    assert fig.axes[1].get_xlabel() == "50 %"


def test_gains_as_maps_and_bars(tmp_path):
    before = torch.rand(3, H, W, generator=torch.Generator().manual_seed(0))
    truth = (before + 0.1).clamp(0, 1)
    disparity = torch.full((H, W), 4.0)
    parts = stereo_analysis.regions(disparity, (0, 5, 10))
    rows = {
        row: stereo_analysis.gains(before, after, truth, parts["visibility"])
        for row, after in {"asteisr": before + 0.05, "full": before - 0.05}.items()
    }
    fig = stereo_plots.gain_bars({"by visibility": rows}, {"asteisr": "both", "full": "all"})
    heights = [bar.get_height() for bar in fig.axes[0].patches]
    assert heights == [part["gain"] for found in rows.values() for part in found]
    assert heights[0] > 0 > heights[-1]
    assert any("80%" in text for text in texts(fig))  # 16 of 20 columns are visible.
    gain = stereo_analysis.gain_map(before, before + 0.05, truth, side=3).numpy()
    hidden = stereo_analysis.occluded(disparity).numpy()
    fig = stereo_plots.gain_maps(PHOTO, {"both": gain}, hidden)
    low, high = fig.axes[1].images[0].get_clim()
    assert low == -high and high == pytest.approx(np.percentile(abs(gain), 98))
    for path in save_figure(fig, tmp_path, "gain"):
        assert path.stat().st_size > 0


def test_gates_draw_every_channel():
    fig = stereo_plots.gates({"group 2": (np.ones(5), np.zeros(5)), "group 4": (np.zeros(5),) * 2})
    assert isinstance(fig, Figure)
    assert sum(len(line.get_xdata()) == 5 for line in fig.axes[0].get_lines()) == 4
