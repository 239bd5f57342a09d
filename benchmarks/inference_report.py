"""Table and figure of the record that benchmarks/inference.py writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from inference import NETWORKS, SIZES, key, plan, predicted
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from ir_peft.figure_style import new_figure, save_figure, style
from ir_peft.files import write_text

LABELS = {"convolution": "one convolution", "dat_light": "DAT-light", "hat": "HAT"}
INKS = {"convolution": "#666666", "dat_light": "#0072b2", "hat": "#d55e00"}
LIMIT = 0.02  # dB that seams may cost.


def table(record: dict[str, Any], gpu: bool) -> pd.DataFrame:
    """One line a (network, mode, size): measured where the record has it, else predicted.

    A network whose single tile has not been measured has no line.
    """
    rows = {key(row): row for row in record["rows"]}
    ready = [n for n in NETWORKS if f"{n}-tensor-{SIZES[0]:g}" in rows]
    lines = []
    for name in plan(complete=True):
        network, mode, size = name.split("-")
        if network not in ready:
            continue
        guess = predicted(record["rows"], network, mode, float(size), gpu)
        row = rows.get(name, guess)
        seconds = "seconds" if gpu else "cpu_seconds"
        line = {"network": network, "mode": mode, "megapixels": row["pixels"] / 1e6}
        line |= {"measured": name in rows, "tiles": row["tiles"], "seconds": row[seconds]}
        line |= {"per_megapixel": row[seconds] / row["pixels"] * 1e6}
        line |= {"peak": row["peak_bytes"] / 2**30, "device_peak": row.get("device_peak_bytes", 0)}
        line |= {"buffers": sum(row["buffers"].values()) / 2**30}
        line |= {"predicted_peak": guess["peak_bytes"] / 2**30, "predicted_seconds": guess[seconds]}
        lines.append(line)
    return pd.DataFrame(lines)


def markdown(lines: pd.DataFrame, record: dict[str, Any], gpu: bool) -> str:
    """What was measured and what 12 megapixels take as Markdown, then what seams cost."""
    unit = "seconds" if gpu else "processor seconds"
    loads = [row["load"] for row in record["rows"]]
    out = [
        f"| network | result | image [MP] | tiles | {unit} / MP | total | peak [GiB] "
        "| of it image buffers | status |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for r in lines[lines["measured"] | (lines["megapixels"] > 11)].itertuples():
        mode = {"tensor": "float32 in memory", "file": "PNG, row by row"}[r.mode]
        out.append(
            f"| {LABELS[r.network]} | {mode} | {r.megapixels:.2f} | {r.tiles} "
            f"| {r.per_megapixel:,.1f} | {_duration(r.seconds)} | {r.peak:.2f} | {r.buffers:.2f} "
            f"| {'measured' if r.measured else 'predicted'} |"
        )
    out += [
        "",
        f"Measured on {record['device']}, torch {record['versions']['torch']}. Input as given, "
        f"result x{record['scale']} on each side; tiles of at most 256 pixels, overlap "
        f"{record['overlap']}. Load average while measuring: {min(loads):.1f} to "
        f"{max(loads):.1f}. " + _checked(lines),
    ]
    if record["seams"]:
        out += ["", *_seams(record)]
    return "\n".join(out) + "\n"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:,.0f} s"


def _checked(lines: pd.DataFrame) -> str:
    """How far measured rows are from what is predicted of them."""
    measured = lines[lines["measured"] & (lines["megapixels"] > 0.07)]
    if measured.empty:
        return "No prediction has been checked."
    gap = (measured["peak"] - measured["predicted_peak"]) * 1024
    text = (
        f"{len(measured)} measured peaks lie {gap.min():+.0f} to {gap.max():+.0f} MiB from the "
        "predicted ones (the peak of one tile of 256 pixels + the image's buffers; smaller tiles "
        "take less)."
    )
    heavy = measured[measured["network"] != "convolution"]
    if len(heavy):
        ratio = heavy["seconds"] / heavy["predicted_seconds"]
        text += (
            f" Measured times are {ratio.min():.2f} to {ratio.max():.2f} of those predicted from "
            "one tile (without the convolution, whose time is the blending)."
        )
    return text


def _seams(record: dict[str, Any]) -> list[str]:
    """Lines on what seams and missing context cost, a line a (backbone, tile, overlap)."""
    frame = pd.DataFrame(record["seams"])
    frame["seam"] = frame["psnr_widest"] - frame["psnr"]
    frame["total"] = frame["psnr"] - frame["psnr_whole"]
    out = [
        "Seams: photographs of photos6, PSNR-Y against the original. `loss` is against the widest "
        "overlap: mean over the photographs, and the largest absolute value (another overlap moves "
        "the tiles as well). `tiles - whole` is the mean difference to the image in one piece. RMS "
        "differences to the image in one piece, on 255 levels, tell cuts from context: less than "
        f"{record['near']} input pixels from a cut a tile lacks what is beyond it; farther away "
        "it differs only because the network averages channels over a tile, not the image.",
        "",
        "| backbone | tile | photographs | overlap | loss, mean [dB] | loss, largest [dB] "
        "| tiles - whole [dB] | RMS near cuts | RMS far from cuts | largest difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (backbone, tile, overlap), group in frame.groupby(["backbone", "tile", "overlap"]):
        far = 255 * group["rmse_far"].astype(float).mean()
        out.append(
            f"| {backbone} | {tile} | {len(group)} | {overlap} | {group['seam'].mean():+.4f} "
            f"| {group['seam'].abs().max():.4f} | {group['total'].mean():+.4f} "
            f"| {255 * group['rmse_near'].mean():.2f} | {'–' if far != far else f'{far:.2f}'} "
            f"| {255 * group['max_difference'].max():.0f} |"
        )
    for (backbone, tile), group in frame.groupby(["backbone", "tile"]):
        by_overlap = group.groupby("overlap")["seam"]
        words = [
            f"{what} from an overlap of {_first_below(worst)} on"
            for what, worst in (
                ("on the mean", by_overlap.mean().abs()),
                ("on every photograph", by_overlap.agg(lambda seam: seam.abs().max())),
            )
        ]
        out += ["", f"{backbone}, tiles of {tile}: below {LIMIT} dB {', '.join(words)}."]
    return out


def _first_below(worst: pd.Series) -> int:
    """The smallest overlap from which on all stay below the limit."""
    return next(o for o in worst.index if (worst[worst.index >= o] < LIMIT).all())


def figure(lines: pd.DataFrame, gpu: bool) -> Figure:
    """Time a megapixel and peak memory against the size; filled is measured, hollow predicted."""
    peak = "device_peak" if gpu and (lines["device_peak"] > 0).all() else "peak"
    lines = lines.assign(device_peak=lines["device_peak"] / 2**30)
    with style():
        fig, axes = new_figure(4.3, 10, ncols=2)
        time, memory = axes[0]
        for (network, mode), group in lines.groupby(["network", "mode"], sort=False):
            for ax, column in ((time, "per_megapixel"), (memory, peak)):
                if ax is time and mode == "file":
                    continue
                dashes, marker = ("-", "o") if mode == "tensor" else ("--", "s")
                ax.plot(
                    group["megapixels"],
                    group[column],
                    dashes,
                    color=INKS[network],
                    lw=1.4,
                    zorder=2,
                )
                for measured, face in ((True, INKS[network]), (False, "white")):
                    some = group[group["measured"] == measured]
                    ax.plot(
                        some["megapixels"], some[column], marker, color=INKS[network], ms=6.5,
                        mfc=face, mew=1.4, zorder=3 + measured,
                    )  # fmt: skip
        for ax in axes[0]:
            ax.set_xscale("log")
            ax.set_xticks([0.1, 0.25, 0.5, 1, 2, 4, 8, 12])
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.minorticks_off()
            ax.set_xlabel("input image [megapixels], result x4 on each side")
        time.set_yscale("log")
        time.minorticks_off()
        time.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        time.set_title("time")
        time.set_ylabel(f"{'seconds' if gpu else 'processor seconds'} per megapixel")
        memory.set_title("peak memory" + (" of the GPU" if peak == "device_peak" else ""))
        memory.set_ylabel("peak [GiB]")
        memory.set_ylim(0)
        shown = list(dict.fromkeys(lines["network"]))
        handles = [Line2D([], [], color=INKS[n], lw=1.4, label=LABELS[n]) for n in shown]
        handles += [
            Line2D([], [], color="#333333", ls="-", marker="o", label="result as float32"),
            Line2D([], [], color="#333333", ls="--", marker="s", label="PNG, row by row"),
            Line2D([], [], color="#333333", ls="", marker="o", label="measured"),
            Line2D([], [], color="#333333", ls="", marker="o", mfc="white", label="predicted"),
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=9)
    return fig


def write(record: dict[str, Any], out: Path, gpu: bool) -> None:
    """Writes benchmarks/inference[-cuda].md and figures/inference[-cuda].png, .svg below `out`."""
    lines = table(record, gpu)
    if lines.empty:
        print("no network's single tile is measured yet: no table, no figure")
        return
    name = "inference-cuda" if gpu else "inference"
    write_text(out / "benchmarks" / f"{name}.md", markdown(lines, record, gpu))
    save_figure(figure(lines, gpu), out / "figures", name)
