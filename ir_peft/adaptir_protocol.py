"""The AdaptIR paper's own protocol: published images, the authors' weights, its length of training.

The conventions are those of the code that its authors released (csguoh/AdaptIR, January 2025): L1,
AdamW at 1e-4, 500 epochs that leave out their last incomplete batch, the rate halved after 50, 80,
90 and 95 % of them, float32. Training noise is cut off to 8 bits, as is that of hybrid test images;
test noise of denoising stays in clipped floats.

Here and not there: 16 patches a step in all, where the release takes 16 on each of 4 GPUs by
default; the unturned patch is among the flips and rotations; `lr4_jpeg30`, `sr2` and `sr3` read
their own low-resolution files; JPEG codes RGB as RGB; the noise of a test image is drawn from its
set and name, so that no order of images changes it; denoising is tested on CBSD68 as well, as in
the paper; every result is rounded to 8 bits before it is scored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from .backbones import load_backbone
from .data import degradations
from .data.degradations import Degradation
from .data.folder_pairs import FolderPairs, FolderPatches, FolderSets
from .data.folders import lookup
from .data.patches import integer_scale
from .data.photos import sha256_of
from .specs import Profile, Spec


@dataclass(frozen=True)
class TaskProtocol:
    """What one task is trained and tested on; sets are keys of `folders.FOLDER_SETS`."""

    train: tuple[str, ...]
    """Training sets; an epoch draws from all of them by their numbers of images."""
    test: tuple[str, ...]
    """Test sets, each a column of the paper's table."""
    damaged: bool = False
    """The sets come damaged; else code damages clean or low-resolution files."""
    repeat: int = 1
    """How often an epoch visits each training image."""
    multiple: int = 1
    """Training pairs are cut around their centre to sides divisible by this."""


_SR = TaskProtocol(
    train=("DIV2K", "Flickr2K"), test=("Set5", "Set14", "B100", "Urban100", "Manga109")
)
_DENOISE = TaskProtocol(train=("WED", "BSD400", "DIV2K", "Flickr2K"), test=("CBSD68", "Urban100"))
PROTOCOL: dict[str, TaskProtocol] = {
    **dict.fromkeys(("lr4_noise30", "lr4_jpeg30", "sr2", "sr3", "sr4"), _SR),
    **dict.fromkeys(("denoise30", "denoise50"), _DENOISE),
    "derain_light": TaskProtocol(
        ("RainTrainL",), ("Rain100L",), damaged=True, repeat=24, multiple=16
    ),
    "derain_heavy": TaskProtocol(
        ("RainTrainH",), ("Rain100H",), damaged=True, repeat=4, multiple=16
    ),
    "low_light": TaskProtocol(("LOL_train",), ("LOL_test",), damaged=True, repeat=16),
}
"""The paper's tasks; their metrics are those of `Spec.metric`."""


@dataclass(frozen=True)
class Sources:
    """Where the published images and the authors' weights are on this machine."""

    data: Path
    """The folder of the data sets, laid out as `ir-peft data check` expects."""
    weights: Path
    """The authors' checkpoint, for IPT `IPT_pretrain.pt`."""
    workers: int = 0
    """Processes that read training images; changes no number."""

    @cached_property
    def sha256(self) -> str:
        """Of the weights."""
        return sha256_of(self.weights)


def damage(task: str, split: Literal["train", "test"]) -> Degradation | None:
    """What code does to the images of a task; None where its files are the damaged ones."""
    return None if PROTOCOL[task].damaged else degradations.task(task, split)


def count_images(data: Path, tasks: Iterable[str], any_count: bool) -> dict[str, dict[str, int]]:
    """Number of images of each training and test set, by task.

    Args:
        data: the folder that holds the data sets.
        tasks: keys of `PROTOCOL`.
        any_count: accept other numbers of images than the published ones.

    Raises:
        ValueError: the paper has no such task.
        FileNotFoundError: sets are missing or incomplete; all of them are named, with the layouts
            that would do and with what is there.
    """
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no such folder of data sets")
    counts: dict[str, dict[str, int]] = {}
    problems: list[str] = []
    for task in tasks:
        if task not in PROTOCOL:
            raise ValueError(f"AdaptIR has no task {task!r}; it has {', '.join(PROTOCOL)}")
        counts[task] = {}
        for split in ("train", "test"):
            made = damage(task, split)
            for name in getattr(PROTOCOL[task], split):
                try:
                    pairs = FolderPairs(data, name, made, any_count=any_count)
                    counts[task][name] = len(pairs)
                except (FileNotFoundError, ValueError) as error:
                    scale = 1 if made is None else integer_scale(made)
                    layout = lookup(name).describe(scale, damaged=made is None or scale > 1)
                    problems.append(f"  {error}; expected {layout}")
    if problems:
        found = {name: n for sets in counts.values() for name, n in sets.items()}
        usable = ", ".join(f"{name} ({n})" for name, n in found.items()) or "none"
        there = ", ".join(sorted(path.name for path in data.iterdir())) or "nothing"
        raise FileNotFoundError(
            "\n".join(
                [
                    f"{data} lacks what {', '.join(counts)} need:",
                    *dict.fromkeys(problems),  # Several tasks may need the same.
                    f"Usable: {usable}. The folder holds: {there}. "
                    f"`ir-peft data check {data}` reads every file of every set.",
                ]
            )
        )
    return counts


