"""The photo pack, the test sets, the cache, and image files."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ir_peft.data import photos
from ir_peft.data.images import read_image, write_image

INDEX = json.loads((photos.PACK / "index.json").read_text())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---------------------------------------------------------------- pack


def test_pack_is_small_and_complete():
    files = [path for path in photos.PACK.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert {p.relative_to(photos.PACK).as_posix() for p in files} == {
        "index.json",
        "ATTRIBUTION.md",
        "photos/LICENSE-CC0-1.0.txt",
        "photos/LICENSE-CC-BY-4.0.txt",
        "share_alike/LICENSE-CC-BY-SA-4.0.txt",
        *(entry["file"] for entry in INDEX["photographs"]),
    }
    for entry in INDEX["photographs"]:
        assert sha256((photos.PACK / entry["file"]).read_bytes()) == entry["sha256"]
        # The share-alike folder holds exactly the share-alike photographs.
        assert entry["file"].startswith("share_alike/") == (entry["licence"] == "CC-BY-SA-4.0")


def test_attribution_has_author_licence_and_change_of_every_photograph():
    text = (photos.PACK / "ATTRIBUTION.md").read_text()
    assert INDEX["package"].split()[1] in text
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert len(rows) == 13
    for entry in INDEX["photographs"]:
        row = rows[entry["file"]]
        change = "cropped" if entry["factor"] == 1 else "downsampled by"
        for word in (entry["source"], entry["author"], entry["licence"], change):
            assert word in row


def test_split_is_by_photograph():
    train, validation = photos.train_photos(), photos.validation_photos()
    assert len(train) == 11
    assert [photo.name for photo in validation] == ["aitzgorri", "Bridge"]
    assert not {p.sha256 for p in train} & {p.sha256 for p in validation}


def test_areas_hold_every_tile_once_and_neighbours_stay_neighbours():
    for entry in INDEX["photographs"]:
        strip = np.asarray(Image.open(photos.PACK / entry["file"]).convert("RGB"))
        tiles = strip.reshape(-1, 160, 160, 3)
        place = {sha256(t.tobytes()): tuple(p) for t, p in zip(tiles, entry["tiles"], strict=True)}
        (photo,) = (
            p for p in photos.train_photos() + photos.validation_photos() if p.name == entry["name"]
        )
        assert photo.image is photo.areas[0]
        assert photo.image.size == max(area.size for area in photo.areas)
        found = []
        for area in photo.areas:
            rows, columns = area.shape[0] // 160, area.shape[1] // 160
            cells = area.reshape(rows, 160, columns, 160, 3).swapaxes(1, 2)
            places = [
                [place[sha256(cells[r, c].tobytes())] for c in range(columns)] for r in range(rows)
            ]
            top, left = places[0][0]
            assert places == [[(top + r, left + c) for c in range(columns)] for r in range(rows)]
            found += [p for row in places for p in row]
        assert sorted(found) == sorted(map(tuple, entry["tiles"]))


def test_photographs_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        photos.train_photos()[0].image[0, 0, 0] = 1


def test_missing_share_alike_folder_is_said(tmp_path):
    shutil.copytree(photos.PACK, tmp_path / "pack")
    shutil.rmtree(tmp_path / "pack" / "share_alike")
    with pytest.warns(UserWarning, match="9 photographs are left, without Bridge, Dragonfly"):
        train = photos.train_photos(tmp_path / "pack")
    assert len(train) == 8
    with pytest.warns(UserWarning, match="validation is aitzgorri$"):
        assert [p.name for p in photos.validation_photos(tmp_path / "pack")] == ["aitzgorri"]


def test_damaged_or_missing_pack_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no photo pack here"):
        photos.train_photos(tmp_path)
    shutil.copytree(photos.PACK, tmp_path / "pack")
    strip = tmp_path / "pack" / "photos" / "life.webp"
    strip.write_bytes(strip.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"life\.webp: sha256 is"):
        photos.train_photos(tmp_path / "pack")
    strip.unlink()
    with pytest.raises(FileNotFoundError, match=r"life\.webp is missing"):
        photos.train_photos(tmp_path / "pack")


# ---------------------------------------------------------------- test sets


def test_photos6_sizes_and_order():
    assert [(p.name, p.image.shape) for p in photos.test_set("photos6")] == [
        ("astronaut", (512, 512, 3)),
        ("chelsea", (300, 451, 3)),
        ("coffee", (400, 600, 3)),
        ("rocket", (427, 640, 3)),
        ("china", (427, 640, 3)),
        ("flower", (427, 640, 3)),
    ]
    assert photos.available("photos6")
    assert photos.TEST_SETS["photos11"][:6] == photos.TEST_SETS["photos6"]
    assert len(set(photos.TEST_SETS["photos11"])) == 11


def test_training_sources_are_no_test_files():
    training = {entry["source_sha256"] for entry in INDEX["photographs"]}
    training |= {entry["sha256"] for entry in INDEX["photographs"]}
    testing = {photos._TEST_FILES[name].sha256 for name in photos.TEST_SETS["photos11"]}
    assert len(training) == 26 and len(testing) == 11
    assert not training & testing
    # The pins are those of the files that are read.
    for photo in photos.test_set("photos6"):
        assert sha256(photos._path(photo.name).read_bytes()) == photo.sha256


@pytest.mark.parametrize("call", [photos.test_set, photos.available, photos.fetch])
def test_unknown_set_names_the_nearest(call):
    with pytest.raises(ValueError, match="photos6, photos11; did you mean 'photos11'"):
        call("photo11")


def test_photos11_without_cache_names_files_and_command(tmp_path, monkeypatch):
    monkeypatch.setenv("IR_PEFT_CACHE", str(tmp_path))
    assert photos.cache_dir() == tmp_path
    assert not photos.available("photos11")
    with pytest.raises(FileNotFoundError) as error:
        photos.test_set("photos11")
    assert str(tmp_path / "photos11" / "monarch.png") in str(error.value)
    assert "ir-peft fetch photos11" in str(error.value)
    assert "astronaut" not in str(error.value)


def test_default_cache_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("IR_PEFT_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert photos.cache_dir() == tmp_path / ".cache" / "ir_peft"


def fake_pip(monkeypatch, wheel: bytes | None):
    """Stands in for pip download: no test reaches the network."""
    calls = []

    def run(command, **options):
        calls.append(command)
        if wheel is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no such host")
        folder = Path(command[command.index("--dest") + 1])
        (folder / "sporco-0.2.2.post1-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(photos.subprocess, "run", run)
    return calls


def a_wheel(pictures: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for name, data in pictures.items():
            wheel.writestr(f"sporco/data/{name}.png", data)
    return buffer.getvalue()


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_fetch_verifies_places_and_is_done_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IR_PEFT_CACHE", str(tmp_path / "cache"))
    pictures = {name: png(i) for i, name in enumerate(photos.TEST_SETS["photos11"][6:])}
    wheel = a_wheel(pictures)
    monkeypatch.setattr(photos, "SPORCO_SHA256", sha256(wheel))
    for name, data in pictures.items():
        file = photos._TestFile("sporco", f"{name}.png", "", "", sha256(data))
        monkeypatch.setitem(photos._TEST_FILES, name, file)
    calls = fake_pip(monkeypatch, wheel)
    folder = photos.fetch("photos11")
    assert folder == tmp_path / "cache" / "photos11"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        f"{name}.png": data for name, data in pictures.items()
    }
    assert calls[0][:3] == [sys.executable, "-m", "pip"]
    assert calls[0][-1] == "sporco==0.2.2.post1" and "--no-deps" in calls[0]
    assert "downloading sporco" in capsys.readouterr().err
    assert photos.available("photos11")
    assert [p.name for p in photos.test_set("photos11")] == list(photos.TEST_SETS["photos11"])
    photos.fetch("photos11")
    assert len(calls) == 1
    # A damaged file is fetched again; until then it is an error, not a test image.
    (folder / "sail.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"sail\.png: sha256 is"):
        photos.test_set("photos11")
    photos.fetch("photos11")
    assert (folder / "sail.png").read_bytes() == pictures["sail"]


def test_fetch_writes_nothing_from_a_wrong_wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("IR_PEFT_CACHE", str(tmp_path / "cache"))
    fake_pip(monkeypatch, a_wheel({"sail": png(0)}))
    with pytest.raises(ValueError, match="expected a5b600be67a0"):
        photos.fetch("photos11")
    assert not list((tmp_path / "cache" / "photos11").iterdir())


def test_fetch_says_why_pip_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("IR_PEFT_CACHE", str(tmp_path / "cache"))
    fake_pip(monkeypatch, None)
    with pytest.raises(RuntimeError, match="no such host"):
        photos.fetch("photos11")


def test_fetch_into_an_impossible_cache_fails_before_the_download(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IR_PEFT_CACHE", str(tmp_path / "file"))
    calls = fake_pip(monkeypatch, None)
    with pytest.raises(OSError, match="file"):
        photos.fetch("photos11")
    assert calls == []


# ---------------------------------------------------------------- image files


def save(path: Path, array: np.ndarray, **options) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff", ".bmp", ".PNG"])
def test_lossless_round_trip(tmp_path, rgb, suffix):
    image = torch.from_numpy(rgb).permute(2, 0, 1).float() / 255
    write_image(tmp_path / f"new/image{suffix}", image)
    assert torch.equal(read_image(tmp_path / f"new/image{suffix}"), image)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [f"image{suffix}"]


def test_writing_clamps_and_rounds(tmp_path):
    image = torch.tensor([-1.0, 0.4999 / 255, 0.5001 / 255, 2.0]).expand(3, 1, 4)
    write_image(tmp_path / "x.png", image)
    assert (read_image(tmp_path / "x.png")[0, 0] * 255).tolist() == [0, 0, 1, 255]


def test_transparency_lies_over_white(tmp_path):
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    x = read_image(save(tmp_path / "rgba.png", pixels))
    assert (x * 255).round()[:, 0].mT.tolist() == [[255, 0, 0], [255] * 3, [204] * 3]


def test_transparent_palette_lies_over_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 0, 0, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=1)
    x = (read_image(tmp_path / "p.png") * 255).round()
    assert x[:, 0, 0].tolist() == [10, 20, 30] and x[:, 0, 1].tolist() == [255] * 3


def test_grey_is_repeated(tmp_path, rgb):
    x = read_image(save(tmp_path / "grey.png", rgb[..., 0]))
    assert x.shape == (3, 5, 7)
    assert all(torch.equal(c, torch.from_numpy(rgb[..., 0]).float() / 255) for c in x)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_keeps_its_precision(tmp_path, suffix):
    levels = np.array([[0, 1, 257, 32768, 65535]], dtype=np.uint16)
    x = read_image(save(tmp_path / f"deep{suffix}", levels))
    expected = torch.tensor([0, 1, 257, 32768, 65535], dtype=torch.float64) / 65535
    assert torch.equal(x[2, 0], expected.float())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, rgb, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    x = read_image(save(tmp_path / "o.png", rgb, exif=exif))
    upright = [
        rgb,
        rgb[:, ::-1],
        rgb[::-1, ::-1],
        rgb[::-1],
        rgb.transpose(1, 0, 2),
        np.rot90(rgb, -1),
        np.rot90(rgb, 2).transpose(1, 0, 2),
        np.rot90(rgb),
    ][orientation - 1]
    assert np.array_equal((x * 255).round().byte().permute(1, 2, 0).numpy(), upright)


def test_missing_image_names_the_nearest(tmp_path, rgb):
    save(tmp_path / "holiday.png", rgb)
    with pytest.raises(FileNotFoundError, match=r"holidy\.png: no such image file; .*holiday\.png"):
        read_image(tmp_path / "holidy.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_truncated_image_names_the_path(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"cut{suffix}", pixels)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"cut\{suffix}: cannot be read as an image"):
        read_image(path)


@pytest.mark.parametrize("data", [b"", b"just text", b"\x89PNG\r\n\x1a\n garbage"])
def test_not_an_image_names_the_path(tmp_path, data):
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.png: cannot be read as an image"):
        read_image(tmp_path / "x.png")


def test_pixels_without_a_range_are_refused(tmp_path):
    path = save(tmp_path / "f.tif", np.ones((2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="range is unknown"):
        read_image(path)
    path = save(tmp_path / "i.tif", np.full((2, 2), 70000, dtype=np.int32))
    with pytest.raises(ValueError, match="beyond 16 bits"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "image", "error", "message"),
    [
        ("x.gif", torch.zeros(3, 2, 2), ValueError, "unknown image suffix; there are .png"),
        ("x.png", torch.zeros(2, 2), ValueError, r"expected an RGB image \(3, H, W\)"),
        ("x.png", torch.zeros(3, 2, 2, dtype=torch.uint8), TypeError, "got torch.uint8"),
        ("x.png", torch.full((3, 2, 2), torch.nan), ValueError, "NaN or infinite"),
    ],
)
def test_impossible_images_are_not_written(tmp_path, name, image, error, message):
    with pytest.raises(error, match=message):
        write_image(tmp_path / name, image)
    assert not list(tmp_path.iterdir())


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_image(tmp_path / "x.png", torch.zeros(3, 2, 2))
    before = (tmp_path / "x.png").read_bytes()

    def interrupt(self, path, **options):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_image(tmp_path / "x.png", torch.ones(3, 2, 2))
    assert (tmp_path / "x.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
