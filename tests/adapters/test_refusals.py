"""Bad input to attach_adapter: a clear error, and the model is as it was."""

import pytest
import torch
from torch import nn

from ir_peft.adapters import BitFitConfig, FullConfig, LoRAConfig, adapter_names, attach_adapter


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


def refused(model, error, match, *args, **kwargs):
    before = snapshot(model)
    with pytest.raises(error, match=match):
        attach_adapter(model, *args, **kwargs)
    assert_same(before, snapshot(model))
    assert "attached" not in model.__dict__


def test_regex_without_a_match(tiny):
    refused(
        tiny, ValueError, r"no module matches 'blocks.*ffm'; nearest names: .*'blocks.0.ffn'",
        "lora", target_modules=r"blocks\.\d+\.ffm",
    )  # fmt: skip
    refused(tiny, ValueError, r"for a suffix write \('fc1',\)", "lora", target_modules="fc1")
    refused(tiny, ValueError, "no module matches 'fc3'", "lora", target_modules=("fc1", "fc3"))
    refused(tiny, ValueError, "no regular expression", "lora", target_modules="blocks.(")
    refused(
        tiny, ValueError, "excludes all", "lora", target_modules=("fc1",), exclude_modules=r".*fc1"
    )
    refused(
        tiny, ValueError, "no module matches 'nrom'; nearest names: 'norm'",
        "lora", modules_to_save=("nrom",),
    )  # fmt: skip


def test_unknown_method_field_and_value(tiny):
    refused(tiny, ValueError, "unknown method 'adaptr'; nearest: 'adaptir'", "adaptr")
    refused(tiny, ValueError, "no field 'rnk'; nearest: 'rank'", "adaptir", rnk=2)
    refused(tiny, TypeError, "r: set these in LoRAConfig", LoRAConfig(), r=2)
    refused(tiny, TypeError, "is no method's config", object())
    for method, field, value in [
        ("lora", "r", 0), ("lora", "r", 2.5), ("adaptir", "hidden", -1), ("adaptir", "gate", "3"),
        ("adaptir", "form", "both"), ("adaptir", "branches", ()),
        ("adaptir", "branches", ("lim", "fma")),
        ("houlsby", "bottleneck", True), ("houlsby", "activation", "silu"),
        ("ssf", "init_std", -0.1), ("ssf", "init_std", "0.02"), ("ssf", "init_std", float("nan")),
        ("lora", "target_modules", 3),
        ("lora", "modules_to_save", "norm"), ("frozen", "modules_to_save", ("norm",)),
        ("full", "target_modules", ("fc1",)),
    ]:  # fmt: skip
        refused(tiny, ValueError, field, method, **{field: value})


def test_layers_that_do_not_fit(tiny):
    for method, target, match in [
        ("lora", "norm", r"lora cannot adapt 'norm'.*LayerNorm"),
        ("adaptir", "norm", r"neither Linear nor Conv2d"),
        ("houlsby", r"blocks\.0\.site", r"'blocks.0.site': Identity is neither"),
        ("bitfit", r"blocks\.0\.ffn", "LayerNorm or BatchNorm with a weight is needed"),
    ]:
        refused(tiny, TypeError, match, method, target_modules=target)
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=4)
    )
    for site in "01":
        refused(net, TypeError, "not of its input's size", "adaptir", target_modules=site)
        refused(net, TypeError, "not of its input's size", "adaptformer", target_modules=site)
    refused(net, TypeError, "without groups", "lora", target_modules="2")


def test_layers_whose_parent_would_bypass_the_adapter():
    net = nn.ModuleDict({"layer": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)})
    for target in ("layer.linear1", "layer.self_attn.out_proj"):
        refused(net, TypeError, "would not run", "lora", target_modules=(target,))


def test_one_module_under_two_names(tiny):
    tiny.blocks[1].ffn = tiny.blocks[0].ffn
    refused(tiny, ValueError, "several names: blocks.0.ffn, blocks.1.ffn", "adaptir")


def test_adapter_inside_a_module_that_is_trained_whole(tiny):
    refused(
        tiny, ValueError, "'blocks.0.ffn' is or lies inside 'blocks'",
        "adaptir", modules_to_save=("blocks",),
    )  # fmt: skip
    refused(
        tiny, ValueError, "'norm' is or lies inside 'norm'",
        BitFitConfig(target_modules=("norm",), modules_to_save=("norm",)),
    )  # fmt: skip
    refused(
        tiny, ValueError, "'blocks.1' is or lies inside 'blocks'",
        FullConfig(modules_to_save=("blocks.1", "blocks")),
    )  # fmt: skip


def test_names_and_missing_targets(tiny):
    for name in ("", "a.b", "keys", "training"):
        refused(tiny, ValueError, "cannot name an adapter", "lora", name)
    refused(
        nn.Sequential(nn.Linear(2, 2)), ValueError, "give target_modules", "lora",
    )  # fmt: skip
    refused(tiny, ValueError, "nothing would be trained", "lora", target_modules=())
    attach_adapter(tiny, "lora")
    with pytest.raises(ValueError, match="'default' is attached already"):
        attach_adapter(tiny, "bitfit")
    assert adapter_names(tiny) == ["default"]
