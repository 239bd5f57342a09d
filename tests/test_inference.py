"""Whole images: tiles equal the whole where they can, symmetric ensembles, bounded memory."""

import math
import weakref
from collections import Counter, deque

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ir_peft.inference import AUTO_TILE, restore, restore_strips


def image(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Pointwise(nn.Module):
    """A x2 model whose every output pixel depends on one input pixel."""

    def __init__(self, scale=2):
        super().__init__()
        self.scale, self.sizes = scale, []
        self.gain = nn.Parameter(torch.tensor([0.9, 0.5, 0.7]).view(3, 1, 1))

    def forward(self, x):
        self.sizes.append(tuple(x.shape))
        x = (self.gain * x).sqrt()
        return x.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


class Blur(nn.Module):
    """A 5x5 mean that repeats the border: local, but not pointwise, and with no symmetry broken."""

    def forward(self, x):
        return F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, stride=1)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (8, 8), (9, 20), (31, 17)])
@pytest.mark.parametrize("tile, overlap", [(1, 0), (8, 0), (8, 3), (8, 7), (13, 6), (100, 16)])
def test_tiles_equal_the_whole_bit_for_bit_for_a_local_model(size, tile, overlap):
    model, x = Pointwise(), image(3, *size)
    whole = restore(model, x)
    assert whole.shape == (3, 2 * size[0], 2 * size[1])
    assert torch.equal(whole, model(x[None])[0])
    tiled = restore(model, x, tile=tile, overlap=overlap, batch_size=3)
    assert torch.equal(tiled, whole)


def test_every_tile_lies_inside_the_image_and_the_last_ends_with_it():
    seen = []

    def model(x):
        seen.append(x.clone())
        return x

    x = torch.arange(3 * 20 * 11).view(3, 20, 11) / 1000.0
    restore(model, x, tile=8, overlap=2)
    corners = [tuple(torch.nonzero(x[0] == t[0, 0, 0, 0])[0].tolist()) for t in seen]
    assert corners == [(i, j) for i in (0, 6, 12) for j in (0, 3)]
    assert {t.shape for t in seen} == {(1, 3, 8, 8)}


@pytest.mark.parametrize("size", [(40, 40), (41, 57), (21, 100)])
def test_seams_of_a_local_model_are_exact_from_four_radii_of_overlap_on(size):
    model, x = Blur().double(), image(3, *size).double()
    whole = restore(model, x)
    for overlap in (8, 9, 12, 19):
        tiled = restore(model, x, tile=20, overlap=overlap)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-14)
    for overlap in (0, 4):
        error = (restore(model, x, tile=20, overlap=overlap) - whole).abs()
        assert error.max() > 1e-4


def test_seams_are_errors_within_the_radius_of_a_cut_and_blending_makes_them_smaller():
    x = image(3, 40, 40)
    whole, hard = restore(Blur(), x), restore(Blur(), x, tile=20, overlap=0)
    blended = restore(Blur(), x, tile=20, overlap=6)
    near = torch.zeros(40, dtype=torch.bool)
    near[18:22] = True
    near = near[:, None] | near[None, :]
    error = (hard - whole).abs().amax(0)
    assert error[~near].max() < 1e-6 < error[near].max()
    assert (blended - whole).abs().max() < 0.5 * (hard - whole).abs().max()


def test_the_blend_is_a_linear_ramp_over_the_middle_of_the_overlap():
    calls = iter(range(10))

    def model(x):  # The first tile is 0, the second 1.
        return torch.full_like(x, float(next(calls)))

    out = restore(model, image(3, 4, 24), tile=16, overlap=8)
    assert torch.equal(out[:, :, :10], torch.zeros(3, 4, 10))
    assert torch.equal(out[:, :, 14:], torch.ones(3, 4, 10))
    expected = torch.tensor([0.125, 0.375, 0.625, 0.875]).expand(3, 4, 4)
    torch.testing.assert_close(out[:, :, 10:14], expected)


