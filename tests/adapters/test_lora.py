import warnings

import pytest
import torch
from torch import nn

from ir_peft.adapters import LoRA, LoRAConfig, attach_adapter, count_parameters


@pytest.fixture(scope="module")
def peft():
    with warnings.catch_warnings():  # What its own imports print is not ours to mend.
        warnings.simplefilter("ignore")
        import peft
    return peft


LAYERS = {
    "linear": (lambda: nn.Linear(6, 10), (2, 3, 6)),
    "linear_without_bias": (lambda: nn.Linear(6, 10, bias=False), (2, 3, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 5)),
    "conv_strided": (lambda: nn.Conv2d(4, 6, (3, 1), stride=2, padding=(0, 2)), (2, 4, 9, 6)),
    "conv_1x1": (lambda: nn.Conv2d(4, 6, 1), (2, 4, 7, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_parity_with_hugging_face(peft, kind):
    """Same weights, same output, same merged weight."""
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = make()
    theirs = nn.Sequential(make())
    theirs[0].load_state_dict(layer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0"])
        theirs = peft.get_peft_model(theirs, config).eval()
    reference = theirs.base_model.model[0]
    ours = LoRA.for_layer(layer, LoRAConfig(r=3, alpha=5))
    assert sum(p.numel() for p in ours.parameters()) == theirs.get_nb_trainable_parameters()[0]
    with torch.no_grad():
        for own, other in (
            (ours.lora_A, reference.lora_A["default"]), (ours.lora_B, reference.lora_B["default"])
        ):  # fmt: skip
            own.weight.normal_()
            other.weight.copy_(own.weight)
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x, layer(x)), theirs(x), rtol=1e-6, atol=1e-6)
    merged = ours.merge(layer)["weight"]
    reference.merge()
    torch.testing.assert_close(merged, reference.base_layer.weight, rtol=1e-6, atol=1e-6)


def test_count_on_ipt():
    """r = 12 on 72 matrices of 576 x 576: 995,328 (the paper's 995K)."""
    net = nn.ModuleList(nn.Linear(576, 576, bias=False) for _ in range(72))
    attach_adapter(net, LoRAConfig(r=12, target_modules=r"\d+"))
    assert count_parameters(net)[0] == 72 * 13_824 == 995_328


def test_padding_modes_and_dilation():
    """The reference ignores both."""
    for mode in ("zeros", "reflect", "circular", "replicate"):
        conv = nn.Conv2d(3, 4, 3, padding=2, dilation=2, padding_mode=mode)
        adapter = LoRA.for_layer(conv, LoRAConfig(r=2))
        nn.init.normal_(adapter.lora_B.weight)
        x = torch.rand(1, 3, 6, 6)
        expected = adapter(x, conv(x))
        conv.weight.data = adapter.merge(conv)["weight"].detach()
        torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer, shape",
    [(nn.Linear(6, 9), (2, 5, 5, 6)), (nn.Conv2d(6, 9, 3, padding=1), (2, 6, 5, 5))],
    ids=["linear", "conv"],
)
def test_merged_and_added_updates_agree(layer, shape):
    """Many tokens take the merged weights, few the sum of outputs: the same values, gradients."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(layer).double()
    attach_adapter(model, LoRAConfig(r=2, alpha=3, target_modules=("0",)), seed=0)
    adapter = model[0].adapters["default"]
    with torch.no_grad():
        adapter.lora_B.weight.normal_(generator=generator)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    leaves = [x, adapter.lora_A.weight, adapter.lora_B.weight]
    merged, added = adapter.run(layer, x), adapter(x, layer(x))
    assert merged.grad_fn.name() != added.grad_fn.name()  # Not one path twice.
    torch.testing.assert_close(merged, added, rtol=0, atol=1e-12)
    grads = (torch.autograd.grad(out.square().sum(), leaves) for out in (merged, added))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    few = x[:1, :1] if isinstance(layer, nn.Linear) else x[:1, :, :2, :2]
    assert adapter.run(layer, few).grad_fn.name() == "AddBackward0"
