"""The table of restorers, and the command that reads it."""

from pathlib import Path

import pytest
import torch

import ir_peft
from ir_peft import restorers, results
from ir_peft.adapters import find_adapter
from ir_peft.backbones import WEIGHTS
from ir_peft.cli import main
from ir_peft.data.images import read_image, write_image
from ir_peft.estimator import CLASSES, CLEAN
from ir_peft.restorers import RESTORERS, find_restorer, likely_tasks
from ir_peft.specs import load_specs

ROOT = Path(__file__).resolve().parents[1]
IMAGE = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def photo(tmp_path):
    write_image(tmp_path / "photo.png", IMAGE)
    return tmp_path / "photo.png"


def guess(monkeypatch, name):
    """The estimator is sure of one class."""
    shares = {other: 0.9 if other == name else 0.01 for other in CLASSES}
    monkeypatch.setattr(restorers, "load_estimator", lambda: None)
    monkeypatch.setattr(restorers, "estimate", lambda model, image: shares)


def test_every_adapter_is_that_of_a_row_of_the_experiments():
    files = sorted((ROOT / "experiments").glob("*.toml"))
    rows = {(s.backbone, s.tag): s.task for file in files for s in load_specs(file)}
    for task, restorer in RESTORERS.items():
        if restorer.adapter is not None:
            trained = rows[restorer]
            assert task == trained or task not in rows.values(), f"{task} takes {trained}"


def test_every_restorer_is_shipped():
    for restorer in RESTORERS.values():
        assert (WEIGHTS / f"{restorer.backbone}.safetensors").is_file()
        assert restorer.adapter is None or find_adapter(restorer.adapter).is_dir()


def test_a_task_takes_its_adapter_where_that_is_better():
    records = results.load_records(ROOT / "results" / "records")
    ours = records[(records["paper"] == "adair") & (records["table"] == "multitask")]
    psnr = ours.pivot_table(index="task", columns="row", values="psnr")
    assert set(psnr.index) == set(CLASSES) - {CLEAN}
    for task, adapted in (psnr["adair"] > psnr["frozen"]).items():
        tag = f"adair/multitask/{task}-adair" if adapted else None
        assert RESTORERS[task] == ("restormer_mini", tag)


def test_auto_takes_the_likeliest(monkeypatch):
    guess(monkeypatch, "denoise50")
    shares = likely_tasks(IMAGE)
    assert next(iter(shares)) == "denoise50" and set(shares) == set(CLASSES) - {CLEAN}
    assert find_restorer("denoise50") == ("restormer_mini", None)
    guess(monkeypatch, CLEAN)
    with pytest.raises(ValueError, match=r"looks undamaged \(probability 90%\).*denoise15"):
        likely_tasks(IMAGE)
    with pytest.raises(ValueError, match="no task 'dehaze'; did you mean 'haze'.* There are auto"):
        find_restorer("dehaze")


@pytest.mark.parametrize("words", [["jpeg"], ["auto"]])
def test_the_command_restores_as_with_backbone_and_adapter(words, photo, monkeypatch, capsys):
    guess(monkeypatch, "jpeg")
    assert main(["restore", str(photo), "--task", *words]) == 0
    tag = "adair/multitask/jpeg-adair"
    printed = capsys.readouterr().out
    assert f"restormer_mini, adapter {tag}" in printed
    assert ("looks like jpeg (90%), next denoise15 (1%)" in printed) == (words == ["auto"])
    found = read_image(photo.with_name("photo_restored.png"))
    pair = ["--backbone", "restormer_mini", "--adapter", tag]
    assert main(["restore", str(photo), *pair, "--force"]) == 0
    assert torch.equal(read_image(photo.with_name("photo_restored.png")), found)


def test_a_task_and_a_backbone_choose_a_head(photo, capsys):
    words = ["restore", str(photo), "--task", "sr3", "--backbone"]
    assert main([*words, "ipt_mini"]) == 0
    model = ir_peft.load_backbone("ipt_mini").eval()
    model.set_task("sr3")
    expected = ir_peft.restore(model, read_image(photo)[None], tile="auto")[0]
    found = read_image(photo.with_name("photo_restored.png"))
    assert (found - expected.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-6
    assert main([*words, "dat_light_x4", "--force"]) == 2
    assert "dat_light_x4 has one head" in capsys.readouterr().err
    assert torch.equal(read_image(photo.with_name("photo_restored.png")), found)


def test_a_task_and_an_adapter_are_too_much(photo, capsys):
    assert main(["restore", str(photo), "--task", "derain", "--adapter", "x"]) == 2
    assert "leave out --adapter, or name its --backbone" in capsys.readouterr().err
    assert main(["restore", str(photo), "--task", "deran"]) == 2
    assert "did you mean 'derain'" in capsys.readouterr().err
    assert not photo.with_name("photo_restored.png").exists()
