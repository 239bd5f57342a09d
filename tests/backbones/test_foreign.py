"""Architectures of other families through spandrel: as spandrel runs them, and under adapters."""

import builtins

import pytest
import torch
from safetensors.torch import save_file

import ir_peft
from ir_peft.adapters import (
    LoRAConfig,
    attach_adapter,
    count_parameters,
    load_adapter,
    save_adapter,
    trainable_parameters,
)
from ir_peft.backbones import BACKBONES, create_backbone, load_backbone
from ir_peft.backbones.foreign import SpandrelBackbone

spandrel = pytest.importorskip("spandrel")
# Both come from spandrel's own modules.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid", "ignore:'saved_variables'")
ATTENTION = r"network\.layers\..*\.attn\.(qkv|proj)"


def swinir(**options):
    from spandrel.architectures.SwinIR import SwinIR

    settings = {"img_size": 16, "embed_dim": 12, "depths": [2], "num_heads": [2]}
    settings |= {"window_size": 4, "mlp_ratio": 2.0, "upscale": 2}
    return SwinIR(**{**settings, "upsampler": "pixelshuffledirect", **options})


def nafnet(**options):
    from spandrel.architectures.NAFNet import NAFNet

    depths = {"middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}
    return NAFNet(**{"img_channel": 3, "width": 8, **depths, **options})


def fdncnn():
    """It takes a noise map besides the image, which spandrel adds to one image at a time."""
    from spandrel.architectures.DnCNN import DnCNN

    return DnCNN(in_nc=4, out_nc=3, nc=8, nb=4, mode="FDnCNN")


def safmn():
    from spandrel.architectures.SAFMN import SAFMN

    return SAFMN(dim=8, n_blocks=1, upscaling_factor=3)


NETWORKS = {"SwinIR": swinir, "NAFNet": nafnet, "DnCNN": fdncnn, "SAFMN": safmn}
SCALES = {"SwinIR": 2, "NAFNet": 1, "DnCNN": 1, "SAFMN": 3}


def random_state(network):
    """The network's state dict with every parameter at random: zeros would hide mistakes."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.fixture
def saved(tmp_path):
    """A function from a network's name (or builder) to the path of its checkpoint."""

    def save(build, name="network.pth"):
        build = NETWORKS.get(build, build)
        torch.save({"params_ema": random_state(build())}, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_are_those_of_spandrel(name, saved):
    path = saved(name)
    model = load_backbone(path)
    reference = spandrel.ModelLoader().load_from_file(path).eval()
    assert (model.name, model.scale, model.training) == (name, SCALES[name], False)
    assert model.size_multiple == reference.size_requirements.multiple_of
    for h, w in ((17, 22), (13, 31)):
        x = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(h))
        with torch.no_grad():
            ours = model(x)
        theirs = torch.cat([reference(image) for image in x.split(1)])
        assert ours.shape == (2, 3, model.scale * h, model.scale * w)
        # The descriptor clamps, restoring does so here.
        torch.testing.assert_close(ours.clamp(0, 1), theirs, rtol=1e-5, atol=1e-6)
        assert (ours == ours.clamp(0, 1)).float().mean() > 0.05


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2)])
def test_tiny_images(name, size, saved):
    model = load_backbone(saved(name))
    with torch.no_grad():
        out = model(torch.rand(1, 3, *size))
    assert out.shape[-2:] == (model.scale * size[0], model.scale * size[1])
    assert out.isfinite().all()


def test_restore_and_containers(tmp_path):
    state = random_state(swinir())
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
               tmp_path / "a.ckpt")  # fmt: skip
    image = torch.rand(3, 19, 21)
    outputs = []
    for file in ("a.safetensors", "a.ckpt"):
        model = load_backbone(tmp_path / file)
        assert model.state_dict().keys() == {f"network.{key}" for key in state}
        outputs.append(ir_peft.restore(model, image, tile=16, overlap=4))
    assert outputs[0].shape == (3, 38, 42) and torch.equal(*outputs)


def test_our_own_families_come_first(tmp_path):
    state = create_backbone("dat_light", scale=2, depths=(2,)).state_dict()
    torch.save(state, tmp_path / "dat.pth")
    assert not isinstance(load_backbone(tmp_path / "dat.pth"), SpandrelBackbone)


