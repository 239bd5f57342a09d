import copy
import pickle

import pytest
import torch
from torch import nn

from ir_peft.adapters import (
    AdaptIRConfig,
    BitFitConfig,
    HoulsbyConfig,
    LoRAConfig,
    active_adapter,
    adapter_names,
    adapter_state_dict,
    attach_adapter,
    count_parameters,
    disable_adapters,
    fingerprint,
    print_trainable_parameters,
    set_adapter,
    train_mode,
    trainable_parameters,
    unload,
)
from ir_peft.adapters.core import base_parameters
from ir_peft.adapters.wrappers import AdaptedLayer, SavedModule, Wrapper


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


def train_steps(model, steps=3, shape=(2, 3, 5, 6)):
    """Optimiser steps; returns the parameters that ever had a gradient other than zero."""
    train_mode(model)
    named = trainable_parameters(model)
    optimizer = torch.optim.AdamW(named.values(), lr=1e-2)
    generator = torch.Generator().manual_seed(3)
    reached = set()
    for _ in range(steps):
        batch = torch.rand(shape, generator=generator)
        optimizer.zero_grad()
        out = model(batch)
        (out - torch.rand(out.shape, generator=generator)).abs().mean().backward()
        reached |= {key for key, p in named.items() if p.grad is not None and p.grad.any()}
        optimizer.step()
    model.eval()
    return reached


def test_identity_at_initialisation(tiny, x, method):
    expected = tiny(x)
    assert attach_adapter(tiny, method) is tiny
    assert torch.equal(tiny(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("when", ["before", "after"])
def test_identity_in_other_precisions(tiny, x, method, dtype, when):
    x = x.to(dtype)
    expected = copy.deepcopy(tiny).to(dtype)(x)
    tiny = attach_adapter(tiny.to(dtype), method) if when == "before" else tiny
    tiny = attach_adapter(tiny, method).to(dtype) if when == "after" else tiny
    assert {p.dtype for p in tiny.parameters()} == {dtype}
    assert torch.equal(tiny(x), expected)


def test_identity_and_finite_gradients_under_autocast(tiny, x, adapting):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = tiny(x)
        attach_adapter(tiny, adapting)
        assert torch.equal(tiny(x), expected)
        train_mode(tiny)(x).float().square().sum().backward()
    grads = [p.grad for p in trainable_parameters(tiny).values()]
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in grads)


def test_only_the_adapter_moves(tiny, method):
    """Frozen tensors, BatchNorm statistics among them, are bit-identical after training."""
    before = fingerprint(tiny)
    state = {key: value.clone() for key, value in tiny.state_dict().items()}
    attach_adapter(tiny, method)
    if method == "frozen":
        assert trainable_parameters(tiny) == {}
        return
    start = {key: value.clone() for key, value in adapter_state_dict(tiny).items()}
    reached = train_steps(tiny)
    moved = {key for key, value in adapter_state_dict(tiny).items() if not value.equal(start[key])}
    assert moved >= reached
    assert all(unreachable(key) for key in set(trainable_parameters(tiny)) - reached)
    assert fingerprint(tiny) == before
    if method == "full":  # The copies' BatchNorm statistics stay still as well.
        assert not [key for key in moved if "running" in key or "num_batches" in key]
    unload(tiny)
    assert_same(([], state, []), ([], tiny.state_dict(), []))


def unreachable(key):
    """Softmax is blind to the bias of `compress`, train-mode BatchNorm to that of `head`."""
    return key.endswith(("adaptir.compress.bias", "adaptir.head.bias"))


def test_disable_gives_the_backbone_bit_for_bit(tiny, x, method, helpers):
    expected = tiny(x)
    attach_adapter(tiny, method)
    helpers.move(tiny)
    changed = tiny(x)
    before = snapshot(tiny)
    with disable_adapters(tiny) as same:
        assert same is tiny
        assert active_adapter(tiny) is None
        assert torch.equal(tiny(x), expected)
        assert count_parameters(tiny)[0] == 0
        with disable_adapters(tiny):
            assert torch.equal(tiny(x), expected)
    with pytest.raises(ZeroDivisionError), disable_adapters(tiny):
        _ = 1 / 0
    assert active_adapter(tiny) == "default"
    assert_same(before, snapshot(tiny))
    assert torch.equal(tiny(x), changed)
    assert method == "frozen" or not torch.equal(changed, expected)


def test_several_adapters_and_hot_swap(tiny, x, helpers):
    outputs = {}
    for seed, method in enumerate(helpers.methods):
        attach_adapter(tiny, method, name=method + "_")
        helpers.move(tiny, seed)
        outputs[method] = tiny(x)
    names = [method + "_" for method in helpers.methods]
    assert adapter_names(tiny) == names
    assert len({out.sum().item() for out in outputs.values()}) == len(names)
    for method in reversed(helpers.methods):
        set_adapter(tiny, method + "_")
        assert active_adapter(tiny) == method + "_"
        assert torch.equal(tiny(x), outputs[method]), method
        own = adapter_state_dict(tiny, method + "_")
        assert set(trainable_parameters(tiny)) == {
            key for key in own if not key.endswith(("running_mean", "running_var", "tracked"))
        }
    unload(tiny, "lora_")
    set_adapter(tiny, "houlsby_")
    assert torch.equal(tiny(x), outputs["houlsby"])
    with pytest.raises(ValueError, match=r"no adapter 'lora_' is attached.*'houlsby_'"):
        set_adapter(tiny, "lora_")


def test_unload_restores_everything(tiny, x, method, helpers):
    tiny.conv_first.requires_grad_(False)
    expected, before = tiny(x), snapshot(tiny)
    attach_adapter(tiny, method)
    attach_adapter(tiny, "lora", name="other")
    helpers.move(tiny)
    assert unload(tiny) is tiny
    assert_same(before, snapshot(tiny))
    assert "attached" not in tiny.__dict__
    assert adapter_names(tiny) == []
    assert torch.equal(tiny(x), expected)
    assert unload(tiny) is tiny


def test_unload_of_the_active_one_leaves_none_active(tiny, x):
    expected = tiny(x)
    attach_adapter(tiny, "lora", name="a")
    attach_adapter(tiny, "bitfit", name="b")
    unload(tiny, "b")
    assert active_adapter(tiny) is None
    assert torch.equal(tiny(x), expected)


def test_full_trains_every_parameter_and_counts_it_once(tiny):
    total = sum(p.numel() for p in tiny.parameters())
    attach_adapter(tiny, "full")
    assert count_parameters(tiny) == (total, total)
    assert list(trainable_parameters(tiny)) == list(base_parameters(tiny))


def test_full_keeps_tied_parameters_tied(tiny):
    tiny.blocks[0].norm1.weight = tiny.norm.weight
    attach_adapter(tiny, "full")
    current = tiny.blocks[0].norm1
    assert current.weight is tiny.norm.current.weight
    assert current.weight is not tiny.norm.base_layer.weight


def test_full_refuses_a_parameter_outside_any_submodule(tiny):
    tiny.token = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="token belongs to the model itself"):
        attach_adapter(tiny, "full")


