"""Dead leaves: determinism, the geometry of the leaves, anti-aliasing, statistics and speed."""

import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ir_peft.data.deadleaves import _drop, _label, _ladder, dead_leaves, dead_leaves_stereo


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_same_seed_same_image():
    image = dead_leaves(64, seeded(3))
    assert image.shape == (3, 64, 64) and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1
    assert torch.equal(image, dead_leaves(64, seeded(3)))
    assert not torch.equal(image, dead_leaves(64, seeded(4)))
    generator = seeded(3)
    first, second = dead_leaves(64, generator), dead_leaves(64, generator)
    assert torch.equal(first, image) and not torch.equal(second, image)


@pytest.mark.parametrize("size", [1, 17, (24, 50), (90, 31)])
def test_any_size(size):
    H, W = (size, size) if isinstance(size, int) else size
    image = dead_leaves(size, seeded())
    assert image.shape == (3, H, W) and image.isfinite().all()


def test_global_random_state_is_not_touched():
    torch.manual_seed(0)
    np.random.seed(0)
    want = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    dead_leaves(32, seeded())
    assert (torch.rand(1), np.random.rand()) == want


def test_front_disc_wins_everywhere():
    """Stamps and boxes together equal painting the discs one by one, the hindmost first."""
    shape, ladder = (96, 120), _ladder(2.0, 90.0)
    centres, steps = _drop(shape, ladder, 3.0, 3.0, seeded(1))
    radius = np.sqrt(ladder[:-1] * ladder[1:])
    y, x = np.mgrid[: shape[0], : shape[1]]
    want = np.zeros(shape, dtype=np.int32)
    for i, (centre, step) in enumerate(zip(centres, steps, strict=True)):
        r = radius[step]
        # Stamped discs sit on the canvas grid, larger ones where they fall.
        cy, cx = np.rint(centre) if r <= 20 else centre
        want[(y - cy) ** 2 + (x - cx) ** 2 <= r**2] = i + 1
    got = _label(shape, ladder, centres, steps)
    assert (radius[steps] > 20).any() and (radius[steps] <= 20).any()
    np.testing.assert_array_equal(got, want)


def test_radii_are_scale_invariant_and_coverage_is_as_asked():
    """Every octave of radii covers the same area, and exp(-coverage) of the canvas is bare."""
    shape, ladder = (400, 400), _ladder(2.0, 128.0)
    radius = np.sqrt(ladder[:-1] * ladder[1:])
    area, bare = np.zeros(6), []
    for seed in range(12):
        centres, steps = _drop(shape, ladder, 3.0, 2.0, seeded(seed))
        inside = ((centres >= 0) & (centres < shape)).all(axis=1)
        r = radius[steps[inside]]
        octave = np.floor(np.log2(r / 2)).astype(int)
        area += np.bincount(octave, weights=np.pi * r**2, minlength=6)
        bare.append((_label(shape, ladder, centres, steps) == 0).mean())
    area /= 12 * 400 * 400
    np.testing.assert_allclose(area, 2.0 / 6, rtol=0.25)
    assert area.sum() == pytest.approx(2.0, rel=0.08)
    assert np.mean(bare) == pytest.approx(math.exp(-2), abs=0.03)


def test_radii_stay_between_the_cut_offs():
    """Without small discs an image of flat leaves has few edges; with them it has many."""
    edges = [
        (dead_leaves(96, seeded(1), radii=radii, texture=0.0).diff(dim=-1).abs() > 0.01)
        .float()
        .mean()
        .item()
        for radii in ((1.0, 4.0), (4.0, 16.0), (16.0, 64.0))
    ]
    assert edges[0] > 2 * edges[1] > 4 * edges[2] > 0


