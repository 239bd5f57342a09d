"""Degradations: known answers, independent references, and the laws that all of them obey."""

import math
import pickle
from dataclasses import FrozenInstanceError
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from ir_peft.data.degradations import (
    JPEG,
    TASKS,
    TEST_TASKS,
    Bicubic,
    Compose,
    DownUp,
    GaussianBlur,
    GaussianNoise,
    Haze,
    LowLight,
    MotionBlur,
    OneOf,
    Rain,
    RandomOrder,
    bicubic_resize,
    task,
)
from ir_peft.metrics import psnr

EVERY = {
    **{f"train-{name}": d for name, d in TASKS.items()},
    **{f"test-{name}": d for name, d in TEST_TASKS.items()},
    "noise-range": GaussianNoise((0, 50), clip=False),
    "blur-range": GaussianBlur((0.2, 3.0)),
    "down-up-same-size": DownUp((2, 3, 4)),
    "one-of": OneOf(GaussianNoise((0, 50)), GaussianBlur((0.2, 3.0)), JPEG(30)),
    "random-order": RandomOrder(GaussianNoise(20), GaussianBlur(2.0), JPEG(30)),
    "down-up": Compose(Bicubic(3, quantize=None), Bicubic(Fraction(1, 3), quantize=None)),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def photo():
    """A photograph, (3, 120, 144) float32 on the 8-bit grid."""
    return torch.from_numpy(data.astronaut()[:120, 180:324].copy()).permute(2, 0, 1) / 255


# ---------------------------------------------------------------- laws that hold for every object


@pytest.mark.parametrize("name", EVERY)
def test_same_seed_same_result_and_batch_equals_images(name, photo):
    d = EVERY[name]
    batch = torch.stack([photo, photo.flip(-1), 1 - photo])
    got = d(batch, seeded(1))
    assert torch.equal(got, d(batch, seeded(1)))
    generator = seeded(1)
    assert torch.equal(got, torch.stack([d(image, generator) for image in batch]))
    if d.random:
        assert not torch.equal(got, d(batch, seeded(2)))
    else:
        assert torch.equal(got, d(batch))


@pytest.mark.parametrize("name", EVERY)
def test_size_dtype_range_and_input(name, photo):
    d = EVERY[name]
    before = photo.clone()
    for dtype in (torch.float16, torch.float32, torch.float64):
        y = d(photo.to(dtype), seeded())
        assert y.dtype == dtype
        assert y.shape == (3, *(math.ceil(n / d.scale) for n in photo.shape[1:]))
        assert y.isfinite().all()
        if name != "noise-range":
            assert y.min() >= 0 and y.max() <= 1
    assert torch.equal(photo, before), "the input is left alone"
    tiny = math.ceil(3 / d.scale)
    assert d(photo[:, :3, :3], seeded()).shape == (3, tiny, tiny), "smaller than any kernel"


@pytest.mark.parametrize("name", EVERY)
def test_bad_input_is_refused(name, photo):
    d = EVERY[name]
    with pytest.raises(ValueError, match="RGB"):
        d(photo[:1], seeded())
    with pytest.raises(ValueError, match="RGB"):
        d(photo.permute(1, 2, 0), seeded())
    with pytest.raises(ValueError, match="RGB"):
        d(photo[:, :0], seeded())
    with pytest.raises(TypeError, match="uint8"):
        d((photo * 255).byte(), seeded())
    if d.random:
        with pytest.raises(TypeError, match="Generator"):
            d(photo)


@pytest.mark.parametrize("name", TASKS)
def test_8_bit_tasks_leave_8_bits(name, photo):
    y = TASKS[name](photo, seeded()).double() * 255
    assert (y - y.round()).abs().max() < 1e-4


def test_objects_are_frozen_values():
    with pytest.raises(FrozenInstanceError):
        TASKS["denoise30"].sigma = 50
    assert GaussianNoise(30) == GaussianNoise(30) != GaussianNoise(25)
    hybrid = TASKS["lr4_noise30"]
    assert pickle.loads(pickle.dumps(hybrid)) == hybrid
    assert len({hybrid, Compose(*hybrid.steps)}) == 1


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("quantize", [None, "round", "truncate"])
def test_noise_statistics(quantize):
    """Mid-grey is not clipped: the residual has deviation sigma; truncation lowers it by 0.5."""
    x = torch.full((3, 256, 256), 128 / 255)
    residual = (GaussianNoise(25, quantize)(x, seeded()).double() - 128 / 255) * 255
    assert residual.std().item() == pytest.approx(25, abs=0.15)
    expected = -0.5 if quantize == "truncate" else 0.0
    assert residual.mean().item() == pytest.approx(expected, abs=0.2)


def test_truncated_noise_is_numpys_astype(photo):
    """The same numbers as clip(image + noise, 0, 255).astype(uint8) on the 8-bit image."""
    got = GaussianNoise(30, "truncate")(photo, seeded(3))
    noise = torch.randn(photo.shape, generator=seeded(3)).double().numpy()
    levels = (photo * 255).round().numpy().astype(np.float64)
    want = np.clip(levels + 30 * noise, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal((got * 255).round().byte().numpy(), want)


def test_no_noise_changes_nothing(photo):
    for quantize in (None, "round", "truncate"):
        got = GaussianNoise(0, quantize)(photo, seeded())
        torch.testing.assert_close(got, photo, rtol=0, atol=1e-7)


def test_noise_does_not_depend_on_dtype(photo):
    double = GaussianNoise(25)(photo.double(), seeded())
    torch.testing.assert_close(
        GaussianNoise(25)(photo, seeded()).double(), double, rtol=0, atol=1e-6
    )


def test_unclipped_noise_leaves_the_range():
    x = torch.zeros(3, 32, 32)
    assert GaussianNoise(25, clip=False)(x, seeded()).min() < 0
    assert GaussianNoise(25)(x, seeded()).min() == 0


# ---------------------------------------------------------------- JPEG


@pytest.mark.parametrize("quality", [10, 30, 90])
def test_jpeg_equals_opencv_in_the_right_channel_order(photo, quality):
    rgb = (photo * 255).round().byte().permute(1, 2, 0).numpy()
    _, code = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    want = cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    got = (JPEG(quality)(photo) * 255).round().int().permute(1, 2, 0).numpy()
    assert abs(got - want).max() <= 2, "two builds of libjpeg may round differently"
    assert (got == want).mean() > 0.99
    swapped = JPEG(quality, swap_channels=True)(photo)
    _, code = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])
    want = cv2.imdecode(code, cv2.IMREAD_COLOR).astype(int)
    got = (swapped * 255).round().int().permute(1, 2, 0).numpy()
    assert abs(got - want).max() <= 2


