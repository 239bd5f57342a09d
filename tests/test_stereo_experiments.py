"""Rows on two views: what they train on, how they are scored, and their records."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ir_peft import Stereo, backbones, evaluate_stereo, experiments, load_backbone, records
from ir_peft import stereo_experiments as stereo
from ir_peft.adapters import fingerprint
from ir_peft.data import degradations, stereo_photos
from ir_peft.data.photos import train_photos, validation_photos
from ir_peft.experiments import PROFILES, load_specs, run

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "experiments" / "asteisr.toml"
TINY = replace(PROFILES["smoke"], crop=16)


def rows(task="sr4", table="hat", file=FILE):
    return {s.row: s for s in load_specs(file) if (s.task, s.table, s.seed) == (task, table, 0)}


@pytest.fixture
def checkout(tmp_path):
    """A git repository with one commit, as the root of runs."""
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    (tmp_path / ".gitignore").write_text("runs/\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "start"]):
        subprocess.run(["git", *author, "-C", str(tmp_path), *words], check=True)
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    """Every bundled HAT is a very small one; x2 and x4 stay."""

    def build(name, scale=None):
        model = create("hat", scale=scale, dim=12, depths=(1, 1, 1, 1), window=8, heads=2,
                       squeeze_factor=4)  # fmt: skip
        model.name = name
        return model.eval()

    def load(tag):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build(tag[:-3], int(tag[-1]))

    create = backbones.create_backbone
    monkeypatch.setattr(backbones, "load_backbone", load)
    monkeypatch.setattr(backbones, "create_backbone", build)


# ---------------------------------------------------------------- the tables


def test_main_table_has_the_rows_of_the_comparison_at_both_scales():
    wanted = {
        "bicubic", "frozen", "scratch", "full_single", "full", "lora", "adaptir",
        "asteisr_spatial", "asteisr_stereo", "asteisr",
    }  # fmt: skip
    for task, backbone in (("sr2", "hat_mini_x2"), ("sr4", "hat_mini_x4")):
        assert set(rows(task)) == wanted
        assert {spec.backbone for spec in rows(task).values()} == {backbone}
    seeds = {s.seed for s in load_specs(FILE) if (s.row, s.task) == ("asteisr", "sr4")}
    assert seeds == {0, 1, 2}


def test_rows_of_one_view_have_the_budget_of_the_adapters():
    for file, table, allowed in (
        (FILE, "hat", 0.06),
        (FILE.with_name("asteisr_dat.toml"), "dat", 0.06),
    ):
        found = rows(table=table, file=file)
        counts = {}
        for row in ("asteisr", "lora", "adaptir"):
            model = experiments.adapted_model(found[row], PROFILES["smoke"])
            counts[row] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        for row in ("lora", "adaptir"):
            assert abs(counts[row] / counts["asteisr"] - 1) < allowed, (row, counts)


def test_a_backbone_for_each_task(tmp_path):
    text = FILE.read_text().replace("sr2 = ", "sr3 = ")
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match="has tasks .*'sr2'.*backbone .*'sr3'"):
        load_specs(tmp_path / "a.toml")


# ---------------------------------------------------------------- data


def test_training_pairs_are_made_of_training_photographs():
    spec = rows()["asteisr"]
    data = stereo.training_set(spec, replace(TINY, steps=3, batch_size=2))
    assert len(data) == 6
    lq, gt = data[5]
    assert lq.shape == (2, 3, 16, 40) and gt.shape == (2, 3, 64, 160)
    assert data.max_disparity == 32
    areas = {id(area) for photo in train_photos() for area in photo.areas}
    assert len(data.areas) <= len(areas)
    paper = replace(spec, patch=32)
    assert stereo.patch_size(paper, TINY) == (32, 80)
    assert stereo.training_set(paper, TINY).max_disparity == 64
    other = stereo.training_set(replace(spec, seed=1), TINY)
    assert not torch.equal(other[0][1], data[0][1])


def test_validation_pairs_are_layers_of_validation_photographs():
    spec = rows()["asteisr"]
    pairs = stereo.validation_pairs(spec, TINY)
    assert len({name for name, *_ in pairs}) == stereo.VALIDATION_PAIRS
    again = stereo.validation_pairs(replace(spec, seed=2), TINY)  # The same for every seed.
    assert all(torch.equal(a[2], b[2]) for a, b in zip(pairs, again, strict=True))
    assert {p.name for p in validation_photos()}.isdisjoint(p.name for p in train_photos())
    small = replace(spec, task="sr2", backbone="hat_mini_x2", patch=12)  # 60 columns are too few.
    assert stereo.validation_pairs(small, TINY)[0][2].shape == (2, 3, 30, 74)


def test_the_profile_names_the_pairs_that_are_tested(monkeypatch):
    monkeypatch.setattr(stereo_photos, "available", lambda name: name == "motorcycle")
    assert stereo.stereo_profile(PROFILES["smoke"]).test_set == "motorcycle"
    assert stereo.stereo_profile(PROFILES["demo"]).test_set == "motorcycle"
    # A trusted record needs all three: a missing one is an error, not another test set.
    assert stereo.stereo_profile(PROFILES["full"]).test_set == "stereo3"
    monkeypatch.setattr(stereo_photos, "available", lambda name: True)
    assert stereo.stereo_profile(PROFILES["demo"]).test_set == "stereo3"
    assert stereo.stereo_profile(PROFILES["full"]).validate_every == stereo.VALIDATE_EVERY
    assert stereo.stereo_profile(PROFILES["smoke"]).validate_every == 0


def test_test_pairs_are_the_middle_rows_of_whole_width():
    profile = replace(TINY, test_set="motorcycle")
    [(name, lq, gt)] = stereo.test_pairs(rows()["asteisr"], profile)
    assert name == "motorcycle" and gt.shape == (2, 3, 16, 740) and lq.shape == (2, 3, 4, 185)
    [photo] = stereo_photos.stereo_photos(("motorcycle",))
    assert torch.equal(
        (gt[1] * 255).byte().permute(1, 2, 0), torch.tensor(photo.right[242:258, :740])
    )


# ---------------------------------------------------------------- records


@pytest.mark.parametrize("row", ["bicubic", "frozen", "lora", "asteisr", "full", "scratch"])
def test_every_kind_of_row_runs_to_a_record(row, checkout, small):
    spec = rows("sr2")[row]
    record = run(spec, TINY, root=checkout, progress=False)
    path = checkout / "runs" / "smoke" / "records" / f"{record['id']}.json"
    assert json.loads(path.read_text()) == record
    assert record["profile"]["test_set"] in stereo.TEST_SETS
    assert record["metric"]["window"] == "uniform7" and record["metric"]["crop_border"] == 0
    [score] = record["scores"]
    assert score["image"] == "motorcycle"
    for key in ("psnr", "ssim"):
        assert score[key] == pytest.approx((score[f"{key}_left"] + score[f"{key}_right"]) / 2)
        assert f"{key}_left64" in score
    trainable, _, backbone = record["parameters"].values()
    if row in ("full", "scratch"):
        assert trainable > backbone  # All of it, and both adapters.
    elif spec.learns:
        assert 0 < trainable < backbone
        assert record["curve"][-1]["step"] == TINY.steps
    frame = records.load_records(path.parent)
    assert frame["psnr_left64"].tolist() == [score["psnr_left64"]]
    assert frame["psnr"].tolist() == [score["psnr"]] and frame["image_seconds"].notna().all()


def test_a_frozen_row_scores_each_view_as_if_alone(checkout, small):
    spec = rows("sr2")["frozen"]
    record = run(spec, TINY, root=checkout, progress=False)
    pairs = stereo.test_pairs(spec, stereo.stereo_profile(TINY))
    [row] = evaluate_stereo(Stereo(backbones.load_backbone(spec.backbone)), pairs, progress=False)
    assert record["scores"][0]["psnr_left"] == row["psnr_left"]
    [(_, lq, gt)] = pairs
    enlarged = degradations.bicubic_resize(lq, 2)
    [row] = evaluate_stereo(lambda x: degradations.bicubic_resize(x, 2), pairs, progress=False)
    bicubic = run(rows("sr2")["bicubic"], TINY, root=checkout, progress=False)
    assert bicubic["scores"][0]["psnr"] == row["psnr_mean"] and enlarged.shape == gt.shape


def test_validation_of_a_training_is_on_pairs(checkout, small):
    spec = rows("sr2")["asteisr"]
    record = run(spec, replace(TINY, validate_every=1), root=checkout, progress=False)
    assert [point["step"] for point in record["curve"]] == [1, 2]
    assert all(10 < point["val_psnr"] < 60 for point in record["curve"])


def test_random_weights_have_the_shape_of_the_tag():
    spec = rows("sr2")["scratch"]
    model = experiments.adapted_model(spec, TINY)
    assert model.scale == 2 and model.name == "hat_mini"
    assert fingerprint(model) != fingerprint(load_backbone("hat_mini_x2"))
    assert fingerprint(model) == fingerprint(experiments.adapted_model(spec, TINY))