def fit(profile: Profile, spec: Spec, sources: Sources | None) -> Profile:
    """The profile for one row, with its images counted and its steps set by them.

    Raises:
        ValueError: there are no sources, the row is trained on several tasks, or as `count_images`.
        FileNotFoundError: as `count_images`.
    """
    if sources is None:
        raise ValueError(
            f"profile {profile.name} takes published images and the authors' weights: "
            f"ir-peft run FILE --profile {profile.name} --data FOLDER --weights IPT_pretrain.pt"
        )
    if spec.train_tasks:
        raise ValueError(f"row {spec.row}: profile {profile.name} trains a row on one task")
    (counts,) = count_images(sources.data, [spec.task], profile.any_count).values()
    steps = profile.epochs * steps_per_epoch(spec.task, counts, profile.batch_size)
    return replace(profile, steps=steps, files=counts, weights=sources.sha256)


def steps_per_epoch(task: str, counts: dict[str, int], batch_size: int) -> int:
    """Whole batches in one pass over the training images of a task.

    Raises:
        ValueError: the images do not fill a batch.
    """
    protocol = PROTOCOL[task]
    samples = protocol.repeat * sum(counts[name] for name in protocol.train)
    if samples < batch_size:
        raise ValueError(f"{task}: {samples} samples an epoch do not fill a batch of {batch_size}")
    return samples // batch_size


def training_set(spec: Spec, profile: Profile, sources: Sources) -> FolderPatches:
    """Seeded patches of the task's training images, in epochs; `profile` is one from `fit`."""
    protocol, batch = PROTOCOL[spec.task], profile.batch_size
    return FolderPatches(
        sources.data,
        protocol.train,
        damage(spec.task, "train"),
        lq_size=spec.patch or profile.lq_size,
        seed=spec.seed,
        length=profile.steps * batch,
        epoch=steps_per_epoch(spec.task, profile.files, batch) * batch,
        multiple=protocol.multiple,
        any_count=profile.any_count,
    )


def scored_pairs(spec: Spec, profile: Profile, sources: Sources) -> FolderSets:
    """Test pairs of all sets of the task, read when asked for, named `<set>/<image>`."""
    made = damage(spec.task, "test")
    return FolderSets(
        [
            FolderPairs(sources.data, name, made, any_count=profile.any_count)
            for name in PROTOCOL[spec.task].test
        ]
    )


def facts(task: str) -> dict[str, Any]:
    """What stands in a record about the protocol of its task."""
    return {"source": "AdaptIR's release", **asdict(PROTOCOL[task])}


def check(specs: Iterable[Spec], profile: Profile, sources: Sources) -> list[str]:
    """Looks for all images and weights that some rows need, before the first of them is trained.

    Returns:
        A line about the weights, then one about each task: images and steps.

    Raises:
        FileNotFoundError: images are missing, see `count_images`, or the weights are.
        ValueError: the weights are not those of the rows' backbone or have no branch for a task.
    """
    specs, weights = list(specs), sources.weights
    tasks = list(dict.fromkeys(spec.task for spec in specs))
    if not weights.is_file():
        raise FileNotFoundError(
            f"{weights}: no such file of weights; the README of github.com/csguoh/AdaptIR links "
            "to IPT_pretrain.pt"
        )
    counts = count_images(sources.data, tasks, profile.any_count)
    for backbone in {spec.backbone for spec in specs}:
        model = load_backbone(weights, name=backbone)
        for task in tasks:
            if hasattr(model, "set_task"):
                model.set_task(task)
    lines = [f"{weights.name}: sha256 {sources.sha256}"]
    for task, sets in counts.items():
        images = ", ".join(f"{name} {number:,}" for name, number in sets.items())
        steps = steps_per_epoch(task, sets, profile.batch_size)
        lines.append(
            f"{task}: {images}; {profile.epochs} epochs of {steps:,} steps of "
            f"{profile.batch_size} patches = {profile.epochs * steps:,} steps"
        )
    return lines
