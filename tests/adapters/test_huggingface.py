"""Methods of Hugging Face peft on our backbones, and adapters to and from its own folders."""

import copy
import json
import sys
import warnings

import pytest
import torch
from torch import nn

from ir_peft.adapters import (
    HuggingFaceConfig,
    LoRAConfig,
    active_adapter,
    adapter_state_dict,
    attach_adapter,
    count_parameters,
    disable_adapters,
    fingerprint,
    from_peft_folder,
    load_adapter,
    merge_and_unload,
    save_adapter,
    set_adapter,
    to_peft_folder,
    train_mode,
    trainable_parameters,
    unload,
)
from ir_peft.backbones import create_backbone


@pytest.fixture(scope="module", autouse=True)
def peft():
    with warnings.catch_warnings():  # What its own imports print is not ours to mend.
        warnings.simplefilter("ignore")
        import peft
    return peft


KINDS = {
    "lora": ("LORA", {"r": 2}),
    "dora": ("LORA", {"r": 2, "use_dora": True}),
    "rslora": ("LORA", {"r": 4, "use_rslora": True, "lora_dropout": 0.1}),
    "oft": ("OFT", {"oft_block_size": 4}),
    "ia3": ("IA3", {"feedforward_modules": ".*fc2"}),
    "vera": ("VERA", {"r": 4}),
    "loha": ("LOHA", {"r": 2}),
    "lokr": ("LOKR", {"r": 2}),
    "hra": ("HRA", {"r": 2}),
    "vblora": ("VBLORA", {"vector_length": 4, "num_vectors": 16, "topk": 2}),
}
"""VeRA's projections and VB-LoRA's vectors are shared between the layers."""
EXACT = set(KINDS) - {"vblora", "hra", "dora"}
"""The start is the frozen model bit for bit; HRA and DoRA round, VB-LoRA is only near it."""


def attach(model, kind, name="default", **more):
    peft_type, options = KINDS[kind]
    config = {"peft_type": peft_type, "options": options, **more}
    return attach_adapter(model, "peft", name, seed=0, **config)


def steps(model, x, count=2):
    named = trainable_parameters(model)
    optimizer = torch.optim.SGD(named.values(), lr=0.1)
    train_mode(model)
    for _ in range(count):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_life_of_an_adapter_of_peft(tiny, x, kind, helpers, tmp_path):
    """Start, training, disabling, storage, copies, removal, and merging."""
    expected, before = tiny(x), fingerprint(tiny)
    own = [p.requires_grad for p in tiny.parameters()]
    attach(tiny, kind, modules_to_save=("norm",))
    start = tiny(x)
    assert torch.equal(start, expected) or kind not in EXACT
    torch.testing.assert_close(start, expected, rtol=0, atol=2e-3 if kind == "vblora" else 1e-5)
    state = {key: value.clone() for key, value in adapter_state_dict(tiny).items()}
    steps(tiny, x)
    assert any(not value.equal(state[key]) for key, value in adapter_state_dict(tiny).items())
    assert all(p.grad is None for p in tiny.parameters() if not p.requires_grad)
    changed = tiny(x)
    assert (changed - start).abs().max() > 1e-5
    with disable_adapters(tiny):
        assert torch.equal(tiny(x), expected) and count_parameters(tiny)[0] == 0
    assert fingerprint(tiny) == before
    folder = save_adapter(tiny, tmp_path / kind)
    other = load_adapter(attach_adapter(helpers.make(), "lora", "first"), folder, "second")
    assert torch.equal(other(x), changed)
    twin = copy.deepcopy(other)
    assert torch.equal(twin(x), changed)
    helpers.move(twin)
    assert torch.equal(other(x), changed) and not torch.equal(twin(x), changed)
    set_adapter(other, "first")
    assert torch.equal(other(x), expected)
    torch.testing.assert_close(merge_and_unload(copy.deepcopy(tiny))(x), changed, rtol=0, atol=1e-4)
    unload(tiny)
    assert torch.equal(tiny(x), expected)
    assert [p.requires_grad for p in tiny.parameters()] == own


