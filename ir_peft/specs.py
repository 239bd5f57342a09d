"""What an experiment is: rows of tables (`Spec`), the effort each gets (`Profile`), their files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from . import adapters
from .data import degradations, patches
from .names import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ADAPTIR_Y_TASKS = ("derain_light", "derain_heavy")
"""Tasks without a change of size that the AdaptIR paper scores on Y; the others are on RGB."""
ROUNDING = {"round_to_uint8": True, "window": "gaussian11"}
"""What every score has in common: `evaluate` rounds, SSIM has the field's window."""


@dataclass(frozen=True)
class Spec:
    """One row of one table."""

    paper: str
    """adaptir, adair or asteisr."""
    table: str
    """The table's name inside the paper's experiment file."""
    row: str
    """The row's name, unique in its table."""
    label: str
    """How tables and figures call the row."""
    backbone: str
    """A bundled tag or the path of a checkpoint, for `load_backbone`; see `pretrained`. A file may
    give one for each task. In the profile paper an architecture, whose weights come from a file of
    the user."""
    task: str
    """A key of `degradations.TASKS`."""
    method: str
    """An adapter method, `full` (of the whole model, or of `modules_to_save`), `frozen`, or
    `bicubic` (no network)."""
    adapter: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the method's config that differ from the backbone's defaults."""
    modules_to_save: tuple[str, ...] = ()
    """Whole modules trained and stored beside the adapter."""
    pretrained: bool = True
    """False: seeded random weights for `backbone`, an architecture or that of a bundled tag."""
    train_tasks: tuple[str, ...] = ()
    """Tasks that the row is trained on, each image drawing one; () is `task` alone. Specs that
    differ in `task` only share one training and one adapter, named after the first of these."""
    folder: str | None = None
    """Where the table's adapters are shipped; None is `<paper>/<table>`. Changes no number."""
    patch: int | None = None
    """Side of the degraded training patch in pixels; None is the profile's."""
    crop: int | None = None
    """Side of the crops of the test photographs in pixels; None is the profile's, a larger one is
    that of the profile as well."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    adapter_lr: float | None = None
    """That of the adapters where the backbone trains beside them; None is `lr`."""
    seed: int = 0
    """Seeds initialisation, patches and degradations."""

    @property
    def training(self) -> Spec:
        """The spec as far as training goes: the same for all that share one."""
        return replace(self, task=self.train_tasks[0]) if self.train_tasks else self

    @property
    def tag(self) -> str:
        """Name of the shipped adapter, `<folder>/<task>-<row>`; with the seed unless it is 0."""
        seed = f"-s{self.seed}" if self.seed else ""
        folder = self.folder or f"{self.paper}/{self.table}"
        return f"{folder}/{self.training.task}-{self.row}{seed}"

    def to_dict(self) -> dict[str, Any]:
        """What changes a number, as JSON gives it back: the spec as it stands in a record."""
        later = dict.fromkeys(["patch", "crop", "adapter_lr"])
        later |= {"pretrained": True, "train_tasks": ()}
        # Records older than these fields keep their names.
        unset = {"folder"} | {key for key, value in later.items() if getattr(self, key) == value}
        fields = {key: value for key, value in asdict(self).items() if key not in unset}
        return json.loads(json.dumps(fields))

    @property
    def metric(self) -> dict[str, Any]:
        """Convention of the paper's protocol, as it stands in a record.

        AdaptIR scores SR and rain on Y, SR less a border of the scale; all else is whole RGB, and
        ASteISR's scores are means over both views, its SSIM has a box of 7 x 7.
        """
        scale = patches.integer_scale(degradations.TASKS[self.task])
        border = scale if self.paper == "adaptir" and scale > 1 else 0
        on_y = self.paper == "adaptir" and (border > 0 or self.task in ADAPTIR_Y_TASKS)
        channel = "y" if on_y else "rgb"
        window = {"window": "uniform7"} if self.stereo else {}
        return {"channel": channel, "crop_border": border, **ROUNDING, **window}

    @property
    def stereo(self) -> bool:
        """Whether the row is trained and scored on pairs of views, see `stereo_experiments`."""
        return self.paper == "asteisr"

    @property
    def learns(self) -> bool:
        """Whether the row has anything to train."""
        return self.method not in ("bicubic", "frozen")


@dataclass(frozen=True)
class Profile:
    """How much effort every row of a table gets; equal for all of them."""

    name: str
    """smoke, demo, full or paper."""
    trains: bool
    """Train the row here, or recompute it from the shipped adapter."""
    steps: int
    """Optimiser steps; see `epochs`."""
    batch_size: int
    """Patches per step."""
    lq_size: int
    """Side of the degraded training patch in pixels."""
    test_set: str
    """photos6, photos11, or published: the sets of the task in the paper."""
    crop: int | None
    """Side of the centred crop of each test photograph, in pixels of the clean image; None keeps
    the image whole."""
    images: int | None = None
    """Only the first so many test photographs (plumbing tests)."""
    schedule: str = "multistep"
    """Learning-rate schedule; multistep halves at 50, 80, 90 and 95 % of the steps."""
    precision: str = "no"
    """no (float32) or bf16."""
    validate_every: int = 0
    """Steps between two validations; 0 is never."""
    trusted: bool = False
    """Records of a clean checkout may enter `results/`."""
    epochs: int | None = None
    """Passes over the published training images of a task, which set `steps` once the images are
    counted; None trains on the photographs of the package."""
    any_count: bool = False
    """Accept other numbers of images than the published ones (plumbing tests)."""
    files: dict[str, int] | None = None
    """Images of each published set, as counted before the run."""
    weights: str | None = None
    """sha256 of the authors' checkpoint that the run starts from."""

    def to_dict(self) -> dict[str, Any]:
        """The profile as it stands in a record; names of older records stay as they are."""
        later = {"epochs": None, "any_count": False, "files": None, "weights": None}
        unset = {key for key, value in later.items() if getattr(self, key) == value}
        return {key: value for key, value in asdict(self).items() if key not in unset}


