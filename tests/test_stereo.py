"""Stereo pairs through a backbone, and released ASteISR checkpoints."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ir_peft
from ir_peft.adapters import adapter_state_dict, attach_adapter, train_mode
from ir_peft.adapters.core import adapter_parts
from ir_peft.backbones import hat
from ir_peft.cli import main
from ir_peft.data import write_image
from ir_peft.stereo_inference import read_pair

SMALL = {"dim": 24, "depths": (2, 1), "window": 8, "squeeze_factor": 6}


def small_hat(**overrides):
    torch.manual_seed(0)
    return hat.HAT(name="hat", **{**SMALL, "scale": 2, **overrides}).eval()


def pairs(B=2, h=8, w=16, seed=5):
    return torch.rand(B, 2, 3, h, w, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- Stereo


@torch.no_grad()
def test_each_view_is_restored_as_if_alone():
    model, x = small_hat(), pairs(h=9, w=21)
    out = ir_peft.Stereo(model)(x)
    assert out.shape == (2, 2, 3, 18, 42)
    assert torch.equal(out.flatten(0, 1), model(x.flatten(0, 1)))
    attach_adapter(model, "asteisr")
    assert torch.equal(ir_peft.Stereo(model)(x), out)
    for b in range(2):  # The view is the inner index of the folded batch.
        for t in range(2):
            with ir_peft.disable_adapters(model):
                torch.testing.assert_close(model(x[b, t, None])[0], out[b, t])


def test_swapping_views_swaps_the_output_of_untrained_adapters():
    stereo, x = ir_peft.Stereo(attach_adapter(small_hat(), "asteisr")), pairs()
    torch.testing.assert_close(stereo(x.flip(1)), stereo(x).flip(1))


def test_pairs_do_not_see_each_other():
    model = attach_adapter(small_hat(), "asteisr_stereo", target_modules=("stereo_site",))
    with torch.no_grad():
        for p in adapter_parts(model, "default").adapters.values():
            p.beta.fill_(0.5), p.gamma.fill_(0.5)
    stereo, x = ir_peft.Stereo(model), pairs()
    changed = x.clone()
    changed[1] = pairs(B=1, seed=9)[0]
    torch.testing.assert_close(stereo(changed)[0], stereo(x)[0])
    assert not torch.allclose(stereo(changed)[1], stereo(x)[1])


def test_it_is_the_same_model():
    model = small_hat()
    stereo = ir_peft.Stereo(model)
    assert (stereo.scale, stereo.name, stereo.size_multiple) == (2, "hat", 8)
    assert stereo.state_dict().keys() == model.state_dict().keys()
    attach_adapter(stereo, "asteisr")
    assert ir_peft.active_adapter(model) == "default"
    assert ir_peft.count_parameters(stereo) == ir_peft.count_parameters(model)
    train_mode(stereo)
    assert not model.training and not model.norm.training
    assert stereo.double() is stereo and model.conv_first.weight.dtype == torch.float64
    ir_peft.unload(model)
    assert ir_peft.adapter_names(stereo) == []
    calls = []
    handle = model.register_forward_hook(lambda module, args, out: calls.append(out.shape))
    stereo(pairs(B=1).double())
    handle.remove()
    assert calls == [(1, 2, 3, 16, 32)]


def test_class_attributes_are_the_backbones():
    model = ir_peft.create_backbone("restormer", dim=8, depths=(1, 1, 1, 1), refinement=1)
    assert ir_peft.Stereo(model).size_multiple == 8
    with pytest.raises(AttributeError, match="missing"):
        _ = ir_peft.Stereo(model).missing


def test_other_shapes_are_refused():
    stereo = ir_peft.Stereo(small_hat())
    for shape in [(2, 3, 8, 8), (1, 3, 3, 8, 8), (1, 1, 3, 8, 8), (1, 2, 1, 8, 8)]:
        with pytest.raises(ValueError, match=r"expected pairs \(B, 2, 3, h, w\)"):
            stereo(torch.rand(shape))
    for wrong in (stereo, lambda x: x):
        with pytest.raises(TypeError, match="for single images"):
            ir_peft.Stereo(wrong)


def test_training_through_it():
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            x = pairs(B=1, h=16, w=32, seed=index)[0]
            return F.avg_pool2d(x, 2), x

    model = small_hat()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stereo = ir_peft.Stereo(model)
    attach_adapter(model, "asteisr", seed=0)
    start = {key: value.clone() for key, value in adapter_state_dict(model).items()}
    ir_peft.train(stereo, Pairs(), steps=4, batch_size=2, lr=1e-2, progress=False)
    assert all(not torch.equal(v, start[k]) for k, v in adapter_state_dict(model).items())
    after = ir_peft.unload(model).state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


# ---------------------------------------------------------------- released checkpoints


def released(model):
    """The authors' names and shapes of a HAT's tensors with ASteISR's adapters."""
    own = {f"{name}.": value for name, value in ir_peft.Stereo(model).state_dict().items()}
    state = {
        key[:-1].replace("base_layer.", ""): v for key, v in own.items() if ".adapters." not in key
    }
    names = {
        "spatial_site.asteisr.down": "S_Adapter.D_fc1",
        "spatial_site.asteisr.up": "S_Adapter.D_fc2",
        "stereo_site.asteisr": "stereo_adapter",
    }
    for key, value in adapter_state_dict(model).items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        if "_proj" in key and key.endswith("weight"):
            value = value[:, :, None, None]
        elif key.endswith(("beta", "gamma")):
            value = value[None, :, None, None]
        state[key] = value.clone()
    N = model.size_multiple**2
    state["relative_position_index_SA"] = torch.zeros(N, N, dtype=torch.long)
    state["relative_position_index_OCA"] = torch.zeros(N, N * 9 // 4, dtype=torch.long)
    return state


@pytest.fixture
def trained():
    model = attach_adapter(small_hat(), "asteisr", seed=0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.2)
    return model


def test_a_released_checkpoint_is_the_model_it_was_made_of(trained, tmp_path):
    torch.save({"params": released(trained)}, tmp_path / "x.pth")
    stereo = ir_peft.load_stereo(tmp_path / "x.pth", mask_leak=False)
    x = pairs()
    assert torch.equal(stereo(x), ir_peft.Stereo(trained)(x))
    assert ir_peft.count_parameters(stereo) == ir_peft.count_parameters(trained)
    with pytest.raises(ValueError, match="load_stereo"):
        ir_peft.load_backbone(tmp_path / "x.pth")


def test_number_of_tensors_of_the_released_x4_checkpoint():
    with torch.device("meta"):
        state = released(attach_adapter(ir_peft.create_backbone("hat_l"), "asteisr"))
    assert len(state) == 2082


def test_a_damaged_released_checkpoint_is_refused(trained, tmp_path):
    state, path = released(trained), tmp_path / "x.pth"
    missing = dict(state)
    del missing["layers.1.stereo_adapter.norm_l.weight"]
    extra = {**state, "layers.0.stereo_adapter.beta": torch.zeros(1, 24, 1, 1)}
    wide = {**state, "layers.1.stereo_adapter.beta": torch.zeros(1, 25, 1, 1)}
    down = "layers.0.residual_group.blocks.0.S_Adapter.D_fc1.bias"
    narrow = {**state, down: torch.zeros(1)}
    gone = {key: value for key, value in state.items() if key != "norm.weight"}
    plain = {key: value for key, value in state.items() if "dapter" not in key}
    for broken, match in [
        (missing, r"missing 'layers.1.stereo_adapter.norm_l.weight'"),
        (
            extra,
            r"unknown 'layers.0.stereo_adapter.beta' \(nearest: 'layers.1.stereo_adapter.beta'",
        ),
        (narrow, rf"'{down.replace('.', '[.]')}' has shape"),
        (wide, r"shape \(25,\)"),
        (gone, "norm.weight"),
        (plain, "no ASteISR checkpoint: 0 tensors.*a HAT"),
        ({"a": torch.zeros(1)}, "no HAT"),
    ]:
        torch.save({"params": broken}, path)
        with pytest.raises(ValueError, match=f"x.pth.*{match}"):
            ir_peft.load_stereo(path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        ir_peft.load_stereo(tmp_path / "y.pth")


def leaky(attention: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Unshifted window attention under the mask of the shifted one, as the authors compute both."""
    B, H, W, C = x.shape
    w, heads = attention.window, attention.heads
    image = torch.zeros(H, W)
    count = 0
    for rows in (slice(0, -w), slice(-w, -w // 2), slice(-w // 2, None)):
        for columns in (slice(0, -w), slice(-w, -w // 2), slice(-w // 2, None)):
            image[rows, columns] = count
            count += 1

    def windows(t):
        t = t.reshape(-1, H // w, w, W // w, w, t.shape[-1]).transpose(2, 3)
        return t.reshape(-1, w * w, t.shape[-1])

    regions = windows(image[None, :, :, None]).squeeze(-1)  # (nW, N)
    mask = torch.where(regions[:, None] == regions[:, :, None], 0.0, -100.0)
    qkv = windows(attention.qkv(x)).unflatten(-1, (3, heads, C // heads))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    logits = q @ k.mT * (C // heads) ** -0.5 + attention.bias() + mask.repeat(B, 1, 1)[:, None]
    out = (logits.softmax(-1) @ v).transpose(1, 2).reshape(-1, w * w, C)
    out = out.reshape(B, H // w, W // w, w, w, C).transpose(2, 3).reshape(B, H, W, C)
    return attention.proj(out), mask.any(-1).any(-1)


def test_mask_leak_is_the_authors_and_off_by_default(trained, tmp_path):
    path, x = tmp_path / "x.pth", pairs(h=16, w=24)
    torch.save({"params": released(trained)}, path)
    leaks, meant = ir_peft.load_stereo(path), ir_peft.load_stereo(path, mask_leak=False)
    assert not torch.allclose(leaks(x), meant(x))
    first = leaks.layers[0].residual_group.blocks[0].attn
    tokens = torch.randn(1, 16, 24, 24)
    expected, _ = leaky(first, tokens)
    torch.testing.assert_close(first(tokens), expected)
    plain = meant.layers[0].residual_group.blocks[0].attn(tokens)
    same = torch.isclose(plain, expected, atol=1e-6).all(-1)[0]
    assert same[:8, :16].all() and not same[8:].any() and not same[:, 16:].any()
    shifted = [m.layers[0].residual_group.blocks[1].attn for m in (leaks, meant)]
    assert torch.equal(shifted[0](tokens), shifted[1](tokens))


def test_a_saved_adapter_keeps_the_mask_leak(trained, tmp_path):
    """Weights do not show it and the output depends on it: a model without it is refused."""
    path, x = tmp_path / "x.pth", pairs(h=16, w=24)
    torch.save({"params": released(trained)}, path)
    for leak in (True, False):
        stereo = ir_peft.load_stereo(path, mask_leak=leak)
        assert stereo.mask_leak is stereo.backbone.mask_leak is leak
        folder = ir_peft.save_adapter(stereo, tmp_path / str(leak))
        assert ('"mask_leak": true' in (folder / "adapter_config.json").read_text()) is leak
        expected, plain = stereo(x), small_hat(scale=2)
        plain.load_state_dict(ir_peft.unload(stereo.backbone).state_dict())
        plain.mask_leak = not leak
        advice = (
            f"is for mask_leak {leak}, this model has mask_leak {not leak}: set model.mask_leak"
        )
        with pytest.raises(ValueError, match=advice):
            ir_peft.load_adapter(plain, folder)
        assert not ir_peft.adapter_names(plain)
        plain.mask_leak = leak
        torch.testing.assert_close(ir_peft.Stereo(ir_peft.load_adapter(plain, folder))(x), expected)


def test_six_of_ten_windows_are_cut_on_the_training_crop():
    attention = hat.WindowAttention(6, 6, 16, 0)
    assert leaky(attention, torch.randn(1, 32, 80, 6))[1].sum() == 6


def test_the_command_restores_with_a_released_checkpoint(trained, tmp_path, capsys, monkeypatch):
    path, files = str(tmp_path / "x.pth"), [str(tmp_path / f"{side}.png") for side in "lr"]
    torch.save({"params_ema": released(trained)}, path)
    for file, view in zip(files, pairs(B=1, h=16, w=24)[0], strict=True):
        write_image(file, view)
    seen = []

    def restore_stereo(model, pair, *_):
        seen.append(model(pair[None])[0])
        return pair

    monkeypatch.setattr(ir_peft.stereo_inference, "restore_stereo", restore_stereo)
    words = ["restore", "--backbone", path, "--device", "cpu", "--force"]
    assert main([*words, "--stereo", *files]) == 0
    assert main([*words, "--stereo", *files, "--no-mask-leak"]) == 0
    assert "no stereo adapter" not in capsys.readouterr().err
    with torch.no_grad():
        for leak, out in zip((True, False), seen, strict=True):
            expected = ir_peft.load_stereo(path, mask_leak=leak)(read_pair(*files)[None])[0]
            torch.testing.assert_close(out, expected)
    other = [
        "restore",
        "--stereo",
        *files,
        "--force",
        "--backbone",
        "hat_mini_x2",
        "--no-mask-leak",
    ]
    for wrong, match in [
        ([*words, files[0]], "needs both views of a scene: --stereo LEFT RIGHT"),
        ([*words, "--stereo", *files, "--adapter", "a"], "leave out --adapter"),
        (other, "hat_mini_x2 is no checkpoint of ASteISR's authors: leave out --no-mask-leak"),
    ]:
        assert main(wrong) == 2
        assert match in capsys.readouterr().err
