"""The training loop: losses, schedules, EMA, precision, logs, and what it refuses."""

import csv
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from ir_peft import attach_adapter, training_state
from ir_peft.adapters import trainable_parameters
from ir_peft.train import lr_factor

from .training_toys import Noise, equal, linear, run, tiny

ROOT = Path(__file__).parents[1]


def test_loss_falls_and_the_log_says_so(tmp_path):
    result = run(tiny(dropout=0.0), tmp_path, steps=100, log_every=30, schedule="constant")
    assert [row["step"] for row in result.curve] == [30, 60, 90, 100]
    assert result.curve[-1]["loss"] < 0.3 * result.curve[0]["loss"]
    with (tmp_path / "log.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == result.curve
    assert result.seconds == rows[-1]["seconds"] > rows[0]["seconds"] > 0


def test_logged_loss_is_the_mean_l1_since_the_last_row():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(0.25))

        def forward(self, x):
            return self.value + 0 * x

    class Steps(Noise):
        def __getitem__(self, index):
            return torch.zeros(3, 4, 4), torch.full((3, 4, 4), index // 2 / 8)

    result = run(Constant(), dataset=Steps(), steps=4, lr=1e-12, log_every=3)
    # |1/4 - k/8| for k = 0, 1, 2, 3.
    assert [row["loss"] for row in result.curve] == pytest.approx([(2 + 1 + 0) / 24, 1 / 8])


def test_adapters_have_a_rate_of_their_own_beside_what_trains_with_them():
    model = attach_adapter(linear(), "lora", target_modules="0", r=2, modules_to_save=("1",))
    before = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}
    run(model, steps=1, lr=1e-3, adapter_lr=2e-2, weight_decay=0, schedule="constant")
    moved = {
        name: (p - before[name]).abs().max().item()
        for name, p in trainable_parameters(model).items()
    }
    # Adam's first step is the rate; LoRA's first factor has no gradient yet.
    wanted = {name: 0 if "lora_A" in name else 2e-2 if "lora_B" in name else 1e-3 for name in moved}
    assert len(moved) == 4 and moved == pytest.approx(wanted, rel=1e-3)
    with pytest.raises(ValueError, match="adapter_lr is for an active adapter"):
        run(linear(), adapter_lr=1e-3)


def test_one_step_is_adamw_on_l1():
    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.gain * x

    model = Gain()
    run(model, steps=1, lr=0.1, weight_decay=0.5)
    # The first step of Adam is lr * sign(gradient), the decay lr * weight_decay * gain.
    assert model.gain.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1, abs=1e-6)


def test_clip_norm_bounds_the_gradient_that_the_optimiser_sees(monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(tiny(), steps=3)
    assert min(norms) > 0.1
    norms.clear()
    run(tiny(), steps=3, clip_norm=0.01)
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_ema_has_the_closed_form(monkeypatch):
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

        def forward(self, x):
            return x + self.value

    def known(self):
        (parameter,) = self.param_groups[0]["params"]
        with torch.no_grad():
            parameter += 1.0  # theta_k = k

    monkeypatch.setattr(torch.optim.AdamW, "step", known)
    seen = []
    model, decay, n = Scalar(), 0.9, 10
    validate = lambda model: seen.append(model.value.item()) or {}  # noqa: E731
    run(model, steps=n, ema=decay, validate=validate, validate_every=5)

    def closed(n):  # (1 - d) * sum_k d^(n - k) k
        return n - decay * (1 - decay**n) / (1 - decay)

    assert model.value.item() == pytest.approx(closed(n), abs=1e-12)
    assert seen == pytest.approx([closed(5), closed(10)], abs=1e-12)


def test_schedules():
    multistep = [lr_factor(s, 100) for s in (0, 49, 50, 79, 80, 90, 95, 99)]
    assert multistep == [1, 1, 0.5, 0.5, 0.25, 0.125, 0.0625, 0.0625]
    # torch's own schedulers, stepped once an iteration, are the reference.
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    for step in range(30):
        assert lr_factor(step, 30, "cosine") == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()
    assert [lr_factor(s, 8, "constant", warmup=4) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert lr_factor(4, 8, "cosine", warmup=4) == 1.0
    assert lr_factor(6, 8, "cosine", warmup=4) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


def test_the_schedule_reaches_the_optimiser():
    result = run(tiny(), steps=8, log_every=1, lr=0.4, warmup=2, milestones=(0.5, 0.75), gamma=0.1)
    rates = [row["lr"] for row in result.curve]
    assert rates == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_near_float32(precision):
    whole, half = tiny(dropout=0.0), tiny(dropout=0.0)
    expected = run(whole, steps=40).curve[-1]["loss"]
    result = run(half, steps=40, precision=precision)
    assert result.curve[-1]["loss"] == pytest.approx(expected, rel=0.2)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in half.parameters())
    assert not equal(whole, half)


def test_validation_writes_images_and_changes_no_step(tmp_path):
    def validate(model):
        assert not model.training
        torch.rand(7)  # Draws from the generator that dropout uses.
        return {"val_psnr": torch.tensor(30.5), "left": torch.full((3, 4, 5), 0.5)}

    plain, validated = tiny(), tiny()
    run(plain)
    result = run(validated, tmp_path, validate=validate, validate_every=8)
    assert equal(plain, validated)
    scores = {row["step"]: row["val_psnr"] for row in result.curve if "val_psnr" in row}
    assert scores == {8: 30.5, 16: 30.5, 20: 30.5}
    files = sorted((tmp_path / "validation").iterdir())
    assert [f.name for f in files] == ["000008-left.png", "000016-left.png", "000020-left.png"]
    image = Image.open(files[0])
    assert image.size == (5, 4) and image.getpixel((0, 0)) == (128, 128, 128)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["val_psnr"] for row in rows] == ["", "30.5", "", "30.5", "30.5"]


