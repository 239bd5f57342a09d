"""ASteISR: counts of the paper's models, the attention beside a slow loop, gradients, sites."""

import copy
import functools
import pickle
import re

import pytest
import torch
from torch import nn

import ir_peft
from ir_peft.adapters import (
    ASteISRConfig,
    ASteISRStereoConfig,
    Bottleneck,
    StereoAdapter,
    adapter_state_dict,
    attach_adapter,
    attention_maps,
    count_parameters,
    load_adapter,
    paired_views,
    save_adapter,
    trainable_parameters,
)
from ir_peft.adapters.core import adapter_parts, train_mode

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
SMALL = {"dim": 24, "depths": (1, 2, 1, 1), "window": 8, "heads": 6, "squeeze_factor": 6}


def small_hat(**overrides):
    torch.manual_seed(0)
    return ir_peft.create_backbone("hat", **{**SMALL, "scale": 2, **overrides}).eval()


def pairs(B=2, h=8, w=16, seed=5):
    return torch.rand(B, 2, 3, h, w, generator=torch.Generator().manual_seed(seed))


def move(model, seed=1):
    """Every trainable tensor away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trainable_parameters(model).values():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def stereo_adapter(C=6, seed=0, channels_last=True, temperature=1.5):
    torch.manual_seed(seed)
    adapter = StereoAdapter(C, temperature, channels_last=channels_last)
    for p in adapter.parameters():
        nn.init.normal_(p, std=0.7)
    return adapter


# ---------------------------------------------------------------- counts

COUNTS = {
    # name: (spatial adapters, one, stereo adapters, one, total at x4)
    "hat_s": (36, 10_548, 3, 84_384, 10_254_063),
    "hat": (36, 16_425, 3, 131_400, 21_758_007),
    "hat_l": (72, 16_425, 6, 131_400, 42_817_575),
}


@functools.cache
def without_weights(name, scale):
    with torch.device("meta"):
        return ir_peft.create_backbone(name, scale=scale)


def meta(name, method, scale=4, **settings):
    with torch.device("meta"):
        return attach_adapter(ir_peft.unload(without_weights(name, scale)), method, **settings)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_the_papers_table(name):
    spatial, one_spatial, stereo, one_stereo, total = COUNTS[name]
    model = meta(name, "asteisr")
    adapters = adapter_parts(model, "default").adapters
    sizes = {key: sum(p.numel() for p in a.parameters()) for key, a in adapters.items()}
    by_kind = {
        kind: [sizes[key] for key, a in adapters.items() if isinstance(a, kind)]
        for kind in (Bottleneck, StereoAdapter)
    }
    assert by_kind == {
        Bottleneck: [one_spatial] * spatial,
        StereoAdapter: [one_stereo] * stereo,
    }
    trainable = spatial * one_spatial + stereo * one_stereo
    assert count_parameters(model) == (trainable, total)
    groups = sorted(int(key.split(".")[1]) for key in adapters if key.endswith("stereo_site"))
    assert groups == list(range(1, 2 * stereo, 2))


def test_the_papers_share():
    model = meta("hat_l", "asteisr")
    trainable, total = count_parameters(model)
    assert trainable == 1_182_600 + 788_400 == 1_971_000
    assert round(100 * trainable / (total - trainable), 3) == 4.825
    assert len(adapter_state_dict(model)) == 372
    assert count_parameters(meta("hat_l", "asteisr_spatial")) == (1_182_600, 42_029_175)
    assert count_parameters(meta("hat_l", "asteisr_stereo"))[0] == 788_400


def test_all_groups_is_the_papers_ablation():
    model = meta("hat_l", "asteisr_stereo", target_modules=("stereo_site",))
    assert count_parameters(model)[0] == 1_576_800


@pytest.mark.parametrize(
    "name, spatial, stereo",
    [
        ("dat_light", 18 * 1_875, 3 * 15_000),
        ("dat", 36 * 16_425, 3 * 131_400),
        ("edt_b", 36 * 16_425, 3 * 131_400),
        # (D, blocks) of the stages; stereo where the decoder begins, at 4 and 2 times 48 channels.
        (
            "restormer",
            sum(
                n * (D * D // 2 + D + D // 4)
                for D, n in [(48, 4), (96, 6), (192, 6), (384, 8), (192, 6), (96, 6), (96, 8)]
            ),
            sum(4 * D * D + 10 * D for D in (96, 192)),
        ),
    ],
)
def test_counts_on_other_backbones(name, spatial, stereo):
    scale = 1 if name == "restormer" else 4
    assert count_parameters(meta(name, "asteisr", scale=scale))[0] == spatial + stereo
    assert count_parameters(meta(name, "asteisr_spatial", scale=scale))[0] == spatial
    assert count_parameters(meta(name, "asteisr_stereo", scale=scale))[0] == stereo


# ---------------------------------------------------------------- the stereo adapter


def slow(adapter, left, right):
    """The formula of the paper, pixel by pixel, in float64: (C, H, W) each."""
    p = {key: value.double() for key, value in adapter.state_dict().items()}
    C, H, W = left.shape

    def norm(v, side):
        deviation = (v - v.mean()) / torch.sqrt(((v - v.mean()) ** 2).mean() + 1e-6)
        return deviation * p[f"norm_{side}.weight"] + p[f"norm_{side}.bias"]

    def project(v, name):
        return p[f"{name}.weight"] @ v + p[f"{name}.bias"]

    out = [left.clone(), right.clone()]
    for y in range(H):
        q_l = [project(norm(left[:, y, i], "l"), "l_proj1") for i in range(W)]
        q_r = [project(norm(right[:, y, i], "r"), "r_proj1") for i in range(W)]
        v_l = [project(left[:, y, i], "l_proj2") for i in range(W)]
        v_r = [project(right[:, y, i], "r_proj2") for i in range(W)]
        for i in range(W):
            to_right = torch.stack([q_l[i] @ q_r[j] for j in range(W)]) * C**-0.5
            weights = torch.softmax(1.5 * to_right, 0)
            out[0][:, y, i] += p["beta"] * sum(weights[j] * v_r[j] for j in range(W))
            to_left = torch.stack([q_r[i] @ q_l[j] for j in range(W)]) * C**-0.5
            weights = torch.softmax(1.5 * to_left, 0)
            out[1][:, y, i] += p["gamma"] * sum(weights[j] * v_l[j] for j in range(W))
    return out


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("watched", [True, False])
def test_attention_is_that_of_a_slow_loop(channels_last, watched):
    adapter = stereo_adapter(channels_last=channels_last).double()
    adapter.watch = (lambda weights: None) if watched else None
    x = torch.randn(4, 6, 3, 5, dtype=torch.float64)
    expected = [view for pair in x.unflatten(0, (2, 2)) for view in slow(adapter, *pair)]
    given = x.permute(0, 2, 3, 1) if channels_last else x
    with paired_views():
        out = adapter(given, given)
    out = out.permute(0, 3, 1, 2) if channels_last else out
    # Watched, the softmax is taken and kept in fp32.
    torch.testing.assert_close(out, torch.stack(expected), rtol=0, atol=1e-6 if watched else 1e-12)


def test_rows_are_independent():
    adapter, x = stereo_adapter(), torch.randn(2, 4, 5, 6)
    changed = x.clone()
    changed[:, 2] = torch.randn(2, 5, 6)
    with paired_views():
        before, after = adapter(x, x), adapter(changed, changed)
    rows = (before != after).any(-1).any(-1)  # (2, H)
    assert rows.tolist() == [[False, False, True, False]] * 2


def test_swapping_views_and_their_parameters_swaps_the_output():
    adapter, x = stereo_adapter(), torch.randn(2, 4, 5, 6)
    swapped = copy.deepcopy(adapter)
    names = {"norm_l": "norm_r", "l_proj1": "r_proj1", "l_proj2": "r_proj2"}
    names |= {new: old for old, new in names.items()}
    state = {"beta": adapter.gamma, "gamma": adapter.beta}
    for key, value in adapter.state_dict().items():
        if "." in key:
            module, _, tensor = key.partition(".")
            state[f"{names[module]}.{tensor}"] = value
    swapped.load_state_dict(state)
    with paired_views():
        torch.testing.assert_close(swapped(x.flip(0), x.flip(0)), adapter(x, x).flip(0))


def test_a_single_image_a_half_pair_and_windows_are_refused():
    adapter = stereo_adapter()
    x = torch.randn(2, 4, 5, 6)
    with pytest.raises(ValueError, match=r"call ir_peft.Stereo\(model\)"):
        adapter(x, x)
    for wrong in (torch.randn(3, 4, 5, 6), torch.randn(4, 16, 6)):
        with paired_views(), pytest.raises(ValueError, match="pairs of images"):
            adapter(wrong, wrong)
    model = attach_adapter(small_hat(), "asteisr")
    for image in (torch.rand(1, 3, 8, 8), torch.rand(2, 3, 8, 8)):
        with pytest.raises(ValueError, match="both views of a scene"):
            model(image)
    with pytest.raises(ValueError, match="both views of a scene"):
        ir_peft.restore(model, image)


def test_attention_maps_are_the_weights_of_the_pass():
    model = move(attach_adapter(small_hat(), "asteisr", seed=0))
    stereo, x = ir_peft.Stereo(model), pairs(B=2, h=8, w=16)
    plain = stereo(x)
    with attention_maps(model) as maps:
        assert maps == {}
        watched = stereo(x)
    torch.testing.assert_close(watched, plain, atol=1e-5, rtol=1e-4)
    assert list(maps) == ["layers.1.stereo_site", "layers.3.stereo_site"]
    for weights in maps.values():
        assert weights.shape == (2, 2, 8, 16, 16) and not weights.requires_grad
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 8, 16))
    with attention_maps(model, rows=slice(2, 3)) as some:
        stereo(x)
    torch.testing.assert_close(
        some["layers.1.stereo_site"], maps["layers.1.stereo_site"][:, :, 2:3]
    )
    assert all(a.watch is None for a in model.modules() if isinstance(a, StereoAdapter))
    with pytest.raises(ValueError, match="no stereo adapters"), attention_maps(small_hat()):
        pass


def test_attention_finds_a_shift():
    """With identity projections and distinct pixels, the left pixel i looks at the right i - d."""
    torch.manual_seed(0)
    C, W, d = 32, 24, 3
    adapter = StereoAdapter(C, 60.0, channels_last=True, start="identity")
    scene = torch.randn(1, 2, W + d, C)
    x = torch.cat([scene[:, :, :W], scene[:, :, d:]])  # x_left = x_right + d
    found = []
    adapter.watch = found.append
    with paired_views():
        adapter(x, x)
    left = found[0][0, 0, 1].argmax(-1)  # (W,)
    assert left[d:].tolist() == list(range(W - d))
    assert found[0][0, 1, 1].argmax(-1)[: W - d].tolist() == list(range(d, W))


# ---------------------------------------------------------------- training


def step(model, x, optimizer=None):
    train_mode(model)
    for p in model.parameters():
        p.grad = None
    out = ir_peft.Stereo(model)(x)
    target = torch.rand(out.shape, generator=torch.Generator().manual_seed(2))
    (out - target).square().mean().backward()
    named = trainable_parameters(model)
    if optimizer is not None:
        optimizer.step()
    return {key for key, p in named.items() if p.grad is not None and p.grad.any()}


def test_gradients_of_the_first_and_the_second_step():
    """Zero factors let only themselves move at first, then all of the adapter does."""
    model = attach_adapter(small_hat(), "asteisr", seed=0)
    frozen = {k: p.clone() for k, p in model.named_parameters() if not p.requires_grad}
    named = trainable_parameters(model)
    optimizer = torch.optim.AdamW(named.values(), lr=1e-2)
    first = step(model, pairs(), optimizer)
    zero = (".up.weight", ".up.bias", ".beta", ".gamma")
    assert first == {key for key in named if key.endswith(zero)}
    assert step(model, pairs(), optimizer) == set(named)
    assert all(torch.equal(value, dict(model.named_parameters())[k]) for k, value in frozen.items())


def test_initial_values():
    model = attach_adapter(small_hat(), "asteisr", seed=0)
    state = adapter_state_dict(model)
    zero = r"\.(up\.(weight|bias)|down\.bias|beta|gamma)$"
    for key, value in state.items():
        assert bool(value.any()) != bool(re.search(zero, key)) or "norm" in key, key
    down = torch.cat([v.flatten() for key, v in state.items() if key.endswith("down.weight")])
    assert down.std().item() == pytest.approx(0.02, rel=0.1)
    assert state["layers.1.stereo_site.asteisr.norm_l.weight"].eq(1).all()


def test_the_identity_start_compares_features_and_changes_nothing_else():
    built = {
        start: attach_adapter(small_hat(), "asteisr_stereo", seed=0, start=start)
        for start in ("random", "identity")
    }
    states = {start: adapter_state_dict(model) for start, model in built.items()}
    x = pairs()
    assert torch.equal(*(ir_peft.Stereo(model)(x) for model in built.values()))
    for key, value in states["identity"].items():
        if "proj1" in key:
            expected = torch.eye(24) if key.endswith("weight") else torch.zeros(24)
            assert torch.equal(value, expected) and states["random"][key].any()
        else:
            assert torch.equal(value, states["random"][key])
    with pytest.raises(ValueError, match="start='tied' must be one of random, identity"):
        ASteISRStereoConfig(start="tied")


# ---------------------------------------------------------------- sites and configs


@pytest.mark.parametrize(
    "name, settings",
    [
        ("hat", SMALL),
        ("dat_light", {"dim": 32, "depths": (7,), "heads": 2}),
        ("dat", {"dim": 32, "depths": (1, 2), "heads": 2}),
        ("edt_b", {"dim": 16, "depths": (1, 2), "heads": 2, "features": 8}),
        ("restormer", {"dim": 8, "depths": (1, 1, 1, 1), "refinement": 1}),
    ],
)
@pytest.mark.parametrize("which", ["asteisr", "asteisr_spatial", "asteisr_stereo"])
def test_identity_at_initialisation_and_exchange_after_training(name, settings, which):
    torch.manual_seed(0)
    model = ir_peft.create_backbone(name, **settings).eval()
    x = pairs(B=1, h=9, w=24)
    with torch.no_grad():
        expected = ir_peft.Stereo(model)(x)
        stereo = ir_peft.Stereo(attach_adapter(model, which))
        assert torch.equal(stereo(x), expected)
        move(model)
        right = x.clone()
        right[:, 1] = torch.rand(3, 9, 24)
        left_before, left_after = stereo(x)[:, 0], stereo(right)[:, 0]
    assert torch.equal(left_before, left_after) == (which == "asteisr_spatial")
    assert not torch.equal(left_before, expected[:, 0])


@pytest.mark.filterwarnings("ignore:'saved_variables'")
def test_on_swinir_through_spandrel(tmp_path):
    """The paper's hypothetical port: after window attention, after the groups' convolutions."""
    pytest.importorskip("spandrel")
    from spandrel.architectures.SwinIR import SwinIR

    torch.manual_seed(0)
    network = SwinIR(
        img_size=16, window_size=8, depths=[2, 2], embed_dim=24, num_heads=[2, 2], mlp_ratio=2,
        upscale=2, upsampler="pixelshuffledirect",
    )  # fmt: skip
    torch.save({"params": network.state_dict()}, tmp_path / "swinir.pth")
    network = ir_peft.load_backbone(tmp_path / "swinir.pth")
    x = pairs(B=2, h=15, w=22)
    expected = ir_peft.Stereo(network)(x)
    stereo_modules = r"network\.layers\.\d*[13579]\.conv"
    config = ASteISRConfig(
        target_modules=rf"network\.layers\..*\.attn\.proj|{stereo_modules}",
        stereo_modules=stereo_modules,
    )
    attach_adapter(network, config)
    assert count_parameters(network)[0] == 4 * (24 * 6 * 2 + 30) + 4 * 24**2 + 240
    assert torch.equal(ir_peft.Stereo(network)(x), expected)
    move(network)
    swapped = ir_peft.Stereo(network)(x.flip(0))
    torch.testing.assert_close(swapped.flip(0), ir_peft.Stereo(network)(x))


def test_config_takes_the_backbones_sites_and_refuses_one_kind():
    model = attach_adapter(small_hat(), ASteISRConfig(ratio=0.5, temperature=2.0))
    parts = adapter_parts(model, "default")
    assert parts.config.stereo_modules == r"layers\.\d*[13579]\.stereo_site"
    assert parts.adapters["layers.0.residual_group.blocks.0.spatial_site"].down.out_features == 12
    assert parts.adapters["layers.1.stereo_site"].scale == 2.0 * 24**-0.5
    for target, other in (("spatial_site", "asteisr_spatial"), ("stereo_site", "asteisr_stereo")):
        config = ASteISRConfig(target_modules=(target,), stereo_modules=("stereo_site",))
        with pytest.raises(ValueError, match=f"use '{other}'"):
            attach_adapter(small_hat(), config)
    with pytest.raises(ValueError, match="of 1 layers"):
        attach_adapter(nn.Sequential(nn.Linear(4, 4)), ASteISRConfig(target_modules=("0",)))
    for field in ("ratio", "temperature"):
        for value in (0, -1.0, "1", float("inf")):
            with pytest.raises(ValueError, match=field):
                ASteISRConfig(**{field: value})
    with pytest.raises(ValueError, match="stereo_modules"):
        ASteISRConfig(stereo_modules=3)
    with pytest.raises(TypeError, match="neither Linear nor Conv2d"):
        attach_adapter(small_hat(), ASteISRStereoConfig(target_modules=("norm",)))


def test_saved_and_loaded_and_pickled(tmp_path):
    model = move(attach_adapter(small_hat(), "asteisr"))
    stereo, x = ir_peft.Stereo(model), pairs()
    expected = stereo(x)
    save_adapter(stereo, tmp_path / "a")
    other = load_adapter(ir_peft.Stereo(small_hat()), tmp_path / "a")
    assert torch.equal(other(x), expected)
    assert torch.equal(copy.deepcopy(stereo)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(stereo))(x), expected)
