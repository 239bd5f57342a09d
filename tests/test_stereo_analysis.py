"""Disparity from attention, occlusion and gains, on pairs whose answers are known exactly."""

import math

import pytest
import torch
import torch.nn.functional as F

from ir_peft import stereo_analysis as analysis
from ir_peft.data.deadleaves import dead_leaves_stereo
from ir_peft.metrics import psnr

NAN = float("nan")


def attention_at(columns, width):
    """(H, W) columns -> (H, W, W) attention that looks nowhere else."""
    return F.one_hot(columns, width).float()


# ---------------------------------------------------------------- attention


def test_attention_set_by_hand_finds_a_shift():
    shift, H, W = 3, 4, 12
    there = (torch.arange(W) - shift).clamp(min=0).expand(H, W)
    attention = attention_at(there, W)
    found = analysis.matches(attention)
    truth = torch.full((H, W), float(shift))
    seen = ~analysis.occluded(truth)
    assert seen[:, shift:].all() and not seen[:, :shift].any()
    assert (found[seen] == shift).all()
    assert analysis.hit_rate(found, truth, seen, 0) == 1
    assert analysis.mass_near(attention, truth, seen, 0) == 1
    assert analysis.hit_rate(found + 2, truth, seen, 1.9) == 0
    assert analysis.hit_rate(found + 2, truth, seen, 2) == 1


def test_it_finds_the_shift_of_a_random_pair_by_itself():
    """Logits of identical pixels, as a matching attention would have."""
    H, W, d = 3, 16, 5
    scene = torch.randn(8, H, W + d, generator=torch.Generator().manual_seed(0))
    left, right = F.normalize(scene[..., :W], dim=0), F.normalize(scene[..., d:], dim=0)
    attention = (50 * torch.einsum("chi,chj->hij", left, right)).softmax(-1)
    truth = torch.full((H, W), float(d))
    assert analysis.hit_rate(analysis.matches(attention), truth, ~analysis.occluded(truth), 0) == 1


def test_hits_count_known_pixels_of_the_part_only():
    truth = torch.tensor([[1.0, 1.0, NAN, 4.0]])
    found = torch.tensor([[1, 3, 0, 4]])
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    assert analysis.hit_rate(found, truth, everywhere, 1) == pytest.approx(2 / 3)
    assert analysis.hit_rate(found, truth, torch.tensor([[False, True, True, True]]), 1) == 0.5
    with pytest.raises(ValueError, match="no pixel"):
        analysis.hit_rate(found, truth, torch.tensor([[False, False, True, False]]), 1)


def test_rates_of_those_who_do_not_look():
    truth = torch.tensor([[NAN, 0.0, 1.0, 1.0, 3.0]])  # true columns 1, 1, 2, 1 of 5
    rates = analysis.chance_rates(truth, torch.ones(1, 5, dtype=torch.bool), 0)
    assert rates == {"random": pytest.approx(1 / 5), "constant": 0.5}
    rates = analysis.chance_rates(truth, torch.ones(1, 5, dtype=torch.bool), 1)
    assert rates == {"random": pytest.approx(3 / 5), "constant": 0.75}
    uniform = torch.full((1, 5, 5), 0.2)
    mass = analysis.mass_near(uniform, truth, torch.ones(1, 5, dtype=torch.bool), 1)
    assert mass == pytest.approx(3 / 5)


# ---------------------------------------------------------------- occlusion and grids


def test_a_nearer_stripe_hides_what_is_left_of_it():
    """Columns 6 and 7 at disparity 3 arrive at 3 and 4, where the background's 3 and 4 do."""
    truth = torch.zeros(2, 10)
    truth[:, 6:8] = 3
    hidden = analysis.occluded(truth)
    assert hidden[0].nonzero().flatten().tolist() == [3, 4]
    truth[0, 3] = NAN
    assert analysis.occluded(truth)[0].nonzero().flatten().tolist() == [4]


def test_a_slanted_surface_does_not_hide_itself():
    truth = torch.arange(12.0)[None] * 0.4
    assert not analysis.occluded(truth)[0, 1:].any()


