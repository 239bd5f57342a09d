import json
import math

import pytest

from ir_peft import records


def make_record(row="lora", *, task="lr4_noise30", seed=0, psnr=22.0, images=("a", "b"), **changes):
    """One synthetic record: image k scores psnr + k."""
    spec = {"paper": "adaptir", "table": "hybrid", "row": row, "label": row.upper(), "seed": seed}
    spec |= {"backbone": "dat_light_x4", "task": task, "method": row.removesuffix("_tail")}
    spec |= {"lr": 0.001, "adapter": {}, "modules_to_save": []}
    trained = row not in ("bicubic", "frozen")
    profile = {"name": "full", "steps": 400, "batch_size": 4, "lq_size": 32}
    profile |= {"test_set": "photos11", "crop": 256}
    trainable = {"bicubic": 0, "frozen": 0, "full": 1000, "adaptir": 80}.get(row, 50)
    record = {
        "id": f"adaptir-hybrid-{task}-{row}-s{seed}-00000000",
        "spec": spec,
        "profile": profile,
        "curve": [{"step": 20, "loss": 0.08, "lr": 0.001, "seconds": 12.1}] if trained else [],
        "seconds": 300.0 if trained else 0,
        "steps_per_second": 1.3 if trained else 0,
        "peak_memory": {"bytes": 2**30, "what": "peak resident set size"},
        "parameters": {"trainable": trainable, "total": 1000 + trainable},
        "adapter_bytes": 4096 if trained else 0,
        "scores": [
            {"image": name, "psnr": psnr + k, "ssim": 0.5 + 0.1 * k, "seconds": 0.5}
            for k, name in enumerate(images)
        ],
        "metric": {
            "channel": "y",
            "crop_border": 4,
            "round_to_uint8": True,
            "window": "gaussian11",
        },
        "git": {"commit": "abcdef0123456789", "dirty": False},
        "versions": {"python": "3.11"},
        "device": "two cores",
        "date": "2026-11-21T08:00:00Z",
    }
    for key, value in changes.items():
        where = next(d for d in (record, spec, profile, record["metric"]) if key in d)
        where[key] = value
    return record


def write(folder, *made):
    folder.mkdir(exist_ok=True)
    for record in made:
        (folder / f"{record['id']}.json").write_text(json.dumps(record))
    return folder


def test_load_is_long_form_with_the_flat_columns(tmp_path):
    write(tmp_path / "one", make_record("lora"))
    write(tmp_path / "two", make_record("full", images=("a", "b", "c")))
    frame = records.load_records(tmp_path / "one", tmp_path / "two")
    assert frame["row"].tolist() == ["full"] * 3 + ["lora"] * 2
    line = frame.iloc[4]
    assert (line["image"], line["psnr"], line["ssim"]) == ("b", 23.0, 0.6)
    assert (line["trainable"], line["total"], line["peak_memory"]) == (50, 1050, 2**30)
    assert (line["profile"], line["steps"], line["window"]) == ("full", 400, "gaussian11")
    assert records.load_records(write(tmp_path / "none")).empty


def test_curves_keep_step_loss_and_row(tmp_path):
    curves = records.load_curves(write(tmp_path, make_record("lora"), make_record("frozen")))
    assert curves[["row", "step", "loss"]].values.tolist() == [["lora", 20, 0.08]]


