import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ir_peft import adair_pages, adair_tables, reproduce, results
from ir_peft.specs import load_specs

ROOT = Path(__file__).resolve().parents[1]

# PSNR of the synthetic rows on image "a"; image "b" scores 1 dB more.
PSNR = {
    "bicubic": 22.9,
    "frozen": 19.3,
    "full": 25.2,
    "tail": 23.5,
    "lora": 22.6,
    "lora_tail": 24.4,
    "houlsby": 22.5,
    "houlsby_tail": 24.5,
    "adaptformer": 22.7,
    "adaptformer_tail": 24.6,
    "adaptir": 22.8,
    "adaptir_tail": 24.55,
}
BACKBONE = 572_766
HYBRID = results.planned("adaptir", "hybrid", "lr4_noise30")


def make_record(row, psnr, *, task="lr4_noise30", seed=0, profile="full"):
    trained = row not in ("bicubic", "frozen")
    trainable = {"bicubic": 0, "frozen": 0, "full": BACKBONE}.get(row, 34_866)
    spec = {"paper": "adaptir", "table": "hybrid", "row": row, "label": HYBRID[row]}
    spec |= {"backbone": "dat_light_x4", "task": task, "method": row.removesuffix("_tail")}
    return {
        "id": f"adaptir-hybrid-{task}-{row}-s{seed}-{profile}",
        "spec": spec | {"lr": 0.0002 if row == "full" else 0.001, "seed": seed},
        "profile": {"name": profile, "steps": 400, "batch_size": 4, "lq_size": 32}
        | {"test_set": "photos11", "crop": 256},
        "curve": [],
        "seconds": 301.2 if trained else 0,
        "steps_per_second": 1.328 if trained else None,
        "peak_memory": {"bytes": 2**30, "what": "peak resident set size"} if trained else None,
        "parameters": {"trainable": trainable, "total": BACKBONE + trainable},
        "adapter_bytes": 182_040 if trained else 0,
        "scores": [
            {"image": name, "psnr": psnr + k, "ssim": 0.6 + k / 10, "seconds": 0.5}
            for k, name in enumerate(("a", "b"))
        ],
        "metric": {
            "channel": "y",
            "crop_border": 4,
            "round_to_uint8": True,
            "window": "gaussian11",
        },
        "git": {"commit": "abcdef0123456789", "dirty": False},
        "versions": {},
        "device": "two cores",
        "date": "2026-11-21T08:00:00Z",
    }


def load(folder, *made):
    folder.mkdir(parents=True, exist_ok=True)
    for record in made:
        (folder / f"{record['id']}.json").write_text(json.dumps(record))
    return results.load_records(folder)


@pytest.fixture
def records(tmp_path):
    return load(tmp_path / "records", *[make_record(row, psnr) for row, psnr in PSNR.items()])


def test_table_has_every_row_in_order_with_gain_gap_and_share(records):
    frame = results.table(records, task="lr4_noise30")
    assert frame["row"].tolist() == list(HYBRID)
    rows = frame.set_index("row")
    assert rows.loc["lora", "psnr"] == pytest.approx(23.1)
    assert rows.loc["lora", "gain"] == pytest.approx(-0.3)
    assert rows.loc["lora", "gap"] == pytest.approx(2.6)
    assert rows.loc["lora", "ssim"] == pytest.approx(0.65)
    assert rows.loc["full", "share"] == 1
    assert rows.loc["adaptir", "share"] == pytest.approx(34_866 / BACKBONE)
    assert rows.loc["bitfit", "seeds"] == 0
    assert math.isnan(rows.loc["bitfit", "psnr"])


def test_rows_that_are_in_no_list_are_shown_last(records):
    frame = results.table(records, task="lr4_noise30", rows={"bicubic": "B", "other": "Other"})
    assert frame["row"].tolist()[:2] == ["bicubic", "other"]
    assert set(frame["row"]) == {*PSNR, "other"}


def test_paper_columns_stand_beside_our_rows(records):
    rows = results.table(records, task="lr4_noise30").set_index("row")
    sets = ["Set5", "Set14", "BSDS100", "Urban100", "Manga109"]
    assert [c for c in rows if c.startswith("paper ")] == [
        "paper params",
        *[f"paper {name}" for name in sets],
        "paper flags",
    ]
    assert rows.loc["adaptir", "paper Set5"] == 26.46
    assert rows.loc["houlsby", "paper params"] == 691_000
    assert rows.loc["frozen", "paper Urban100"] == 18.54
    assert math.isnan(rows.loc["adaptir_tail", "paper Set5"])


