"""Writes results/tables/adaptir-parameters.md: sizes of the AdaptIR paper's methods, three times.

`formula` from the layers' widths alone, `ours` from the built models (on torch's meta device, so no
weight is allocated), `paper` as printed in the first version for IPT.

    python tools/count_parameters.py
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import torch

import ir_peft

RESULTS = Path(__file__).parents[1] / "results"
TABLE = RESULTS / "tables" / "adaptir-parameters.md"

BOTTLENECK = "N*(2*d*b + b + d)"
FORMULAS = {
    "vpt": "N*n*d",
    "houlsby": BOTTLENECK,
    "lora": "r*W",
    "adaptformer": BOTTLENECK,
    "ssf": "2*O",
    "fact": "2*d*r + r**3 + K*r",
    "adaptir": "N*(2*d*h + 12*h + h*r + 9*r + 2*h*(h//2) + h//2 + 2*h*m + m + 2)",
    "bitfit": "O",
}
"""N sites of d channels, n prompts, bottleneck b, rank r, K blocks of d x d, W inputs and outputs
of all layers, O outputs; h, r, m AdaptIR's widths."""

SIZES = {
    "ipt": {
        "vpt": {"N": "24", "n": "64", "d": "576"},
        "houlsby": {"N": "48", "b": "12", "d": "576"},
        "lora": {"r": "12", "W": "72*(576 + 576)"},
        "adaptformer": {"N": "24", "b": "24", "d": "576"},
        "ssf": {"O": "12*(11 + 16)*576"},
        "fact": {"r": "76", "K": "36*4", "d": "576"},
        "adaptir": {"N": "24", "d": "576", "h": "24", "r": "12", "m": "3"},
        "bitfit": {"O": "12*(7 + 8)*576"},
    },
    "ipt_mini": {
        "vpt": {"N": "6", "n": "64", "d": "108"},
        "houlsby": {"N": "12", "b": "2", "d": "108"},
        "lora": {"r": "12", "W": "18*(108 + 108)"},
        "adaptformer": {"N": "6", "b": "4", "d": "108"},
        "ssf": {"O": "3*(11 + 16)*108"},
        "fact": {"r": "14", "K": "9*4", "d": "108"},
        "adaptir": {"N": "6", "d": "108", "h": "4", "r": "2", "m": "1"},
        "bitfit": {"O": "3*(7 + 8)*108"},
    },
    "edt_b": {
        "houlsby": {"N": "72", "b": "6", "d": "180"},
        "lora": {"r": "4", "W": "36*(180 + 540 + 180 + 180)"},
        "adaptformer": {"N": "36", "b": "12", "d": "180"},
        "ssf": {"O": "36*(540 + 180 + 360 + 180 + 2*180)"},
        "fact": {"r": "53", "K": "36*4", "d": "180"},
        "adaptir": {"N": "36", "d": "180", "h": "12", "r": "6", "m": "3"},
        "bitfit": {"O": "36*(540 + 180 + 360 + 180 + 2*180)"},
    },
    "dat_light": {
        "houlsby": {"N": "36", "b": "8", "d": "60"},
        "lora": {"r": "3", "W": "18*(60 + 180 + 60 + 60 + 60 + 120 + 60 + 60)"},
        "adaptformer": {"N": "18", "b": "16", "d": "60"},
        "ssf": {"O": "18*(180 + 60 + 120 + 60 + 2*60)"},
        "fact": {"r": "30", "K": "18*(3 + 1 + 2 + 1)", "d": "60"},
        "adaptir": {"N": "18", "d": "60", "h": "12", "r": "6", "m": "3"},
        "bitfit": {"O": "18*(180 + 60 + 120 + 60 + 2*60)"},
    },
}
"""The letters of each method's formula on each backbone."""

PAPER = {
    "full": "Full-ft",
    "vpt": "VPT",
    "houlsby": "Adapter",
    "lora": "LoRA",
    "adaptformer": "AdaptFormer",
    "ssf": "SSF",
    "fact": "FacT",
    "adaptir": "AdaptIR",
}
"""Names of the methods in the paper's table."""


def evaluate(method: str, sizes: dict[str, str]) -> int:
    """The formula of `method` at the given sizes; both are text of this file."""
    plain = {"__builtins__": {}}
    return eval(FORMULAS[method], plain, {k: eval(v, plain) for k, v in sizes.items()})


@cache
def build(backbone: str, method: str) -> int:
    """Trainable parameters of `method` attached to `backbone` with its own defaults."""
    with torch.device("meta"):
        model = ir_peft.attach_adapter(ir_peft.create_backbone(backbone), method)
    return ir_peft.count_parameters(model)[0]


def printed() -> dict[str, int]:
    """The sizes on IPT in the paper's table of the hybrid task, rounded as there."""
    with (RESULTS / "paper_numbers.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            r for r in csv.DictReader(file) if (r["backbone"], r["paper"]) == ("ipt", "adaptir")
        ]
    numbers = {r["method"]: r["params"] for r in rows if r["task"] == "lr4_noise30" and r["params"]}
    return {method: int(numbers[name]) for method, name in PAPER.items()}


def table() -> str:
    """The table in Markdown."""
    paper = printed()
    lines = [
        "Trainable parameters of each method with its defaults. `paper`: as printed in v1 for IPT; "
        "AdaptIR's is of the module of v1, ours of v2.",
        "",
        "| backbone | method | formula | with | gives | ours | paper |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for backbone, methods in SIZES.items():
        reported = paper if backbone == "ipt" else {}
        for method in ["frozen", "full", *methods]:
            ours = build(backbone, method)
            formula, sizes, gives = "", "", ""
            if method in FORMULAS:
                formula = f"`{FORMULAS[method]}`"
                sizes = f"`{', '.join(f'{k} = {v}' for k, v in methods[method].items())}`"
                gives = f"{evaluate(method, methods[method]):,}"
            thousands = reported.get(method, 0) // 1000
            short = f"{thousands // 1000}M" if thousands >= 1000 else f"{thousands}K"
            in_paper = short if thousands else ""
            cells = [backbone, method, formula, sizes, gives, f"{ours:,}", in_paper]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    print(TABLE)
