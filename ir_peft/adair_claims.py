"""What the tables of :mod:`ir_peft.adair_tables` say, in sentences computed from them.

The expectations are those that the AdaIR paper's abstract and the idea of adapters lead to; the
paper's own numbers are not known to us, so none is compared with. ``spread`` is what seeds scatter
by (:func:`ir_peft.adair_tables.seeds_spread`): a difference within it decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import verdicts
from .adair_tables import BASES, OWN_TASK

if TYPE_CHECKING:
    import pandas as pd

PAIRS = {
    ("adair", "frozen"): "The adapter improves the base",
    ("adair", "scratch"): "The adapter beats a model trained from scratch in as many steps",
    ("full", "adair"): "Full fine-tuning of the base leads the adapter",
    ("adair", "lora"): "The adapter leads LoRA of nearly its size",
    (
        "adair",
        "all_full",
    ): "The adapter beats one model for all tasks, trained as long for all of them",
    ("adair", "all_adair"): "The adapter beats one adapter for all tasks, trained as long",
}
"""Expectations of the multi-task table: (better row, other row) -> the sentence's beginning."""


NAN = float("nan")


def verdict(leads: pd.Series, spread: float, text: str) -> str:
    """A sentence that begins with whether an expectation holds, from the leads [dB] it speaks of.

    It holds where every lead is beyond chance, in part where some are.
    """
    floor = verdicts.chance(spread)
    ahead, behind = int((leads > floor).sum()), int((leads < -floor).sum())
    words = verdicts.WORDS[None if ahead == behind == 0 else ahead == len(leads)]
    if 0 < ahead < len(leads):
        words = "Holds in part here"
    return f"{words}: {text}; beyond chance {ahead} of {len(leads)}, behind {behind}."


def _span(values: pd.Series) -> str:
    """Mean, least and most of some differences, with the task of the last two."""
    if len(values) == 1:
        return f"by {values.iloc[0]:+.2f} dB on {values.index[0]}"
    return (
        f"by {values.mean():+.2f} dB in the mean (least {values.min():+.2f} on {values.idxmin()}, "
        f"most {values.max():+.2f} on {values.idxmax()})"
    )


def multitask(grid: pd.DataFrame, spread: float = NAN) -> list[str]:
    """Each expectation of :data:`PAIRS`, of the mean over the tasks where both rows were run."""
    psnr = grid.drop(columns=["label", "mean"])
    lines = []
    for (better, other), text in PAIRS.items():
        if not {better, other} <= set(psnr.index):
            continue
        lead = (psnr.loc[better] - psnr.loc[other]).dropna().astype(float)
        if lead.empty:
            missing = [row for row in (better, other) if psnr.loc[row].isna().all()]
            lines.append(f"Not checked: {text}; not run: {', '.join(missing) or 'a common task'}.")
            continue
        ahead = f"on {(lead > 0).sum()} of {len(lead)} tasks, {_span(lead)}"
        lines.append(verdict(lead, spread, f"{text}: {ahead}"))
    return lines


def seeds(spread: float) -> str:
    """What the seeds say about differences between rows."""
    if spread != spread:
        return f"One seed a row: differences up to {verdicts.SEEDS} dB decide nothing."
    return (
        "± is the sample standard deviation over (n) seeds; the seeds of a row on the base differ "
        f"by up to {spread:.2f} dB, so differences up to {verdicts.chance(spread):.2f} dB decide "
        "nothing. Cells without ± have one seed; where training gains decibels it may scatter more."
    )


