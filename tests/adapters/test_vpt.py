"""VPT on a small IPT: literal prompts in front of each layer's tokens, seen by all of them."""

import pytest
import torch
from torch import nn

from ir_peft.adapters import (
    VPTConfig,
    attach_adapter,
    count_parameters,
    disable_adapters,
    load_adapter,
    merge_and_unload,
    save_adapter,
    set_adapter,
    train_mode,
    trainable_parameters,
)
from ir_peft.backbones import create_backbone


def make():
    torch.manual_seed(0)
    return create_backbone("ipt", channels=4, heads=3, depth=2, expansion=2, patch_size=12).eval()


@pytest.fixture
def ipt():
    return make()


@pytest.fixture
def x():
    return torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(7))


def reference(layer, prompts, x, query=None, memory=None):
    """The released layer, of torch's own attention, on sequences with the prompts in front."""

    def attend(own, q, k, v):
        mha = nn.MultiheadAttention(own.in_features, own.heads, bias=False, batch_first=True)
        mha.in_proj_weight.data = torch.cat([own.q.weight, own.k.weight, own.v.weight])
        mha.out_proj.weight.data = own.out_proj.weight.data
        return mha(q, k, v, need_weights=False)[0]

    n = len(prompts)
    y = torch.cat([prompts.expand(len(x), -1, -1), x.flatten(1, 2)], dim=1)  # (B, n + N, C)
    code = 0 if query is None else torch.cat([0 * prompts, query.flatten(0, 1)])
    z = layer.norm1(y)
    y = y + attend(layer.self_attn, z + code, z + code, z)
    z = layer.norm2(y)
    if memory is not None:
        memory = memory.flatten(1, 2)
        y = y + attend(layer.multihead_attn, z + code, memory, memory)
        z = layer.norm3(y)
    return (y + layer.ffn(z))[:, n:].reshape(x.shape)


def test_every_layer_sees_its_prompts(ipt):
    attach_adapter(ipt, VPTConfig(prompts=5, init_std=1.0, target_modules=r".*coder\.layers\.\d"))
    x, memory = torch.randn(2, 2, 4, 4, 36)
    query = torch.randn(4, 4, 36)
    for layer in ipt.body.encoder.layers:
        prompts = layer.adapters["default"].prompts
        torch.testing.assert_close(layer(x), reference(layer.base_layer, prompts, x))
    for layer in ipt.body.decoder.layers:
        prompts = layer.adapters["default"].prompts
        expected = reference(layer.base_layer, prompts, x, query, memory)
        torch.testing.assert_close(layer(x, query, memory), expected)
        torch.testing.assert_close(layer(x, memory=memory, query=query), expected)


def test_attention_to_the_tokens_twice_is_attention_to_them_once(ipt):
    """Prompts equal to the tokens change nothing: they are seen exactly as tokens are."""
    attach_adapter(ipt, VPTConfig(prompts=16, target_modules=r"body\.encoder\.layers\.0"))
    layer = ipt.body.encoder.layers[0]
    x = torch.randn(1, 4, 4, 36)
    changed = layer(x)
    layer.adapters["default"].prompts.data = x.flatten(0, 2)
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    assert (changed - layer.base_layer(x)).abs().max() > 1e-3


def test_life_of_the_one_adapter_that_is_not_the_identity(ipt, x, tmp_path):
    with torch.no_grad():
        expected = ipt(x)
        attach_adapter(ipt, "vpt", "a", seed=0)
        first = ipt(x)
        attach_adapter(ipt, "vpt", "b", prompts=3, seed=1)
        assert count_parameters(ipt)[0] == 4 * 3 * 36
        set_adapter(ipt, "a")
        assert torch.equal(ipt(x), first) and not torch.equal(first, expected)
        with disable_adapters(ipt):
            assert torch.equal(ipt(x), expected)
    assert count_parameters(ipt)[0] == 4 * 64 * 36
    train_mode(ipt)(x).square().mean().backward()
    grads = {key: p.grad for key, p in trainable_parameters(ipt).items()}
    assert len(grads) == 4 and all(g.any(dim=1).all() for g in grads.values())
    folder = save_adapter(ipt, tmp_path / "vpt", "a")
    with torch.no_grad():
        assert torch.equal(load_adapter(make(), folder)(x), first)
        assert ipt(torch.rand(1, 3, 13, 20)).shape == (1, 3, 52, 80)
    with pytest.raises(TypeError, match="not linear in the layer's input"):
        merge_and_unload(ipt)


def test_start(ipt):
    attach_adapter(ipt, "vpt", prompts=300)
    prompts = ipt.body.decoder.layers[1].adapters["default"].prompts
    assert prompts.shape == (300, 36) and abs(prompts.std() - 0.02) < 1e-3
    assert abs(prompts.mean()) < 1e-3


def test_under_autocast_and_compiled(ipt, x):
    attach_adapter(ipt, "vpt")
    with torch.no_grad():
        expected = ipt(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(ipt(x).float(), expected, rtol=0.05, atol=0.05)
        layer = ipt.body.encoder.layers[0]
        y = torch.rand(1, 4, 4, 36)
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(y), layer(y))


def test_windows_have_no_place_for_prompts(ipt):
    for model, site in [
        (ipt, r"body\.encoder\.layers\.0\.self_attn"),
        (create_backbone("dat_light", depths=(1,)), r"layers\.0\.blocks\.0"),
    ]:
        with pytest.raises(TypeError, match=r"vpt cannot adapt .* body.encoder.layers.0 of an IPT"):
            attach_adapter(model, VPTConfig(target_modules=site))
        assert "attached" not in model.__dict__
    with pytest.raises(ValueError, match="DAT has no default sites for 'vpt'"):
        attach_adapter(create_backbone("dat_light", depths=(1,)), "vpt")
