"""DAT against the reference (spandrel), on its bundled weights, and as a host of adapters."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ir_peft import metrics
from ir_peft.adapters import attach_adapter, count_parameters
from ir_peft.backbones import create_backbone, load_backbone
from ir_peft.backbones.dat import checkpoint_filter
from ir_peft.backbones.layers import (
    SHIFT_GAP,
    attention,
    shift_features,
    window_partition,
    window_reverse,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # In the reference.

# Three and two blocks: shifted and unshifted windows in even and odd groups, and channel attention.
VARIANTS = {
    "dat_light": {"depths": (4,)},
    "dat_s": {"depths": (3, 2), "dim": 72},
    "dat": {"depths": (3, 2), "dim": 96, "heads": 4},
}
# PSNR-Y of the rounded image, border = scale, after Pillow's bicubic; from the original code.
CONFORMANCE = {
    "astronaut.png": {2: 36.85, 4: 30.63},
    "chelsea.png": {2: 37.39, 4: 32.57},
    "coffee.png": {2: 34.72, 4: 29.74},
    "motorcycle_left.png": {2: 35.00, 4: 28.19},
}


def reference(model):
    """The reference's DAT of the same sizes; its weights are random."""
    spandrel = pytest.importorskip("spandrel.architectures.DAT")
    blocks = [len(group.blocks) for group in model.layers]
    first = model.layers[0].blocks[0]
    light = model.name == "dat_light"
    return spandrel.DAT(
        img_size=32,
        embed_dim=first.ffn.in_features,
        split_size=list(first.attn.attns[0].window),
        depth=blocks,
        num_heads=[first.attn.heads] * len(blocks),
        expansion_factor=first.ffn.fc1.out_features / first.ffn.in_features,
        upscale=model.scale,
        resi_connection="3conv" if light else "1conv",
        upsampler="pixelshuffledirect" if light else "pixelshuffle",
    ).eval()


