"""Where a model runs unless its caller says otherwise, and in which precision it can."""

from __future__ import annotations

import torch


def pick(name: str | None = None) -> torch.device:
    """The device of that name; None is the first CUDA device, or the CPU where there is none.

    Raises:
        ValueError: this machine has no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # The latter: a torch built without CUDA.
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"no device {name!r} here; there are {', '.join(there)}") from error
    return torch.device(name)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuses bf16 on a GPU that would only emulate it.

    Raises:
        ValueError: the device has no arithmetic in bf16.
    """
    cuda = precision == "bf16" and device.type == "cuda"
    if cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no bf16: use precision no")