def transfer(panels: dict[str, pd.DataFrame], spread: float = NAN) -> list[str]:
    """Which pretraining helps, from :func:`ir_peft.adair_tables.transfer`."""
    import pandas as pd

    adapted = panels["adapted"].dropna(how="all")
    if len(adapted) < 2:
        return ["Not checked: which pretraining helps needs two bases with adapters."]
    lines = []
    full = adapted.dropna()
    if len(full) > 1:
        order = full.mean(axis=1).sort_values(ascending=False)
        best, worst = order.index[0], order.index[-1]
        lines.append(
            f"Best base over all tasks: {BASES[best]}, {order.iloc[0]:.2f} dB in the mean; last: "
            f"{BASES[worst]}, {order.iloc[0] - order.iloc[-1]:.2f} dB below."
        )
    own = {
        base: task for base, task in OWN_TASK.items()
        if base in adapted.index and adapted[task].notna()[base] and adapted[task].count() > 1
    }  # fmt: skip
    if own:
        singles = adapted.reindex([base for base in OWN_TASK if base in adapted.index])
        lead = pd.Series(
            {
                task: singles[task][base] - singles[task].drop(base).max()
                for base, task in own.items()
            }
        ).dropna()
        text = "Of the bases with one kind of damage, a task's own is the best for it: "
        if len(lead):
            text += f"{(lead > 0).sum()} of {len(lead)} tasks, {_span(lead)}"
            lines.append(verdict(lead, spread, text))
    for low, text in (
        ("none", "Any pretraining beats random weights"),
        ("identity", "Restoring anything beats copying clean images"),
    ):
        others = adapted.drop(index=["none", low], errors="ignore")
        lead = pd.Series(dtype=float)
        if low in adapted.index:
            lead = (others - adapted.loc[low]).stack().dropna()
        if len(lead):
            base, task = lead.idxmin()
            lines.append(
                verdict(
                    lead,
                    spread,
                    f"{text}: in {(lead > 0).sum()} of {len(lead)} cells; the least lead is "
                    f"{lead.min():+.2f} dB (base: {BASES[base]}, {task})",
                )
            )
    if {"mixed", "random_order"} <= set(adapted.index):
        lead = (adapted.loc["mixed"] - adapted.loc["random_order"]).dropna()
        lines.append(
            verdict(-lead, spread, f"All four in random order beat one an image: {_span(-lead)}")
        )
    gain = panels["gain"].stack().dropna()
    if len(gain):
        (most, most_task), (least, least_task) = gain.idxmax(), gain.idxmin()
        lines.append(
            f"An adapter adds most to {BASES[most]} on {most_task} ({gain.max():+.2f} dB), least "
            f"to {BASES[least]} on {least_task} ({gain.min():+.2f} dB)."
        )
    return lines


def ablation(frame: pd.DataFrame, spread: float = NAN) -> list[str]:
    """The best variant of each group, which draw with it, and how far the others are behind."""
    tasks = list(frame.columns[4:])
    lines = []
    for group, part in frame.groupby("group", sort=False):
        run = part.set_index("variant")[tasks].dropna(axis=1, how="all").dropna()
        if len(run) < 2 or run.empty:
            lines.append(f"Not checked: {group}, fewer than two variants were run.")
            continue
        floor = verdicts.chance(spread)
        texts = []
        for task, psnr in run.items():
            below = psnr.max() - psnr
            draw = [name for name, gap in below.items() if gap <= floor]
            first = f"`{draw[0]}` leads" if len(draw) == 1 else f"`{'`, `'.join(draw)}` draw"
            rest = below[below > floor].sort_values()
            behind = [f"`{name}` {gap:.2f} dB behind" for name, gap in rest.items()]
            texts.append(f"on {task} {'; '.join([first, *behind])}")
        sizes = part.set_index("variant")["trainable"][run.index]
        between = (
            f"{sizes.min():,.0f}"
            if sizes.nunique() == 1
            else (f"{sizes.min():,.0f} to {sizes.max():,.0f}")
        )
        lines.append(f"{group.capitalize()} ({between} parameters): {'. '.join(texts)}.")
    return lines


def unseen_levels(frame: pd.DataFrame, spread: float = NAN) -> list[str]:
    """What is lost at a strength that was not trained for, AdaIR against the other methods."""
    other = frame[frame["task"] != frame["trained"]].dropna(subset=["lost"])
    lost = other.pivot_table(index="task", columns="like", values="lost")
    if "adair" not in lost:
        return ["Not checked: strengths that were not trained for; not run: the adapter's rows."]
    lines = []
    for like, text in (("scratch", "a model from scratch"), ("full", "full fine-tuning")):
        if like in lost:
            both = lost[["adair", like]].dropna()
            less = int((both["adair"] < both[like]).sum())
            means = f"{both['adair'].mean():.2f} against {both[like].mean():.2f} dB in the mean"
            lines.append(
                verdict(
                    both[like] - both["adair"],
                    spread,
                    f"At a strength it was not trained for, the adapter loses less than {text}: "
                    f"{means}, less on {less} of {len(both)} strengths",
                )
            )
    above = other[other["like"] == "adair"].dropna(subset=["base"])
    worse = above[above["psnr"] < above["base"]]
    if len(above):
        lines.append(
            f"An adapter for one strength is below the base without it on {len(worse)} of "
            f"{len(above)} other strengths{': ' if len(worse) else ''}{', '.join(worse['task'])}."
        )
    return lines or ["Not checked: other strengths; not run: the other methods and the base."]


