"""Made-up stereo pairs: disparity, occlusion, augmentation, purity, and pairs to test on."""

import numpy as np
import pytest
import torch

from ir_peft.data.degradations import Bicubic, Compose, GaussianNoise
from ir_peft.data.photos import Photo, train_photos
from ir_peft.data.stereo import (
    AUGMENTATIONS,
    StereoPatches,
    augment_pair,
    layered_pair,
    make_stereo_pairs,
)
from ir_peft.data.stereo_photos import StereoPhoto, stereo_photos


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(height=120, width=200, seed=0):
    area = noise(height, width, seed)
    return Photo("noise", area, (area,), "none", "", "", "")


# ---------------------------------------------------------------- layered pairs


@pytest.mark.parametrize("seed", range(4))
def test_visible_points_look_the_same_in_both_views(seed):
    scene = layered_pair((60, 120), seeded(seed), [noise(90, 200)], max_disparity=15)
    assert scene.left.shape == (3, 60, 120) and 0 <= scene.left.min() <= scene.left.max() <= 1
    assert scene.disparity.min() >= 0 and scene.disparity.max() <= 15
    there = torch.arange(120) - scene.disparity.long()
    seen = scene.right.gather(2, there.clamp(min=0).expand(3, -1, -1))
    assert torch.equal(seen[:, ~scene.occluded], scene.left[:, ~scene.occluded])
    assert scene.occluded[there < 0].all()
    assert 0.02 < scene.occluded.float().mean() < 0.5


@pytest.mark.parametrize("seed", range(4))
def test_a_pixel_that_a_nearer_one_covers_is_occluded(seed):
    """Forward warping of the disparity: the nearest pixel that arrives wins."""
    scene = layered_pair((40, 90), seeded(seed), [noise(60, 160)], max_disparity=12)
    there = torch.arange(90) - scene.disparity.long()
    front = torch.full((40, 90), -1.0)
    inside = there >= 0
    front.scatter_reduce_(1, there.clamp(min=0), scene.disparity.where(inside, -1.0), "amax")
    covered = inside & (front.gather(1, there.clamp(min=0)) > scene.disparity)
    assert covered.any()
    assert scene.occluded[covered].all()


def test_impossible_layers_are_refused():
    for options in ({"max_disparity": 60}, {"layers": (3, 2)}, {"max_disparity": -1}):
        with pytest.raises(ValueError, match="impossible pair|need areas of 60 x"):
            layered_pair((60, 120), seeded(), [noise(60, 150)], **options)


# ---------------------------------------------------------------- augmentation


def test_a_horizontal_flip_exchanges_the_views():
    scene = layered_pair((40, 90), seeded(), [noise(60, 160)], max_disparity=12)
    pair = torch.stack([scene.left, scene.right])
    flipped = augment_pair(pair, 12)
    assert torch.equal(flipped[0], pair[1].flip(-1))
    # What was at x in the right view is at W - 1 - x in the left one: d keeps its sign.
    y, x = (~scene.occluded & (scene.disparity > 0)).nonzero()[100].tolist()
    d = int(scene.disparity[y, x])
    new_left = 89 - (x - d)
    assert torch.equal(flipped[0, :, y, new_left], pair[1, :, y, x - d])
    assert torch.equal(flipped[1, :, y, new_left - d], pair[0, :, y, x])


def test_the_24_ways_differ_and_treat_both_views_alike():
    pair = torch.rand(2, 3, 4, 6)
    seen = {tuple(augment_pair(pair, way).flatten().tolist()) for way in range(AUGMENTATIONS)}
    assert len(seen) == AUGMENTATIONS == 24
    assert torch.equal(augment_pair(pair, 0), pair)
    twins = pair[:1].expand(2, -1, -1, -1)
    for way in range(AUGMENTATIONS):
        left, right = augment_pair(twins, way)
        assert torch.equal(left, right)


