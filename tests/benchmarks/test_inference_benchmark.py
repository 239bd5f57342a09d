"""Tiny images through the measuring code, predictions by hand, table and figure from a record."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import inference  # noqa: E402
import inference_report  # noqa: E402

CPU = torch.device("cpu")


def row(network, mode, megapixels, seconds, peak):
    height, width = inference.shape_of(megapixels)
    tiles = inference.tiles_of(height, width)
    made = {"network": network, "mode": mode, "megapixels": megapixels, "pixels": height * width}
    made |= {"height": height, "width": width, **tiles, "seconds": 2 * seconds}
    made |= {"cpu_seconds": seconds, "start_bytes": 0, "peak_bytes": peak, "load": 0.5}
    return made | {"buffers": inference.buffers_of(mode, height, width, tiles["tile_height"])}


@pytest.fixture
def record():
    rows = [row("hat", "tensor", 0.0655, 10.0, 3 * 2**30), row("hat", "tensor", 0.1, 19.0, 2**31)]
    seam = {
        "backbone": "dat_light_x4",
        "photo": "coffee",
        "tile": 64,
        "psnr_whole": 30.0,
        "psnr_widest": 29.99,
    }
    seam |= {"rmse_near": 0.02, "rmse_far": 0.01, "near": 0.5, "max_difference": 0.2}
    seams = [seam | {"overlap": o, "psnr": p} for o, p in ((0, 29.9), (16, 29.98), (32, 29.99))]
    made = {"rows": rows, "seams": seams, "device": "a processor", "versions": {"torch": "2"}}
    return made | {"scale": 4, "overlap": 16, "near": 16}


@pytest.mark.parametrize("size", inference.SIZES)
def test_sizes_are_what_they_say(size):
    height, width = inference.shape_of(size)
    assert height * width / 1e6 == pytest.approx(size, rel=0.02)
    tiles = inference.tiles_of(height, width)
    assert max(tiles["tile_height"], tiles["tile_width"]) <= 256
    assert tiles["tiles"] * tiles["tile_height"] * tiles["tile_width"] >= height * width


@pytest.mark.parametrize("mode", inference.MODES)
def test_a_row_is_measured(mode, monkeypatch):
    monkeypatch.setattr(inference, "shape_of", lambda megapixels: (24, 40))
    got = inference.measure("convolution", mode, 0.1, CPU)
    assert (got["tiles"], got["tile_height"], got["tile_width"]) == (1, 24, 40)
    assert got["seconds"] > 0 and got["peak_bytes"] >= got["start_bytes"] > 0
    assert got["buffers"]["input"] == 3 * 4 * 24 * 40
    assert got["buffers"]["output"] == 16 * 24 * 40 * {"tensor": 12, "file": 4}[mode]
    assert json.loads(json.dumps(got)) == got


def test_predictions_scale_one_tile_and_add_the_buffers_of_the_image(record):
    got = inference.predicted(record["rows"], "hat", "tensor", 12, gpu=False)
    assert (got["height"], got["width"], got["tiles"]) == (3000, 4000, 17 * 13)
    assert got["cpu_seconds"] == pytest.approx(221 * 10) and got["seconds"] == 2 * 221 * 10
    one = sum(record["rows"][0]["buffers"].values())
    strip = 3 * 4 * 4 * 16000 * (256 + 32)
    assert got["peak_bytes"] == 3 * 2**30 - one + 12 * 12_000_000 * (1 + 16) + strip
    file = inference.predicted(record["rows"], "hat", "file", 12, gpu=False)
    assert file["peak_bytes"] < got["peak_bytes"] - 10**9


def test_the_cuts_of_tiles_are_where_they_hand_over():
    near = inference.near_cuts(100, 64, 16, 4)  # Tiles at 0 and 36: they share 36 to 64.
    pixels = torch.nonzero(near)[:, 0]
    assert near.shape == (400,) and near.sum() == 4 * 2 * inference.NEAR
    assert pixels.min() == 4 * (50 - inference.NEAR)
    assert (
        not inference.near_cuts(64, 64, 16, 4).any() and not inference.near_cuts(9, 64, 16, 4).any()
    )


def test_the_plan_leaves_slow_rows_to_prediction_on_a_processor():
    short, complete = inference.plan(False), inference.plan(True)
    assert set(short) < set(complete) and "hat-tensor-12" in complete
    assert "hat-tensor-12" not in short and "convolution-file-12" in short
    assert len(complete) == len(inference.NETWORKS) * 2 * len(inference.SIZES)


def test_the_table_says_what_is_measured_and_what_is_predicted(record):
    lines = inference_report.table(record, gpu=False)
    assert set(lines["network"]) == {"hat"} and len(lines) == 2 * len(inference.SIZES)
    assert lines["measured"].sum() == 2
    text = inference_report.markdown(lines, record, gpu=False)
    assert text.count("| measured |") == 2 and text.count("| predicted |") == 2
    assert "| HAT | float32 in memory | 12.00 | 221 | 184.2 | 2,210 s |" in text
    guess = inference.predicted(record["rows"], "hat", "tensor", 0.1, False)["peak_bytes"]
    gap = (2**31 - guess) / 2**20
    assert f"1 measured peaks lie {gap:+.0f} to {gap:+.0f} MiB from the predicted" in text
    assert "| dat_light_x4 | 64 | 1 | 0 | +0.0900 | 0.0900 | -0.1000 | 5.10 | 2.55 | 51 |" in text
    assert "Load average while measuring: 0.5 to 0.5." in text
    assert "tiles of 64: below 0.02 dB on the mean from an overlap of 16 on, on every" in text


def test_figure_and_table_are_written(record, tmp_path):
    inference_report.write(record, tmp_path, gpu=False)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    figures = {"figures/inference.png", "figures/inference.svg"}
    assert names == figures | {"benchmarks/inference.md"}
    fig = inference_report.figure(inference_report.table(record, False), False)
    time, memory = fig.axes
    assert time.get_xscale() == "log" and memory.get_ylim()[0] == 0
    assert "predicted" in [text.get_text() for text in fig.legends[0].get_texts()]


def test_without_the_tile_of_a_network_there_is_no_line(record, tmp_path, capsys):
    record["rows"] = record["rows"][1:]
    inference_report.write(record, tmp_path, gpu=False)
    assert "no table" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_an_unknown_row_is_named_before_anything_runs(monkeypatch, tmp_path):
    words = ["inference.py", "--rows", "hat-tensor-3", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="unknown rows .'hat-tensor-3'.*there are .*hat-tensor-12"):
        inference.main()
    assert not list(tmp_path.iterdir())


def test_a_finished_record_is_not_measured_again(monkeypatch, tmp_path, record):
    file = tmp_path / "benchmarks" / "inference-cpu.json"
    file.parent.mkdir()
    file.write_text(json.dumps(record))
    monkeypatch.setattr(inference, "run", lambda *_: pytest.fail("measured again"))
    words = ["--rows", "hat-tensor-0.1", "--photos", "coffee", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["inference.py", *words, "--out", str(tmp_path)])
    inference.main()
    kept = json.loads(file.read_text())
    assert kept["rows"] == record["rows"] and kept["seams"] == record["seams"]


def test_the_committed_record_keeps_what_is_promised():
    record = json.loads((ROOT / "results/benchmarks/inference-cpu.json").read_text("utf-8"))
    lines = inference_report.table(record, gpu=False)
    measured = lines[lines["measured"]]
    largest = measured[measured["megapixels"] > 11]
    assert set(largest["mode"]) == {"tensor", "file"}
    # Nothing of the image's size but its buffers: the rest is the same from 0.1 to 12 megapixels.
    for _, group in measured.groupby(["network", "mode"]):
        rest = group["peak"] - group["buffers"]
        assert rest.max() - rest.min() < 0.25
    assert (ROOT / "results/benchmarks/inference.md").read_text("utf-8") == (
        inference_report.markdown(lines, record, gpu=False)
    )