def test_a_task_without_published_numbers_has_no_paper_column(tmp_path):
    records = load(tmp_path, make_record("lora", 22.0, task="lr4_jpeg30"))
    frame = results.table(records, task="lr4_jpeg30")
    assert not [column for column in frame if column.startswith("paper ")]
    assert "v1" not in results.head(records, frame)


def test_typos_of_the_paper_are_starred_and_explained(tmp_path):
    made = [make_record("full", 25.0), make_record("lora", 22.0)]
    made[1]["spec"] |= {"row": "fact", "label": "FacT"}
    made[1]["id"] = "fact"
    text = results.write_tables(load(tmp_path / "in", *made), tmp_path / "out")[0].read_text()
    assert r"| 21.10\* |" in text
    assert "Printed so in the paper, probable typo: FacT on Urban100 21.10, probably 22.10" in text


def test_several_seeds_give_mean_and_spread(tmp_path):
    made = [make_record("lora", psnr, seed=seed) for seed, psnr in enumerate((22.0, 22.2, 22.4))]
    frame = results.table(load(tmp_path, *made), task="lr4_noise30")
    line = frame.set_index("row").loc["lora"]
    assert (line["seeds"], line["psnr"]) == (3, pytest.approx(22.7))
    assert line["psnr_sd"] == pytest.approx(0.2)
    shown = results.display(frame).set_index("method")
    assert shown.loc["LoRA", "PSNR [dB]"] == "22.70 ± 0.20 (3)"


def test_other_profiles_must_be_chosen(tmp_path):
    records = load(tmp_path, make_record("lora", 22.0), make_record("lora", 23.0, profile="smoke"))
    with pytest.raises(ValueError, match=r"differ in 'profile'"):
        results.table(records, task="lr4_noise30")
    frame = results.table(records, task="lr4_noise30", profile="smoke").set_index("row")
    assert frame.loc["lora", "psnr"] == 23.5


def test_display_says_not_run_and_leaves_untrained_costs_empty(records):
    rows = ["full", "adaptir"]
    costs = pd.DataFrame({"step_seconds": [0.2, 0.15], "saved_bytes": [2.0**21, 2.0**20]}, rows)
    frame = results.table(records, task="lr4_noise30", step_costs=costs)
    shown = results.display(frame).set_index("method")
    assert shown.loc["BitFit"].tolist()[:4] == ["", "", "not run", ""]
    assert shown.loc["Bicubic", "step [ms]"] == "–"
    assert shown.loc["AdaptIR", "trainable"] == "34,866"
    assert shown.loc["AdaptIR", "% of backbone"] == "6.09"
    assert shown.loc["AdaptIR", "step [ms]"] == "150"
    assert shown.loc["AdaptIR", "saved for backward [MiB]"] == "1.0"
    bare = results.display(frame.assign(step_seconds=float("nan")))
    assert "step [ms]" not in bare and "saved for backward [MiB]" in bare
    assert shown.loc["AdaptIR", "adapter file [kB]"] == "182.0"
    assert shown.loc["AdaptIR", "paper #param"] == "693K"
    assert shown.loc["Full fine-tuning", "paper #param"] == "119M"


def test_per_image_has_the_rows_in_table_order_and_their_mean(records):
    wide = results.per_image(records, task="lr4_noise30")
    assert wide.columns.tolist() == [row for row in HYBRID if row in PSNR]
    assert wide.index.tolist() == ["a", "b", "mean"]
    assert wide["lora"].tolist() == pytest.approx([22.6, 23.6, 23.1])


@pytest.fixture
def by_set(tmp_path):
    """Two rows on two published sets: one image of Set5, two of B100."""
    made = [make_record("lora", 22.0), make_record("adaptir", 23.0)]
    for record in made:
        psnr = record["scores"][0]["psnr"]
        record["profile"] |= {"test_set": "published", "crop": None, "precision": "bf16"}
        record["profile"] |= {"name": "paper", "files": {"Set5": 1, "B100": 2}, "weights": "5ha"}
        record["scores"] = [
            {"image": name, "psnr": psnr + k, "ssim": 0.5 + k / 10, "seconds": 0.5}
            for k, name in enumerate(("Set5/baby", "B100/1", "B100/2"))
        ]
    return load(tmp_path / "in", *made)


