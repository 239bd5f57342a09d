"""One row an image, with the metrics' own numbers, and no image skipped."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from ir_peft import metrics
from ir_peft.evaluate import evaluate
from ir_peft.inference import restore

SIZES = {"a": (16, 20), "b": (24, 17), "c": (31, 16)}


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for name, (H, W) in SIZES.items():
        gt = torch.rand(3, 2 * H, 2 * W, generator=generator)
        pairs.append((name, torch.nn.functional.avg_pool2d(gt, 2), gt))
    return pairs


enlarge = partial(nn.functional.interpolate, scale_factor=2)
score = partial(evaluate, progress=False, crop_border=2, channel="y")


def test_one_row_an_image_with_the_metrics_own_numbers(pairs):
    rows = score(enlarge, pairs)
    assert [row["image"] for row in rows] == ["a", "b", "c"]
    for row, (_, lq, gt) in zip(rows, pairs, strict=True):
        assert list(row) == ["image", "psnr", "ssim", "seconds"]
        sr = enlarge(lq[None])[0]
        assert row["psnr"] == metrics.psnr(sr, gt, crop_border=2, channel="y").item()
        assert row["ssim"] == metrics.ssim(sr, gt, crop_border=2, channel="y").item()
        assert row["seconds"] > 0
        assert all(type(row[key]) is float for key in ("psnr", "ssim", "seconds"))


def test_conventions_reach_the_metrics(pairs):
    rows = score(enlarge, iter(pairs), channel="rgb", crop_border=0, window="uniform7")
    for row, (_, lq, gt) in zip(rows, pairs, strict=True):
        sr = enlarge(lq[None])[0]
        assert row["psnr"] == metrics.psnr(sr, gt).item()
        assert row["ssim"] == metrics.ssim(sr, gt, window="uniform7").item()


def test_tiles_and_self_ensemble_reach_restore(pairs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2), nn.Sigmoid())
    (row,) = score(model, pairs[:1], tile=8, overlap=3, self_ensemble=True)
    _, lq, gt = pairs[0]
    sr = restore(model, lq, tile=8, overlap=3, self_ensemble=True)
    assert row["psnr"] == metrics.psnr(sr, gt, crop_border=2, channel="y").item()
    assert row["psnr"] != score(model, pairs[:1])[0]["psnr"]


def test_a_perfect_model_scores_infinity():
    gt = torch.rand(3, 16, 16)
    (row,) = score(lambda x: x, [("same", gt, gt)])
    assert row["psnr"] == math.inf and row["ssim"] == pytest.approx(1, abs=1e-12)


def test_the_progress_bar(pairs, capsys):
    score(enlarge, pairs)
    assert capsys.readouterr().err == ""
    score(enlarge, pairs, progress=True)
    assert "3/3" in capsys.readouterr().err


def change(pairs, index, lq=None, gt=None):
    name, old_lq, old_gt = pairs[index]
    return [*pairs[:index], (name, old_lq if lq is None else lq, old_gt if gt is None else gt)]


def test_every_failure_names_its_image(pairs):
    small = change(pairs, 1, gt=pairs[1][2][:, 1:])
    with pytest.raises(ValueError, match=r"image 'b': restored to \(3, 48, 34\).*\(3, 47, 34\)"):
        score(enlarge, small)
    with pytest.raises(ValueError, match="image 'c': .*NaN"):
        score(enlarge, change(pairs, 2, lq=pairs[2][1] * math.nan))
    with pytest.raises(ValueError, match="image 'c': .*NaN"):
        score(enlarge, change(pairs, 2, gt=pairs[2][2] * math.nan))
    with pytest.raises(TypeError, match="image 'b': .*uint8"):
        score(enlarge, change(pairs, 1, lq=pairs[1][1].byte()))
    with pytest.raises(FloatingPointError, match="image 'a': the model's output is not finite"):
        score(lambda x: enlarge(x) * math.nan, pairs)
    with pytest.raises(ValueError, match="image 'a': .*crop_border=16"):
        score(enlarge, pairs, crop_border=16)
    with pytest.raises(ValueError, match="no image pairs"):
        score(enlarge, [])