def unseen_tasks(frame: pd.DataFrame) -> list[str]:
    """What the adapter gains on damage that its base never met, beside damage that it knows."""
    lines = []
    for column, what in (
        ("over base", "The adapter adds to its base"),
        ("over scratch", "The adapter leads a model from scratch by"),
        ("below full", "The adapter stays below full fine-tuning by"),
    ):
        known, new = (frame[frame["seen"] == seen][column].dropna() for seen in (True, False))
        if known.empty or new.empty:
            lines.append(f"Not checked: {column}, not run on both kinds of damage.")
            continue
        lines.append(
            f"{what} {new.mean():+.2f} dB on damage that the base has never met (tasks: "
            f"{len(new)}), {known.mean():+.2f} dB on damage that it knows (tasks: {len(known)})."
        )
    return lines


def cost(frame: pd.DataFrame) -> list[str]:
    """Parameters, bytes, time and memory of the adapter beside full fine-tuning and scratch."""
    run = frame[frame["tasks"] > 0]
    if "adair" not in run.index or not {"full", "scratch"} & set(run.index):
        return ["Not checked: costs; not run: the adapter, or a model trained whole."]
    own = run.loc["adair"]
    whole = run.loc["full" if "full" in run.index else "scratch"]
    lines = [
        f"Beside {whole['label'].lower()} the adapter trains {_share(own, whole, 'trainable')} of "
        f"the parameters and stores {_share(own, whole, 'bytes')} of the bytes of a task; a step "
        f"takes {_share(own, whole, 'step_seconds')} of the time and keeps "
        f"{_share(own, whole, 'saved_bytes')} of the bytes for the backward pass."
    ]
    if own["tasks"] == whole["tasks"]:
        lines.append(
            f"For {own['tasks']} tasks: {own['all_bytes'] / 1e6:.1f} MB with the base, against "
            f"{whole['all_bytes'] / 1e6:.1f} MB."
        )
    if own["validated"] > 0:
        text = f"What training from scratch ends with the adapter reaches on {own['reached']:.0f} "
        text += f"of {own['validated']:.0f} tasks"
        if own["reached"] and "scratch" in run.index:
            text += f"; on the {own['common']:.0f} tasks where every row does, after at most "
            text += (
                f"{own['reach_steps']:.0f} steps against {run.loc['scratch', 'reach_steps']:.0f}"
            )
        lines.append(
            f"{text}. Validations are 100 steps apart, on other photographs than the test."
        )
    else:
        lines.append("Not checked: time to a PSNR; nothing was validated during training.")
    return lines


def _share(own: pd.Series, whole: pd.Series, column: str) -> str:
    value = 100 * own[column] / whole[column] if whole[column] else float("nan")
    return "an unknown share" if value != value else f"{value:.1f} %"


def storage(frame: pd.DataFrame) -> list[str]:
    """Storage of several tasks and of one, from :func:`ir_peft.adair_costs.storage`."""
    each, one = frame["a model for each"], frame["base + adapters"]
    most = frame.index.max()
    lines = [
        f"{most} tasks: {each[most] / 1e6:.1f} MB as a model for each, {one[most] / 1e6:.1f} MB as "
        f"one base with adapters, {each[most] / one[most]:.1f} times smaller; one task: "
        f"{100 * (one[1] / each[1] - 1):.0f} % larger."
    ]
    if "base + adapters, 16 bits" in frame:
        half = frame.loc[most, "base + adapters, 16 bits"]
        lines.append(
            f"Adapters in 16 bits: {half / 1e6:.1f} MB for {most} tasks, {each[most] / half:.1f} "
            "times smaller."
        )
    return lines


def picking(frame: pd.DataFrame) -> list[str]:
    """How often the estimator picks the right adapter and what the others cost."""
    total = frame.loc["all"]
    text = (
        f"The estimator picks the right adapter for {100 * total['right']:.0f} % of "
        f"{total['images']:.0f} images; the mean loss against the right choice is "
        f"{total['lost']:.2f} dB"
    )
    tasks = frame.drop(index="all")
    if total["right"] < 1:
        worst = tasks["lost"].idxmax()
        text += f", the largest of a task {tasks.loc[worst, 'lost']:.2f} dB on {worst}"
    return [text + "."]
