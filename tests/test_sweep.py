"""Rows side by side give what they give one after the other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ir_peft import sweep
from ir_peft.specs import PROFILES, load_specs

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@pytest.fixture(scope="module")
def specs():
    rows = load_specs(EXPERIMENTS / "adaptir_ipt.toml")
    return [s for s in rows if s.row in ("bicubic", "lora") and s.task == "sr4" and not s.seed]


def test_two_processes_give_the_records_of_one(specs, tmp_path, capsys):
    profile = PROFILES["smoke"]
    alone = sweep.run_all(specs, profile, tmp_path / "alone", jobs=1)
    both = sweep.run_all(specs, profile, tmp_path / "both", jobs=2)
    assert [record["spec"]["row"] for record in both] == ["bicubic", "lora"]
    for a, b in zip(alone, both, strict=True):
        for one, other in zip(a["scores"], b["scores"], strict=True):
            assert one["psnr"] == pytest.approx(other["psnr"], abs=1e-3)
    assert capsys.readouterr().out.count("dB on photos6") == 4


def test_a_row_that_fails_in_its_process_is_the_callers_error(specs, tmp_path):
    broken = [specs[0], replace(specs[1], backbone="no_such_backbone")]
    with pytest.raises(FileNotFoundError, match="no bundled tag or file 'no_such_backbone'"):
        sweep.run_all(broken, PROFILES["smoke"], tmp_path, jobs=2)


def test_specs_of_one_training_stay_together(specs, tmp_path, monkeypatch):
    shared = [replace(specs[1], train_tasks=("sr4",), task=task) for task in ("sr4", "sr3")]
    monkeypatch.setattr(sweep, "run", lambda spec, **_: {"spec": spec, "scores": []})
    monkeypatch.setattr(sweep, "_side_by_side", lambda *_: pytest.fail("two trainings of one"))
    records = sweep.run_all(shared, PROFILES["smoke"], tmp_path, jobs=2)
    assert [record["spec"].task for record in records] == ["sr4", "sr3"]


def test_seconds_of_records_are_measured_alone(monkeypatch):
    monkeypatch.setattr(sweep, "cores", lambda: 20)
    for device, most in (("cpu", sweep.MOST_JOBS), ("cuda", 1)):
        monkeypatch.setattr(sweep.devices, "pick", lambda device=device: torch.device(device))
        jobs = {name: sweep.usual_jobs(profile) for name, profile in PROFILES.items()}
        assert jobs == {"full": 1, "paper": 1, "demo": most, "smoke": most}
    with pytest.raises(ValueError, match="at least 1, not 0"):
        sweep.run_all([], PROFILES["smoke"], jobs=0)