def weighted_mean(size, tile, overlap, values):
    """The definition: every tile's value, weighted by a product of two ramps, over the weights."""
    grids = []
    for length in size:
        starts = [*range(0, length - tile, tile - overlap), length - tile]
        ramps = torch.zeros(len(starts), length)
        for ramp, start in zip(ramps, starts, strict=True):
            for k in range(tile):
                cuts = ([k] if start else []) + ([tile - 1 - k] if start != starts[-1] else [])
                rise = [(cut + 0.5 - overlap / 4) / (overlap / 2) for cut in cuts]
                ramp[start + k] = min(max(min(rise, default=1), 0), 1)
        grids.append(ramps)
    weights = torch.einsum("iy,jx->ijyx", *grids).flatten(0, 1)
    return torch.einsum("n,nyx->yx", torch.tensor(values), weights) / weights.sum(0)


@pytest.mark.parametrize("size, count", [((20, 35), 8), ((30, 12), 4), ((13, 21), 6)])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_blend_is_the_weighted_mean_by_its_definition(size, count, batch_size):
    values = image(count, seed=1).tolist()
    left = iter(values)

    def model(x):
        return torch.stack([torch.full_like(one, next(left)) for one in x])

    x = image(3, *size)
    out = restore(model, x, tile=12, overlap=4, batch_size=batch_size)
    expected = weighted_mean(size, 12, 4, values).expand(3, *size)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_strips_are_the_rows_of_the_whole_and_cost_only_what_is_asked_for():
    model, x = Pointwise(), image(2, 3, 50, 21)
    options = {"tile": 16, "overlap": 4, "batch_size": 3}
    whole = restore(model, x, **options)
    strips = list(restore_strips(model, x, **options))
    assert [strip.shape[2] for strip in strips] == [24, 24, 20, 32]
    assert torch.equal(torch.cat(strips, dim=2), whole)
    assert not any(strip.is_inference() for strip in strips)
    one = list(restore_strips(model, x[0], **options))
    assert torch.equal(torch.cat(one, dim=1), whole[0])
    model.sizes.clear()
    model.train()
    next(iter(restore_strips(model, x[:1], **options)))
    assert model.sizes == [(2, 3, 16, 16)]  # One row of tiles.
    assert model.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_strips_refuse_wrong_arguments_before_the_first_is_asked_for():
    with pytest.raises(ValueError, match="overlap=9"):
        restore_strips(Pointwise(), image(3, 9, 9), tile=8, overlap=9)


def test_auto_takes_small_images_whole_and_large_ones_in_tiles():
    model = Pointwise(scale=1)
    restore(model, image(3, AUTO_TILE, 40), tile="auto")
    assert model.sizes == [(1, 3, AUTO_TILE, 40)]
    model.sizes.clear()
    restore(model, image(3, 40, AUTO_TILE + 1), tile="auto")
    assert model.sizes == [(1, 3, 40, 160)] * 2  # Two of 160 cover what two of 256 would.
    model.sizes.clear()
    restore(model, image(3, 40, 2 * AUTO_TILE - 16), tile="auto")
    assert model.sizes == [(1, 3, 40, AUTO_TILE)] * 2
    model.size_multiple, model.sizes = 48, []
    restore(model, image(3, 40, 300), tile="auto")
    assert model.sizes == [(1, 3, 40, 192)] * 2


@pytest.mark.parametrize("overlap", [0, 5, 16, 40, 200])
@pytest.mark.parametrize("length", [257, 300, 496, 497, 800, 1999])
def test_auto_needs_no_more_tiles_than_of_the_full_side(length, overlap):
    model = Pointwise(scale=1)
    restore(model, image(3, 1, length), tile=AUTO_TILE, overlap=overlap)
    full, model.sizes = len(model.sizes), []
    restore(model, image(3, 1, length), tile="auto", overlap=overlap)
    (side,) = {shape[3] for shape in model.sizes}
    assert len(model.sizes) == full and side <= AUTO_TILE
    # And no smaller multiple of 32 would do.
    assert full * (side - 32) - (full - 1) * overlap < length


