"""ASteISR's pages, claims and figures, from made-up records of experiments/asteisr.toml."""

import math
from pathlib import Path

import pandas as pd
import pytest

from ir_peft import plots, reproduce, results, stereo_claims, stereo_tables
from ir_peft import records as records_module
from ir_peft.data.stereo_folders import STEREO_SETS
from ir_peft.specs import load_specs

ROOT = Path(__file__).resolve().parents[1]
SPECS = load_specs(ROOT / "experiments" / "asteisr.toml")
PAIRS = {"motorcycle": 0.0, "fujifilm": 1.0, "sugarshack": 2.0}
BACKBONE = {"sr4": 546_007, "sr2": 517_335}
LEVEL = {
    "bicubic": 24.0, "frozen": 26.0, "scratch": 25.0, "full_single": 26.3, "full": 26.5,
    "lora": 26.2, "adaptir": 26.1, "asteisr_spatial": 26.2, "asteisr_stereo": 26.1, "asteisr": 26.6,
}  # fmt: skip


def make_records(keep=lambda spec: True, psnr=lambda spec: LEVEL.get(spec.row, 26.4)):
    """Records of the specs that `keep` takes; a seed adds 0.01 dB, x2 adds 5 dB."""
    lines = []
    for spec in filter(keep, SPECS):
        whole = BACKBONE[spec.task] + 29_088
        trainable = {"full": whole, "scratch": whole, "full_single": BACKBONE[spec.task]}
        trained = trainable.get(spec.row, 29_088) if spec.learns else 0
        for image, more in PAIRS.items():
            value = psnr(spec) + more + 0.01 * spec.seed + 5 * (spec.task == "sr2")
            lines.append(
                {
                    "id": f"{spec.table}-{spec.task}-{spec.row}-{spec.seed}",
                    **{k: getattr(spec, k) for k in ("paper", "table", "row", "label", "task")},
                    **{k: getattr(spec, k) for k in ("backbone", "method", "seed", "lr")},
                    "adapter_lr": spec.adapter_lr,
                    **{"width": math.nan, "profile": "full", "steps": 300, "batch_size": 4},
                    **{"lq_size": 16, "test_set": "stereo3", "crop": 288.0, "channel": "rgb"},
                    **{"precision": "no", "files": "", "weights": None, "set": ""},
                    **{"crop_border": 0, "round_to_uint8": True, "window": "uniform7"},
                    "trainable": trained,
                    "backbone_parameters": float(BACKBONE[spec.task]),
                    "adapter_bytes": 4 * trained,
                    "seconds": 100.0 if spec.learns else 0.0,
                    "steps_per_second": 3.0 if spec.learns else math.nan,
                    "peak_memory": 2.0**30 if spec.learns else math.nan,
                    **{"peak_memory_what": "peak resident set size", "device": "two cores"},
                    **{"commit": "abcdef0123", "dirty": False, "date": "2026-11-21T08:00:00Z"},
                    **{"image": image, "psnr": value, "ssim": 0.75},
                    **{"psnr_left": value - 0.1, "psnr_right": value + 0.1},
                    **{"psnr_left64": value + 0.25, "ssim_left64": 0.8},
                }
            )  # fmt: skip
    return pd.DataFrame(lines)


def make_curves(records):
    """Validations at 100, 200 and 300 steps: full begins 0.1 dB higher, both end at 30 dB."""
    lines = []
    for one in records[records["trainable"] > 0].drop_duplicates("id").itertuples():
        start = {"full": 29.9, "asteisr": 29.8}.get(one.row, 29.0)
        for step in range(50, 301, 50):
            value = start + 0.001 * (step - 100) if step % 100 == 0 else math.nan
            line = {k: getattr(one, k) for k in ("id", "row", "label", "task", "seed")}
            line |= {"step": step, "loss": 1 / step, "seconds": step / 3}
            lines.append(line | {"val_psnr": min(value, 30.0)})
    return pd.DataFrame(lines)


@pytest.fixture(scope="module")
def records():
    return make_records()


def parts(records, name="hat"):
    part = results.with_borrowed(records)
    part = part[part["table"] == name]
    return part, {task: results.table(p, task=task) for task, p in part.groupby("task")}


