"""Tables of AdaIR's questions, on made-up records of the real experiment file."""

import math

import pandas as pd
import pytest

from ir_peft import adair_claims, adair_costs, adair_tables, time_to_psnr

from .adair_records import (
    ADAPTER,
    BASE,
    PLAN,
    STEP_COSTS,
    TASKS,
    make_curves,
    make_records,
    psnr_of,
)


@pytest.fixture(scope="module")
def records():
    return make_records()


EMPTY = pd.DataFrame()


def test_the_plan_has_a_line_for_each_row_and_task():
    assert not PLAN.duplicated(["table", "row", "task"]).any()
    one = PLAN[(PLAN["row"] == "noise25_scratch") & (PLAN["task"] == "denoise50")].iloc[0]
    assert one["trained"] == ("denoise25",) and not one["pretrained"] and one["method"] == "full"
    assert PLAN[PLAN["row"] == "all_adair"]["trained"].map(len).eq(11).all()
    bases = {t.removeprefix("transfer-") for t in PLAN["table"] if t.startswith("transfer-")}
    assert bases == set(adair_tables.BASES)
    assert set(adair_tables.UNSEEN_TASKS) < set(TASKS)
    transferred = PLAN[PLAN["table"] == "transfer-noise"]["task"]
    assert set(adair_tables.OWN_TASK.values()) == set(transferred)


def test_grid_keeps_what_was_not_run_and_means_only_full_lines(records):
    part = make_records(lambda line: (line.row, line.task) != ("lora", "haze"))
    grid = adair_tables.grid(part, PLAN)
    assert list(grid.columns) == ["label", *TASKS, "mean"]
    assert math.isnan(grid.loc["lora", "haze"]) and math.isnan(grid.loc["lora", "mean"])
    assert grid.loc["adair", "denoise15"] == pytest.approx(27.6)
    assert grid.loc["adair", "mean"] == pytest.approx(27.5 + 0.1 * 5)
    shown = adair_tables.display(grid)
    assert shown.loc["lora", "haze"] == "not run" and shown.loc["adair", "denoise15"] == "27.60"
    with pytest.raises(ValueError, match="no table 'nothing'; planned: .*'ablation'"):
        adair_tables.grid(records, PLAN, "nothing")


def test_seeds_are_averaged_and_their_scatter_is_shown(records):
    """Seeds 1 and 2 of one cell score 0.2 and 0.1 dB more: mean +0.1, deviation 0.1."""

    def cell(line):
        return (line.table, line.row, line.task) == ("multitask", "adair", "jpeg")

    others = [make_records(cell, lambda line, k=k: psnr_of(line) + 0.2 / k, k) for k in (1, 2)]
    several = pd.concat([records, *others])
    value = psnr_of(next(filter(cell, PLAN.itertuples()))) + 0.1
    assert adair_tables.grid(several, PLAN).loc["adair", "jpeg"] == pytest.approx(value)
    shown = adair_tables.printed_grid(several, PLAN)
    assert shown.loc["adair", "jpeg"] == f"{value:.2f} ± 0.10 (3)"
    assert (
        shown.loc["adair", "haze"] == adair_tables.printed_grid(records, PLAN).loc["adair", "haze"]
    )
    assert adair_tables.seeds_spread(several, PLAN) == pytest.approx(0.2)
    assert math.isnan(adair_tables.seeds_spread(records, PLAN))
    # Within what seeds scatter by nothing is decided.
    grid = adair_tables.grid(several, PLAN)
    words = {spread: adair_claims.multitask(grid, spread)[0].split(":")[0] for spread in (0.2, 2.0)}
    assert words == {0.2: "Holds here", 2.0: "Not decided here"}
    assert "up to 0.20 dB" in adair_claims.seeds(0.2) and "One seed" in adair_claims.seeds(math.nan)


def test_unseen_levels_compare_equal_seeds(records):
    def own(line):
        return (line.table, line.row, line.task) == ("multitask", "adair", "denoise25")

    second = make_records(own, lambda line: psnr_of(line) + 1, seed=1)
    frame = adair_tables.unseen_levels(pd.concat([records, second]), PLAN)
    lines = frame.set_index(["row", "task"])
    assert lines.loc[("noise25_adair", "denoise25"), "lost"] == pytest.approx(0.0)


def test_records_of_two_protocols_or_twice_the_same_run_are_refused(records):
    other = records.assign(crop=96.0)
    with pytest.raises(ValueError, match="differ in 'crop'"):
        adair_tables.grid(pd.concat([records, other]), PLAN)
    again = records.assign(id=records["id"] + "-again")
    with pytest.raises(ValueError, match="several records"):
        adair_tables.grid(pd.concat([records, again]), PLAN)
    with_other_paper = pd.concat([records, other.assign(paper="adaptir")])
    assert adair_tables.grid(with_other_paper, PLAN).loc["adair", "mean"] > 0


