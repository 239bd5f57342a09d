"""Training patches and test pairs: purity, pairing, protocol."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ir_peft.data.degradations import (
    TASKS,
    Bicubic,
    Compose,
    GaussianBlur,
    GaussianNoise,
    bicubic_resize,
)
from ir_peft.data.images import as_tensor
from ir_peft.data.patches import (
    Patches,
    TaskPatches,
    augment,
    item_generator,
    make_test_pairs,
    split_bicubic,
    test_generator,
)
from ir_peft.data.photos import Photo, test_set, train_photos


def photo(*areas: np.ndarray, name: str = "made") -> Photo:
    return Photo(name, areas[0], tuple(areas), "made", "", "", "")


def noise_photo(height: int, width: int, seed: int = 0, name: str = "made") -> Photo:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return photo(pixels, name=name)


def ramp_photo(height: int = 96, width: int = 128) -> Photo:
    """Red is the column, green the row, blue constant: a pixel says where it was."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return photo(np.stack([x, y, np.full_like(x, 7)], axis=2))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_gives_patches(name):
    data = Patches(train_photos()[-1:], TASKS[name], 24, seed=3, length=4)
    lq, gt = data[2]
    s = TASKS[name].scale
    assert lq.shape == (3, 24, 24) and gt.shape == (3, 24 * s, 24 * s)
    for x in (lq, gt):
        assert x.dtype == torch.float32 and x.is_contiguous()
        assert x.min() >= 0 and x.max() <= 1
    assert not torch.equal(lq, gt)


def test_an_item_depends_on_seed_and_index_only():
    def items(order, **options):
        data = Patches(train_photos()[-2:], TASKS["lr4_noise30"], 16, length=6, **options)
        return {i: data[i] for i in order}

    first = items(range(6), seed=1)
    torch.manual_seed(999)
    again = items([5, 0, 3], seed=1)
    assert all(torch.equal(a, b) for i in again for a, b in zip(first[i], again[i], strict=True))
    other = items([0], seed=2)
    assert not torch.equal(other[0][0], first[0][0])
    assert not torch.equal(first[1][0], first[0][0])


def test_seed_and_index_are_not_interchangeable():
    draws = {
        float(torch.rand((), generator=item_generator(seed, index)))
        for seed in range(20)
        for index in range(20)
    }
    assert len(draws) == 400


def test_workers_give_the_same_items():
    data = Patches([noise_photo(64, 64)], TASKS["lr4_noise30"], 8, length=6, deadleaves_share=0.3)
    for batch, index in zip(DataLoader(data, batch_size=2, num_workers=1), (0, 2, 4), strict=True):
        assert torch.equal(batch[0], torch.stack([data[index][0], data[index + 1][0]]))


def test_length_and_index_errors():
    data = Patches([noise_photo(64, 64)], TASKS["sr4"], 8, length=3)
    assert len(data) == len(list(data)) == 3
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"item {index} of 3"):
            data[index]


def test_target_is_a_turned_crop_of_the_photograph():
    data = Patches([ramp_photo()], GaussianNoise(0.0), 16, length=300)
    corners, turns = set(), set()
    for _, gt in data:
        levels = (gt * 255).round()
        left, top = int(levels[0].min()), int(levels[1].min())
        crop = as_tensor(ramp_photo().image[top : top + 16, left : left + 16])
        (turn,) = (k for k in range(8) if torch.equal(augment(crop, k), gt))
        corners.add((top, left))
        turns.add(turn)
    assert turns == set(range(8))
    assert {min(c[i] for c in corners) for i in (0, 1)} <= set(range(4))
    assert max(c[0] for c in corners) <= 80 and max(c[1] for c in corners) <= 112
    assert max(c[1] for c in corners) > 105


def test_first_and_last_places_are_drawn():
    data = Patches([ramp_photo(17, 18)], GaussianNoise(0.0), 16, length=100)
    corners = {tuple((gt[:2] * 255).round().amin((1, 2)).int().tolist()) for _, gt in data}
    assert corners == {(x, y) for x in range(3) for y in range(2)}