def test_broken_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        records.load_records(tmp_path / "nowhere")
    (tmp_path / "cut.json").write_text('{"id": "x", "spec"')
    with pytest.raises(ValueError, match=r"cut\.json is not a readable JSON"):
        records.load_records(tmp_path)
    (tmp_path / "cut.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"cut\.json is not a record"):
        records.load_records(tmp_path)
    foreign = make_record()
    del foreign["spec"]["task"]
    (tmp_path / "cut.json").write_text(json.dumps(foreign))
    with pytest.raises(ValueError, match=r"cut\.json is not a record.*'task'"):
        records.load_records(tmp_path)
    (tmp_path / "cut.json").write_text(json.dumps(make_record() | {"scores": []}))
    with pytest.raises(ValueError, match=r"cut\.json has no scores"):
        records.load_records(tmp_path)


def test_an_id_may_occur_once_only(tmp_path):
    folders = [write(tmp_path / name, make_record()) for name in ("one", "two")]
    with pytest.raises(ValueError, match="stands in both"):
        records.load_records(*folders)


def test_select_names_what_exists(tmp_path):
    frame = records.load_records(write(tmp_path, make_record()))
    assert len(records.select(frame, task="lr4_noise30", profile=None)) == 2
    with pytest.raises(ValueError, match=r"task='sr9'.*lr4_noise30"):
        records.select(frame, task="sr9")
    with pytest.raises(ValueError, match="nothing has been run"):
        records.select(frame.iloc[:0], task="sr9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 10}, "'steps'"),
        ({"channel": "rgb"}, "'channel'"),
        ({"test_set": "photos6"}, "'test_set'"),
        ({"images": ("a", "c")}, "other images"),
        ({"row": "full", "id": "again"}, "several records"),
    ],
)
def test_records_that_must_not_share_a_column_are_refused(tmp_path, change, message):
    other = make_record(**{"row": "lora", **change})
    frame = records.load_records(write(tmp_path, make_record("full"), make_record("tail"), other))
    with pytest.raises(ValueError, match=message):
        records.comparable(frame)


def test_compare_finds_what_is_off_and_what_is_missing(tmp_path):
    shipped = [make_record("lora"), make_record("full"), make_record("tail")]
    again = [
        make_record("lora", psnr=22.01),
        make_record("full", psnr=22.02),
        make_record("bitfit"),
    ]
    for record in again:
        record["profile"]["name"] = "demo"
    a = records.load_records(write(tmp_path / "a", *again))
    b = records.load_records(write(tmp_path / "b", *shipped))
    found = records.compare(a, b)
    status = {row: set(group["status"]) for row, group in found.groupby("row")}
    assert status == {
        "lora": {"equal"},
        "full": {"off"},
        "bitfit": {"only in a"},
        "tail": {"only in b"},
    }
    assert found.loc[found["row"] == "full", "psnr_difference"].round(6).tolist() == [0.02, 0.02]
    report = records.comparison_report(found)
    assert report.startswith("2 of 4 values agree to 0.01 dB.")
    assert "OFF: lr4_noise30 full: 2 image(s)" in report
    assert "2 value(s) only in b: rows tail." in report


def test_compare_of_a_subset_of_images_and_of_identical_images(tmp_path):
    full = records.load_records(write(tmp_path / "a", make_record(psnr=math.inf)))
    part = records.load_records(write(tmp_path / "b", make_record(psnr=math.inf, images=("a",))))
    found = records.compare(part, full).set_index("image")["status"]
    assert found.to_dict() == {"a": "equal", "b": "only in b"}


def test_compare_refuses_other_conventions(tmp_path):
    a = records.load_records(write(tmp_path / "a", make_record()))
    b = records.load_records(write(tmp_path / "b", make_record(crop_border=0)))
    with pytest.raises(ValueError, match=r"\['lora'\] differ in 'crop_border'"):
        records.compare(a, b)
    twice = [make_record(), make_record(id="again")]
    with pytest.raises(ValueError, match=r"b has a row twice.*select one"):
        records.compare(a, records.load_records(write(tmp_path / "c", *twice)))


def test_costs_may_be_absent(tmp_path):
    record = make_record("frozen", steps_per_second=None, peak_memory=None)
    line = records.load_records(write(tmp_path, record)).iloc[0]
    assert math.isnan(line["steps_per_second"])
    assert math.isnan(line["peak_memory"])


def test_paper_numbers_are_complete():
    numbers = records.load_paper_numbers()
    assert len(numbers) == 314
    scored = numbers[numbers["metric"] == "psnr"].groupby(["version", "task"]).size()
    assert scored["v1"].to_dict() == {
        "lr4_noise30": 45,
        "sr2": 45,
        "sr3": 45,
        "sr4": 45,
        "denoise30": 18,
        "denoise50": 18,
        "derain_light": 9,
        "derain_heavy": 7,
        "low_light": 7,
    }
    assert scored["v2"].to_dict() == {"denoise": 1, "derain_light": 1, "hybrid": 1, "sr4": 4}
    assert (numbers["metric"] == "ssim").sum() == 45 + 14
    assert not numbers.duplicated(["version", "task", "dataset", "method", "metric"]).any()


