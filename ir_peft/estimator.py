"""Which damage an image has: a small classifier, so that the right adapter can be picked.

A convolutional network looks at patches of 64 pixels: the image, rounded to 8 bits as a file would
be, and its fine detail, enlarged. The image's probabilities are the mean over its patches, so that
flat ones, which tell little, weigh little. It knows the synthetic damage of `data.degradations`,
one at a time; what a camera or a mixture does is not among its classes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .data import degradations, patches
from .data.degradations import GaussianNoise
from .data.photos import Photo
from .files import write_bytes, write_text

CLEAN = "clean"
CLASSES = (
    CLEAN, "denoise15", "denoise25", "denoise50", "derain_light", "derain_heavy",
    "gaussian_deblur", "motion_deblur", "sr4_same_size", "jpeg", "low_light", "haze",
)  # fmt: skip
"""What an image can be: undamaged, or in need of a task of `degradations.TASKS`."""
SIDE, MARGIN = 64, 24
"""Sides in pixels of a patch, and of what is cut off around it in training: the damage of a whole
image has no border there."""
WEIGHTS = Path(__file__).parent / "weights" / "estimator" / "damage.safetensors"


class Estimator(nn.Module):
    """Scores of each class for patches; 47 thousand parameters.

    Four convolutions, then the mean and the spread over the pixels of each channel: damage is a
    statistic of the patch, not a place in it. There is no normalisation, which would hide how much
    detail there is.

    Args:
        classes: names of the classes.
        width: channels of the first convolution.
    """

    def __init__(self, classes: Sequence[str] = CLASSES, width: int = 16):
        super().__init__()
        self.classes = tuple(classes)
        widths = (6, width, 2 * width, 3 * width, 4 * width)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1)
            for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.head = nn.Linear(2 * widths[-1], len(self.classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, classes), logits."""
        x = (x.clamp(0, 1) * 255).round() / 255
        around = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        z = torch.cat([x - 0.5, 8 * (x - around)], dim=1)  # (B, 6, H, W)
        for conv in self.convs:
            z = F.relu(conv(z))
        z = z.flatten(2)  # (B, C, N)
        spread = (z.var(dim=2, correction=0) + 1e-6).sqrt()
        return self.head(torch.cat([z.mean(dim=2), spread], dim=1))


