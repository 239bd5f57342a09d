"""Published stereo sets, on tiny folders of the same layout, and what the check finds."""

import shutil
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from ir_peft.cli import main
from ir_peft.data.deadleaves import dead_leaves_stereo
from ir_peft.data.degradations import Bicubic, Compose, GaussianNoise
from ir_peft.data.images import as_tensor, read_image, write_image
from ir_peft.data.stereo import AUGMENTATIONS, augment_pair
from ir_peft.data.stereo_check import check_stereo, doubts, median_disparity, row_offset
from ir_peft.data.stereo_folders import (
    STEREO_SETS,
    StereoFolderPairs,
    StereoFolderPatches,
    find_stereo,
)
from ir_peft.data.stereo_photos import stereo_photos


def scene(seed, height=48, width=144):
    """A pair whose disparities are large beside a block of the check's matching."""
    drawn = dead_leaves_stereo(
        (height, width), torch.Generator().manual_seed(seed), max_disparity=24, radii=(6.0, None)
    )
    return (torch.stack([drawn.left, drawn.right]) * 255).round() / 255


def write_pair(folder, kind, pair):
    for view in (0, 1):
        write_image(folder / f"{kind}{view}.png", pair[view])


def make_test_set(root, name, count, scales=(2, 4)):
    for i in range(count):
        pair = scene(i)
        write_pair(root / "test" / name / "hr" / f"{i:04d}", "hr", pair)
        for s in scales:
            write_pair(root / "test" / name / f"lr_x{s}" / f"{i:04d}", "lr", Bicubic(s)(pair))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Middlebury with its five pairs, training patches and raw Flickr1024."""
    root = tmp_path_factory.mktemp("sets")
    make_test_set(root, "Middlebury", 5)
    for i in range(3):
        for kind, pair in (("hr", scene(i)), ("lr", Bicubic(4)(scene(i)))):
            write_pair(root / "patches_x4" / f"{i + 1:06d}", kind, pair)
        for side, view in zip("LR", scene(i), strict=True):
            write_image(root / "Flickr1024" / f"{i:04d}_{side}.png", view)
    return root


@pytest.fixture
def root(tree, tmp_path, monkeypatch):
    """A copy to damage, whose bicubic PSNR is the published one."""
    shutil.copytree(tree, tmp_path / "sets")
    errors = {}
    for s in (2, 4):
        views = [
            (Bicubic(Fraction(1, s))(Bicubic(s)(scene(i))) - scene(i)).square().mean((1, 2, 3))
            for i in range(5)
        ]
        errors[s] = (-10 * torch.stack(views).log10()).mean().item()
    known = replace(STEREO_SETS["Middlebury"], bicubic=errors)
    monkeypatch.setitem(STEREO_SETS, "Middlebury", known)
    return tmp_path / "sets"


def row(root, name, scale):
    rows = check_stereo(root, progress=False)
    (found,) = [r for r in rows if (r.name, r.scale) == (name, scale)]
    return found


# ---------------------------------------------------------------- reading


def test_test_pairs_come_from_the_files(tree):
    pairs = StereoFolderPairs(tree, "Middlebury", Bicubic(4))
    assert len(pairs) == 5
    name, lq, gt = pairs[3]
    assert name == "0003"
    assert torch.equal(gt, scene(3)) and torch.equal(lq, Bicubic(4)(scene(3)))
    noisy = StereoFolderPairs(tree, "Middlebury", Compose(Bicubic(4), GaussianNoise(30)))
    assert torch.equal(noisy[3][1], noisy[3][1]) and not torch.equal(noisy[3][1], lq)
    made = StereoFolderPairs(tree, "Middlebury", GaussianNoise(10))
    assert made.pairs[0].lr is None and made[0][1].shape == made[0][2].shape


def test_raw_pairs_are_downsampled_by_the_code(tree):
    name, lq, gt = StereoFolderPairs(tree, "Flickr1024_raw", Bicubic(4))[1]
    assert name == "0001" and torch.equal(lq, Bicubic(4)(gt)) and torch.equal(gt, scene(1))


@pytest.mark.parametrize("names", [("stereo_patches_x4",), ("Flickr1024_raw",)])
def test_patches_are_pure_aligned_and_in_place(tree, names):
    options = {"lq_size": (6, 20), "seed": 2, "any_count": True}
    patches = StereoFolderPatches(tree, names, Bicubic(4), length=5, **options)
    again = StereoFolderPatches(tree, names, Bicubic(4), length=9, **options)
    scenes = [scene(i) for i in range(3)]
    for index in (3, 0):
        lq, gt = patches[index]
        assert lq.shape == (2, 3, 6, 20) and gt.shape == (2, 3, 24, 80)
        assert all(torch.equal(a, b) for a, b in zip(again[index], (lq, gt), strict=True))
        inner = Bicubic(4)(gt)[..., 2:-2, 2:-2]
        assert (inner - lq[..., 2:-2, 2:-2]).abs().max() <= 1.5 / 255
    # One of the ways, of one scene, at one place, the same in both views.
    found = 0
    for pair in scenes:
        for way in range(AUGMENTATIONS):
            whole = augment_pair(pair, way)
            windows = whole[:, 0].unfold(1, 24, 4).unfold(2, 80, 4)  # Red: (2, y, x, 24, 80)
            same = (windows == gt[:, 0, None, None]).flatten(3).all(-1)  # (2, y, x)
            found += int(same.all(0).sum())
    assert found == 2  # The other order of green and blue has the same red.
    with pytest.raises(IndexError):
        patches[5]


def test_patches_are_those_of_the_files_unless_asked_otherwise(tmp_path):
    pair = scene(0, 120, 360)
    for kind, views in (("hr", pair), ("lr", Bicubic(4)(pair))):
        write_pair(tmp_path / "patches_x4/000001", kind, views)
    patches = StereoFolderPatches(tmp_path, ("stereo_patches_x4",), Bicubic(4), any_count=True)
    lq, gt = patches[0]
    assert lq.shape == (2, 3, 30, 90) and gt.shape == (2, 3, 120, 360)


def test_pairs_to_test_on_are_not_trained_on(root):
    """Test views are cut to a multiple of the scale, and are numbered as the others are."""
    other, leaked = scene(7), scene(1)[..., :46, :144]
    for name, pair in (("0000", other), ("0002", leaked)):
        write_pair(root / "test/Flickr1024/hr" / name, "hr", pair)
    match = r"1 test pairs.*0001_L.png is the test view .*hr/0002/hr0.png: take the pair out of Fl"
    with pytest.raises(ValueError, match=match):
        StereoFolderPatches(root, ("Flickr1024_raw",), Bicubic(4), (6, 20))
    (problem,) = row(root, "Flickr1024_raw", 1).problems
    assert "0001_L.png is the test view" in problem
    for side in "LR":
        (root / f"Flickr1024/0001_{side}.png").unlink()
    assert row(root, "Flickr1024_raw", 1).ok
    assert len(StereoFolderPatches(root, ("Flickr1024_raw",), Bicubic(4), (6, 20)).pairs) == 2


def test_wrong_requests(tree, tmp_path):
    with pytest.raises(ValueError, match="no stereo set 'Midlebury'.*did you mean 'Middlebury'"):
        find_stereo(tree, "Midlebury")
    with pytest.raises(ValueError, match="no low-resolution files at scale 3"):
        StereoFolderPairs(tree, "Middlebury", Bicubic(3))
    with pytest.raises(FileNotFoundError, match="KITTI2012 is not available: no images test/"):
        find_stereo(tree, "KITTI2012", 4)
    with pytest.raises(ValueError, match="has 3 pairs in .*, expected 49020"):
        find_stereo(tree, "stereo_patches_x4", 4)
    with pytest.raises(ValueError, match="too small for patches of 96 x 80"):
        _ = StereoFolderPatches(tree, ("Flickr1024_raw",), Bicubic(4), (20, 16))[0]
    with pytest.raises(ValueError, match="in a tuple"):
        StereoFolderPatches(tree, "Flickr1024_raw", Bicubic(4))


def test_pairing_is_by_name(root):
    (root / "test/Middlebury/lr_x4/0002/lr1.png").unlink()
    with pytest.raises(ValueError, match="without a partner.*0002"):
        find_stereo(root, "Middlebury", 4)
    assert "without a partner" in row(root, "Middlebury", 4).problems[0]
    assert row(root, "Middlebury", 2).ok


# ---------------------------------------------------------------- check


def test_a_good_folder_is_good(root, capsys):
    rows = {(r.name, r.scale): r for r in check_stereo(root, progress=False)}
    assert rows["Middlebury", 2].ok and rows["Middlebury", 4].ok
    assert rows["Middlebury", 4].found == rows["Middlebury", 4].expected == 5
    assert rows["Flickr1024_raw", 1].ok and rows["Flickr1024_raw", 1].found == 3
    assert rows["stereo_patches_x4", 4].problems == ("3 pairs, expected 49020",)
    assert rows["KITTI2015", 2].missing == "test/KITTI2015/hr/*/hr0"
    assert main(["data", "check", str(root)]) == 0
    out = capsys.readouterr().out
    assert "Middlebury             4      5        5  ok" in out and "Set5" in out


def test_middlebury_that_was_not_halved_is_seen(root, monkeypatch):
    published = STEREO_SETS["Middlebury"].bicubic
    lower = {s: value - 5 for s, value in published.items()}
    known = replace(STEREO_SETS["Middlebury"], bicubic=lower)
    monkeypatch.setitem(STEREO_SETS, "Middlebury", known)
    (problem,) = row(root, "Middlebury", 4).problems
    assert "other images; Middlebury must be halved first" in problem


def test_exchanged_views_are_seen(root):
    folder = root / "test/Middlebury"
    for kind, name in (("hr", "hr"), ("lr_x4", "lr")):
        views = [read_image(folder / kind / "0001" / f"{name}{view}.png") for view in (1, 0)]
        write_pair(folder / kind / "0001", name, views)
    (problem,) = row(root, "Middlebury", 4).problems
    assert "0001/hr0.png: the views look exchanged, disparity -" in problem


def test_raw_pairs_are_looked_at_as_well(root):
    folder = root / "Flickr1024"
    for side, view in zip("RL", scene(1), strict=True):
        write_image(folder / f"0001_{side}.png", view)
    (problem,) = row(root, "Flickr1024_raw", 1).problems
    assert "0001_L.png: the views look exchanged, disparity -" in problem


def test_nothing_is_said_of_views_that_show_nothing():
    flat = torch.full((3, 40, 60), 0.5)
    assert row_offset(flat, flat) == median_disparity(flat, flat) == 0
    assert doubts(flat, flat) == []


def test_rows_that_do_not_match_are_seen(root):
    folder = root / "test/Middlebury"
    right = scene(2)[1].roll(3, dims=1)
    write_image(folder / "hr/0002/hr1.png", right)
    write_image(folder / "lr_x2/0002/lr1.png", Bicubic(2)(right))
    (problem,) = row(root, "Middlebury", 2).problems
    assert "0002/hr0.png: the views look off by -3 rows" in problem


def test_another_downsampling_and_wrong_sizes_are_seen(root):
    folder = root / "test/Middlebury/lr_x4"
    write_pair(folder / "0000", "lr", scene(0)[..., ::4, ::4])
    write_pair(folder / "0001", "lr", Bicubic(4)(scene(1))[..., 1:])
    write_image(folder / "0003" / "lr1.png", Bicubic(4)(scene(3))[1, :, 1:])
    (folder / "0004" / "lr0.png").write_bytes(b"no image")
    problems = "\n".join(row(root, "Middlebury", 4).problems)
    assert "0000/lr0.png: " in problems and "grey levels from the bicubic" in problems
    assert "0001/hr0.png has (48, 144) pixels" in problems and "not 4 times" in problems
    assert "0003/lr0.png and lr1.png differ in size: (12, 36) and (11, 36)" in problems
    assert "0004/lr0.png: cannot be read" in problems
    assert len(problems.splitlines()) == 4


def test_two_files_for_one_view_are_an_error(root):
    source = root / "Flickr1024/0001_L.png"
    shutil.copy(source, source.with_suffix(".bmp"))
    with pytest.raises(ValueError, match="are the same view"):
        find_stereo(root, "Flickr1024_raw")


def test_estimates_on_a_photographed_pair():
    (pair,) = stereo_photos(("motorcycle",))
    left, right = as_tensor(pair.left), as_tensor(pair.right)
    low, high = np.nanpercentile(pair.disparity, [25, 75])
    assert low < median_disparity(left, right) < high
    assert -high < median_disparity(right, left) < -low
    assert row_offset(left, right) == 0
    assert row_offset(left[:, 2:], right[:, :-2]) == -2
