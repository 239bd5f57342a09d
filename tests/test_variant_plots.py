import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ir_peft import plots
from ir_peft.figure_style import near


def frame(rows, **columns):
    """A table of (row, method, width, trainable, PSNR), the gain against the first row."""
    made = pd.DataFrame(rows, columns=["row", "method", "width", "trainable", "psnr"])
    made["label"] = made["row"].str.replace("_", ", width ")
    made["gain"] = made["psnr"] - made["psnr"].iloc[0]
    made = made.assign(psnr_sd=np.nan, psnr_spread=np.nan, seeds=1)
    return made.assign(**columns)


def texts(fig):
    fig.draw_without_rendering()
    found = fig.findobj(lambda a: hasattr(a, "get_text"))
    return [text.get_text() for text in found if text.get_visible() and text.get_text()]


@pytest.fixture
def sizes():
    return frame(
        [
            ("frozen", "frozen", np.nan, 0, 22.0),
            ("full", "full", np.nan, 1_400_000, 29.0),
            ("adaptir", "adaptir", 24, 40_000, 23.0),
            ("adaptir_8", "adaptir", 8, 10_000, 22.5),
            ("lora_4", "lora", 4, 15_000, 22.2),
            ("lora_10", "lora", 10, 39_000, 22.4),
            ("lora_99", "lora", 99, np.nan, np.nan),
        ]
    )


def test_levels_near_the_points_are_shown():
    assert near([20.0, 20.3, 21.8, 22.0], [20.5, 21.0, 21.5]) == [True, True, True, True]
    assert near([19.7, 22.3], [20.5, 21.0, 21.5]) == [False, False]
    assert near([20.46, 20.4], [20.5, 20.5]) == [True, False]


def test_scalability_has_a_line_a_method_sorted_by_size(sizes):
    fig = plots.scalability(sizes)
    ax = fig.axes[0]
    lines = {line.get_label(): line for line in ax.lines if line.get_linestyle() == "-"}
    assert lines["adaptir"].get_xdata().tolist() == [10_000, 40_000]
    assert lines["adaptir"].get_ydata().tolist() == [22.5, 23.0]
    assert lines["adaptir"].get_color() == plots.color("adaptir")
    assert lines["lora"].get_xdata().tolist() == [15_000, 39_000]
    found = texts(fig)
    assert {"24", "8", "4", "10", "frozen 22.00 dB", "full 29.00 dB (off the axis)"} <= set(found)
    assert "99" not in found
    assert ax.get_ylim()[1] < 24


def test_scalability_needs_two_sizes_of_a_method(sizes):
    with pytest.raises(ValueError, match="two sizes"):
        plots.scalability(sizes[sizes["row"].isin(["adaptir", "lora_4"])])
    with pytest.raises(ValueError, match="two sizes"):
        plots.scalability(sizes[:2])


def test_ablation_draws_gains_and_the_spread_of_the_reference():
    table = frame(
        [
            ("adaptir", "adaptir", 24, 40_000, 23.0),
            ("lim", "adaptir", 24, 35_000, 22.98),
            ("fam", "adaptir", 24, 34_000, 22.90),
            ("cgm", "adaptir", 24, 34_000, np.nan),
        ]
    )
    table.loc[0, ["psnr_spread", "seeds"]] = 0.05, 3
    fig = plots.ablation(table)
    ax = fig.axes[0]
    band, *bars = ax.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((-0.05, 0.10))
    assert [bar.get_width() for bar in bars] == pytest.approx([-0.1, -0.02])
    assert [bar.get_alpha() for bar in bars] == [1.0, 0.45]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["fam  (34,000)", "lim  (35,000)"]
    assert "-0.020" in texts(fig)
    assert "spread of 3 seeds of adaptir, 0.05 dB" in texts(fig)
    one_seed = plots.ablation(table.assign(psnr_spread=np.nan))
    assert [bar.get_alpha() for bar in one_seed.axes[0].patches] == [1.0, 1.0]


def test_ablation_needs_its_reference_and_a_variant():
    table = frame([("adaptir", "adaptir", 24, 1, 23.0), ("lim", "adaptir", 24, 1, 22.0)])
    with pytest.raises(ValueError, match="reference as the first row"):
        plots.ablation(table[1:].assign(gain=np.nan))
    with pytest.raises(ValueError, match="a variant that ran"):
        plots.ablation(table[:1])


def test_overview_has_a_panel_a_task_on_its_own_axis():
    one = frame(
        [
            ("bicubic", "bicubic", np.nan, 0, 15.0),
            ("frozen", "frozen", np.nan, 0, 26.35),
            ("lora", "lora", 10, 39_000, 26.4),
            ("adaptir", "adaptir", 24, 40_000, 26.5),
        ]
    )
    two = frame([("lora", "lora", 10, 39_000, 31.1), ("full", "full", np.nan, 1_400_000, 31.4)])
    fig = plots.overview({"noise": one, "sr2": two})
    left, right = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["noise", "sr2"]
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["full", "adaptir", "lora", "frozen", "bicubic"]
    # The input is far off and does not squeeze the methods together; its number is written.
    assert 26 < left.get_xlim()[0] < 26.35 and "15.00" in texts(fig)
    assert [note.get_text() for note in right.texts] == ["31.40", "31.10"]


def test_scratch_is_named_where_it_would_squeeze_the_other_curves():
    curve = pd.DataFrame({"row": ["lora", "lora", "scratch"], "label": ["LoRA", "LoRA", "Scratch"]})
    curve = curve.assign(step=[20, 40, 40], val_psnr=[30.0, 30.5, 24.0])
    ax = Figure().subplots()
    plots.leave_out_scratch(ax, curve)
    assert ax.get_ylim() == pytest.approx((29.95, 30.55))
    assert [text.get_text() for text in ax.texts] == ["Scratch: 24.00 dB at the end (off the axis)"]
    plots.leave_out_scratch(ax, curve[curve["row"] == "scratch"])  # Alone it has the axis.
    assert len(ax.texts) == 1
