"""The benchmark of all methods' steps: which rows it takes, and what it counts."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import methods  # noqa: E402

from ir_peft import adapters  # noqa: E402
from ir_peft.specs import load_specs  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows():
    return methods.rows_of(ROOT / methods.FILE, "lr4_jpeg30")


def test_every_row_that_trains_is_measured_after_full_fine_tuning(rows):
    specs = [spec for spec in load_specs(ROOT / methods.FILE) if spec.task == "lr4_jpeg30"]
    assert set(rows) == {spec.row for spec in specs if spec.learns}
    assert next(iter(rows)) == "full"


def test_bytes_are_those_of_the_tensors(rows, tmp_path):
    steps = methods.steps_of({row: rows[row] for row in ("full", "bitfit", "lora")}, 1, CPU)
    full, bitfit, lora = methods.measure(steps, 1, CPU)
    model = steps["lora"].model
    values = sum(p.numel() for p in adapters.trainable_parameters(model).values())
    assert lora["trainable"] == values
    assert lora["optimizer_bytes"] == 8 * values and lora["file_bytes"] == 4 * values
    adapters.save_adapter(model, tmp_path / "lora")
    file = (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size
    assert 0 <= file - lora["file_bytes"] < 20_000  # The names of the tensors.
    assert bitfit["saved_bytes"] < lora["saved_bytes"] < full["saved_bytes"]
    assert full["of_full"]["median"] == 1
    record = {"backbone": "ipt_mini", "task": "lr4_jpeg30", "batch": 1, "rounds": 1}
    record |= {
        "clock": "cpu",
        "device": "here",
        "date": "2026-01-01T00:00",
    }
    record["rows"] = [{"label": rows[e["row"]].label, **e} for e in (full, bitfit, lora)]
    text = methods.report(record | {"git": {"commit": "0123456789", "dirty": False}})
    assert "1 rounds, processor time," in text
    assert "| LoRA | 38,880 |" in text and "- file" in text and "commit 0123456," in text


def test_rows_on_two_views_take_pairs():
    rows = methods.rows_of(ROOT / "experiments" / "asteisr.toml", "sr4", ["hat"])
    assert next(iter(rows)) == "full" and {"asteisr", "asteisr_spatial", "lora"} <= set(rows)
    steps = methods.steps_of({row: rows[row] for row in ("full", "asteisr")}, 1, CPU)
    assert all(step.x.shape == (1, 2, 3, 16, 40) for step in steps.values())
    full, ours = methods.measure(steps, 1, CPU, "cpu")
    assert ours["trainable"] == 29_088 and ours["saved_bytes"] < full["saved_bytes"]