def test_published_sets_have_columns_of_their_own(by_set):
    frame = results.table(by_set, task="lr4_noise30", rows={})
    rows = frame.set_index("row")
    assert rows.loc["lora", ["ours Set5", "ours B100", "psnr"]].tolist() == [22.0, 23.5, 22.75]
    assert rows.loc["lora", "ssim ours B100"] == pytest.approx(0.65)
    assert rows.loc["lora", "ssim paper BSDS100"] == 0.5026
    images = results.per_image(by_set, task="lr4_noise30")
    assert images.loc["mean"].tolist() == pytest.approx([22.75, 23.75])
    shown = results.display(frame)
    names = shown.columns.tolist()
    assert names[names.index("Set5") :] == ["Set5", "paper Set5", "B100", "paper BSDS100"]
    assert "over bicubic [dB]" not in names
    line = shown.set_index("method").loc["LoRA"]
    assert line[names[-4:]].tolist() == [
        "22.00 / 0.5000",
        "25.19 / 0.6371",
        "23.50 / 0.6500",
        "23.82 / 0.5026",
    ]


def test_the_head_and_the_claims_of_published_sets(by_set, tmp_path):
    frame = results.table(by_set, task="lr4_noise30", rows={})
    head = results.head(by_set, frame)
    assert "Set5 (1), B100 (2), whole images" in head and "baby" not in head
    assert "All images: Set5 1, B100 2. Weights: sha256 5ha. " in head
    assert "bf16 autocast" in head and "Mini scale" not in head
    found = results.claims(frame, results.per_image(by_set, task="lr4_noise30"))
    assert found[0][0] is True and "ahead on 3 of 3 images" in found[0][1]
    assert not any("with the tail" in text for _, text in found)
    text = results.write_tables(by_set, tmp_path / "out")[0].read_text()
    assert "Per image" not in text
    short = (tmp_path / "out" / "adaptir-hybrid-lr4_noise30-short.md").read_text()
    assert short.startswith("| method | trainable | paper #param | paper Set14 |")


def checked(records):
    frame = results.table(records, task="lr4_noise30")
    return results.claims(frame, results.per_image(records, task="lr4_noise30"))


def test_claims_are_computed_from_the_records(records):
    alone, with_tail, body, order, full, frozen = checked(records)
    assert alone[0] is True
    assert "+0.10 dB against AdaptFormer, ahead on 2 of 2 images; not run: bitfit" in alone[1]
    assert with_tail[0] is False
    assert "-0.05 dB against AdaptFormer + tail, ahead on 0 of 2 images" in with_tail[1]
    assert body[0] is False
    assert "AdaptIR against Tail only -0.70 dB; the tail adds +1.75 dB to AdaptIR" in body[1]
    # Paper: Full-ft, AdaptIR, AdaptFormer, Adapter, LoRA, Pretrain; here LoRA is above Adapter.
    assert order[0] is False
    assert "14 of 15 pairs agree, not Adapter (Houlsby) > LoRA;" in order[1]
    assert full == (
        True,
        "Full fine-tuning leads AdaptIR alone: +2.40 dB; +0.35 to +1.51 dB in the paper's sets",
    )
    assert frozen[0] is True
    assert "least Adapter (Houlsby), +3.20 dB" in frozen[1]


def test_claims_turn_with_the_records(tmp_path):
    turned = PSNR | {"adaptir": 26.0, "houlsby": 22.65, "lora": 19.0}
    alone, _, _, order, full, frozen = checked(
        load(tmp_path, *[make_record(row, psnr) for row, psnr in turned.items()])
    )
    assert (alone[0], order[0], full[0], frozen[0]) == (True, False, False, False)
    assert "not LoRA > Frozen, Full fine-tuning > AdaptIR;" in order[1]
    assert "alone: -0.80 dB" in full[1]


def test_claims_are_not_checked_where_rows_are_missing(tmp_path):
    found = checked(load(tmp_path, make_record("lora", 22.0)))
    assert [holds for holds, _ in found] == [None] * 6
    assert "needs bitfit, houlsby, adaptformer, adaptir" in found[0][1]


def test_a_table_of_untrained_rows_alone_can_be_written(tmp_path):
    made = [make_record(row, PSNR[row]) for row in ("bicubic", "frozen")]
    text = results.write_tables(load(tmp_path / "in", *made), tmp_path / "out")[0].read_text()
    assert "learning rate none" in text
    assert "| Bicubic | 0 | 0.00 | 23.40 | 0.6500 | +0.00 | – | – | – | – |" in text


