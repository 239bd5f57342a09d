"""Pretraining: resumable, seeded, with weights that load and a card that tells the truth."""

import dataclasses
import json

import pytest
import torch

import ir_peft
from ir_peft import adair_tables, pretrain
from ir_peft.backbones import BACKBONES, WEIGHTS
from ir_peft.data import degradations
from ir_peft.data.images import write_image
from ir_peft.data.photos import train_photos, validation_photos

TINY = {"steps": 4, "batch_size": 2, "lq_size": 16, "precision": "no", "ema": 0.5}
SHIPPED = sorted(path for path in WEIGHTS.glob("*.json"))


@pytest.fixture
def recipes(monkeypatch):
    """The real recipes at a tiny size; IPT's patch stays, its branches become two."""
    tiny = {
        "restormer_mini": {"tests": ("denoise25",)},
        "hat_mini_x2": {},
        "hat_mini_x4": {},
        "ipt_mini": {
            "lq_size": 48,
            "tasks": {name: degradations.TASKS[name] for name in ("sr2", "denoise30")},
            "tests": ("sr2",),
        },
    }
    made = {
        tag: dataclasses.replace(pretrain.RECIPES[tag], **{**TINY, **options})
        for tag, options in tiny.items()
    }
    monkeypatch.setattr(pretrain, "RECIPES", made)
    monkeypatch.setattr(pretrain.photos, "train_photos", lambda: train_photos()[-1:])
    monkeypatch.setattr(pretrain, "CROP", 48)
    monkeypatch.setattr(pretrain, "CARD_CROP", 48)
    return made


def run(tag, root, **options):
    return pretrain.pretrain(tag, out=root / "out", root=root, progress=False, **options)


def weights(root, tag):
    return ir_peft.load_backbone(root / "out" / f"{tag}.safetensors").state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_recipes_name_what_exists():
    for tag, recipe in pretrain.RECIPES.items():
        assert recipe.backbone in BACKBONES, tag
        assert set(recipe.tests) <= set(degradations.TEST_TASKS), tag
        assert recipe.start is None or recipe.start in pretrain.RECIPES, tag
        assert recipe.steps >= 1_000, tag


def test_bases_of_the_transfer_study_differ_in_what_they_restore_alone():
    for size in ("restormer", "restormer_mini"):
        rows = [pretrain.RECIPES[f"{size}_{name}"] for name in pretrain.TRANSFER]
        assert all(dataclasses.replace(row, tasks=rows[0].tasks) == rows[0] for row in rows)
        assert rows[0].backbone == size
    x = torch.rand(1, 3, 24, 24)
    for (name, degradation), row in zip(pretrain.TRANSFER.items(), rows, strict=True):
        assert list(row.tasks.values()) == [degradation]
        y = degradation(x, torch.Generator().manual_seed(0))
        assert y.shape == x.shape and torch.equal(y, x) == (name == "identity"), name
    assert pretrain.TRANSFER["mixed"].choices == pretrain.TRANSFER["random_order"].steps


@pytest.mark.parametrize("tag", ["restormer_mini", "hat_mini_x2"])
def test_weights_load_and_the_card_repeats_their_score(tag, recipes, tmp_path):
    card = run(tag, tmp_path)
    assert json.loads((tmp_path / "out" / f"{tag}.json").read_text()) == json.loads(
        json.dumps(card)
    )
    model = ir_peft.load_backbone(tmp_path / "out" / f"{tag}.safetensors")
    assert (model.name, model.scale) == (recipes[tag].backbone, recipes[tag].scale or 1)
    again = pretrain.scores(model, recipes[tag].tests, crop=48)
    for name, row in card["validation"].items():
        assert row["model"] == pytest.approx(again[name]["model"], abs=1e-6)
    text = (tmp_path / "out" / f"{tag}.md").read_text()
    first = next(iter(card["validation"].values()))
    assert f"{first['model']:.2f}" in text and f"{first['baseline']:.2f}" in text
    assert card["training_photographs"] == [train_photos()[-1].name]
    assert card["validation_photographs"] == [photo.name for photo in validation_photos()]