def test_jpeg_gets_better_with_quality(photo):
    scores = [psnr(JPEG(q)(photo), photo).item() for q in (10, 30, 60, 95)]
    assert scores == sorted(scores) and scores[0] > 20 and scores[-1] > 35


@pytest.mark.parametrize("quality", [0, 101, 30.0])
def test_jpeg_refuses_other_qualities(quality):
    with pytest.raises(ValueError, match="quality"):
        JPEG(quality)


# ---------------------------------------------------------------- blur


def test_gaussian_blur_of_a_point_is_the_kernel():
    x = torch.zeros(3, 41, 41, dtype=torch.float64)
    x[:, 20, 20] = 1
    y = GaussianBlur(2.0, kernel_size=21)(x)
    taps = np.exp(-(np.arange(-10, 11) ** 2) / 8)
    want = np.outer(taps, taps) / taps.sum() ** 2
    np.testing.assert_allclose(y[0, 10:31, 10:31].numpy(), want, rtol=0, atol=1e-12)
    assert y.sum().item() == pytest.approx(3, abs=1e-9)


def test_gaussian_blur_agrees_with_opencv(photo):
    image = photo.permute(1, 2, 0).numpy()
    want = cv2.GaussianBlur(image, (21, 21), 1.6, borderType=cv2.BORDER_REPLICATE)
    got = GaussianBlur(1.6)(photo).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_motion_kernels_are_paths():
    for seed in range(20):
        kernel = MotionBlur(length=12.0, turn=0).kernel(seeded(seed))
        assert kernel.shape == (21, 21) and kernel.min() >= 0
        assert kernel.sum().item() == pytest.approx(1, abs=1e-12)
        y, x = torch.meshgrid(*2 * [torch.arange(21.0).double() - 10], indexing="ij")
        assert abs((kernel * y).sum()) < 1e-6 and abs((kernel * x).sum()) < 1e-6, "centred"
        spread = torch.stack([y.flatten(), x.flatten()]) * kernel.flatten().sqrt()
        large, small = torch.linalg.svdvals(spread).square()
        assert large.item() == pytest.approx(12**2 / 12, rel=0.1), "variance of a line of 12 px"
        assert small < 0.3, "a straight line is thin"
    bent = MotionBlur(length=16.0, turn=3.0)
    assert not torch.equal(bent.kernel(seeded(0)), bent.kernel(seeded(1)))
    assert MotionBlur(length=0.0).kernel(seeded())[10, 10].item() == pytest.approx(1)