@pytest.mark.parametrize(
    ("task", "dataset", "method", "metric", "value"),
    [
        ("lr4_noise30", "Set5", "AdaptIR", "psnr", 26.46),
        ("lr4_noise30", "Manga109", "AdaptIR", "ssim", 0.7625),
        ("lr4_noise30", "BSDS100", "Pretrain", "psnr", 19.09),
        ("lr4_noise30", "Urban100", "FacT", "psnr", 21.10),
        ("lr4_noise30", "", "VPT", "gflops", 143.42),
        ("sr2", "Manga109", "Full-ft", "psnr", 39.90),
        ("sr3", "Urban100", "SSF", "psnr", 27.25),
        ("sr4", "Set14", "AdaptIR", "psnr", 29.04),
        ("denoise50", "Urban100", "LoRA", "psnr", 29.70),
        ("derain_light", "Rain100L", "FacT", "psnr", 40.61),
        ("derain_heavy", "Rain100H", "AdaptIR", "ssim", 0.9022),
        ("low_light", "LOLv1", "Pretrain", "psnr", 8.48),
    ],
)
def test_paper_numbers_spot_values(task, dataset, method, metric, value):
    numbers = records.load_paper_numbers()
    numbers = numbers[(numbers["version"] == "v1") & (numbers["task"] == task)]
    numbers = numbers[(numbers["dataset"] == dataset) & (numbers["method"] == method)]
    assert numbers.loc[numbers["metric"] == metric, "value"].tolist() == [value]


def test_paper_numbers_flags_means_and_gaps():
    numbers = records.load_paper_numbers()
    typos = numbers[numbers["flag"] == "probable typo"]
    assert typos[["task", "dataset", "method", "value"]].values.tolist() == [
        ["lr4_noise30", "Urban100", "FacT", 21.10],
        ["sr2", "Urban100", "VPT", 34.74],
    ]
    hybrid = numbers[(numbers["task"] == "lr4_noise30") & (numbers["metric"] == "psnr")]
    wide = hybrid.pivot(index="method", columns="dataset", values="value")
    # The gaps to full fine-tuning that the comparison of the two rows gives, set by set.
    gaps = (wide.loc["Full-ft"] - wide.loc["AdaptIR"]).round(2).to_dict()
    assert gaps == {
        "Set5": 0.78,
        "Set14": 0.68,
        "BSDS100": 0.35,
        "Urban100": 1.20,
        "Manga109": 1.51,
    }
    assert wide.loc["AdaptIR"].mean() == pytest.approx(24.726)
    assert set(hybrid.loc[hybrid["method"] == "AdaptIR", "params"]) == {693000}
    assert numbers.loc[numbers["method"] == "Pretrain", "params"].isna().all()


def test_missing_paper_numbers_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pass the path of paper_numbers\.csv"):
        records.load_paper_numbers(tmp_path / "none.csv")


def test_a_diverged_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lora.*json has a PSNR that is not a number"):
        records.load_records(write(tmp_path, make_record(psnr=math.nan)))


def test_step_costs_are_read_for_their_backbone_alone(tmp_path):
    sizes = {"saved_bytes": 4096, "optimizer_bytes": 80}
    for name, backbone, seconds in (("-hat", "hat_mini_x4", 0.5), ("", "ipt_mini", 0.25)):
        rows = [{"row": "lora", "label": "LoRA", "seconds": seconds, **sizes}]
        rows[0]["of_full"] = {"q25": 0.6, "median": 0.7, "q75": 0.8}
        text = json.dumps({"backbone": backbone, "rows": rows})
        (tmp_path / f"methods{name}-cpu.json").write_text(text, encoding="utf-8")
    costs = records.load_step_costs("ipt_mini", tmp_path)
    assert costs.loc["lora"].to_dict() == {"step_seconds": 0.25, "of_full": 0.7, **sizes}
    assert records.load_step_costs("dat_light_x4", tmp_path) is None
    assert records.load_step_costs("ipt_mini", tmp_path / "nothing") is None
