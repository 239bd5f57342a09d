import errno
import json
import os
import re
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ir_peft.adapters import (
    CONFIGS,
    LoRAConfig,
    adapter_names,
    adapter_state_dict,
    attach_adapter,
    checkpoint,
    config_from_dict,
    fingerprint,
    load_adapter,
    load_adapter_state_dict,
    save_adapter,
    set_adapter,
    train_mode,
)
from ir_peft.backbones import create_backbone

MODEL, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def saved(tiny, helpers, tmp_path):
    """A folder with a moved AdaptIR adapter and a trained norm, for the model of seed 0."""
    attach_adapter(tiny, "adaptir", modules_to_save=("norm",))
    helpers.move(tiny)
    return save_adapter(tiny, tmp_path / "saved")


def rewrite(folder, edit):
    """Applies `edit` to the tensors of a saved adapter."""
    with safetensors.safe_open(folder / MODEL, framework="pt") as file:
        metadata = file.metadata()
    state = safetensors.torch.load_file(folder / MODEL)
    edit(state)
    safetensors.torch.save_file(state, folder / MODEL, metadata)


def refused(folder, helpers, match, error=ValueError, model=None):
    """Loading fails with a clear message and leaves the model alone."""
    model = helpers.make() if model is None else model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=match):
        load_adapter(model, folder)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(before[key].equal(after[key]) for key in after)
    assert adapter_names(model) == [] and all(p.requires_grad for p in model.parameters())


def test_round_trip_bit_for_bit(tiny, x, method, helpers, tmp_path):
    """With BatchNorm statistics that training has moved, under another name, beside another."""
    extra = {} if method in ("full", "frozen") else {"modules_to_save": ("norm",)}
    attach_adapter(tiny, method, "trained", **extra)
    with torch.no_grad():
        train_mode(tiny)(x)
    helpers.move(tiny)
    expected = tiny.eval()(x)
    folder = save_adapter(tiny, tmp_path / "a" / "b", "trained")
    assert {file.name for file in folder.iterdir()} == {MODEL, CONFIG}

    other = attach_adapter(helpers.make(), "lora", "first")
    random = torch.random.get_rng_state()
    assert load_adapter(other, folder, "second") is other
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.equal(other(x), expected)
    a, b = adapter_state_dict(tiny, "trained"), adapter_state_dict(other, "second")
    assert list(a) == list(b) and all(a[key].equal(b[key]) for key in a)
    set_adapter(other, "first")
    assert torch.equal(other(x), helpers.make()(x))


def test_exact_set_of_keys(tiny):
    attach_adapter(tiny, "adaptir", modules_to_save=("norm",))
    tensors = (
        "head.weight head.bias BN.weight BN.bias BN.running_mean BN.running_var "
        "BN.num_batches_tracked conv_weight_A conv_weight_B conv_bias amp_fuse.weight "
        "amp_fuse.bias pha_fuse.weight pha_fuse.bias compress.weight compress.bias proj.0.weight "
        "proj.0.bias proj.2.weight proj.2.bias channel_gate.1.weight channel_gate.1.bias "
        "channel_gate.3.weight channel_gate.3.bias spatial_gate.weight spatial_gate.bias "
        "tail.weight"
    )
    tensors = tensors.split()
    expected = {f"blocks.{i}.ffn.adaptir.{key}" for i in (0, 1) for key in tensors}
    assert set(adapter_state_dict(tiny)) == expected | {"norm.weight", "norm.bias"}
    attach_adapter(tiny, LoRAConfig(target_modules=("0.ffn.fc1",)), "b")
    assert list(adapter_state_dict(tiny, "b")) == [
        "blocks.0.ffn.fc1.lora.lora_A.weight", "blocks.0.ffn.fc1.lora.lora_B.weight"
    ]  # fmt: skip