@pytest.mark.parametrize("blur", [GaussianBlur(3.0), MotionBlur()])
def test_blur_keeps_constant_images_up_to_the_border(blur):
    x = torch.full((3, 17, 40), 0.7)
    torch.testing.assert_close(blur(x, seeded()), x, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- weather and light


def test_rain_brightens_and_heavy_is_heavier(photo):
    images = torch.stack([photo] * 4)
    light, heavy = (Rain(level)(images, seeded()) for level in ("light", "heavy"))
    for rainy in (light, heavy):
        assert (rainy - images).min() > -1e-6
    assert 24 < psnr(light, images).mean() < 34
    assert 10 < psnr(heavy, images).mean() < 19


def test_rain_falls_evenly_up_to_the_border():
    streaks = Rain("heavy")(torch.zeros(24, 3, 64, 64), seeded())
    border = torch.cat([streaks[..., :4, :], streaks[..., -4:, :]]).mean().item()
    assert border == pytest.approx(streaks.mean().item(), rel=0.2)


def test_rain_streaks_are_upright():
    """Along a streak neighbours are alike: vertical differences are smaller than horizontal."""
    streaks = Rain("light")(torch.zeros(8, 3, 96, 96), seeded())
    assert streaks.diff(dim=-2).abs().mean() < 0.7 * streaks.diff(dim=-1).abs().mean()


def test_haze_is_the_scattering_model():
    """Black and white pixels give A (1 - t) and t + A (1 - t): their difference is t."""
    haze = Haze(beta=1.0, airlight=0.8)
    black = haze(torch.zeros(3, 40, 50), seeded())
    t = haze(torch.ones(3, 40, 50), seeded()) - black
    torch.testing.assert_close(black, 0.8 * (1 - t), rtol=0, atol=1e-6)
    assert math.exp(-1) <= t.min() and t.max() <= math.exp(-0.2) + 1e-6
    assert t[:, :5].mean() < t[:, -5:].mean(), "farther at the top"
    assert torch.equal(Haze(beta=0.0)(black, seeded()), black)


def test_low_light_formula(photo):
    quiet = LowLight(gamma=2.0, alpha=0.9, beta=0.5, shot=0.0, read=0.0)
    torch.testing.assert_close(quiet(photo, seeded()), 0.5 * (0.9 * photo) ** 2)
    x = torch.full((3, 128, 128), 0.8)
    noisy = LowLight(gamma=1.0, alpha=1.0, beta=0.5, shot=0.1, read=0.02)(x, seeded())
    assert noisy.std().item() == pytest.approx(math.sqrt(0.1**2 * 0.4 + 0.02**2), rel=0.02)


# ---------------------------------------------------------------- Compose and the tasks


def test_compose_runs_left_to_right(photo):
    both = Compose(GaussianBlur(1.0), Bicubic(2), JPEG(50))
    want = JPEG(50)(Bicubic(2)(GaussianBlur(1.0)(photo)))
    assert torch.equal(both(photo), want)
    assert both.scale == 2 and not both.random and len(both.steps) == 3
    assert Compose(Bicubic(2), Bicubic(2)).scale == 4
    assert EVERY["down-up"].scale == 1
    with pytest.raises(TypeError, match="degradations"):
        Compose()
    with pytest.raises(TypeError, match="degradations"):
        Compose(Bicubic(2), "jpeg")


@pytest.mark.parametrize("split", ["train", "test"])
def test_lr4_noise30_as_specified(photo, split):
    """MATLAB bicubic x4 saved in 8 bits, N(0, 30^2) on the 0-255 scale, clip, truncate, / 255."""
    levels = (photo * 255).round().byte().numpy()
    lr = bicubic_resize(torch.from_numpy(levels), 0.25).numpy().astype(np.float64)
    noise = torch.randn(lr.shape, generator=seeded(5)).double().numpy()
    want = np.clip(lr + 30 * noise, 0, 255).astype(np.uint8)
    got = task("lr4_noise30", split)(photo, seeded(5))
    assert got.shape == (3, 30, 36)
    np.testing.assert_array_equal((got * 255).round().byte().numpy(), want)
    torch.testing.assert_close(got, torch.from_numpy(want) / 255, rtol=0, atol=1e-7)


def test_lr4_jpeg30_as_specified(photo):
    levels = (photo * 255).round().byte().numpy()
    lr = bicubic_resize(torch.from_numpy(levels), 0.25).permute(1, 2, 0).numpy()
    _, code = cv2.imencode(".jpg", lr[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 30])
    want = cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1].astype(int)
    got = task("lr4_jpeg30")(photo) * 255
    assert abs(got.round().int().permute(1, 2, 0).numpy() - want).max() <= 2


