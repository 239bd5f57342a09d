"""What stands above and under a table: where its numbers come from, and what they say.

Every sentence is computed from the records and from ``results/paper_numbers.csv``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .adaptir_claims import PAPER_NAMES, claims
from .stereo_claims import HEAD as STEREO_HEAD
from .stereo_claims import ablation_claims as stereo_ablation_claims
from .stereo_claims import method_claims as stereo_claims
from .table_rows import BORROWED
from .variant_claims import ablation_claims, peft_claims, scaling_claims
from .verdicts import SEEDS, WORDS, Claim

if TYPE_CHECKING:
    import pandas as pd

SYNTHETIC = {"derain_light": "rain", "derain_heavy": "rain", "low_light": "darkness"}
"""Damage that the papers take from data sets of its own and this project draws, by task."""


def head(records: pd.DataFrame, frame: pd.DataFrame) -> str:
    """The line above a table: backbone, images, metric, training, device, commit, date, scale.

    Args:
        records: All of the table; where they are of several tasks or backbones, these are listed.
        frame: From :func:`ir_peft.results.table`; an empty one where nothing is of the paper's.
    """

    def all_of(column: str) -> str:
        return ", ".join(str(value) for value in sorted(set(records[column].dropna())))

    def named(word: str, column: str) -> str:
        values = list(dict.fromkeys(records[column]))
        return f"{word}{'s' * (len(values) > 1)} {', '.join(f'`{value}`' for value in values)}"

    one = records.iloc[0]
    images = list(dict.fromkeys(records["image"]))
    sets = records.drop_duplicates("image").groupby("set", sort=False).size()
    backbone = records["backbone_parameters"].max()
    size = "" if backbone != backbone else f" ({backbone:,.0f} parameters)"
    crop = "whole images" if one["crop"] != one["crop"] else f"centre crops {one['crop']:.0f} px"
    rounded = "rounded to 8 bits" if one["round_to_uint8"] else "not rounded"
    trained = records[records["trainable"] > 0]
    usual = trained["lr"].mode()
    rates = f"{usual[0]:g}" if len(usual) else "none"
    others = trained[trained["lr"] != usual.min()].groupby("row")["lr"].unique()
    if len(others):
        listed = [f"{row} {'/'.join(f'{lr:g}' for lr in values)}" for row, values in others.items()]
        rates += f" ({', '.join(listed)})"
    for row, lr in (
        trained.dropna(subset=["adapter_lr"]).groupby("row")["adapter_lr"].first().items()
    ):
        rates += f", of the adapters beside {row} {lr:g}"
    commits = ", ".join(sorted({commit[:7] for commit in records["commit"]}))
    dirty = " (with uncommitted changes)" if records["dirty"].any() else ""
    days = sorted({date[:10] for date in records["date"]})
    if one["set"]:
        listed = ", ".join(f"{name} ({count})" for name, count in sets.items())
        tested = f"Test sets, with their numbers of images: {listed}, {crop}; values of a set are "
        tested += "means over its images, others are means over the sets. "
        tested += f"All images: {one['files']}. Weights: sha256 {one['weights']}. "
    else:
        tested = f"Test images: {one['test_set']} ({', '.join(images)}), {crop}; "
        tested += f"values are means over these {len(images)} images. "
    precise = "" if one["precision"] in (None, "no") else f", {one['precision']} autocast"
    text = (
        f"{named('Backbone', 'backbone')}{size}, {named('task', 'task')}. {tested}"
        f"Metric: {'Y' if one['channel'] == 'y' else 'RGB'} channel, border of "
        f"{one['crop_border']} px removed, outputs {rounded}, SSIM window {one['window']}. "
        f"Training: {one['steps']} steps, batch {one['batch_size']}, input patches "
        f"{one['lq_size']} px, learning rate {rates}{precise}, seeds {all_of('seed')}. "
        f"Device: {all_of('device')}. "
        f"Commit {commits}{dirty}, {' to '.join(dict.fromkeys([days[0], days[-1]]))}, "
        f"profile `{one['profile']}`."
    )
    if one["profile"] == "smoke":
        text += " **Smoke, not a result.**"
    elif one["profile"] != "paper":
        text += (
            " **Mini scale**: a short run on a small backbone and other images than the paper's; "
            "compare the rows with each other, not their digits with the paper's."
        )
    name = (one["paper"], one["table"])
    if name in BORROWED:
        source, rows = BORROWED[name]
        listed = ", ".join(frame.loc[frame["row"].isin(rows), "label"])
        text += f" Rows of the table `{source}`: {listed}."
    if one["paper"] == "asteisr":
        text += f" {STEREO_HEAD}"
    if one["task"] in SYNTHETIC and one["paper"] == "adaptir":
        text += f" The {SYNTHETIC[one['task']]} is drawn by this project, unlike the paper's."
    if any(column.startswith("paper ") for column in frame):
        channel = "PSNR-Y" if one["channel"] == "y" else "PSNR on RGB"
        text += (
            f" Paper columns: {channel} of the paper's first version (v1) on IPT, 119 M "
            "parameters; the AdaptIR module here is that of the second version (v2)."
        )
    return text


CLAIMS = {
    "adaptir": claims,
    "adaptir-ablation": ablation_claims,
    "adaptir-scaling": scaling_claims,
    "adaptir-peft": peft_claims,
    "asteisr": stereo_claims,
    "asteisr-ablation": stereo_ablation_claims,
}
"""The claims that are checked under a table, by paper-table, else by paper."""


def check(frame: pd.DataFrame, images: pd.DataFrame, paper: str) -> list[Claim]:
    """Check the claims that belong to a table: (holds or None, sentence) each."""
    name = f"{paper}-{frame['table'].iloc[0]}"
    checked = CLAIMS.get(name, CLAIMS.get(paper))
    return checked(frame, images) if checked else []


def foot(
    frame: pd.DataFrame,
    images: pd.DataFrame,
    numbers: pd.DataFrame,
    task: str,
    paper: str = "adaptir",
) -> list[str]:
    """The lines under a table: the paper's claims, the reach of the tail, the paper's typos."""
    lines = [f"{WORDS[holds]}: {text}." for holds, text in check(frame, images, paper)]
    if frame["seeds"].max() == 1:
        lines.append(f"One seed a row: differences up to {SEEDS} dB decide nothing.")
    elif (frame["seeds"] == 1).any():
        lines.append(
            "± is the sample standard deviation over (n) seeds; the seeds' spread is the best less "
            f"the worst of them. Rows without ± have one seed; differences up to {SEEDS} dB decide "
            "nothing."
        )
    return lines + reach_of_the_tail(frame) + typos(frame, numbers, task)


def reach_of_the_tail(frame: pd.DataFrame) -> list[str]:
    """What the adapters reach alone and with the trained tail; no line without such rows."""
    psnr = frame.set_index("row")["psnr"].dropna()
    tails = [row for row in psnr.index if row.endswith("_tail")]
    bare = [row.removesuffix("_tail") for row in tails if row.removesuffix("_tail") in psnr]
    if not bare:
        return []
    names = ", ".join(frame.set_index("row")["label"][bare])
    text = f"Measured here: {names} alone {psnr[bare].min():.2f} to {psnr[bare].max():.2f} dB, "
    text += f"with the tail {psnr[tails].min():.2f} to {psnr[tails].max():.2f} dB"
    words = {"tail": "the tail alone", "bicubic": frame["against"].iloc[0], "full": "full"}
    for row, name in words.items():
        text += f", {name} {psnr[row]:.2f} dB" if row in psnr else ""
    return [f"{text}."]


def typos(frame: pd.DataFrame, numbers: pd.DataFrame, task: str) -> list[str]:
    """A line for each number that the paper probably misprints and the table shows."""
    if "paper flags" not in frame:
        return []
    names = {PAPER_NAMES[row] for row in frame["row"] if row in PAPER_NAMES}
    cells = numbers[(numbers["flag"] == "probable typo") & (numbers["task"] == task)]
    return [
        f"* Printed so in the paper, {cell['flag']}: {cell['method']} on "
        f"{cell['dataset']} {cell['value']:.2f}, {cell['note']}."
        for _, cell in cells[cells["method"].isin(names)].iterrows()
    ]
