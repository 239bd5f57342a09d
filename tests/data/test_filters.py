"""Bicubic resizing against known MATLAB values and against a plain loop written from its rules."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from ir_peft.data.filters import bicubic_resize, bicubic_weights


def keys(t):
    """Keys' cubic convolution kernel with a = -0.5, as a scalar."""
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def imresize_rows(image, scale):
    """Resize the rows of (H, W) as MATLAB documents it, one pixel at a time, indices from 1."""
    height, width = image.shape
    out = np.zeros((math.ceil(scale * height), width))
    stretch = min(scale, 1)
    for i in range(1, len(out) + 1):
        centre = i / scale + 0.5 * (1 - 1 / scale)
        reach = range(math.floor(centre - 2 / stretch) - 1, math.ceil(centre + 2 / stretch) + 2)
        weights = {j: stretch * keys(stretch * (centre - j)) for j in reach}
        total = sum(weights.values())
        for j, weight in weights.items():
            k = j
            while not 1 <= k <= height:  # mirror, the last pixel repeated
                k = 1 - k if k < 1 else 2 * height + 1 - k
            out[i - 1] += weight / total * image[k - 1]
    return out


def imresize(image, scale):
    """MATLAB's imresize of (H, W); uint8 images are rounded after each pass."""
    if image.dtype != np.uint8:
        return imresize_rows(imresize_rows(image, scale).T, scale).T
    rows = np.clip(np.floor(imresize_rows(image.astype(float), scale) + 0.5), 0, 255)
    return np.clip(np.floor(imresize_rows(rows.T, scale).T + 0.5), 0, 255).astype(np.uint8)


def test_published_kernel_values():
    """An enlargement by 2 and a reduction by 2 away from the border, and the kernel's zeros."""
    quarter = torch.tensor([-0.0234375, 0.2265625, 0.8671875, -0.0703125], dtype=torch.float64)
    torch.testing.assert_close(bicubic_weights(8, 2)[8, 2:6], quarter, rtol=0, atol=1e-15)
    half = torch.tensor([-0.01171875, -0.03515625, 0.11328125, 0.43359375], dtype=torch.float64)
    row = bicubic_weights(16, Fraction(1, 2))[4]
    torch.testing.assert_close(row[5:13], torch.cat([half, half.flip(0)]), rtol=0, atol=1e-15)
    assert row[:5].abs().max() == 0 and row[13:].abs().max() == 0
    assert torch.equal(bicubic_weights(7, 1), torch.eye(7, dtype=torch.float64))


def test_known_matlab_output():
    """MATLAB's imresize([10 6], 1.5) is [10.2778 8 5.7222] in each of two rows."""
    got = bicubic_resize(torch.tensor([[10.0, 6.0]], dtype=torch.float64), 1.5)
    want = torch.tensor([[10 + 5 / 18, 8, 6 - 5 / 18]], dtype=torch.float64).expand(2, 3)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 1 / 2, 0.7, 1.5, 2, 3, 4])
@pytest.mark.parametrize("size", [(24, 36), (13, 7), (2, 5)])
def test_bicubic_equals_the_plain_loop(scale, size):
    image = np.random.default_rng(0).random(size)
    got = bicubic_resize(torch.from_numpy(image), scale)
    np.testing.assert_allclose(got.numpy(), imresize(image, scale), rtol=0, atol=1e-12)
    got = bicubic_resize(torch.from_numpy(image).float(), scale)
    np.testing.assert_allclose(got.numpy(), imresize(image, scale), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1 / 4, 1 / 2, 0.7, 4])
def test_bicubic_on_8_bits_equals_the_plain_loop(scale):
    image = (np.random.default_rng(1).random((24, 36)) > 0.5).astype(np.uint8) * 255
    got = bicubic_resize(torch.from_numpy(image), scale)
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got.numpy(), imresize(image, scale))


def test_bicubic_scale_forms_and_sizes():
    x = torch.rand(2, 3, 13, 9, dtype=torch.float64)
    y = bicubic_resize(x, Fraction(1, 4))
    assert y.shape == (2, 3, 4, 3)
    assert torch.equal(y, bicubic_resize(x, 0.25))
    assert torch.equal(y[1, 2], bicubic_resize(x[1, 2], 0.25))
    assert bicubic_resize(x, 0.5).mean().item() != x.mean().item()
    constant = torch.full((5, 6), 0.3, dtype=torch.float64)
    torch.testing.assert_close(
        bicubic_resize(constant, 1 / 3), constant[:2, :2], rtol=0, atol=1e-15
    )


def test_bicubic_refuses_nonsense():
    with pytest.raises(TypeError, match="int64"):
        bicubic_resize(torch.zeros(4, 4, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="positive"):
        bicubic_resize(torch.zeros(4, 4), 0)
    with pytest.raises(ValueError, match="with pixels"):
        bicubic_resize(torch.zeros(4), 2)
