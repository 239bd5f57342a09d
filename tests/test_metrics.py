"""PSNR and SSIM against known answers and against scikit-image and torchmetrics."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from ir_peft.metrics import psnr, rgb_to_y, ssim


@pytest.fixture(scope="module")
def pair():
    """Two images of 48x61 and a noisy copy of each that leaves [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, 12, 16, generator=generator)
    clean = torch.nn.functional.interpolate(clean, size=(48, 61), mode="bilinear")
    return clean + 0.05 * torch.randn(clean.shape, generator=generator), clean


def to_uint8(image):
    """(3, H, W) in [0, 1] -> uint8 (H, W, 3), as a saved file."""
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def test_one_grey_level_is_48_13_db():
    y = torch.full((2, 3, 9, 7), 100 / 255)
    sign = torch.ones(y.shape)
    sign[:, 1] = -1
    got = psnr(y + sign / 255, y)
    assert got.dtype == torch.float64 and got.shape == (2,)
    torch.testing.assert_close(
        got, torch.full((2,), 48.1308036086791, dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_equal_images():
    y = torch.rand(3, 16, 16)
    assert psnr(y, y).tolist() == [float("inf")]
    for window in ("gaussian11", "uniform7"):
        assert ssim(y, y, window=window).item() == pytest.approx(1, abs=1e-12)


def test_y_of_black_white_and_primaries():
    colours = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).double() * 255
    got = rgb_to_y(colours.view(5, 3, 1, 1)).flatten()
    want = torch.tensor([16, 235, 81.481, 144.553, 40.966], dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_y_psnr_of_one_channel_step():
    """A step of one level in green alone moves Y by 128.553 / 255."""
    y = torch.full((3, 8, 8), 0.4)
    x = y.clone()
    x[1] += 1 / 255
    want = 20 * np.log10(255 / (128.553 / 255))
    assert psnr(x, y, channel="y").item() == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("border", [0, 4])
def test_rgb_agrees_with_skimage(pair, border):
    x, y = pair
    got = psnr(x, y, crop_border=border), ssim(x, y, crop_border=border)
    got7 = ssim(x, y, crop_border=border, window="uniform7")
    for i in range(2):
        a, b = to_uint8(x[i]), to_uint8(y[i])
        if border:
            a, b = a[border:-border, border:-border], b[border:-border, border:-border]
        assert got[0][i].item() == pytest.approx(peak_signal_noise_ratio(b, a), abs=1e-4)
        kwargs = {"channel_axis": 2, "data_range": 255}
        paper = structural_similarity(
            b, a, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, **kwargs
        )
        assert got[1][i].item() == pytest.approx(paper, abs=1e-6)
        assert got7[i].item() == pytest.approx(structural_similarity(b, a, **kwargs), abs=1e-6)


def test_y_agrees_with_skimage_and_torchmetrics(pair):
    x, y = pair
    luma = [rgb_to_y((z.double().clamp(0, 1) * 255).round()) for z in pair]
    for i in range(2):
        a, b = (z[i, 0].numpy() for z in luma)
        want = peak_signal_noise_ratio(b, a, data_range=255)
        assert psnr(x, y, channel="y")[i].item() == pytest.approx(want, abs=1e-4)
    # torchmetrics averages over padded borders too: its map is cropped to the valid region here.
    _, similarity = structural_similarity_index_measure(
        *luma, data_range=255.0, sigma=1.5, reduction="none", return_full_image=True
    )
    want = similarity[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    torch.testing.assert_close(ssim(x, y, channel="y"), want, rtol=0, atol=1e-6)


def test_one_image_equals_its_place_in_a_batch(pair):
    x, y = pair
    assert psnr(x, y)[1] == psnr(x[1], y[1])[0]
    torch.testing.assert_close(ssim(x, y)[1:], ssim(x[1], y[1]), rtol=0, atol=1e-12)


def test_rounding_is_an_argument():
    """0.4 grey levels vanish in an 8-bit file and count without rounding."""
    y = torch.full((3, 12, 12), 100 / 255, dtype=torch.float64)
    x = y + 0.4 / 255
    assert psnr(x, y).item() == float("inf")
    want = 20 * np.log10(255 / 0.4)
    assert psnr(x, y, round_to_uint8=False).item() == pytest.approx(want, abs=1e-6)
    assert psnr(x + 3, torch.ones_like(y)).item() == float("inf"), "clamped before rounding"
    assert psnr(x + 3, y, round_to_uint8=False).item() < 0, "unclamped without rounding"


def test_border_is_cropped_on_all_sides():
    y = torch.full((3, 20, 20), 0.5)
    x = y.clone()
    x[:, :2], x[:, -2:], x[:, :, :2], x[:, :, -2:] = 1, 1, 1, 1
    assert psnr(x, y, crop_border=2).item() == float("inf")
    assert psnr(x, y, crop_border=1).item() < 30


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_input_is_refused(metric):
    y = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="differ in shape"):
        metric(y, y[..., 1:])
    with pytest.raises(ValueError, match="expected"):
        metric(y[:, :1], y[:, :1])
    with pytest.raises(TypeError, match="uint8"):
        metric((y * 255).byte(), (y * 255).byte())
    with pytest.raises(ValueError, match="NaN"):
        metric(y * float("nan"), y)
    with pytest.raises(ValueError, match="unknown channel"):
        metric(y, y, channel="Y")
    with pytest.raises(ValueError, match="leaves nothing"):
        metric(y, y, crop_border=8)
    with pytest.raises(ValueError, match="0 or more"):
        metric(y, y, crop_border=-1)


def test_ssim_refuses_small_images_and_unknown_windows():
    y = torch.rand(3, 10, 30)
    with pytest.raises(ValueError, match="smaller than the 11x11"):
        ssim(y, y)
    assert ssim(y, y, window="uniform7").item() == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match="smaller than the 7x7"):
        ssim(y, y, window="uniform7", crop_border=2)
    with pytest.raises(ValueError, match="unknown window"):
        ssim(y, y, window="gaussian")