def test_tail_only(tiny, x, helpers):
    expected = tiny(x)
    attach_adapter(tiny, "full", modules_to_save=["norm", "conv_last"])
    assert sorted(trainable_parameters(tiny)) == [
        "conv_last.bias", "conv_last.weight", "norm.bias", "norm.weight"
    ]  # fmt: skip
    helpers.move(tiny)
    assert not torch.equal(tiny(x), expected)
    attach_adapter(tiny, LoRAConfig(target_modules=(), modules_to_save=("norm",)), name="b")
    assert torch.equal(tiny(x), expected)
    assert count_parameters(tiny)[0] == 16


def test_adapter_and_saved_module_in_one_place(tiny, x, helpers):
    """One name adapts the layer that another name trains whole, in both orders."""
    expected = tiny(x)
    attach_adapter(tiny, "full", "whole", modules_to_save=("blocks.0.ffn",))
    attach_adapter(tiny, AdaptIRConfig(target_modules=("blocks.0.ffn",)), "inside")
    attach_adapter(tiny, LoRAConfig(target_modules=("blocks.0.ffn.fc1",)), "deep")
    attach_adapter(tiny, "full", "again", modules_to_save=("blocks.0.ffn", "norm"))
    sizes = {"whole": 312, "inside": None, "deep": 8 * 24, "again": 312 + 16}
    outputs = {}
    for name, size in sizes.items():
        set_adapter(tiny, name)
        assert torch.equal(tiny(x), expected)
        assert size in (None, count_parameters(tiny)[0])
        helpers.move(tiny)
        outputs[name] = tiny(x)
    for name in sizes:
        set_adapter(tiny, name)
        assert torch.equal(tiny(x), outputs[name])
    for name in ("whole", "deep"):
        unload(tiny, name)
    set_adapter(tiny, "inside")
    assert torch.equal(tiny(x), outputs["inside"])
    unload(tiny)
    assert not any(isinstance(module, Wrapper) for module in tiny.modules())
    assert torch.equal(tiny(x), expected)


def test_nested_targets_run_inside_each_other(tiny, x):
    """An adapter on a layer and one on a layer inside it both act."""
    attach_adapter(tiny, BitFitConfig(target_modules=("proj",)))
    attach_adapter(tiny, HoulsbyConfig(target_modules=("attn", "proj"), bottleneck=2), "b")
    named = trainable_parameters(tiny)
    assert {key.split(".houlsby")[0] for key in named} == {
        "blocks.0.attn", "blocks.0.attn.proj", "blocks.1.attn", "blocks.1.attn.proj"
    }  # fmt: skip
    assert train_steps(tiny) == set(named)


def test_train_mode(tiny, method):
    tiny.train()
    attach_adapter(tiny, "adaptir", "idle")
    attach_adapter(tiny, method)
    assert train_mode(tiny) is tiny
    on = {id(module) for module in tiny.modules() if module.training}
    expected = {
        id(module)
        for layer in tiny.modules()
        if isinstance(layer, AdaptedLayer) and layer.active == "default"
        for module in layer.adapters["default"].modules()
    }
    assert on == expected
    assert bool(on) == (method not in ("full", "frozen"))