def test_batches():
    model, x = Pointwise(), image(5, 3, 9, 10)
    out = restore(model, x, tile=6, overlap=2, batch_size=4)
    assert torch.equal(out, torch.stack([restore(model, one) for one in x]))
    model.sizes.clear()
    restore(model, x, batch_size=2)
    assert [shape[0] for shape in model.sizes] == [2, 2, 1]


def symmetries(x):
    """The 8 flips and transpositions of (..., H, W)."""
    return [t.flip(dims) for t in (x, x.mT) for dims in ((), (-1,), (-2,), (-2, -1))]


def test_self_ensemble_averages_the_eight_symmetries():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2), nn.Sigmoid()).double()
    x = image(3, 7, 10).double()
    outputs = []
    for transpose in (False, True):
        for dims in ((), (-1,), (-2,), (-2, -1)):
            y = model((x.mT if transpose else x).flip(dims)[None])[0].flip(dims)
            outputs.append(y.mT if transpose else y)
    expected = torch.stack(outputs).mean(0)
    got = restore(model, x, self_ensemble=True)
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1e-12)
    assert (got - restore(model, x)).abs().max() > 1e-3


@pytest.mark.parametrize("tile", [None, 6])
def test_self_ensemble_is_equivariant(tile):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Sigmoid()).double()
    x = image(3, 7, 10).double()
    out = restore(model, x, tile=tile, overlap=2, self_ensemble=True)
    for turned, expected in zip(symmetries(x), symmetries(out), strict=True):
        got = restore(model, turned, tile=tile, overlap=2, self_ensemble=True)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_self_ensemble_of_a_symmetric_model_changes_no_bit():
    model, x = Pointwise(), image(3, 9, 12)
    assert torch.equal(restore(model, x, self_ensemble=True), restore(model, x))


def test_the_output_is_clamped_ordinary_and_of_the_input_dtype():
    model = nn.Conv2d(3, 3, 1).bfloat16()
    x = image(3, 5, 5)
    out = restore(model, x)
    assert out.dtype == torch.float32 and not out.is_inference()
    assert torch.equal(restore(lambda x: 3 * x - 1, x), (3 * x - 1).clamp(0, 1))
    (out.requires_grad_() ** 2).sum().backward()
    assert torch.equal(out.grad, 2 * out.detach())


def test_the_model_runs_in_eval_mode_and_gets_its_modes_back():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3), nn.Identity())
    model[2].eval()
    x = image(3, 6, 6)
    assert torch.equal(restore(model, x), model[1].eval()(x[None])[0])
    model[1].train()
    restore(model, x)
    assert [m.training for m in model] == [True, True, False] and model.training
    assert torch.equal(model[1].running_mean, torch.zeros(3))

    def broken(module, inputs):
        raise RuntimeError("broken")

    model[2].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        restore(model, x)
    assert [m.training for m in model] == [True, True, False]


def test_the_input_is_left_alone():
    x = image(3, 6, 6)
    before = x.clone()
    restore(lambda t: t.mul_(0.5), x)
    restore(lambda t: t.mul_(0.5), x, tile=3, overlap=1, self_ensemble=True)
    assert torch.equal(x, before)


