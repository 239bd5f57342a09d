"""ASteISR's pages: both scales and "Left" beside the published numbers, and what training costs.

DataFrames in, Markdown out; every number is from a record, from ``results/stereo_numbers.csv`` or
from ``results/benchmarks``. Nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .records import PAPER_NUMBERS, load_step_costs
from .rendering import spread, to_markdown
from .time_to_psnr import seconds_to_reach

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = PAPER_NUMBERS.with_name("stereo_numbers.csv")
PROTOCOL = (
    "(Left + Right) / 2 is the mean of both views' scores, each of a whole view; Left is the left "
    "view without its first 64 columns, much of which the right view does not see. PSNR [dB] / "
    "SSIM on RGB, outputs rounded to 8 bits, no border, SSIM with a box of 7 x 7."
)
"""How pairs are scored, ours and the published ones."""
PUBLISHED = (
    "Trained on 800 pairs of Flickr1024 and 60 of Middlebury; tested on KITTI 2012 (20 pairs), "
    "KITTI 2015 (20), Middlebury (5, halved) and Flickr1024 (112), low resolution by MATLAB's "
    "bicubic; scored as above. EDSR, RDN and RCAN were trained on these pairs and see single "
    "views. Copied from the "
    "[list of stereo super-resolution](https://github.com/kbr19-thu/Awesome-Stereo-Super-Resolution)"
    ", compared with the "
    "[authors of iPASSR](https://github.com/The-Learning-And-Vision-Atelier-LAVA/Stereo-Image-SR). "
    "The tables of the ASteISR paper are not known to us, so it has no row. Other images and other "
    "sizes of networks than ours: compare rows inside one table only."
)
"""Head of the published numbers."""
CLAIMED = "the abstract of ASteISR has -57 % time and -15 % memory, on HAT-L"


def scores(records: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """PSNR and SSIM by the protocol, as strings: a line a row, columns for each scale.

    Args:
        records: Of one table, from :func:`ir_peft.results.load_records`.
        frames: Task -> table, from :func:`ir_peft.results.table`.

    Returns:
        ``method trainable`` (in the order of the tasks where they differ), then of each task
        ``<task> (L + R) / 2``, ``<task> Left`` and, where the frozen network was run, ``<task> over
        frozen`` [dB].
    """
    import pandas as pd

    every = pd.concat(frames.values(), ignore_index=True)
    shown = every.groupby("row", sort=False)[["label"]].first()
    shown = shown.rename(columns={"label": "method"})
    counts = every.dropna(subset=["trainable"]).groupby("row")["trainable"]
    sizes = counts.unique().map(lambda values: ", ".join(f"{value:,.0f}" for value in values))
    shown["trainable"] = sizes.reindex(shown.index).fillna("")
    for task, frame in frames.items():
        here = frame.set_index("row")
        left = records[records["task"] == task].groupby("row")[["psnr_left64", "ssim_left64"]]
        left = left.mean()
        for row in shown.index:
            if row not in here.index or not here["seeds"][row]:
                cells = "–" if row not in here.index else "not run", "", ""
            else:
                r = here.loc[row]
                gain = r["psnr"] - here["psnr"].get("frozen", float("nan"))
                cells = (
                    f"{spread(r['psnr'], r['psnr_sd'], r['seeds'], 2)} / {_ssim(r['ssim'])}",
                    f"{left['psnr_left64'][row]:.2f} / {_ssim(left['ssim_left64'][row])}",
                    "" if gain != gain else f"{gain:+.2f}",
                )
            names = (f"{task} (L + R) / 2", f"{task} Left", f"{task} over frozen")
            for name, cell in zip(names, cells, strict=True):
                shown.loc[row, name] = cell
    return shown.loc[:, (shown != "").any()].reset_index(drop=True)


def _ssim(value: float) -> str:
    """.7572, as the field prints it."""
    return f"{value:.4f}".removeprefix("0")


def gains(records: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What each trained row gains over the frozen network [dB], as strings: a column a pair."""
    import pandas as pd

    columns = {}
    for task in frames:
        part = records[records["task"] == task]
        wide = part.pivot_table(index="row", columns="image", values="psnr", sort=False)
        if "frozen" in wide.index:
            over = wide - wide.loc["frozen"]
            columns |= {f"{task} {image}": over[image] for image in wide}
    labels = pd.concat(frames.values()).drop_duplicates("row").set_index("row")["label"]
    frame = pd.DataFrame(columns).drop(index=["bicubic", "frozen"], errors="ignore")
    frame = frame.reindex([row for row in labels.index if row in frame.index])
    shown = frame.map("{:+.2f}".format, na_action="ignore").fillna("–")
    shown.insert(0, "method", labels.reindex(shown.index))
    return shown.reset_index(drop=True)


