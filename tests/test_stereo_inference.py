"""Stereo pairs in strips, in files, from the command line, and scored by the protocol."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

import ir_peft
from ir_peft.adapters.core import adapter_parts
from ir_peft.cli import main
from ir_peft.data import stereo_photos, write_image
from ir_peft.data.images import as_tensor
from ir_peft.evaluate import evaluate_stereo
from ir_peft.stereo_inference import read_pair, restore_stereo


def pair(h=24, w=40, seed=0, batch=()):
    return torch.rand(*batch, 2, 3, h, w, generator=torch.Generator().manual_seed(seed))


class RowMean(nn.Module):
    """Enlarges by 2; each view gets the means of the other's rows: what needs the whole width."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x):
        self.calls.append((tuple(x.shape), self.training))
        other = x.flip(1).mean(-1, keepdim=True)
        return (0.5 * x + 0.5 * other).repeat_interleave(2, -1).repeat_interleave(2, -2)


# ---------------------------------------------------------------- strips


@pytest.mark.parametrize("batch", [(), (2,)])
def test_strips_of_whole_rows_give_the_whole(batch):
    model, x = RowMean().train(), pair(batch=batch)
    whole = restore_stereo(model, x)
    assert whole.shape == (*batch, 2, 3, 48, 80)
    torch.testing.assert_close(whole, model(x if batch else x[None]).view(whole.shape))
    model.calls.clear()
    strips = restore_stereo(model, x, rows=10, overlap=4)
    torch.testing.assert_close(strips, whole)
    assert {shape for shape, _ in model.calls} == {(1, 2, 3, 10, 40)}
    assert not any(training for _, training in model.calls) and model.training


