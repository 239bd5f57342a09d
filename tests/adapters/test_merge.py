"""Merging an adapter into the weights: exact where it can be, refused where not."""

import pytest
import torch

from ir_peft.adapters import (
    attach_adapter,
    disable_adapters,
    merge_and_unload,
    trainable_parameters,
    unload,
)
from ir_peft.backbones import create_backbone


def snapshot(model):
    """Everything that must not change: modules, tensors, flags, modes."""
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    return modules, tensors, [p.requires_grad for p in model.parameters()]


def assert_same(before, after):
    assert before[0] == after[0]
    assert before[2] == after[2]
    assert before[1].keys() == after[1].keys()
    for key, value in before[1].items():
        assert torch.equal(value, after[1][key]), key


@pytest.mark.parametrize("kind", ["lora", "ssf", "fact", "bitfit"])
def test_merge(tiny, x, kind, helpers):
    tiny, x = tiny.double(), x.double()
    before = snapshot(tiny)
    attach_adapter(tiny, kind, modules_to_save=("norm",))
    helpers.move(tiny)
    expected = tiny(x)
    assert merge_and_unload(tiny) is tiny
    torch.testing.assert_close(tiny(x), expected, rtol=0, atol=1e-12)
    after = snapshot(tiny)
    assert before[0] == after[0] and before[2] == after[2]
    assert before[1].keys() == after[1].keys()
    assert merge_and_unload(tiny) is tiny
    assert_same(after, snapshot(tiny))


@pytest.mark.parametrize("kind", ["adaptir", "houlsby", "adaptformer"])
def test_merge_is_refused_with_a_reason(tiny, kind):
    attach_adapter(tiny, kind)
    before = snapshot(tiny)
    with pytest.raises(TypeError, match="not linear in the layer's input"):
        merge_and_unload(tiny)
    assert_same(before, snapshot(tiny))


def test_merge_refuses_values_that_are_not_finite(tiny):
    attach_adapter(tiny, "lora")
    next(iter(trainable_parameters(tiny).values())).data.fill_(float("nan"))
    before = snapshot(tiny)
    with pytest.raises(ValueError, match=r"merging 'blocks.0.attn.qkv' .* not finite"):
        merge_and_unload(tiny)
    assert before[0] == snapshot(tiny)[0]


def test_merging_full_gives_a_plain_model(tiny, x, helpers):
    before = snapshot(tiny)
    attach_adapter(tiny, "full")
    helpers.move(tiny)
    expected = tiny(x)
    merge_and_unload(tiny)
    assert torch.equal(tiny(x), expected)
    assert before[0] == snapshot(tiny)[0] and before[2] == snapshot(tiny)[2]


def test_merge_needs_an_active_adapter(tiny):
    attach_adapter(tiny, "lora", name="a")
    attach_adapter(tiny, "bitfit", name="b")
    unload(tiny, "b")
    with pytest.raises(ValueError, match=r"no adapter is active; set one of \['a'\]"):
        merge_and_unload(tiny)


def test_merge_reaches_values_that_the_backbone_keeps():
    """DAT keeps its position bias while it is frozen; switching and merging must outdate it."""
    model = create_backbone("dat_s", scale=2, depths=(1,)).eval()
    x = torch.rand(1, 3, 8, 9)
    with torch.no_grad():
        model(x)
        attach_adapter(model, "lora", target_modules=r".*\.pos[123]\.2", r=2)
        for p in trainable_parameters(model).values():
            p.add_(0.5 * torch.randn_like(p))
        expected = model(x)
        with disable_adapters(model):
            frozen = model(x)
        model.requires_grad_(False)
        assert torch.equal(model(x), expected)
        with disable_adapters(model):
            assert torch.equal(model(x), frozen)
        merge_and_unload(model)
        assert (model(x) - expected).abs().max() < 0.02 * (expected - frozen).abs().max()


def test_merging_a_model_that_was_trained_whole():
    """Restormer has parameters beside no weight, such as each attention's temperature."""
    settings = {"dim": 8, "depths": (1, 1, 1, 1), "refinement": 1}
    model = create_backbone("restormer", **settings).eval()
    before = snapshot(model)
    attach_adapter(model, "full")
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        for p in trainable_parameters(model).values():
            p.add_(0.1)
        expected = model(x)
        merge_and_unload(model)
        assert torch.equal(model(x), expected)
    after = snapshot(model)
    assert before[0] == after[0] and before[2] == after[2]