def published(scale: int, path: str | Path = NUMBERS) -> pd.DataFrame:
    """The field's numbers at one scale, as strings; an asterisk marks what is not comparable.

    Returns:
        ``method parameters``, then ``<set>`` (the mean of both views) and ``<set> Left``.

    Raises:
        ValueError: There are no numbers at this scale.
    """
    import pandas as pd

    numbers = pd.read_csv(path, dtype={"flag": str}).fillna({"flag": ""})
    numbers = numbers[numbers["scale"] == scale]
    if numbers.empty:
        raise ValueError(f"{path} has no numbers at x{scale}")
    text = numbers["psnr"].map("{:.2f}".format) + " / " + numbers["ssim"].map(_ssim)
    numbers = numbers.assign(
        cell=text + numbers["flag"].map(lambda flag: "*" if flag else ""),
        column=numbers["dataset"] + numbers["view"].map({"mean": "", "left": " Left"}),
    )
    wide = numbers.pivot(index="method", columns="column", values="cell")
    wide = wide.reindex(numbers["method"].unique())[numbers["column"].unique()].fillna("–")
    sizes = numbers.groupby("method")["params"].first().div(1e6).map("{:.2f}M".format)
    wide.insert(0, "parameters", sizes.reindex(wide.index).replace("nanM", "–"))
    return wide.rename_axis(columns=None).reset_index()


def flags(scale: int, path: str | Path = NUMBERS) -> list[str]:
    """A line for each published number that is not comparable."""
    import pandas as pd

    numbers = pd.read_csv(path).dropna(subset=["flag"])
    marked = numbers[numbers["scale"] == scale]
    return [f"\\* {r.method}, {r.dataset} {r.view}: {r.flag}." for r in marked.itertuples()]


def cost(
    frame: pd.DataFrame, curves: pd.DataFrame, costs: pd.DataFrame | None
) -> tuple[pd.DataFrame, float]:
    """What a training costs, a step and until ASteISR and full fine-tuning are equally good.

    Args:
        frame: One task's table, from :func:`ir_peft.results.table`.
        curves: From :func:`ir_peft.results.load_curves`, of its records.
        costs: From :func:`ir_peft.results.load_step_costs`; None leaves the steps' columns empty.

    Returns:
        Index: the trained rows that were run. Columns: ``label trainable step_seconds time``
        (a step over the neighbouring one of ``full``), ``bytes memory`` (gradients, moments and
        what is saved for backward, and over those of ``full``), ``steps`` until the target (NaN
        where a seed does not reach it), ``first`` (reached at the first validation) and
        ``training`` (steps times step time, over that of ``full``). And the
        target [dB]: the highest validation PSNR that all seeds of ``asteisr`` and ``full`` reach,
        NaN where one of them has none.
    """
    run = frame[frame["psnr"].notna() & (frame["trainable"] > 0)].set_index("row")
    out = run[["label", "trainable"]].copy()
    out[["step_seconds", "time", "bytes", "steps"]], out["first"] = float("nan"), False
    if costs is not None:
        out["step_seconds"] = costs["step_seconds"].reindex(out.index)
        out["time"] = costs["of_full"].reindex(out.index)
        state = 1.5 * costs["optimizer_bytes"]  # Two moments, and as much as one for gradients.
        out["bytes"] = (costs["saved_bytes"] + state).reindex(out.index)
    target = float("nan")
    if "val_psnr" in curves:
        best = curves.groupby(["row", "seed"])["val_psnr"].max().groupby("row").min()
        if {"asteisr", "full"} <= set(best.dropna().index):
            target = best[["asteisr", "full"]].min()
            task = curves["task"].iloc[0]
            reached = seconds_to_reach(curves.assign(seconds=curves["step"]), {task: target})
            reached = reached.set_index("row").reindex(out.index)
            every = best.reindex(out.index) >= target  # All seeds, not the mean of some.
            out["steps"], out["first"] = reached["seconds"].where(every), reached["first"].eq(True)
    full = out.reindex(["full"]).iloc[0]  # NaN where it was not run.
    out["memory"] = out["bytes"] / full["bytes"]
    out["training"] = out["time"] * out["steps"] / full["steps"]
    return out, target


