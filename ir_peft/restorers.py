"""Which bundled backbone and adapter restore what: `ir-peft restore IMAGE --task NAME`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .estimator import CLEAN, estimate, load_estimator
from .names import did_you_mean

AUTO = "auto"
"""The task that is estimated from the image, see `likely_tasks`."""


class Restorer(NamedTuple):
    """Tags of a backbone and an adapter that come with the package."""

    backbone: str
    """For `load_backbone`."""
    adapter: str | None
    """For `load_adapter`; None is the backbone alone."""


_BASE = Restorer("restormer_mini", None)
"""Pretrained on noise, blur, rain and enlarged images, of any strength: it restores them alone."""


def _adapted(task: str) -> Restorer:
    return Restorer("restormer_mini", f"adair/multitask/{task}-adair")


RESTORERS: dict[str, Restorer] = {
    "denoise": _BASE,
    "denoise15": _adapted("denoise15"),
    "denoise25": _adapted("denoise25"),
    "denoise50": _BASE,
    "derain": _BASE,
    "derain_light": _adapted("derain_light"),
    "derain_heavy": _adapted("derain_heavy"),
    "deblur": _BASE,
    "gaussian_deblur": _adapted("gaussian_deblur"),
    "motion_deblur": _adapted("motion_deblur"),
    "sharpen": _BASE,
    "sr4_same_size": _adapted("sr4_same_size"),
    "jpeg": _adapted("jpeg"),
    "low_light": _adapted("low_light"),
    "haze": _adapted("haze"),
    "sr4": Restorer("dat_light_x4", None),
    "lr4_noise30": Restorer("dat_light_x4", "adaptir/lr4_noise30-adaptir_tail"),
    "lr4_jpeg30": Restorer("dat_light_x4", "adaptir/lr4_jpeg30-adaptir_tail"),
}
"""By task, and by the short names that people type, which leave the strength open.

A task of AdaIR takes its adapter where that beats the bare base on the test photographs, else the
base (on noise of sigma 50)."""


def likely_tasks(image: Tensor) -> dict[str, float]:
    """Tasks by probability, the likeliest first, as the estimator judges the image.

    Args:
        image: (3, H, W) in [0, 1], the damaged image.

    Raises:
        ValueError: the image is too small to be judged, or looks undamaged.
        FileNotFoundError: there is no estimator.
    """
    shares = estimate(load_estimator(), image)
    order = sorted(shares, key=shares.__getitem__, reverse=True)
    if order[0] == CLEAN:
        raise ValueError(
            f"the image looks undamaged (probability {shares[CLEAN]:.0%}): nothing to restore. "
            f"To restore it nevertheless name the task; there are {', '.join(RESTORERS)}"
        )
    return {task: shares[task] for task in order if task != CLEAN}


def find_restorer(task: str) -> Restorer:
    """What restores a task, a key of `RESTORERS`.

    Raises:
        ValueError: there is no such task.
    """
    if task not in RESTORERS:
        hint = did_you_mean(task, RESTORERS) or "."
        raise ValueError(f"no task {task!r}{hint} There are {AUTO}, {', '.join(RESTORERS)}")
    return RESTORERS[task]
