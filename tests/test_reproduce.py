"""Recomputed scores against the committed records, and figures from records alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ir_peft import adair_pages, plots, results
from ir_peft.experiments import PROFILES, load_specs, run_id
from ir_peft.reproduce import compare, figures, ready, reproduce, write_figures, write_results
from ir_peft.stereo_experiments import stereo_profile

from .adair_records import make_curves, make_records

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "results" / "records"
EXPERIMENTS = ROOT / "experiments"


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def copy_records(folder, change=0.0):
    """The committed records of one task in `folder`; the very first score moved by `change`."""
    folder.mkdir(parents=True)
    for path in sorted(COMMITTED.glob("adaptir-hybrid-lr4_jpeg30-*.json")):
        shutil.copy(path, folder)
    first = min(folder.glob("*.json"))
    record = json.loads(first.read_text(encoding="utf-8"))
    record["scores"][0]["psnr"] += change
    first.write_text(json.dumps(record), encoding="utf-8")
    return folder


def load(folder, change=0.0):
    return results.load_records(copy_records(folder, change))


def test_equal_scores_agree_and_a_missing_task_is_named(tmp_path, capsys):
    compare(load(tmp_path / "records"), ROOT)
    text = capsys.readouterr().out
    assert "165 of 165 values agree" in text
    assert "only in b" in text  # The other task was not recomputed.


def test_one_score_that_is_off_is_an_error(tmp_path, capsys):
    with pytest.raises(RuntimeError, match="differ from the committed records"):
        compare(load(tmp_path / "records", change=0.02), ROOT)
    assert "OFF: lr4_jpeg30 adaptformer" in capsys.readouterr().out


def test_rows_without_a_committed_counterpart_are_an_error(tmp_path):
    frame = load(tmp_path / "records")
    with pytest.raises(RuntimeError, match="differ from the committed records"):
        compare(frame.assign(row="unknown_" + frame["row"]), ROOT)


def test_every_table_gets_four_figures(tmp_path):
    records = copy_records(tmp_path / "records")
    frame, curves = results.load_records(records), results.load_curves(records)
    written = write_figures(frame, curves, tmp_path / "figures", PROFILES["full"])
    kinds = {path.stem.rsplit("-", 1)[1] for path in written}
    assert kinds == {"efficiency", "tradeoff", "tail", "curves"}
    assert all(path.stat().st_size > 1000 for path in written) and len(written) == 8


def test_each_table_gets_the_figures_of_its_kind(monkeypatch):
    for kind in ("overview", "tradeoff", "efficiency_bars", "curves", "ablation"):
        monkeypatch.setattr(plots, kind, lambda *_: None)
    frame, curves = results.load_records(COMMITTED), results.load_curves(COMMITTED)
    methods = frame[(frame["table"] == "hybrid") & frame["row"].isin(["frozen", "lora", "adaptir"])]
    methods = methods.assign(table="ipt", profile="full")
    noise = methods[methods["task"] == "lr4_noise30"]
    third = noise.assign(task="sr4", id="third-" + noise["id"])

    def kinds(name, records):
        return [kind for kind, _ in figures(name, records, curves)]

    one_task = ["lr4_noise30-tradeoff", "lr4_noise30-efficiency", "lr4_noise30-curves"]
    assert kinds("adaptir-ipt", noise) == one_task
    three = kinds("adaptir-ipt", pd.concat([methods, third]))
    assert three.count("overview") == 1 and sum("tradeoff" in kind for kind in three) == 3
    assert (
        sum("efficiency" in kind for kind in three) == sum("curves" in kind for kind in three) == 2
    )
    variant = noise[noise["row"] == "lora"].assign(table="ablation", row="lim", id="lim")
    borrowed = results.with_borrowed(pd.concat([noise, variant]))
    assert kinds("adaptir-ablation", borrowed[borrowed["table"] == "ablation"]) == [
        "lr4_noise30-ablation"
    ]
    # Without the row that it is compared with, or without colours, a table has no figure.
    assert kinds("adaptir-ablation", variant) == kinds("adair-ablation", variant) == []


def test_adair_gets_a_file_a_question_and_the_others_a_file_a_task(tmp_path, monkeypatch):
    monkeypatch.setattr("ir_peft.reproduce.write_figures", lambda *_: [])
    draw = adair_pages.FIGURES["storage"]
    monkeypatch.setattr(adair_pages, "FIGURES", {"storage": draw})
    copied = copy_records(tmp_path / "records")
    adair = make_records()
    frame = pd.concat([results.load_records(copied), adair], ignore_index=True)
    curves = pd.concat([results.load_curves(copied), make_curves(adair)], ignore_index=True)
    planned = load_specs(EXPERIMENTS / "adair.toml")
    written = write_results(frame, curves, planned, tmp_path, PROFILES["full"])
    assert all(path.is_file() for path in written)
    mine = {path.relative_to(tmp_path).as_posix() for path in written if "adair-" in path.name}
    pages = {f"tables/adair-{name}.md" for name in adair_pages.TABLES}
    assert mine == pages | {"figures/adair-storage.png", "figures/adair-storage.svg"}
    others = {path.name for path in written} - {Path(name).name for name in mine}
    assert others and all(name.startswith("adaptir-hybrid-lr4_jpeg30") for name in others)


def test_what_cannot_run_is_named_and_left_out(capsys):
    specs = [spec for file in EXPERIMENTS.glob("*.toml") for spec in load_specs(file)]
    committed = {record["id"] for record in map(read, COMMITTED.glob("*.json"))}
    recomputed = ready(specs, PROFILES["demo"], ROOT)
    full = PROFILES["full"]
    profiles = {False: full, True: stereo_profile(full)}
    assert {run_id(spec, profiles[spec.stereo]) for spec in recomputed} == committed
    left_out = capsys.readouterr().out
    able = recomputed[0]
    missing = replace(able, paper="adaptir", table="other", backbone="hat_large")
    assert ready([able, missing], PROFILES["smoke"], ROOT) == [able]
    assert "adaptir-other (1)" in capsys.readouterr().out
    assert (len(recomputed) < len(specs)) == ("rows left out" in left_out)


def test_another_folder_is_no_checkout(tmp_path):
    with pytest.raises(FileNotFoundError, match="run this in a checkout"):
        reproduce(PROFILES["smoke"], tmp_path)


def test_committed_adapters_are_those_of_the_records():
    specs = [spec for file in EXPERIMENTS.glob("*.toml") for spec in load_specs(file)]
    tags = {json.dumps(spec.to_dict(), sort_keys=True): spec.tag for spec in specs}
    for path in COMMITTED.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert not record["git"]["dirty"]
        tag = tags[json.dumps(record["spec"], sort_keys=True)]
        if not record["adapter_bytes"]:
            continue
        folder = ROOT / "ir_peft" / "weights" / "adapters" / tag
        size = (folder / "adapter_model.safetensors").stat().st_size
        if read(folder / "adapter_config.json").get("dtype") == "fp16":  # See halve_rows.py.
            whole = record["spec"]["row"] in ("full", "scratch", "full_single")
            assert whole or record["spec"]["paper"] == "adair"
            saved = 2 * record["parameters"]["trainable"]
            assert size == pytest.approx(record["adapter_bytes"] - saved, rel=0.01)
        else:
            assert size == record["adapter_bytes"]
