"""Layers that keep less for backward give the values and gradients of those that keep it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ir_peft.backbones.dat import Local, SpatialGate
from ir_peft.backbones.gates import GeluGate
from ir_peft.backbones.layers import Conv2d


def image(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


def kept(run):
    """What autograd keeps for backward, parameters left out."""
    tensors = []

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return tensors


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_frozen_convolution_keeps_nothing_and_has_the_same_gradient(memory_format, groups):
    ours = Conv2d(4, 8, 3, padding=1, groups=groups).double().requires_grad_(False)
    theirs = nn.Conv2d(4, 8, 3, padding=1, groups=groups).double()
    theirs.load_state_dict(ours.state_dict())
    x = image(2, 4, 6, 5)
    given = x.contiguous(memory_format=memory_format)
    assert kept(lambda: ours(given)) == [] and len(kept(lambda: theirs(given))) == 1
    out, want = ours(given), theirs(given)
    torch.testing.assert_close(out, want, rtol=0, atol=0)
    (grad,), (wanted,) = (torch.autograd.grad(y.square().sum(), x) for y in (out, want))
    torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-12)


def test_a_trained_convolution_has_gradients_of_its_weights():
    conv, x = Conv2d(4, 8, 3, padding=1).double(), image(1, 4, 5, 5)
    conv(x).sum().backward()
    assert conv.weight.grad is not None and conv.bias.grad is not None
    conv.weight.requires_grad_(False)
    conv.bias.grad = None
    conv(x).sum().backward()
    torch.testing.assert_close(conv.bias.grad, torch.full((8,), 25.0, dtype=torch.float64))


def test_a_frozen_convolution_under_autocast():
    conv, x = Conv2d(4, 8, 3, padding=1).requires_grad_(False), image(1, 4, 5, 5, dtype=None)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    want = torch.autograd.grad(conv(x).sum(), x)[0]
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, want, rtol=0.02, atol=0.02)


def test_gelu_gate():
    x = image(2, 3, 4, 10)
    a, b = x.chunk(2, dim=-1)
    torch.testing.assert_close(GeluGate.apply(x), F.gelu(a) * b, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(GeluGate.apply, (x,))
    assert len(kept(lambda: GeluGate.apply(x))) == 1


def test_spatial_gate_of_frozen_weights():
    gate = SpatialGate(5).double()
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    x = image(2, 4, 3, 10)
    want = gate(x)
    wanted = torch.autograd.grad(want.square().sum(), x)[0]
    gate.requires_grad_(False)
    pixels = 2 * 4 * 3  # x, the convolution's output, and the norm's mean and deviation.
    assert sum(t.numel() for t in kept(lambda: gate(x))) == pixels * (10 + 5 + 2)
    out = gate(x)
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(out.square().sum(), x)[0], wanted, rtol=0, atol=1e-12
    )


def test_a_norm_with_fixed_statistics_is_part_of_the_convolution():
    local, x = Local(6).double(), image(2, 6, 5, 4)
    local(x)  # In training mode: the statistics move.
    local.eval()
    plain = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.GELU())
    plain.double().eval().load_state_dict(local.state_dict())
    for model in (local, plain):
        model(x).square().sum().backward()
    torch.testing.assert_close(local(x), plain(x), rtol=0, atol=1e-12)
    for ours, theirs in zip(local.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-11)
