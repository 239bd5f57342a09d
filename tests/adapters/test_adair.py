"""AdaIR's adapters: the budget of every design, its places and what they compute."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ir_peft.adapters import (
    AdaIR,
    AdaIRConfig,
    adapter_state_dict,
    attach_adapter,
    count_parameters,
    fingerprint,
    load_adapter,
    save_adapter,
    set_adapter,
    train_mode,
    trainable_parameters,
    unload,
)
from ir_peft.adapters.adair import KINDS
from ir_peft.backbones import create_backbone
from ir_peft.data import degradations

SMALL = {"depths": (1, 1, 1, 1), "refinement": 1, "dim": 8}


@pytest.fixture(scope="module")
def full_size():
    """Restormer, 26 million parameters without memory."""
    with torch.device("meta"):
        return create_backbone("restormer")


@pytest.fixture
def small():
    torch.manual_seed(0)
    return create_backbone("restormer", **SMALL).eval()


@pytest.fixture
def image():
    return torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 1_916_928),
        ({"bias": True}, 1_937_536),
        ({"width": 128, "position": "mdta"}, 1_916_928),
        ({"width": 128, "position": "gdfn"}, 1_916_928),
        ({"width": 128, "position": "gdfn", "bias": True}, 1_930_048),
        ({"width": "C/4"}, 1_815_552),
        ({"width": "C/4", "bias": True}, 1_834_272),
        ({"width": "C/4", "kind": "conv1x1_dw3x3"}, 1_849_248),
        ({"width": "C/2", "kind": "conv1x1_dw3x3", "position": "mdta"}, 1_849_248),
        ({"kind": "conv1x1_dw3x3"}, 1_967_616),
        ({"kind": "conv3x3", "width": "C/16", "position": "gdfn"}, 2_042_496),
        ({"width": 32, "position": "mdta"}, 479_232),
        ({"width": 16}, 479_232),
        ({"width": 8, "mode": "serial"}, 239_616),
        ({"width": 32, "act": "none"}, 958_464),
        ({"width": 128, "init": "default"}, 3_833_856),
        ({"levels": "encoder"}, 491_520),
        ({"levels": "latent"}, 786_432),
        ({"levels": "decoder"}, 638_976),
    ],
)
def test_the_designs_near_two_million(full_size, fields, count):
    attach_adapter(full_size, "adair", **fields)
    trainable, total = count_parameters(full_size)
    unload(full_size)
    assert (trainable, total) == (count, 26_126_644 + count)


def test_the_default_is_88_adapters_of_7_667_712_bytes(full_size):
    attach_adapter(full_size, "adair")
    adapters = [m for m in full_size.modules() if isinstance(m, AdaIR)]
    state = adapter_state_dict(full_size)
    unload(full_size)
    assert len(adapters) == 88 and len(state) == 176
    assert sum(t.numel() * t.element_size() for t in state.values()) == 7_667_712
    assert state["latent.7.ffn.adair.down.weight"].shape == (64, 384)
    assert state["latent.7.ffn.adair.up.weight"].shape == (384, 64)


def test_lora_of_the_same_budget(full_size):
    attach_adapter(full_size, "lora")
    trainable = count_parameters(full_size)[0]
    unload(full_size)
    assert trainable == 1_913_472


@pytest.mark.parametrize("mode", ["parallel", "serial"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", ["gelu", "none"])
def test_the_formula_in_a_block(small, kind, mode, act, helpers):
    """x + MDTA(h) + A(h), then the same with GDFN: with plain convolutions, from stored weights."""
    attach_adapter(small, "adair", kind=kind, mode=mode, act=act, width=5, bias=True)
    helpers.move(small)
    state = adapter_state_dict(small)
    block = small.latent[0]

    def adapter(part, z):
        prefix = f"latent.0.{part}.adair."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        side = 3 if kind == "conv3x3" else 1

        def conv(name, z):
            weight = own[f"{name}.weight"].reshape(len(own[f"{name}.bias"]), -1, side, side)
            return F.conv2d(z, weight, own[f"{name}.bias"], padding=side // 2)

        z = conv("down", z)
        if kind == "conv1x1_dw3x3":
            weight, bias = own["depthwise.weight"], own["depthwise.bias"]
            z = F.conv2d(z, weight, bias, padding=1, groups=5)
        return conv("up", F.gelu(z) if act == "gelu" else z)

    x = torch.rand(2, 64, 4, 6)
    expected = x
    for norm, part in ((block.norm1, "attn"), (block.norm2, "ffn")):
        h = norm(expected)
        u = getattr(block, part).base_layer(h)
        expected = expected + u + adapter(part, h if mode == "parallel" else u)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=2e-5)


def test_on_tokens_and_images_alike():
    """A layer whose channels come last gives what one whose channels come second gives."""
    conv, linear = nn.Conv2d(4, 6, 1), nn.Linear(4, 6)
    x, out = torch.rand(2, 4, 5, 7), torch.rand(2, 6, 5, 7)
    for kind in KINDS:
        config = AdaIRConfig(kind=kind, width="C/2", init="default")
        first, last = AdaIR.for_layer(conv, config), AdaIR.for_layer(linear, config)
        assert first.down.weight.shape[0] == 2
        last.load_state_dict(first.state_dict())
        found = last(x.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, first(x, out))
    with pytest.raises(ValueError, match=r"reads images, not a tensor of shape \(2, 35, 4\)"):
        last(torch.rand(2, 35, 4), torch.rand(2, 35, 6))


def test_identity_at_the_start_in_every_design(small, image):
    expected = small(image)
    kinds = itertools.cycle(KINDS)
    for mode, position, levels in itertools.product(
        ("parallel", "serial"), ("mdta", "gdfn", "both"), ("encoder", "latent", "decoder", "all")
    ):
        kind = next(kinds)
        fields = {"mode": mode, "position": position, "levels": levels, "kind": kind}
        attach_adapter(small, "adair", bias=kind == "conv3x3", **fields)
        assert torch.equal(small(image), expected), fields
        blocks = {"encoder": 3, "latent": 1, "decoder": 4, "all": 8}[levels]
        adapters = sum(isinstance(m, AdaIR) for m in small.modules())
        assert adapters == blocks * (2 if position == "both" else 1)
        unload(small)
        assert torch.equal(small(image), expected)


def test_default_initialisation_changes_the_start(small, image):
    expected = small(image)
    attach_adapter(small, "adair", init="default")
    assert not torch.equal(small(image), expected)


def test_training_moves_every_adapter_and_nothing_else(small, image):
    before, keys = fingerprint(small), list(small.state_dict())
    attach_adapter(small, "adair")
    start = {key: value.clone() for key, value in adapter_state_dict(small).items()}
    named = trainable_parameters(small)
    assert named.keys() == start.keys()
    optimizer = torch.optim.AdamW(named.values(), lr=1e-3)
    train_mode(small)
    for _ in range(2):  # The first step moves the zero half, the second the other.
        optimizer.zero_grad()
        (small(image) - image.flip(-1)).abs().mean().backward()
        optimizer.step()
    moved = {key for key, value in adapter_state_dict(small).items() if not value.equal(start[key])}
    assert moved == start.keys()
    mine = {id(parameter) for parameter in named.values()}
    assert all(p.grad is None for p in small.parameters() if id(p) not in mine)
    assert fingerprint(small) == before
    unload(small)
    assert list(small.state_dict()) == keys


def test_one_base_many_tasks(small, image, helpers, tmp_path):
    """Two adapters in files: each gives its own output on one base, whatever came before."""
    bare = small(image)
    outputs = {}
    for seed, task in enumerate(("derain", "denoise")):
        attach_adapter(small, "adair", task, levels="decoder" if seed else "all")
        helpers.move(small, seed)
        outputs[task] = small(image)
        save_adapter(small, tmp_path / task, task)
    unload(small)
    assert torch.equal(small(image), bare)
    for task in outputs:
        load_adapter(small, tmp_path / task, task)
    for task in ("derain", "denoise", "derain"):
        set_adapter(small, task)
        assert torch.equal(small(image), outputs[task])
    other = create_backbone("restormer", **SMALL)  # Other weights.
    with pytest.raises(ValueError, match="other weights"):
        load_adapter(other, tmp_path / "derain")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "linear"),
        ("act", "silu"),
        ("width", 0),
        ("width", "C/0"),
        ("width", "64"),
        ("width", 2.0),
        ("position", "attn"),
        ("mode", "sequential"),
        ("levels", "refinement"),
        ("bias", 1),
        ("init", "zero"),
    ],
)
def test_wrong_values(field, value):
    with pytest.raises(ValueError, match=field):
        AdaIRConfig(**{field: value})


def test_a_place_that_does_not_exist(tiny, small):
    with pytest.raises(ValueError, match=r"levels='latent' leave none of the 4 layers"):
        attach_adapter(tiny, "adair", levels="latent")
    with pytest.raises(ValueError, match="position='gdfn'.*leave none"):
        attach_adapter(small, "adair", position="gdfn", target_modules=r".*\.attn")
    with pytest.raises(TypeError, match="neither Linear nor Conv2d"):
        attach_adapter(small, "adair", target_modules=("norm1",))


@pytest.mark.parametrize(
    "task", [name for name, degradation in degradations.TASKS.items() if degradation.scale == 1]
)
def test_every_task_that_keeps_the_size(small, task):
    """The network takes what the task's degradation gives and returns the clean image's size."""
    gt = torch.rand(1, 3, 18, 23, generator=torch.Generator().manual_seed(2))
    lq = degradations.TASKS[task](gt, torch.Generator().manual_seed(3))
    assert lq.shape == gt.shape and not torch.equal(lq, gt)
    attach_adapter(small, "adair")
    out = small(lq)
    assert out.shape == gt.shape and out.isfinite().all()
