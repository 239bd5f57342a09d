"""Cards of pretrained backbones: what was trained, on what, how long, and what it reaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CARD_CROP = 288
"""Side in pixels of the centre crops of the validation photographs that a card scores."""


def card_markdown(card: dict[str, Any]) -> str:
    """The card of a pretrained backbone, for people."""
    recipe = card["recipe"]
    rows = [
        f"| {name} | {row['model']:.2f} | {row['baseline']:.2f} ({row['what']}) "
        f"| {row['model'] - row['baseline']:+.2f} |"
        for name, row in card["validation"].items()
    ]
    tasks = [f"- `{name}`: `{text}`" for name, text in recipe["tasks"].items()]
    start = f", from the weights of `{recipe['start']}`" if recipe["start"] else ""
    precision = "float32" if recipe["precision"] == "no" else recipe["precision"]
    commit = (card["git"]["commit"] or "no commit")[:8] + (
        " with changes" if card["git"]["dirty"] else ""
    )
    listed = ", ".join(card["training_photographs"])
    if recipe.get("sets"):  # Cards of small models may be older than this field.
        what, images = "the full architecture, by this project", f"Published images: {listed}."
    else:
        what = "a small sibling for laptops"
        images = (
            f"Photographs {listed} of the training pack (see its ATTRIBUTION.md); "
            f"{recipe['deadleaves_share']:.0%} of the patches are synthetic dead leaves."
        )
    lines = [
        f"# {card['tag']}",
        "",
        f"`{recipe['backbone']}`, {card['parameters']:,} parameters: {what}, "
        "not the published model.",
        "",
        f"**Recipe.** {recipe['source']}",
        "",
        f"{recipe['steps']} steps of {recipe['batch_size']} patches of {recipe['lq_size']} x "
        f"{recipe['lq_size']} degraded pixels{start}; AdamW at {recipe['lr']:g} with cosine decay, "
        f"weight average {recipe['ema']}, {precision}, seed {card['seed']}.",
        "",
        "**Tasks.**",
        "",
        *tasks,
        "",
        f"**Data.** {images}",
        "",
        f"**Cost.** {card['seconds'] / 60:.0f} minutes of training steps on {card['device']} "
        "(other work may have shared the processor), peak memory "
        f"{card['peak_memory']['bytes'] / 2**30:.1f} GiB.",
        "",
        f"**Validation** on {' and '.join(card['validation_photographs'])}, never trained on. "
        f"{card['metric']}.",
        "",
        "| task | this model | doing nothing | gain |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Commit {commit}, torch {card['versions']['torch']}, {card['date'][:10]}. Apache-2.0.",
        "",
    ]
    return "\n".join(lines)


def index_markdown(folder: Path) -> str:
    """One table of all cards in a folder."""
    lines = [
        "# Pretrained small backbones",
        "",
        "Trained by this project (`ir-peft pretrain TAG`) for laptops; not the published models.",
        f"PSNR in dB on RGB, mean over centre crops of {CARD_CROP} pixels of the two validation",
        "photographs, beside bicubic enlargement or the damaged image itself. Each name links to",
        "its card. DAT-light is by its authors ([NOTICE](../NOTICE)).",
        "",
        "| backbone | parameters | steps | task | PSNR | doing nothing | gain |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for path in sorted(folder.glob("*.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        first = f"[{card['tag']}]({card['tag']}.md) | {card['parameters']:,}"
        head = f"| {first} | {card['recipe']['steps']:,} |"
        for task, row in card["validation"].items():
            gain = row["model"] - row["baseline"]
            numbers = f"{row['model']:.2f} | {row['baseline']:.2f} | {gain:+.2f} |"
            lines.append(f"{head} {task} | {numbers}")
            head = "| | | |"
    return "\n".join([*lines, ""])
