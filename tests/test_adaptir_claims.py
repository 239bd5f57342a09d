"""Claims on made-up tables of methods; the paper's columns are the committed ones."""

import math

import numpy as np
import pandas as pd
import pytest

from ir_peft import adaptir_claims, records, results
from ir_peft.verdicts import beside, chance, leads, verdict

NUMBERS = records.load_paper_numbers()
SETS = {
    "sr2": 5,
    "sr3": 5,
    "sr4": 5,
    "lr4_noise30": 5,
    "denoise30": 2,
    "denoise50": 2,
    "derain_light": 1,
    "derain_heavy": 1,
    "low_light": 1,
}
"""Test sets that the paper has numbers of, by task."""


def table(task, psnr, spread=None, images=3):
    """A table of methods and its images, which all have the mean's PSNR."""
    frame = pd.DataFrame({"row": list(psnr), "psnr": list(psnr.values())})
    frame["label"] = frame["row"]
    frame["trainable"] = frame["row"].map({"ssf": 17_496, "bitfit": 4_860}).fillna(40_000)
    frame["psnr_spread"] = frame["row"].map(spread or {})
    published = results._published(NUMBERS, "adaptir", task)
    if not published.empty:
        there = [adaptir_claims.PAPER_NAMES.get(row) for row in frame["row"]]
        frame[published.columns] = published.reindex(there).to_numpy()
    names = [*map(str, range(images)), "mean"]
    return frame, pd.DataFrame([psnr] * (images + 1), index=names)


def checked(task, psnr, spread=None):
    found = adaptir_claims.claims(*table(task, psnr, spread))
    return {text.split(": ")[0]: (holds, text) for holds, text in found}


FIRST = "AdaptIR is first among the PEFT methods of its size (alone)"
STABLE = "AdaptIR is stable, other PEFT methods are not (they fall below the frozen backbone)"
SSF = "SSF is far behind the paper's other methods"


def as_in_paper(task):
    """The paper's own means as if they were our measurements."""
    sets = results._published(NUMBERS, "adaptir", task).drop(columns=["paper params"])
    mean = sets.select_dtypes("number").mean(axis=1)
    names = adaptir_claims.PAPER_NAMES
    return {row: mean[name] for row, name in names.items() if name in mean}


@pytest.mark.parametrize("task", SETS)
def test_every_task_finds_its_published_columns(task):
    frame, _ = table(task, as_in_paper(task))
    sets = [column for column in frame if column.startswith("paper ")][1:-1]
    assert len(sets) == SETS[task]
    assert frame[sets].notna().all().all()


@pytest.mark.parametrize("task", SETS)
def test_the_papers_own_numbers_have_the_papers_order(task):
    found = checked(task, as_in_paper(task))
    holds, text = found["Order of the methods as in the paper's mean"]
    # Where a probable misprint is left out of the mean, pairs may turn.
    if not NUMBERS.query("task == @task")["flag"].str.contains("typo").any():
        assert holds is True, text


def test_the_papers_claim_of_instability_is_checked_where_its_table_shows_it():
    shown = {task for task in SETS if STABLE in checked(task, as_in_paper(task))}
    assert shown == {"sr2", "sr3", "sr4", "denoise30", "denoise50", "derain_light"}
    last = {task for task in SETS if SSF in checked(task, as_in_paper(task))}
    assert last == shown
    assert all(checked(task, as_in_paper(task))[SSF][0] is True for task in last)
    assert checked("derain_light", as_in_paper("derain_light"))[STABLE][0] is True


OURS = {"frozen": 28.0, "full": 28.5, "lora": 28.2, "ssf": 27.9, "bitfit": 28.4, "adaptir": 28.3}


def test_stability_names_what_falls_below_here_and_in_the_paper():
    holds, text = checked("denoise30", OURS)[STABLE]
    assert holds is True
    assert "AdaptIR +0.30 dB, below ssf -0.10 dB; in the paper's mean AdaptIR" in text
    assert text.endswith("below ssf -1.41 dB")
    assert checked("denoise30", OURS | {"ssf": 28.1})[STABLE][0] is False
    assert checked("denoise30", OURS | {"adaptir": 27.94})[STABLE][0] is False
    # What may be chance is not below.
    assert checked("denoise30", OURS | {"ssf": 27.96})[STABLE][0] is False
    missing = {row: psnr for row, psnr in OURS.items() if row != "adaptir"}
    assert checked("denoise30", missing)[STABLE][0] is None


