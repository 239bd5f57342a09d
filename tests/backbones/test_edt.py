"""EDT-B against an independent derivation: one image, float64 NumPy, loops over windows, heads."""

import math

import numpy as np
import pytest
import torch

import ir_peft
from ir_peft import adapters
from ir_peft.backbones import edt

NARROW = {
    "dim": 20,
    "depths": (2, 2),
    "heads": 2,
    "window": (2, 4),
    "features": 4,
    "expansion": 1.5,
}
GELU = np.vectorize(lambda t: t * 0.5 * (1 + math.erf(t / math.sqrt(2))))


def convolve(x, weight, bias, groups=1):
    """(C, H, W) with zeros around it."""
    out_channels, per_group, size, _ = weight.shape
    H, W = x.shape[1:]
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
    out = np.tile(bias[:, None, None], (1, H, W))
    for group in range(groups):
        inner = slice(group * per_group, (group + 1) * per_group)
        outer = slice(group * out_channels // groups, (group + 1) * out_channels // groups)
        for dy in range(size):
            for dx in range(size):
                shifted = padded[inner, dy : dy + H, dx : dx + W]
                out[outer] += np.tensordot(weight[outer, :, dy, dx], shifted, axes=1)
    return out


def layer_norm(x, weight, bias):
    """(H, W, C)."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def attend(q, k, v, lepe_weight, lepe_bias, heads, window, shift):
    """Three of (H, W, C) -> (H, W, C), with the windows moved down and right by `shift`."""
    H, W, C = q.shape
    (h, w), (dh, dw), d = window, shift, C // heads
    out = np.zeros_like(q)
    for top in range(dh, H + dh, h):
        for left in range(dw, W + dw, w):
            places = [(i % H, j % W) for i in range(top, top + h) for j in range(left, left + w)]
            # A window over the image's edge goes on at the other side, among strangers.
            piece = [(i >= H, j >= W) for i in range(top, top + h) for j in range(left, left + w)]
            local = np.array([v[place] for place in places]).reshape(h, w, C).transpose(2, 0, 1)
            local = convolve(local, lepe_weight, lepe_bias, groups=C).reshape(C, h * w)
            strangers = np.array([[a != b for b in piece] for a in piece])
            Q, K, V = (np.array([x[place] for place in places]) for x in (q, k, v))
            for head in range(heads):
                part = slice(head * d, (head + 1) * d)
                weights = np.exp(Q[:, part] @ K[:, part].T / math.sqrt(d))
                weights[strangers] = 0
                mean = weights / weights.sum(axis=1, keepdims=True) @ V[:, part]
                for n, place in enumerate(places):
                    out[place][part] = mean[n] + local[part, n]
    return out


def enlarge(x, s):
    """Bilinear, pixel centres aligned as areas: (C, H, W) -> (C, s * H, s * W)."""
    for axis in (1, 2):
        size = x.shape[axis]
        source = np.clip((np.arange(s * size) + 0.5) / s - 0.5, 0, None)
        low = np.floor(source).astype(int)
        high = np.minimum(low + 1, size - 1)
        share = (source - low).reshape([-1 if a == axis else 1 for a in range(3)])
        x = (1 - share) * x.take(low, axis) + share * x.take(high, axis)
    return x


def derived(state, image, s, heads, window):
    """The output for one image (3, H, W), H and W multiples of the windows."""
    state = {key: value.double().numpy() for key, value in state.items()}

    def both(name):
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def leaky(x):
        return np.where(x > 0, x, 0.2 * x)

    def residual(x, name):
        y = leaky(convolve(x, *both(f"{name}.conv_1")))
        y = leaky(convolve(y, *both(f"{name}.conv_2")))
        return y + convolve(x, *both(f"{name}.shortcut"))

    def linear(x, name):
        weight, bias = both(name)
        return x @ weight.T + bias

    def block(x, name, odd):
        q, k, v = np.split(linear(layer_norm(x, *both(f"{name}.norm1")), f"{name}.qkv"), 3, axis=-1)
        h, w = window
        half = x.shape[-1] // 2
        parts = []
        for i, size in enumerate([(h, w), (w, h)]):
            mine = slice(i * half, (i + 1) * half)
            shift = (size[0] // 2, size[1] // 2) if odd else (0, 0)
            lepe = both(f"{name}.attns.{i}.lepe")
            parts.append(
                attend(q[..., mine], k[..., mine], v[..., mine], *lepe, heads, size, shift)
            )
        x = x + linear(np.concatenate(parts, axis=-1), f"{name}.proj")
        y = GELU(linear(layer_norm(x, *both(f"{name}.norm2")), f"{name}.mlp.fc1"))
        weight, bias = both(f"{name}.mlp.dwconv")
        y = GELU(convolve(y.transpose(2, 0, 1), weight, bias, groups=len(bias)))
        return x + linear(y.transpose(1, 2, 0), f"{name}.mlp.fc2")

    x = image - np.float32([0.4488, 0.4371, 0.4040])[:, None, None]  # The model keeps it in fp32.
    head, tail = f"head_sr_x{s}", f"tail_sr_x{s}"
    first = convolve(x, *both(f"{head}.0"))
    skip_1 = residual(first, f"{head}.1")
    skip_2 = residual(skip_1, f"{head}.2")
    shallow = convolve(skip_2, *both(f"{head}.3"))

    tokens = layer_norm(shallow.transpose(1, 2, 0), *both("body.patch_embed.norm"))
    group = 0
    while f"body.layers.{group}.residual_group.blocks.0.qkv.bias" in state:
        stem, number, y = f"body.layers.{group}.residual_group.blocks", 0, tokens
        while f"{stem}.{number}.qkv.bias" in state:
            y = block(y, f"{stem}.{number}", odd=number % 2 == 1)
            number += 1
        tokens = tokens + y
        group += 1
    tokens = layer_norm(tokens, *both("body.norm")).transpose(2, 0, 1)
    y = shallow + convolve(tokens, *both("body.conv_after_body"))

    for number, skip in enumerate((skip_2, skip_1)):
        y = np.concatenate([convolve(y, *both(f"{tail}.{number}.conv")), skip])
        y = residual(y, f"{tail}.{number}.block")
    for number, step in enumerate([3] if s == 3 else [2] * (s // 2)):
        y = convolve(y, *both(f"{tail}.2.{2 * number}"))
        channels, H, W = y.shape[0] // step**2, *y.shape[1:]
        y = y.reshape(channels, step, step, H, W).transpose(0, 3, 1, 4, 2)
        y = y.reshape(channels, H * step, W * step)
    return convolve(y, *both(f"{tail}.3")) + enlarge(image, s)


def randomized(model, seed=0):
    """Every parameter at random, so that no term hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = (noise / fan_in**0.5).to(parameter)
    return model.eval()


def official(model):
    """The state dict as the authors save it: with the masks of the odd blocks at 48 x 48."""
    state = dict(model.state_dict())
    for key in [key for key in state if key.endswith("norm1.weight")]:
        if int(key.split(".")[5]) % 2:
            for mask in ("attn_mask_h", "attn_mask_v"):
                state[key.replace("norm1.weight", mask)] = torch.zeros(16, 144, 144)
    return state


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_output_is_the_derived_one(scale):
    model = randomized(edt.edt_b(scale, **NARROW)).double()
    x = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        got = model(x).numpy()
    for image, out in zip(x.numpy(), got, strict=True):
        np.testing.assert_allclose(
            out, derived(model.state_dict(), image, scale, 2, (2, 4)), rtol=0, atol=1e-11
        )


@pytest.mark.parametrize(("h", "w"), [(1, 1), (5, 9), (3, 4)])
def test_other_sizes_are_continued_in_their_mirror(h, w):
    model = randomized(edt.edt_b(2, **NARROW)).double()
    x = torch.rand(1, 3, h, w, dtype=torch.float64)
    margins = ((0, 0), (0, -h % 4), (0, -w % 4))
    padded = np.pad(x[0].numpy(), margins, mode="symmetric")
    expected = derived(model.state_dict(), padded, 2, 2, (2, 4))[:, : 2 * h, : 2 * w]
    with torch.no_grad():
        np.testing.assert_allclose(model(x)[0].numpy(), expected, rtol=0, atol=1e-11)


@pytest.mark.slow
def test_full_size_output_is_the_derived_one():
    model = randomized(edt.edt_b(4)).double()
    x = torch.rand(1, 3, 24, 24, dtype=torch.float64)
    with torch.no_grad():
        got = model(x)[0].numpy()
    expected = derived(model.state_dict(), x[0].numpy(), 4, 6, (6, 24))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_parameter_counts():
    with torch.device("meta"):
        models = {scale: edt.edt_b(scale) for scale in (2, 3, 4)}
    counts = {s: sum(p.numel() for p in model.parameters()) for s, model in models.items()}
    assert counts[4] == 11_627_067  # 11.63 M
    assert counts[2] == 11_479_355  # 11.48 M
    assert sum(p.numel() for p in models[4].body.parameters()) == 10_096_740  # 10.10 M
    assert counts[3] - counts[2] == 64 * 9 * 64 * 9 + 64 * 9 - (64 * 9 * 64 * 4 + 64 * 4)


def test_official_file_with_three_branches_loads(tmp_path):
    settings = {"dim": 60, "depths": (2, 1), "heads": 2, "features": 8}
    model = randomized(edt.edt_b(4, scales=(2, 3, 4), **settings))
    torch.save(official(model), tmp_path / "SRx2x3x4_EDTB_ImageNet200K.pth")
    loaded = ir_peft.load_backbone(tmp_path / "SRx2x3x4_EDTB_ImageNet200K.pth")
    assert (loaded.name, loaded.scale, loaded.scales) == ("edt_b", 4, (2, 3, 4))
    x = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
        for scale in (2, 3):
            loaded.set_scale(scale)
            model.set_scale(scale)
            assert torch.equal(loaded(x), model(x))
            assert loaded(x).shape == (1, 3, 24 * scale, 24 * scale)


def test_full_size_is_detected():
    with torch.device("meta"):
        state = official(edt.edt_b(4, scales=(2, 3, 4)))
        name, settings = edt.detect(state)
        model = edt.edt_b(**settings)
    assert name == "edt_b"
    assert (settings["heads"], settings["depths"]) == (6, (6,) * 6)
    shapes = {key: value.shape for key, value in edt.checkpoint_filter(state).items()}
    assert shapes == {key: value.shape for key, value in model.state_dict().items()}


def test_foreign_and_damaged_files_are_refused(tmp_path):
    other = ir_peft.create_backbone("dat_light", depths=(2,))
    assert edt.detect(other.state_dict()) is None
    state = official(edt.edt_b(2, dim=60, depths=(1,), heads=2, features=8))
    state["head_dn_g15.0.weight"] = torch.zeros(8, 3, 3, 3)
    torch.save(state, tmp_path / "with_denoising.pth")
    with pytest.raises(ValueError, match="head_dn_g15"):
        ir_peft.load_backbone(tmp_path / "with_denoising.pth")


def test_scales_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"not at \(5,\)"):
        edt.edt_b(5, **NARROW)
    with pytest.raises(ValueError, match="not of 2"):
        edt.edt_b(2, scales=(3, 4), **NARROW)
    with pytest.raises(ValueError, match="not of 3"):
        edt.edt_b(2, **NARROW).set_scale(3)


