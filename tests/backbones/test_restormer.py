"""Restormer against the reference implementation, its layer norms, sites and detection."""

import re

import pytest
import torch
import torch.nn.functional as F

from ir_peft.backbones import restormer as module
from ir_peft.backbones.restormer import restormer

# The reference's package calls torch.jit.script when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
TYPES = ("WithBias", "BiasFree")
SHORT = {"depths": (1, 1, 1, 1), "refinement": 1}
SMALL = {**SHORT, "dim": 8}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def reference(norm="WithBias", depths=(4, 6, 6, 8), refinement=4, **widths):
    from spandrel_extra_arches.architectures.Restormer import Restormer

    return Restormer(
        num_blocks=list(depths), num_refinement_blocks=refinement, LayerNorm_type=norm, **widths
    ).eval()


def shaken(model):
    """Norms and temperatures that are not the identity."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.eval()


@pytest.mark.parametrize(
    "norm, count, tensors", [("WithBias", 26_126_644, 494), ("BiasFree", 26_111_668, 406)]
)
def test_counts_keys_and_shapes_are_the_authors(norm, count, tensors):
    with torch.device("meta"):
        model, official = restormer(norm=norm), reference(norm).state_dict()
    assert sum(p.numel() for p in model.parameters()) == count
    assert len(official) == tensors
    model.load_state_dict(module.checkpoint_filter(official), strict=True, assign=True)
    assert [b.ffn.project_out.in_channels for b in (
        model.encoder_level1[0], model.encoder_level2[0], model.encoder_level3[0], model.latent[0]
    )] == [127, 255, 510, 1021]  # fmt: skip
    expected = {
        "scale": 1,
        "channels": 3,
        "dim": 48,
        "depths": (4, 6, 6, 8),
        "refinement": 4,
        "heads": (1, 2, 4, 8),
        "expansion": 2.66,
        "bias": False,
        "norm": norm,
    }
    assert module.detect(official) == ("restormer", expected)


@pytest.mark.parametrize("norm", TYPES)
@pytest.mark.parametrize("size", [(2, 3, 24, 16), (1, 3, 17, 30)])
def test_output_equals_the_reference(norm, size):
    model, expected = shaken(restormer(norm=norm, **SHORT)), reference(norm, **SHORT)
    expected.load_state_dict(model.state_dict(), strict=True)
    x = torch.rand(size)
    h, w = size[2:]
    padded = F.pad(x, (0, -w % 8, 0, -h % 8), mode="reflect")
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(padded)[..., :h, :w], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("norm", TYPES)
def test_output_equals_the_reference_at_full_size(norm):
    model, expected = shaken(restormer(norm=norm)), reference(norm)
    expected.load_state_dict(model.state_dict(), strict=True)
    x = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        y = expected(x)
        torch.testing.assert_close(model(x), y, atol=1e-5 * max(1, float(y.abs().max())), rtol=0)


@pytest.mark.parametrize("norm", TYPES)
def test_gradients_equal_the_reference(norm):
    model, expected = shaken(restormer(norm=norm, **SMALL)), reference(norm, **SMALL)
    expected.load_state_dict(model.state_dict(), strict=True)
    x = torch.rand(2, 3, 16, 24)
    for net in (model, expected):
        net(x).square().mean().backward()
    theirs = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-3, msg=name
        )


def test_a_state_of_the_other_layer_norm_does_not_load():
    biased, free = restormer(**SMALL), restormer(norm="BiasFree", **SMALL)
    with pytest.raises(RuntimeError, match="Missing key.*norm1.body.bias"):
        biased.load_state_dict(free.state_dict())
    with pytest.raises(RuntimeError, match="Unexpected key.*norm1.body.bias"):
        free.load_state_dict(biased.state_dict())


def test_bias_free_norm_keeps_the_mean():
    norm = module.Norm(6, bias=False)
    torch.nn.init.uniform_(norm.body.weight, 0.5, 2)
    x = torch.randn(2, 6, 3, 4) + 5
    variance = (x - x.mean(1, keepdim=True)).square().mean(1, keepdim=True)
    expected = x / (variance + 1e-5).sqrt() * norm.body.weight.view(1, 6, 1, 1)
    torch.testing.assert_close(norm(x), expected)
    assert (norm(x) / norm.body.weight.view(1, 6, 1, 1)).mean() > 1
    centred = module.Norm(6, bias=True)(x)
    torch.testing.assert_close(centred.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)


def test_without_its_output_convolution_it_returns_the_image():
    model = shaken(restormer(**SMALL))
    torch.nn.init.zeros_(model.output.weight)
    x = torch.rand(2, 3, 13, 9)
    with torch.no_grad():
        assert torch.equal(model(x), x)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 11)])
def test_any_size(size):
    model = shaken(restormer(norm="BiasFree", **SMALL))
    with torch.no_grad():
        y = model(torch.rand(2, 3, *size))
    assert y.shape == (2, 3, *size)
    assert y.isfinite().all()


def test_images_of_a_batch_do_not_mix():
    model = shaken(restormer(**SMALL))
    x = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=0)


def test_sites_of_all_44_blocks():
    with torch.device("meta"):
        model = restormer()
    names = dict(model.named_modules())
    counts = {
        method: sum(bool(re.fullmatch(d["target_modules"], n)) for n in names)
        for method, d in model.adapter_defaults.items()
    }
    assert counts == {
        "asteisr": 46,
        "asteisr_spatial": 44,
        "asteisr_stereo": 2,
        "adaptir": 44,
        "lora": 176,
        "adair": 88,
        "houlsby": 88,
        "adaptformer": 44,
        "ssf": 264,
        "bitfit": 88,
    }
    sites = [m for n, m in names.items() if n.endswith((".attn", ".ffn"))]
    assert len(sites) == 88
    assert sum(m.in_features + m.out_features for m in sites) == 4 * 7488
    assert not any(m.channels_last for m in sites)
    convolutions = [
        m
        for n, m in names.items()
        if re.fullmatch(model.adapter_defaults["lora"]["target_modules"], n)
    ]
    assert sum(16 * (m.in_channels + m.out_channels) for m in convolutions) == 1_913_472
    assert "bitfit" not in restormer(norm="BiasFree", **SMALL).adapter_defaults


def test_sites_take_the_norms_output_and_return_the_branch():
    model = shaken(restormer(**SMALL))
    seen = {}
    for name, part in model.named_modules():
        part.register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: (args[0], out)})
        )
    with torch.no_grad():
        model(torch.rand(1, 3, 16, 8))
    x, y = seen["latent.0"]
    middle = x + seen["latent.0.attn"][1]
    torch.testing.assert_close(seen["latent.0.norm2"][0], middle)
    torch.testing.assert_close(y, middle + seen["latent.0.ffn"][1])
    assert torch.equal(seen["latent.0.attn"][0], seen["latent.0.norm1"][1])
    assert torch.equal(seen["latent.0.ffn"][0], seen["latent.0.norm2"][1])
    assert {
        "latent.0.attn.qkv",
        "latent.0.attn.project_out",
        "latent.0.ffn.project_in",
    } <= seen.keys()


def test_detect_reads_every_width():
    settings = {
        "scale": 1,
        "channels": 1,
        "dim": 12,
        "depths": (1, 2, 1, 3),
        "refinement": 2,
        "heads": (1, 2, 3, 4),
        "expansion": 1.31,
        "bias": True,
        "norm": "BiasFree",
    }
    model = restormer(**settings)
    assert module.detect(model.state_dict()) == ("restormer", settings)
    with torch.no_grad():
        assert model(torch.rand(1, 1, 9, 8)).shape == (1, 1, 9, 8)


def test_detect_refuses_by_name():
    state = restormer(**SMALL).state_dict()
    assert module.detect({"output.weight": state["output.weight"]}) is None
    with pytest.raises(ValueError, match="dual-pixel"):
        module.detect({**state, "skip_conv.weight": torch.zeros(16, 8, 1, 1)})
    with pytest.raises(ValueError, match="3 channels into 1"):
        module.detect({**state, "output.weight": torch.zeros(1, 16, 3, 3)})


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="scale is 1"):
        restormer(2)
    with pytest.raises(ValueError, match="BiasFree"):
        restormer(norm="biasfree")