@torch.no_grad()
def estimate(model: Estimator, image: Tensor, patches_a_side: int = 5) -> dict[str, float]:
    """Probability of each class, the mean over patches spread evenly over the image.

    Args:
        model: from `load_estimator`.
        image: (3, H, W), floating point in [0, 1], each side at least 64 pixels.
        patches_a_side: rows and columns of patches, fewer where they would overlap.

    Raises:
        ValueError: the image is too small or not RGB, or `patches_a_side` is below 1.
    """
    if image.dim() != 3 or len(image) != 3 or min(image.shape[1:]) < SIDE or patches_a_side < 1:
        raise ValueError(
            f"expected (3, H, W) of at least {SIDE} pixels a side, got {tuple(image.shape)}, and "
            f"patches_a_side of at least 1, got {patches_a_side}"
        )
    tops, lefts = (
        torch.linspace(0, side - SIDE, min(patches_a_side, side // SIDE)).round().int().tolist()
        for side in image.shape[1:]
    )
    batch = torch.stack([image[:, y : y + SIDE, x : x + SIDE] for y in tops for x in lefts])
    shares = model(batch.float()).softmax(dim=1).mean(dim=0)
    return dict(zip(model.classes, shares.tolist(), strict=True))


def pick_task(model: Estimator, image: Tensor) -> str | None:
    """The task that the image most likely needs, None for an undamaged one; as `estimate`."""
    shares = estimate(model, image)
    best = max(shares, key=shares.__getitem__)
    return None if best == CLEAN else best


def load_estimator(path: str | Path = WEIGHTS) -> Estimator:
    """The estimator that comes with the package, or one written by `write_estimator`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or no estimator.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no estimator here; tools/train_estimator.py trains one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if "classes" not in metadata or "convs.0.weight" not in state:
        raise ValueError(f"{path} is no estimator: its metadata names no classes")
    model = Estimator(metadata["classes"].split(), width=len(state["convs.0.weight"]))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} is no estimator of this version: {error}") from error
    return model.eval()


class LabelledPatches(Dataset):
    """Seeded patches with the number of their class: item i has class i modulo their number.

    Args:
        photos: where the clean patches come from.
        seed: non-negative seed of the whole set.
        length: number of items.
        classes: `CLEAN` or tasks of `degradations.TEST_TASKS`.
        deadleaves_share: share of synthetic clean images.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        seed: int,
        length: int,
        classes: Sequence[str] = CLASSES,
        deadleaves_share: float = 0.2,
    ):
        self.seed, self.classes = seed, tuple(classes)
        nothing = GaussianNoise(0.0)
        self.clean = patches.Patches(
            photos, nothing, SIDE + 2 * MARGIN, seed, length, deadleaves_share
        )

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return (patch (3, 64, 64), class)."""
        image, label = self.clean[index][1], index % len(self.classes)
        if self.classes[label] != CLEAN:
            # Beyond the items' own numbers, so that no patch shares its generator.
            generator = patches.item_generator(self.seed, len(self) + index)
            image = degradations.TEST_TASKS[self.classes[label]](image, generator)
        return image[:, MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE].contiguous(), label


@dataclass(frozen=True)
class Fit:
    """How an estimator is trained."""

    steps: int = 1500
    """Optimiser steps."""
    batch_size: int = 36
    """Patches a step; a multiple of the classes keeps them balanced."""
    lr: float = 2e-3
    """Peak learning rate of AdamW, which falls as a cosine."""
    seed: int = 0
    """Of the weights, the patches and their damage."""


def fit(photos: Sequence[Photo], options: Fit, progress: bool = True) -> tuple[Estimator, float]:
    """Trains an estimator on the cross-entropy of its classes; returns it and the seconds taken.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = Estimator()
    data = LabelledPatches(photos, options.seed, options.steps * options.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    loader = DataLoader(data, options.batch_size, generator=torch.Generator())
    start = time.perf_counter()
    for images, labels in tqdm(loader, desc="estimator", unit="step", disable=not progress):
        loss = F.cross_entropy(model(images), labels)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()}; lower lr={options.lr}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval(), time.perf_counter() - start


def confusion(model: Estimator, photos: Sequence[Photo], crop: int | None) -> Tensor:
    """How often each true class (row) was taken for each (column), over test photographs."""
    table = torch.zeros(len(model.classes), len(model.classes), dtype=torch.int64)
    for row, name in enumerate(model.classes):
        task = GaussianNoise(0.0) if name == CLEAN else degradations.TEST_TASKS[name]
        for _, lq, _ in patches.make_test_pairs(photos, task, crop=crop):
            picked = pick_task(model, lq) or CLEAN
            table[row, model.classes.index(picked)] += 1
    return table


def write_estimator(
    path: str | Path, model: Estimator, options: Fit, facts: dict[str, Any], table: Tensor
) -> None:
    """Writes the weights, and beside them a card as `.json` and `.md`.

    Args:
        path: of the `.safetensors` file.
        model: trained with `options`.
        options: how it was trained.
        facts: seconds, photographs, commit, versions, device: what the card says besides.
        table: from `confusion`.
    """
    path = Path(path)
    right, total = int(table.diagonal().sum()), int(table.sum())
    card = {
        "classes": list(model.classes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": asdict(options),
        "accuracy": right / total,
        "confusion": table.tolist(),
        **facts,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_bytes(path, save(model.state_dict(), {"classes": " ".join(model.classes)}))
    write_text(path.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    rows = [
        f"| {name} | " + " | ".join(str(n) if n else "." for n in row) + " |"
        for name, row in zip(model.classes, table.tolist(), strict=True)
    ]
    head = f"| true \\ taken for | {' | '.join(model.classes)} |"
    lines = [
        "# Damage estimator",
        "",
        f"{card['parameters']:,} parameters, {options.steps} steps of {options.batch_size} patches "
        f"of {SIDE} pixels, AdamW at {options.lr:g}, seed {options.seed}. It tells the synthetic "
        "damage of this package apart, one kind at a time, to pick an adapter; it was not made for "
        "photographs of other damage.",
        "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items()),
        "",
        f"{right} of {total} test images are recognised. Rows are what was done, columns what it "
        "was taken for.",
        "",
        head,
        "|---" * (len(model.classes) + 1) + "|",
        *rows,
        "",
    ]
    write_text(path.with_suffix(".md"), "\n".join(lines))