def test_nothing_run_gives_full_tables_of_empty_cells():
    grid = adair_tables.grid(EMPTY, PLAN)
    assert grid.drop(columns="label").isna().all(axis=None) and "adair" in grid.index
    assert adair_tables.printed_grid(EMPTY, PLAN).drop(columns="label").eq("not run").all(axis=None)
    assert math.isnan(adair_tables.seeds_spread(EMPTY, PLAN))
    assert adair_tables.transfer(EMPTY, PLAN)["gain"].shape == (8, 4)
    assert adair_tables.ablation(EMPTY, PLAN)["jpeg"].isna().all()
    assert adair_tables.unseen_levels(EMPTY, PLAN)["lost"].isna().all()
    assert adair_tables.unseen_tasks(EMPTY, PLAN)["over base"].isna().all()
    cost = adair_costs.cost(EMPTY, EMPTY, PLAN)
    assert cost["tasks"].eq(0).all() and cost["all_bytes"].isna().all()
    for lines in (
        adair_claims.multitask(grid),
        adair_claims.transfer(adair_tables.transfer(EMPTY, PLAN)),
        adair_claims.ablation(adair_tables.ablation(EMPTY, PLAN)),
        adair_claims.unseen_levels(adair_tables.unseen_levels(EMPTY, PLAN)),
        adair_claims.unseen_tasks(adair_tables.unseen_tasks(EMPTY, PLAN)),
        adair_claims.cost(cost),
    ):
        assert lines and all(line.startswith("Not checked: ") for line in lines)


def test_transfer_is_bases_by_tasks_and_their_difference(records):
    panels = adair_tables.transfer(records, PLAN)
    assert list(panels["alone"].index) == list(adair_tables.BASES)
    assert panels["alone"].loc["none"].isna().all()
    assert panels["adapted"].loc["none"].notna().all()
    expected = panels["adapted"] - panels["alone"]
    pd.testing.assert_frame_equal(panels["gain"], expected)
    assert panels["gain"].drop("none").to_numpy() == pytest.approx(3.01)


def test_transfer_claims_name_the_best_base_and_count_cells():
    def psnr(line):
        base = line.table.removeprefix("transfer-")
        own = adair_tables.OWN_TASK.get(base) == line.task
        return 25.0 + (2.0 if own else 0.0) - (1.0 if base == "none" else 0.0)

    lines = adair_claims.transfer(adair_tables.transfer(make_records(psnr=psnr), PLAN))
    text = "\n".join(lines)
    assert "last: random weights, 1.50 dB below" in text
    assert "Holds here: Of the bases with one kind of damage, a task's own is the best" in text
    assert "4 of 4 tasks, by +2.00 dB in the mean" in text
    assert "Holds here: Any pretraining beats random weights: in 28 of 28 cells" in text
    assert "Holds in part here: Restoring anything beats copying clean images: in 4 of 24" in text


def test_ablation_has_the_default_in_every_group(records):
    frame = adair_tables.ablation(records, PLAN)
    default = frame[frame["row"] == "width_21"]
    assert list(default["group"]) == ["width", "position", "levels", "mode", "kind"]
    assert default["jpeg"].nunique() == 1 and default["trainable"].eq(ADAPTER).all()
    with pytest.raises(ValueError, match=r"differ in \['serial'\]"):
        adair_tables.ablation(records, PLAN[PLAN["row"] != "serial"])
    lines = adair_claims.ablation(frame)
    assert lines[0].startswith(
        "Width (60,480 parameters): on jpeg `width 5`, `width 10`, `width 21`"
    )


def test_unseen_levels_compare_with_the_same_method_trained_there(records):
    frame = adair_tables.unseen_levels(records, PLAN)
    assert len(frame) == 15
    lines = frame.set_index(["row", "task"])
    heavy = lines.loc[("light_adair", "derain_heavy")]
    assert (heavy["like"], heavy["trained"]) == ("adair", "derain_light")
    assert heavy["lost"] == pytest.approx(2.0)
    assert lines.loc[("noise25_scratch", "denoise25"), "lost"] == pytest.approx(0.0)
    assert heavy["base"] == pytest.approx(26.4)
    found = adair_claims.unseen_levels(frame)
    assert found[0].startswith("Not decided here: At a strength it was not trained for")
    assert found[2].startswith("An adapter for one strength is below the base without it on 3 of 3")


def test_unseen_tasks_stand_last(records):
    frame = adair_tables.unseen_tasks(records, PLAN)
    assert list(frame.index[-4:]) == list(adair_tables.UNSEEN_TASKS)
    assert frame["over base"].to_numpy() == pytest.approx(1.5)
    assert frame["below full"].to_numpy() == pytest.approx(0.5)
    first = adair_claims.unseen_tasks(frame)[0]
    assert first.startswith("The adapter adds to its base +1.50 dB on damage that the base has")


