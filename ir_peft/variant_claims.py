"""Claims on AdaptIR's tables of variants: ablation, size, and the methods of Hugging Face peft.

The paper's numbers of its ablations are not known to us: our rows are compared with each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .verdicts import Claim, beside, chance, leads, seeds_spread, verdict

if TYPE_CHECKING:
    import pandas as pd

ABLATION = {
    "Each of the three branches counts": ("lim_fam", "lim_cgm", "fam_cgm"),
    "Three branches lead one alone": ("lim", "fam", "cgm"),
    "The ensemble of the branches helps": ("no_ensemble",),
    "CGM is worth more than dense convolutions": ("dense_no_cgm",),
    "Parallel to the FFN is the best place": (
        "mlp_sequential", "attention_parallel", "attention_sequential",
    ),
}  # fmt: skip
"""What the paper's ablations are to show: claim -> the variants that AdaptIR leads."""


def ablation_claims(frame: pd.DataFrame, images: pd.DataFrame) -> list[Claim]:
    """Check what the paper's ablations are to show; as :func:`ir_peft.adaptir_claims.claims`."""
    rows = frame.set_index("row")
    found = [leads(rows, "adaptir", variants, title) for title, variants in ABLATION.items()]
    return [*found, depthwise_is_free(rows)]


def depthwise_is_free(rows: pd.DataFrame) -> Claim:
    """Depthwise convolutions are no worse than dense ones, which have more parameters."""
    title = "Depthwise convolutions cost nothing against dense ones"
    psnr = rows["psnr"].dropna()
    run = [row for row in ("dense_lim", "dense_fam") if row in psnr]
    if "adaptir" not in psnr or not run:
        return None, f"{title}: needs adaptir and dense_lim or dense_fam"
    spread = seeds_spread(rows, "adaptir")
    cost = psnr[run] - psnr["adaptir"]
    size = rows["trainable"] - rows.loc["adaptir", "trainable"]
    listed = [
        f"{rows['label'][row]} {cost[row]:+.2f} dB for {size[row]:+,.0f} values" for row in run
    ]
    text = f"{title}: {', '.join(listed)}"
    text += f"; the seeds' spread is {spread:.2f} dB" if spread == spread else ""
    return bool(cost.max() <= chance(spread)), text


def scaling_claims(frame: pd.DataFrame, images: pd.DataFrame) -> list[Claim]:
    """Check what the paper's figure of PSNR against size shows; as ``claims``."""
    run = frame[frame["psnr"].notna()].sort_values("trainable")
    curves = {
        method: part
        for method, part in run.groupby("method", sort=False)
        if len(part) > 1 and method not in ("frozen", "full")
    }
    if "adaptir" not in curves or len(curves) < 2:
        return [(None, "AdaptIR leads at every size: needs two sizes of it and of another method")]
    return [leads_at_every_size(curves), gains_most_from_size(curves)]


def leads_at_every_size(curves: dict[str, pd.DataFrame]) -> Claim:
    """AdaptIR leads the best of the others, read off their lines at AdaptIR's sizes."""
    title = "AdaptIR leads at every size"
    ahead, listed, alone, spread = [], [], [], _spread(curves)
    for _, point in curves["adaptir"].iterrows():
        size, best = np.log(point["trainable"]), {}
        for method, part in curves.items():
            # Below its smallest size a method counts with that size, beyond its largest not at all.
            if method != "adaptir" and point["trainable"] <= part["trainable"].max():
                best[_name(part)] = np.interp(size, np.log(part["trainable"]), part["psnr"])
        if best:
            name = max(best, key=best.get)
            ahead.append(point["psnr"] - best[name])
            listed.append(f"{ahead[-1]:+.2f} dB at {point['trainable']:,.0f} values ({name})")
        else:
            alone.append(f"{point['trainable']:,.0f}")
    if not ahead:
        return None, f"{title}: no other method was run at its sizes"
    text = f"{title}: against the best of the others on the lines between their points "
    text += ", ".join(listed)
    text += f"; no other was run at {', '.join(alone)}" if alone else ""
    text += f"; the seeds' spread is {spread:.2f} dB" if spread == spread else ""
    return verdict(ahead, spread), text


def gains_most_from_size(curves: dict[str, pd.DataFrame]) -> Claim:
    """Over the sizes that all have, read off their lines, AdaptIR gains more than the others."""
    sizes = {method: np.log(part["trainable"]) for method, part in curves.items()}
    ends = [max(map(min, sizes.values())), min(map(max, sizes.values()))]
    if ends[0] >= ends[1]:
        return None, "AdaptIR gains most from size: the methods have no sizes in common"
    gains = {
        method: np.diff(np.interp(ends, sizes[method], part["psnr"]))[0]
        for method, part in curves.items()
    }
    lead = gains["adaptir"] - max(gain for method, gain in gains.items() if method != "adaptir")
    listed = ", ".join(f"{_name(curves[method])} {gain:+.2f}" for method, gain in gains.items())
    text = f"AdaptIR gains most from size: {beside(lead, _spread(curves), 'the next')}; "
    low, high = np.exp(ends)
    return verdict(
        [lead], _spread(curves)
    ), f"{text}from {low:,.0f} to {high:,.0f} values {listed} dB"


def _name(curve: pd.DataFrame) -> str:
    """A method's name: the label of one of its sizes without the size."""
    return curve["label"].iloc[0].split(",")[0]


def _spread(curves: dict[str, pd.DataFrame]) -> float:
    """The largest spread over seeds of any point [dB]; NaN where no point has several seeds."""
    spreads = [part["psnr_spread"].max() for part in curves.values()]
    return max((spread for spread in spreads if spread == spread), default=float("nan"))


def peft_claims(frame: pd.DataFrame, images: pd.DataFrame) -> list[Claim]:
    """Set the methods of Hugging Face peft beside ours; as ``claims``."""
    rows = frame.set_index("row")
    psnr, label, size = rows["psnr"].dropna(), rows["label"], rows["trainable"]
    theirs = [row for row in psnr.index if rows.loc[row, "method"] == "peft"]
    if not theirs or not {"lora", "adaptir"} <= set(psnr.index):
        return [(None, "AdaptIR leads the methods of Hugging Face peft: needs lora, adaptir, peft")]
    found = []
    best = psnr[theirs].idxmax()
    for us in ("adaptir", "lora"):
        lead, spread = psnr[us] - psnr[best], seeds_spread(rows, us)
        text = f"{label[us]} ({size[us]:,.0f} values) leads the best method of Hugging Face peft: "
        text += beside(lead, spread, f"{label[best]} ({size[best]:,.0f} values)")
        found.append((verdict([lead], spread), text))
    if "peft_lora" in psnr:
        apart, spread = psnr["lora"] - psnr["peft_lora"], seeds_spread(rows, "lora")
        text = f"LoRA is the same in both libraries: ours less theirs {beside(apart, spread)}"
        found.append((bool(abs(apart) <= chance(spread)), text))
    if "frozen" in psnr:
        low = psnr[theirs].idxmin()
        lead = psnr[low] - psnr["frozen"]
        text = f"Every method of Hugging Face peft beats the frozen backbone: least {label[low]}, "
        found.append((verdict([lead], float("nan")), text + f"{lead:+.2f} dB"))
    return found
