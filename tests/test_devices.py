"""The default device, and devices that are not there."""

import pytest
import torch

from ir_peft import devices
from ir_peft.provenance import device_name


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.pick() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.pick() == torch.device("cpu")
    assert device_name().endswith(f"{torch.get_num_threads()} threads")


def test_a_device_that_is_not_there_is_refused():
    assert devices.pick("cpu") == torch.device("cpu")
    for name in ("cuda:99", "gpu"):
        with pytest.raises(ValueError, match=f"no device '{name}' here; there are cpu"):
            devices.pick(name)


def test_bf16_is_refused_where_it_would_be_emulated(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(ValueError, match="an old GPU has no bf16: use precision no"):
        devices.check_precision("bf16", cuda)
    devices.check_precision("no", cuda)
    devices.check_precision("bf16", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    devices.check_precision("bf16", cuda)


@pytest.mark.gpu
def test_the_name_is_that_of_the_device_in_use():
    assert device_name() == torch.cuda.get_device_name(devices.pick())
    assert device_name(torch.device("cpu")).endswith("threads")
