import re

import numpy as np
import pandas as pd
import pytest

from ir_peft import plots

ROWS = {
    "bicubic": (0, 23.4),
    "frozen": (0, 19.8),
    "full": (572_766, 25.7),
    "tail": (62_000, 24.0),
    "lora": (35_200, 23.11),
    "lora_tail": (97_200, 24.9),
    "houlsby": (34_800, 23.13),
    "houlsby_tail": (96_800, 25.0),
    "adaptir": (34_866, 23.2),
    "adaptir_tail": (96_866, 25.05),
}


@pytest.fixture
def table():
    made = []
    for row, (trainable, psnr) in ROWS.items():
        line = {"row": row, "label": row.replace("_", " + "), "trainable": trainable, "psnr": psnr}
        made.append(line | {"psnr_sd": np.nan, "step_seconds": 0.25, "saved_bytes": 3 * 2.0**20})
    made.append(dict.fromkeys(made[0], np.nan) | {"row": "bitfit", "label": "BitFit"})
    return pd.DataFrame(made)


def texts(fig):
    """Every text that is drawn, of axes and legends."""
    fig.draw_without_rendering()
    found = [
        child for child in fig.findobj(lambda a: hasattr(a, "get_text")) if child.get_visible()
    ]
    return [child.get_text() for child in found if child.get_text()]


def test_every_known_row_has_its_own_colour():
    assert len(set(plots.COLORS.values())) == len(plots.COLORS)
    assert plots.has_color("lora_tail") and not plots.has_color("width_5")
    assert plots.color("adaptir") == plots.color("adaptir_tail") == plots.COLORS["adaptir"]
    with pytest.raises(KeyError, match="'magic' has no colour"):
        plots.color("magic")


def test_style_is_left_behind_after_use(table):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plots.efficiency_bars(table)
    with plots.style():
        assert mpl.rcParams["svg.hashsalt"] == "ir_peft"
    assert dict(mpl.rcParams) == before


def test_efficiency_bars_draw_each_cost_and_no_row_that_was_not_run(table):
    fig = plots.efficiency_bars(table)
    assert len(fig.axes) == 4
    bars = [patch.get_width() for patch in fig.axes[0].patches]
    assert bars[::-1][2] == pytest.approx(572.766)
    assert np.isnan(bars[::-1][0])
    assert fig.axes[1].patches[0].get_width() == 250 and "training step [ms]" in texts(fig)
    assert fig.axes[2].patches[0].get_width() == 3 and "saved for backward [MiB]" in texts(fig)
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()][0] == "adaptir + tail"
    assert "BitFit" not in texts(fig)
    assert "25.70" in texts(fig)


def test_costs_that_were_not_measured_have_no_panel(table):
    fig = plots.efficiency_bars(table.assign(saved_bytes=np.nan))
    assert [ax.get_title().split()[0] for ax in fig.axes] == ["trainable", "training", "PSNR"]


@pytest.mark.parametrize("rows", [["bitfit"], ["bicubic", "frozen"]])
def test_a_table_without_trained_rows_is_refused(table, rows):
    part = table[table["row"].isin(rows)]
    for draw in (plots.efficiency_bars, plots.tradeoff, plots.alone_or_with_tail):
        with pytest.raises(ValueError, match="nothing has been run"):
            draw(part)


def test_one_trained_row_is_enough(table):
    part = table[table["row"].isin(["bicubic", "lora"])]
    assert "lora" in texts(plots.tradeoff(part))
    assert "35.2" in texts(plots.efficiency_bars(part))


def test_tradeoff_labels_hit_neither_each_other_nor_a_point(table):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Annotation, Text

    fig = plots.tradeoff(table)
    ax = fig.axes[0]
    fig.draw_without_rendering()
    renderer = FigureCanvasAgg(fig).get_renderer()
    notes = [note for note in ax.texts if isinstance(note, Annotation)]
    assert {note.get_text() for note in notes} == {
        row.replace("_", " + ") for row, (trainable, _) in ROWS.items() if trainable
    }
    boxes = [Text.get_window_extent(note, renderer) for note in notes]
    points = ax.transData.transform([note.xy for note in notes])
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])
        assert not any(box.contains(*point) for point in points)


