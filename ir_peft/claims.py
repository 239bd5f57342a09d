"""What stands above and under a table: where its numbers come from, and what they say.

Every sentence is computed from the records and from ``results/paper_numbers.csv``.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# The paper's name of a row. Its heads and tails are frozen, so rows with a tail have none.
PAPER_NAMES = {
    "frozen": "Pretrain",
    "full": "Full-ft",
    "vpt": "VPT",
    "lora": "LoRA",
    "houlsby": "Adapter",
    "adaptformer": "AdaptFormer",
    "ssf": "SSF",
    "fact": "FacT",
    "adaptir": "AdaptIR",
}


def head(records: pd.DataFrame, frame: pd.DataFrame) -> str:
    """The line above a table: backbone, images, metric, training, device, commit, date, scale."""

    def all_of(column: str) -> str:
        return ", ".join(str(value) for value in sorted(set(records[column].dropna())))

    one = records.iloc[0]
    images = list(dict.fromkeys(records["image"]))
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
    commits = ", ".join(sorted({commit[:7] for commit in records["commit"]}))
    dirty = " (with uncommitted changes)" if records["dirty"].any() else ""
    days = sorted({date[:10] for date in records["date"]})
    text = (
        f"Backbone `{one['backbone']}`{size}, task `{one['task']}`. "
        f"Test images: {one['test_set']} ({', '.join(images)}), {crop}; "
        f"values are means over these {len(images)} images. "
        f"Metric: {'Y' if one['channel'] == 'y' else 'RGB'} channel, border of "
        f"{one['crop_border']} px removed, outputs {rounded}, SSIM window {one['window']}. "
        f"Training: {one['steps']} steps, batch {one['batch_size']}, input patches "
        f"{one['lq_size']} px, learning rate {rates}, seeds {all_of('seed')}. "
        f"Memory: {all_of('peak_memory_what') or 'not measured'}. Device: {all_of('device')}. "
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
    if any(column.startswith("paper ") for column in frame):
        text += (
            " Paper columns: PSNR-Y of the paper's first version (v1) on IPT, 119 M parameters; "
            "the AdaptIR module here is that of the second version (v2)."
        )
    return text


def claims(frame: pd.DataFrame, images: pd.DataFrame) -> list[tuple[bool | None, str]]:
    """Check the AdaptIR paper's claims on a table: (holds, sentence); None where rows are missing.

    Args:
        frame: From :func:`table`.
        images: From :func:`per_image`, for the number of images behind a lead.
    """
    rows = frame.set_index("row")
    label, psnr = rows["label"], rows["psnr"].dropna()
    found: list[tuple[bool | None, str]] = []
    peft = [row for row in ("bitfit", "lora", "houlsby", "adaptformer", "adaptir") if row in label]

    for end, kind in (("", "alone"), ("_tail", "with the tail")):
        us, run = f"adaptir{end}", [row + end for row in peft if row + end in psnr]
        missing = [row + end for row in peft if row + end not in psnr]
        claim = f"AdaptIR is first among the PEFT methods ({kind})"
        if us in run and len(run) > 1:
            best = psnr[run].drop(us).idxmax()
            wins = int((images[us] > images[best]).sum() - (psnr[us] > psnr[best]))
            text = (
                f"{claim}: {psnr[us] - psnr[best]:+.2f} dB against {label[best]}, ahead on {wins}"
            )
            text += f" of {len(images) - 1} images"
            text += f"; not run: {', '.join(missing)}" if missing else ""
            found.append((bool(psnr[us] > psnr[best]), text))
        else:
            found.append((None, f"{claim}: needs {', '.join(missing)}"))

    sets = [column for column in frame if column.startswith("paper ")][1:-1]
    known = [
        row for row in PAPER_NAMES if row in psnr and sets and rows[sets].notna().all(axis=1)[row]
    ]
    if len(known) > 1:
        flags = " ".join(rows.loc[known, "paper flags"]).split()
        clean = [column for column in sets if column.removeprefix("paper ") not in flags]
        paper = rows.loc[known, clean].mean(axis=1)
        pairs = list(combinations(known, 2))
        turned = [(a, b) for a, b in pairs if (paper[a] > paper[b]) != (psnr[a] > psnr[b])]
        order = " > ".join(label[row] for row in paper.sort_values(ascending=False).index)
        text = f"Order of the methods as in the paper's mean ({order}): "
        text += f"{len(pairs) - len(turned)} of {len(pairs)} pairs agree"
        if turned:
            text += ", not " + ", ".join(f"{label[a]} / {label[b]}" for a, b in turned)
        found.append((not turned, text))
    else:
        found.append((None, "Order of the methods: no published numbers for two of the rows run"))

    if {"full", "adaptir"} <= set(psnr.index):
        gap = psnr["full"] - psnr["adaptir"]
        text = f"Full fine-tuning leads AdaptIR alone: by {gap:+.2f} dB here"
        if {"full", "adaptir"} <= set(known):
            gaps = rows.loc["full", clean] - rows.loc["adaptir", clean]
            text += f", by {gaps.min():.2f} to {gaps.max():.2f} dB in the paper's sets"
        found.append((bool(gap > 0), text))
    else:
        found.append((None, "Full fine-tuning leads AdaptIR: needs full and adaptir"))

    run = [row for row in peft if row in psnr]
    if "frozen" in psnr and run:
        low = psnr[run].idxmin()
        text = f"Every adapter beats the frozen backbone: least {label[low]}, "
        found.append(
            (bool(psnr[low] > psnr["frozen"]), text + f"{psnr[low] - psnr['frozen']:+.2f} dB")
        )
    return found


ADAIR_PAIRS = {
    ("adair", "frozen"): "The adapter improves the base",
    ("adair", "scratch"): "It beats a model trained from scratch in as many steps",
    ("full", "adair"): "Full fine-tuning of the base leads it",
    ("adair", "lora"): "It leads LoRA of nearly its size",
    ("adair", "all_full"): "It beats one model for all tasks",
    ("adair", "all_adair"): "It beats one adapter for all tasks",
}
"""What the AdaIR paper's idea leads one to expect: (better row, other row) -> the expectation."""