def test_the_eight_turns_are_different_and_complete():
    x = torch.arange(9.0).reshape(1, 3, 3)
    turned = {tuple(augment(x, k).flatten().tolist()) for k in range(8)}
    assert len(turned) == 8
    assert torch.equal(augment(x, 0), x)
    assert all(tuple(augment(augment(x, k), 2).flatten().tolist()) in turned for k in range(8))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_low_resolution_is_cut_from_the_downsampled_photograph(scale):
    """The released protocol: downsample the whole, save 8 bits, then crop both."""
    source = noise_photo(80, 101)
    whole = as_tensor(source.image)
    whole = whole[:, : 80 // scale * scale, : 101 // scale * scale]
    low = Bicubic(scale)(whole)
    gt_of = {}
    p = 8
    for y in range(low.shape[1] - p + 1):
        for x in range(low.shape[2] - p + 1):
            cut = whole[:, scale * y : scale * (y + p), scale * x : scale * (x + p)]
            gt_of[cut.sum(dtype=torch.float64).item()] = (y, x)
    data = Patches([source], Bicubic(scale), p, length=25)
    for lq, gt in data:
        y, x = gt_of[min(gt_of, key=lambda total: abs(total - gt.sum(dtype=torch.float64).item()))]
        cut = whole[:, scale * y : scale * (y + p), scale * x : scale * (x + p)]
        (turn,) = (k for k in range(8) if torch.equal(augment(cut, k), gt))
        assert torch.equal(augment(low[:, y : y + p, x : x + p], turn), lq)
        # It is not what downsampling the patch gives: the border differs.
        assert not torch.equal(Bicubic(scale)(gt), lq)


def test_hybrid_noise_falls_on_the_low_resolution_patch():
    source = noise_photo(64, 64)
    clean = Patches([source], TASKS["sr4"], 12, seed=5, length=8)
    noisy = Patches([source], TASKS["lr4_noise30"], 12, seed=5, length=8)
    differences = []
    for (a, gt_a), (b, gt_b) in zip(clean, noisy, strict=True):
        assert torch.equal(gt_a, gt_b)
        levels = b * 255
        assert (levels - levels.round()).abs().max() < 1e-3
        differences.append(((b - a) * 255)[(b > 0) & (b < 1)])
    difference = torch.cat(differences)
    assert 26 < difference.std() < 31


def test_unquantised_bicubic_keeps_floats():
    data = Patches([noise_photo(64, 64)], Bicubic(4, quantize=None), 8, length=2)
    levels = data[0][0] * 255
    assert (levels - levels.round()).abs().max() > 0.1


def test_only_a_leading_bicubic_that_does_it_all_is_split_off():
    noise = GaussianNoise(30)
    assert split_bicubic(Bicubic(4)) == (Bicubic(4), None)
    assert split_bicubic(Compose(Bicubic(4), noise)) == (Bicubic(4), Compose(noise))
    for whole in (noise, Compose(GaussianBlur(), Bicubic(2)), Compose(Bicubic(2), Bicubic(2))):
        assert split_bicubic(whole) == (None, whole)


def test_other_downsampling_is_applied_to_the_patch():
    degradation = Compose(GaussianBlur(1.0), Bicubic(2))
    lq, gt = Patches([noise_photo(64, 64)], degradation, 12, length=1)[0]
    assert torch.equal(lq, degradation(gt))


def test_areas_are_drawn_by_their_pixels_and_small_ones_never():
    areas = [np.full((h, w, 3), v, np.uint8) for v, (h, w) in enumerate([(40, 40), (80, 40)])]
    data = Patches([photo(*areas, np.full((40, 20, 3), 9, np.uint8))], TASKS["sr4"], 8, length=600)
    values = [round(float(gt[0, 0, 0]) * 255) for _, gt in data]
    assert set(values) == {0, 1}
    assert 0.6 < np.mean(values) < 0.73  # 2/3 of the pixels


def test_every_pixel_of_an_area_counts():
    areas = [np.full((1, 1, 3), value, np.uint8) for value in range(3)]
    data = Patches([photo(*areas)], GaussianNoise(0.0), 1, length=60)
    assert {round(float(gt[0, 0, 0]) * 255) for _, gt in data} == {0, 1, 2}


def test_patches_too_large_name_what_there_is():
    with pytest.raises(ValueError, match="needs an area of 192 x 192 pixels; .* is 160 x 160"):
        Patches([noise_photo(160, 320)], TASKS["sr4"], 48)


def test_the_papers_patch_fits_into_the_pack():
    lq, gt = Patches(train_photos(), TASKS["lr4_noise30"], 48, length=1)[0]
    assert lq.shape == (3, 48, 48) and gt.shape == (3, 192, 192)


@pytest.mark.parametrize(
    "options",
    [{"lq_size": 0}, {"length": 0}, {"seed": -1}, {"deadleaves_share": 1.1}],
)
def test_impossible_arguments(options):
    with pytest.raises(ValueError, match="must be positive"):
        Patches([noise_photo(64, 64)], TASKS["sr4"], **({"lq_size": 8} | options))


def test_fractional_scale_is_refused():
    from fractions import Fraction

    with pytest.raises(ValueError, match="not a positive integer"):
        Patches([noise_photo(64, 64)], Bicubic(Fraction(5, 2)), 8)


def test_share_of_dead_leaves():
    black = photo(np.zeros((64, 64, 3), np.uint8))
    data = Patches([black], TASKS["sr4"], 8, length=100, deadleaves_share=0.25)
    made = [i for i in range(100) if data[i][1].max() > 0]
    assert 12 <= len(made) <= 40
    assert all(torch.equal(data[made[0]][k], data[made[0]][k]) for k in (0, 1))
    lq, gt = data[made[0]]
    levels = gt * 255
    assert (levels - levels.round()).abs().max() < 1e-3
    # Inside, where the border plays no part, the pair belongs together.
    again = bicubic_resize((gt * 255).round().byte(), 0.25)
    assert ((lq * 255 - again).abs()[:, 3:-3, 3:-3]).max() <= 1
    alone = Patches([], TASKS["denoise25"], 8, length=2, deadleaves_share=1.0)
    assert alone[0][0].shape == (3, 8, 8)


# ---------------------------------------------------------------- test pairs


def test_pairs_are_cropped_to_the_scale_at_the_top_left():
    source = noise_photo(30, 43)
    ((name, lq, gt),) = make_test_pairs([source], TASKS["sr4"])
    assert name == "made"
    assert torch.equal(gt, as_tensor(source.image)[:, :28, :40])
    assert torch.equal(lq, Bicubic(4)(gt))


def test_centred_crop_comes_first():
    source = noise_photo(30, 43)
    ((_, lq, gt),) = make_test_pairs([source], TASKS["sr3"], crop=20)
    assert torch.equal(gt, as_tensor(source.image)[:, 5:23, 11:29])
    assert lq.shape == (3, 6, 6)


@pytest.mark.parametrize("crop", [31, 3])
def test_impossible_crop_names_the_photograph(crop):
    with pytest.raises(ValueError, match="made is 43 x 30 pixels"):
        make_test_pairs([noise_photo(30, 43)], TASKS["sr4"], crop=crop)


def test_noise_of_an_image_does_not_depend_on_order_or_company():
    photos = test_set("photos6")
    together = make_test_pairs(photos, TASKS["lr4_noise30"], crop=64)
    alone = make_test_pairs(photos[3:4], TASKS["lr4_noise30"], crop=64)
    assert torch.equal(together[3][1], alone[0][1])
    assert [name for name, _, _ in together] == [p.name for p in photos]
    noise = [pair[1] - Bicubic(4)(pair[2]) for pair in together[:2]]
    assert not torch.allclose(noise[0], noise[1])


def test_noise_depends_on_data_set_and_name():
    draws = {
        float(torch.rand((), generator=test_generator(dataset, name)))
        for dataset in ("a", "b")
        for name in ("x", "y")
    }
    assert len(draws) == 4


def test_test_noise_is_pinned():
    """Committed records rely on these draws."""
    x = torch.rand(2, generator=test_generator("photos11", "astronaut"))
    y = torch.rand(2, generator=item_generator(0, 0))
    assert x.tolist() + y.tolist() == pytest.approx(
        [0.052174, 0.014195, 0.130161, 0.817281], abs=1e-6
    )


def test_task_patches_have_one_task_a_step():
    tasks = {name: TASKS[name] for name in ("sr2", "sr4", "denoise30")}
    options = {"lq_size": 12, "seed": 4, "length": 120}
    data = TaskPatches(train_photos()[-1:], tasks, batch_size=3, **options)
    assert len(data) == 120
    alone = {name: Patches(train_photos()[-1:], d, **options) for name, d in tasks.items()}
    for step in range(40):
        for index in range(3 * step, 3 * step + 3):
            expected = alone[data.task(step)][index]
            assert all(torch.equal(a, b) for a, b in zip(data[index], expected, strict=True))
    steps = [data.task(step) for step in range(40)]
    assert set(steps) == set(tasks) and steps == [data.task(step) for step in range(40)]
    other = TaskPatches(train_photos()[-1:], tasks, batch_size=3, **{**options, "seed": 5})
    assert [other.task(step) for step in range(40)] != steps
