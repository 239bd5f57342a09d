"""Published data sets, on tiny folders of the same layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ir_peft.data.degradations import TASKS, TEST_TASKS, Bicubic, GaussianNoise
from ir_peft.data.folder_pairs import FolderPairs, FolderPatches
from ir_peft.data.folders import FOLDER_SETS, check, find_pairs
from ir_peft.data.images import as_tensor, read_image, write_image
from ir_peft.data.patches import augment, test_generator


def image(seed: int, height: int = 24, width: int = 36) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return as_tensor(pixels)


def make_sr(root: Path, gt: str, low: str, names: list[str], scales=(2, 3, 4)) -> None:
    for seed, name in enumerate(names):
        write_image(root / gt / f"{name}.png", image(seed))
        for scale in scales:
            path = root / (low.format(scale=scale, name=name) + ".png")
            write_image(path, Bicubic(scale)(image(seed)))


@pytest.fixture
def set5(tmp_path):
    names = ["baby", "bird", "butterfly", "head", "woman"]
    make_sr(tmp_path, "Set5/HR", "Set5/LR_bicubic/X{scale}/{name}x{scale}", names)
    return tmp_path


def row(root, name, scale=1):
    (found,) = [r for r in check(root, progress=False).rows if r.name == name and r.scale == scale]
    return found


# ---------------------------------------------------------------- finding and reading


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_released_low_resolution_files_are_read(set5, scale):
    pairs = FolderPairs(set5, "Set5", TASKS[f"sr{scale}"])
    assert len(pairs) == 5
    name, lq, gt = pairs[1]
    assert name == "bird"
    assert torch.equal(gt, image(1))
    assert torch.equal(lq, read_image(set5 / f"Set5/LR_bicubic/X{scale}/birdx{scale}.png"))
    assert [name for name, _, _ in pairs] == ["baby", "bird", "butterfly", "head", "woman"]


def test_low_resolution_comes_from_the_file_not_from_the_code(set5):
    black = torch.zeros(3, 6, 9)
    write_image(set5 / "Set5/LR_bicubic/X4/birdx4.png", black)
    assert torch.equal(FolderPairs(set5, "Set5", TASKS["sr4"])[1][1], black)


def test_hybrid_noise_is_seeded_by_set_and_name(set5):
    pairs = FolderPairs(set5, "Set5", TEST_TASKS["lr4_noise30"])
    name, lq, _ = pairs[3]
    low = read_image(set5 / "Set5/LR_bicubic/X4/headx4.png")
    noise = GaussianNoise(30, quantize="truncate")
    assert torch.equal(lq, noise(low, test_generator("Set5", "head")))
    assert torch.equal(pairs[3][1], lq)


def test_manga109_has_its_own_suffix(tmp_path):
    make_sr(
        tmp_path, "Manga109/HR", "Manga109/LR_bicubic/X{scale}/{name}_LRBI_x{scale}", ["A", "B"]
    )
    pairs = find_pairs(tmp_path, "Manga109", scale=4, any_count=True)
    assert [(p.name, p.lq.name) for p in pairs] == [("A", "A_LRBI_x4.png"), ("B", "B_LRBI_x4.png")]


@pytest.mark.parametrize(
    ("name", "gt", "low"),
    [
        ("DIV2K", "DIV2K/DIV2K_train_HR", "DIV2K/DIV2K_train_LR_bicubic/X{scale}/{name}x{scale}"),
        (
            "Flickr2K",
            "Flickr2K/Flickr2K_HR",
            "Flickr2K/Flickr2K_LR_bicubic/X{scale}/{name}x{scale}",
        ),
    ],
)
def test_training_sets(tmp_path, name, gt, low):
    make_sr(tmp_path, gt, low, ["0001", "0002"])
    with pytest.raises(ValueError, match=f"{name} has 2 images in .*, expected "):
        find_pairs(tmp_path, name, scale=4)
    assert len(find_pairs(tmp_path, name, scale=4, any_count=True)) == 2


def test_flat_folder_gets_its_noise_from_the_code(tmp_path):
    for seed in range(68):
        write_image(tmp_path / f"CBSD68/{seed:03}.png", image(seed, 8, 10))
    (tmp_path / "CBSD68/readme.txt").write_text("no image")
    pairs = FolderPairs(tmp_path, "CBSD68", TEST_TASKS["denoise30"])
    name, lq, gt = pairs[7]
    assert (len(pairs), name) == (68, "007")
    assert torch.equal(gt, image(7, 8, 10))
    assert torch.equal(lq, GaussianNoise(30)(gt, test_generator("CBSD68", "007")))
    with pytest.raises(ValueError, match="CBSD68 has no damaged files at scale 4"):
        FolderPairs(tmp_path, "CBSD68", TASKS["sr4"])
    with pytest.raises(ValueError, match="CBSD68 has no damaged files at scale 1"):
        FolderPairs(tmp_path, "CBSD68")


def test_denoising_on_an_sr_set_needs_only_its_clean_images(set5):
    shutil.rmtree(set5 / "Set5/LR_bicubic")
    assert FolderPairs(set5, "Set5", TASKS["denoise30"])[0][1].shape == (3, 24, 36)
    with pytest.raises(
        FileNotFoundError, match=r"Set5 is not available: no images .*LR_bicubic/X4"
    ):
        FolderPairs(set5, "Set5", TASKS["sr4"])


@pytest.mark.parametrize(
    ("name", "clean", "damaged", "count"),
    [
        ("Rain100L", "Rain100L/norain-{}", "Rain100L/rainy/rain-{}", 100),
        ("Rain100H", "Rain100H/gt/norain-{}", "Rain100H/rainy/rain-{}", 100),
        ("RainTrainL", "RainTrainL/norain-{}", "RainTrainL/rain-{}", 200),
        ("RainTrainH", "RainTrainH/norain-{}", "RainTrainH/rain-{}", 3),
        ("LOL_train", "LOLv1/Train/target/{}", "LOLv1/Train/input/{}", 485),
        ("LOL_test", "LOLv1/eval15/high/{}", "LOLv1/eval15/low/{}", 15),
    ],
)
def test_sets_that_come_damaged(tmp_path, name, clean, damaged, count):
    for i in range(count):
        for pattern, seed in ((clean, i), (damaged, 1000 + i)):
            path = tmp_path / (pattern.format(i) + ".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (image(seed, 2, 3) * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(path)
    pairs = FolderPairs(tmp_path, name)
    assert len(pairs) == count
    index = [pair.name for pair in pairs.pairs].index("2")
    _, lq, gt = pairs[index]
    assert torch.equal(gt, image(2, 2, 3)) and torch.equal(lq, image(1002, 2, 3))
    with pytest.raises(ValueError, match=f"{name} comes damaged"):
        FolderPairs(tmp_path, name, TASKS["denoise30"])
    assert row(tmp_path, name).ok


def test_missing_set_is_never_replaced(set5):
    with pytest.raises(FileNotFoundError, match="Set14 is not available: no images Set14/HR"):
        FolderPairs(set5, "Set14", TASKS["sr4"])
    with pytest.raises(ValueError, match=r"no data set 'Urban10': .* did you mean 'Urban100'\?"):
        FolderPairs(set5, "Urban10", TASKS["sr4"])
    with pytest.raises(FileNotFoundError, match="Urban100 is not available"):
        FolderPatches(set5, ("Set5", "Urban100"), TASKS["sr4"], 4)


def test_incomplete_sets_are_errors(set5):
    (set5 / "Set5/LR_bicubic/X4/headx4.png").rename(set5 / "Set5/LR_bicubic/X4/heatx4.png")
    with pytest.raises(ValueError, match=r"2 images without a partner: \['head', 'heat'\]"):
        FolderPairs(set5, "Set5", TASKS["sr4"])
    (set5 / "Set5/HR/head.png").unlink()
    with pytest.raises(ValueError, match="Set5 has 4 images in .*, expected 5"):
        FolderPairs(set5, "Set5", TASKS["denoise30"])
    shutil.copy(set5 / "Set5/HR/baby.png", set5 / "Set5/HR/baby.bmp")
    with pytest.raises(ValueError, match="are the same image"):
        FolderPairs(set5, "Set5", TASKS["denoise30"])


def test_clean_images_that_were_not_cropped_to_the_scale(set5):
    write_image(set5 / "Set5/HR/baby.png", image(0, 26, 39))
    _, lq, gt = FolderPairs(set5, "Set5", TASKS["sr4"])[0]
    assert lq.shape == (3, 6, 9) and torch.equal(gt, image(0, 26, 39)[:, :24, :36])
    write_image(set5 / "Set5/HR/baby.png", image(0, 28, 36))
    with pytest.raises(ValueError, match=r"baby\.png has \(28, 36\) pixels, .* not 4 times"):
        FolderPairs(set5, "Set5", TASKS["sr4"])[0]


def test_sr_test_sets_may_lie_where_the_release_has_them(set5):
    (set5 / "ARTSR").mkdir()
    shutil.move(set5 / "Set5", set5 / "ARTSR" / "Set5")
    assert len(FolderPairs(set5, "Set5", TASKS["sr4"])) == 5
    assert row(set5, "Set5", 4).ok


def test_a_layout_in_words():
    manga = FOLDER_SETS["Manga109"].describe(4).split(" or ")[0]
    assert manga == "Manga109/HR/* with Manga109/LR_bicubic/X4/*_LRBI_x4"
    assert FOLDER_SETS["DIV2K"].describe(damaged=False) == "DIV2K/DIV2K_train_HR/*, 800 images"
    assert FOLDER_SETS["RainTrainH"].describe() == "RainTrainH/norain-* with RainTrainH/rain-*"


# ---------------------------------------------------------------- patches


def test_patches_from_files(set5):
    def data(seed):
        return FolderPatches(set5, ("Set5",), TASKS["sr4"], 4, seed=seed, length=40)

    names = set()
    for lq, gt in data(0):
        assert lq.shape == (3, 4, 4) and gt.shape == (3, 16, 16)
        places = [
            (name, k)
            for name, low, high in FolderPairs(set5, "Set5", TASKS["sr4"])
            for y in range(3)
            for x in range(6)
            for k in range(8)
            if torch.equal(augment(high[:, 4 * y : 4 * y + 16, 4 * x : 4 * x + 16], k), gt)
            and torch.equal(augment(low[:, y : y + 4, x : x + 4], k), lq)
        ]
        assert len(places) == 1
        names.add(places[0][0])
    assert len(names) == 5
    assert torch.equal(data(0)[7][0], data(0)[7][0])
    assert not torch.equal(data(1)[7][0], data(0)[7][0])


def test_patches_damaged_by_the_code(set5):
    data = FolderPatches(set5, ("Set5",), TASKS["denoise30"], 16, length=3)
    lq, gt = data[0]
    assert lq.shape == gt.shape == (3, 16, 16)
    assert 15 < ((lq - gt) * 255).std() < 31  # Clipping takes some of the 30.
    with pytest.raises(IndexError, match="item 3 of 3"):
        data[3]


def test_patches_too_large_name_the_file(set5):
    with pytest.raises(ValueError, match=r"Set5/HR/\w+\.png: too small for patches of 32 x 32"):
        FolderPatches(set5, ("Set5",), TASKS["sr4"], 8)[0]
    with pytest.raises(ValueError, match="in a tuple, got 'Set5'"):
        FolderPatches(set5, "Set5", TASKS["sr4"], 4)


# ---------------------------------------------------------------- check


def test_check_of_an_empty_folder_says_not_available(tmp_path):
    result = check(tmp_path, progress=False)
    assert {r.name for r in result.rows} == set(FOLDER_SETS)
    assert not any(r.ok for r in result.rows)
    assert str(result).count("not available") == len(result.rows)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        check(tmp_path / "nothing")


def test_check_of_a_complete_set(set5):
    for scale in (2, 3, 4):
        assert row(set5, "Set5", scale).ok and row(set5, "Set5", scale).found == 5
    text = str(check(set5, progress=False)).splitlines()
    assert [line.split()[-1] for line in text if line.startswith("Set5 ")] == ["ok"] * 3


def test_check_finds_what_is_wrong(set5):
    folder = set5 / "Set5"
    (folder / "LR_bicubic/X2/birdx2.png").unlink()
    write_image(folder / "LR_bicubic/X3/headx3.png", torch.zeros(3, 5, 12))
    cut = folder / "LR_bicubic/X4/womanx4.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    two, three, four = (row(set5, "Set5", scale) for scale in (2, 3, 4))
    assert len(two.problems) == len(three.problems) == len(four.problems) == 1
    assert two.problems[0].endswith("bird.png: no damaged partner")
    assert three.problems[0].endswith("head.png: (24, 36) pixels, not 3 x (5, 12)")
    assert "womanx4.png: cannot be read as an image" in four.problems[0]
    assert str(check(set5, progress=False)).count("1 problem(s)") == 3
    (folder / "HR/baby.png").unlink()
    assert row(set5, "Set5", 3).problems[0] == "4 images, expected 5"
    shutil.rmtree(folder / "LR_bicubic/X2")
    missing = row(set5, "Set5", 2)
    assert missing.missing == "Set5/LR_bicubic/X2/*x2" and not missing.ok
