"""The small siblings begin as nearest-neighbour enlargement, and learn from there."""

import pytest
import torch

from ir_peft.backbones import create_backbone


def nearest(x, scale):
    return x.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_hat_mini(scale):
    model = create_backbone("hat_mini", scale=scale).eval()
    x = torch.rand(2, 3, 11, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(x), nearest(x, scale), atol=1e-5, rtol=0)


@pytest.mark.parametrize("task", ["sr2", "sr3", "sr4", "derain_light", "denoise30", "denoise50"])
def test_ipt_mini(task):
    model = create_backbone("ipt_mini").eval()
    model.set_task(task)
    x = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model(x), nearest(x, model.scale), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["hat_mini", "ipt_mini"])
def test_no_part_is_dead(name):
    """What is silent at the start blocks gradients behind it only until its first step."""
    torch.manual_seed(0)
    model = create_backbone(name)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    x = torch.rand(1, 3, 48, 48)
    target = nearest(x, model.scale).flip(-1)
    for _ in range(4):
        optimizer.zero_grad()
        (model(x) - target).pow(2).mean().backward()
        optimizer.step()
    branch = {"ipt_mini": ("head.2.", "tail.2."), "hat_mini": ()}[name]
    for key, parameter in model.named_parameters():
        other = key.startswith(("head.", "tail.")) and not key.startswith(branch)
        if parameter.requires_grad and not other:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