@pytest.mark.parametrize(
    ("method", "count", "sites"),
    [
        ("adaptir", 173_412, 36),
        ("lora", 155_520, 72),
        ("houlsby", 168_912, 72),
        ("adaptformer", 162_432, 36),
    ],
)
def test_adapters_on_the_full_size(method, count, sites):
    with torch.device("meta"):
        model = edt.edt_b(4)
    ir_peft.attach_adapter(model, method)
    trainable, total = ir_peft.count_parameters(model)
    assert (trainable, total) == (count, 11_627_067 + count)
    wrapped = [m for m in model.modules() if hasattr(m, "base_layer")]
    assert len(wrapped) == sites


@pytest.mark.parametrize("method", ["adaptir", "lora", "houlsby", "adaptformer", "bitfit"])
def test_adapters_start_as_the_identity_and_then_act(method):
    model = randomized(edt.edt_b(2, **NARROW))
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        before = model(x)
        ir_peft.attach_adapter(model, method)
        assert torch.equal(model(x), before)
    trained = adapters.trainable_parameters(model)
    for _ in range(2):  # The first step moves only what starts at zero.
        model(x).square().mean().backward()
        with torch.no_grad():
            for parameter in trained.values():
                if parameter.grad is not None:
                    parameter -= parameter.grad
                    parameter.grad = None
    with torch.no_grad():
        assert not torch.allclose(model(x), before, atol=1e-5)
