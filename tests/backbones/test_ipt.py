"""IPT against spandrel's implementation; its windowed inference against the definition as well."""

import pytest
import torch
from spandrel.architectures.IPT.__arch import ipt as spandrel_ipt
from spandrel.architectures.IPT.__arch.model import Model as ReferenceChop

import ir_peft
from ir_peft import adapters
from ir_peft.backbones import ipt
from ir_peft.backbones.chop import chop

NARROW = {"channels": 16, "patch_size": 12, "heads": 3, "depth": 2}
TOTAL = 118_892_394


def reference(out_bias=False, scales=(2, 3, 4, 1, 1, 1), seed=0):
    """spandrel's model at the widths of NARROW; position-free parts at random as well."""
    torch.manual_seed(seed)
    model = spandrel_ipt.IPT(
        patch_size=12, n_feats=16, scale=list(scales), num_heads=3, num_layers=2, num_queries=6
    )
    for module in model.modules():
        if out_bias and isinstance(module, torch.nn.MultiheadAttention):
            module.out_proj.bias = torch.nn.Parameter(torch.randn(144))
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    return model.eval()


@pytest.fixture(scope="module")
def pair():
    """The reference and our model with its weights, in float64."""
    theirs = reference().double()
    ours = ipt.ipt(**NARROW).double().eval()
    ours.load_state_dict(ipt.checkpoint_filter(theirs.state_dict()), strict=True)
    return ours, theirs


def test_every_branch_equals_the_reference(pair):
    ours, theirs = pair
    x = torch.rand(3, 3, 12, 12, dtype=torch.float64)
    outputs = []
    with torch.no_grad():
        for task, branch in ipt.TASK_MAP.items():
            ours.set_task(task)
            theirs.set_scale(branch)
            s = theirs.scale[branch]
            assert (ours.task, ours.scale) == (task, s)
            outputs.append(ours(x))
            assert outputs[-1].shape == (3, 3, 12 * s, 12 * s)
            torch.testing.assert_close(outputs[-1], theirs(255 * x) / 255, rtol=0, atol=1e-11)
    assert not torch.allclose(outputs[5], outputs[7])  # derain and denoise_30 differ.


@pytest.mark.parametrize("branch", [0, 1, 3])
@pytest.mark.parametrize(("h", "w"), [(12, 12), (13, 12), (15, 20), (19, 17)])
def test_larger_images_equal_the_authors_inference(pair, branch, h, w):
    ours, theirs = pair
    ours.set_task(branch)
    x = torch.rand(2, 3, h, w, dtype=torch.float64)
    with torch.no_grad():
        expected = [ReferenceChop(theirs).forward(255 * y[None], branch) / 255 for y in x]
        torch.testing.assert_close(ours(x), torch.cat(expected), rtol=0, atol=1e-11)
        torch.testing.assert_close(
            ours.forward_chop(x, batch_size=3), torch.cat(expected), rtol=0, atol=1e-11
        )


@pytest.mark.parametrize(("h", "w"), [(1, 1), (5, 12), (2, 17)])
def test_smaller_sides_are_continued_in_their_mirror(pair, h, w):
    ours, _ = pair
    ours.set_task("sr_2")
    x = torch.rand(1, 3, h, w, dtype=torch.float64)
    rows = [i % (2 * h) for i in range(max(h, 12))]
    columns = [j % (2 * w) for j in range(max(w, 12))]
    padded = x[..., [min(i, 2 * h - 1 - i) for i in rows], :]
    padded = padded[..., [min(j, 2 * w - 1 - j) for j in columns]]
    with torch.no_grad():
        assert torch.equal(ours(x), ours(padded)[..., : 2 * h, : 2 * w])