def adair_claims(frame: pd.DataFrame, images: pd.DataFrame) -> list[tuple[bool | None, str]]:
    """Check those expectations on a table where its rows were run; as `claims`."""
    psnr = frame.set_index("row")["psnr"].dropna()
    found: list[tuple[bool | None, str]] = []
    for (better, other), text in ADAIR_PAIRS.items():
        if {better, other} <= set(psnr.index):
            wins = int((images[better] > images[other]).drop("mean").sum())
            lead = psnr[better] - psnr[other]
            ahead = f"by {lead:+.2f} dB, on {wins} of {len(images) - 1} images"
            found.append((bool(lead > 0), f"{text}: {ahead}"))
    return found


CLAIMS = {"adaptir": claims, "adair": adair_claims}
"""The claims that are checked under a table, by paper."""


def foot(
    frame: pd.DataFrame,
    images: pd.DataFrame,
    numbers: pd.DataFrame,
    task: str,
    paper: str = "adaptir",
) -> list[str]:
    """The lines under a table: the paper's claims, the reach of the tail, the paper's typos."""
    words = {True: "Holds here", False: "Does not hold here", None: "Not checked"}
    checked = CLAIMS[paper](frame, images) if paper in CLAIMS else []
    lines = [f"{words[holds]}: {text}." for holds, text in checked]
    if frame["seeds"].max() == 1:
        lines.append("One seed a row: small differences may be chance.")
    psnr = frame.set_index("row")["psnr"].dropna()
    tails = [row for row in psnr.index if row.endswith("_tail")]
    bare = [row.removesuffix("_tail") for row in tails if row.removesuffix("_tail") in psnr]
    if bare and tails:
        text = (
            f"Measured here: adapters alone {psnr[bare].min():.2f} to {psnr[bare].max():.2f} dB, "
        )
        text += f"with the tail {psnr[tails].min():.2f} to {psnr[tails].max():.2f} dB"
        for row, words_ in (("tail", "the tail alone"), ("bicubic", "bicubic"), ("full", "full")):
            text += f", {words_} {psnr[row]:.2f} dB" if row in psnr else ""
        lines.append(text + ".")
    if "paper flags" in frame:
        names = {PAPER_NAMES[row] for row in frame["row"] if row in PAPER_NAMES}
        typos = numbers[(numbers["flag"] == "probable typo") & (numbers["task"] == task)]
        typos = typos[typos["method"].isin(names)]
        for _, cell in typos.iterrows():
            lines.append(
                f"* Printed so in the paper, {cell['flag']}: {cell['method']} on "
                f"{cell['dataset']} {cell['value']:.2f}, {cell['note']}."
            )
    return lines
