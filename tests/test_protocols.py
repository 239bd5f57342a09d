"""Protocols on tiny folders: noise, crop, channel and rounding are those that their names say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ir_peft import load_backbone, metrics, protocols
from ir_peft.cli import main
from ir_peft.data.folder_pairs import FolderPatches
from ir_peft.data.folders import FOLDER_SETS, check, find_pairs
from ir_peft.protocols import (
    ALL_IN_ONE,
    PROTOCOLS,
    all_in_one_average,
    evaluate_protocol,
    score,
    summary,
)

RNG = np.random.RandomState(5)


def image(path, height=35, width=50):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.randint(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


class Keep:
    """A model that changes nothing and remembers what it was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, x):
        self.seen.append(x)
        return x


def run(root, name, **options):
    model = Keep()
    rows = evaluate_protocol(model, root, name, any_count=True, progress=False, **options)
    return rows, model.seen


def test_every_set_and_column_exists():
    for name, protocol in PROTOCOLS.items():
        assert set(protocol.sets) <= set(FOLDER_SETS), name
        for each in protocol.sets:
            known = FOLDER_SETS[each]
            assert protocol.sigma or (known.has_damaged and 1 in known.scales), (name, each)
    assert {name for table in ALL_IN_ONE.values() for name in table} <= set(PROTOCOLS)


def test_restormer_noise_starts_anew_for_every_image_and_is_not_clipped(tmp_path):
    clean = {name: image(tmp_path / "CBSD68" / f"{name}.png") for name in ("b", "a")}
    rows, seen = run(tmp_path, "restormer_denoise50", sets=("CBSD68",))
    assert [row["image"] for row in rows] == ["a", "b"]
    for row, x in zip(rows, seen, strict=True):
        np.random.seed(0)
        expected = np.float32(clean[row["image"]]) / 255.0
        expected += np.random.normal(0, 50 / 255.0, expected.shape)
        found = x[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert found.min() < 0 and found.max() > 1
        saved = (np.clip(expected, 0, 1) * 255).round()
        mse = ((saved - clean[row["image"]]) ** 2).mean()
        assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-3)
        assert set(row) == {"protocol", "set", "image", "psnr"}


def test_promptir_noise_runs_on_is_truncated_and_follows_the_crop(tmp_path):
    clean = {name: image(tmp_path / "CBSD68" / f"{name}.png") for name in ("b", "a")}
    rows, seen = run(tmp_path, "promptir_denoise25")
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    np.random.seed(0)
    for row, x in zip(rows, seen, strict=True):
        whole = clean[row["image"]]
        cut = whole[1:33, 1:49]  # 35 x 50: the rest of 3 and 2 pixels, half of it at the top left.
        expected = np.clip(cut + np.random.randn(*cut.shape) * 25, 0, 255).astype(np.uint8)
        assert np.array_equal((x[0].permute(1, 2, 0) * 255).round().byte().numpy(), expected)
        a, b = expected / 255.0, cut / 255.0
        psnr = peak_signal_noise_ratio(b, a, data_range=1)
        ssim = structural_similarity(b, a, data_range=1, channel_axis=2)
        assert row["psnr"] == pytest.approx(psnr, abs=1e-4)
        assert row["ssim"] == pytest.approx(ssim, abs=1e-5)


def test_restormer_scores_rain_on_the_rounded_luma(tmp_path):
    gt = image(tmp_path / "Rain100L" / "target" / "7.png")
    lq = image(tmp_path / "Rain100L" / "input" / "7.png")
    ((row,), _) = run(tmp_path, "restormer_derain", sets=("Rain100L",))

    def luma(pixels):
        r, g, b = np.moveaxis(pixels.astype(float), -1, 0)
        return (16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255).round()

    mse = ((luma(gt) - luma(lq)) ** 2).mean()
    assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-9)
    x, y = (torch.from_numpy(p).permute(2, 0, 1).double() / 255 for p in (lq, gt))
    assert row["psnr"] != metrics.psnr(x, y, channel="y").item()
    assert row["ssim"] == pytest.approx(metrics.ssim(x, y, channel="y").item(), abs=1e-2)


def test_rounding_is_the_protocols():
    x, y = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    exact, rounded = (
        score(x, y, replace(PROTOCOLS["promptir_derain"], rounded=flag))["psnr"]
        for flag in (False, True)
    )
    assert exact == pytest.approx(metrics.psnr(x, y, round_to_uint8=False).item())
    assert rounded == metrics.psnr(x, y).item() != exact


def test_several_hazy_images_of_one_clean_one(tmp_path):
    image(tmp_path / "SOTS" / "outdoor" / "gt" / "0001.png")
    for name in ("0001_0.8_0.2", "0001_0.9_0.1"):
        image(tmp_path / "SOTS" / "outdoor" / "hazy" / f"{name}.jpg")
    rows, _ = run(tmp_path, "promptir_dehaze")
    assert [row["image"] for row in rows] == ["0001_0.8_0.2", "0001_0.9_0.1"]
    (found,) = (row for row in check(tmp_path, progress=False).rows if row.name == "SOTS_outdoor")
    assert found.ok and found.found == 1
    image(tmp_path / "SOTS" / "outdoor" / "gt" / "0002.png")
    image(tmp_path / "SOTS" / "outdoor" / "hazy" / "0003_0.8_0.2.jpg")
    with pytest.raises(ValueError, match=r"2 images without a partner: \['0002', '0003_0.8_0.2'\]"):
        find_pairs(tmp_path, "SOTS_outdoor")


