"""Rows of a table as the experiment files ask for them, and rows borrowed from other tables."""

import pandas as pd
import pytest

from ir_peft import table_rows
from ir_peft.specs import load_specs
from ir_peft.table_rows import BORROWED, EXPERIMENTS, planned, with_borrowed

FILE = """
[defaults]
paper = "adaptir"
table = "ipt"
tasks = ["sr2", "lr4_noise30"]

[rows.adaptir]
label = "AdaptIR"

[rows.lora]
label = "LoRA"

[rows.tail]
label = "Tail only"
tasks = ["lr4_noise30"]

[rows.lim]
table = "ablation"
label = "LIM only"
tasks = ["lr4_noise30"]
"""


def test_rows_come_in_the_order_of_the_file_with_borrowed_ones_first(tmp_path, monkeypatch):
    (tmp_path / "one.toml").write_text(FILE)
    monkeypatch.setattr(table_rows, "EXPERIMENTS", tmp_path)
    assert planned("adaptir", "ipt", "sr2") == {"adaptir": "AdaptIR", "lora": "LoRA"}
    assert list(planned("adaptir", "ipt", "lr4_noise30")) == ["adaptir", "lora", "tail"]
    ablation = planned("adaptir", "ablation", "lr4_noise30")
    assert ablation == {"adaptir": "AdaptIR", "lim": "LIM only"}
    assert planned("adair", "ipt", "sr2") == planned("adaptir", "other", "sr2") == {}


def test_outside_of_a_checkout_nothing_is_planned(tmp_path, monkeypatch):
    monkeypatch.setattr(table_rows, "EXPERIMENTS", tmp_path / "nowhere")
    assert planned("adaptir", "ipt", "sr2") == {}


def test_planned_rows_are_those_that_are_run():
    specs = [spec for path in sorted(EXPERIMENTS.glob("*.toml")) for spec in load_specs(path)]
    for paper, table, task in {(spec.paper, spec.table, spec.task) for spec in specs}:
        mine = [s for s in specs if (s.paper, s.table, s.task) == (paper, table, task)]
        rows = dict.fromkeys(spec.row for spec in mine)
        borrowed = table_rows.borrowed(paper, table)
        found = list(planned(paper, table, task))
        assert found[-len(rows) :] == list(rows) and set(found) == {*borrowed, *rows}


def lines(*made):
    columns = ["id", "paper", "table", "row", "task", "profile", "backbone"]
    return pd.DataFrame(made, columns=columns)


@pytest.fixture
def records():
    same = ("full", "ipt_mini")
    return lines(
        ("a0", "adaptir", "ipt", "adaptir", "lr4_noise30", *same),
        ("a1", "adaptir", "ipt", "adaptir", "lr4_noise30", *same),
        ("a2", "adaptir", "ipt", "adaptir", "sr2", *same),
        ("l0", "adaptir", "ipt", "lora", "lr4_noise30", *same),
        ("b0", "adaptir", "ipt", "adaptir", "lr4_noise30", "smoke", "ipt_mini"),
        ("v0", "adaptir", "ablation", "lim", "lr4_noise30", *same),
    )


def test_a_table_borrows_what_was_run_under_its_own_conditions(records):
    assert BORROWED["adaptir", "ablation"] == ("ipt", ("adaptir",))
    every = with_borrowed(records)
    ablation = every[every["table"] == "ablation"]
    assert ablation["id"].tolist() == ["v0", "a0", "a1"]
    assert len(every) == len(records) + 2
    pd.testing.assert_frame_equal(every[: len(records)], records)


def test_borrowing_twice_or_from_nothing_changes_nothing(records):
    every = with_borrowed(records)
    pd.testing.assert_frame_equal(with_borrowed(every), every)
    for part in (records[records["table"] == "ipt"], records[:0]):
        pd.testing.assert_frame_equal(with_borrowed(part), part)