_FULL = Profile(
    name="full",
    trains=True,
    steps=300,
    batch_size=4,
    lq_size=32,
    test_set="photos11",
    crop=288,
    validate_every=100,
    trusted=True,
)
PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        name="smoke",
        trains=True,
        steps=2,
        batch_size=1,
        lq_size=16,
        test_set="photos6",
        crop=48,
        images=1,
    ),
    "demo": replace(_FULL, name="demo", trains=False, trusted=False),
    "full": _FULL,
    # The numbers of AdaptIR's release. Not trusted: a fully fine-tuned IPT of 476 MB must not land
    # in the package.
    "paper": Profile(
        name="paper",
        trains=True,
        steps=0,
        epochs=500,
        batch_size=16,
        lq_size=48,
        test_set="published",
        crop=None,
    ),
}


def load_specs(path: str | Path) -> list[Spec]:
    """Reads an experiment file: `[defaults]`, then one `[rows.NAME]` a row.

    Returns:
        Rows x tasks x seeds, in file order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML, an unknown key or task, or a missing field; names the file, the row
            and the nearest key.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    _known(path, "the file", content, {"defaults", "rows"})
    defaults, rows = content.get("defaults", {}), content.get("rows", {})
    for place, table in (("[defaults]", defaults), ("[rows]", rows)):
        if not isinstance(table, dict):
            raise ValueError(f"{path}: {place} must be a table, not {table!r}")
    if not rows:
        raise ValueError(f"{path} has no rows: write one [rows.NAME] table a row")
    fields = {field.name for field in dataclasses.fields(Spec)} - {"row", "task", "seed"}
    allowed = fields | {"tasks", "seeds"}
    _known(path, "[defaults]", defaults, allowed)
    specs = []
    for name, row in rows.items():
        if not isinstance(row, dict):
            raise ValueError(f"{path}: write [rows.{name}] as a table, not {name} = {row!r}")
        _known(path, f"[rows.{name}]", row, allowed)
        values = {**defaults, **row}
        seeds = values.pop("seeds", [0])
        if not isinstance(seeds, (list, dict)):
            raise ValueError(f"{path}: seeds of [rows.{name}] is a list, or one a task: {seeds!r}")
        for key in ("tasks", "modules_to_save", "train_tasks"):
            if not isinstance(values.get(key, []), list):
                raise ValueError(f"{path}: {key} of [rows.{name}] is a list, not {values[key]!r}")
        tasks = values.pop("tasks", [])
        for key in ("modules_to_save", "train_tasks"):
            values[key] = tuple(values.get(key, ()))
        required = {"paper", "table", "label", "backbone", "method"} - set(values)
        if required or not tasks:
            missing = sorted(required) + ([] if tasks else ["tasks"])
            raise ValueError(f"{path}: [rows.{name}] lacks {', '.join(missing)}")
        if values["method"] != "bicubic":
            try:
                adapters.config_from_dict(values["method"], values.get("adapter", {}))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: [rows.{name}]: {error}") from error
        named = (*tasks, *values["train_tasks"])
        _known(path, f"tasks of [rows.{name}]", named, set(degradations.TASKS))
        if isinstance(seeds, dict):  # { lr4_noise30 = [0, 1, 2] }: other tasks have seed 0.
            _known(path, f"seeds of [rows.{name}]", seeds, set(tasks))
        backbone = values.pop("backbone")
        if not isinstance(backbone, dict):
            backbone = dict.fromkeys(tasks, backbone)
        elif set(backbone) != set(tasks):
            raise ValueError(f"{path}: [rows.{name}] has tasks {tasks}, backbone {backbone}")
        for task in tasks:
            mine = seeds.get(task, [0]) if isinstance(seeds, dict) else seeds
            fixed = {**values, "row": name, "task": task, "backbone": backbone[task]}
            specs += [Spec(seed=seed, **fixed) for seed in mine]
    return specs


def _known(path: Path, place: str, keys: Iterable[str], allowed: set[str]) -> None:
    for key in keys:
        if key not in allowed:
            hint = did_you_mean(key, allowed) or "."
            raise ValueError(
                f"{path}: {place} has the unknown key {key!r}{hint} Known: {sorted(allowed)}"
            )


def run_id(spec: Spec, profile: Profile) -> str:
    """`paper-table-task-row-sSEED-HASH`; the hash covers every field of both."""
    text = json.dumps([spec.to_dict(), profile.to_dict()], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{spec.paper}-{spec.table}-{spec.task}-{spec.row}-s{spec.seed}-{digest}"