def display_cost(found: pd.DataFrame) -> pd.DataFrame:
    """The first result of :func:`cost` as strings with units."""
    import pandas as pd

    lines = [
        {
            "method": r.label,
            "trainable": f"{r.trainable:,.0f}",
            "step [ms]": _clean(1e3 * r.step_seconds, "{:.0f}"),
            "time of full's": _clean(r.time, "{:.2f}"),
            "memory [MiB]": _clean(r.bytes / 2**20, "{:.1f}"),
            "memory of full's": _clean(r.memory, "{:.2f}"),
            "steps to equal PSNR": ("≤ " if r.first else "") + _clean(r.steps, "{:.0f}"),
            "time to it, of full's": _clean(r.training, "{:.2f}"),
        }
        for r in found.itertuples()
    ]
    return pd.DataFrame(lines)


def pages(
    name: str,
    records: pd.DataFrame,
    frames: Mapping[str, pd.DataFrame],
    curves: pd.DataFrame | None = None,
) -> dict[str, str]:
    """File name -> content of the pages of one table.

    Args:
        name: Of the table: hat, dat or ablation.
        records: Its records, from :func:`ir_peft.results.load_records`.
        frames: Task -> table, from :func:`ir_peft.results.table`.
        curves: From :func:`ir_peft.results.load_curves`; None writes no page of costs.
    """
    stem, one = f"asteisr-{name}", records.iloc[0]
    backbones = ", ".join(f"`{tag}`" for tag in records["backbone"].unique())
    pairs = ", ".join(records["image"].unique())
    details = ", ".join(f"[{task}]({stem}-{task}.md)" for task in frames)
    smoke = " **Smoke, not a result.**" if one["profile"] == "smoke" else ""
    text = (
        f"# {stem}\n\nBackbone {backbones}; pairs: {pairs} ({one['test_set']}). {PROTOCOL} ± is "
        f"the sample standard deviation over (n) seeds.{smoke} Training, costs, claims and each "
        f"pair: {details}.\n\n{to_markdown(scores(records, frames))}"
    )
    if {"frozen", "asteisr"} <= set(records["row"]):
        text += "\n## Gain over the frozen network, pair by pair [dB]\n\n"
        text += to_markdown(gains(records, frames))
    if name == "hat":
        text += f"\n## Published numbers\n\n{PUBLISHED}\n"
        for scale in (2, 4):
            lines = "".join(f"- {line}\n" for line in flags(scale))
            text += f"\n### x{scale}\n\n{to_markdown(published(scale))}\n{lines}"
    contents = {f"{stem}.md": text}
    if name == "hat" and curves is not None:
        contents["asteisr-cost.md"] = cost_page(records, frames, curves)
    return contents


def cost_page(
    records: pd.DataFrame, frames: Mapping[str, pd.DataFrame], curves: pd.DataFrame
) -> str:
    """The page of costs: a table for each task with a trained row."""
    text = (
        f"# What training costs\n\nThe paper's claim: {CLAIMED}; it says neither how they were "
        "measured nor against which settings. Here, on small networks: time and memory of a step "
        "are measured side by side, ratios are medians over rounds, not quotients of columns; "
        "memory is what is saved for backward, gradients and AdamW's "
        "moments; weights come on top for all. Equal "
        "PSNR is the highest validation PSNR that all seeds of ASteISR and of full fine-tuning of "
        "both views reach; the steps until then are means over seeds, and validations are their "
        "resolution; ≤ marks the first one, – a row of which a seed does not reach it. The last "
        "column is those steps times the step's time. "
        "Freezing spares the gradients of frozen weights, a third of a step's operations at most; "
        "time need not follow operations. HAT-L itself: "
        "[counts and, on a GPU, steps](../benchmarks/paper_scale.md).\n"
    )
    for task, frame in frames.items():
        if not (frame["trainable"] > 0).any():
            continue
        part = records[records["task"] == task]
        mine = curves[curves["id"].isin(part["id"])]
        backbone = part["backbone"].iloc[0]
        costs = load_step_costs(backbone)
        found, target = cost(frame, mine, costs)
        reach = "no validation" if target != target else f"equal at {target:.2f} dB"
        steps = f"[benchmark](../benchmarks/methods-{backbone}.md)"
        steps = "not measured" if costs is None else steps
        text += f"\n## {task}: {reach}\n\n`{backbone}`, steps: {steps}.\n\n"
        text += to_markdown(display_cost(found))
    return text


def _clean(value: float, pattern: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value != value else pattern.format(value)
