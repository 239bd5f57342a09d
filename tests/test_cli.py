"""The command line: real files in, real files out, one clear line for every mistake."""

import numpy as np
import pytest
from PIL import Image

import ir_peft
from ir_peft import devices
from ir_peft.cli import main


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def test_list_names_what_exists(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("dat_light_x4", "adaptir", "lr4_noise30", "demo"))


def test_restore_writes_an_image_four_times_as_large(photo, capsys):
    assert main(["restore", str(photo)]) == 0
    output = photo.with_name("photo_restored.png")
    with Image.open(output) as restored:
        assert restored.size == (96, 80)
    before = output.read_bytes()
    assert main(["restore", str(photo)]) == 2  # Nothing is overwritten by accident.
    assert "exists" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert main(["restore", str(photo), "--force", "--tile", "16"]) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.unlink(), "photo.png"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "photo.png"),
        (lambda path: path.write_text("no image"), "photo.png"),
    ],
    ids=["missing", "truncated", "text"],
)
def test_restore_names_a_bad_image_and_writes_nothing(photo, capsys, make, message):
    make(photo)
    assert main(["restore", str(photo)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not photo.with_name("photo_restored.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "dat_ligth_x4"], "dat_light_x4"),
        (["--adapter", "adaptir/no_such"], "adaptir/no_such"),
        (["--tile", "0"], "tile"),
        (["--device", "cuda:99"], "no device 'cuda:99' here; there are cpu"),
        (["--adapter", "adaptir"], "adaptir/ablation/lr4_noise30-cgm"),
    ],
)
def test_restore_names_bad_options(photo, capsys, words, message):
    assert main(["restore", str(photo), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_restore_of_a_folder_names_its_images(photo, capsys, tmp_path):
    assert main(["restore", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is a folder; name one of its 1 images: photo.png" in error and error.count("\n") == 1
    (tmp_path / "empty").mkdir()
    assert main(["restore", str(tmp_path / "empty")]) == 2
    assert "it has no images" in capsys.readouterr().err


def test_restore_runs_on_the_device_asked_for(photo, capsys, monkeypatch):
    seen = []

    def strips(model, image, **_):
        seen.append({p.device.type for p in model.parameters()})
        raise ValueError("seen")

    monkeypatch.setattr(ir_peft.inference, "restore_strips", strips)
    words = ["restore", str(photo), "--adapter", "adaptir/lr4_noise30-lora"]
    for choice in (["--device", "meta"], []):
        assert main([*words, *choice]) == 2
    assert seen == [{"meta"}, {devices.pick().type}]


def test_run_names_unknown_profiles_and_rows(capsys, tmp_path):
    file = tmp_path / "e.toml"
    file.write_text(
        "[defaults]\npaper='p'\ntable='t'\nbackbone='dat_light_x4'\ntasks=['sr4']\n"
        "[rows.bicubic]\nlabel='Bicubic'\nmethod='bicubic'\n"
    )
    assert main(["run", str(file), "--profile", "smoek"]) == 2
    assert "smoek" in capsys.readouterr().err
    assert main(["run", str(file), "--profile", "smoke", "--rows", "lora"]) == 2
    assert "bicubic" in capsys.readouterr().err


def test_data_check_lists_every_set(capsys, tmp_path):
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "DIV2K" in capsys.readouterr().out