def test_an_interrupted_run_ends_with_the_same_weights(recipes, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run("ipt_mini", whole)
    steps = []
    original = pretrain.train

    def interrupted(model, data, *, before_step, **options):
        def stop(step):
            steps.append(step)
            if len(steps) == 3:
                raise KeyboardInterrupt
            before_step(step)

        return original(model, data, before_step=stop, **options)

    monkeypatch.setattr(pretrain, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("ipt_mini", parts)
    run("ipt_mini", parts)
    assert steps == [0, 1, 2, 2, 3], "the second part goes on where the first ended"
    assert same(weights(whole, "ipt_mini"), weights(parts, "ipt_mini"))


def test_each_step_trains_the_branch_of_its_task_only(recipes, tmp_path):
    """The tails of the four tasks that are never drawn keep their initial weights."""
    before = pretrain.initial_model(recipes["ipt_mini"], 0, tmp_path).state_dict()
    run("ipt_mini", tmp_path)
    after = weights(tmp_path, "ipt_mini")
    moved = {
        key.split(".")[1]
        for key in before
        if key.startswith("tail.") and not torch.equal(before[key], after[key])
    }
    assert moved == {"0", "4"}


def test_seeds_differ_and_get_their_own_files(recipes, tmp_path):
    first, second = run("hat_mini_x2", tmp_path), run("hat_mini_x2", tmp_path, seed=1)
    assert (first["tag"], second["tag"]) == ("hat_mini_x2", "hat_mini_x2_s1")
    assert not same(weights(tmp_path, "hat_mini_x2"), weights(tmp_path, "hat_mini_x2_s1"))


def test_x4_starts_from_the_body_of_x2(recipes, tmp_path):
    run("hat_mini_x2", tmp_path)
    x2 = weights(tmp_path, "hat_mini_x2")
    start = pretrain.initial_model(recipes["hat_mini_x4"], 0, tmp_path / "out").state_dict()
    kept = [key for key in start if key in x2 and torch.equal(start[key], x2[key])]
    assert set(x2) - set(kept) == set() and len(start) - len(kept) == 2  # The second upsampler.


def test_unknown_recipe():
    with pytest.raises(ValueError, match="did you mean 'hat_mini_x4'"):
        pretrain.pretrain("hat_mini_4")


def test_the_table_of_shipped_backbones_is_that_of_their_cards():
    assert (WEIGHTS / "README.md").read_text() == pretrain.index_markdown(WEIGHTS)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_backbones_fit_their_cards(path):
    card = json.loads(path.read_text())
    model = ir_peft.load_backbone(path.stem)
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    assert path.with_suffix(".md").read_text() == pretrain.card_markdown(card)
    assert path.with_suffix(".safetensors").stat().st_size <= 6e6
    assert not card["git"]["dirty"]
    recipe = pretrain.RECIPES[path.stem]
    for key in ("backbone", "steps", "batch_size", "lq_size", "lr", "precision", "start"):
        assert card["recipe"][key] == getattr(recipe, key), f"`ir-peft pretrain` has another {key}"
    kind = path.stem.removeprefix("restormer_mini_")
    # A base of the transfer study knows the damage that it was pretrained on, and may harm others.
    known = [adair_tables.OWN_TASK.get(kind)] if kind in pretrain.TRANSFER else card["validation"]
    for name in filter(None, known):
        row = card["validation"][name]
        assert row["model"] > row["baseline"], f"{name}: worse than doing nothing"
    again = pretrain.scores(model, recipe.tests[-1:], crop=pretrain.CARD_CROP)
    name, row = again.popitem()
    assert row["model"] == pytest.approx(card["validation"][name]["model"], abs=0.01)


def test_a_folder_keeps_its_own_files(recipes, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("README.md", "package.json"):
        (out / name).write_text('"mine"')
    run("hat_mini_x2", tmp_path)
    assert {(out / name).read_text() for name in ("README.md", "package.json")} == {'"mine"'}


def test_the_card_names_the_commit_that_trained(recipes, tmp_path, monkeypatch):
    states = [{"commit": letter * 40, "dirty": False} for letter in "ab"]
    for state in states:
        monkeypatch.setattr(pretrain, "git_state", lambda root, state=state: state)
        card = run("hat_mini_x2", tmp_path)
    assert (card["git"], card["resumed_at"]) == (states[0], states[1:])
    card = run("hat_mini_x2", tmp_path, resume=False)
    assert (card["git"], card["resumed_at"]) == (states[1], [])


def test_the_full_restormer_learns_from_published_images(tmp_path, monkeypatch):
    """At a tiny size: the recipe's sets, each image of theirs, and a card that names them."""
    tag = "restormer_random_order"
    tiny = dataclasses.replace(
        pretrain.RECIPES[tag], backbone="restormer_mini", tests=("denoise25",), **TINY
    )
    monkeypatch.setattr(pretrain, "RECIPES", {tag: tiny, "plain": pretrain.RECIPES["ipt_mini"]})
    monkeypatch.setattr(pretrain, "CROP", 48)
    monkeypatch.setattr(pretrain, "CARD_CROP", 48)
    with pytest.raises(ValueError, match="DIV2K, Flickr2K, WED, BSD400 .--data FOLDER"):
        run(tag, tmp_path)
    with pytest.raises(FileNotFoundError, match="DIV2K is not available"):
        run(tag, tmp_path, data=tmp_path)
    with pytest.raises(ValueError, match="leave out data"):
        run("plain", tmp_path, data=tmp_path)
    folders = ("DIV2K/DIV2K_train_HR", "Flickr2K/Flickr2K_HR", "WED", "BSD400")
    for k, folder in enumerate(folders):
        clean = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(k))
        write_image(tmp_path / "data" / folder / "1.png", clean)
    items, names = pretrain.training_set(tiny, 0, tmp_path / "data", any_count=True)
    assert len(items) == tiny.steps * tiny.batch_size and len(items.pairs) == 4
    lq, gt = items[0]
    assert lq.shape == gt.shape == (3, 16, 16) and not torch.equal(lq, gt)
    assert names == ["DIV2K (1)", "Flickr2K (1)", "WED (1)", "BSD400 (1)"]
    card = run(tag, tmp_path, data=tmp_path / "data", any_count=True)
    assert card["training_photographs"] == names
    text = (tmp_path / "out" / f"{tag}.md").read_text()
    assert "**Data.** Published images: DIV2K (1), Flickr2K (1)" in text
    assert "the full architecture, by this project" in text
    assert ir_peft.load_backbone(tmp_path / "out" / f"{tag}.safetensors").name == "restormer_mini"


def test_bad_arguments_stop_before_training(recipes, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FileExistsError):
        run("hat_mini_x2", tmp_path)
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        run("hat_mini_x2", tmp_path, steps=0)
    assert not (tmp_path / "runs").exists()
