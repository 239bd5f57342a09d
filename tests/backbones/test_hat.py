"""HAT against the reference implementation, its keys, counts, sites, and its detection."""

import re

import pytest
import torch

from ir_peft.backbones import hat, hat_attention

NAMES = ("hat_s", "hat", "hat_l")
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # The reference's.
SMALL = {"dim": 24, "depths": (2, 1), "squeeze_factor": 6}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def reference(scale, dim, depths, compress_ratio, squeeze_factor, window=16, **_):
    from spandrel.architectures.HAT import HAT

    return HAT(
        img_size=64,
        embed_dim=dim,
        depths=depths,
        num_heads=[6] * len(depths),
        window_size=window,
        compress_ratio=compress_ratio,
        squeeze_factor=squeeze_factor,
        conv_scale=0.01,
        overlap_ratio=0.5,
        mlp_ratio=2,
        upscale=scale,
        upsampler="pixelshuffle",
    ).eval()


def shaken(model):
    """Weights at which every part shows in the output, above all the position biases."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 1.0 if name.endswith("bias_table") else 0.02
            parameter.add_(torch.randn_like(parameter), alpha=std)
    return model.eval()


COUNTS = {"hat_s": 9_621_183, "hat": 20_772_507, "hat_l": 40_846_575}


@pytest.mark.parametrize("name, count", list(COUNTS.items()))
def test_parameter_counts_at_x4(name, count):
    with torch.device("meta"):
        model = getattr(hat, name)()
    assert sum(p.numel() for p in model.parameters()) == count


def official(scale, dim, depths, compress_ratio, squeeze_factor):
    """Names and shapes of the authors' files."""
    shapes = {}

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def norm_and_mlp(name):
        layer(name + "norm1", dim)
        layer(name + "norm2", dim)
        layer(name + "mlp.fc1", 2 * dim, dim)
        layer(name + "mlp.fc2", dim, 2 * dim)

    for g, depth in enumerate(depths):
        for b in range(depth):
            block = f"layers.{g}.residual_group.blocks.{b}."
            norm_and_mlp(block)
            shapes[block + "attn.relative_position_bias_table"] = (961, 6)
            layer(block + "attn.qkv", 3 * dim, dim)
            layer(block + "attn.proj", dim, dim)
            layer(block + "conv_block.cab.0", dim // compress_ratio, dim, 3, 3)
            layer(block + "conv_block.cab.2", dim, dim // compress_ratio, 3, 3)
            layer(block + "conv_block.cab.3.attention.1", dim // squeeze_factor, dim, 1, 1)
            layer(block + "conv_block.cab.3.attention.3", dim, dim // squeeze_factor, 1, 1)
        overlap = f"layers.{g}.residual_group.overlap_attn."
        norm_and_mlp(overlap)
        shapes[overlap + "relative_position_bias_table"] = (1521, 6)
        layer(overlap + "qkv", 3 * dim, dim)
        layer(overlap + "proj", dim, dim)
        layer(f"layers.{g}.conv", dim, dim, 3, 3)
    layer("conv_first", dim, 3, 3, 3)
    layer("patch_embed.norm", dim)
    layer("norm", dim)
    layer("conv_after_body", dim, dim, 3, 3)
    layer("conv_before_upsample.0", 64, dim, 3, 3)
    layer("upsample.0", 576 if scale == 3 else 256, 64, 3, 3)
    if scale == 4:
        layer("upsample.2", 256, 64, 3, 3)
    layer("conv_last", 3, 64, 3, 3)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    state["relative_position_index_SA"] = torch.empty(256, 256, dtype=torch.long, device="meta")
    state["relative_position_index_OCA"] = torch.empty(256, 576, dtype=torch.long, device="meta")
    return state


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_keys_and_shapes_are_the_authors(name, scale):
    with torch.device("meta"):
        model = getattr(hat, name)(scale)
    state = official(scale, **hat.VARIANTS[name])
    assert len(state) == {"hat_l": 1710}.get(name, 864) - 2 * (scale != 4)
    filtered = hat.checkpoint_filter(state)
    assert state.keys() - filtered.keys() == {
        "relative_position_index_SA",
        "relative_position_index_OCA",
    }
    model.load_state_dict(filtered, strict=True, assign=True)
    detected, settings = hat.detect(state)
    assert hat.detect(filtered) == (detected, settings)  # Early files have no indices.
    with torch.device("meta"):
        again = getattr(hat, detected)(**settings)
    assert (again.name, again.scale) == (name, scale)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in filtered.items()
    }


@pytest.mark.parametrize(
    "name, scale, size, frozen",
    [
        ("hat", 2, (2, 3, 17, 15), True),  # Padded to one column of two windows.
        ("hat_s", 3, (1, 3, 16, 16), True),  # A single window, shifted as well.
        ("hat_s", 2, (2, 3, 20, 16), False),
    ],
)
def test_output_equals_the_reference(name, scale, size, frozen):
    settings = {**hat.VARIANTS[name], "depths": (2, 1)}
    model = shaken(hat.HAT(name=name, scale=scale, **settings)).requires_grad_(not frozen)
    expected = reference(scale, **settings)
    missing = expected.load_state_dict(model.state_dict(), strict=False)
    assert missing.missing_keys == ["relative_position_index_SA", "relative_position_index_OCA"]
    assert not missing.unexpected_keys
    x = torch.rand(size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_output_equals_the_reference_at_full_size(name):
    model = shaken(getattr(hat, name)()).requires_grad_(False)
    expected = reference(4, **hat.VARIANTS[name])
    expected.load_state_dict(model.state_dict(), strict=False)
    x = torch.rand(2, 3, 20, 40)
    with torch.no_grad():
        y = expected(x)
        torch.testing.assert_close(model(x), y, atol=1e-5 * max(1, float(y.abs().max())), rtol=0)


def test_gradients_equal_the_reference():
    settings = {**SMALL, "compress_ratio": 3}
    model = shaken(hat.hat(2, drop_path=0, **settings))
    expected = reference(2, **settings)
    expected.load_state_dict(model.state_dict(), strict=False)
    x = torch.rand(1, 3, 20, 32)
    for net in (model, expected):
        net(x).square().mean().backward()
    theirs = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-3, msg=name
        )
    frozen = hat.hat(2, drop_path=0, **settings).eval().requires_grad_(False)
    frozen.load_state_dict(model.state_dict())
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for net, image in zip((frozen, expected), inputs, strict=True):
        net(image).square().mean().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-6, rtol=1e-3)


def test_overlapping_index_wraps_round_the_table_like_the_authors():
    w, reach = 16, 24
    query, key = torch.arange(w * w)[:, None], torch.arange(reach * reach)[None, :]
    dy = key // reach - query // w + w - reach + 1
    dx = key % reach - query % w + w - reach + 1
    theirs = dy * (w + reach - 1) + dx
    assert (theirs.min(), theirs.max()) == (-880, 640)
    ours = hat_attention.relative_position_index(w, reach)
    assert ours.unique().tolist() == list(range(1521))
    table = torch.randn(1521, 6)
    assert torch.equal(table[ours], table[theirs])  # PyTorch counts negative indices from the end.
    assert torch.equal(reference(2, **SMALL, compress_ratio=3).relative_position_index_OCA, theirs)


def test_plain_window_index_is_swins():
    w = 4
    index = hat_attention.relative_position_index(w, w)
    for query in range(w * w):
        for key in range(w * w):
            dy, dx = query // w - key // w + w - 1, query % w - key % w + w - 1
            assert index[query, key] == dy * (2 * w - 1) + dx


def test_kept_bias_follows_the_weights():
    model = shaken(hat.hat(2, **SMALL)).requires_grad_(False)
    other = shaken(hat.hat(2, **SMALL)).requires_grad_(False)
    x = torch.rand(1, 3, 16, 16)
    before = model(x)
    assert torch.equal(model(x), before)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x), other(x))
    model.double()
    torch.testing.assert_close(model(x.double()), other.double()(x.double()))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 33), (15, 17)])
