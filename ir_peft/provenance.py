"""Where a number comes from: commit, versions, device."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from . import devices
from .version import __version__


def git_state(root: Path) -> dict[str, Any]:
    """The commit, and whether files differ from it; what runs write themselves does not count."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    outputs = (
        ":!results",
        ":!ir_peft/weights/adapters",
        ":!ir_peft/weights/backbones/*.md",
        ":!notebooks/*.ipynb",
    )
    changes = git("status", "--porcelain", "--", ".", *outputs)
    return {"commit": git("rev-parse", "HEAD"), "dirty": changes is None or changes != ""}


def versions() -> dict[str, str]:
    """Versions of what a number depends on."""
    import numpy
    import PIL

    return {
        "ir_peft": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
    }


def device_name(device: torch.device | None = None) -> str:
    """The GPU's name, or the processor's with the number of threads in use.

    Args:
        device: None is the default one, see `devices.pick`.
    """
    device = devices.pick() if device is None else device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"{name}, {torch.get_num_threads()} threads"