def test_modes_and_generators_are_as_before():
    model = tiny().eval()
    model[0].train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(model, steps=2)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model] == [True, False, False, False]


def test_peak_memory_is_that_of_the_run_and_named(monkeypatch):
    torch.zeros(2**26).add_(1)  # 256 MB that a later run does not inherit.
    before, _ = training_state.peak_memory(torch.device("cpu"))
    result = run(tiny(), steps=2)
    assert result.peak_memory_bytes > 10_000
    if torch.cuda.is_available():
        assert result.memory_kind == "torch.cuda.max_memory_allocated"
        return
    monkeypatch.setattr(training_state, "PROCESS", Path("/nowhere"))  # As where it is not Linux.
    whole = run(tiny(), steps=2)
    assert whole.memory_kind == "peak resident set size of the process"
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert result.memory_kind == "peak resident set size during the run"
        assert result.peak_memory_bytes < before - 2**26
    else:
        assert result.memory_kind == whole.memory_kind


def test_non_finite_loss_names_the_step_and_writes_nothing(tmp_path):
    class Bad(Noise):
        def __getitem__(self, index):
            lq, gt = super().__getitem__(index)
            return lq * (math.nan if index == 2 * 10 else 1), gt  # Step 11.

    with pytest.raises(FloatingPointError, match=r"loss of step 11 is nan"):
        run(tiny(), tmp_path, dataset=Bad(), checkpoint_every=8, log_every=8)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 8 and all(t.isfinite().all() for t in saved["model"].values())
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2


def test_weights_that_diverge_in_the_last_step_are_an_error(tmp_path, monkeypatch):
    step = torch.optim.AdamW.step

    def diverge(self, *args, **kwargs):
        step(self, *args, **kwargs)
        self.param_groups[0]["params"][0].data[0] = math.inf

    monkeypatch.setattr(torch.optim.AdamW, "step", diverge)
    with pytest.raises(
        FloatingPointError, match=r"after step 1, weights are not finite: 0\.weight"
    ):
        run(tiny(), tmp_path, steps=1)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_nan_weights_before_the_start(tmp_path):
    model = tiny()
    model[3].weight.data[0] = math.nan
    with pytest.raises(ValueError, match=r"before training, weights are not finite: 3\.weight"):
        run(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options, message", [
    ({"steps": 0}, "steps=0 must be a whole number of at least 1"),
    ({"batch_size": 1.5}, "batch_size=1.5"),
    ({"lr": math.nan}, "lr=nan must be a positive number"),
    ({"schedule": "cosin"}, "schedule='cosin' must be one of multistep, cosine, constant"),
    ({"precision": "fp8"}, "precision='fp8' must be one of no, bf16, fp16"),
    ({"milestones": (100,)}, "milestones=.*fractions"),
    ({"warmup": 20}, "warmup=20 must be less than steps=20"),
    ({"ema": 1.0}, "ema=1.0"),
    ({"clip_norm": 0}, "clip_norm=0"),
    ({"log_every": -1}, "log_every=-1"),
    ({"dataset": Noise(length=39)}, "has 39 samples; 20 steps of 2 need 40"),
    ({"dataset": Noise(scale=2)}, r"gives \(2, 3, 6, 6\), the target is \(2, 3, 12, 12\)"),
    ({"validate": lambda model: {"loss": 1.0}}, "validate returns .* taken"),
])  # fmt: skip
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        run(tiny(), **options)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="attach an adapter first"):
        run(tiny().requires_grad_(False))


def test_unwritable_folder_is_an_error_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("in the way")
    model = tiny()
    with pytest.raises(OSError, match="file"):
        run(model, tmp_path / "file" / "out")
    assert equal(model, tiny())


@pytest.mark.slow
def test_two_processes_share_each_batch(tmp_path):
    script, weights = tmp_path / "script.py", tmp_path / "weights.pt"
    script.write_text(
        textwrap.dedent(f"""
            import sys
            import torch
            sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
            from training_toys import linear, run
            model = linear()
            result = run(model, sys.argv[1], steps=6, checkpoint_every=2)
            torch.save((model.state_dict(), result.curve), sys.argv[2])
        """)
    )
    launch = "-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1"
    launch += " --mixed_precision no --dynamo_backend no"
    command = [sys.executable, *launch.split(), str(script), str(tmp_path / "out"), str(weights)]
    subprocess.run(command, check=True)
    model = linear()
    curve = run(model, steps=6).curve
    state, parallel = torch.load(weights, weights_only=True)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5)
    expected = [row["loss"] for row in curve]
    assert [row["loss"] for row in parallel] == pytest.approx(expected, rel=1e-4)
