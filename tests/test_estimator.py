"""The estimator of damage: what it sees, how it is trained, and that the shipped one works."""

import json

import pytest
import torch

from ir_peft import estimator
from ir_peft.data import degradations, photos
from ir_peft.data.patches import make_test_pairs
from ir_peft.estimator import (
    CLASSES,
    CLEAN,
    Estimator,
    Fit,
    LabelledPatches,
    confusion,
    estimate,
    fit,
    load_estimator,
    pick_task,
    write_estimator,
)


@pytest.fixture(scope="module")
def pack():
    return photos.train_photos()[:2]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Estimator().eval()


def test_classes_are_tasks_that_keep_the_size():
    assert CLASSES[0] == CLEAN and len(set(CLASSES)) == len(CLASSES)
    for name in CLASSES[1:]:
        assert degradations.TASKS[name].scale == 1


def test_size_and_independence_of_the_samples(model):
    assert sum(p.numel() for p in model.parameters()) == 48_652
    x = torch.rand(3, 3, 64, 64)
    out = model(x)
    assert out.shape == (3, len(CLASSES))
    torch.testing.assert_close(model(x[1:2])[0], out[1], rtol=0, atol=1e-5)


def test_it_sees_what_a_saved_file_would_hold(model):
    """Values between two of the 256 levels, or outside of them, carry no sign of the damage."""
    x = (torch.rand(1, 3, 64, 64) * 255).round() / 255
    assert torch.equal(model(x + 0.4 / 255), model(x))
    bright = x * 2 - 0.5
    assert torch.equal(model(bright), model(bright.clamp(0, 1)))


def test_estimate_is_the_mean_over_its_patches(model):
    image = torch.rand(3, 64, 200)  # One row of three patches, at 0, 68 and 136.
    shares = estimate(model, image)
    expected = torch.stack([model(image[None, :, :, x : x + 64])[0] for x in (0, 68, 136)])
    found = torch.tensor(list(shares.values()))
    torch.testing.assert_close(found, expected.softmax(dim=1).mean(dim=0))
    assert list(shares) == list(CLASSES) and found.sum() == pytest.approx(1)
    best = max(shares, key=shares.get)
    assert pick_task(model, image) == (None if best == CLEAN else best)
    for wrong in (torch.rand(3, 63, 80), torch.rand(1, 64, 64), torch.rand(1, 3, 64, 64)):
        with pytest.raises(ValueError, match="at least 64 pixels"):
            estimate(model, wrong)
    with pytest.raises(ValueError, match="patches_a_side"):
        estimate(model, image, 0)


def test_patches_are_functions_of_seed_and_index(pack):
    a, b, c = (LabelledPatches(pack, seed, 24) for seed in (3, 3, 4))
    for index in (0, 5, 23):
        image, label = a[index]
        assert image.shape == (3, 64, 64) and label == index % 12
        assert torch.equal(image, b[index][0]) and not torch.equal(image, c[index][0])
    clean, label = a[12]
    assert CLASSES[label] == CLEAN
    assert torch.equal(clean, a.clean[12][1][:, 24:88, 24:88])


def test_training_learns_to_tell_damage_apart(pack):
    """On patches it has not seen; chance is one in twelve."""
    options = Fit(steps=40, batch_size=24, seed=1)
    model, seconds = fit(pack, options, progress=False)
    assert seconds > 0
    unseen = LabelledPatches(photos.validation_photos(), 9, 72)
    images, labels = zip(*(unseen[i] for i in range(72)), strict=True)
    with torch.no_grad():
        right = model(torch.stack(images)).argmax(dim=1) == torch.tensor(labels)
    assert right.float().mean() > 0.25


def test_training_repeats_itself(pack):
    first, second = (fit(pack, Fit(steps=2, batch_size=12), progress=False)[0] for _ in range(2))
    other = fit(pack, Fit(steps=2, batch_size=12, seed=1), progress=False)[0]
    states = [model.state_dict() for model in (first, second, other)]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]) and not torch.equal(value, states[2][key])


def test_round_trip_and_card(model, pack, tmp_path):
    table = confusion(model, photos.validation_photos(), crop=96)
    assert table.shape == (12, 12)
    assert (table.sum(dim=1) == len(photos.validation_photos())).all()
    path = tmp_path / "a" / "e.safetensors"
    write_estimator(path, model, Fit(), {"seconds": 3}, table)
    again = load_estimator(path)
    assert not again.training and again.classes == CLASSES
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(again(x), model(x))
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["confusion"] == table.tolist() and card["seconds"] == 3
    assert card["accuracy"] == pytest.approx(table.diagonal().sum().item() / table.sum().item())
    assert f"of {table.sum()} test images" in path.with_suffix(".md").read_text()


def test_files_that_are_no_estimator(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="tools/train_estimator.py"):
        load_estimator(tmp_path / "none.safetensors")
    path = tmp_path / "e.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        load_estimator(path)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="names no classes"):
        load_estimator(path)
    state = model.state_dict() | {"convs.3.bias": torch.ones(2)}
    save_file(state, path, {"classes": " ".join(CLASSES)})
    with pytest.raises(ValueError, match="no estimator of this version"):
        load_estimator(path)


@pytest.mark.skipif(not estimator.WEIGHTS.is_file(), reason="no estimator is shipped yet")
def test_the_shipped_one_recognises_most_damage_of_photographs_it_never_saw():
    model = load_estimator()
    card = json.loads(estimator.WEIGHTS.with_suffix(".json").read_text())
    assert card["accuracy"] > 0.8 and card["parameters"] == 48_652
    photo = [photo for photo in photos.test_set("photos6") if photo.name == "coffee"]
    right = 0
    for row, name in enumerate(CLASSES[1:], start=1):
        ((_, lq, _),) = make_test_pairs(photo, degradations.TEST_TASKS[name], crop=288)
        picked = pick_task(model, lq)
        right += picked == name
        assert card["confusion"][row][CLASSES.index(picked or CLEAN)] > 0
    assert right >= 8
