"""One line of an experiment file becomes one result record.

A `Spec` holds everything that changes a number, a `Profile` everything that scales the effort;
`run` turns the two into a record: trained or loaded, evaluated, written once. Records of a clean
checkout in a trusted profile go to `results/records`, all others to `runs/`, so that no number
without its provenance reaches a table.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from . import adapters, adaptir_protocol, backbones, devices, stereo_experiments
from .adapters.core import base_parameters
from .data import degradations, patches, photos
from .evaluate import evaluate
from .files import write_text
from .provenance import device_name, git_state, versions
from .specs import PROFILES, Profile, Spec, load_specs, run_id
from .stereo import Stereo
from .train import train

__all__ = [
    "PROFILES",
    "Profile",
    "Spec",
    "adapted_model",
    "folders",
    "load_specs",
    "run",
    "run_id",
    "score",
    "training_facts",
    "training_set",
    "validation_pairs",
]


def folders(profile: Profile, git: dict[str, Any], root: Path) -> tuple[Path, Path]:
    """Where the records and the adapters of a run belong: trusted places, or `runs/<profile>/`."""
    if profile.trusted and not git["dirty"]:
        return root / "results" / "records", root / "ir_peft" / "weights" / "adapters"
    return root / "runs" / profile.name / "records", root / "runs" / profile.name / "adapters"


def run(
    spec: Spec,
    profile: Profile,
    *,
    root: str | Path = ".",
    sources: adaptir_protocol.Sources | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs one row, or returns its finished record.

    An interrupted run resumes at its last checkpoint. The model runs on the default device, see
    `devices.pick`, or where `accelerate` puts it for training.

    Args:
        spec: what is run.
        profile: how much effort it gets.
        root: the checkout whose `results/` and `runs/` are used.
        sources: where published images and weights are, for a profile with `epochs`.
        progress: show progress bars.

    Returns:
        The record, as written to `<root>/results/records/<id>.json` or `<root>/runs/...`.

    Raises:
        FileNotFoundError: an image, a backbone or (profile without training) the shipped adapter is
            missing.
        ValueError: the shipped adapter was trained with another spec; the profile needs sources;
            the device lacks the precision.
        FloatingPointError: the loss or a score is not finite.
    """
    root = Path(root).resolve()
    git = git_state(root)
    devices.check_precision(profile.precision, devices.pick())
    if profile.epochs is not None:
        profile = adaptir_protocol.fit(profile, spec, sources)
    elif sources:
        raise ValueError(f"profile {profile.name} takes no published images: leave out sources")
    if spec.stereo:
        profile = stereo_experiments.stereo_profile(profile)
    name = run_id(spec, profile)
    records, weights = folders(profile, git, root)
    path = records / f"{name}.json"
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        # A recomputed record speaks for the code that made it, and for no other.
        if profile.trains or (record["git"] == git and not git["dirty"]):
            return record
    pairs = _test_pairs(spec, profile, sources)
    # A run resumes only where the code is the same: no checkpoint crosses to another commit.
    state = f"{(git['commit'] or 'nogit')[:8]}{'-dirty' if git['dirty'] else ''}"
    work = root / "runs" / profile.name / f"{run_id(spec.training, profile)}-{state}"
    record: dict[str, Any] = {
        "id": name,
        "spec": spec.to_dict(),
        "profile": profile.to_dict(),
        "curve": [],
        "seconds": 0.0,
        "steps_per_second": None,
        "peak_memory": None,
        "parameters": {"trainable": 0, "total": 0, "backbone": None},
        "adapter_bytes": 0,
    }
    if sources:
        record["protocol"] = adaptir_protocol.facts(spec.task)
    if spec.method == "bicubic":
        scale = degradations.TASKS[spec.task].scale
        model: Any = partial(degradations.bicubic_resize, scale=scale)
        device = torch.device("cpu")  # Where the images are.
    else:
        if spec.learns and not profile.trains:
            folder = adapters.find_adapter(spec.tag)
            record |= training_facts(spec, root)
        model = adapted_model(spec, profile, sources and sources.weights).to(devices.pick())
        trainable, total = adapters.count_parameters(model)
        backbone = sum(p.numel() for p in set(base_parameters(model).values()))
        record["parameters"] = {"trainable": trainable, "total": total, "backbone": backbone}
        if spec.learns and profile.trains:
            result = _train(model, spec, profile, work, sources, progress)
            record["curve"] = result.curve
            record["seconds"] = result.seconds
            record["steps_per_second"] = result.steps / result.seconds
            record["peak_memory"] = {"bytes": result.peak_memory_bytes, "what": result.memory_kind}
            folder = weights / spec.tag
            adapters.save_adapter(model, folder)
        if spec.learns:
            record["adapter_bytes"] = (folder / "adapter_model.safetensors").stat().st_size
        device = next(model.parameters()).device
    record["scores"] = score(model, pairs, spec, progress=progress)
    record["metric"] = spec.metric
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


