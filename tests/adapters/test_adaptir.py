"""AdaptIR against the paper's counts and the behaviour that its equations promise."""

import pytest
import torch
from torch import nn

from ir_peft.adapters import AdaptIR, AdaptIRConfig


class Site(nn.Module):
    def __init__(self, dim, channels_last=True):
        super().__init__()
        self.in_features = self.out_features = dim
        self.channels_last = channels_last


def build(dim=576, channels_last=True, **fields):
    torch.manual_seed(0)
    return AdaptIR.for_layer(Site(dim, channels_last), AdaptIRConfig(**fields))


def size(module):
    return sum(p.numel() for p in module.parameters())


def moved(adapter, seed=1):
    """The adapter with every parameter away from its initial value, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return adapter.eval()


def test_counts_of_the_release():
    assert size(build(576)) == 29_069 and 24 * 29_069 == 697_656
    assert size(build(180, hidden=12, gate=3)) == 4_817 and 36 * 4_817 == 173_412
    parts = {name: size(module) for name, module in build(576).named_children()}
    assert parts == {
        "head": 13_848, "BN": 48, "amp_fuse": 48, "pha_fuse": 48, "compress": 25, "proj": 612,
        "tail": 13_824, "channel_gate": 171, "spatial_gate": 25,
    }  # fmt: skip
    own = {name: tuple(p.shape) for name, p in build(576).named_parameters(recurse=False)}
    assert own == {"conv_weight_A": (24, 12), "conv_weight_B": (12, 9), "conv_bias": (24,)}


@pytest.mark.parametrize(
    ("fields", "total"),
    [
        ({"ensemble": False}, 692_952),
        ({"depthwise_lim": False}, 812_568),
        ({"depthwise_fam": False}, 724_152),
        ({"depthwise_lim": False, "depthwise_fam": False, "branches": ("lim", "fam")}, 823_776),
        ({"branches": ("lim", "fam")}, 682_368),
        ({"branches": ("lim", "cgm")}, 690_648),
        ({"branches": ["fam", "cgm"]}, 682_872),
        ({"branches": ("lim",)}, 675_360),
        ({"branches": ("fam",)}, 667_584),
        ({"branches": ("cgm",)}, 680_568),
        ({"form": "sequential"}, 697_656),
    ],
)
def test_ablations(fields, total):
    adapter = build(576, **fields)
    assert 24 * size(adapter) == total
    x, out = torch.rand(2, 2, 5, 4, 576)
    assert torch.equal(adapter(x, out), out)
    nn.init.normal_(adapter.tail.weight)
    result = adapter(x, out)
    result.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter.parameters())
    assert not torch.equal(result, out)


@pytest.mark.parametrize(
    ("hidden", "with_gates", "without"),
    [
        (2, 56_424, 56_184), (13, 370_920, 369_624), (18, 518_496, 515_832), (24, 697_656, 692_952),
        (32, 940_944, 933_144), (48, 1_443_648, 1_427_352), (72, 2_238_024, 2_203_224),
    ],
)  # fmt: skip
def test_widths(hidden, with_gates, without):
    assert 24 * size(build(576, hidden=hidden)) == with_gates
    assert 24 * size(build(576, hidden=hidden, ensemble=False)) == without


@pytest.mark.parametrize("hidden", [1, 3])
def test_smallest_widths_work(hidden):
    adapter = moved(build(5, hidden=hidden))
    assert adapter(*torch.rand(2, 1, 4, 3, 5)).isfinite().all()


def test_the_equations():
    """A literal transcription of each equation, on odd and non-square sizes, with moved weights."""
    adapter = moved(build(7, hidden=6, rank=2, gate=3)).double()
    x, out = torch.rand(2, 3, 5, 8, 7, dtype=torch.double)
    z = adapter.BN(adapter.head(x.permute(0, 3, 1, 2)))

    spectrum = torch.fft.rfft2(z, norm="ortho")
    A, P = adapter.amp_fuse(spectrum.abs()), adapter.pha_fuse(spectrum.angle())
    spectrum = torch.complex(A * P.cos(), A * P.sin())
    g = torch.fft.irfft2(spectrum, s=(5, 8), norm="ortho").abs()
    torch.testing.assert_close(adapter.spectral(z), g)

    kernel = (adapter.conv_weight_A @ adapter.conv_weight_B).reshape(6, 1, 3, 3)
    local = nn.functional.conv2d(z, kernel, adapter.conv_bias, padding=1, groups=6)
    torch.testing.assert_close(adapter.local(z), local)

    score = adapter.compress(z).flatten(1).softmax(dim=1)  # (B, N)
    pooled = torch.einsum("bcn,bn->bc", z.flatten(2), score)
    c = adapter.proj(pooled)[:, :, None, None]
    torch.testing.assert_close(adapter.channel_score(z), c)

    a = adapter.channel_gate[1:](g.mean(dim=(2, 3), keepdim=True)).sigmoid()
    b = adapter.spatial_gate(local).sigmoid()
    expected = out + adapter.tail(c * (a * local + b * g)).permute(0, 2, 3, 1)
    torch.testing.assert_close(adapter(x, out), expected)


def test_at_initialisation_fam_is_abs_and_both_gates_are_one_half():
    for fields in ({}, {"depthwise_fam": False}):
        adapter = build(16, hidden=6, **fields)
        z = adapter.BN(adapter.head(torch.randn(2, 16, 7, 10)))
        torch.testing.assert_close(adapter.spectral(z), z.abs(), rtol=0, atol=1e-6)
        local, g = adapter.local(z), adapter.spectral(z)
        assert (adapter.channel_gate(g).sigmoid() == 0.5).all()
        assert (adapter.spatial_gate(local).sigmoid() == 0.5).all()
        assert adapter.channel_gate(g).shape == (2, 6, 1, 1)
        assert adapter.spatial_gate(local).shape == (2, 1, 7, 10)
        torch.testing.assert_close(
            adapter.experts(z), adapter.channel_score(z) * (0.5 * local + 0.5 * g)
        )


@pytest.mark.parametrize("hw", [(1, 1), (1, 6), (5, 5), (16, 16), (7, 4)])
def test_sizes(hw):
    adapter = moved(build(8, hidden=4))
    x, out = torch.rand(2, 2, *hw, 8)
    assert adapter(x, out).shape == out.shape
    z = torch.rand(2, 4, *hw)
    assert adapter.spectral(z).shape == z.shape
    assert torch.fft.rfft2(torch.rand(1, 24, 16, 16)).shape == (1, 24, 16, 9)


def test_both_layouts_agree():
    last, first = moved(build(8, hidden=4)), moved(build(8, channels_last=False, hidden=4))
    x, out = torch.rand(2, 2, 6, 5, 8)
    y = first(x.permute(0, 3, 1, 2), out.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(last(x, out), y, rtol=1e-5, atol=1e-6)
    conv = nn.Conv2d(3, 8, 5, padding=2)
    on_conv = AdaptIR.for_layer(conv, AdaptIRConfig(hidden=4))
    image = torch.rand(2, 3, 6, 5)
    assert torch.equal(on_conv(image, conv(image)), conv(image))
    with pytest.raises(ValueError, match=r"reads images \(B, H, W, C\).*\(2, 30, 8\)"):
        last(x.flatten(1, 2), out.flatten(1, 2))


def test_sequential_form_reads_the_output():
    adapter = moved(build(8, hidden=4, form="sequential"))
    x, out = torch.rand(2, 2, 6, 5, 8)
    parallel = moved(build(8, hidden=4))
    assert torch.equal(adapter(x, out), parallel(out, out))
    assert torch.equal(adapter(torch.rand_like(x), out), adapter(x, out))
    wide = nn.Linear(5, 8)
    assert AdaptIR.for_layer(wide, AdaptIRConfig(form="sequential")).head.in_channels == 8
    assert AdaptIR.for_layer(wide, AdaptIRConfig()).head.in_channels == 5


def test_first_gradients_reach_the_tail_only_then_all():
    adapter = build(16, hidden=8).train()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        (adapter(*torch.rand(2, 2, 6, 5, 16)) - 0.3).square().mean().backward()
        reached = {name for name, p in adapter.named_parameters() if p.grad.abs().max() > 1e-9}
        if step == 0:
            assert reached == {"tail.weight"}
        optimizer.step()
    assert reached >= {
        "head.weight", "BN.weight", "BN.bias", "conv_weight_A", "conv_weight_B", "conv_bias",
        "amp_fuse.weight", "amp_fuse.bias", "pha_fuse.weight", "pha_fuse.bias", "compress.weight",
        "proj.0.weight", "proj.2.weight", "proj.2.bias", "channel_gate.3.weight",
        "channel_gate.3.bias", "spatial_gate.weight", "spatial_gate.bias", "tail.weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 5, 6, 4), torch.ones(2, 5, 6, 4), torch.rand(2, 1, 1, 4)]
)
@pytest.mark.parametrize("shifted", [False, True])
def test_empty_spectra_give_finite_gradients(x, shifted):
    """A constant image has zeros in its spectrum, where amplitude and phase have no derivative."""
    adapter = build(4, hidden=3).train()
    nn.init.normal_(adapter.tail.weight)
    if shifted:
        nn.init.constant_(adapter.amp_fuse.bias, -0.5)
        nn.init.constant_(adapter.pha_fuse.bias, 0.7)
    x = x.clone().requires_grad_()
    result = adapter(x, x)
    result.square().sum().backward()
    assert result.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in adapter.parameters())
    z = torch.zeros(1, 3, 5, 6, requires_grad=True)
    adapter.spectral(z).sum().backward()
    assert z.grad.isfinite().all()


def test_negative_amplitudes_have_the_right_gradient():
    adapter = moved(build(4, hidden=2)).double()
    nn.init.constant_(adapter.amp_fuse.bias, -0.5)
    z = torch.randn(1, 2, 3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(adapter.spectral, (z,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_transform_and_the_norm_run_in_fp32_under_autocast(dtype):
    adapter = moved(build(8, hidden=4)).train()
    seen = []
    adapter.BN.register_forward_hook(lambda _, args, out: seen.extend([args[0].dtype, out.dtype]))
    x, out = torch.rand(2, 2, 6, 5, 8)
    exact = adapter(x, out)
    with torch.autocast("cpu", dtype=dtype):
        half = adapter(x.to(dtype), out.to(dtype))
    assert set(seen) == {torch.float32} and half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)
    adapter.to(dtype).eval()
    assert adapter(x.to(dtype), out.to(dtype)).isfinite().all()


def test_identity_for_any_finite_input():
    for scale in (1e-20, 1.0, 1e4):
        adapter = build(8, hidden=4)
        x, out = scale * torch.randn(2, 2, 6, 5, 8)
        for mode in (True, False):
            assert torch.equal(adapter.train(mode)(x, out), out)