def test_strips_see_what_the_whole_sees_away_from_their_borders():
    """Two 3 x 3 convolutions and a stereo adapter: rows further than 2 from a cut are exact."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)).double()
    config = ir_peft.ASteISRStereoConfig(target_modules=("0",))
    ir_peft.attach_adapter(body, config, seed=0).double()
    with torch.no_grad():
        for adapter in adapter_parts(body, "default").adapters.values():
            adapter.beta.fill_(0.5), adapter.gamma.fill_(-0.5)
    model, x = ir_peft.Stereo(body), pair().double()
    whole = restore_stereo(model, x)
    cut = restore_stereo(model, x, rows=8, overlap=0)
    off = (cut - whole).abs().amax((0, 1, 3)) > 1e-12  # (24,), cuts at rows 8 and 16
    assert off.nonzero().flatten().tolist() == [6, 7, 8, 9, 14, 15, 16, 17]
    torch.testing.assert_close(restore_stereo(model, x, rows=16, overlap=8), whole)
    with ir_peft.disable_adapters(body):
        assert (restore_stereo(model, x) - whole).abs().max() > 0.01


def test_automatic_strips_are_as_large_as_a_tile():
    model = RowMean()
    restore_stereo(model, pair(h=200, w=600), "auto")
    assert {shape for shape, _ in model.calls} == {(1, 2, 3, 96, 600)}
    model.calls.clear()
    restore_stereo(model, pair(h=48, w=600), "auto")
    assert {shape for shape, _ in model.calls} == {(1, 2, 3, 48, 600)}


def test_self_ensemble_exchanges_the_views_where_it_mirrors():
    class OnlyLeft(nn.Module):
        """Brightens what it takes for the left view, at its left border."""

        def forward(self, x):
            x = x.clone()
            x[:, 0, :, :, :4] += 0.5
            return x

    x = 0.2 * pair()
    out = restore_stereo(OnlyLeft(), x, self_ensemble=True)
    expected = x.clone()
    expected[0, :, :, :4] += 0.25  # Two of four passes each.
    expected[1, :, :, -4:] += 0.25
    torch.testing.assert_close(out, expected)
    symmetric = restore_stereo(RowMean(), x, self_ensemble=True)
    torch.testing.assert_close(symmetric, restore_stereo(RowMean(), x))


def test_what_is_no_pair_is_refused():
    shapes = (3, 8, 8), (3, 3, 8, 8), (2, 4, 8, 8), (2, 3, 8, 0), (2, 3, 0, 8), (0, 2, 3, 8, 8)
    for wrong in (*map(torch.rand, shapes), "image"):
        with pytest.raises(ValueError, match="expected a pair"):
            restore_stereo(RowMean(), wrong, "auto")
    for rows in (0, -4, 2.5, "all", True):
        with pytest.raises(ValueError, match=f"rows={rows!r} must be a number of rows"):
            restore_stereo(RowMean(), pair(), rows)
    with pytest.raises(TypeError, match=r"restores single images: ir_peft.Stereo\(model\)"):
        restore_stereo(ir_peft.load_backbone("hat_mini_x2"), pair())
    with pytest.raises(ValueError, match="overlap=9"):
        restore_stereo(RowMean(), pair(), rows=8, overlap=9)
    with pytest.raises(ValueError, match="NaN"):
        restore_stereo(RowMean(), pair() * math.nan)


# ---------------------------------------------------------------- scores


def test_scores_are_scikit_images():
    gt = pair(24, 160, seed=1)
    lq = gt[..., ::2, ::2]

    def enlarge(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    (row,) = evaluate_stereo(enlarge, [("noise", lq, gt)], progress=False)
    views = [
        (z.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8) for z in (enlarge(lq), gt)
    ]
    left, right = zip(*views, strict=True)

    def both(a, b):
        ssim = structural_similarity(a, b, channel_axis=2, data_range=255)
        return {"psnr": peak_signal_noise_ratio(b, a), "ssim": ssim}

    scores = {"left": both(*left), "right": both(*right)}
    scores["left64"] = both(*(v[:, 64:] for v in left))
    for measure in ("psnr", "ssim"):
        for name, value in scores.items():
            assert row[f"{measure}_{name}"] == pytest.approx(value[measure], abs=1e-9)
        mean = (scores["left"][measure] + scores["right"][measure]) / 2
        assert row[f"{measure}_mean"] == pytest.approx(mean, abs=1e-9)
    assert row["image"] == "noise" and row["seconds"] > 0
    # The right view's first columns do not count in left64.
    changed = gt.clone()
    changed[0, :, :, :64] = 0
    (other,) = evaluate_stereo(enlarge, [("noise", lq, changed)], progress=False)
    assert other["psnr_left64"] == row["psnr_left64"] and other["psnr_left"] < row["psnr_left"]


def test_pairs_are_read_one_at_a_time():
    class Files(Sequence):
        """Pairs that are read when indexed, as `StereoFolderPairs`."""

        read = 0

        def __len__(self):
            return 3

        def __getitem__(self, index):
            if index >= 3:
                raise IndexError
            self.read += 1
            return str(index), pair(8, 80), pair(8, 80)

    files, seen = Files(), []
    evaluate_stereo(lambda x: seen.append(files.read) or x, files, progress=False)
    assert seen == [1, 2, 3]


def test_a_failing_pair_is_an_error_that_names_it():
    good = ("good", pair(8, 80), pair(8, 80))
    for bad, match in [
        (pair(8, 80) * math.nan, "pair 'bad': the image has NaN"),
        (pair(9, 80), "pair 'bad': restored to"),
        (pair(8, 80)[None], r"pair 'bad': expected a pair \(2, 3, H, W\), got \(1, 2, 3"),
    ]:
        with pytest.raises(ValueError, match=match):
            evaluate_stereo(lambda x: x, [good, ("bad", bad, pair(8, 80))], progress=False)
    narrow = pair(8, 70)
    with pytest.raises(ValueError, match="pair 'n': 70 columns leave 6 beside the first 64"):
        evaluate_stereo(lambda x: x, [("n", narrow, narrow)], progress=False)
    with pytest.raises(ValueError, match="no stereo pairs"):
        evaluate_stereo(lambda x: x, [])


# ---------------------------------------------------------------- files


def test_pairs_from_two_files_one_file_and_a_3d_camera(tmp_path):
    views = (pair() * 255).round() / 255
    write_image(tmp_path / "l.png", views[0])
    write_image(tmp_path / "r.png", views[1])
    assert torch.equal(read_pair(tmp_path / "l.png", tmp_path / "r.png"), views)
    write_image(tmp_path / "both.png", torch.cat([views[0], views[1]], dim=-1))
    assert torch.equal(read_pair(tmp_path / "both.png"), views)
    smooth = [Image.new("RGB", (40, 24), colour) for colour in ("orange", "navy")]
    smooth[0].save(tmp_path / "p.mpo", save_all=True, append_images=smooth[1:])
    left, right = read_pair(tmp_path / "p.mpo")
    assert left.mean((1, 2)).mul(255).round().tolist() == pytest.approx([255, 165, 0], abs=2)
    assert right.mean((1, 2)).mul(255).round().tolist() == pytest.approx([0, 0, 128], abs=2)


def test_both_frames_of_a_3d_camera_are_turned_upright(tmp_path):
    frames = [Image.new("RGB", (40, 24), colour) for colour in ("orange", "navy")]
    for frame in frames:
        frame.paste("white", (0, 0, 40, 8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3  # Held upside down: the top of the scene is the last row.
    frames[0].save(tmp_path / "p.mpo", save_all=True, append_images=frames[1:], exif=exif)
    for view in read_pair(tmp_path / "p.mpo"):
        assert view[:, -8:].mean() > 0.95 > view[:, :16].mean()


def test_files_with_more_than_two_frames_are_no_pair(tmp_path):
    frames = [Image.new("RGB", (40, 24), colour) for colour in ("orange", "navy", "teal")]
    for name in ("p.mpo", "p.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(ValueError, match=f"{name}: 3 frames, a pair has two"):
            read_pair(tmp_path / name)


def test_no_pairs_in_files(tmp_path):
    write_image(tmp_path / "odd.png", torch.rand(3, 8, 9))
    write_image(tmp_path / "small.png", torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="no two views"):
        read_pair(tmp_path / "odd.png")
    with pytest.raises(ValueError, match=r"differ in size, \(8, 9\) and \(8, 8\)"):
        read_pair(tmp_path / "odd.png", tmp_path / "small.png")
    with pytest.raises(FileNotFoundError, match="small.png"):
        read_pair(tmp_path / "smal.png", tmp_path / "small.png")
    with pytest.raises(ValueError, match="one file or two"):
        read_pair("a", "b", "c")


# ---------------------------------------------------------------- command line


@pytest.fixture
def files(tmp_path):
    for side, view in zip("lr", pair(12, 20), strict=True):
        write_image(tmp_path / f"{side}.png", view)
    return [str(tmp_path / "l.png"), str(tmp_path / "r.png")]


def test_restoring_a_pair_with_a_stereo_adapter(files, tmp_path, capsys):
    model = ir_peft.load_backbone("dat_light_x4")
    ir_peft.attach_adapter(model, "asteisr", seed=0)
    with torch.no_grad():
        for adapter in adapter_parts(model, "default").adapters.values():
            for name in ("beta", "gamma"):
                if hasattr(adapter, name):
                    getattr(adapter, name).fill_(0.05)
    ir_peft.save_adapter(model, tmp_path / "adapter")
    words = ["restore", "--stereo", *files, "--adapter", str(tmp_path / "adapter")]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "r_restored.png: 80 x 48" in said.out and "no stereo adapter" not in said.err
    expected = restore_stereo(ir_peft.Stereo(model), read_pair(*files))
    written = read_pair(tmp_path / "l_restored.png", tmp_path / "r_restored.png")
    assert (written - expected).abs().max() < 0.51 / 255
    assert main(words) == 2  # Nothing is overwritten by accident.
    assert "l_restored.png exists" in capsys.readouterr().err
    assert main([*words, "--tile", "8", "-o", str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out_left.png").is_file() and (tmp_path / "out_right.png").is_file()
    assert main([*words, "--tile", "0", "--force"]) == 2
    assert "rows=0 must be a number of rows" in capsys.readouterr().err
    one = ["restore", files[0], "-o", str(tmp_path / "one.png")]
    assert main([*one, "--adapter", str(tmp_path / "adapter")]) == 2
    assert "needs both views" in capsys.readouterr().err
    assert main(["restore", *files]) == 2
    assert "two views of a scene need --stereo" in capsys.readouterr().err


def test_what_a_pair_lacks_is_said(tmp_path, capsys):
    [photo] = stereo_photos.stereo_photos(("motorcycle",))
    left, right = (as_tensor(view[::4, ::4]) for view in (photo.left, photo.right))
    write_image(tmp_path / "pair.png", torch.cat([right, left], dim=-1))
    words = ["restore", "--stereo", "--backbone", "hat_mini_x2", "--device", "cpu"]
    assert main([*words, str(tmp_path / "pair.png")]) == 0
    said = capsys.readouterr()
    assert "pair.png: two views of 186 x 125 pixels" in said.out
    assert "the views look exchanged, disparity -" in said.err
    assert "no stereo adapter: each view is restored alone" in said.err
    assert main([*words, str(tmp_path)]) == 2
    assert "no such image file" in capsys.readouterr().err