def adapted_model(spec: Spec, profile: Profile, weights: Path | None = None) -> nn.Module:
    """The backbone with its adapter: a fresh one if the profile trains, else the shipped one.

    Of a stereo row it is a `Stereo`, called with pairs.

    Args:
        spec: the row.
        profile: decides which adapter.
        weights: a checkpoint of the backbone that `spec` names; None: it is found by that name.
    """
    model = _backbone(spec, weights)
    if spec.stereo:
        model = Stereo(model)
    if hasattr(model, "set_task"):  # A backbone with a head and a tail for each task.
        model.set_task(spec.task)
    if spec.learns and not profile.trains:
        return adapters.load_adapter(model, spec.tag).eval()
    torch.manual_seed(spec.seed)
    options = {**spec.adapter}
    if spec.modules_to_save:
        options["modules_to_save"] = spec.modules_to_save
    return adapters.attach_adapter(model, spec.method, **options).eval()


def _backbone(spec: Spec, weights: Path | None) -> nn.Module:
    if weights is not None:
        return backbones.load_backbone(weights, name=spec.backbone)
    if spec.pretrained:
        return backbones.load_backbone(spec.backbone)
    like = None if spec.backbone in backbones.BACKBONES else backbones.load_backbone(spec.backbone)
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        if like is None:
            return backbones.create_backbone(spec.backbone)
        return backbones.create_backbone(like.name, scale=like.scale)


def training_set(
    spec: Spec, profile: Profile, sources: adaptir_protocol.Sources | None = None
) -> Dataset:
    """Seeded patches of the training photographs, degraded for the spec's task or tasks.

    With `sources`, those of the published images in the paper's protocol. Of a stereo row the
    patches are pairs, see `stereo_experiments`.
    """
    if sources:
        return adaptir_protocol.training_set(spec, profile, sources)
    if spec.stereo:
        return stereo_experiments.training_set(spec, profile)
    tasks = [degradations.TASKS[name] for name in spec.train_tasks or (spec.task,)]
    return patches.Patches(
        photos.train_photos(),
        degradations.OneOf(*tasks) if len(tasks) > 1 else tasks[0],
        lq_size=spec.patch or profile.lq_size,
        seed=spec.seed,
        length=profile.steps * profile.batch_size,
    )


def validation_pairs(spec: Spec, profile: Profile) -> list:
    """Two centred crops of photographs that no test set and no training patch holds.

    Of a stereo row they are pairs made from these photographs.
    """
    if spec.stereo:
        return stereo_experiments.validation_pairs(spec, profile)
    task = degradations.TEST_TASKS[spec.training.task]
    crop = min(8 * profile.lq_size, spec.crop or 8 * profile.lq_size)
    return patches.make_test_pairs(photos.validation_photos(), task, crop=crop)


def _test_pairs(spec: Spec, profile: Profile, sources: adaptir_protocol.Sources | None):
    if sources:
        return adaptir_protocol.scored_pairs(spec, profile, sources)
    if spec.stereo:
        return stereo_experiments.test_pairs(spec, profile)
    tests = photos.test_set(profile.test_set)[: profile.images]
    crop = min(profile.crop, spec.crop or profile.crop)
    return patches.make_test_pairs(tests, degradations.TEST_TASKS[spec.task], crop=crop)


def score(
    model: Any, pairs: list, spec: Spec, *, progress: bool = True
) -> list[dict[str, str | float]]:
    """Scores of a model on (name, lq, gt) by the protocol of the spec's paper: a row an image."""
    if spec.stereo:
        return stereo_experiments.score(model, pairs, progress)
    convention = {key: spec.metric[key] for key in ("channel", "crop_border")}
    return evaluate(model, pairs, **convention, progress=progress)


def _train(
    model: nn.Module,
    spec: Spec,
    profile: Profile,
    work: Path,
    sources: adaptir_protocol.Sources | None,
    progress: bool,
):
    pairs = validation_pairs(spec, profile) if profile.validate_every else []

    def validate(model: nn.Module) -> dict[str, float]:
        rows = score(model, pairs, spec, progress=False)
        return {"val_psnr": sum(row["psnr"] for row in rows) / len(rows)}

    return train(
        model,
        training_set(spec, profile, sources),
        steps=profile.steps,
        batch_size=profile.batch_size,
        lr=spec.lr,
        adapter_lr=spec.adapter_lr,
        schedule=profile.schedule,
        precision=profile.precision,
        seed=spec.seed,
        out=work,
        checkpoint_every=min(1000, max(1, profile.steps // 8)),
        log_every=min(500, max(1, profile.steps // 30)),
        validate=validate if profile.validate_every else None,
        validate_every=profile.validate_every,
        workers=sources.workers if sources else 0,
        progress=progress,
    )
