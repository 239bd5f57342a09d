"""Training by iterations: one function, and a resumed run equals the uninterrupted one."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .adapters.core import active_adapter, adapter_names, adapter_parts, train_mode
from .data.images import write_image
from .files import atomic_path, write_text
from .inference import eval_mode
from .training_state import (
    check_finite,
    checksum,
    copy,
    get_rng,
    peak_memory,
    read_checkpoint,
    reset_peak_memory,
    set_rng,
    swapped,
    trained_state,
)

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCHEDULES = ("multistep", "cosine", "constant")


@dataclass(frozen=True)
class TrainResult:
    """What a training run measured."""

    curve: list[dict[str, float]]
    """Rows of log.csv: step, loss (mean since the last row), lr, seconds, what `validate` gave."""
    seconds: float
    """Time spent in steps, over all resumed parts, without validation and checkpoints."""
    peak_memory_bytes: int
    """Peak memory of the run."""
    memory_kind: str
    """What `peak_memory_bytes` is the peak of."""
    steps: int
    """Optimiser steps."""


def train(
    model: nn.Module,
    dataset: Dataset,
    *,
    steps: int,
    batch_size: int,
    lr: float = 1e-4,
    adapter_lr: float | None = None,
    weight_decay: float = 1e-2,
    schedule: str = "multistep",
    milestones: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    gamma: float = 0.5,
    warmup: int = 0,
    precision: str = "no",
    ema: float | None = None,
    clip_norm: float | None = None,
    out: str | Path | None = None,
    checkpoint_every: int = 1000,
    log_every: int = 100,
    validate: Callable[[nn.Module], dict[str, float | Tensor]] | None = None,
    validate_every: int = 0,
    before_step: Callable[[int], None] | None = None,
    resume: bool = True,
    seed: int = 0,
    workers: int = 0,
    progress: bool = True,
) -> TrainResult:
    """Trains the parameters that require a gradient with AdamW on the L1 loss, in fp32 at the loss.

    Step s takes samples s*B ... (s+1)*B - 1, so a data set that is a function of the index gives a
    resumed run the samples of the uninterrupted one; on a CPU the two are equal bit for bit. The
    same call runs under `accelerate launch` on several devices, which share each batch.

    Args:
        model: (B, 3, h, w) -> (B, 3, s*h, s*w), moved to the device of training. With adapters,
            only the active one is in training mode, else all; afterwards modes are as before.
        dataset: map style, at least `steps * batch_size` items (lq (3, h, w), gt (3, s*h, s*w)).
        steps: optimiser steps.
        batch_size: samples a step, over all devices.
        lr: peak learning rate.
        adapter_lr: that of the active adapter, where the backbone trains beside it; None is `lr`.
        weight_decay: of AdamW.
        schedule: "multistep", "cosine" (to 0) or "constant"; see `lr_factor`.
        milestones: of multistep, fractions of `steps` where the rate is multiplied by `gamma`.
        gamma: of multistep.
        warmup: steps of linear warm-up.
        precision: "no" (float32), or autocast to "bf16" or "fp16" (with loss scaling).
        ema: decay of a moving average of the trained parameters that starts at their initial
            values; validation and the final weights use it. None is off.
        clip_norm: largest norm of the gradient; None is off.
        out: folder of `log.csv`, `checkpoint.pt` and `validation/*.png`; None writes nothing.
        checkpoint_every: steps between checkpoints; 0 writes one only after the last step.
        log_every: steps between rows of the curve; 0 writes one only after the last step.
        validate: called with the model in eval mode, without gradients, after every
            `validate_every` steps and the last. Numbers it returns go into the curve, tensors
            (3, H, W) become images in `out`.
        validate_every: steps between validations; 0 validates only after the last step.
        before_step: called with the step's number, from 0, before its forward pass: what makes a
            model with several heads take the task of the step.
        resume: continue from the checkpoint in `out`, if there is one; False starts over.
        seed: of dropout and the like; the global generators are left as they were.
        workers: processes that load data.
        progress: show a progress bar.

    Returns:
        The curve, the time and the memory. The model holds the final weights.

    Raises:
        ValueError: an argument is out of range, nothing is trainable, weights are not finite before
            the start, or the checkpoint belongs to another run or is no checkpoint.
        FloatingPointError: a loss or a trained weight is not finite; the last checkpoint stays.
    """
    from accelerate import Accelerator
    from accelerate.utils import gather_object

    settings = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "adapter_lr": adapter_lr,
        "weight_decay": weight_decay,
        "schedule": schedule, "milestones": list(milestones), "gamma": gamma, "warmup": warmup,
        "precision": precision, "ema": ema, "clip_norm": clip_norm, "seed": seed,
    }  # fmt: skip
    if active_adapter(model) is not None:
        config = adapter_parts(model, active_adapter(model)).config
        settings["adapter"] = f"{config.method} {config.to_dict()}"
    _check(settings, checkpoint_every, log_every, validate_every, len(dataset))
    check_finite(dict(model.named_parameters()), ValueError, "before training")
    # Autocast is ours: it leaves the model as it is.
    accelerator = Accelerator(mixed_precision="no")
    device, processes = accelerator.device, accelerator.num_processes
    if batch_size % processes:
        raise ValueError(f"batch_size={batch_size} cannot be shared by {processes} processes")
    generators = [device] if device.type == "cuda" else []
    folder = None if out is None else Path(out)
    file = folder and folder / "checkpoint.pt"

    with eval_mode(model), torch.random.fork_rng(generators):
        torch.manual_seed(seed + accelerator.process_index)
        if adapter_names(model):
            train_mode(model)
        else:
            model.train()
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("no parameter requires a gradient: attach an adapter first")
        run = saved = None
        if file:
            sample = torch.cat([part.flatten() for part in dataset[0]])
            run = {"settings": settings, "frozen": checksum(model), "sample": sample}
            if resume and file.exists():
                saved = read_checkpoint(file, run, trained_state(model))

        # From here on things change.
        network = accelerator.prepare_model(model)
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups = _groups(model, parameters, lr, adapter_lr)
        optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay)
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        step, curve, recent, seconds, peak = 0, [], [], 0.0, 0
        if saved:
            state = trained_state(model)
            copy((saved["model"][name] for name in state), state.values())
            optimizer.load_state_dict(saved["optimizer"])
            scaler.load_state_dict(saved["scaler"])
            step, curve, recent = saved["step"], saved["curve"], saved["recent"]
            seconds, peak = saved["seconds"], saved["peak"]
        averages = [p.detach().clone() for p in parameters] if ema is not None else []
        if saved:
            copy(saved["ema"], averages)
        loader = DataLoader(
            dataset,
            batch_sampler=_Batches(step, steps, batch_size, accelerator.process_index, processes),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # Else the loader would draw from the global one.
        )
        if saved:
            set_rng(saved["rng"][accelerator.process_index], device)
        reset_peak_memory(device)
        if folder and accelerator.is_main_process:
            # An unwritable folder shows here, not hours later.
            _write_log(folder / "log.csv", curve)
            for name in (".checkpoint.pt.*", ".log.csv.*"):  # Half-written when a run was killed.
                for left in folder.glob(name):
                    left.unlink()

        losses = []  # Since the last look, on the device: reading one would wait for it.
        hidden = not (progress and accelerator.is_main_process)
        bar = tqdm(total=steps, initial=step, desc="train", disable=hidden)
        tick = time.perf_counter()
        for lq, gt in loader:
            factor = lr_factor(step, steps, schedule, milestones, gamma, warmup)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            lq, gt = lq.to(device, non_blocking=True), gt.to(device, non_blocking=True)
            if before_step is not None:
                before_step(step)
            optimizer.zero_grad()  # Before the forward pass, which would keep old gradients alive.
            with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "no"):
                sr = network(lq)  # (B, 3, s*h, s*w)
            if sr.shape != gt.shape:
                raise ValueError(
                    f"the model gives {tuple(sr.shape)}, the target is {tuple(gt.shape)}"
                )
            loss = F.l1_loss(sr.float(), gt.float())
            scaler.scale(loss).backward()
            if clip_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(parameters, clip_norm)
            scaler.step(optimizer)
            scaler.update()
            for average, parameter in zip(averages, parameters, strict=False):  # None without EMA.
                average.lerp_(parameter.detach(), 1 - ema)
            losses.append(loss.detach())
            step += 1
            bar.update()

            last = step == steps
            validates = validate is not None and (last or _due(step, validate_every))
            logs = last or validates or _due(step, log_every)
            saves = last or _due(step, checkpoint_every)
            if not (logs or saves):
                continue
            values = accelerator.reduce(torch.stack(losses), "mean").tolist()
            losses = []
            for offset, value in enumerate(values, start=step - len(values) + 1):
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"the loss of step {offset} is {value}; nothing was written since. "
                        "Lower lr, set clip_norm, or use another precision"
                    )
            recent += values
            now = time.perf_counter()
            seconds += now - tick
            if logs:
                row = {
                    "step": step,
                    "loss": sum(recent) / len(recent),
                    "lr": lr * factor,
                    "seconds": seconds,
                }
                recent = []
                bar.set_postfix(loss=f"{row['loss']:.4f}")
                if validates:
                    unseen = torch.random.fork_rng(generators)  # Validating changes no later step.
                    with eval_mode(model), swapped(parameters, averages), unseen, torch.no_grad():
                        scores = validate(model)
                    if scores.keys() & row.keys():
                        raise ValueError(
                            f"validate returns {', '.join(row)}: these names are taken"
                        )
                    images = {key: v for key, v in scores.items() if _is_image(v)}
                    row |= {key: float(v) for key, v in scores.items() if key not in images}
                    if folder and accelerator.is_main_process:
                        for key, image in images.items():
                            write_image(folder / "validation" / f"{step:06d}-{key}.png", image)
                curve.append(row)
                if folder and accelerator.is_main_process:
                    _write_log(folder / "log.csv", curve)
            if saves:
                check_finite(trained_state(model), FloatingPointError, f"after step {step}")
                peak = max(peak, peak_memory(device)[0])
                rng = gather_object([get_rng(device)])
                if file and accelerator.is_main_process:
                    content = {
                        "run": run, "model": trained_state(model), "ema": averages, "rng": rng,
                        "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
                        "step": step, "curve": curve, "recent": recent, "seconds": seconds,
                        "peak": peak,
                    }  # fmt: skip
                    with atomic_path(file) as temporary:
                        torch.save(content, temporary)
            tick = time.perf_counter()
        bar.close()
        copy(averages, parameters)
    return TrainResult(curve, seconds, peak, peak_memory(device)[1], steps)


def lr_factor(
    step: int,
    steps: int,
    schedule: str = "multistep",
    milestones: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    gamma: float = 0.5,
    warmup: int = 0,
) -> float:
    """Learning rate of step `step` (from 0) as a fraction of the peak.

    Warm-up: (step + 1) / warmup. Then multistep: gamma ** (number of milestones m with
    m * steps <= step); cosine: (1 + cos(pi t)) / 2 with t from 0 after the warm-up to 1 at `steps`.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "multistep":
        passed = (step >= m * steps - 1e-6 for m in milestones)  # 0.55 * 100 > 55
        return gamma ** sum(passed)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
    return 1.0


