"""Linear CKA against its definition by kernels, its invariances, and features of models."""

import pytest
import torch

from ir_peft.adapters import attach_adapter, disable_adapters
from ir_peft.backbones import create_backbone
from ir_peft.similarity import cka_map, features, linear_cka

SMALL = {"dim": 8, "depths": (1, 1, 1, 1), "refinement": 1}
BLOCKS = r"(encoder_level1|latent|refinement)\.0"


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic(k, m):
    """tr(K H L H) / (n - 1)^2, H = I - 1/n (Gretton et al. 2005), without any shortcut."""
    n = len(k)
    h = torch.eye(n, dtype=k.dtype) - 1 / n
    return torch.trace(k @ h @ m @ h) / (n - 1) ** 2


def by_kernels(x, y):
    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()


@pytest.mark.parametrize("n, p, q", [(50, 3, 7), (6, 40, 30), (20, 60, 2), (2, 1, 1)])
def test_equals_the_normalised_hsic_of_linear_kernels(n, p, q):
    x = random(n, p) + 3  # Not centred.
    y = random(n, q, seed=1) + x[:, :1]
    assert linear_cka(x, y) == pytest.approx(by_kernels(x, y).item(), abs=1e-12)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), abs=1e-12)
    assert 0 <= linear_cka(x, y) <= 1


def test_by_hand():
    """Two orthogonal patterns share nothing; with one of two in common it is 1 / sqrt(2)."""
    a = torch.tensor([1.0, 1, -1, -1])
    b = torch.tensor([1.0, -1, 1, -1])
    assert linear_cka(a[:, None], b[:, None]) == 0
    both = torch.stack([a, b], dim=1)
    assert linear_cka(a[:, None], both) == pytest.approx(0.5**0.5)
    assert linear_cka(both, both) == pytest.approx(1)


@pytest.mark.parametrize("n, p", [(40, 5), (7, 20)])
def test_blind_to_rotation_scale_and_shift_but_not_to_other_maps(n, p):
    x, y = random(n, p), random(n, 4, seed=1)
    expected = linear_cka(x, y)
    rotation = torch.linalg.qr(random(p, p, seed=2)).Q
    reflection = torch.eye(p, dtype=torch.float64)
    reflection[0, 0] = -1
    for changed in (x @ rotation, x @ reflection, x * 1e-6, x * -300, x + random(p, seed=3)):
        assert linear_cka(changed, y) == pytest.approx(expected, abs=1e-10)
        assert linear_cka(changed, x) == pytest.approx(1, abs=1e-10)
    stretched = x * torch.arange(1, p + 1)
    assert abs(linear_cka(stretched, x) - 1) > 0.01


def test_refusals():
    x = random(5, 3)
    for a, b in ((x, random(4, 3)), (x[0], x[0]), (x[:1], x[:1])):
        with pytest.raises(ValueError, match="n > 1"):
            linear_cka(a, b)
    with pytest.raises(ValueError, match="not finite"):
        linear_cka(x, x / 0)
    with pytest.raises(ValueError, match="the same for every sample"):
        linear_cka(x, torch.ones(5, 2))
    with pytest.raises(ValueError, match=r"numbers of samples: \[4, 5\]"):
        cka_map({"a": x}, {"b": random(4, 3)})


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_backbone("restormer", **SMALL)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(4)
    return [torch.rand(3, 32, 48, generator=generator), torch.rand(3, 40, 32, generator=generator)]


def test_features_are_cell_means_of_the_layers_outputs(model, images):
    kept = []
    model.latent.register_forward_hook(lambda module, inputs, out: kept.append(out))
    model.train()
    found = features(model, ("latent.0", "encoder_level1.0"), images, grid=4)
    assert model.training
    assert {name: x.shape for name, x in found.items()} == {
        "encoder_level1.0": (32, 8),
        "latent.0": (32, 64),
    }
    out = kept[0].double()  # (1, 64, 4, 6) of the first image: cells of 1 x 1.5 pixels.
    rows = out[0, :, :, [0, 1, 1, 2, 3, 4, 4, 5]].unflatten(2, (4, 2)).mean(dim=3)
    torch.testing.assert_close(found["latent.0"][:16], rows.flatten(1).T)
    assert not model.latent[0]._forward_hooks


def test_maps_of_one_model_and_of_two(model, images):
    a = features(model, BLOCKS, images, grid=4)
    own = cka_map(a, a)
    assert own.shape == (3, 3) and own.dtype == torch.float64
    torch.testing.assert_close(own, own.T)
    torch.testing.assert_close(own.diagonal(), torch.ones(3, dtype=torch.float64))
    torch.manual_seed(1)
    b = features(create_backbone("restormer", **SMALL), BLOCKS, images, grid=4)
    both = cka_map(a, b)
    assert both[0, 1] == pytest.approx(linear_cka(a["encoder_level1.0"], b["latent.0"]))
    assert (both < 1 - 1e-3).all()


def test_with_and_without_an_adapter(model, images):
    before = features(model, BLOCKS, images, grid=4)
    attach_adapter(model, "adair", init="default")
    after = features(model, BLOCKS, images, grid=4)
    assert list(after) == list(before)
    assert cka_map(before, after).diagonal()[1] < 1
    with disable_adapters(model):
        again = features(model, BLOCKS, images, grid=4)
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_channels_last(images):
    torch.manual_seed(0)
    model = create_backbone("dat_light", depths=(2,))
    layers = r"layers\.0\.blocks\.\d\.ffn"
    found = features(model, layers, images, grid=4, channels_last=True)
    assert {x.shape for x in found.values()} == {(32, 60)} and len(found) == 2


def test_features_say_what_is_wrong(model, images):
    with pytest.raises(ValueError, match="no module matches 'latnet'"):
        features(model, ("latnet",), images)
    with pytest.raises(ValueError, match="no images"):
        features(model, ("latent",), [])
    with pytest.raises(ValueError, match="'latent' gives 4 x 6 pixels, fewer than 8 cells"):
        features(model, ("latent",), images)
    assert not model.latent._forward_hooks
    torch.manual_seed(0)
    tokens = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten(2))
    with pytest.raises(ValueError, match="'1' does not give images"):
        features(tokens, ("1",), images)
    tokens.add_module("idle", torch.nn.Conv2d(3, 3, 1))
    tokens.forward = lambda x: tokens[0](x)
    with pytest.raises(ValueError, match="'idle' ran 0 times on 2 images"):
        features(tokens, ("idle",), images)
