"""Pretraining of the small backbones: the papers' recipes, scaled down to a laptop.

IPT learns its six tasks at once, one task a step (Chen et al. 2021). AdaIR's Restormer restores
clean images from synthetic degradations, without labels (arXiv 2404.11475). HAT learns
super-resolution, x4 from the weights of x2 (Chen et al. 2023). All of them see the photographs of
the training pack and dead leaves; the full Restormer sees published images, which the user has. The
result is a file of weights and a card: what was trained, on
what, how long, and how well it does on validation photographs beside doing nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import Dataset

from . import backbones
from .cards import CARD_CROP, card_markdown, index_markdown
from .data import degradations, folder_pairs, folders, patches, photos
from .data.degradations import (
    Bicubic,
    Degradation,
    DownUp,
    GaussianBlur,
    GaussianNoise,
    OneOf,
    Rain,
    RandomOrder,
)
from .evaluate import evaluate
from .files import write_bytes, write_text
from .names import did_you_mean
from .provenance import device_name, git_state, versions
from .train import train

SINGLES: dict[str, Degradation] = {
    "noise": GaussianNoise((0.0, 50.0)),
    "blur": GaussianBlur((0.2, 3.0)),
    "down_up": DownUp((2, 3, 4)),
    "rain": OneOf(Rain("light"), Rain("heavy")),
}
SELF_SUPERVISED = OneOf(*SINGLES.values())
"""AdaIR's phase 1 as we read it: one synthetic degradation for each image, drawn uniformly."""

CROP = 96
"""Side in pixels of the centre crops that are restored during training; the card has larger."""


@dataclass(frozen=True)
class Recipe:
    """One pretraining run."""

    backbone: str
    """The architecture, for `create_backbone`."""
    source: str
    """Whose recipe is scaled down, and where it departs from it."""
    tasks: Mapping[str, Degradation]
    """Degradations of the training patches; of several, each step draws one."""
    tests: tuple[str, ...]
    """Validation tasks, keys of `degradations.TEST_TASKS`."""
    scale: int | None = None
    """Output size over input size; None takes the architecture's default."""
    start: str | None = None
    """Tag of the backbone whose weights the run starts from, wherever keys and shapes agree."""
    steps: int = 10_000
    """Optimiser steps; the shorter recipes are what two busy cores did in an hour."""
    batch_size: int = 8
    """Patches a step."""
    lq_size: int = 48
    """Side of the degraded patch in pixels."""
    lr: float = 1e-3
    """Peak learning rate of AdamW; after a warm-up of 2 % of the steps it falls as a cosine."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    ema: float = 0.999
    """Decay of the average of the weights that is kept."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    precision: str = "bf16"
    """Of the forward pass; see `train`."""
    deadleaves_share: float = 0.25
    """Share of dead leaves among the training patches."""
    sets: tuple[str, ...] = ()
    """Published sets of clean images, keys of `folders.FOLDER_SETS`, in a folder of the user; () is
    the photographs of the training pack and dead leaves."""


TRANSFER: dict[str, Degradation] = {
    **SINGLES,
    "mixed": SELF_SUPERVISED,
    "random_order": RandomOrder(*SINGLES.values()),
    "identity": GaussianNoise(0.0),  # Clean from clean: what any pretraining has to beat.
}
"""What the bases of the transfer study learn from, all with the same effort."""

_RESTORMER = Recipe(
    backbone="restormer_mini",
    source="AdaIR (arXiv 2404.11475), phase 1: clean images from synthetic degradations, L1. "
    "The paper's degradations and their ranges are unknown to us: these are our choice.",
    tasks={"self_supervised": SELF_SUPERVISED},
    tests=("denoise25", "gaussian_deblur", "sr4_same_size", "derain_light", "derain_heavy"),
    lq_size=64,
)
_FULL = Recipe(
    backbone="restormer",
    source="AdaIR (arXiv 2404.11475), phase 1, on the full Restormer: the damage of the small one. "
    "Images, patches, rate, clipping and steps are those of Restormer's denoising (arXiv "
    "2111.09881), whose commented alternative has patches of one size; its rate stays constant for "
    "the first third, ours falls as a cosine, and its arithmetic is float32.",
    tasks={"self_supervised": SELF_SUPERVISED},
    tests=_RESTORMER.tests,
    steps=300_000,
    lq_size=128,
    lr=3e-4,
    clip_norm=0.01,
    deadleaves_share=0.0,
    sets=("DIV2K", "Flickr2K", "WED", "BSD400"),
)
_SR = Recipe(
    backbone="hat_mini",
    scale=2,
    source="HAT (arXiv 2205.04437): super-resolution of bicubic images, L1; x4 starts from x2. "
    "DF2K and ImageNet are replaced; it begins near the identity.",
    tasks={"sr2": Bicubic(2)},
    tests=("sr2",),
    steps=4_000,
    batch_size=4,
    lq_size=32,
    precision="no",
)
RECIPES: dict[str, Recipe] = {
    "ipt_mini": Recipe(
        backbone="ipt_mini",
        source="IPT (arXiv 2012.00364): six tasks, one a step, L1; its contrastive loss is left "
        "out, ImageNet is replaced, and it begins near the identity.",
        tasks={
            name: degradations.TASKS[name]
            for name in ("sr2", "sr3", "sr4", "derain_light", "denoise30", "denoise50")
        },
        tests=("sr2", "sr3", "sr4", "derain_light", "denoise30", "denoise50"),
        steps=5_000,
        batch_size=6,
        precision="no",
    ),
    "restormer_mini": _RESTORMER,
    "hat_mini_x2": _SR,
    "hat_mini_x4": replace(
        _SR,
        scale=4,
        start="hat_mini_x2",
        steps=2_000,
        tasks={"sr4": Bicubic(4)},
        tests=("sr4",),
    ),
    # Short runs, so the average of the weights is short as well: else it keeps the random start.
    **{
        f"restormer_mini_{name}": replace(
            _RESTORMER, tasks={name: degradation}, steps=1_500, lq_size=48, ema=0.99
        )
        for name, degradation in TRANSFER.items()
    },
    **{
        f"restormer_{name}": replace(_FULL, tasks={name: degradation})
        for name, degradation in TRANSFER.items()
    },
}
"""Recipe of each tag; `load_backbone` takes it where its weights are bundled, else their path."""