@pytest.mark.parametrize(
    ("name", "target"), [("SwinIR", ATTENTION), ("NAFNet", r".*\.conv[15]")]
)  # fmt: skip
def test_an_adapter_attaches_trains_and_loads_again(name, target, saved, tmp_path):
    path = saved(name)
    model = load_backbone(path)
    x = torch.rand(1, 3, 17, 18)
    with torch.no_grad():
        before = model(x)
    frozen = {key: value.clone() for key, value in model.state_dict().items()}
    attach_adapter(model, LoRAConfig(target_modules=target, r=2), seed=0)
    assert torch.equal(model(x), before)  # The identity at initialisation.
    trained = trainable_parameters(model)
    assert trained and all(".lora." in key for key in trained)
    assert count_parameters(model)[0] == sum(p.numel() for p in trained.values())

    optimiser = torch.optim.SGD(trained.values(), lr=1.0)
    for _ in range(2):  # B starts at zero: A moves from the second step on.
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    with torch.no_grad():
        after = model(x)
    assert not torch.equal(after, before)

    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(load_backbone(path), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(again(x), after)
    ir_peft.unload(model)
    assert all(torch.equal(value, frozen[key]) for key, value in model.state_dict().items())

    other = load_backbone(saved("SAFMN", "other.pth"))
    with pytest.raises(ValueError, match=f"is for backbone '{name}', this model has .*SAFMN"):
        load_adapter(other, tmp_path / "adapter")


def test_a_method_alone_asks_for_the_sites(saved):
    model = load_backbone(saved("SwinIR"))
    with pytest.raises(ValueError, match=r"give target_modules \(modules: .*'network"):
        attach_adapter(model, "lora")


def test_a_name_insists_on_our_own_architecture(saved, tmp_path):
    with pytest.raises(ValueError, match=r"holds no dat_light: its first keys are \['"):
        load_backbone(saved("SwinIR"), name="dat_light")
    save_file(random_state(swinir()), tmp_path / "lies.safetensors", {"architecture": "hat"})
    with pytest.raises(ValueError, match="holds no hat"):
        load_backbone(tmp_path / "lies.safetensors")
    save_file(random_state(swinir()), tmp_path / "true.safetensors", {"architecture": "swinir"})
    assert load_backbone(tmp_path / "true.safetensors").name == "SwinIR"


def test_what_nobody_recognises_is_named(tmp_path):
    torch.save({"encoder.0.weight": torch.ones(3)}, tmp_path / "odd.pth")
    message = r"no checkpoint of dat_light.*spandrel \d.* either.*encoder\.0\.weight"
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path / "odd.pth")


def test_damaged_and_unfit_files_are_refused(saved, tmp_path):
    state = random_state(swinir())
    key = "layers.0.residual_group.blocks.0.mlp.fc2.weight"
    torch.save({k: v for k, v in state.items() if k != key}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=f"does not load as one .*{key}"):
        load_backbone(tmp_path / "less.pth")
    torch.save({**state, key: state[key] * float("nan")}, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=f"{key} has values that are not finite"):
        load_backbone(tmp_path / "nan.pth")
    with pytest.raises(ValueError, match="NAFNet from 1 to 1 channels"):
        load_backbone(saved(lambda: nafnet(img_channel=1)))


@pytest.mark.parametrize("purpose", ["Inpainting", "FaceSR"])
def test_other_purposes_are_refused(purpose, saved, monkeypatch):
    class Registered(spandrel.ModelLoader):
        """An inpainting or a face network has some 100 MB of weights."""

        def load_from_state_dict(self, state):
            found = super().load_from_state_dict(state)
            found._purpose = purpose
            return found

    monkeypatch.setattr(spandrel, "ModelLoader", Registered)
    with pytest.raises(ValueError, match=f"NAFNet for {purpose}, not for restoring any image"):
        load_backbone(saved("NAFNet"))


def test_without_spandrel_the_error_says_what_would_help(saved, monkeypatch):
    path = saved("SwinIR")
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "spandrel":
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    message = rf"no checkpoint of {', '.join(BACKBONES)}: .*conv_first.*ir_peft\[spandrel\]"
    with pytest.raises(ValueError, match=message):
        load_backbone(path)
    assert load_backbone("dat_light_x4").name == "dat_light"  # It is needed for nothing else.
