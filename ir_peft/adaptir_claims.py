"""The AdaptIR paper's claims, checked on a table of methods."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from .verdicts import RESOLUTION, SEEDS, Claim, beside, leads, seeds_spread, verdict

if TYPE_CHECKING:
    import pandas as pd

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
"""The paper's name of a row. Its heads and tails are frozen, so rows with a tail have none."""

PEFT = ("vpt", "bitfit", "lora", "houlsby", "adaptformer", "ssf", "fact", "adaptir")
SAME_SIZE = 0.1
"""Methods of the same size differ by this share of parameters at most."""


def claims(frame: pd.DataFrame, images: pd.DataFrame) -> list[Claim]:
    """Check the AdaptIR paper's claims on a table: (holds, sentence); None where it is open.

    Args:
        frame: From :func:`ir_peft.results.table`.
        images: From :func:`ir_peft.results.per_image`, for the number of images behind a lead.
    """
    rows = frame.set_index("row")
    found = [first_of_its_size(rows, images, "")]
    if rows.index.str.endswith("_tail").any():
        found += [first_of_its_size(rows, images, "_tail"), body_before_tail(rows)]
    found += [same_order(rows), full_leads(rows), all_beat_frozen(rows)]
    # Two claims are checked only where the paper's own table bears them out.
    paper = published(rows).mean(axis=1).drop("full", errors="ignore")
    if "frozen" in paper and paper.min() < paper["frozen"]:
        found.append(only_adaptir_is_stable(rows))
    if len(paper) > 2 and paper.drop("frozen", errors="ignore").idxmin() == "ssf":
        found.append(ssf_is_last(rows))
    return found


def published(rows: pd.DataFrame) -> pd.DataFrame:
    """The paper's PSNR of the rows that it and we have, without sets that hold a probable typo."""
    sets = [column for column in rows if column.startswith("paper ")][1:-1]
    if not sets:
        return rows.loc[[], []]
    known = [row for row in PAPER_NAMES if row in rows.index]
    run = rows.loc[known].dropna(subset=["psnr", *sets])
    flags = " ".join(run["paper flags"]).split()
    return run[[column for column in sets if column.removeprefix("paper ") not in flags]]


def in_paper(gaps: pd.Series) -> str:
    """A row's lead in the paper's sets, as text."""
    if len(gaps) == 1:
        return f"{gaps.iloc[0]:+.2f} dB in the paper's set"
    return f"{gaps.min():+.2f} to {gaps.max():+.2f} dB in the paper's sets"


def first_of_its_size(rows: pd.DataFrame, images: pd.DataFrame, end: str) -> Claim:
    """AdaptIR leads every method of its size; ``end`` is ``_tail`` for the rows with a tail."""
    title = "AdaptIR is first among the PEFT methods of its size "
    title += "(with the tail)" if end else "(alone)"
    us, psnr = f"adaptir{end}", rows["psnr"].dropna()
    planned = [row + end for row in PEFT if row + end in rows.index]
    missing = ", ".join(row for row in planned if row not in psnr)
    others = [row for row in planned if row in psnr and row != us]
    if us not in psnr or not others:
        return None, f"{title}: needs {missing}"
    near = (rows.loc[others, "trainable"] / rows.loc[us, "trainable"] - 1).abs() <= SAME_SIZE
    peers = near[near].index if near.any() else others
    best = psnr[peers].idxmax()
    lead, spread = psnr[us] - psnr[best], seeds_spread(rows, us, best)
    wins = int((images[us] > images[best]).drop("mean").sum())
    text = f"{title}: {beside(lead, spread, rows['label'][best])}, "
    text += f"ahead on {wins} of {len(images) - 1} images"
    ahead = [row for row in others if row not in peers and psnr[row] - psnr[us] > RESOLUTION]
    if ahead:
        listed = (f"{rows['label'][row]} {psnr[row] - psnr[us]:+.2f} dB" for row in ahead)
        text += f"; ahead at another size: {', '.join(listed)}"
    return verdict([lead], spread), text + (f"; not run: {missing}" if missing else "")


def body_before_tail(rows: pd.DataFrame) -> Claim:
    """AdaptIR in the body, the tail frozen, does more than training the tail."""
    holds, text = leads(rows, "adaptir", ["tail"], "AdaptIR alone leads the trained tail alone")
    psnr = rows["psnr"].dropna()
    if {"adaptir", "tail", "adaptir_tail"} <= set(psnr.index):
        text += f"; the tail adds {psnr['adaptir_tail'] - psnr['adaptir']:+.2f} dB to AdaptIR, "
        text += f"AdaptIR {psnr['adaptir_tail'] - psnr['tail']:+.2f} dB to the tail"
    return holds, text