def test_edges_are_anti_aliased():
    """Averages of oversample^2 samples: a finer canvas leaves fewer pixels of pure leaf colour."""
    palette = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    options = {"radii": (6.0, 40.0), "texture": 0.0, "palette": palette}
    mixed = []
    for oversample in (1, 2, 4):
        image = dead_leaves(128, seeded(5), oversample=oversample, **options).double()
        levels = image * oversample**2
        assert (levels - levels.round()).abs().max() < 1e-5
        mixed.append(((image > 0) & (image < 1)).double().mean().item())
    assert mixed[0] == 0
    assert 0.03 < mixed[1] < mixed[2] < 0.4


def test_palette_and_texture():
    palette = torch.tensor([[0.2, 0.4, 0.6], [0.7, 0.5, 0.1]])
    flat = dead_leaves(48, seeded(), texture=0.0, palette=palette, oversample=1)
    colours = flat.reshape(3, -1).T.unique(dim=0)
    torch.testing.assert_close(colours, palette, rtol=0, atol=1e-6)
    textured = dead_leaves(48, seeded(), palette=palette, oversample=1)
    assert len(textured.reshape(3, -1).T.unique(dim=0)) > 500


def test_statistics_are_those_of_images():
    """Power falls as about 1/f^2, and differences are rare and large rather than Gaussian."""
    generator = seeded()
    grey = torch.stack([dead_leaves(128, generator).mean(dim=0) for _ in range(16)]).double()
    difference = grey.diff(dim=-1)
    kurtosis = (difference**4).mean() / (difference**2).mean() ** 2
    assert kurtosis > 6
    window = torch.hann_window(128, dtype=torch.float64)
    centred = (grey - grey.mean(dim=(1, 2), keepdim=True)) * window * window[:, None]
    power = torch.fft.rfft2(centred).abs().square().mean(dim=0)
    f = torch.hypot(torch.fft.fftfreq(128)[:, None], torch.fft.rfftfreq(128)[None, :])
    edges = torch.logspace(math.log10(0.03), math.log10(0.4), 9)
    rings = [(f >= low) & (f < high) for low, high in zip(edges[:-1], edges[1:], strict=True)]
    x = [f[ring].mean().log().item() for ring in rings]
    y = [power[ring].mean().log().item() for ring in rings]
    assert -2.6 < np.polyfit(x, y, 1)[0] < -1.6


def test_mean_level_and_contrast_are_moderate():
    generator = seeded()
    images = torch.stack([dead_leaves(96, generator) for _ in range(16)])
    assert images.mean().item() == pytest.approx(0.5, abs=0.08)
    assert 0.15 < images.std().item() < 0.4
    red, green = images[:, 0].flatten(), images[:, 1].flatten()
    assert torch.corrcoef(torch.stack([red, green]))[0, 1] > 0.8


def test_twenty_images_a_second_on_one_core():
    """Processor time of the best of three rounds, so that other work does not count."""
    generator = seeded()
    rounds = []
    for _ in range(3):
        before = time.process_time()
        for _ in range(8):
            dead_leaves(256, generator)
        rounds.append(8 / (time.process_time() - before))
    assert max(rounds) >= 20


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": 8, "coverage": 0},
        {"size": 8, "oversample": 0},
        {"size": 8, "texture": -1},
        {"size": 8, "exponent": 1.0},
        {"size": 8, "radii": (4.0, 2.0)},
        {"size": 8, "radii": (0.0, 2.0)},
        {"size": 8, "palette": torch.rand(3)},
        {"size": 8, "palette": torch.full((2, 3), 255.0)},
    ],
)
def test_impossible_pictures_are_refused(options):
    with pytest.raises(ValueError, match=r"impossible picture|radii must|palette must"):
        dead_leaves(generator=seeded(), **options)


# ---------------------------------------------------------------- stereo


def warped(scene):
    """The left view's disparity pushed forward into the right view, nearest last; -1 is nothing."""
    H, W = scene.disparity.shape
    front = np.full((H, W), -1.0)
    owner = np.full((H, W), -1)
    disparity = scene.disparity.numpy()
    for y, x in np.ndindex(H, W):
        there = x - int(disparity[y, x])
        if there >= 0 and disparity[y, x] >= front[y, there]:
            front[y, there], owner[y, there] = disparity[y, x], x
    return front, owner