def test_both_scales_and_left_stand_side_by_side(records):
    shown = stereo_tables.scores(*parts(records)).set_index("method")
    ours = shown.loc["ASteISR (both)"]
    assert ours["trainable"] == "29,088"
    assert ours["sr4 (L + R) / 2"] == "27.61 ± 0.01 (3) / .7500"
    assert ours["sr4 Left"] == "27.86 / .8000" and ours["sr4 over frozen"] == "+0.61"
    assert ours["sr2 (L + R) / 2"].startswith("32.61")
    assert shown.loc["Bicubic", "sr4 over frozen"] == "-2.00"
    assert shown.loc["Full fine-tuning, both views", "trainable"] == "546,423, 575,095"
    less = make_records(lambda spec: spec.row != "lora" or spec.task == "sr2")
    shown = stereo_tables.scores(*parts(less)).set_index("method")
    assert shown.loc["LoRA, each view alone", "sr4 (L + R) / 2"] == "not run"
    assert shown.loc["LoRA, each view alone", "sr4 Left"] == ""


def test_gains_are_means_over_seeds_pair_by_pair(records):
    shown = stereo_tables.gains(*parts(records)).set_index("method")
    assert list(shown) == [f"{task} {pair}" for task in ("sr2", "sr4") for pair in PAIRS]
    assert set(shown.loc["ASteISR (both)"]) == {"+0.61"}
    assert set(shown.loc["From scratch, both views"]) == {"-1.00"}
    assert "Frozen, each view alone" not in shown.index


@pytest.mark.parametrize("scale", [2, 4])
def test_published_numbers_agree_with_what_the_data_check_expects(scale):
    shown = stereo_tables.published(scale).set_index("method")
    for name, known in STEREO_SETS.items():
        if scale in known.bicubic:
            assert shown.loc["Bicubic", name].startswith(f"{known.bicubic[scale]:.2f} / .")
    assert shown.loc["Bicubic", "parameters"] == "–"
    for method in ("NAFSSR-L", "SwinFIRSSR", "SCGLANet", "iPASSR"):
        assert method in shown.index
    assert not shown.index.str.contains("ASteISR").any()
    flags = stereo_tables.flags(scale)
    stars = shown.map(lambda cell: cell.endswith("*")).sum().sum()
    assert len(flags) == stars > 0 and all(flag.startswith("\\* ") for flag in flags)
    with pytest.raises(ValueError, match="no numbers at x3"):
        stereo_tables.published(3)


def test_costs_are_those_of_a_step_and_until_equal_psnr(records):
    part, frames = parts(records)
    part = part[part["task"] == "sr4"]
    curves = make_curves(part)
    rows = ["full", "asteisr", "lora"]
    costs = pd.DataFrame(
        {
            "step_seconds": [1.0, 0.7, 0.5],
            "of_full": [1.0, 0.75, 0.5],
            "saved_bytes": [100, 80, 60],
            "optimizer_bytes": [100, 10, 10],
        },
        index=rows,
    )
    found, target = stereo_tables.cost(frames["sr4"], curves, costs)
    assert target == pytest.approx(30.0)
    assert found.loc["full", ["time", "memory", "training"]].tolist() == [1, 1, 1]
    assert found.loc["asteisr", "memory"] == pytest.approx(95 / 250)
    assert found.loc["full", "steps"] == 200 and found.loc["asteisr", "steps"] == 300
    assert found.loc["asteisr", "training"] == pytest.approx(0.75 * 1.5)
    one = curves["val_psnr"] + 2 * ((curves["row"] == "lora") & (curves["seed"] == 1))
    some, _ = stereo_tables.cost(frames["sr4"], curves.assign(val_psnr=one), costs)
    assert math.isnan(some.loc["lora", "steps"])  # One seed of three reaches it.
    assert math.isnan(found.loc["lora", "steps"]) and math.isnan(found.loc["adaptir", "time"])
    early = curves.assign(val_psnr=curves["val_psnr"].where(curves["step"] <= 100))
    found, target = stereo_tables.cost(frames["sr4"], early, None)
    assert target == pytest.approx(29.8) and found.loc["asteisr", "first"]
    shown = stereo_tables.display_cost(found).set_index("method")
    assert shown.loc["ASteISR (both)", "steps to equal PSNR"] == "≤ 100"
    assert shown.loc["LoRA, each view alone", "steps to equal PSNR"] == "–"
    assert found["step_seconds"].isna().all()
    _, target = stereo_tables.cost(frames["sr4"], curves.drop(columns="val_psnr"), costs)
    assert math.isnan(target)
    found, _ = stereo_tables.cost(frames["sr4"][frames["sr4"]["row"] != "full"], curves, costs)
    assert found["memory"].isna().all() and found["step_seconds"].notna().any()


