import copy

import pytest
import torch
from torch import nn

from ir_peft.adapters import (
    FacTConfig,
    adapter_state_dict,
    attach_adapter,
    count_parameters,
    load_adapter,
    save_adapter,
    set_adapter,
)


def make(d=4, seed=0):
    """Widths d -> 3d -> d -> 2d -> d, as qkv, proj, fc1, fc2."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(d, 3 * d), nn.Linear(3 * d, d, bias=False), nn.Linear(d, 2 * d),
        nn.Linear(2 * d, d)
    ).double()  # fmt: skip


def test_every_block_of_every_weight_is_a_slice_of_one_tensor():
    """Against the Tucker tensor written out: dW_k = s U C_k V for each d x d block."""
    net = make()
    plain = copy.deepcopy(net)
    x = torch.rand(2, 5, 4, dtype=torch.double)
    attach_adapter(net, FacTConfig(r=3, scale=0.7, target_modules=r"\d"))
    assert torch.equal(net(x), plain(x))
    adapters = [layer.adapters["default"] for layer in net]
    factors = adapters[0].factors
    nn.init.normal_(factors.V)
    P = torch.cat([adapter.P.flatten(1) for adapter in adapters], dim=1)
    assert P.shape == (3, 3 + 3 + 2 + 2)
    tensor = torch.einsum("ir,rst,tk,so->koi", factors.U, factors.C, P, factors.V)
    k = 0
    with torch.no_grad():
        for layer, (a, b) in zip(plain, [(1, 3), (3, 1), (1, 2), (2, 1)], strict=True):
            for i in range(a):
                for j in range(b):
                    block = layer.weight[4 * j : 4 * j + 4, 4 * i : 4 * i + 4]
                    block += 0.7 * tensor[k]
                    k += 1
    net.eval()
    torch.testing.assert_close(net(x), plain(x), rtol=0, atol=1e-12)


def test_the_factors_are_shared_stored_once_and_loaded(tmp_path):
    net = make()
    attach_adapter(net, FacTConfig(r=3, target_modules=r"\d"), seed=1)
    size = 2 * 4 * 3 + 3**3 + 3 * 10
    assert count_parameters(net)[0] == size
    nn.init.normal_(net[0].adapters["default"].factors.V)
    state = adapter_state_dict(net)
    assert list(state) == [
        "0.fact.P", "0.fact.factors.U", "0.fact.factors.V", "0.fact.factors.C",
        "1.fact.P", "2.fact.P", "3.fact.P",
    ]  # fmt: skip
    assert sum(tensor.numel() for tensor in state.values()) == size
    x = torch.rand(2, 4, dtype=torch.double)
    expected = net.eval()(x)
    folder = save_adapter(net, tmp_path / "fact")
    other = attach_adapter(make(), "bitfit", "b", target_modules=("0",))
    load_adapter(other, folder)
    assert torch.equal(other.eval()(x), expected)
    moved = copy.deepcopy(other).float().double()
    torch.testing.assert_close(moved(x), expected, rtol=0, atol=1e-6)
    moved[0].adapters["default"].factors.V.data.zero_()
    assert torch.equal(moved(x), moved.get_submodule("3")(moved[:3](x)))
    assert torch.equal(other(x), expected)


def test_two_adapters_have_factors_of_their_own():
    net = make().eval()
    x = torch.rand(2, 4, dtype=torch.double)
    expected = net(x)
    for name in ("a", "b"):
        attach_adapter(net, FacTConfig(r=2, target_modules=r"\d"), name)
    nn.init.normal_(net[0].adapters["a"].factors.V)
    assert torch.equal(net(x), expected)
    assert not torch.equal(set_adapter(net, "a")(x), expected)


def test_start_and_dropout_of_the_authors():
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    attach_adapter(net, FacTConfig(r=8, target_modules=r"\d"), seed=0)
    first = net[0].adapters["default"]
    factors = first.factors
    assert not factors.V.any()
    P = torch.cat([net[i].adapters["default"].P.flatten(1) for i in (0, 1)], dim=1)
    for tensor, bound in [
        (factors.U, 1 / 8), (factors.C, (6 / (2 * 64)) ** 0.5), (P, (6 / (8 + 2)) ** 0.5)
    ]:  # fmt: skip
        assert 0.8 * bound < tensor.abs().max() <= bound
    x = torch.rand(100, 64)
    nn.init.normal_(factors.V)
    assert first.dropout.p == 0.1
    torch.manual_seed(0)
    assert not torch.equal(first.train()(x, x), first.eval()(x, x))


def test_layers_that_do_not_fit():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    with pytest.raises(TypeError, match=r"fact cannot adapt '0': its widths 4 and 6 .* all .*, 4"):
        attach_adapter(net, FacTConfig(target_modules=("0", "2")))
    with pytest.raises(TypeError, match="fact cannot adapt '1': FacT needs a Linear, not ReLU"):
        attach_adapter(net, FacTConfig(target_modules=("1",)))
    with pytest.raises(ValueError, match="dropout=1 must be"):
        FacTConfig(dropout=1)


def test_compile_without_graph_breaks():
    net = attach_adapter(make(), FacTConfig(r=2, target_modules=r"\d")).eval()
    nn.init.normal_(net[0].adapters["default"].factors.V)
    x = torch.rand(2, 4, dtype=torch.double)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))