def test_first_is_meant_among_methods_of_the_same_size():
    holds, text = checked("denoise30", OURS)[FIRST]
    assert holds is True
    assert "+0.10 dB against lora, ahead on 3 of 3 images" in text
    assert text.endswith("ahead at another size: bitfit +0.10 dB")


@pytest.mark.parametrize(
    ("lora", "spread", "holds", "words"),
    [
        (28.2, 0.05, True, "+0.10 dB against lora, beyond the seeds' spread of 0.05 dB"),
        (28.2, 0.15, None, "+0.10 dB against lora, within the seeds' spread of 0.15 dB"),
        (28.5, 0.15, False, "-0.20 dB against lora, beyond"),
        (28.3, math.nan, None, "+0.00 dB against lora, ahead"),
    ],
)
def test_a_lead_within_the_spread_of_seeds_decides_nothing(lora, spread, holds, words):
    found = checked("denoise30", OURS | {"lora": lora}, {"lora": 0.01, "adaptir": spread})
    if spread != spread:
        found = checked("denoise30", OURS | {"lora": lora})
    assert found[FIRST][0] is holds
    assert words in found[FIRST][1]


def test_equal_numbers_of_the_paper_ask_for_no_order():
    """LoRA and FacT have the same numbers in the paper's denoising table."""
    psnr = {"frozen": 28.0, "fact": 28.6, "lora": 28.5}
    order = checked("denoise30", psnr)["Order of the methods as in the paper's mean"]
    assert order == (
        True,
        "Order of the methods as in the paper's mean: 2 of 2 pairs agree; the paper: "
        "lora = fact > frozen",
    )


def test_many_turned_pairs_are_counted_the_largest_named():
    upside_down = {row: -psnr for row, psnr in as_in_paper("sr4").items()}
    holds, text = checked("sr4", upside_down)["Order of the methods as in the paper's mean"]
    assert holds is False
    # Of 36 pairs the paper has equal means for two: AdaptIR and FacT, AdaptFormer and Adapter.
    assert "0 of 34 pairs agree, not " in text and "and 30 more; " in text
    # The largest distances of the paper are those to SSF.
    named = text.split("not ")[1].split(" and 30")[0].split(", ")
    assert len(named) == 4 and all(pair.endswith(" > ssf") for pair in named)
    assert text.endswith("lora > houlsby = adaptformer > vpt > frozen > ssf")


def test_claims_of_the_tail_need_rows_of_the_tail():
    assert not any("tail" in text for text in checked("sr4", OURS))
    tails = OURS | {"tail": 28.25, "lora_tail": 28.6, "adaptir_tail": 28.7}
    found = checked("lr4_jpeg30", tails)
    assert found["AdaptIR is first among the PEFT methods of its size (with the tail)"][0] is True
    holds, text = found["AdaptIR alone leads the trained tail alone"]
    assert holds is True
    assert "the tail adds +0.40 dB to AdaptIR, AdaptIR +0.45 dB to the tail" in text


def test_verdicts():
    assert chance(math.nan) == chance(0.01) == 0.05 and chance(0.2) == 0.2
    assert verdict([0.3, 0.1], math.nan) is True
    assert verdict([0.3, 0.1], 0.2) is None
    assert verdict([0.3, -0.1], 0.05) is False
    assert verdict([np.float64(0.3)], 0.05) is True
    assert beside(-0.1, math.nan) == "-0.10 dB"
    rows = table("sr4", {"a": 2.0, "b": 1.5, "c": math.nan}, {"a": 0.1})[0].set_index("row")
    text = "T: a against b +0.50 dB; the seeds' spread is 0.10 dB"
    assert leads(rows, "a", ["b"], "T") == (True, text)
    assert leads(rows, "b", ["a"], "T")[0] is False
    # It cannot hold before all were run, but it can fail.
    assert leads(rows, "a", ["b", "c"], "T") == (None, f"{text}; not run: c")
    assert leads(rows, "b", ["a", "c"], "T")[0] is False
    assert leads(rows, "a", ["c"], "T") == (None, "T: needs a and c")