@pytest.mark.parametrize("seed", range(4))
def test_visible_points_look_the_same_in_both_views(seed):
    scene = dead_leaves_stereo((40, 72), seeded(seed), max_disparity=12, oversample=1)
    assert scene.left.shape == scene.right.shape == (3, 40, 72)
    assert scene.disparity.min() >= 0 and scene.disparity.max() <= 12
    there = torch.arange(72) - scene.disparity.long()
    seen = scene.right.gather(2, there.clamp(min=0).expand(3, -1, -1))
    assert torch.equal(seen[:, ~scene.occluded], scene.left[:, ~scene.occluded])
    assert 0.05 < scene.occluded.float().mean() < 0.6


@pytest.mark.parametrize("seed", range(4))
def test_occlusion_is_what_forward_warping_finds(seed):
    """A pixel that another of the left view covers after the shift, or that leaves, is occluded.

    What covers it may also lie outside the left view: then the two colours differ.
    """
    scene = dead_leaves_stereo((40, 72), seeded(seed), max_disparity=12, oversample=1)
    _, owner = warped(scene)
    beyond = 0
    for y, x in np.ndindex(40, 72):
        there = x - int(scene.disparity[y, x])
        hidden = bool(scene.occluded[y, x])
        if there < 0:
            assert hidden
        elif owner[y, there] != x:
            assert hidden, (y, x)
        elif hidden:
            assert not torch.equal(scene.left[:, y, x], scene.right[:, y, there])
            beyond += 1
    assert beyond < 0.2 * 40 * 72


def test_nearer_discs_are_in_front_and_move_further():
    scene = dead_leaves_stereo(
        (64, 160), seeded(3), max_disparity=20, radii=(14.0, 16.0), coverage=0.4, texture=0.0
    )
    shifts = scene.disparity.unique()
    assert len(shifts) > 3 and shifts[0] == 0
    order = []
    for d in shifts[1:]:
        area = scene.disparity == d
        y, x = area.nonzero()[len(area.nonzero()) // 2].tolist()
        if not scene.occluded[y, x] and d == d.round():
            colour = scene.left[:, y, x]
            torch.testing.assert_close(scene.right[:, y, x - int(d)], colour)
            order.append(d.item())
    assert order == sorted(order) and order


def test_oversampled_pairs_agree_to_a_fraction_of_a_pixel():
    scene = dead_leaves_stereo((48, 96), seeded(1), max_disparity=9.5, oversample=2)
    assert ((2 * scene.disparity) % 1 == 0).all() and ((scene.disparity % 1) > 0).any()
    d = scene.disparity[None]
    flat = F.max_pool2d(d, 3, 1, 1) == -F.max_pool2d(-d, 3, 1, 1)  # Inside one disc.
    inside = flat[0] & ~scene.occluded & (scene.disparity % 1 == 0)
    there = torch.arange(96) - scene.disparity.long()
    seen = scene.right.gather(2, there.clamp(min=0).expand(3, -1, -1))
    torch.testing.assert_close(seen[:, inside], scene.left[:, inside], rtol=0, atol=1e-6)
    assert inside.sum() > 200
    assert torch.equal(scene.left, dead_leaves_stereo((48, 96), seeded(1), max_disparity=9.5).left)


def test_without_disparity_both_views_are_the_same():
    scene = dead_leaves_stereo(32, seeded(), max_disparity=0)
    assert torch.equal(scene.left, scene.right) and not scene.occluded.any()
    with pytest.raises(ValueError, match="max_disparity -1"):
        dead_leaves_stereo(32, seeded(), max_disparity=-1)
    with pytest.raises(ValueError, match="impossible picture"):
        dead_leaves_stereo(32, seeded(), coverage=0)