def test_file_size_and_config(tiny, saved):
    state = adapter_state_dict(tiny)
    payload = sum(t.numel() * t.element_size() for t in state.values())
    data = (saved / MODEL).read_bytes()
    assert len(data) == payload + 8 + struct.unpack("<Q", data[:8])[0]
    card = json.loads((saved / CONFIG).read_text())
    assert card["method"] == "adaptir" and card["backbone"] == "tiny" and card["scale"] == 1
    assert card["fingerprint"] == fingerprint(tiny)
    assert card["config"]["target_modules"] == r"blocks\.\d+\.ffn"
    assert card["config"]["modules_to_save"] == ["norm"] and card["config"]["hidden"] == 4


def test_every_config_survives_json():
    for method, kind in CONFIGS.items():
        config = kind()
        again = config_from_dict(method, json.loads(json.dumps(config.to_dict())))
        assert again == config and hash(again) == hash(config)


def test_fingerprint_is_of_the_backbone_alone(tiny, method, helpers):
    before = fingerprint(tiny)
    attach_adapter(tiny, method)
    helpers.move(tiny)
    assert fingerprint(tiny) == before
    for change in (
        lambda m: m.norm.weight.data[0].add_(1e-6),
        lambda m: m.blocks[0].ffn.bn.running_mean[0].add_(1e-6),
        lambda m: m.bfloat16(),
    ):
        other = helpers.make()
        assert fingerprint(other) == before
        change(other)
        assert fingerprint(other) != before


def test_tag_of_a_bundled_adapter(saved, x, tiny, helpers, monkeypatch):
    monkeypatch.setattr(checkpoint, "WEIGHTS", saved.parent)
    assert torch.equal(load_adapter(helpers.make(), "saved")(x), tiny(x))
    refused("savde", helpers, "nearest bundled: 'saved'", FileNotFoundError)


def test_wrong_backbone_scale_or_weights(saved, helpers):
    other = helpers.make()
    other.name = "other"
    refused(saved, helpers, "is for backbone 'tiny', this model has backbone 'other'", model=other)
    other = helpers.make()
    other.scale = 4
    refused(saved, helpers, "is for scale 1, this model has scale 4", model=other)
    refused(saved, helpers, "made for other weights of 'tiny'", model=helpers.make(seed=1))


def test_wrong_tensors(saved, helpers):
    key = "blocks.0.ffn.adaptir.tail.weight"
    original = contents(saved)
    for edit, match in [
        (lambda s: s.pop(key), rf"1 missing and 0 unknown: missing '{key}'"),
        (
            lambda s: s.update({"norm.wieght": torch.ones(8)}),
            "unknown 'norm.wieght'.*norm.weight",
        ),
        (
            lambda s: s.update({key: torch.ones(8, 4)}),
            r"shape \(8, 4\), the adapter needs \(8",
        ),
        (lambda s: s[key][0].fill_(float("nan")), f"'{key}' has values that are not finite"),
        (lambda s: s["norm.bias"][0].fill_(float("inf")), "'norm.bias' has values that are not"),
    ]:
        (saved / MODEL).write_bytes(original[MODEL])
        rewrite(saved, edit)
        refused(saved, helpers, match)


def test_a_backbone_with_tasks_takes_the_adapter_of_its_task_only(tmp_path):
    def ipt(task):
        torch.manual_seed(0)
        sizes = {"channels": 16, "patch_size": 12, "heads": 3, "depth": 1}
        return create_backbone("ipt", task=task, **sizes)

    model = attach_adapter(ipt("denoise_30"), "lora", target_modules=r".*\.linear1")
    folder = save_adapter(model, tmp_path / "saved")
    assert json.loads((folder / CONFIG).read_text())["task"] == "denoise_30"
    other = ipt("derainL")
    message = "is for task 'denoise_30', this model has task 'derainL': call set_task"
    with pytest.raises(ValueError, match=message):
        load_adapter(other, folder)
    other.set_task("denoise_30")
    assert adapter_names(load_adapter(other, folder)) == ["default"]


