"""Specs, records and reruns, with the real files and a real backbone in the smoke profile."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ir_peft import (
    attach_adapter,
    backbones,
    count_parameters,
    create_backbone,
    experiments,
    load_backbone,
    pretrain,
)
from ir_peft.adapters import fingerprint
from ir_peft.data import degradations
from ir_peft.experiments import PROFILES, Spec, load_specs, run, run_id
from ir_peft.provenance import device_name

ROOT = Path(__file__).resolve().parents[1]
SMOKE = PROFILES["smoke"]
SPEC = Spec(
    paper="adaptir", table="hybrid", row="lora", label="LoRA", backbone="dat_light_x4",
    task="lr4_noise30", method="lora",
)  # fmt: skip


@pytest.fixture
def checkout(tmp_path):
    """A git repository with one commit, as the root of runs."""

    def git(*words):
        author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(
            ["git", *author, "-C", str(tmp_path), *words], check=True, capture_output=True
        )

    git("init", "-q")
    (tmp_path / ".gitignore").write_text("runs/\n")
    git("add", ".")
    git("commit", "-qm", "start")
    return tmp_path


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda p: p.name
)
def test_every_committed_experiment_parses(path):
    specs = load_specs(path)
    assert len({(s.row, s.task, s.seed) for s in specs}) == len(specs)
    assert {s.task for s in specs} <= set(degradations.TASKS)


def test_every_row_fits_its_backbone():
    """Each method attaches with the widths of its row, and trains what it adds."""
    files = sorted((ROOT / "experiments").glob("*.toml"))
    specs = {
        (spec.backbone, spec.method, str(spec.adapter), spec.modules_to_save): spec
        for file in files
        for spec in load_specs(file)
        if spec.learns
    }
    for spec in specs.values():
        recipe = pretrain.RECIPES.get(spec.backbone)
        if recipe:
            model = create_backbone(recipe.backbone, scale=recipe.scale)
        elif spec.backbone in backbones.BACKBONES:  # Of full size, for the paper's own protocol.
            with torch.device("meta"):
                model = create_backbone(spec.backbone)
        else:
            model = load_backbone(spec.backbone)
        options = {"modules_to_save": spec.modules_to_save} if spec.modules_to_save else {}
        attach_adapter(model, spec.method, **spec.adapter, **options)
        trainable, total = count_parameters(model)
        assert 0 < trainable <= total, spec.row


def test_no_two_rows_of_all_tables_share_an_adapter_or_a_record():
    files = sorted((ROOT / "experiments").glob("*.toml"))
    specs = [spec for file in files for spec in load_specs(file)]
    trainings = {run_id(spec.training, SMOKE) for spec in specs}
    assert len({spec.tag for spec in specs}) == len(trainings)
    assert len({run_id(spec, SMOKE) for spec in specs}) == len(specs)
    other = replace(SPEC, table="other")
    assert other.tag == "adaptir/other/lr4_noise30-lora" != SPEC.tag
    assert replace(SPEC, folder="here", seed=2).tag == "here/lr4_noise30-lora-s2"
    assert run_id(replace(SPEC, folder="here"), SMOKE) == run_id(SPEC, SMOKE)


def test_committed_records_belong_to_rows_of_the_committed_table():
    full = PROFILES["full"]
    ids = {run_id(spec, full) for spec in load_specs(ROOT / "experiments" / "adaptir.toml")}
    paths = (ROOT / "results" / "records").glob("adaptir-hybrid-*.json")
    records = {path.stem for path in paths}
    assert records and records <= ids


def test_seeds_may_differ_between_tasks(tmp_path):
    file = tmp_path / "a.toml"
    text = (ROOT / "experiments" / "adaptir_ipt.toml").read_text()
    file.write_text(text)
    specs = [s for s in load_specs(file) if s.table == "ipt" and s.row == "lora"]
    seeds = {task: [s.seed for s in specs if s.task == task] for task in ("lr4_noise30", "sr2")}
    assert seeds == {"lr4_noise30": [0, 1, 2], "sr2": [0]}
    file.write_text(text.replace("seeds = { lr4_noise30", "seeds = { lr4_noise31"))
    with pytest.raises(ValueError, match="did you mean 'lr4_noise30'"):
        load_specs(file)


def test_adaptir_table_has_the_rows_of_the_issue():
    specs = load_specs(ROOT / "experiments" / "adaptir.toml")
    rows = {s.row for s in specs if s.task == "lr4_noise30"}
    methods = {"bitfit", "lora", "houlsby", "adaptformer", "adaptir"}
    assert rows == {"bicubic", "frozen", "full", "tail", "adaptir_ends"} | methods | {
        f"{m}_tail" for m in methods
    }


@pytest.mark.parametrize(
    ("paper", "task", "channel", "border"),
    [
        ("adaptir", "lr4_noise30", "y", 4),
        ("adaptir", "sr2", "y", 2),
        ("adaptir", "derain_heavy", "y", 0),
        ("adaptir", "denoise50", "rgb", 0),
        ("adaptir", "low_light", "rgb", 0),
        ("adair", "derain_light", "rgb", 0),
        ("asteisr", "sr4", "rgb", 0),
    ],
)
def test_metric_of_each_papers_protocol(paper, task, channel, border):
    metric = replace(SPEC, paper=paper, task=task).metric
    assert (metric["channel"], metric["crop_border"]) == (channel, border)


def test_an_unset_size_leaves_no_trace_in_a_record():
    """Records that are older than the fields keep their names."""
    later = {"patch", "crop", "folder", "pretrained", "train_tasks"}
    assert later.isdisjoint(SPEC.to_dict())
    assert replace(SPEC, patch=48).to_dict()["patch"] == 48


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[defaults]\nmethodd = 'lora'", "did you mean 'method'"),
        ("[default]\n", "did you mean 'defaults'"),
        ("[rows.a]\nmethod = 'lora'", "lacks backbone, label, paper, table, tasks"),
        ("[defaults]\npaper = 'p'\n", "has no rows"),
        ("= 3", "is not a TOML file"),
        ("[rows.a]\ntasks='sr4'", "tasks of .rows.a. is a list"),
        ("rows=5 # [rows", "must be a table"),
        (
            "[rows.a]\npaper='p'\ntable='t'\nlabel='l'\nbackbone='b'\nmethod='lora'\ntasks=['sr4']"
            "\nadapter={rr=3}",
            "nearest: 'r'",
        ),
        (
            "[rows.a]\npaper='p'\ntable='t'\nlabel='l'\nbackbone='b'\nmethod='lora'\ntasks=['lr4_nois30']",
            "did you mean 'lr4_noise30'",
        ),
    ],
)
def test_bad_experiment_files_are_named(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text if "[rows" in text or "has no rows" in message else text + "\n[rows.a]\n")
    with pytest.raises(ValueError, match=message):
        load_specs(path)


def test_run_id_changes_with_every_field():
    base = run_id(SPEC, SMOKE)
    assert run_id(replace(SPEC, lr=2e-3), SMOKE).split("-s0-")[0] == base.split("-s0-")[0]
    changed = {run_id(replace(SPEC, lr=2e-3), SMOKE), run_id(SPEC, replace(SMOKE, steps=3)), base}
    assert len(changed) == 3


def test_run_writes_a_complete_record_once(checkout, monkeypatch):
    record = run(SPEC, SMOKE, root=checkout, progress=False)
    path = checkout / "runs" / "smoke" / "records" / f"{record['id']}.json"
    assert json.loads(path.read_text()) == record
    assert record["parameters"]["trainable"] == 18 * 660 * 3
    assert record["curve"][-1]["step"] == SMOKE.steps and record["seconds"] > 0
    folder = checkout / "runs" / "smoke" / "adapters" / SPEC.tag
    assert record["adapter_bytes"] == (folder / "adapter_model.safetensors").stat().st_size
    assert len(record["git"]["commit"]) == 40 and not record["git"]["dirty"]
    assert record["spec"] == SPEC.to_dict() and "folder" not in record["spec"]
    assert record["parameters"]["backbone"] == 572766
    assert [row["image"] for row in record["scores"]] == ["astronaut"]

    def never(*_, **__):
        raise AssertionError("a finished record is reused, not run again")

    monkeypatch.setattr(experiments, "adapted_model", never)
    assert run(SPEC, SMOKE, root=checkout, progress=False) == json.loads(path.read_text())


@pytest.fixture
def tiny_restormer(monkeypatch):
    """Every backbone, bundled or new, is a very small Restormer."""
    build = backbones.create_backbone

    def load(tag):
        torch.manual_seed(3)
        return create("restormer_mini").eval()

    def create(name):
        return build(name, dim=8, depths=(1, 1, 1, 1), refinement=1, heads=(1, 1, 1, 1))

    monkeypatch.setattr(experiments.backbones, "load_backbone", load)
    monkeypatch.setattr(experiments.backbones, "create_backbone", create)


def adair(row, tasks=None):
    specs = load_specs(ROOT / "experiments" / "adair.toml")
    return [s for s in specs if s.row == row and (tasks is None or s.task in tasks)]


def test_adair_tables_compare_what_the_paper_claims():
    specs = load_specs(ROOT / "experiments" / "adair.toml")
    rows = {s.row for s in specs if s.table == "multitask"}
    assert rows == {
        "bicubic",
        "frozen",
        "scratch",
        "full",
        "lora",
        "adair",
        "all_full",
        "all_adair",
    }
    bases = {f"transfer-{name}" for name in pretrain.TRANSFER}
    transfer = {s.table for s in specs if s.table.startswith("transfer-")}
    assert transfer == bases | {"transfer-none"}
    for s in specs:
        assert degradations.TASKS[s.task].scale == 1 and s.metric["channel"] == "rgb"
        expected = s.table.removeprefix("transfer-").replace("none", "")
        tag = f"restormer_mini_{expected}" if s.table in bases else "restormer_mini"
        assert s.backbone == tag and s.backbone in pretrain.RECIPES


@pytest.mark.parametrize("row", ["bicubic", "frozen", "scratch", "adair", "none_adair"])
def test_adair_rows_run(row, checkout, tiny_restormer):
    spec = adair(row, {"denoise25"})[0]
    record = run(spec, SMOKE, root=checkout, progress=False)
    trainable, total, backbone = record["parameters"].values()
    assert record["metric"]["crop_border"] == 0 and len(record["scores"]) == 1
    if row == "scratch":
        assert trainable == total == backbone
    elif spec.learns:
        assert 0 < trainable == total - backbone < backbone
    else:
        assert trainable == 0 and record["curve"] == []


@pytest.mark.parametrize("row", ["all_adair", "noise25_scratch"])
def test_specs_that_differ_in_the_test_task_share_one_training(row, checkout, tiny_restormer):
    first, second = (run(spec, SMOKE, root=checkout, progress=False) for spec in adair(row)[:2])
    assert first["id"] != second["id"] and first["spec"]["task"] != second["spec"]["task"]
    assert first["curve"] == second["curve"] and first["seconds"] == second["seconds"] > 0
    assert first["scores"] != second["scores"]
    (folder,) = (checkout / "runs" / "smoke" / "adapters").rglob("adapter_model.safetensors")
    assert folder.parent.name == f"denoise25-{row}"
    assert len(list((checkout / "runs" / "smoke").glob("adair-*"))) == 1


def test_a_row_of_several_tasks_sees_all_of_them():
    (spec,) = adair("all_adair", {"haze"})
    data = experiments.training_set(spec, SMOKE)
    assert data.rest.choices == tuple(degradations.TASKS[name] for name in spec.train_tasks)
    assert data.lq_size == 48
    (alone,) = adair("adair", {"haze"})
    assert experiments.training_set(alone, SMOKE).rest == degradations.TASKS["haze"]
    unseen = adair("noise25_adair")
    assert {s.task for s in unseen} == {"denoise15", "denoise25", "denoise50"}
    data = experiments.training_set(unseen[0], SMOKE)
    assert data.rest == degradations.TASKS["denoise25"]


def test_random_weights_are_those_of_the_seed(tiny_restormer):
    (spec,) = adair("none_adair", {"denoise25"})
    same, twin, other = (
        fingerprint(experiments.adapted_model(s, SMOKE))
        for s in (spec, spec, replace(spec, seed=1))
    )
    assert same == twin != other


@pytest.mark.parametrize("method", ["frozen", "bicubic"])
def test_a_row_runs_on_the_default_device_and_its_record_names_it(method, checkout, monkeypatch):
    def seen(model, pairs, **_):
        if method == "frozen":
            assert {p.device.type for p in model.parameters()} == {"meta"}
        return [{"image": "a", "psnr": 20.0, "ssim": 0.5, "seconds": 1.0}]

    monkeypatch.setattr(experiments.devices, "pick", lambda name=None: torch.device("meta"))
    monkeypatch.setattr(experiments, "evaluate", seen)
    record = run(replace(SPEC, method=method), SMOKE, root=checkout, progress=False)
    name = "meta" if method == "frozen" else device_name(torch.device("cpu"))  # No network.
    assert record["device"] == name


@pytest.mark.gpu
def test_a_row_trains_and_runs_on_the_gpu(checkout):
    record = run(SPEC, SMOKE, root=checkout, progress=False)
    assert record["device"] == torch.cuda.get_device_name()
    assert record["peak_memory"]["what"] != "peak resident set size"


def test_only_a_clean_tree_writes_trusted_results(checkout):
    trusted = replace(SMOKE, name="full", trusted=True)
    bicubic = replace(SPEC, method="bicubic", row="bicubic")
    run(bicubic, trusted, root=checkout, progress=False)
    assert len(list((checkout / "results" / "records").glob("*.json"))) == 1
    (checkout / "code.py").write_text("changed = True\n")
    run(replace(bicubic, seed=1), trusted, root=checkout, progress=False)
    assert len(list((checkout / "results" / "records").glob("*.json"))) == 1
    (path,) = (checkout / "runs" / "full" / "records").glob("*.json")
    assert json.loads(path.read_text())["git"]["dirty"]


def test_a_checkpoint_of_a_changed_tree_is_not_continued(checkout, monkeypatch):
    trusted = replace(SMOKE, name="full", trusted=True)
    (checkout / "code.py").write_text("changed = True\n")
    run(SPEC, trusted, root=checkout, progress=False)
    (checkout / "code.py").unlink()
    seen = []
    train = experiments.train
    monkeypatch.setattr(
        experiments, "train", lambda *a, **k: seen.append(k["out"]) or train(*a, **k)
    )
    record = run(SPEC, trusted, root=checkout, progress=False)
    assert not record["git"]["dirty"]
    assert len(list(seen[0].parent.glob(f"{record['id']}-*"))) == 2  # One folder each.


def test_a_shipped_adapter_answers_only_for_the_spec_it_was_trained_with():
    spec = next(s for s in load_specs(ROOT / "experiments" / "adaptir.toml") if s.row == "lora")
    assert experiments.training_facts(spec, ROOT)["seconds"] > 0
    for changed in (replace(spec, lr=5.0), replace(spec, adapter={"r": 16})):
        with pytest.raises(ValueError, match="changed after it was trained"):
            experiments.training_facts(changed, ROOT)


def test_a_recomputed_record_is_reused_by_the_same_commit_only(checkout, monkeypatch):
    recompute = replace(SMOKE, trains=False)
    bicubic = replace(SPEC, method="bicubic", row="bicubic")
    calls = []
    evaluate = experiments.evaluate
    monkeypatch.setattr(
        experiments, "evaluate", lambda *a, **k: calls.append(1) or evaluate(*a, **k)
    )
    for _ in range(2):
        run(bicubic, recompute, root=checkout, progress=False)
    assert len(calls) == 1
    (checkout / "code.py").write_text("changed = True\n")
    run(bicubic, recompute, root=checkout, progress=False)
    assert len(calls) == 2


def test_a_profile_without_training_needs_the_shipped_adapter(checkout):
    recompute = replace(SMOKE, trains=False)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a bundled adapter"):
        run(replace(SPEC, row="nothing"), recompute, root=checkout, progress=False)
    assert not list(checkout.rglob("*.json"))
