"""What the papers claim their adaptation costs, at which size, and over which schedule.

Claims are the papers' (abstracts, and a README where it says so). Of the schedules only AdaptIR's
is published, as a default of its code; the others are proxies and the table says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

PRECISIONS = ("fp32", "bf16")
MODES = ("eager", "compiled")
IMPLEMENTATIONS = ("ours", "reference")


@dataclass(frozen=True)
class Bill:
    """One backbone of one paper."""

    paper: str
    """Its name as printed."""
    backbone: str
    """Name for `create_backbone`."""
    scale: int
    """Of super-resolution; 1 keeps the size."""
    adapter: str
    """The paper's method."""
    patch: tuple[int, int]
    """(h, w) of one low-resolution view."""
    batch: int
    """Samples a step of the schedule, over all devices."""
    iterations: int
    """Steps of the schedule."""
    schedule: str
    """Where batch and iterations come from."""
    published: bool
    """Whether the paper or its code states the schedule."""
    views: int = 1
    """Views of a sample: 2 for stereo pairs."""
    whole: str = "full"
    """What the adapter is compared with: "full", or with the adapter in place "full+METHOD"."""
    claims: tuple[str, ...] = ()
    """The paper's cost claims, as printed in the table."""
    hours: float | None = None
    """Claimed training time of the adapter."""
    time_ratio: float | None = None
    """Claimed time of the adapter over that of full fine-tuning."""
    memory_ratio: float | None = None
    """Claimed memory of the adapter over that of full fine-tuning."""
    scratch: str = ""
    """The published schedule that trains the whole network from scratch, where it is compared."""
    scratch_pixels: int = 0
    """Input pixels of that schedule, all steps and devices together."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the backbone beside the defaults, at both sizes."""
    small: dict[str, Any] = field(default_factory=dict)
    """Arguments that make it tiny, for tests."""
    small_patch: tuple[int, int] = (16, 16)
    """`patch` of the tiny one."""

    @property
    def key(self) -> str:
        """Names the bill in records and on the command line."""
        return f"{self.paper.lower()}/{self.backbone}"

    @property
    def methods(self) -> tuple[str, ...]:
        """All that is measured: the paper's two, then what has a reference to compare with."""
        return tuple(dict.fromkeys((self.whole, self.adapter, "full", "lora")))

    def arguments(self, size: str) -> dict[str, Any]:
        """Arguments for `create_backbone` beside the name and the scale."""
        return self.settings | (self.small if size == "small" else {})

    def shape(self, size: str, batch: int) -> tuple[int, ...]:
        """Shape of a batch of samples: (B, 3, h, w), or (B, 2, 3, h, w) of pairs."""
        patch = self.small_patch if size == "small" else self.patch
        return (batch, 2, 3, *patch) if self.views == 2 else (batch, 3, *patch)