def test_a_folder_of_adapters_names_them(saved, helpers):
    inside = re.escape(str(saved.parent / "saved"))
    match = f"is a folder of 1 adapters: name one of {inside}$"
    refused(saved.parent, helpers, match, FileNotFoundError)
    with pytest.raises(
        FileNotFoundError, match=r"name one of adaptir/ablation/lr4_noise30-.*, \.\.\. \("
    ):
        load_adapter(helpers.make(), "adaptir")
    empty = saved.parent / "empty"
    empty.mkdir()
    refused(empty, helpers, f"has no {MODEL} and no {CONFIG}$", FileNotFoundError)


def test_damaged_files(saved, helpers, tmp_path):
    original = contents(saved)
    for name, data, match in [
        (MODEL, original[MODEL][:-100], f"{MODEL} is damaged"),
        (MODEL, original[MODEL][:50], f"{MODEL} is damaged"),
        (MODEL, b"", f"{MODEL} is damaged"),
        (MODEL, b"\x80\x04cos\nsystem\n", f"{MODEL} is damaged"),
        (CONFIG, original[CONFIG][:40], f"{CONFIG} is damaged"),
        (CONFIG, b"[1]", f"{CONFIG} is damaged: its entries must be"),
        (CONFIG, b"\xff\xfe", f"{CONFIG} is damaged"),
        (CONFIG, original[CONFIG].replace(b'"hidden": 4', b'"hidden": 2'), "different saves"),
    ]:
        for file, good in original.items():
            (saved / file).write_bytes(good)
        (saved / name).write_bytes(data)
        refused(saved, helpers, match)
    (saved / CONFIG).unlink()
    refused(saved, helpers, f"has no {CONFIG}", FileNotFoundError)
    refused(tmp_path / "absent", helpers, "neither a folder nor a bundled", FileNotFoundError)


def test_unknown_method_or_field_in_the_file(saved, helpers):
    for old, new, match in [
        ('"method": "adaptir"', '"method": "adaptor"', "unknown method 'adaptor'"),
        ('"hidden": 4', '"hiden": 4', "no field 'hiden'; nearest: 'hidden'"),
        (r"blocks\\.\\d+\\.ffn", r"blocks\\.\\d+\\.fnn", "no module matches"),
    ]:
        text = (saved / CONFIG).read_text()
        assert old in text
        state = safetensors.torch.load_file(saved / MODEL)
        changed = text.replace(old, new)
        (saved / CONFIG).write_text(changed)
        safetensors.torch.save_file(state, saved / MODEL, {"card": changed})
        refused(saved, helpers, match)
        (saved / CONFIG).write_text(text)