def test_training_noise_is_truncated_and_test_noise_is_not(photo):
    for sigma in (15, 25, 30, 50):
        assert task(f"denoise{sigma}") == GaussianNoise(sigma, quantize="truncate")
        assert task(f"denoise{sigma}", "test") == GaussianNoise(sigma)
    assert TASKS.keys() == TEST_TASKS.keys()
    assert {n for n in TASKS if TASKS[n] != TEST_TASKS[n]} == {
        "denoise15",
        "denoise25",
        "denoise30",
        "denoise50",
    }


def test_task_scales():
    scales = {name: d.scale for name, d in TASKS.items() if d.scale != 1}
    assert scales == {"lr4_noise30": 4, "lr4_jpeg30": 4, "sr2": 2, "sr3": 3, "sr4": 4}


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="did you mean 'lr4_noise30'"):
        task("lr4_noise3")
    with pytest.raises(ValueError, match="split"):
        task("sr2", "valid")
    with pytest.raises(ValueError, match="rain level"):
        Rain("medium")
    with pytest.raises(ValueError, match="quantize"):
        GaussianNoise(10, quantize="floor")
    with pytest.raises(ValueError, match="sigma"):
        GaussianNoise((20, 10))
    with pytest.raises(ValueError, match="clip=True"):
        GaussianNoise(10, quantize="round", clip=False)
    with pytest.raises(ValueError, match="scale must be"):
        Bicubic(0)
    with pytest.raises(ValueError, match="quantize"):
        Bicubic(4, quantize="truncate")
    with pytest.raises(ValueError, match="kernel_size"):
        GaussianBlur(kernel_size=20)
    with pytest.raises(ValueError, match="cannot hold"):
        MotionBlur(length=30.0)


# ---------------------------------------------------------------- combinations


def test_down_up_is_a_saved_small_image_enlarged(photo):
    x = photo[:, :115, :143]
    got = DownUp((4,))(x)
    expected = bicubic_resize(Bicubic(4)(x), 4)[:, :115, :143].clamp(0, 1)
    assert torch.equal(got, expected)
    assert {d.scale for d in (DownUp((2, 3)), OneOf(Bicubic(2), Bicubic(2)))} == {1, 2}


def test_one_of_draws_each_choice_as_often():
    """Black, grey and white images tell which choice was taken."""

    class Paint(GaussianNoise):
        def _apply(self, x, generator):
            return torch.full_like(x, self.sigma)

    d = OneOf(*(Paint(level) for level in (0.0, 0.5, 1.0)))
    levels = d(torch.zeros(600, 3, 1, 1), seeded())[:, 0, 0, 0]
    counts = [(levels == level).sum().item() for level in (0.0, 0.5, 1.0)]
    assert sum(counts) == 600 and min(counts) > 160


def test_random_order_applies_all_in_every_order(photo):
    first, second = GaussianBlur(2.0), JPEG(10)
    orders = [second(first(photo)), first(second(photo))]
    seen = set()
    for seed in range(12):
        y = RandomOrder(first, second)(photo, seeded(seed))
        matches = [torch.equal(y, order) for order in orders]
        assert sum(matches) == 1
        seen.add(matches.index(True))
    assert seen == {0, 1}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: OneOf(), TypeError, "one or more"),
        (lambda: OneOf(JPEG(30), 3), TypeError, "3"),
        (lambda: OneOf(Bicubic(2), Bicubic(4)), ValueError, "one scale"),
        (lambda: RandomOrder(Bicubic(2), Bicubic(2)), ValueError, "keep the size"),
        (lambda: DownUp((1,)), ValueError, "above 1"),
        (lambda: DownUp(4), ValueError, "tuple"),
    ],
)
def test_bad_combinations(make, error, message):
    with pytest.raises(error, match=message):
        make()