def pretrain(
    tag: str,
    *,
    steps: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = True,
    data: str | Path | None = None,
    workers: int = 0,
    any_count: bool = False,
    root: str | Path = ".",
    progress: bool = True,
) -> dict[str, Any]:
    """Pretrains a backbone from a recipe; an interrupted run resumes at its last checkpoint.

    Args:
        tag: a key of `RECIPES`.
        steps: optimiser steps, where not the recipe's.
        seed: of the initial weights, the patches and their damage.
        out: where `<tag>.safetensors`, `<tag>.json` and the card `<tag>.md` go, with `_s<seed>`
            unless the seed is 0; None takes `runs/pretrain`. `load_backbone` finds a file by its
            path, and by its tag in `ir_peft/weights/backbones`.
        resume: continue from the checkpoint of this tag and seed; False starts over.
        data: the folder of the published sets, for a recipe with `sets`, laid out as
            `ir-peft data check` expects.
        workers: processes that read images; changes no number.
        any_count: accept other numbers of images than the published ones.
        root: the checkout whose `runs/pretrain` holds the checkpoints.
        progress: show a progress bar.

    Returns:
        The card, as written to `<tag>.json`.

    Raises:
        ValueError: no recipe has that name, it needs `data` or takes none, or a checkpoint of
            another run is in the way.
        FileNotFoundError: the weights to start from or published images are missing.
        FloatingPointError: a loss or a weight is not finite.
    """
    if tag not in RECIPES:
        hint = did_you_mean(tag, RECIPES) or "."
        raise ValueError(f"there is no recipe {tag!r}{hint} Known: {', '.join(RECIPES)}")
    recipe = RECIPES[tag] if steps is None else replace(RECIPES[tag], steps=steps)
    root = Path(root).resolve()
    name = f"{tag}_s{seed}" if seed else tag
    folder = root / "runs" / "pretrain"
    out = folder if out is None else Path(out)
    if recipe.steps < 1:
        raise ValueError(f"steps={recipe.steps} must be at least 1")
    if recipe.sets and data is None:
        raise ValueError(
            f"{tag} learns from published images: name the folder of {', '.join(recipe.sets)} "
            "(--data FOLDER)"
        )
    if data is not None and not recipe.sets:
        raise ValueError(f"{tag} learns from the package's own photographs: leave out data")
    out.mkdir(parents=True, exist_ok=True)  # An impossible folder shows here, not hours later.
    if not os.access(out, os.W_OK):
        raise PermissionError(f"{out} cannot be written")
    commits = _commits(folder / name / "commits.json", git_state(root), resume)
    model = initial_model(recipe, seed, out)
    items, images = training_set(recipe, seed, data, any_count)
    switch, default = getattr(model, "set_task", None), getattr(model, "task", None)
    result = train(
        model,
        items,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        schedule="cosine",
        warmup=recipe.steps // 50,
        precision=recipe.precision,
        ema=recipe.ema,
        clip_norm=recipe.clip_norm,
        out=folder / name,
        checkpoint_every=max(1, recipe.steps // 50),
        log_every=max(1, recipe.steps // 100),
        validate=partial(validate, tests=recipe.tests, crop=CROP),
        validate_every=max(1, recipe.steps // 10),
        before_step=switch and (lambda step: switch(items.task(step))),
        resume=resume,
        seed=seed,
        workers=workers,
        progress=progress,
    )
    if default is not None:  # Training ends at the task of the last step.
        switch(default)
    card = {
        "tag": name,
        "recipe": asdict(recipe) | {"tasks": {k: repr(d) for k, d in recipe.tasks.items()}},
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_photographs": images,
        "validation_photographs": [photo.name for photo in photos.validation_photos()],
        "validation": scores(model, recipe.tests, crop=CARD_CROP),
        "metric": f"PSNR in dB on RGB, no border, 8 bits; centre crops of {CARD_CROP} pixels",
        "curve": result.curve,
        "seconds": result.seconds,
        "peak_memory": {"bytes": result.peak_memory_bytes, "what": result.memory_kind},
        "git": commits[0],
        "resumed_at": commits[1:],
        "versions": versions(),
        "device": device_name(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    metadata = {
        "architecture": recipe.backbone,
        "scale": str(model.scale),
        "source": f"pretrained by ir_peft, {recipe.steps} steps, seed {seed}; see {name}.md",
        "license": "Apache-2.0",
    }
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    write_bytes(out / f"{name}.safetensors", save(state, metadata))
    write_text(out / f"{name}.md", card_markdown(card))
    write_text(out / f"{name}.json", json.dumps(card, indent=1) + "\n")
    if out.resolve() == backbones.WEIGHTS:
        write_text(out / "README.md", index_markdown(out))
    return card


def training_set(
    recipe: Recipe, seed: int, data: str | Path | None = None, any_count: bool = False
) -> tuple[Dataset, list[str]]:
    """Seeded patches of a recipe, and the names of the photographs, or sets, they come from.

    Raises:
        ValueError, FileNotFoundError: as `folders.find_pairs`, before anything is read.
    """
    length = recipe.steps * recipe.batch_size
    if not recipe.sets:
        items: Dataset = patches.TaskPatches(
            photos.train_photos(),
            dict(recipe.tasks),
            recipe.batch_size,
            lq_size=recipe.lq_size,
            seed=seed,
            length=length,
            deadleaves_share=recipe.deadleaves_share,
        )
        return items, [photo.name for photo in photos.train_photos()]
    (damage,) = recipe.tasks.values()
    items = folder_pairs.FolderPatches(
        data, recipe.sets, damage, recipe.lq_size, seed, length, any_count=any_count
    )
    counts = {
        name: len(folders.find_pairs(data, name, damaged=False, any_count=any_count))
        for name in recipe.sets
    }
    return items, [f"{name} ({count:,})" for name, count in counts.items()]


def _commits(file: Path, now: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
    """The commits that a run was trained with, the first of them where it began."""
    commits = json.loads(file.read_text(encoding="utf-8")) if resume and file.exists() else []
    if now not in commits:
        commits.append(now)
        write_text(file, json.dumps(commits) + "\n")
    return commits


def initial_model(recipe: Recipe, seed: int, out: Path) -> nn.Module:
    """The backbone with seeded random weights, or those of `recipe.start` where they fit."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = backbones.create_backbone(recipe.backbone, scale=recipe.scale)
    if recipe.start is not None:
        name = f"{recipe.start}_s{seed}" if seed else recipe.start
        local = out / f"{name}.safetensors"
        start = backbones.load_backbone(local if local.exists() else name).state_dict()
        own = model.state_dict()
        fits = {k: v for k, v in start.items() if k in own and own[k].shape == v.shape}
        model.load_state_dict(own | fits)
    return model


def scores(model: nn.Module, tests: tuple[str, ...], crop: int) -> dict[str, dict[str, Any]]:
    """PSNR of the model and of doing nothing (bicubic enlargement where the sizes differ).

    Returns:
        For each task: `model` and `baseline` (dB, the mean over the images), `what` (the
        baseline's name) and `images` (name -> [model, baseline]).
    """
    default = getattr(model, "task", None)
    found = {}
    for name in tests:
        degradation = degradations.TEST_TASKS[name]
        pairs = patches.make_test_pairs(photos.validation_photos(), degradation, crop=crop)
        if default is not None:
            model.set_task(name)
        scale = patches.integer_scale(degradation)
        nothing = partial(degradations.bicubic_resize, scale=scale) if scale > 1 else _same
        options = {"crop_border": 0, "channel": "rgb", "progress": False}
        ours, baseline = (evaluate(f, pairs, **options) for f in (model, nothing))
        found[name] = {
            "model": _mean(ours),
            "baseline": _mean(baseline),
            "what": "bicubic" if scale > 1 else "identity",
            "images": {
                a["image"]: [a["psnr"], b["psnr"]] for a, b in zip(ours, baseline, strict=True)
            },
        }
    if default is not None:
        model.set_task(default)
    return found


def validate(model: nn.Module, tests: tuple[str, ...], crop: int) -> dict[str, float]:
    """PSNR of each task, for the training curve."""
    return {name: row["model"] for name, row in scores(model, tests, crop).items()}


def _mean(rows: list[dict]) -> float:
    return sum(row["psnr"] for row in rows) / len(rows)


def _same(x: Tensor) -> Tensor:
    return x