def test_alone_or_with_tail_joins_both_rows_of_each_method(table):
    fig = plots.alone_or_with_tail(table)
    ax = fig.axes[0]
    joined = {tuple(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "-"}
    assert joined == {(23.11, 24.9), (23.13, 25.0), (23.2, 25.05)}
    assert {"tail 24.00 dB", "full 25.70 dB", "bicubic 23.40 dB"} <= set(texts(fig))
    with pytest.raises(ValueError, match="no method has both rows"):
        plots.alone_or_with_tail(table[table["row"].isin(["lora", "full"])])


def test_curves_have_a_panel_for_validation_only_where_there_is_any():
    steps = [{"row": r, "label": r, "seed": 0, "step": s, "loss": 1 / s} for r in ("lora", "full")
             for s in (40, 20)]  # fmt: skip
    frame = pd.DataFrame(steps)
    fig = plots.curves(frame)
    assert len(fig.axes) == 1
    first = fig.axes[0].lines[0]
    assert first.get_color() == plots.color("full")
    assert first.get_xdata().tolist() == [20, 40]
    assert fig.axes[0].lines[1].get_linestyle() == "--"
    fig = plots.curves(frame.assign(val_psnr=[np.nan, 20.0, np.nan, 21.0]))
    assert [line.get_ydata().tolist() for line in fig.axes[1].lines] == [[21.0], [20.0]]


def test_crops_show_the_marked_pixels_and_the_psnr():
    photo = np.random.default_rng(0).random((40, 60, 3))
    box = (5, 10, 16, 20)
    fig = plots.crops(photo, box, {"LoRA": photo * 0.5, "truth": photo}, {"LoRA": 24.123})
    shown = fig.axes[1].images[0].get_array()
    assert np.array_equal(shown, (photo * 0.5)[5:21, 10:30])
    marked = fig.axes[0].patches[-1]
    assert (marked.get_x(), marked.get_y()) == (9.5, 4.5)
    assert (marked.get_width(), marked.get_height()) == (20, 16)
    assert {"LoRA\n24.12 dB", "truth"} <= set(texts(fig))


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 0, 5), (30, 0, 20, 5), (0, 50, 5, 20)])
def test_crops_refuse_a_box_outside_the_photograph(box):
    photo = np.zeros((40, 60, 3))
    with pytest.raises(ValueError, match="box"):
        plots.crops(photo, box, {"a": photo})


def test_crops_refuse_an_image_of_another_size():
    with pytest.raises(ValueError, match=r"'a' is \(4, 4, 3\)"):
        plots.crops(np.zeros((8, 8, 3)), (0, 0, 4, 4), {"a": np.zeros((4, 4, 3))})


def test_radial_spectrum_of_a_cosine_peaks_at_its_frequency():
    x = np.arange(32)
    wave = np.broadcast_to(1 + 0.5 * np.cos(2 * np.pi * 8 * x / 32), (3, 32, 32))
    frequency, amplitude = plots.radial_spectrum(wave, bins=16)
    assert frequency[0] == 0
    assert amplitude[0] == 0
    peak = 1 + np.argmax(amplitude[1:])
    # 8 cycles in 32 pixels are half the Nyquist frequency.
    assert frequency[peak] == pytest.approx(0.5, abs=1 / 16)
    # An impulse is equally strong at every frequency, and scale does not matter.
    impulse = np.zeros((2, 3, 15, 24))
    impulse[:, :, 4, 5] = 7.0
    assert plots.radial_spectrum(impulse)[1] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match=r"not \(8, 8\)"):
        plots.radial_spectrum(np.zeros((8, 8)))


def test_spectra_keep_the_colour_of_a_name_in_all_panels():
    maps = np.random.default_rng(0).random((2, 4, 16, 16))
    fig = plots.spectra({"a": {"LIM": maps, "FAM": maps}, "b": {"FAM": maps}})
    assert fig.axes[1].lines[0].get_color() == fig.axes[0].lines[1].get_color()
    assert fig.axes[0].lines[0].get_color() != fig.axes[0].lines[1].get_color()


def test_channel_bars_share_one_scale():
    fig = plots.channel_bars({"noise": np.array([1.0, -2.0]), "jpeg": np.array([0.1, 0.2])})
    assert [bar.get_height() for bar in fig.axes[0].patches] == [1.0, -2.0]
    assert fig.axes[0].get_ylim() == fig.axes[1].get_ylim()
    with pytest.raises(ValueError, match=r"'bad' are \(C,\)"):
        plots.channel_bars({"bad": np.zeros((2, 2))})


def test_saved_files_are_the_same_bytes_each_time(table, tmp_path):
    from PIL import Image

    first = plots.save_figure(plots.tradeoff(table), tmp_path / "one", "tradeoff")
    second = plots.save_figure(plots.tradeoff(table), tmp_path / "two", "tradeoff")
    assert [path.name for path in first] == ["tradeoff.png", "tradeoff.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "tradeoff.png",
        "tradeoff.svg",
    ]
    with Image.open(first[0]) as image:
        assert image.size[0] > 1000
    assert not re.search(r"20\d\d-\d\d-\d\d", first[1].read_text())


def test_smoke_figures_are_stamped(table, tmp_path):
    fig = plots.alone_or_with_tail(table)
    clean = plots.save_figure(fig, tmp_path, "clean")[0].read_bytes()
    stamped = plots.save_figure(fig, tmp_path, "stamped", smoke=True)[0].read_bytes()
    assert stamped != clean
    assert "smoke, not a result" in texts(fig)


def test_figures_are_not_kept_open(table):
    import matplotlib.pyplot as plt

    plots.tradeoff(table)
    assert plt.get_fignums() == []