def test_state_dict_is_strict_and_changes_nothing_on_error(tiny, helpers):
    attach_adapter(tiny, "lora")
    helpers.move(tiny)
    before = {key: value.clone() for key, value in adapter_state_dict(tiny).items()}
    bad = {key: torch.zeros_like(value) for key, value in before.items()}
    bad["blocks.1.ffn.fc2.lora.lora_B.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        load_adapter_state_dict(tiny, bad)
    assert all(value.equal(before[key]) for key, value in adapter_state_dict(tiny).items())
    with pytest.raises(ValueError, match="no adapter 'other' is attached; attached: .'default'"):
        load_adapter_state_dict(tiny, before, "other")
    load_adapter_state_dict(tiny, {key: value + 1 for key, value in before.items()})
    assert all(value.equal(before[key] + 1) for key, value in adapter_state_dict(tiny).items())


class Disk:
    """A disk that is full from the n-th write of a file on."""

    def __init__(self, monkeypatch, capacity):
        self.left = capacity
        for name in ("write_bytes", "write_text"):
            monkeypatch.setattr(Path, name, self.limited(getattr(Path, name)))

    def limited(self, write):
        def replacement(path, data, *args, **kwargs):
            if self.left == 0:
                write(path, data[: len(data) // 2], *args, **kwargs)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            self.left -= 1
            return write(path, data, *args, **kwargs)

        return replacement


@pytest.mark.parametrize("capacity", [0, 1])
def test_full_disk_leaves_the_previous_files(saved, tiny, helpers, monkeypatch, capacity):
    before = contents(saved)
    helpers.move(tiny)
    with monkeypatch.context() as patch:
        Disk(patch, capacity)
        with pytest.raises(OSError, match="No space left"):
            save_adapter(tiny, saved)
    assert contents(saved) == before
    load_adapter(helpers.make(), saved)


def test_interrupt_while_writing_leaves_the_previous_files(saved, tiny, helpers, monkeypatch):
    before = contents(saved)
    helpers.move(tiny)

    def interrupted(path, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_adapter(tiny, saved)
    assert contents(saved) == before


def test_a_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    attach_adapter(tiny, "lora")
    with pytest.raises(OSError, match="file"):
        save_adapter(tiny, tmp_path / "file" / "adapter")
    assert (tmp_path / "file").read_text() == "in the way"


def test_values_that_are_not_finite_are_not_written(saved, tiny):
    before = contents(saved)
    tiny.norm.copies["default"].bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="'norm.bias' has values that are not finite"):
        save_adapter(tiny, saved)
    with pytest.raises(ValueError, match="no adapter 'other'"):
        save_adapter(tiny, saved.parent / "new", "other")
    assert contents(saved) == before and not (saved.parent / "new").exists()


def test_tied_parameters_are_stored_twice_and_loaded(tiny, x, helpers, tmp_path):
    def tied():
        model = helpers.make()
        model.blocks[0].norm1.weight = model.norm.weight
        return model

    model = attach_adapter(tied(), "full")
    helpers.move(model)
    folder = save_adapter(model, tmp_path / "tied")
    assert torch.equal(load_adapter(tied(), folder)(x), model(x))


def test_half_precision_on_disk(tiny, x, saved, helpers, tmp_path):
    """Half the bytes, the header says so, and the loaded adapter is in fp32 with rounded values."""
    half = save_adapter(tiny, tmp_path / "half", dtype="fp16")
    state, wide = adapter_state_dict(tiny), safetensors.torch.load_file(saved / MODEL)
    stored = safetensors.torch.load_file(half / MODEL)
    for key, tensor in state.items():
        kind = torch.float16 if tensor.is_floating_point() else tensor.dtype
        assert stored[key].dtype == kind and torch.equal(stored[key], wide[key].to(kind))
    floats = sum(4 * t.numel() for t in state.values() if t.is_floating_point())
    payloads = [sum(t.numel() * t.element_size() for t in f.values()) for f in (wide, stored)]
    assert payloads[0] - payloads[1] == floats // 2
    assert json.loads((half / CONFIG).read_text())["dtype"] == "fp16"
    assert "dtype" not in json.loads((saved / CONFIG).read_text())
    other = load_adapter(helpers.make(), half)
    for key, tensor in adapter_state_dict(other).items():
        assert tensor.dtype == state[key].dtype
        assert torch.equal(tensor, stored[key].to(tensor.dtype))
    torch.testing.assert_close(other(x), tiny(x), rtol=0, atol=0.05)
    assert not torch.equal(other(x), tiny(x))


def test_half_precision_refuses_what_it_cannot_hold(tiny, tmp_path):
    attach_adapter(tiny, "adair")
    with pytest.raises(ValueError, match="dtype='fp8' must be None or one of fp16"):
        save_adapter(tiny, tmp_path / "a", dtype="fp8")
    tiny.blocks[0].attn.adapters["default"].up.weight.data.fill_(1e5)
    with pytest.raises(ValueError, match=r"'blocks.0.attn.adair.up.weight'.*no value above 65504"):
        save_adapter(tiny, tmp_path / "a", dtype="fp16")
    assert not (tmp_path / "a").exists()