def test_occlusion_of_a_scene_is_that_of_its_renderer():
    scene = dead_leaves_stereo((48, 96), torch.Generator().manual_seed(1), max_disparity=12)
    agree = (analysis.occluded(scene.disparity) == scene.occluded).float().mean()
    assert agree > 0.9  # The renderer also marks pixels that are hidden in part.


def test_on_the_low_resolution_grid():
    truth = torch.full((5, 7), 8.0)
    truth[0, 0] = NAN
    truth[2:4, 2:5] = 6
    grid = analysis.to_grid(truth, 2)
    assert grid.shape == (2, 3)
    assert grid[0, 0].isnan()
    assert grid[1].tolist() == [4.0, 3.0, 3.0]  # At a tie the median is the lower one.
    share = analysis.share_on_grid(truth == 6, 2)
    assert share.tolist() == [[0, 0, 0], [0, 1, 0.5]]


def test_texture_is_change_along_the_row():
    image = torch.zeros(3, 12, 20)
    image[:, :, 10:] = torch.arange(10).remainder(2).float()
    image[:, 6:, :10] = 0.5  # A change between rows cannot be matched along one.
    marked = analysis.textured(image)
    assert marked[:, 13:].all() and not marked[:, :7].any()


# ---------------------------------------------------------------- gains


def test_gains_of_two_halves():
    truth = torch.full((3, 8, 8), 100 / 255)
    before, after = truth.clone(), truth.clone()
    before += 20 / 255
    after[:, :, :4] += 2 / 255
    after[:, :, 4:] += 20 / 255
    left = torch.zeros(8, 8, dtype=torch.bool)
    left[:, :4] = True
    rows = analysis.gains(before, after, truth, {"near": left, "far": ~left})
    assert [row["part"] for row in rows] == ["near", "far"]
    assert [row["share"] for row in rows] == [0.5, 0.5]
    assert rows[0]["gain"] == pytest.approx(20) and rows[1]["gain"] == 0
    assert rows[0]["before"] == pytest.approx(20 * math.log10(255 / 20))
    whole = analysis.psnr_over(after, truth, torch.ones(8, 8, dtype=torch.bool))
    assert whole == pytest.approx(psnr(after, truth).item())
    gain = analysis.gain_map(before, after, truth, side=3)
    assert gain.shape == (8, 8)
    assert gain[4, 1].item() == pytest.approx(20, abs=0.05)  # The floor takes a little off.
    assert gain[4, 6] == 0 and 0 < gain[4, 4] < gain[4, 3] < gain[4, 1]
    assert analysis.gain_map(truth, truth, truth).abs().max() == 0
    with pytest.raises(ValueError, match="no pixel"):
        analysis.psnr_over(after, truth, torch.zeros(8, 8, dtype=torch.bool))


def test_regions_share_out_the_view():
    truth = torch.full((4, 20), 2.0)
    truth[:, 12:15] = 6.0
    truth[0] = NAN
    parts = analysis.regions(truth, (0, 4, 8, 99))
    total = sum(part.int() for part in parts["visibility"].values())
    assert (total == 1).all() and set(parts["visibility"]) == {"visible", "occluded", "unknown"}
    assert set(parts["disparity"]) == {"0–4 px", "4–8 px"}  # Nothing is at 8 to 99.
    both = sum(part.int() for part in parts["disparity"].values()).bool()
    assert torch.equal(both, parts["visibility"]["visible"])


def test_the_densest_box():
    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[3:5, 6:9] = True
    assert analysis.densest_box(mask, (2, 3)) == (3, 6, 2, 3)
    top, left, *_ = analysis.densest_box(mask, (4, 4))
    assert mask[top : top + 4, left : left + 4].sum() == 6
    assert analysis.densest_box(mask, (10, 12)) == (0, 0, 10, 12)
    with pytest.raises(ValueError, match="does not fit"):
        analysis.densest_box(mask, (11, 2))