def test_the_size_of_the_backbone_is_read_not_guessed(tmp_path):
    # Without a frozen row nothing in an old record tells what the tail's own parameters are.
    tail = make_record("lora_tail", 24.0)
    tail["parameters"] = {"trainable": 78_243, "total": BACKBONE + 35_640}
    frame = load(tmp_path / "old", tail, make_record("bicubic", 23.0))
    table = results.table(frame, task="lr4_noise30")
    assert "Backbone `dat_light_x4`, task" in results.head(frame, table)
    assert table["share"].isna().all()
    assert set(results.display(table)["% of backbone"]) == {""}
    tail["parameters"]["backbone"] = BACKBONE
    frame = load(tmp_path / "new", tail, make_record("bicubic", 23.0))
    table = results.table(frame, task="lr4_noise30").set_index("row")
    assert "(572,766 parameters)" in results.head(frame, table.reset_index())
    assert table.loc["lora_tail", "share"] == pytest.approx(78_243 / BACKBONE)


def test_committed_tables_are_those_of_the_committed_records(tmp_path):
    frame = results.load_records(ROOT / "results" / "records")
    frame = frame[frame["profile"] == "full"]
    adair = frame["paper"] == "adair"
    written = results.write_tables(frame[~adair], tmp_path, notes=reproduce.NOTES)
    plan = adair_tables.plan(load_specs(ROOT / "experiments" / "adair.toml"))
    curves = results.load_curves(ROOT / "results" / "records")
    study = adair_pages.Study(frame[adair], curves, plan)
    written += adair_pages.write_tables(study, tmp_path, notes=reproduce.NOTES)
    assert {"adair-multitask.md", "adaptir-ipt-overview.md"} <= {path.name for path in written}
    for path in written:
        assert path.read_bytes() == (ROOT / "results" / "tables" / path.name).read_bytes()


def test_head_names_every_condition(records):
    text = results.head(records, results.table(records, task="lr4_noise30"))
    for part in (
        "`dat_light_x4` (572,766 parameters)",
        "photos11 (a, b), centre crops 256 px",
        "Y channel, border of 4 px removed, outputs rounded to 8 bits, SSIM window gaussian11",
        "400 steps, batch 4, input patches 32 px, learning rate 0.001 (full 0.0002), seeds 0",
        "two cores",
        "Commit abcdef0, 2026-11-21, profile `full`",
        "**Mini scale**",
        "first version (v1) on IPT",
    ):
        assert part in text
    own = records.assign(adapter_lr=records["lr"].where(records["row"] == "full") * 8)
    text = results.head(own, results.table(own, task="lr4_noise30"))
    assert "0.001 (full 0.0002), of the adapters beside full 0.0016, seeds" in text
    smoke = records.assign(profile="smoke", dirty=True)
    text = results.head(smoke, results.table(smoke, task="lr4_noise30"))
    assert "**Smoke, not a result.**" in text
    assert "abcdef0 (with uncommitted changes)" in text
    paper = records.assign(profile="paper", crop=math.nan)
    text = results.head(paper, results.table(paper, task="lr4_noise30"))
    assert "whole images" in text
    assert "Mini scale" not in text


def test_written_tables_are_complete_and_repeatable(records, tmp_path):
    written = results.write_tables(records, tmp_path / "tables", notes="Weights: here.")
    stem = "adaptir-hybrid-lr4_noise30"
    assert [p.name for p in written] == [
        f"{stem}{end}" for end in (".md", "-short.md", ".tex", "-images.csv")
    ]
    markdown, short, latex, images = [path.read_text() for path in written]
    assert "| BitFit |  |  | not run |" in markdown
    assert "Weights: here." in markdown
    assert (
        "- Does not hold here: AdaptIR is first among the PEFT methods of its size (with the tail)"
        in markdown
    )
    widths = {
        line.count("|") for line in markdown.split("## Per image")[0].splitlines() if "|" in line
    }
    assert len(widths) == 1
    assert short.count("\n") == 2 + len(HYBRID)
    assert short.startswith("| method | trainable | PSNR [dB] |")
    assert r"\% of backbone" in latex
    assert latex.count(r" \\") == 1 + len(HYBRID)
    assert "lr4_noise30" not in latex.replace(r"lr4\_noise30", "")
    assert images.splitlines()[0].startswith("image,bicubic,frozen,full")
    again = results.write_tables(records, tmp_path / "tables", notes="Weights: here.")
    assert [path.read_text() for path in again] == [markdown, short, latex, images]


def test_nothing_is_written_when_a_table_cannot_be_made(tmp_path):
    records = load(
        tmp_path / "in",
        make_record("lora", 22.0, task="lr4_jpeg30"),
        make_record("lora", 22.0),
        make_record("lora", 22.0, profile="smoke"),
    )
    with pytest.raises(ValueError, match="'profile'"):
        results.write_tables(records, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="nothing has been run"):
        results.write_tables(records.iloc[:0], tmp_path / "out")