ADAPTIR_CODE = (
    "500 epochs of 215 steps of 16 patches: the released code's on one device; "
    "the paper's own is unknown"
)
RESTORMER_STAGES = (
    (92_000, 64, 128), (64_000, 40, 160), (48_000, 32, 192),
    (36_000, 16, 256), (36_000, 8, 320), (24_000, 8, 384),
)  # fmt: skip
"""(steps, batch over all devices, patch side) of Restormer's progressive training."""
BILLS = {
    bill.key: bill
    for bill in (
        Bill(
            paper="ASteISR",
            backbone="hat_l",
            scale=4,
            adapter="asteisr",
            patch=(32, 80),
            views=2,
            batch=24,
            whole="full+asteisr",
            iterations=400_000,
            schedule="400,000 steps of 24 pairs, that of the same authors' SCGLANet",
            published=False,
            claims=("training time -57 %", "memory -15 %", "trains 4.8 % of the backbone"),
            time_ratio=0.43,
            memory_ratio=0.85,
            settings={"drop_path": 0.0},
            small={
                "dim": 24, "depths": (1, 1), "heads": 2, "window": 8, "compress_ratio": 3,
                "squeeze_factor": 6,
            },
        ),
        Bill(
            paper="AdaptIR",
            backbone="ipt",
            scale=4,
            adapter="adaptir",
            patch=(48, 48),
            batch=16,
            iterations=107_500,
            schedule=ADAPTIR_CODE,
            published=True,
            claims=("trains 0.6 % of the backbone", "about 8 h (README: one RTX 3090)"),
            hours=8.0,
            small={"channels": 16, "patch_size": 12, "heads": 3, "depth": 1},
            small_patch=(12, 12),
        ),
        Bill(
            paper="AdaIR",
            backbone="restormer",
            scale=1,
            adapter="adair",
            patch=(128, 128),
            batch=8,
            iterations=20_000,
            schedule="20,000 steps of 8 patches",
            published=False,
            claims=('trains "1.9 MB", read as 1.9 million parameters', "7 h a task (GPU unknown)"),
            hours=7.0,
            scratch="Restormer's own 300,000 steps with growing patches",
            scratch_pixels=sum(steps * n * side**2 for steps, n, side in RESTORMER_STAGES),
            small={"dim": 12, "depths": (1, 1, 1, 1), "refinement": 1, "heads": (1, 1, 2, 2)},
        ),
        Bill(
            paper="AdaptIR",
            backbone="edt_b",
            scale=4,
            adapter="adaptir",
            patch=(48, 48),
            batch=16,
            iterations=107_500,
            schedule=ADAPTIR_CODE,
            published=True,
            settings={"drop_path": 0.0},
            small={"dim": 20, "depths": (2,), "heads": 2, "window": (2, 4), "features": 4},
            small_patch=(8, 8),
        ),
    )
}  # fmt: skip
"""By key, the bills whose claims are the strongest first. Stochastic depth is off: it changes no
cost, and compiled blocks with one rate each would be compiled one by one."""


@dataclass(frozen=True)
class Job:
    """One record to be: what is trained, how it is computed, by whose code."""

    bill: str
    """A key of `BILLS`."""
    method: str
    """"full", an adapter's method, or "full+METHOD": all of both."""
    precision: str
    """One of `PRECISIONS`: float32 without TF32, or autocast to bfloat16."""
    mode: str
    """One of `MODES`; compiled means each transformer block by itself."""
    implementation: str
    """One of `IMPLEMENTATIONS`."""
    size: str
    """"paper" or "small"."""

    @property
    def key(self) -> str:
        """Names the record."""
        words = self.bill, self.method, self.precision, self.mode, self.implementation
        return "/".join(words)


ORDER = (
    ("ours", "eager", "fp32", "claims"),
    ("ours", "eager", "bf16", "claims"),
    ("ours", "eager", "fp32", "others"),
    ("reference", "eager", "fp32", "others"),
    ("ours", "eager", "bf16", "others"),
    ("reference", "eager", "bf16", "others"),
    ("ours", "compiled", "bf16", "claims"),
    ("ours", "compiled", "fp32", "claims"),
    ("ours", "compiled", "bf16", "others"),
    ("reference", "compiled", "bf16", "others"),
    ("ours", "compiled", "fp32", "others"),
    ("reference", "compiled", "fp32", "others"),
)
"""What settles the claims first: the papers trained in float32, and nobody compiled. "claims" are
the methods of the claims, "others" those that exist elsewhere: full fine-tuning and LoRA."""


def plan(size: str) -> Iterator[Job]:
    """All jobs in the order in which they are run, each once."""
    seen = set()
    for implementation, mode, precision, group in ORDER:
        for bill in BILLS.values():
            for method in (bill.whole, bill.adapter) if group == "claims" else ("full", "lora"):
                job = Job(bill.key, method, precision, mode, implementation, size)
                if job not in seen:
                    seen.add(job)
                    yield job