class Live(TorchDispatchMode):
    """Counts the bytes of the storages of all tensors made inside that are alive; `peak` of them.

    A storage lives as long as a tensor on it does; temporaries inside one operator do not count.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.users = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in self.tensors(args, kwargs)}
        for tensor in self.tensors(result):
            self.watch(tensor, tensor.untyped_storage(), given)
        return result

    def tensors(self, *trees):
        return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]

    def watch(self, tensor, storage, given):
        key, size = storage.data_ptr(), storage.nbytes()
        if not self.users[key]:
            if key in given:
                return  # A view of a tensor from outside.
            self.now += size
            self.peak = max(self.peak, self.now)
        self.users[key] += 1
        weakref.finalize(tensor, self.gone, key, size)

    def gone(self, key, size):
        self.users[key] -= 1
        if not self.users[key]:
            self.now -= size


def live_bytes(run):
    with Live() as live:
        run()
    assert live.now == 0  # Else the count itself would be wrong.
    return live.peak


@pytest.mark.parametrize("self_ensemble", [False, True])
def test_peak_memory_is_the_output_and_a_row_of_tiles(self_ensemble):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4))
    options = {"tile": 16, "overlap": 4, "self_ensemble": self_ensemble}

    def whole(H, W):
        x = image(3, H, W)
        return live_bytes(lambda: restore(model, x, **options))

    def strips(H, W):
        x = image(3, H, W)
        return live_bytes(lambda: deque(restore_strips(model, x, **options), maxlen=0))

    def output(H, W):
        return 4 * 3 * 4 * H * 4 * W

    # Strips: the same at any height; a wider image adds a row of tiles and its overlaps.
    assert strips(40, 16) == strips(100, 16)
    assert strips(16, 100) - strips(16, 40) <= 1.5 * output(16, 60)
    # The whole: nothing of the image's size but the output.
    assert whole(100, 16) - whole(40, 16) == output(60, 16)
    assert whole(100, 16) - output(100, 16) <= strips(100, 16)


def test_checking_an_image_makes_no_other_of_its_size():
    x = image(3, 64, 64)
    with Live() as live:
        restore_strips(lambda x: x, x)
    assert live.peak < 100


@pytest.mark.parametrize("bad, error, message", [
    (torch.zeros(3, 4, 4, dtype=torch.uint8), TypeError, "floating-point tensor.*uint8"),
    ([[0.5]], TypeError, "floating-point tensor.*list"),
    (torch.zeros(1, 4, 4), ValueError, r"expected \(3, H, W\) or \(B, 3, H, W\), got \(1, 4, 4\)"),
    (torch.zeros(4, 4, 3), ValueError, r"got \(4, 4, 3\)"),
    (torch.zeros(2, 2, 3, 4, 4), ValueError, r"got \(2, 2, 3, 4, 4\)"),
    (torch.zeros(3, 0, 4), ValueError, r"got \(3, 0, 4\)"),
    (torch.full((3, 4, 4), math.nan), ValueError, "NaN or infinite"),
    (torch.full((3, 4, 4), math.inf), ValueError, "NaN or infinite"),
])  # fmt: skip
def test_bad_images(bad, error, message):
    with pytest.raises(error, match=message):
        restore(lambda x: pytest.fail("the model must not run"), bad)


@pytest.mark.parametrize("options, message", [
    ({"tile": 0}, "tile=0"),
    ({"tile": "big"}, "tile='big' must be a number of pixels, None or 'auto'"),
    ({"tile": 8, "overlap": 8}, "overlap=8 must be at least 0 and less than the tile, 8"),
    ({"tile": 8, "overlap": -1}, "overlap=-1"),
    ({"batch_size": 0}, "batch_size=0"),
])  # fmt: skip
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        restore(lambda x: pytest.fail("the model must not run"), image(3, 9, 9), **options)


def test_bad_models():
    with pytest.raises(FloatingPointError, match="the model's output is not finite"):
        restore(lambda x: x * math.nan, image(3, 4, 4))
    with pytest.raises(ValueError, match=r"turned \(1, 3, 4, 4\) into \(1, 3, 4, 3\)"):
        restore(lambda x: x[..., 1:], image(3, 4, 4))
    with pytest.raises(ValueError, match=r"turned \(1, 3, 4, 4\) into \(3, 4, 4\)"):
        restore(lambda x: x[0], image(3, 4, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_point_type_is_restored_and_checked(dtype):
    x = image(3, 20, 9).to(dtype)
    out = restore(lambda t: t, x, tile=8, overlap=4)
    assert out.dtype == dtype and torch.equal(out, x)
    for bad in (math.nan, math.inf, -math.inf):
        x[1, 2, 3] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            restore(lambda t: t, x)