# ---------------------------------------------------------------- patches


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_items_are_pure_and_aligned(share):
    options = {"lq_size": (12, 20), "deadleaves_share": share, "max_disparity": 8, "seed": 3}
    patches = StereoPatches([photo()], Bicubic(2), length=6, **options)
    again = StereoPatches([photo()], Bicubic(2), length=9, **options)
    for index in (4, 0, 5):
        lq, gt = patches[index]
        assert lq.shape == (2, 3, 12, 20) and gt.shape == (2, 3, 24, 40)
        assert all(torch.equal(a, b) for a, b in zip(again[index], (lq, gt), strict=True))
        # Inside, the low-quality patch is the high-quality one downsampled.
        inner = Bicubic(2)(gt)[..., 3:-3, 3:-3]
        assert (inner - lq[..., 3:-3, 3:-3]).abs().max() <= 1.5 / 255
    assert not torch.equal(patches[0][1], patches[1][1])
    with pytest.raises(IndexError):
        patches[6]


def test_scene_is_the_items_own():
    patches = StereoPatches([photo()], Bicubic(1), (12, 20), length=3, max_disparity=8)
    scene, (_, gt) = patches.scene(1), patches[1]
    pair = (torch.stack([scene.left, scene.right]) * 255).round() / 255
    ways = [augment_pair(pair[..., 2:-2, 2:-2], way) for way in range(AUGMENTATIONS)]
    assert sum(torch.equal(gt, way) for way in ways) == 1
    # Before augmentation: the views differ by a shift to the left.
    there = torch.arange(24) - scene.disparity.long()
    assert ((there >= 0) | scene.occluded).all()


def test_noise_differs_between_the_views():
    degradation = Compose(Bicubic(2), GaussianNoise(30))
    patches = StereoPatches([photo()], degradation, (12, 20), length=2, max_disparity=0)
    lq, gt = patches[0]
    assert torch.equal(gt[0], gt[1]) and not torch.equal(lq[0], lq[1])


def test_the_papers_crop_finds_room_in_the_training_photographs():
    patches = StereoPatches(train_photos(), Bicubic(4), (32, 80), length=2, deadleaves_share=0)
    lq, gt = patches[1]
    assert lq.shape == (2, 3, 32, 80) and gt.shape == (2, 3, 128, 320)
    assert len(patches.areas) >= 10


def test_wrong_arguments():
    with pytest.raises(ValueError, match="none of the 1 areas of 1 photographs has room"):
        StereoPatches([photo()], Bicubic(4), (32, 80))
    StereoPatches([], Bicubic(4), (32, 80), deadleaves_share=1.0)
    for options in ({"lq_size": (0, 8)}, {"length": 0}, {"seed": -1}, {"deadleaves_share": 1.1}):
        with pytest.raises(ValueError, match="must be positive"):
            StereoPatches([photo()], Bicubic(2), **options)


# ---------------------------------------------------------------- test pairs


def test_test_pairs_are_degraded_view_by_view():
    views = [noise(31, 50, seed) for seed in (1, 2)]
    pair = StereoPhoto("noise", *views, None, "")
    ((name, lq, gt),) = make_stereo_pairs([pair], Bicubic(4))
    assert (name, lq.shape, gt.shape) == ("noise", (2, 3, 7, 12), (2, 3, 28, 48))
    assert torch.equal(lq[1], Bicubic(4)(gt[1]))
    assert torch.equal(gt[1], torch.from_numpy(views[1][:28, :48]).permute(2, 0, 1) / 255)
    ((_, _, cut),) = make_stereo_pairs([pair], Bicubic(4), crop=(17, 30))
    assert torch.equal(cut[0], torch.from_numpy(views[0][7:23, 10:38]).permute(2, 0, 1) / 255)
    noisy = Compose(Bicubic(4), GaussianNoise(10))
    ((_, first, _),), ((_, second, _),) = (make_stereo_pairs([pair], noisy) for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="noise is 31 x 50 pixels: not for crop"):
        make_stereo_pairs([pair], Bicubic(4), crop=(32, 30))


def test_motorcycle_at_the_papers_scale():
    ((name, lq, gt),) = make_stereo_pairs(stereo_photos(("motorcycle",)), Bicubic(4))
    assert (name, lq.shape, gt.shape) == ("motorcycle", (2, 3, 125, 185), (2, 3, 500, 740))
