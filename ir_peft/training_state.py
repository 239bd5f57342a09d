"""What a resumed run must find again: trained tensors, generator states, the run's identity."""

from __future__ import annotations

import os
import pickle
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PROCESS = Path("/proc/self")  # Linux only.


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters with a gradient, buffers of modules in training mode."""
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for prefix, module in model.named_modules():
        if module.training:
            for name, buffer in module._buffers.items():
                if buffer is not None and name not in module._non_persistent_buffers_set:
                    state[f"{prefix}.{name}" if prefix else name] = buffer
    return state


def check_finite(state: dict[str, Tensor], error: type[Exception], when: str) -> None:
    """Raises `error` with the names of tensors that hold NaN or infinity."""
    bad = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise error(f"{when}, weights are not finite: {', '.join(bad[:3])}{more}")


def checksum(model: nn.Module) -> int:
    """CRC-32 of all stored tensors that training leaves alone."""
    trained, checksum = trained_state(model), 0
    for name, tensor in model.state_dict().items():
        if name not in trained:
            checksum = zlib.crc32(
                tensor.detach().cpu().flatten().view(torch.uint8).numpy(), checksum
            )
    return checksum


def read_checkpoint(file: Path, run: dict, state: dict[str, Tensor]) -> dict[str, Any]:
    """The checkpoint, if it is one and of this run; else a ValueError. Changes nothing."""
    hint = "take another folder, or resume=False to start over"
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        theirs, shapes = saved["run"], {name: t.shape for name, t in saved["model"].items()}
        old = theirs["settings"]
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"{file} is no checkpoint of train(); {hint}") from error
    mine = run["settings"]
    differences = [
        f"{key} is {old.get(key)!r} there and {mine.get(key)!r} here"
        for key in mine | old
        if old.get(key) != mine.get(key)
    ]
    wanted = {name: tensor.shape for name, tensor in state.items()}
    names = [name for name in wanted | shapes if wanted.get(name) != shapes.get(name)]
    if names:
        differences.append(f"{len(names)} trained tensors differ, such as {names[0]}")
    elif theirs["frozen"] != run["frozen"]:
        differences.append("the frozen weights differ")
    a, b = theirs["sample"], run["sample"]
    if a.shape != b.shape or (a - b).abs().max() > 0.05:  # Less is another version of a codec.
        differences.append("the data set differs in its first sample")
    if differences:
        raise ValueError(f"{file} belongs to another run: {'; '.join(differences)}; {hint}")
    return saved


def copy(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
    """Writes each source into its target, as far as both go."""
    with torch.no_grad():
        for source, target in zip(sources, targets, strict=False):
            target.copy_(source)


@contextmanager
def swapped(parameters: list[nn.Parameter], averages: list[Tensor]) -> Iterator[None]:
    """Inside, the parameters hold their averages, if there are any."""
    kept = [parameter.detach().clone() for parameter in parameters] if averages else []
    try:
        copy(averages, parameters)
        yield
    finally:
        copy(kept, parameters)


def get_rng(device: torch.device) -> list[Tensor]:
    """States of the global generators that a model on `device` draws from."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda]


def set_rng(states: list[Tensor], device: torch.device) -> None:
    """Puts back what `get_rng` read."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new peak, so that a run does not inherit that of one before it in the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(PROCESS / "clear_refs", os.W_OK):
        (PROCESS / "clear_refs").write_text("5")


def peak_memory(device: torch.device) -> tuple[int, str]:
    """(bytes, what they are the peak of), since the last reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "torch.cuda.max_memory_allocated"
    if os.access(PROCESS / "clear_refs", os.W_OK):
        status = (PROCESS / "status").read_text().splitlines()
        kibibytes = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        return 1024 * kibibytes, "peak resident set size during the run"
    import resource  # Unix only.

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak, "peak resident set size of the process"
