"""The training loop: iterations, L1, AdamW, mixed precision, EMA, exact resume."""

from __future__ import annotations

import copy
import csv
import io
import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .adapters.core import adapter_names, train_mode
from .files import atomic_path, write_text

CHECKPOINT = "checkpoint.pt"
_LINUX = Path("/proc/self")


@dataclass
class TrainResult:
    """What a run leaves behind, besides the trained model."""

    curve: list[dict[str, float]]
    """Rows of step, loss (mean since the row before), lr, seconds; validation scores where measured."""
    seconds: float
    """Time in training steps, validation not counted, interruptions neither."""
    steps: int
    """Optimiser steps."""
    peak_memory_bytes: int
    """Peak memory of this process' last part of the run."""
    memory_kind: str
    """What `peak_memory_bytes` is a measure of."""


def train(
    model: nn.Module,
    dataset: Dataset,
    *,
    steps: int,
    batch_size: int,
    lr: float = 1e-4,
    weight_decay: float = 1e-2,
    schedule: str = "multistep",
    milestones: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95),
    gamma: float = 0.5,
    warmup: int = 0,
    precision: str = "no",
    ema: float | None = None,
    clip_norm: float | None = None,
    out: str | Path | None = None,
    checkpoint_every: int = 500,
    log_every: int = 20,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    validate_every: int = 0,
    resume: bool = True,
    seed: int = 0,
    workers: int = 0,
    progress: bool = True,
) -> TrainResult:
    """Trains the parameters that require gradients, in place, with an L1 loss on [0, 1].

    A run with `out` resumes there: interrupted at any moment and started again it ends, on a CPU, with the same
    weights bit for bit as without the interruption. Works under `accelerate launch` on several devices.

    Args:
        model: a model with an adapter, or any model; with adapters only their own layers are in train mode.
        dataset: map-style, item i -> (degraded (3, h, w), clean (3, H, W)), a function of i alone; step s takes the
            items s * B .. s * B + B - 1.
        steps: optimiser steps in all.
        batch_size: B, over all devices.
        lr: peak learning rate of AdamW (betas 0.9 and 0.999).
        weight_decay: of AdamW.
        schedule: "multistep" (times gamma at each milestone), "cosine" (to zero) or "constant".
        milestones: fractions of `steps`.
        gamma: factor at a milestone.
        warmup: steps over which the rate rises linearly from zero.
        precision: "no" (float32), "bf16" or "fp16".
        ema: decay of an exponential moving average of what trains; the model ends with, and is validated on, the average.
        clip_norm: largest gradient norm.
        out: folder for log.csv and the checkpoint.
        checkpoint_every: steps between checkpoints. log_every: steps between rows of the curve.
        validate: model -> scores, called every `validate_every` steps and at the end.
        validate_every: 0 is never.
        resume: go on from the checkpoint in `out`; False starts anew and overwrites it.
        seed: of torch's global generator (dropout); the data bring their own.
        workers: processes that load data.
        progress: show a progress bar.

    Returns:
        The learning curve, the time and the peak memory.

    Raises:
        ValueError: nothing trains, weights that are not finite, an unknown option, a data set that is too short, or a
            checkpoint of another run; before anything is written.
        FloatingPointError: the loss is not finite; the last checkpoint stays.
    """
    from accelerate import Accelerator

    _check(model, dataset, steps, batch_size, schedule, precision)
    torch.manual_seed(seed)
    accelerator = Accelerator(mixed_precision=precision)
    if batch_size % accelerator.num_processes:
        raise ValueError(f"batch_size {batch_size} does not divide by {accelerator.num_processes} processes")
    plain = model.to(accelerator.device)
    trained = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=weight_decay)
    factor = _schedule(schedule, steps, milestones, gamma, warmup)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    average = {name: p.detach().clone() for name, p in trained.items()} if ema else {}
    setting = {
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "schedule": [schedule, list(milestones), gamma, warmup],
        "precision": precision,
        "ema": ema,
        "clip_norm": clip_norm,
        "seed": seed,
        "trained": {name: list(p.shape) for name, p in trained.items()},
    }
    out = Path(out) if out is not None else None
    start, seconds, curve = 0, 0.0, []
    checkpoint = out / CHECKPOINT if out else None
    if checkpoint and resume and checkpoint.exists():
        state = _read(checkpoint, setting)
        _restore(state, trained, _buffers(plain), average)
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])
        start, seconds, curve = state["step"], state["seconds"], state["curve"]
    wrapped, optimizer = accelerator.prepare(plain, optimizer)
    share = batch_size // accelerator.num_processes
    first = [s * batch_size + accelerator.process_index * share for s in range(start, steps)]
    batches = [list(range(i, i + share)) for i in first]
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers)
    bar = _progress_bar(start, steps, disable=not (progress and accelerator.is_main_process))
    _reset_peak_memory()
    total, counted, began = torch.zeros((), device=accelerator.device), 0, time.perf_counter()

    def check(step: int) -> float:
        mean = (accelerator.reduce(total, "mean") / max(counted, 1)).item()  # Waits for the device.
        if not math.isfinite(mean):
            advice = f"lower lr ({lr:g}) or set clip_norm"
            raise FloatingPointError(f"the loss is {mean} at step {step}; {advice}")
        return mean

    def save(step: int) -> None:
        if checkpoint and accelerator.is_main_process:
            state = {
                "setting": setting,
                "step": step,
                "seconds": seconds + time.perf_counter() - began,
                "curve": curve,
                "trained": trained,
                "buffers": _buffers(plain),
                "average": average,
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "rng": torch.get_rng_state(),
            }
            with atomic_path(checkpoint) as temporary:
                torch.save(state, temporary)
            write_text(out / "log.csv", _csv(curve))

    _train_mode(plain)
    for step, (lq, gt) in enumerate(loader, start=start + 1):
        lq, gt = lq.to(accelerator.device), gt.to(accelerator.device)
        with accelerator.autocast():
            output = wrapped(lq)
        loss = F.l1_loss(output.float(), gt)
        accelerator.backward(loss)
        if clip_norm:
            accelerator.clip_grad_norm_(trained.values(), clip_norm)
        optimizer.step()
        rate = scheduler.get_last_lr()[0]
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        for name, mean in average.items():
            mean.lerp_(trained[name].detach(), 1 - ema)
        total += loss.detach()
        counted += 1
        bar.update()
        if step % log_every == 0 or step == steps:
            mean = check(step)
            spent = seconds + time.perf_counter() - began
            curve.append({"step": step, "loss": mean, "lr": rate, "seconds": spent})
            bar.set_postfix_str(f"loss {mean:.4f}")
            total.zero_()
            counted = 0
        if validate and validate_every and (step % validate_every == 0 or step == steps):
            seconds += time.perf_counter() - began
            with _averaged(trained, average):
                scores = validate(plain.eval())
            curve.append({"step": step, **scores})
            _train_mode(plain)
            began = time.perf_counter()
        if step % checkpoint_every == 0 or step == steps:
            check(step)
            save(step)
    bar.close()
    seconds += time.perf_counter() - began if start < steps else 0.0
    with torch.no_grad():
        for name, mean in average.items():
            trained[name].copy_(mean)
    plain.eval()
    peak, kind = _peak_memory()
    return TrainResult(curve, seconds, steps, peak, kind)