def test_any_size(size):
    model = hat.hat(2, dim=12, depths=(2,), squeeze_factor=4).eval()
    with torch.no_grad():
        y = model(torch.rand(2, 3, *size))
    assert y.shape == (2, 3, 2 * size[0], 2 * size[1])
    assert y.isfinite().all()


def test_images_of_a_batch_do_not_mix():
    model = shaken(hat.hat(2, **SMALL))
    x = torch.rand(3, 3, 20, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=0)


def test_sites_see_what_asteisr_adapts():
    model = shaken(hat.hat(2, **SMALL))
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: (args[0], out)})
        )
    with torch.no_grad():
        model(torch.rand(1, 3, 20, 16))
    sites = [name for name in seen if name.endswith("spatial_site")]
    assert len(sites) == 3
    for site in sites:
        block = site.removesuffix("spatial_site")
        both = seen[block + "attn"][1] + 0.01 * seen[block + "conv_block"][1]
        torch.testing.assert_close(seen[site][0], both)
        after = seen[block + "norm2"][0]
        torch.testing.assert_close(after, seen[block + "norm1"][0] + seen[site][1])
        assert {block + "attn.qkv", block + "attn.proj", block + "mlp.fc1"} <= seen.keys()
    for group in range(2):
        conv, site = seen[f"layers.{group}.conv"][1], seen[f"layers.{group}.stereo_site"][0]
        torch.testing.assert_close(site, conv.permute(0, 2, 3, 1))
        torch.testing.assert_close(
            seen[f"layers.{group}"][1],
            seen[f"layers.{group}"][0] + seen[f"layers.{group}.stereo_site"][1],
        )
        assert f"layers.{group}.residual_group.overlap_attn.qkv" in seen
    for name, module in model.named_modules():
        if name.split(".")[-1] in ("attn", "conv_block", "mlp", "spatial_site", "stereo_site"):
            assert (module.in_features, module.out_features, module.channels_last) == (24, 24, True)
            assert seen[name][0].shape == seen[name][1].shape == (1, 32, 16, 24)