@torch.no_grad()
def fill(model, seed=0):
    """Random weights that make every branch matter, the position bias and the BatchNorms too."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if key.endswith(("running_var", "temperature")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point() and not key.endswith(
            ("attn_mask_0", "attn_mask_1", "biases")
        ):
            width = value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
            value.normal_(0, width, generator=generator)
    return model


def pair(name, scale):
    """(reference, ours) with the same random weights."""
    ours = create_backbone(name, scale=scale, **VARIANTS[name]).eval()
    theirs = fill(reference(ours))
    ours.load_state_dict(checkpoint_filter(theirs.state_dict()), strict=True)
    return theirs, ours


def image(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "scale"), [("dat_light", 3), ("dat_s", 2), ("dat", 4)])
def test_equals_the_reference(name, scale):
    theirs, ours = pair(name, scale)
    with torch.no_grad():
        for shape in ((1, 3, 32, 32), (2, 3, 17, 40), (1, 3, 64, 33)):
            x = image(*shape)
            want = theirs(x)
            assert want.std() > 0.05
            torch.testing.assert_close(ours(x), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["dat_light", "dat_s"])
def test_gradients_equal_the_references(name):
    theirs, ours = pair(name, 2)
    x = image(1, 3, 32, 40)
    grads = []
    for model in (theirs, ours):
        y = model(x)
        (y * image(*y.shape, seed=1)).mean().backward()
        grads.append({key: p.grad for key, p in model.named_parameters()})
    want, got = grads
    for key in want:
        if name == "dat_light" and ".pos." in key:
            # One channel wide, so of no effect: the reference has rounding errors, ours nothing.
            assert want[key].abs().max() < 1e-7 and got[key] is None
        else:
            size = max(want[key].abs().max().item(), 1e-3)
            torch.testing.assert_close(got[key] / size, want[key] / size, atol=1e-4, rtol=0)


def test_every_parameter_gets_a_gradient():
    model = fill(create_backbone("dat_s", scale=2, depths=(3, 2), dim=72).eval())
    model(image(1, 3, 16, 32)).square().mean().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bundled_weights_equal_the_reference(scale):
    ours = load_backbone(f"dat_light_x{scale}")
    theirs = reference(ours)
    left = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not left.unexpected_keys and not checkpoint_filter(dict.fromkeys(left.missing_keys))
    x = image(1, 3, 24, 31)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


def conformance(name, scale):
    """PSNR-Y of the bundled weights on a photograph of scikit-image."""
    folder = Path(pytest.importorskip("skimage").__file__).parent / "data"
    photo = Image.open(folder / name).convert("RGB")
    size = [side - side % scale for side in photo.size]
    photo = photo.crop((0, 0, *size))
    small = photo.resize([side // scale for side in size], Image.Resampling.BICUBIC)
    hr, lr = (torch.from_numpy(np.array(im)).permute(2, 0, 1)[None] / 255 for im in (photo, small))
    with torch.inference_mode():
        sr = load_backbone(f"dat_light_x{scale}")(lr)
    return metrics.psnr(sr, hr, crop_border=scale, channel="y").item()


def test_conformance():
    assert conformance("chelsea.png", 4) == pytest.approx(CONFORMANCE["chelsea.png"][4], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", CONFORMANCE)
def test_conformance_on_all_photographs(name, scale):
    assert conformance(name, scale) == pytest.approx(CONFORMANCE[name][scale], abs=0.02)


def test_any_size():
    model = create_backbone("dat_light", scale=3, depths=(2,)).eval()
    with torch.no_grad():
        for h, w in ((1, 1), (2, 7), (31, 33)):
            y = model(image(2, 3, h, w))
            assert y.shape == (2, 3, 3 * h, 3 * w) and y.isfinite().all()


def test_batch_does_not_mix():
    model = fill(create_backbone("dat_light", scale=2, depths=(3,))).eval()
    x = image(3, 3, 20, 24)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=0)


def test_windows_round_trip():
    x = image(2, 16, 24, 5)
    windows = window_partition(x, 8, 4)
    assert windows.shape == (2, 2, 6, 8, 4, 5)
    assert torch.equal(windows[1, 1, 2], x[1, 8:16, 8:12])
    assert torch.equal(window_reverse(windows), x)


def test_shift_features_keep_strangers_apart():
    q, k, v = shift_features(8, 8, 2, 2, 3, torch.device("cpu")).flatten(1, 2)  # One 8 x 8 window.
    assert q.shape == (64, 5)
    token = torch.arange(64)
    region = 2 * (token // 8 >= 6) + (token % 8 >= 6)
    same = region[:, None] == region[None, :]
    product = q @ k.T
    common = product[0, 0]
    assert common == pytest.approx(SHIFT_GAP) and (product[same] == common).all()
    assert (product[~same] <= 1e-5).all() and (v == 0).all()


def test_attention_is_the_formula():
    q, k, v = (image(2, 3, 12, 10, seed=s) for s in range(3))
    bias = image(3, 12, 12, seed=3)
    want = (q @ k.transpose(-2, -1) * 10**-0.5 + bias).softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v, bias), want, atol=1e-6, rtol=0)


def test_the_kept_bias_follows_its_weights():
    model = fill(create_backbone("dat_s", scale=2, depths=(1,), dim=72).eval())
    pos = model.layers[0].blocks[0].attn.attns[0].pos
    pos.requires_grad_(False)
    first = pos()
    assert pos() is first and torch.equal(first, pos.build())
    with torch.no_grad():
        pos.pos3[2].weight.mul_(2)
    assert not torch.equal(pos(), first) and torch.equal(pos(), pos.build())
    pos.load_state_dict({key: value + 1 for key, value in pos.state_dict().items()})
    assert torch.equal(pos(), pos.build())
    pos.double()
    assert pos().dtype == torch.float64
    pos.float().requires_grad_(True)
    assert pos().requires_grad


def test_a_bias_of_width_one_is_a_constant():
    pos = fill(load_backbone("dat_light_x2").layers[0].blocks[0].attn.attns[0].pos)
    bias = pos.build()
    assert pos() is None and (bias == bias[:, :1, :1]).all()


def test_freezing_changes_no_bit():
    model, x = load_backbone("dat_light_x4"), image(1, 3, 33, 20)
    before = model(x)
    assert torch.equal(model.requires_grad_(False)(x), before)
    with torch.inference_mode():
        assert torch.equal(model(x), before)
    assert torch.equal(model(x), before)


def test_loading_in_inference_mode_gives_a_working_model():
    with torch.inference_mode():
        model = create_backbone("dat_s", scale=2, depths=(1,), dim=72).eval().requires_grad_(False)
        assert torch.equal(model(image(1, 3, 8, 8)), model(image(1, 3, 8, 8)))


def test_bfloat16_autocast_is_close():
    model, x = load_backbone("dat_light_x4").requires_grad_(False), image(1, 3, 32, 32)
    with torch.no_grad():
        want = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = model(x)
        assert (got.float() - want).abs().max() < 0.05
        assert torch.equal(model(x), want)


def test_sites():
    model = load_backbone("dat_light_x4").requires_grad_(False)
    assert (model.name, model.scale, model.size_multiple) == ("dat_light", 4, 1)
    x = image(1, 9, 13, 60)
    for block in model.layers[0].blocks[:2]:
        for site in (block.attn, block.ffn):
            assert (site.in_features, site.out_features, site.channels_last) == (60, 60, True)
            assert site(x).shape == x.shape


@pytest.mark.parametrize(
    ("method", "parameters"),
    # 18 blocks. lora: r (60 + 180 + 60 + 60 + 60 + 120 + 60 + 60); houlsby: two of 2 * 60 * 8 + 68;
    # adaptformer: 2 * 60 * 16 + 76; adaptir: 1937; bitfit: the biases 180 + 60 + 120 + 60 + 2 * 60.
    [
        ("lora", 18 * 3 * 660),
        ("houlsby", 18 * 2 * 1028),
        ("adaptformer", 18 * 1996),
        ("adaptir", 18 * 1937),
        ("bitfit", 18 * 540),
    ],
)
def test_budgets(method, parameters):
    model = attach_adapter(load_backbone("dat_light_x4"), method)
    assert count_parameters(model) == (parameters, 572_766 + parameters)


def test_published_sizes():
    for scale, parameters in ((2, 553_290), (3, 561_405), (4, 572_766)):
        assert (
            sum(p.numel() for p in load_backbone(f"dat_light_x{scale}").parameters()) == parameters
        )
    with torch.device("meta"):
        models = {name: create_backbone(name, scale=4) for name in ("dat_s", "dat")}
    millions = {name: sum(p.numel() for p in m.parameters()) / 1e6 for name, m in models.items()}
    assert millions == {
        "dat_s": pytest.approx(11.21, abs=5e-3),
        "dat": pytest.approx(14.80, abs=5e-3),
    }