def test_time_to_a_psnr_is_that_of_the_first_validation_there():
    points = [("scratch", 100, 20.0), ("scratch", 200, 24.0), ("adair", 100, 23.0),
              ("adair", 200, 25.0), ("full", 100, 26.0), ("lora", 200, 23.9)]  # fmt: skip
    curves = pd.DataFrame(
        [
            {"row": row, "task": "jpeg", "seed": 0, "step": step, "seconds": step / 2,
             "val_psnr": psnr}
            for row, step, psnr in points
        ]
    )  # fmt: skip
    found = time_to_psnr.seconds_to_reach(curves).set_index("row")
    assert found["target"].eq(24.0).all()
    assert found["seconds"].drop("lora").to_dict() == {"scratch": 100, "adair": 100, "full": 50}
    assert math.isnan(found.loc["lora", "seconds"])
    assert found["first"].to_dict() == {
        "scratch": False, "adair": False, "full": True, "lora": False
    }  # fmt: skip
    at = time_to_psnr.seconds_to_reach(curves, {"jpeg": 22.0}).set_index("row")
    assert at.loc["adair", "seconds"] == 50
    assert time_to_psnr.seconds_to_reach(curves.drop(columns="val_psnr")).empty


def test_cost_counts_one_file_of_all_tasks_once(records):
    frame = adair_costs.cost(records, make_curves(records), PLAN, STEP_COSTS)
    assert list(frame.index) == ["scratch", "full", "lora", "adair", "all_full", "all_adair"]
    assert frame.loc["full", "all_bytes"] == 11 * 4 * BASE
    assert frame.loc["adair", "all_bytes"] == 4 * BASE + 11 * 4 * ADAPTER
    assert frame.loc["all_full", "all_bytes"] == 4 * BASE
    assert frame.loc["all_adair", "all_bytes"] == 4 * BASE + 4 * ADAPTER
    assert frame.loc["adair", "all_seconds"] == 11 * 300 * 0.2
    assert frame.loc["all_adair", "all_seconds"] == 300 * 0.2
    # Ends 2.5 dB above scratch, 1 dB a validation: the first one is there.
    assert frame.loc["adair", ["reach_steps", "reach_seconds"]].tolist() == [100, 20]
    assert frame.loc["scratch", ["reach_steps", "reach_seconds"]].tolist() == [300, 90]
    assert frame.loc["adair", ["reached", "validated"]].tolist() == [11, 11]
    assert math.isnan(frame.loc["all_adair", "reached"])
    text = "\n".join(adair_claims.cost(frame))
    assert "trains 5.3 % of the parameters" in text and "66.7 % of the time" in text
    assert "on the 11 tasks where every row does, after at most 100 steps against 300" in text
    unmeasured = adair_costs.cost(records, EMPTY, PLAN)
    assert "nothing was validated" in adair_claims.cost(unmeasured)[-1]


def test_storage_of_the_full_restormer():
    """The specification's numbers: four tasks are 3.1 times smaller on one base."""
    frame = adair_costs.storage(26_126_644, {"adapters": 1_916_928}, tasks=(1, 4))
    assert frame.loc[4, "a model for each"] == pytest.approx(104.5e6, rel=1e-3)
    assert frame.loc[4, "base + adapters"] == 33_794_356
    assert frame.loc[1].is_monotonic_increasing
    large, small = adair_claims.storage(
        adair_costs.storage(100e6, {"adapters": 10e6, "adapters, 16 bits": 5e6})
    )
    assert large.startswith("10 tasks: 1000.0 MB as a model for each, 200.0 MB as one base with")
    assert large.endswith("5.0 times smaller; one task: 10 % larger.")
    assert small == "Adapters in 16 bits: 150.0 MB for 10 tasks, 6.7 times smaller."


def test_picking_counts_and_averages_the_loss():
    picks = pd.DataFrame(
        [("jpeg", "jpeg", 30.0, 30.0), ("jpeg", "haze", 30.0, 26.0), ("haze", "haze", 20.0, 20.0)],
        columns=["task", "picked", "oracle", "psnr"],
    )
    frame = adair_tables.picking(picks)
    assert frame.loc["jpeg"].to_dict() == {
        "images": 2, "right": 0.5, "oracle": 30.0, "psnr": 28.0, "lost": 2.0, "worst": 4.0
    }  # fmt: skip
    assert frame.loc["all", "right"] == pytest.approx(2 / 3)
    [line] = adair_claims.picking(frame)
    assert "67 % of 3 images" in line and "2.00 dB on jpeg" in line


def test_multitask_claims_count_the_tasks_where_both_rows_were_run():
    part = make_records(lambda line: line.table == "multitask" and line.row != "all_full")
    lines = adair_claims.multitask(adair_tables.grid(part, PLAN))
    assert lines[0].startswith("Holds here: The adapter improves the base: on 11 of 11 tasks")
    assert lines[4] == (
        "Not checked: The adapter beats one model for all tasks, trained as long for all of them; "
        "not run: all_full."
    )
