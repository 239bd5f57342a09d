import pytest
import torch
from torch import nn

from ir_peft.adapters import SSF, SSFConfig, attach_adapter, merge_and_unload

LAYERS = {
    "linear": (lambda: nn.Linear(4, 6), (2, 3, 4), -1),
    "linear_without_bias": (lambda: nn.Linear(4, 6, bias=False), (2, 3, 4), -1),
    "conv": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5), 1),
    "conv_without_bias": (lambda: nn.Conv2d(4, 6, 1, bias=False), (2, 4, 5, 5), 1),
    "layer_norm": (lambda: nn.LayerNorm(4), (2, 3, 4), -1),
    "layer_norm_without_bias": (lambda: nn.LayerNorm(4, bias=False), (2, 3, 4), -1),
    "batch_norm": (lambda: nn.BatchNorm2d(4).eval(), (2, 4, 5, 5), 1),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_scales_and_shifts_each_channel_and_merges(kind):
    """gamma * out + beta by hand; merged into the layer, a bias added where there is none."""
    make, shape, axis = LAYERS[kind]
    net = nn.Sequential(make()).double()
    for p in net.parameters():
        p.data.normal_()
    x = torch.rand(shape, dtype=torch.double)
    out = net(x)
    attach_adapter(net, SSFConfig(target_modules=("0",)))
    assert torch.equal(net(x), out)
    adapter = net[0].adapters["default"]
    gamma, beta = (nn.init.normal_(p).detach() for p in (adapter.scale, adapter.shift))
    expected = (out.movedim(axis, -1) * gamma + beta).movedim(-1, axis)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-14)
    merge_and_unload(net)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)
    assert type(net[0]) is type(make()) and all(p.requires_grad for p in net.parameters())


def test_a_new_bias_is_frozen_where_its_weight_is():
    net = nn.Sequential(nn.Linear(2, 3, bias=False)).requires_grad_(False)
    merge_and_unload(attach_adapter(net, SSFConfig(target_modules=("0",))))
    assert net[0].bias.shape == (3,) and not net[0].bias.requires_grad


def test_start_of_the_authors():
    adapter = SSF.for_layer(nn.Linear(1, 20_000), SSFConfig(init_std=0.02))
    for p, mean in ((adapter.scale, 1), (adapter.shift, 0)):
        assert abs(p.mean() - mean) < 1e-3 and abs(p.std() - 0.02) < 1e-3


def test_the_scale_keeps_its_digits_under_autocast():
    """1.001 is 1 in bfloat16: the product is taken in fp32 and rounded once."""
    adapter = SSF.for_layer(nn.Linear(1, 1), SSFConfig())
    adapter.scale.data.fill_(1.003)
    out = torch.full((1, 1), 255.0, dtype=torch.bfloat16)
    assert adapter(out, out).item() == 256 and adapter(out, out).dtype == torch.bfloat16


@pytest.mark.parametrize("layer", [nn.LayerNorm(3, elementwise_affine=False), nn.ReLU()])
def test_needs_a_layer_that_can_be_merged(layer):
    with pytest.raises(TypeError, match="with a weight is needed"):
        SSF.for_layer(layer, SSFConfig())