def _check(model, dataset, steps: int, batch_size: int, schedule: str, precision: str) -> None:
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("nothing trains: attach an adapter, or set requires_grad, first")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"the model's {name} has values that are not finite")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size are positive, not {steps} and {batch_size}")
    if len(dataset) < steps * batch_size:
        raise ValueError(f"the data set has {len(dataset)} items, {steps} steps of {batch_size} need more")
    if schedule not in ("multistep", "cosine", "constant"):
        raise ValueError(f"schedule is multistep, cosine or constant, not {schedule!r}")
    if precision not in ("no", "bf16", "fp16"):
        raise ValueError(f"precision is no, bf16 or fp16, not {precision!r}")


def _schedule(
    kind: str, steps: int, milestones: tuple[float, ...], gamma: float, warmup: int
) -> Callable[[int], float]:
    """Step (from 0) -> factor of the peak learning rate."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (warmup + 1))
        if kind == "cosine":
            return rise * 0.5 * (1 + math.cos(math.pi * step / steps))
        if kind == "multistep":
            return rise * gamma ** sum(step >= round(part * steps) for part in milestones)
        return rise

    return factor


def _train_mode(model: nn.Module) -> None:
    if adapter_names(model):
        train_mode(model)
    else:
        model.train()


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that training changes: those of modules in train mode, and of adapters that will be."""
    before = {module: module.training for module in model.modules()}
    _train_mode(model)
    found = {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        if module.training
        for key, value in module.named_buffers(recurse=False)
    }
    for module, mode in before.items():
        module.training = mode
    return found


def _read(path: Path, setting: dict[str, Any]) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["setting"]
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint; remove it to start anew") from error
    if found != setting:
        differ = sorted(key for key in setting if found.get(key) != setting[key])
        raise ValueError(
            f"{path} belongs to another run (its {', '.join(differ)} differ); choose another folder, "
            "or resume=False to overwrite it"
        )
    return state


@torch.no_grad()
def _restore(state: dict, trained: dict, buffers: dict, average: dict) -> None:
    for group, target in (("trained", trained), ("buffers", buffers), ("average", average)):
        if state[group].keys() != target.keys():
            raise ValueError(f"the checkpoint's {group} tensors are not the model's")
        for name, value in state[group].items():
            target[name].copy_(value)


def _averaged(trained: dict[str, nn.Parameter], average: dict[str, Tensor]) -> ExitStack:
    """A context in which what trains has its moving average as values."""
    stack = ExitStack()
    kept = {name: copy.deepcopy(trained[name].data) for name in average}
    for name, mean in average.items():
        trained[name].data.copy_(mean)
        stack.callback(trained[name].data.copy_, kept[name])
    return stack


def _csv(curve: list[dict[str, float]]) -> str:
    columns = list(dict.fromkeys(key for row in curve for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(curve)
    return text.getvalue()


def _progress_bar(start: int, steps: int, disable: bool):
    from tqdm.auto import tqdm

    return tqdm(initial=start, total=steps, desc="training", unit="step", disable=disable, leave=False)


def _reset_peak_memory() -> None:
    """Starts the measurement of peak memory anew, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif _LINUX.exists():
        (_LINUX / "clear_refs").write_text("5")


def _peak_memory() -> tuple[int, str]:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), "peak memory allocated on the GPU"
    if _LINUX.exists():
        status = (_LINUX / "status").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM"))
        return int(kilobytes) * 1024, "peak resident set size during training"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), "peak resident set size of the process"