def test_results_imports_no_torch_and_no_pandas():
    code = (
        "import sys, types, pathlib; import importlib.util as u\n"
        "package = types.ModuleType('ir_peft'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['ir_peft'] = package\n"
        "import ir_peft.results\n"
        "print({'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    folder = results.__file__.rsplit("/", 1)[0]
    found = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert found.stdout == "set()\n", found.stderr


def test_gain_is_named_after_the_row_it_is_against(tmp_path):
    made = [make_record(row, PSNR[row], task="denoise30") for row in ("bicubic", "lora")]
    for record in made:
        record["spec"] |= {"table": "ipt-same-size"}
    made[0]["spec"]["label"] = "Input"
    records = load(tmp_path / "in", *made)
    shown = results.display(results.table(records, task="denoise30")).set_index("method")
    assert shown.loc["LoRA", "over the input [dB]"] == "-0.30"
    assert "below full [dB]" not in shown  # Full fine-tuning was not run.
    written = results.write_tables(records, tmp_path / "out")
    short = next(path for path in written if path.name.endswith("-short.md"))
    assert "| SSIM | over the input [dB] |" in short.read_text()


def test_a_table_of_variants_shows_what_it_borrows_first(tmp_path):
    made = [make_record("adaptir", psnr, seed=k) for k, psnr in enumerate((22.0, 22.1, 22.3))]
    made.append(make_record("lora", 21.0))
    for record in made:
        record["spec"] |= {"table": "ipt", "adapter": {"hidden": 24, "gate": 3}}
    made[3]["id"] = "lim"
    made[3]["spec"] |= {"table": "ablation", "row": "lim", "label": "LIM only"}
    records = load(tmp_path / "in", *made)
    frame = results.table(records, task="lr4_noise30", name="ablation")
    run = frame[frame["seeds"] > 0].set_index("row")
    assert run.index.tolist() == ["adaptir", "lim"] and frame["row"].iloc[0] == "adaptir"
    assert run["seeds"].tolist() == [3, 1]
    assert run.loc["adaptir", "psnr_spread"] == pytest.approx(0.3)
    assert math.isnan(run.loc["lim", "psnr_spread"])
    assert run.loc["lim", "gain"] == pytest.approx(21.0 - 66.4 / 3)
    assert run["width"].tolist() == [24, 24]
    shown = results.display(frame)
    assert "over AdaptIR [dB]" in shown and "below full [dB]" not in shown
    # The paper's numbers belong to its methods, not to our variants of them.
    assert not [column for column in shown if column.startswith("paper")]
    written = {path.name: path for path in results.write_tables(records, tmp_path / "out")}
    text = written["adaptir-ablation-lr4_noise30.md"].read_text()
    assert "Rows of the table `ipt`: AdaptIR." in text
    assert "22.63 ± 0.15 (3)" in text
    assert "the seeds' spread is the best less the worst" in text


def test_a_table_of_sizes_is_sorted_by_method_and_size(tmp_path):
    sizes = {"lora_4": ("lora", 15_552), "adaptir_48": ("adaptir", 91_344)}
    sizes |= {"adaptir_2": ("adaptir", 2_874), "lora_1": ("lora", 3_888)}
    made = [make_record("adaptir", 22.0)]
    made[0]["spec"]["table"] = "ipt"
    for row, (method, trainable) in sizes.items():
        record = make_record("lora", 21.0)
        record["id"] = row
        record["spec"] |= {"table": "scaling", "row": row, "label": row, "method": method}
        record["parameters"]["trainable"] = trainable
        made.append(record)
    frame = results.table(load(tmp_path, *made), task="lr4_noise30", name="scaling")
    run = frame.loc[frame["seeds"] > 0, "row"].tolist()
    assert run == ["adaptir_2", "adaptir", "adaptir_48", "lora_1", "lora_4"]


def test_tables_of_several_tasks_have_an_overview(tmp_path):
    made = [make_record(row, PSNR[row], task=task) for row in ("frozen", "lora", "adaptir")
            for task in ("lr4_noise30", "lr4_jpeg30")]  # fmt: skip
    written = results.write_tables(load(tmp_path / "in", *made), tmp_path / "out")
    assert written[-1].name == "adaptir-hybrid-overview.md"
    text = written[-1].read_text()
    assert "| AdaptIR | 34,866 | **23.30** | **23.30** |" in text
    assert "| Every adapter beats the frozen backbone | holds | holds |" in text