def same_order(rows: pd.DataFrame) -> Claim:
    """Our order of the methods is that of the paper's mean over its sets."""
    title = "Order of the methods as in the paper's mean"
    paper, psnr, label = published(rows).mean(axis=1), rows["psnr"], rows["label"]
    if len(paper) < 2:
        return None, f"{title}: no published numbers for two of the rows run"
    paper = paper.sort_values(ascending=False, kind="stable")
    pairs = [(a, b) for a, b in combinations(paper.index, 2) if paper[a] - paper[b] > 1e-6]
    turned = [(a, b) for a, b in pairs if psnr[a] <= psnr[b]]
    turned.sort(key=lambda pair: paper[pair[1]] - paper[pair[0]])
    text = f"{title}: {len(pairs) - len(turned)} of {len(pairs)} pairs agree"
    if turned:
        text += ", not " + ", ".join(f"{label[a]} > {label[b]}" for a, b in turned[:4])
        text += f" and {len(turned) - 4} more" if len(turned) > 4 else ""
    order = label[paper.index[0]]
    for a, b in zip(paper.index, paper.index[1:], strict=False):
        order += f" {'>' if (a, b) in pairs else '='} {label[b]}"
    return not turned, f"{text}; the paper: {order}"


def full_leads(rows: pd.DataFrame) -> Claim:
    """Full fine-tuning leads AdaptIR, as it does in the paper's hybrid table."""
    title = "Full fine-tuning leads AdaptIR alone"
    psnr, paper = rows["psnr"].dropna(), published(rows)
    if not {"full", "adaptir"} <= set(psnr.index):
        return None, f"{title}: needs full and adaptir"
    gap, spread = psnr["full"] - psnr["adaptir"], seeds_spread(rows, "full", "adaptir")
    text = f"{title}: {beside(gap, spread)}"
    if {"full", "adaptir"} <= set(paper.index):
        text += f"; {in_paper(paper.loc['full'] - paper.loc['adaptir'])}"
    return verdict([gap], spread), text


def all_beat_frozen(rows: pd.DataFrame) -> Claim:
    """No adapter is below the frozen backbone."""
    title = "Every adapter beats the frozen backbone"
    psnr = rows["psnr"].dropna()
    run = [row for row in PEFT if row in psnr]
    if "frozen" not in psnr or not run:
        return None, f"{title}: needs frozen and an adapter"
    low = psnr[run].idxmin()
    lead = psnr[low] - psnr["frozen"]
    text = f"{title}: least {rows['label'][low]}, {lead:+.2f} dB"
    return verdict([lead], float("nan")), text


def only_adaptir_is_stable(rows: pd.DataFrame) -> Claim:
    """On a single degradation other methods fall below the frozen backbone, AdaptIR does not."""
    title = "AdaptIR is stable, other PEFT methods are not (they fall below the frozen backbone)"
    psnr, paper = rows["psnr"].dropna(), published(rows).mean(axis=1)
    run = psnr[[row for row in ("frozen", *PEFT) if row in psnr]]
    if not {"frozen", "adaptir"} <= set(run.index) or len(run) < 3:
        return None, f"{title}: needs frozen, adaptir and another method"
    over = run - run["frozen"]
    below = over.drop("adaptir") < -SEEDS
    holds = bool(over["adaptir"] > -SEEDS and below.any())
    text = f"{title}: {_above_and_below(rows, run)}"
    text += f"; in the paper's mean {_above_and_below(rows, paper.drop('full', errors='ignore'))}"
    return holds, text


def _above_and_below(rows: pd.DataFrame, psnr: pd.Series) -> str:
    """How far AdaptIR is over the frozen backbone, and which methods are below it."""
    over = psnr - psnr["frozen"]
    low = over[over < -RESOLUTION]
    listed = ", ".join(f"{rows['label'][row]} {value:+.2f} dB" for row, value in low.items())
    return f"AdaptIR {over['adaptir']:+.2f} dB, below {listed or 'none'}"


def ssf_is_last(rows: pd.DataFrame) -> Claim:
    """SSF is far behind the paper's other methods."""
    title = "SSF is far behind the paper's other methods"
    psnr, paper = rows["psnr"].dropna(), published(rows)
    others = [row for row in PEFT if row in paper.index and row != "ssf"]
    low = psnr[others].idxmin()
    lag = psnr["ssf"] - psnr[low]
    text = f"{title}: {lag:+.2f} dB against the last of them, {rows['label'][low]}; "
    text += in_paper(paper.loc["ssf"] - paper.loc[others].min())
    return verdict([-lag], float("nan")), text