class _Batches:
    """Indices of each step's samples for one of several processes, from step `start` on."""

    def __init__(self, start: int, steps: int, batch_size: int, process: int, processes: int):
        self.steps, self.batch_size = range(start, steps), batch_size
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            first = step * self.batch_size
            yield list(range(first + self.process, first + self.batch_size, self.processes))

    def __len__(self) -> int:
        return len(self.steps)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _groups(
    model: nn.Module, parameters: list[nn.Parameter], lr: float, adapter_lr: float | None
) -> list[dict]:
    """The optimiser's groups, each with its peak rate."""
    if adapter_lr is None:
        return [{"params": parameters, "peak": lr}]
    layers = adapter_parts(model, active_adapter(model)).adapters.values()
    own = {id(p) for layer in layers for p in layer.parameters()}
    return [
        {"params": [p for p in parameters if (id(p) in own) == adapts], "peak": peak}
        for adapts, peak in ((False, lr), (True, adapter_lr))
    ]


def _check(
    settings: dict, checkpoint_every: int, log_every: int, validate_every: int, length: int
) -> None:
    every = {
        "checkpoint_every": checkpoint_every,
        "log_every": log_every,
        "validate_every": validate_every,
    }
    values = settings | every
    ranges = {
        "a whole number of at least 1": (
            ("steps", "batch_size"),
            lambda v: type(v) is int and v > 0,
        ),
        "a whole number of at least 0": (("warmup", *every), lambda v: type(v) is int and v >= 0),
        "a positive number": (("lr", "gamma"), lambda v: math.isfinite(v) and v > 0),
        "at least 0": (("weight_decay",), lambda v: math.isfinite(v) and v >= 0),
        "None or between 0 and 1": (("ema",), lambda v: v is None or 0 <= v < 1),
        "None or positive": (("clip_norm", "adapter_lr"), lambda v: v is None or v > 0),
        f"one of {', '.join(SCHEDULES)}": (("schedule",), lambda v: v in SCHEDULES),
        f"one of {', '.join(PRECISIONS)}": (("precision",), lambda v: v in PRECISIONS),
        "fractions between 0 and 1": (("milestones",), lambda v: all(0 <= m <= 1 for m in v)),
    }
    for wanted, (names, good) in ranges.items():
        for name in names:
            if not good(values[name]):
                raise ValueError(f"{name}={values[name]!r} must be {wanted}")
    if settings["adapter_lr"] is not None and "adapter" not in settings:
        raise ValueError("adapter_lr is for an active adapter: attach one, or leave it out")
    if settings["warmup"] >= settings["steps"]:
        raise ValueError(f"warmup={settings['warmup']} must be less than steps={settings['steps']}")
    needed = settings["steps"] * settings["batch_size"]
    if length < needed:
        raise ValueError(
            f"the data set has {length} samples; {settings['steps']} steps of "
            f"{settings['batch_size']} need {needed}"
        )


def _write_log(path: Path, curve: list[dict[str, float]]) -> None:
    columns = list(
        dict.fromkeys(["step", "loss", "lr", "seconds", *(k for row in curve for k in row)])
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(curve)
    write_text(path, text.getvalue())


def _is_image(value: float | Tensor) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3