def test_adapter_defaults_name_existing_modules():
    model = hat.hat(2, **SMALL)
    counts = {
        method: sum(bool(re.fullmatch(d["target_modules"], n)) for n, _ in model.named_modules())
        for method, d in model.adapter_defaults.items()
    }
    assert counts == {
        "asteisr": 4,
        "asteisr_spatial": 3,
        "asteisr_stereo": 1,
        "adaptir": 3,
        "lora": 12,
        "adair": 6,
        "houlsby": 6,
        "adaptformer": 3,
        "ssf": 18,
        "fact": 12,
        "bitfit": 18,
    }


def test_detect_reads_every_width():
    settings = {
        "scale": 8,
        "dim": 20,
        "depths": (1, 3),
        "heads": 5,
        "window": 8,
        "overlap_ratio": 0.25,
        "compress_ratio": 4,
        "squeeze_factor": 10,
        "expansion": 1.5,
        "features": 16,
    }
    model = hat.hat(**settings)
    assert hat.detect(model.state_dict()) == ("hat", settings)
    with torch.no_grad():
        assert model.eval()(torch.rand(1, 3, 9, 8)).shape == (1, 3, 72, 64)


def test_detect_refuses_by_name():
    state = hat.hat(2, **SMALL).state_dict()
    assert hat.detect({"conv_first.weight": state["conv_first.weight"]}) is None
    with pytest.raises(ValueError, match="absolute position"):
        hat.detect({**state, "absolute_pos_embed": torch.zeros(1, 4096, 24)})
    key = "layers.0.residual_group.blocks.0.S_Adapter.D_fc1.weight"
    with pytest.raises(ValueError, match="ASteISR"):
        hat.detect({**state, key: torch.zeros(6, 24)})
    with pytest.raises(ValueError, match="4 channels"):
        hat.detect({**state, "conv_first.weight": torch.zeros(24, 4, 3, 3)})


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="scale"):
        hat.hat(5)
    with pytest.raises(ValueError, match="heads"):
        hat.hat(2, dim=20)
    for wrong in ({"window": 6}, {"overlap_ratio": 0}, {"overlap_ratio": 1.5}):
        with pytest.raises(ValueError, match="overlap_ratio"):
            hat.hat(2, **wrong)
