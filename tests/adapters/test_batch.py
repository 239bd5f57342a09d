"""A batch with an adapter for each sample gives what each sample gives alone."""

import pytest
import torch

from ir_peft.adapters import (
    ADAPTERS,
    Adapter,
    active_adapter,
    attach_adapter,
    disable_adapters,
    per_sample,
    set_adapter,
    unload,
)
from ir_peft.backbones import create_backbone

SMALL = {
    "restormer": {"dim": 8, "depths": (1, 1, 1, 1), "refinement": 1},
    "dat_light": {"depths": (2,)},
    "hat_mini": {"depths": (2,)},
    "edt_b": {"dim": 24, "depths": (2,), "heads": 2, "features": 8},
    "ipt_mini": {},
}


def alone(model, x, names):
    """Each sample with its adapter, one after the other."""
    outputs = []
    for sample, name in zip(x, names, strict=True):
        if name is None:
            with disable_adapters(model):
                outputs.append(model(sample[None]))
        else:
            outputs.append(set_adapter(model, name)(sample[None]))
    return torch.cat(outputs)


@torch.no_grad()
def check(model, x, names):
    expected = alone(model, x, names)
    before = active_adapter(model)
    with per_sample(model, names) as same:
        assert same is model and active_adapter(model) is None
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    assert active_adapter(model) == before
    assert not model._forward_pre_hooks
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(alone(model, x, names), expected, rtol=0, atol=0)
    return expected


def pure(method):
    kind = ADAPTERS[method]
    return kind is not None and (kind.run is Adapter.run or kind.run_is_forward)


def test_all_methods_in_one_batch(tiny, helpers):
    tiny.double()  # AdaptIR's phase jumps where rounding changes a sign.
    names = [None]
    for seed, method in enumerate(filter(pure, helpers.methods)):
        attach_adapter(tiny, method, name=method + "_")
        helpers.move(tiny, seed)
        names.append(method + "_")
    names = [*names, names[2], None, names[1]]
    x = torch.rand(1, 3, 5, 6, dtype=torch.float64).expand(len(names), -1, -1, -1)
    expected = check(tiny, x, names)
    assert len({out.sum().item() for out in expected}) == len(names) - 3
    with disable_adapters(tiny):
        assert torch.equal(expected[0], tiny(x[:1])[0])


@pytest.mark.parametrize("backbone", SMALL)
def test_on_every_backbone(backbone, helpers):
    """Attention in windows or patches folds them into the batch, behind their sample."""
    torch.manual_seed(0)
    model = create_backbone(backbone, **SMALL[backbone]).eval()
    for seed, (name, method) in enumerate({"a": "adair", "b": "lora"}.items()):
        attach_adapter(model, method, name=name)
        helpers.move(model, seed)
    model.double()
    x = torch.rand(4, 3, 24, 24, dtype=torch.float64)
    check(model, x, ["a", None, "b", "a"])


def test_one_method_twice_and_tasks_of_one_sample(tiny, x, helpers):
    for seed, name in enumerate(("derain", "denoise")):
        attach_adapter(tiny, "adair", name=name)
        helpers.move(tiny, seed)
    check(tiny, x, ["derain", "denoise"])
    check(tiny, x, [None, None])
    check(tiny, x[:1], ["denoise"])


def test_leaves_the_model_alone_after_an_error(tiny, x):
    attach_adapter(tiny, "adair", name="a")
    attach_adapter(tiny, "lora", name="b")
    with per_sample(tiny, ["a", "b", None]), pytest.raises(ValueError, match="2 samples, but 3"):
        tiny(x)
    with pytest.raises(ZeroDivisionError), per_sample(tiny, ["a", "b"]):
        _ = 1 / 0
    assert active_adapter(tiny) == "b"
    assert not any(module._forward_hooks for module in tiny.modules())


def test_refusals(tiny):
    attach_adapter(tiny, "adair", name="a")
    with pytest.raises(ValueError, match=r"no adapter 'derian' is attached; attached: \['a'\]"):
        per_sample(tiny, ["a", "derian"]).__enter__()
    with pytest.raises(ValueError, match="names is empty"):
        per_sample(tiny, []).__enter__()
    attach_adapter(tiny, "lora", name="tail", modules_to_save=("norm",))
    with pytest.raises(TypeError, match=r"'tail' replaces whole modules \(norm\)"):
        per_sample(tiny, ["a", "tail"]).__enter__()
    unload(tiny, "tail")
    with pytest.raises(ValueError, match="call model.eval"):
        per_sample(tiny.train(), ["a"]).__enter__()


def test_an_adapter_that_acts_before_its_layer_is_refused(tiny, monkeypatch):
    attach_adapter(tiny, "adair", name="early")
    monkeypatch.setattr(ADAPTERS["adair"], "run", lambda self, layer, x: layer(x))
    with pytest.raises(TypeError, match=r"'early' \(adair\) acts before 'blocks.0.attn' runs"):
        per_sample(tiny, ["early"]).__enter__()