def claims_of(records, name="hat", task="sr4"):
    part, frames = parts(records, name)
    images = results.per_image(part[part["task"] == task], task=task)
    check = stereo_claims.method_claims if name == "hat" else stereo_claims.ablation_claims
    return {text.split(": ")[0]: (holds, text) for holds, text in check(frames[task], images)}


def test_claims_are_checked_pair_by_pair(records):
    found = claims_of(records)
    gain = found["ASteISR gains 0.3 dB over the frozen network on every pair"]
    assert gain[0] is True and "fujifilm +0.61 dB" in gain[1]
    assert found["Stereo adapters add to spatial ones on every pair"][0] is True
    assert found["ASteISR reaches full fine-tuning"][0] is True
    assert found["Full fine-tuning gains by the second view"][0] is True
    assert all(holds for holds, _ in found.values()) and len(found) == 7

    def less(spec):
        return LEVEL.get(spec.row, 26.4) - 0.5 * (spec.row == "asteisr")

    found = claims_of(make_records(psnr=less))
    assert found["ASteISR gains 0.3 dB over the frozen network on every pair"][0] is False
    assert found["Stereo adapters add to spatial ones on every pair"][0] is False
    assert found["ASteISR reaches full fine-tuning"][0] is False
    alone = claims_of(make_records(lambda spec: spec.row in ("frozen", "lora")))
    assert {holds for holds, _ in alone.values()} == {None}


def test_ablation_is_compared_with_the_row_of_the_main_table(records):
    found = claims_of(records, "ablation")
    assert set(found) == set(stereo_claims.ABLATION)
    assert all(holds for holds, _ in found.values())  # 26.4 dB against 26.6.
    named = {row for rows in stereo_claims.ABLATION.values() for row in rows}
    assert named == {spec.row for spec in SPECS if spec.table == "ablation"}


def test_pages_are_written_with_the_tables(records, tmp_path):
    written = results.write_tables(records, tmp_path, curves=make_curves(records))
    names = {path.name for path in written}
    assert {"asteisr-hat.md", "asteisr-ablation.md", "asteisr-cost.md"} <= names
    assert {"asteisr-hat-sr4.md", "asteisr-hat-overview.md"} <= names
    page = (tmp_path / "asteisr-hat.md").read_text()
    assert "first 64 columns" in page and "27.61 ± 0.01 (3) / .7500" in page
    assert "| SwinFIRSSR | 24.09M |" in page and "hat_mini_x2" in page
    assert "not real stereo" in (tmp_path / "asteisr-hat-sr4.md").read_text()
    assert "equal at 30.00 dB" in (tmp_path / "asteisr-cost.md").read_text()
    assert "over frozen" not in (tmp_path / "asteisr-ablation.md").read_text()
    assert "Temperature 1.5" in (tmp_path / "asteisr-ablation-sr4.md").read_text()
    again = results.write_tables(records, tmp_path / "b")  # Without curves, no page of costs.
    assert {path.name for path in again} == names - {"asteisr-cost.md"}


def test_figures_are_drawn_from_records_alone(records, tmp_path, monkeypatch):
    monkeypatch.setattr(records_module, "STEP_COSTS", tmp_path)
    records = results.with_borrowed(records[records["task"] == "sr4"])
    curves = make_curves(records)
    hat, ablation = (records[records["table"] == name] for name in ("hat", "ablation"))
    kinds = [kind for kind, _ in reproduce.figures("asteisr-hat", hat, curves)]
    drawn = ("strategies", "tradeoff", "efficiency", "curves")
    assert kinds == [f"sr4-{kind}" for kind in drawn]
    few = hat[hat["row"] != "scratch"]
    assert "sr4-strategies" not in dict(reproduce.figures("asteisr-hat", few, curves))
    assert [kind for kind, _ in reproduce.figures("asteisr-ablation", ablation, curves)] == [
        "sr4-ablation"
    ]


def test_a_row_from_scratch_far_behind_does_not_hide_the_others(records):
    hat = records[(records["task"] == "sr4") & (records["table"] == "hat")]
    far = hat.assign(psnr=hat["psnr"] - 5.0 * (hat["row"] == "scratch"))
    table = results.table(far, task="sr4")
    low, _ = plots.tradeoff(table).axes[0].get_ylim()
    assert low > table.set_index("row").loc["bicubic", "psnr"] - 1
    panel = plots.efficiency_bars(table).axes[-1]
    assert panel.get_xlim()[0] > table["psnr"].min()
    assert "21.00" in [text.get_text() for text in panel.texts]