def test_training_sets_of_restormer_and_promptir(tmp_path):
    """Blur and rain come in pairs, haze several times an image."""
    for clean, damaged in (
        ("GoPro/train/target", "GoPro/train/input"),
        ("Rain13K/target", "Rain13K/input"),
    ):
        image(tmp_path / clean / "1.png")
        image(tmp_path / damaged / "1.png")
    image(tmp_path / "OTS" / "clear" / "0005.jpg")
    for name in ("0005_0.8_0.04", "0005_1_0.2"):
        image(tmp_path / "OTS" / "hazy" / f"{name}.jpg")
    names = ("GoPro_train", "Rain13K", "OTS")
    data = FolderPatches(tmp_path, names, None, lq_size=8, epoch=4, length=4, any_count=True)
    found = sorted(f"{pair.gt.parent.parent.name}/{pair.name}" for pair in data.pairs)
    assert found == ["OTS/0005_0.8_0.04", "OTS/0005_1_0.2", "Rain13K/1", "train/1"]
    assert all(lq.shape == gt.shape == (3, 8, 8) for lq, gt in (data[i] for i in range(4)))
    with pytest.raises(ValueError, match="2103"):
        find_pairs(tmp_path, "GoPro_train")


def test_promptirs_own_test_folder(tmp_path):
    """Its denoising set is the colour version, whatever its name says."""
    image(tmp_path / "denoise" / "bsd68" / "3096.jpg")
    for kind in ("target", "input"):
        image(tmp_path / "derain" / "Rain100L" / kind / "1.png")
        image(tmp_path / "dehaze" / kind / ("0001.png" if kind == "target" else "0001_1_0.2.jpg"))
    rows = [row for name in ALL_IN_ONE["three_tasks"] for row in run(tmp_path, name)[0]]
    assert [row["set"] for row in rows] == ["SOTS_outdoor", "Rain100L", *["CBSD68"] * 3]


def test_averages_are_means_of_the_columns_not_of_the_images():
    rows = [
        {"protocol": name, "psnr": 30.0 + i} for i, name in enumerate(ALL_IN_ONE["three_tasks"])
    ]
    rows += [{"protocol": "promptir_dehaze", "psnr": 40.0}]
    found = all_in_one_average(rows, "three_tasks")
    assert found["promptir_dehaze"] == 35 and found["average"] == (35 + 31 + 32 + 33 + 34) / 5
    with pytest.raises(ValueError, match="no rows of promptir_deblur"):
        all_in_one_average(rows, "five_tasks")
    with pytest.raises(ValueError, match="no table 'four_tasks'"):
        all_in_one_average(rows, "four_tasks")


def test_refusals_come_before_an_image_is_restored(tmp_path):
    image(tmp_path / "CBSD68" / "a.png", 15, 40)
    with pytest.raises(ValueError, match="did you mean 'restormer_derain'"):
        run(tmp_path, "restormer_deran")
    with pytest.raises(ValueError, match="has the sets CBSD68, Kodak24"):
        run(tmp_path, "restormer_denoise15", sets=("Set5",))
    with pytest.raises(FileNotFoundError, match="Kodak24 is not available"):
        run(tmp_path, "restormer_denoise15")
    with pytest.raises(ValueError, match=r"has 1 images in .*, expected 68"):
        protocols.evaluate_protocol(Keep(), tmp_path, "promptir_denoise15", progress=False)
    with pytest.raises(ValueError, match=r"\(15, 40\) has no multiple of 16"):
        run(tmp_path, "promptir_denoise15")


def test_the_command_scores_and_names_the_convention(tmp_path, capsys):
    for name in ("a", "b"):
        image(tmp_path / "Rain100L" / "target" / f"{name}.png", 32, 48)
        image(tmp_path / "Rain100L" / "input" / f"{name}.png", 32, 48)
    words = ["--data", str(tmp_path), "--backbone", "restormer_mini", "--any-count"]
    both = ["promptir_derain", "restormer_derain", "--sets", "Rain100L"]
    assert main(["test", *both, *words, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    model = load_backbone("restormer_mini").eval()
    for name, said in (("promptir_derain", "PSNR on RGB"), ("restormer_derain", "PSNR on Y")):
        rows = evaluate_protocol(
            model, tmp_path, name, sets=("Rain100L",), any_count=True, progress=False
        )
        psnr, ssim = (sum(row[key] for row in rows) / 2 for key in ("psnr", "ssim"))
        assert f"| {name} | Rain100L | 2 | {psnr:.2f} | {ssim:.4f} | {said}" in printed
    assert "on average" not in printed
    assert main(["test", "five_tasks", *words]) == 2
    assert "SOTS_outdoor is not available" in capsys.readouterr().err
    assert main(["test", "promptir_derain", *words, "--backbone", "dat_light_x4"]) == 2
    assert "enlarges images" in capsys.readouterr().err


def test_the_summary_has_the_average_of_a_complete_table():
    rows = [
        {"protocol": name, "set": PROTOCOLS[name].sets[0], "image": "a", "psnr": 30.0 + i}
        for i, name in enumerate(ALL_IN_ONE["five_tasks"])
    ]
    text = summary(rows)
    assert text.endswith("\n\nfive_tasks: 32.00 dB on average\n") and "three_tasks" not in text
    assert "noise 25 kept as 8 bits, images cut to a multiple of 16, results as floats |" in text