def contributors(r, length, p, s):
    """Starts of the windows that give output pixel r of one axis, by the authors' scheme."""
    rest = (length - p) % (p // 4)
    if r >= s * (length - rest) - s * (p - rest) // 2:
        return [length - p]
    inside = [t for t in range(0, length - p + 1, p // 4) if p // 4 <= r / s - t < p - p // 4]
    return inside or [0]


@pytest.mark.parametrize("s", [1, 2, 3])
@pytest.mark.parametrize(("H", "W"), [(8, 8), (9, 10), (11, 19), (16, 13)])
def test_chop_is_the_mean_of_the_windows_that_the_definition_names(s, H, W):
    p, seen = 8, []

    def factor(row, column):  # The output of a window tells where in the window it comes from.
        return 1 + row * s * p + column

    def restore(x):
        seen.append(len(x))
        place = torch.arange(s * p)
        return x.repeat_interleave(s, -1).repeat_interleave(s, -2) * factor(place[:, None], place)

    x = torch.rand(2, 3, H, W)
    got = chop(restore, x, p, s, batch_size=5)
    assert max(seen) <= 5
    split = s * (W - (W - p) % 2) - s * (p - (W - p) % 2) // 2
    expected = torch.empty_like(got)
    for r in range(s * H):
        for c in range(s * W):
            rows, columns = contributors(r, H, p, s), contributors(c, W, p, s)
            if r < s * p // 4 and c < min(s * p, split):
                rows = columns = [0]  # Along the top the first window stands alone.
            values = [factor(r - s * i, c - s * j) for i in rows for j in columns]
            expected[:, :, r, c] = x[:, :, r // s, c // s] * sum(values) / len(values)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_larger_images_are_differentiable(pair):
    ours, _ = pair
    ours.set_task("denoise_30")
    x = torch.rand(1, 3, 14, 13, dtype=torch.float64, requires_grad=True)
    ours(x).sum().backward()
    assert (x.grad != 0).all()


def test_parameter_counts():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        model = ipt.ipt()
        assert count(ipt.ipt(out_bias=True)) == 118_913_130
    assert count(model) == TOTAL
    assert count(model.body) == 115_636_608
    assert [count(head) for head in model.head] == [411_648] * 6
    assert count(model.tail) == 785_874


def test_full_size_has_the_authors_keys_and_shapes():
    with torch.device("meta"):
        ours = ipt.ipt().state_dict()
    theirs = ipt.official_state_dict(ours)
    attention = "body.decoder.layers.11.multihead_attn."
    shapes = {
        attention + "in_proj_weight": (1728, 576),
        attention + "out_proj.weight": (576, 576),
        "body.encoder.layers.0.linear1.weight": (2304, 576),
        "body.query_embed.weight": (6, 147_456),
        "body.position_encoding.pe.weight": (256, 576),
        "body.position_encoding.position_ids": (1, 256),
        "head.5.2.body.2.weight": (64, 64, 5, 5),
        "tail.1.0.0.weight": (576, 64, 3, 3),
        "tail.2.0.2.weight": (256, 64, 3, 3),
    }
    assert {key: tuple(theirs[key].shape) for key in shapes} == shapes
    assert {k: v.shape for k, v in ipt.checkpoint_filter(theirs).items()} == {
        k: v.shape for k, v in ours.items()
    }
    narrow = reference().state_dict()
    assert {key for key in theirs if not key.startswith("body.")} == {
        key for key in narrow if not key.startswith("body.")
    }


@pytest.mark.parametrize("out_bias", [False, True])
@pytest.mark.parametrize("container", [None, "params", "net"])
def test_official_files_load(tmp_path, out_bias, container):
    theirs = reference(out_bias)
    state = theirs.state_dict()
    if container == "net":
        content = {"state_dict": {f"net.{key}": value for key, value in state.items()}}
    else:
        content = state if container is None else {container: state}
    torch.save(content, tmp_path / "IPT_pretrain.pt")
    ours = ir_peft.load_backbone(tmp_path / "IPT_pretrain.pt")
    assert (ours.name, ours.task, ours.scale) == ("ipt", "sr_4", 4)
    back = ipt.official_state_dict(ours.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    x = torch.rand(2, 3, 12, 12)
    theirs.set_scale(2)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(255 * x) / 255, rtol=0, atol=1e-5)


def test_our_own_keys_load_as_well(tmp_path, pair):
    ours, _ = pair
    torch.save(ours.float().state_dict(), tmp_path / "ours.pt")
    loaded = ir_peft.load_backbone(tmp_path / "ours.pt")
    ours.double()
    assert all(torch.equal(v.float(), loaded.state_dict()[k]) for k, v in ours.state_dict().items())


@pytest.mark.parametrize(("scale", "task"), [(2, "sr_2"), (1, "denoise_30")])
def test_files_for_a_single_task_load(tmp_path, scale, task):
    theirs = reference(scales=(scale,))
    torch.save(theirs.state_dict(), tmp_path / "IPT_single.pt")
    ours = ir_peft.load_backbone(tmp_path / "IPT_single.pt")
    ours.set_task(task)
    x = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(255 * x) / 255, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="no task 'sr_3'"):
        ours.set_task("sr_3")


def test_a_lost_output_bias_is_noticed(tmp_path):
    state = reference(out_bias=True).state_dict()
    del state["body.decoder.layers.1.multihead_attn.out_proj.bias"]
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(ValueError, match=r"1 tensors are missing.*decoder\.layers\.1"):
        ir_peft.load_backbone(tmp_path / "broken.pt")


def test_tasks():
    with torch.device("meta"):
        model = ipt.ipt(**NARROW)
        assert [ipt.ipt(scale=s, **NARROW).task for s in (2, 3, 4)] == ["sr_2", "sr_3", "sr_4"]
        assert ipt.ipt(task="low_light", **NARROW).scale == 1
        with pytest.raises(ValueError, match="several branches"):
            ipt.ipt(scale=1, **NARROW)
        with pytest.raises(ValueError, match="has scale 4, not 2"):
            ipt.ipt(scale=2, task="sr_4", **NARROW)
        with pytest.raises(ValueError, match="not 8"):
            ipt.ipt(scale=8, **NARROW)
        with pytest.raises(ValueError, match="patch_size"):
            ipt.ipt(**{**NARROW, "patch_size": 15})
    for alias, task in ipt.ALIASES.items():
        model.set_task(alias)
        assert model.task == task
    before = model.task
    with pytest.raises(ValueError, match="did you mean 'denoise_50'"):
        model.set_task("denoise_51")
    with pytest.raises(ValueError, match="no task 6"):
        model.set_task(6)
    assert model.task == before


@pytest.mark.parametrize(
    ("method", "count", "sites"),
    [
        ("adaptir", 697_656, 24),
        ("houlsby", 691_776, 48),
        ("lora", 995_328, 72),
        ("adaptformer", 677_952, 24),
    ],
)
def test_adapters_have_the_papers_sizes(method, count, sites):
    with torch.device("meta"):
        model = ipt.ipt()
    ir_peft.attach_adapter(model, method)
    assert ir_peft.count_parameters(model) == (count, TOTAL + count)
    assert sum(hasattr(module, "base_layer") for module in model.modules()) == sites


@pytest.mark.parametrize("method", ["adaptir", "lora", "houlsby", "adaptformer", "bitfit"])
def test_adapters_start_as_the_identity_and_all_act(method):
    torch.manual_seed(0)
    model = ipt.ipt(**NARROW).eval()
    x = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        before = model(x)
        ir_peft.attach_adapter(model, method)
        assert torch.equal(model(x), before)
    model(x).square().mean().backward()
    trained = adapters.trainable_parameters(model)
    by_site = {}
    for name, parameter in trained.items():
        layers = name.split(".layers.")[0], *name.split(".layers.")[1].split(".")[:3]
        moved = parameter.grad is not None and bool(parameter.grad.any())
        by_site[layers] = by_site.get(layers, False) or moved
    assert all(by_site.values()), by_site


@pytest.mark.slow
def test_full_size_equals_the_reference():
    torch.manual_seed(0)
    scales = [2, 3, 4, 1, 1, 1]
    theirs = spandrel_ipt.IPT(patch_size=48, n_feats=64, scale=scales, num_queries=6).eval()
    ours = ipt.ipt().eval()
    ours.load_state_dict(ipt.checkpoint_filter(theirs.state_dict()), strict=True)
    theirs.set_scale(2)
    x = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        in_fp32 = ours(x), theirs(255 * x) / 255
        exact = theirs.double()(255 * x.double()) / 255
        del theirs
        torch.testing.assert_close(ours.double()(x.double()), exact, rtol=0, atol=1e-10)
    # Random weights amplify rounding to about 1e-4 in fp32, in both implementations alike.
    error, theirs_error = ((y - exact).abs().max() for y in in_fp32)
    assert error < 2 * theirs_error < 1e-3
