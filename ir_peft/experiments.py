"""One line of an experiment file becomes one result record.

A `Spec` holds everything that changes a number, a `Profile` everything that scales the effort;
`run` turns the two into a record: trained or loaded, evaluated, written once. Records of a clean
checkout in a trusted profile go to `results/records`, all others to `runs/`, so that no number
without its provenance reaches a table.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import adapters, backbones, devices
from .adapters.core import base_parameters
from .data import degradations, patches, photos
from .evaluate import evaluate
from .files import write_text
from .names import did_you_mean
from .provenance import device_name, git_state, versions
from .train import train

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

METRIC = {"channel": "y", "crop_border": 4, "round_to_uint8": True, "window": "gaussian11"}


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
    """A bundled tag or the path of a checkpoint, for `load_backbone`."""
    task: str
    """A key of `degradations.TASKS`."""
    method: str
    """An adapter method, `full` (of the whole model, or of `modules_to_save`), `frozen`, or
    `bicubic` (no network)."""
    adapter: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the method's config that differ from the backbone's defaults."""
    modules_to_save: tuple[str, ...] = ()
    """Whole modules trained and stored beside the adapter."""
    folder: str | None = None
    """Where the table's adapters are shipped; None is `<paper>/<table>`. Changes no number."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    seed: int = 0
    """Seeds initialisation, patches and degradations."""

    @property
    def tag(self) -> str:
        """Name of the shipped adapter, `<folder>/<task>-<row>`; with the seed unless it is 0."""
        seed = f"-s{self.seed}" if self.seed else ""
        return f"{self.folder or f'{self.paper}/{self.table}'}/{self.task}-{self.row}{seed}"

    def to_dict(self) -> dict[str, Any]:
        """What changes a number, as JSON gives it back: the spec as it stands in a record."""
        fields = {key: value for key, value in asdict(self).items() if key != "folder"}
        return json.loads(json.dumps(fields))

    @property
    def learns(self) -> bool:
        """Whether the row has anything to train."""
        return self.method not in ("bicubic", "frozen")


@dataclass(frozen=True)
class Profile:
    """How much effort every row of a table gets; equal for all of them."""

    name: str
    """smoke, demo or full."""
    trains: bool
    """Train the row here, or recompute it from the shipped adapter."""
    steps: int
    """Optimiser steps."""
    batch_size: int
    """Patches per step."""
    lq_size: int
    """Side of the degraded training patch in pixels."""
    test_set: str
    """photos6 or photos11."""
    crop: int
    """Side of the centred crop of each test photograph, in pixels of the clean image."""
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
        for key in ("tasks", "seeds", "modules_to_save"):
            if not isinstance(values.get(key, []), list):
                raise ValueError(f"{path}: {key} of [rows.{name}] is a list, not {values[key]!r}")
        tasks, seeds = values.pop("tasks", []), values.pop("seeds", [0])
        values["modules_to_save"] = tuple(values.get("modules_to_save", ()))
        required = {"paper", "table", "label", "backbone", "method"} - set(values)
        if required or not tasks:
            missing = sorted(required) + ([] if tasks else ["tasks"])
            raise ValueError(f"{path}: [rows.{name}] lacks {', '.join(missing)}")
        if values["method"] != "bicubic":
            try:
                adapters.config_from_dict(values["method"], values.get("adapter", {}))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: [rows.{name}]: {error}") from error
        for task in tasks:
            _known(path, f"tasks of [rows.{name}]", [task], set(degradations.TASKS))
            specs += [Spec(row=name, task=task, seed=seed, **values) for seed in seeds]
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
    text = json.dumps([spec.to_dict(), asdict(profile)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{spec.paper}-{spec.table}-{spec.task}-{spec.row}-s{spec.seed}-{digest}"


def folders(profile: Profile, git: dict[str, Any], root: Path) -> tuple[Path, Path]:
    """Where the records and the adapters of a run belong: trusted places, or `runs/<profile>/`."""
    if profile.trusted and not git["dirty"]:
        return root / "results" / "records", root / "ir_peft" / "weights" / "adapters"
    return root / "runs" / profile.name / "records", root / "runs" / profile.name / "adapters"


def run(
    spec: Spec, profile: Profile, *, root: str | Path = ".", progress: bool = True
) -> dict[str, Any]:
    """Runs one row, or returns its finished record.

    An interrupted run resumes at its last checkpoint. The model runs on the default device, see
    `devices.pick`, or where `accelerate` puts it for training.

    Args:
        spec: what is run.
        profile: how much effort it gets.
        root: the checkout whose `results/` and `runs/` are used.
        progress: show progress bars.

    Returns:
        The record, as written to `<root>/results/records/<id>.json` or `<root>/runs/...`.

    Raises:
        FileNotFoundError: a test photograph, a backbone or (profile without training) the shipped
            adapter is missing.
        ValueError: the shipped adapter was trained with another spec.
        FloatingPointError: the loss or a score is not finite.
    """
    root = Path(root).resolve()
    git = git_state(root)
    name = run_id(spec, profile)
    records, weights = folders(profile, git, root)
    path = records / f"{name}.json"
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        # A recomputed record speaks for the code that made it, and for no other.
        if profile.trains or (record["git"] == git and not git["dirty"]):
            return record
    tests = photos.test_set(profile.test_set)[: profile.images]
    pairs = patches.make_test_pairs(tests, degradations.TEST_TASKS[spec.task], crop=profile.crop)
    # A run resumes only where the code is the same: no checkpoint crosses to another commit.
    state = f"{(git['commit'] or 'nogit')[:8]}{'-dirty' if git['dirty'] else ''}"
    work = root / "runs" / profile.name / f"{name}-{state}"
    record: dict[str, Any] = {
        "id": name,
        "spec": spec.to_dict(),
        "profile": asdict(profile),
        "curve": [],
        "seconds": 0.0,
        "steps_per_second": None,
        "peak_memory": None,
        "parameters": {"trainable": 0, "total": 0, "backbone": None},
        "adapter_bytes": 0,
    }
    if spec.method == "bicubic":
        scale = degradations.TASKS[spec.task].scale
        model: Any = partial(degradations.bicubic_resize, scale=scale)
        device = torch.device("cpu")  # Where the images are.
    else:
        if spec.learns and not profile.trains:
            folder = adapters.find_adapter(spec.tag)
            record |= training_facts(spec, root)
        model = adapted_model(spec, profile).to(devices.pick())
        trainable, total = adapters.count_parameters(model)
        backbone = sum(p.numel() for p in set(base_parameters(model).values()))
        record["parameters"] = {"trainable": trainable, "total": total, "backbone": backbone}
        if spec.learns and profile.trains:
            result = _train(model, spec, profile, work, progress)
            record["curve"] = result.curve
            record["seconds"] = result.seconds
            record["steps_per_second"] = result.steps / result.seconds
            record["peak_memory"] = {"bytes": result.peak_memory_bytes, "what": result.memory_kind}
            folder = weights / spec.tag
            adapters.save_adapter(model, folder)
        if spec.learns:
            record["adapter_bytes"] = (folder / "adapter_model.safetensors").stat().st_size
        device = next(model.parameters()).device
    metric = {"crop_border": METRIC["crop_border"], "channel": METRIC["channel"]}
    record["scores"] = evaluate(model, pairs, **metric, progress=progress)
    record["metric"] = METRIC
    record["git"] = git
    record["versions"] = versions()
    record["device"] = device_name(device)
    record["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    text = json.dumps(record, indent=1) + "\n"
    write_text(path, text)
    return json.loads(text)


def training_facts(spec: Spec, root: Path) -> dict[str, Any]:
    """Curve, time and memory from the committed record of the shipped adapter's training.

    Raises:
        ValueError: no record has this spec, so the adapter that is shipped was trained otherwise.
    """
    for path in sorted(
        (root / "results" / "records").glob(f"{spec.paper}-*-{spec.row}-s{spec.seed}-*.json")
    ):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["spec"] == spec.to_dict() and record["profile"]["trains"]:
            names = ("curve", "seconds", "steps_per_second", "peak_memory")
            return {"trained_in": record["id"], **{name: record[name] for name in names}}
    raise ValueError(
        f"the shipped adapter {spec.tag} has no record of this spec: the row was changed after it "
        f"was trained. Train it again: ir-peft run FILE --profile full --rows {spec.row}"
    )


def adapted_model(spec: Spec, profile: Profile) -> nn.Module:
    """The backbone with its adapter: a fresh one if the profile trains, else the shipped one."""
    model = backbones.load_backbone(spec.backbone)
    if spec.learns and not profile.trains:
        return adapters.load_adapter(model, spec.tag).eval()
    torch.manual_seed(spec.seed)
    options = {**spec.adapter}
    if spec.modules_to_save:
        options["modules_to_save"] = spec.modules_to_save
    return adapters.attach_adapter(model, spec.method, **options).eval()


def training_set(spec: Spec, profile: Profile) -> patches.Patches:
    """Seeded patches of the training photographs, degraded for the spec's task."""
    return patches.Patches(
        photos.train_photos(),
        degradations.TASKS[spec.task],
        lq_size=profile.lq_size,
        seed=spec.seed,
        length=profile.steps * profile.batch_size,
    )


def validation_pairs(spec: Spec, profile: Profile) -> list:
    """Two centred crops of photographs that no test set and no training patch holds."""
    task = degradations.TEST_TASKS[spec.task]
    return patches.make_test_pairs(photos.validation_photos(), task, crop=8 * profile.lq_size)


def _train(model: nn.Module, spec: Spec, profile: Profile, work: Path, progress: bool):
    pairs = validation_pairs(spec, profile) if profile.validate_every else []

    def validate(model: nn.Module) -> dict[str, float]:
        rows = evaluate(model, pairs, crop_border=4, channel="y", progress=False)
        return {"val_psnr": sum(row["psnr"] for row in rows) / len(rows)}

    return train(
        model,
        training_set(spec, profile),
        steps=profile.steps,
        batch_size=profile.batch_size,
        lr=spec.lr,
        schedule=profile.schedule,
        precision=profile.precision,
        seed=spec.seed,
        out=work,
        checkpoint_every=max(1, profile.steps // 8),
        log_every=max(1, profile.steps // 30),
        validate=validate if profile.validate_every else None,
        validate_every=profile.validate_every,
        progress=progress,
    )
