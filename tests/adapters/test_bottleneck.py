import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ir_peft.adapters import AdaptFormerConfig, BitFit, BitFitConfig, Bottleneck, HoulsbyConfig


class Site(nn.Module):
    channels_last = True
    in_features = out_features = 576


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_counts_on_ipt():
    houlsby = Bottleneck.for_layer(Site(), HoulsbyConfig(bottleneck=12))
    assert size(houlsby) == 14_412 and 48 * 14_412 == 691_776
    adaptformer = Bottleneck.for_layer(Site(), AdaptFormerConfig(bottleneck=24))
    assert size(adaptformer) == 28_248 and 24 * 28_248 == 677_952
    sizes = [48 * size(Bottleneck.for_layer(Site(), HoulsbyConfig(bottleneck=b))) for b in (1, 24)]
    assert sizes == [82_992, 1_355_904]


def test_houlsby_is_sequential_and_adaptformer_parallel():
    layer = nn.Linear(5, 7)
    x, out = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 7)
    for config, z, f, scale in (
        (HoulsbyConfig(bottleneck=3), out, F.gelu, 1.0),
        (AdaptFormerConfig(bottleneck=3), x, F.relu, 0.1),
        (AdaptFormerConfig(bottleneck=3, form="sequential", scale=2.0), out, F.relu, 2.0),
        (HoulsbyConfig(bottleneck=3, form="parallel", activation="relu"), x, F.relu, 1.0),
    ):
        adapter = Bottleneck.for_layer(layer, config)
        for zero in (adapter.down.bias, adapter.up.weight, adapter.up.bias):
            assert not zero.any()
            nn.init.normal_(zero)
        assert adapter.down.weight.std() > 0.1
        expected = out + scale * adapter.up(f(adapter.down(z)))
        torch.testing.assert_close(adapter(x, out), expected)


@pytest.mark.parametrize("config", [HoulsbyConfig(), AdaptFormerConfig()])
def test_on_a_convolution_it_works_on_the_channels(config):
    conv = nn.Conv2d(3, 6, 3, padding=1)
    adapter = Bottleneck.for_layer(conv, config)
    nn.init.normal_(adapter.up.weight)
    x = torch.rand(2, 3, 5, 4)
    out = conv(x)
    linear = nn.Linear(3, 6)
    on_tokens = Bottleneck.for_layer(linear, config)
    on_tokens.load_state_dict(adapter.state_dict())
    expected = on_tokens(x.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(adapter(x, out), expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 6), (2, 3, 4)),
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
        (nn.LayerNorm(4), (2, 3, 4)),
        (nn.BatchNorm2d(4), (2, 4, 5, 5)),
    ],
)
def test_bitfit_is_a_change_of_the_bias(layer, shape):
    layer = layer.eval()
    adapter = BitFit.for_layer(layer, BitFitConfig())
    x = torch.rand(shape)
    assert torch.equal(adapter(x, layer(x)), layer(x))
    assert size(adapter) == len(layer.bias)
    nn.init.normal_(adapter.bias)
    expected = adapter(x, layer(x))
    with torch.no_grad():
        layer.bias.copy_(adapter.merge(layer)["bias"])
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 3, bias=False), nn.LayerNorm((3, 4)), nn.GroupNorm(1, 3), nn.ReLU()]
)
def test_bitfit_needs_one_bias_for_each_channel(layer):
    with pytest.raises(TypeError, match="BitFit needs|is needed"):
        BitFit.for_layer(layer, BitFitConfig())