def test_report(tiny, capsys):
    total = sum(p.numel() for p in tiny.parameters())
    assert count_parameters(tiny) == (total, total)
    attach_adapter(tiny, HoulsbyConfig(target_modules=("ffn",), bottleneck=100), "idle")
    attach_adapter(tiny, LoRAConfig(target_modules=("qkv",), r=3, modules_to_save=("norm",)))
    trained = 2 * 3 * (8 + 24) + 16
    assert count_parameters(tiny) == (trained, total + 2 * 3 * (8 + 24))
    print_trainable_parameters(tiny)
    line = f"trainable params: {trained} || all params: {total + 192:,} || trainable%: "
    assert capsys.readouterr().out == line + f"{100 * trained / (total + 192):.4f}\n"


def test_deepcopy_and_pickle_are_independent(tiny, x, method, helpers):
    attach_adapter(tiny, "lora", "first")
    attach_adapter(tiny, method)
    helpers.move(tiny)
    expected = tiny(x)
    for twin in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):
        assert torch.equal(twin(x), expected)
        assert adapter_names(twin) == ["first", "default"]
        set_adapter(twin, "first")
        helpers.move(twin)
        assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in tiny.parameters())
        own = {tensor.data_ptr() for tensor in twin.state_dict().values()}
        assert all(tensor.data_ptr() in own for tensor in adapter_state_dict(twin).values())
        unload(twin)
    assert active_adapter(tiny) == "default"
    assert torch.equal(tiny(x), expected)


@pytest.mark.parametrize("kind", ["lora", "adaptir", "full"])
def test_compile_without_graph_breaks(tiny, x, kind, helpers):
    attach_adapter(tiny, kind)
    helpers.move(tiny)
    torch._dynamo.reset()
    compiled = torch.compile(tiny, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), tiny(x), rtol=0, atol=1e-6)
    with disable_adapters(tiny):
        torch.testing.assert_close(compiled(x), tiny(x), rtol=0, atol=1e-6)


def test_seed_fixes_the_initialisation_alone(helpers, adapting):
    torch.manual_seed(5)
    a, b, c = (
        adapter_state_dict(attach_adapter(helpers.make(), adapting, seed=s)) for s in (1, 1, 2)
    )
    assert all(a[key].equal(b[key]) for key in a)
    assert adapting in ("ssf", "bitfit") or any(not a[key].equal(c[key]) for key in a)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = helpers.make()
    torch.manual_seed(5)
    attach_adapter(model, adapting, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_parent_reads_the_frozen_layer_through_the_wrapper(tiny):
    weight = tiny.blocks[0].ffn.fc1.weight
    attach_adapter(tiny, LoRAConfig(target_modules=("0.ffn.fc1",), modules_to_save=("blocks.1",)))
    layer = tiny.blocks[0].ffn.fc1
    assert isinstance(layer, AdaptedLayer) and "active='default'" in repr(layer)
    assert layer.weight is weight and layer.in_features == 8
    with pytest.raises(AttributeError, match="no attribute 'weigth'"):
        _ = layer.weigth
    saved = tiny.blocks[1]
    assert isinstance(saved, SavedModule)
    assert saved.ffn is saved.copies["default"].ffn
    with disable_adapters(tiny):
        assert saved.ffn is saved.base_layer.ffn


def test_saved_container_behaves_like_the_container(tiny):
    attach_adapter(tiny, "full", modules_to_save=("blocks",))
    copies = tiny.blocks.copies["default"]
    assert len(tiny.blocks) == 2 and tiny.blocks and tiny.blocks[1] is copies[1]
    assert [*tiny.blocks] == [*copies]


def test_any_module_with_channels_first_sites(helpers):
    """No defaults, no name: a plain convolutional network with targets of one's own."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1)).eval()
    x = torch.rand(2, 3, 7, 5)
    expected = net(x)
    for method in ("adaptir", "lora", "houlsby", "adaptformer", "bitfit"):
        for form in ("parallel", "sequential") if method not in ("lora", "bitfit") else (None,):
            extra = {} if form is None else {"form": form}
            attach_adapter(net, method, "a", target_modules=r"[02]", **extra)
            assert torch.equal(net(x), expected)
            assert train_steps(net, shape=(2, 3, 7, 5)) >= {
                key for key in trainable_parameters(net) if not unreachable(key)
            }
            assert not torch.equal(net(x), expected)
            unload(net)
            assert torch.equal(net(x), expected)


def test_exclude(tiny):
    attach_adapter(tiny, LoRAConfig(target_modules=("fc1", "fc2"), exclude_modules=r"blocks\.0.*"))
    assert {key.split(".lora.")[0] for key in trainable_parameters(tiny)} == {
        "blocks.1.ffn.fc1", "blocks.1.ffn.fc2"
    }  # fmt: skip
