"""Adapters that share tensors, draw dropout, or come from peft, in the training loop and a row."""

import warnings

import pytest
import torch

from ir_peft.adapters import adapter_state_dict, attach_adapter, fingerprint
from ir_peft.backbones import create_backbone
from ir_peft.experiments import load_specs

from ..training_toys import Noise, run


@pytest.fixture(scope="module", autouse=True)
def peft():
    with warnings.catch_warnings():  # What its own imports print is not ours to mend.
        warnings.simplefilter("ignore")
        import peft
    return peft


def ipt():
    torch.manual_seed(0)
    small = {"channels": 4, "heads": 3, "depth": 1, "expansion": 2, "patch_size": 12}
    return create_backbone("ipt", task="denoise_30", **small).eval()


ROWS = {
    "ssf": ("ssf", {}),
    "fact": ("fact", {"dropout": 0.3}),
    "vpt": ("vpt", {"prompts": 4}),
    "vblora": (
        "peft",
        {
            "peft_type": "VBLORA",
            "options": {"vector_length": 4, "num_vectors": 16, "topk": 2, "vblora_dropout": 0.3},
        },
    ),
    "vera": ("peft", {"peft_type": "VERA", "options": {"r": 4}}),
    "oft": ("peft", {"peft_type": "OFT", "options": {"oft_block_size": 4}}),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_resumed_run_equals_the_uninterrupted_one(row, helpers, tmp_path):
    method, fields = ROWS[row]

    def adapted():
        model = ipt() if method == "vpt" else helpers.make()
        return attach_adapter(model, method, seed=0, **fields)

    def interrupted(module, inputs):
        calls.append(module)
        if len(calls) > 5:
            raise KeyboardInterrupt

    calls: list = []
    options = {"steps": 8, "checkpoint_every": 2, "lr": 1e-2, "dataset": Noise(), "ema": 0.9}
    whole, broken, resumed = adapted(), adapted(), adapted()
    before, start = fingerprint(whole), adapter_state_dict(adapted())
    run(whole, **options)
    broken.register_forward_pre_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path, **options)
    run(resumed, tmp_path, **options)
    a, b = adapter_state_dict(whole), adapter_state_dict(resumed)
    assert all(a[key].equal(b[key]) for key in a)
    assert any(not a[key].equal(start[key]) for key in a)
    assert fingerprint(whole) == fingerprint(resumed) == before


def test_a_method_of_peft_is_a_row_of_an_experiment_file(tmp_path):
    file = tmp_path / "rows.toml"
    file.write_text(
        """
        [defaults]
        paper = "adaptir"
        table = "peft"
        backbone = "dat_light_x4"
        tasks = ["lr4_noise30"]
        [rows.dora]
        label = "DoRA"
        method = "peft"
        adapter = {peft_type = "LORA", options = {r = 3, use_dora = true}}
        """
    )
    (spec,) = load_specs(file)
    model = create_backbone("dat_light", depths=(1,))
    attach_adapter(model, spec.method, **spec.adapter)
    state = adapter_state_dict(model)
    assert sum("lora_magnitude_vector" in key for key in state) == 4
