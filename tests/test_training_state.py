"""A resumed run equals the uninterrupted one, however it ended; a strange checkpoint is refused."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from ir_peft.adapters.core import attach_adapter

from .training_toys import Noise, equal, run, tiny

ROOT = Path(__file__).parents[1]


def without_time(curve):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in curve]


class StopError(Exception):
    """Ends a run at a chosen step."""


def stop_at(model, step):
    """Raises StopError in the forward pass of the given step (from 0)."""
    calls = iter(range(10**6))

    def hook(*_):
        if next(calls) == step:
            raise StopError

    return model.register_forward_pre_hook(hook)


@pytest.mark.parametrize("options", [
    {},
    {"ema": 0.9, "clip_norm": 0.1, "schedule": "cosine", "warmup": 3, "workers": 1},
    {"precision": "bf16"},
    {"validate": lambda model: {"val": float(model(torch.ones(1, 3, 4, 4)).mean())},
     "validate_every": 5},
])  # fmt: skip
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, options):
    whole = tiny()
    result = run(whole, **options)

    broken = tiny()
    hook = stop_at(broken, 13)
    with pytest.raises(StopError):
        run(broken, tmp_path, checkpoint_every=5, **options)
    hook.remove()
    resumed = tiny()
    torch.manual_seed(123)  # The generators outside are of no account.
    again = run(resumed, tmp_path, checkpoint_every=5, **options)

    assert equal(whole, resumed)
    assert without_time(again.curve) == without_time(result.curve)
    assert again.steps == 20 and again.seconds > 0
    # A finished run is read back, not trained again.
    third = tiny()
    assert run(third, tmp_path, checkpoint_every=5, **options).curve == again.curve
    assert equal(whole, third)


def test_adapter_resume_and_frozen_backbone(tmp_path):
    def adapted():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)).eval()
        return attach_adapter(model, "lora", target_modules=("0", "2"), r=2)

    whole, resumed = adapted(), adapted()
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    run(whole)
    hook = stop_at(resumed, 7)
    with pytest.raises(StopError):
        run(resumed, tmp_path, checkpoint_every=3)
    hook.remove()
    resumed = adapted()
    run(resumed, tmp_path, checkpoint_every=3)

    assert equal(whole, resumed)
    changed = {
        name for name, tensor in whole.state_dict().items() if not tensor.equal(before[name])
    }
    assert changed == {name for name, p in whole.named_parameters() if p.requires_grad}
    assert not any(module.training for module in whole[1].modules())
    stored = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert stored.keys() == changed


KILLED = f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch
from training_toys import Noise, run, tiny

class Slow(Noise):
    def __getitem__(self, index):
        time.sleep(0.002)
        return super().__getitem__(index)

torch.set_num_threads(1)
run(tiny(), sys.argv[1], steps=150, checkpoint_every=1, dataset=Slow(), ema=0.9)
"""


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_resume_after_sigkill_at_a_random_moment(tmp_path, one_thread):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    deadline = time.monotonic() + 300
    while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.SystemRandom().uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed_at = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < killed_at < 150

    whole, resumed = tiny(), tiny()
    result = run(whole, steps=150, ema=0.9)
    again = run(resumed, tmp_path, steps=150, ema=0.9)
    assert equal(whole, resumed), f"killed after step {killed_at}"
    assert without_time(again.curve) == without_time(result.curve)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "log.csv"]


@pytest.mark.parametrize("moment", ["write", "replace"])
def test_ctrl_c_in_a_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch, moment):
    model = tiny()
    save, writes = torch.save, iter(range(100))

    def interrupted(content, path):
        if next(writes) < 2:
            return save(content, path)
        if moment == "write":
            Path(path).write_bytes(b"half")
        else:
            save(content, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, checkpoint_every=4)
    monkeypatch.undo()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "log.csv"]
    whole, resumed = tiny(), tiny()
    run(whole)
    run(resumed, tmp_path, checkpoint_every=4)
    assert equal(whole, resumed)


@pytest.mark.parametrize("options, message", [
    ({"steps": 10}, "steps is 20 there and 10 here"),
    ({"lr": 0.5}, "lr is 0.01 there and 0.5 here"),
    ({"ema": 0.9}, "ema is None there and 0.9 here"),
    ({"seed": 7}, "seed is 0 there and 7 here"),
    ({"dataset": Noise(seed=3)}, "data set differs in its first sample"),
])  # fmt: skip
def test_checkpoint_of_another_run(tmp_path, options, message):
    run(tiny(), tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    model = tiny()
    with pytest.raises(ValueError, match=message):
        run(model, tmp_path, **options)
    assert equal(model, tiny())
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    run(model, tmp_path, resume=False, **options)  # The way out that the message names.


def test_checkpoint_of_another_model(tmp_path):
    run(tiny(), tmp_path)
    wider = nn.Sequential(nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.Conv2d(9, 3, 1))
    with pytest.raises(ValueError, match=r"trained tensors differ, such as 0\.weight"):
        run(wider, tmp_path)
    frozen = tiny()
    frozen[3].requires_grad_(False)
    run(frozen, tmp_path / "frozen")
    other = tiny()
    other[3].requires_grad_(False).bias.data += 1
    with pytest.raises(ValueError, match="the frozen weights differ"):
        run(other, tmp_path / "frozen")


class Evil:
    """A pickle that would run code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


@pytest.mark.parametrize("content", ["pickle", "truncated", "text", "other"])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    file = tmp_path / "checkpoint.pt"
    run(tiny(), tmp_path)
    if content == "pickle":
        torch.save({"run": Evil()}, file)
    elif content == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif content == "text":
        file.write_text("hello")
    else:
        torch.save([torch.ones(2)], file)
    model = tiny()
    with pytest.raises(ValueError, match=r"checkpoint\.pt is no checkpoint of train\(\)"):
        run(model, tmp_path)
    assert equal(model, tiny())
