"""Every method on DAT-light, with its own defaults."""

import copy
import time

import pytest
import torch

from ir_peft.adapters import (
    active_adapter,
    adapter_state_dict,
    attach_adapter,
    count_parameters,
    disable_adapters,
    fingerprint,
    load_adapter,
    save_adapter,
    set_adapter,
    train_mode,
    trainable_parameters,
    unload,
)
from ir_peft.backbones import create_backbone

TAIL = ("norm", "conv_after_body", "upsample")


@pytest.fixture
def dat():
    torch.manual_seed(0)
    return create_backbone("dat_light", scale=4, depths=(2,)).eval()


@pytest.fixture
def image():
    return torch.rand(1, 3, 9, 12, generator=torch.Generator().manual_seed(7))


def test_law_and_life_of_an_adapter(dat, image, method, helpers, tmp_path):
    """Identity; only the adapter moves; disable; round trip; copy; removal; all bit for bit."""
    with torch.no_grad():
        expected = dat(image)
    before = {key: value.clone() for key, value in dat.state_dict().items()}
    print_ = fingerprint(dat)
    extra = {} if method in ("full", "frozen") else {"modules_to_save": TAIL}
    attach_adapter(dat, method, **extra)
    with torch.no_grad():
        assert torch.equal(dat(image), expected)
    if method != "frozen":
        named = trainable_parameters(dat)
        optimizer = torch.optim.AdamW(named.values(), lr=1e-2)
        train_mode(dat)
        for _ in range(2):
            dat(image).square().mean().backward()
            optimizer.step()
        assert all(p.grad is None or p.grad.isfinite().all() for p in named.values())
        assert sum(bool(p.grad is not None and p.grad.any()) for p in named.values()) > 10
        assert all(p.grad is None for p in dat.parameters() if not p.requires_grad)
    dat.eval()
    with torch.no_grad():
        changed = dat(image)
        assert torch.equal(changed, expected) == (method == "frozen")
        with disable_adapters(dat):
            assert torch.equal(dat(image), expected)
        assert torch.equal(copy.deepcopy(dat)(image), changed)
    assert fingerprint(dat) == print_
    folder = save_adapter(dat, tmp_path / method)
    unload(dat)
    after = dat.state_dict()
    assert list(after) == list(before) and all(after[key].equal(before[key]) for key in after)
    load_adapter(dat, folder)
    with torch.no_grad():
        assert torch.equal(dat(image), changed)
        if method == "full":  # The copies' BatchNorm statistics are those of the backbone.
            state = adapter_state_dict(dat)
            still = [key for key in state if "running" in key or "num_batches" in key]
            assert still and all(state[key].equal(before[key]) for key in still)


def test_hot_swap_is_fast_and_exact(image, helpers):
    dat = create_backbone("dat_light", scale=4).eval()
    with torch.no_grad():
        outputs = {}
        for seed, method in enumerate(("adaptir", "lora", "full")):
            extra = {} if method == "full" else {"modules_to_save": TAIL}
            attach_adapter(dat, method, method, **extra)
            helpers.move(dat, seed)
            outputs[method] = dat(image)
        seconds = []
        for method in ("adaptir", "lora", "full") * 3:
            start = time.process_time()
            set_adapter(dat, method)
            seconds.append(time.process_time() - start)
            assert active_adapter(dat) == method
        for method, output in outputs.items():
            set_adapter(dat, method)
            assert torch.equal(dat(image), output)
    assert min(seconds) < 0.05


def test_counts_on_dat_light():
    """One AdaptIR of h = 12, m = 3 on 60 channels is 1,937 parameters; eighteen make 34,866."""
    dat = create_backbone("dat_light", scale=4)
    total = sum(p.numel() for p in dat.parameters())
    for method, count in [
        ("adaptir", 18 * 1_937),
        ("lora", 18 * 3 * ((60 + 180) + (60 + 60) + (60 + 120) + (60 + 60))),
        ("houlsby", 36 * (2 * 60 * 8 + 8 + 60)),
        ("adair", 36 * 2 * 60 * 8),
        ("adaptformer", 18 * (2 * 60 * 16 + 16 + 60)),
        ("ssf", 2 * 18 * (180 + 60 + 120 + 60 + 60 + 60)),
        ("fact", 2 * 60 * 30 + 30**3 + 18 * (3 + 1 + 2 + 1) * 30),
        ("bitfit", 18 * (180 + 60 + 120 + 60 + 60 + 60)),
    ]:
        attach_adapter(dat, method)
        assert count_parameters(dat) == (count, total + count), method
        unload(dat)
    attach_adapter(dat, "full")
    assert count_parameters(dat) == (total, total)


def test_compile_on_dat(dat, image, helpers):
    attach_adapter(dat, "lora")
    helpers.move(dat)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(dat, backend="eager", fullgraph=True)(image)
        torch.testing.assert_close(compiled, dat(image), rtol=0, atol=1e-4)


def test_wrong_scale(dat, tmp_path):
    folder = save_adapter(attach_adapter(dat, "lora"), tmp_path / "x4")
    with pytest.raises(ValueError, match="is for scale 4, this model has scale 2"):
        load_adapter(create_backbone("dat_light", scale=2, depths=(2,)), folder)
    with pytest.raises(ValueError, match="is for backbone 'dat_light', this model has .*'dat_s'"):
        load_adapter(create_backbone("dat_s", scale=4, depths=(1,)), folder)
