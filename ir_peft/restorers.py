"""Which bundled backbone and adapter restore what: `ir-peft restore IMAGE --task NAME`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .estimator import CLEAN, estimate, load_estimator
from .names import did_you_mean

AUTO = "auto"
"""The task that looks at the image, see `estimator`."""


class Restorer(NamedTuple):
    """Tags of a backbone and an adapter that come with the package."""

    backbone: str
    """For `load_backbone`."""
    adapter: str | None
    """For `load_adapter`; None is the backbone alone."""


def _adair(task: str) -> Restorer:
    return Restorer("restormer_mini", f"adair/multitask/{task}-adair")


RESTORERS: dict[str, Restorer] = {
    "denoise": _adair("denoise25"),
    "denoise15": _adair("denoise15"),
    "denoise25": _adair("denoise25"),
    "denoise50": _adair("denoise50"),
    "derain": _adair("derain_light"),
    "derain_light": _adair("derain_light"),
    "derain_heavy": _adair("derain_heavy"),
    "deblur": _adair("gaussian_deblur"),
    "gaussian_deblur": _adair("gaussian_deblur"),
    "motion_deblur": _adair("motion_deblur"),
    "sharpen": _adair("sr4_same_size"),
    "sr4_same_size": _adair("sr4_same_size"),
    "jpeg": _adair("jpeg"),
    "low_light": _adair("low_light"),
    "haze": _adair("haze"),
    "sr4": Restorer("dat_light_x4", None),
    "lr4_noise30": Restorer("dat_light_x4", "adaptir/lr4_noise30-adaptir_tail"),
    "lr4_jpeg30": Restorer("dat_light_x4", "adaptir/lr4_jpeg30-adaptir_tail"),
}
"""By task, and by the short names that people type."""


def find_restorer(task: str, image: Tensor) -> tuple[str, Restorer]:
    """The name of the task and what restores it; "auto" estimates the task from the image.

    Args:
        task: a key of `RESTORERS` or "auto".
        image: (3, H, W) in [0, 1], the damaged image; only "auto" looks at it.

    Raises:
        ValueError: there is no such task; of "auto": the image is too small to be judged, or looks
            undamaged.
        FileNotFoundError: "auto" without an estimator.
    """
    if task == AUTO:
        shares = estimate(load_estimator(), image)
        task = max(shares, key=shares.__getitem__)
        if task == CLEAN:
            raise ValueError(
                f"the image looks undamaged (probability {shares[CLEAN]:.0%}): nothing to restore. "
                f"To restore it nevertheless name the task; there are {', '.join(RESTORERS)}"
            )
    if task not in RESTORERS:
        hint = did_you_mean(task, RESTORERS) or "."
        raise ValueError(f"no task {task!r}{hint} There are {AUTO}, {', '.join(RESTORERS)}")
    return task, RESTORERS[task]
