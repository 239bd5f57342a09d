"""What backbones share: they run on the meta device, which has shapes but no values."""

import pytest
import torch

from ir_peft import create_backbone
from ir_peft.backbones.layers import full_precision

SMALL = {
    "dat_light": {"depths": (2,)},
    "ipt_mini": {"depth": 1},
    "edt_b": {"dim": 60, "depths": (1,), "heads": 2},
    "hat_mini": {"depths": (2,)},
    "restormer_mini": {"depths": (1, 1, 1, 1)},
}


@pytest.mark.parametrize("name", SMALL)
def test_every_family_runs_on_the_meta_device(name):
    with torch.device("meta"):
        model = create_backbone(name, **SMALL[name]).eval()
        x = torch.rand(1, 3, 48, 48)
    out = model(x)
    assert out.is_meta and out.shape == (1, 3, 48 * model.scale, 48 * model.scale)


def test_full_precision_switches_autocast_off():
    x = torch.rand(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(x.device):
            assert (x @ x).dtype == torch.float32