@pytest.mark.parametrize("kind", KINDS)
def test_counts_and_shared_tensors_are_pefts(tiny, kind, peft, helpers):
    """As many trainable parameters as in peft's own model; what layers share is stored once."""
    attach(tiny, kind)
    assert active_adapter(tiny) == "default"
    peft_type, options = KINDS[kind]
    config = peft.get_peft_config({
        "peft_type": peft_type, **options, "target_modules": ["qkv", "proj", "fc1", "fc2"]
    })  # fmt: skip
    theirs = peft.get_peft_model(helpers.make(), config)
    assert count_parameters(tiny)[0] == theirs.get_nb_trainable_parameters()[0]
    assert len(trainable_parameters(tiny)) == sum(p.requires_grad for p in theirs.parameters())
    stored = [key for key in adapter_state_dict(tiny) if "vera_A" in key or "vector_bank" in key]
    assert len(stored) == (kind in ("vera", "vblora"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "oft"])
def test_folders_of_peft_both_ways(tiny, x, kind, peft, helpers, tmp_path):
    """peft's own OFT refuses tokens with four axes, so it is left out."""
    x = x.double()
    attach(tiny.double(), kind, modules_to_save=("norm", "conv_last"))
    helpers.move(tiny)
    expected = tiny(x)
    folder = to_peft_folder(tiny, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(helpers.make().double(), str(folder)).eval()
    torch.testing.assert_close(theirs(x), expected, rtol=0, atol=1e-6)
    again = attach_adapter(helpers.make().double(), "lora", "first")
    from_peft_folder(again, folder, "second")
    torch.testing.assert_close(again.eval()(x), expected, rtol=0, atol=1e-6)
    assert count_parameters(again)[0] == count_parameters(tiny)[0]
    set_adapter(again, "first")


def test_our_lora_is_pefts_and_back(tiny, x, peft, helpers, tmp_path):
    attach_adapter(tiny, "lora", r=3, alpha=5, modules_to_save=("norm",))
    helpers.move(tiny)
    expected = tiny(x)
    folder = to_peft_folder(tiny, tmp_path / "ours")
    card = json.loads((folder / "adapter_config.json").read_text())
    assert (card["peft_type"], card["r"], card["lora_alpha"]) == ("LORA", 3, 5)
    theirs = peft.PeftModel.from_pretrained(helpers.make(), str(folder)).eval()
    torch.testing.assert_close(theirs(x), expected, rtol=0, atol=1e-6)
    again = from_peft_folder(helpers.make(), folder)
    assert torch.equal(again(x), expected)
    a, b = adapter_state_dict(tiny), adapter_state_dict(again)
    assert a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a)
    assert again.attached.parts["default"].config.method == "lora"


def test_a_lora_that_peft_has_trained(x, peft, helpers, tmp_path):
    """Suffixes, a convolution, another scaling of single layers: read as peft reads them."""
    for name, options, method in (
        ("plain", {"r": 4, "lora_alpha": 2, "modules_to_save": ["conv_first"]}, "lora"),
        ("pattern", {"r": 4, "alpha_pattern": {"fc1": 3}, "rank_pattern": {"fc1": 2}}, "peft"),
    ):
        config = peft.LoraConfig(target_modules=["fc1", "proj", "conv_last"], **options)
        theirs = peft.get_peft_model(helpers.make(), config)
        helpers.move(theirs)
        expected = theirs.eval()(x)
        theirs.save_pretrained(str(tmp_path / name), save_embedding_layers=False)
        ours = from_peft_folder(helpers.make(), tmp_path / name)
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-6)
        assert ours.attached.parts["default"].config.method == method
        folder = save_adapter(ours, tmp_path / f"{name}-ours")
        assert torch.equal(load_adapter(helpers.make(), folder)(x), ours(x))


def refused(model, error, match, **more):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=match):
        attach_adapter(model, "peft", **more)
    assert "attached" not in model.__dict__ and all(p.requires_grad for p in model.parameters())
    after = model.state_dict()
    assert before.keys() == after.keys() and all(before[key].equal(after[key]) for key in after)


def test_what_does_not_fit_is_refused_before_anything_changes(tiny):
    for peft_type, options, match in [
        ("LORRA", {}, "has no type 'LORRA'; nearest: .*LORA"),
        ("LORA", {"rank": 3}, "no option 'rank'; nearest: .*; options: .*lora_alpha"),
        ("PREFIX_TUNING", {}, "adapts no layer of images"),
        ("POLY", {}, "adapts no layer of images"),
        ("LORA", {"bias": "all"}, "changes the frozen weights of 'blocks.0.attn.qkv'"),
        ("LORA", {"r": 2, "init_lora_weights": "pissa"}, "changes the frozen weights"),
        ("ADALORA", {"total_step": 9}, "needs steps of its own in the training loop"),
        ("IA3", {}, "peft's IA3 does not fit: .*feedforward_modules"),
        ("LORA", {"modules_to_save": ["norm"]}, "modules_to_save is a field of Hugging"),
    ]:
        refused(tiny, ValueError, match, peft_type=peft_type, options=options)
    refused(tiny, ValueError, "does not fit: .*not supported", target_modules=("norm1",))
    refused(tiny, TypeError, "'blocks.0.site', which has no weights", target_modules=("site",))
    refused(tiny, ValueError, "no name or options no table", options=[])
    with pytest.raises(ValueError, match="has no default sites for 'peft'"):
        attach_adapter(nn.Sequential(nn.Linear(2, 2)), "peft")


def test_folders_that_cannot_be(tiny, helpers, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder of peft"):
        from_peft_folder(tiny, tmp_path)
    attach_adapter(tiny, "adaptir")
    with pytest.raises(TypeError, match="peft has no method 'adaptir'"):
        to_peft_folder(tiny, tmp_path / "a")
    folder = save_adapter(tiny, tmp_path / "b")
    with pytest.raises(ValueError, match="was not written by peft: use load_adapter"):
        from_peft_folder(helpers.make(), folder)
    config = LoRAConfig(target_modules=("qkv",), modules_to_save=("norm",))
    tiny = helpers.make()
    tiny.blocks[0].second_norm = nn.LayerNorm(8)
    attach_adapter(tiny, config, "c")
    with pytest.raises(ValueError, match=r"by the end of their names: .*blocks.0.second_norm"):
        to_peft_folder(tiny, tmp_path / "c", "c")


def test_without_peft_the_extra_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(tiny, ImportError, r"pip install 'ir_peft\[peft\]'")
    assert HuggingFaceConfig(peft_type="OFT").peft_type == "OFT"


@pytest.mark.parametrize(
    ("backbone", "settings", "kind"),
    [
        ("ipt_mini", {"depth": 1, "patch_size": 12}, "oft"),
        ("dat_light", {"depths": (1,)}, "vera"),
        ("edt_b", {"depths": (1,), "dim": 24}, "dora"),
        ("restormer_mini", {"depths": (1, 1, 1, 1), "refinement": 1}, "loha"),
    ],
)
def test_default_sites_are_those_of_lora(backbone, settings, kind):
    torch.manual_seed(0)
    model = create_backbone(backbone, **settings).eval()
    for p in model.parameters():  # New small models pass on little of what their bodies do.
        p.data += 0.02 * torch.randn_like(p)
    image = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        expected = model(image)
        attach_adapter(model, "lora", "lora")
        attach(model, kind)
        torch.testing.assert_close(model(image), expected, rtol=0, atol=1e-5)
    ours, theirs = (adapter_state_dict(model, name) for name in ("lora", "default"))
    assert {key.split(".lora.")[0] for key in ours} == {key.split(".peft.")[0] for key in theirs}
    steps(model, image, count=1)
    with torch.no_grad():
        assert not torch.equal(model(image), expected)
