"""Tiny steps on the CPU, counts at the papers' size, and what a run does with outcomes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import paper_scale  # noqa: E402
import paper_scale_step as step  # noqa: E402
from paper_scale_bills import BILLS, Job, plan  # noqa: E402
from paper_scale_table import MISSING, hours, table  # noqa: E402

CPU, META = torch.device("cpu"), torch.device("meta")
EXACT = json.loads((ROOT / "results/benchmarks/paper_scale-exact.json").read_text("utf-8"))
PAPER = {  # Trainable and total parameters at the papers' sizes.
    "asteisr/hat_l/full+asteisr": (42_817_575, 42_817_575),
    "asteisr/hat_l/asteisr": (1_971_000, 42_817_575),
    "adaptir/ipt/full": (118_892_394, 118_892_394),
    "adaptir/ipt/adaptir": (697_656, 119_590_050),
    "adaptir/ipt/lora": (995_328, 119_887_722),
    "adair/restormer/full": (26_126_644, 26_126_644),
    "adair/restormer/adair": (1_916_928, 28_043_572),
    "adair/restormer/lora": (1_913_472, 28_040_116),
    "adaptir/edt_b/adaptir": (173_412, 11_800_479),
}
STAMP = {
    "code": "abc",
    "git": {"commit": "0123456789", "dirty": False},
    "versions": {"torch": "2.11.0"},
    "device": "A GPU",
    "matmul_flops": {"fp32": 5e13, "bf16": 8e14},
}


def job(key, size="small"):
    paper, backbone, *rest = key.split("/")
    return Job(f"{paper}/{backbone}", *rest, size)


def outcome(seconds, peak, batch):
    times = {"q25": 0.9 * seconds, "median": seconds, "q75": 1.1 * seconds}
    return {"status": "ok", "batch": batch, "step_seconds": times, "peak_bytes": peak}


def test_plan_settles_the_claims_first_and_has_each_job_once():
    jobs = list(plan("paper"))
    assert len(set(jobs)) == len(jobs)
    first = [
        j for bill in BILLS.values() for j in ((bill.key, bill.whole), (bill.key, bill.adapter))
    ]
    assert [(j.bill, j.method) for j in jobs[:8]] == first
    assert all(
        (j.precision, j.mode, j.implementation) == ("fp32", "eager", "ours") for j in jobs[:8]
    )
    ours = {(j.bill, j.method, j.precision, j.mode) for j in jobs if j.implementation == "ours"}
    ways = [(p, m) for p in ("fp32", "bf16") for m in ("eager", "compiled")]
    assert ours == {(b.key, m, *way) for b in BILLS.values() for m in b.methods for way in ways}


@pytest.mark.parametrize("name", PAPER)
def test_parameters_at_the_papers_size(name):
    key, method = name.rsplit("/", 1)
    model = step.build(BILLS[key], method, "paper", META)
    assert step.count_parameters(model) == PAPER[name]


def test_committed_counts():
    assert set(EXACT) == {f"{b.key}/{method}" for b in BILLS.values() for method in b.methods}
    for name, (trainable, total) in PAPER.items():
        one = EXACT[name]
        assert (one["trainable"], one["total"]) == (trainable, total)
        if name != "adaptir/ipt/full":  # Heads and tails of other tasks get no gradient.
            assert one["optimizer_bytes"] // 8 - trainable in range(2000)  # And a counter each.
    ipt = 118_892_394 - 5 * 411_648
    assert 8 * (ipt - 785_874) < EXACT["adaptir/ipt/full"]["optimizer_bytes"] < 8 * ipt + 4000
    assert EXACT["adair/restormer/adair"]["checkpoint_bytes"] == 4 * 1_916_928
    buffers = 24 * (2 * 24 * 4 + 8)  # BatchNorm's statistics and its counter, per adapter.
    assert EXACT["adaptir/ipt/adaptir"]["checkpoint_bytes"] == 4 * 697_656 + buffers


@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_backward_costs_two_forwards(groups):
    with META:
        conv = torch.nn.Conv2d(8, 12, 3, padding=1, stride=2, groups=groups)
        x = torch.rand(2, 8, 10, 6, requires_grad=True)
    rules = {torch.ops.aten.convolution_backward: step.convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=rules) as flops:
        conv(x).sum().backward()
    assert flops.get_total_flops() == 3 * 2 * 2 * (5 * 3) * 12 * 8 // groups * 9


def test_attention_is_counted_without_recomputation():
    with META:
        q, k, v = (torch.rand(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    with FlopCounterMode(display=False) as flops, sdpa_kernel(SDPBackend.MATH):
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    assert flops.get_total_flops() == 3 * (2 * 2 * 3 * 2 * 5 * 7 * 8)


def test_frozen_weights_cost_less():
    bill = BILLS["adaptir/edt_b"]
    full, adapter = (step.count(bill, m, "small") for m in ("full", "adaptir"))
    assert adapter["flops"] < full["flops"]
    assert adapter["optimizer_bytes"] < full["optimizer_bytes"]
    assert adapter["checkpoint_bytes"] < full["checkpoint_bytes"]


@pytest.mark.parametrize(
    "key",
    [
        "asteisr/hat_l/asteisr/bf16/eager/ours",
        "adaptir/ipt/adaptir/fp32/eager/ours",
        "adaptir/edt_b/full/bf16/eager/ours",
    ],
)
def test_a_measured_record_is_complete(key):
    found = step.measure(job(key), 2, 0.0, CPU)
    times = found["step_seconds"]
    assert 0 < times["q25"] <= times["median"] <= times["q75"]
    assert found["timed_steps"] == step.FEWEST
    assert found["peak_bytes"] > 0 and found["memory_kind"]
    bill, method = BILLS[job(key).bill], job(key).method
    counted = step.count(bill, method, "small")
    assert counted.pop("flops") > 0
    assert {name: found[name] for name in counted} == counted
    # Adapters alone: two moments of each trained value, and a counter for each tensor.
    model = step.build(bill, method, "small", META)
    trained = [p for p in model.parameters() if p.requires_grad]
    if "ipt" not in key:
        assert found["optimizer_bytes"] == sum(8 * p.numel() + 4 for p in trained)


def test_references_train_as_many_parameters():
    pytest.importorskip("spandrel_extra_arches")
    bill = BILLS["adair/restormer"]
    for method in ("full", "lora"):
        ours = step.build(bill, method, "small", CPU)
        theirs = step.build_reference(bill, method, "small", CPU)
        assert type(theirs).__module__.startswith("spandrel")
        trained = [
            sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)
        ]
        assert trained[0] == trained[1] > 0
        step.Step(theirs, bill, "small", 1, "fp32")()


def test_what_has_no_reference_is_skipped_with_its_reason():
    for key, words in (
        ("adaptir/edt_b/full/fp32/eager/reference", "no reference for EDT"),
        ("adair/restormer/adair/fp32/eager/reference", "no public module for adair"),
    ):
        found = step.attempt(lambda n, key=key: step.measure(job(key), n, 0.0, CPU), 2)
        assert found["status"] == "skipped" and words in found["reason"]


def test_out_of_memory_halves_the_batch_and_is_recorded():
    def run(batch, fits):
        if batch > fits:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {batch}\nmore")
        return {"step_seconds": batch}

    found = step.attempt(lambda n: run(n, 5), 24)
    assert found == {
        "status": "ok", "batch": 3, "out_of_memory_at": [24, 12, 6], "step_seconds": 3
    }  # fmt: skip
    found = step.attempt(lambda n: run(n, 0), 3)
    assert found["status"] == "out of memory" and found["out_of_memory_at"] == [3, 1]
    assert found["reason"] == "CUDA out of memory: 1"


def test_other_errors_are_recorded_with_their_text():
    def run(batch):
        raise RuntimeError("the compiler does not like it")

    found = step.attempt(run, 4)
    assert found["status"] == "failed"
    assert found["reason"] == "RuntimeError: the compiler does not like it"
    assert any("in run" in line for line in found["traceback"])


def test_run_keeps_records_writes_each_at_once_and_goes_on():
    jobs, records, asked, saves = list(plan("paper"))[:6], {}, [], []
    records[jobs[0].key] = outcome(1.0, 10, 24) | {"code": "abc"}  # Made before.
    records[jobs[1].key] = outcome(1.0, 10, 24) | {"code": "old"}  # By other code.
    answers = [
        outcome(0.5, 5, 12),
        {"status": "skipped", "reason": "why"},
        None,  # It took too long.
        {"status": "out of memory", "reason": "why", "out_of_memory_at": [8]},
        {"status": "failed", "reason": "why"},
    ]

    def ask(job, batch, limit):
        asked.append((job, batch, limit))
        return answers[len(asked) - 1]

    def go():
        return paper_scale.run(
            jobs, ask, records, STAMP, lambda _: 100 * 10**12,
            lambda: saves.append(json.dumps(records)), budget=1000,
        )  # fmt: skip

    assert go() == 0
    assert [a[0] for a in asked] == jobs[1:]
    assert asked[0][1:] == (24, 60)
    assert len(saves) == 5
    record = json.loads(saves[0])[jobs[1].key]  # On disk before the next one starts.
    assert record["flops_per_step"] == 50 * 10**12
    assert record["flops_per_second"] == 1e14 and record["matmul_share"] == 2.0
    for name in ("bill", "method", "precision", "mode", "implementation", "size", "date", *STAMP):
        assert record[name] is not None
    assert records[jobs[3].key]["status"] == "timeout"
    # Again: only what another call may change.
    answers += [outcome(1.0, 10, 16)]
    assert go() == 0
    assert [a[0] for a in asked[5:]] == [jobs[2]]
    assert records[jobs[2].key]["status"] == "ok"


def test_the_end_of_the_budget_is_no_outcome():
    records, asked = {}, []

    def ask(job, batch, limit):
        asked.append(limit)

    left = paper_scale.run(
        list(plan("paper"))[:3], ask, records, STAMP, lambda _: 1, lambda: None, budget=30
    )
    assert left == 3 and not records
    assert asked and max(asked) <= 30
    with_nothing = list(plan("paper"))[:3], ask, {}, STAMP, lambda _: 1, lambda: None
    asked.clear()
    assert paper_scale.run(*with_nothing, budget=5) == 3 and not asked


def test_adapters_are_measured_at_the_batch_that_full_fine_tuning_could_take():
    records = {"asteisr/hat_l/full+asteisr/bf16/eager/ours": outcome(1.0, 10, 6)}
    assert paper_scale.first_batch(job("asteisr/hat_l/lora/bf16/eager/reference"), records) == 6
    paper = job("asteisr/hat_l/asteisr/fp32/eager/ours", "paper")
    assert paper_scale.first_batch(paper, records) == 24


def test_a_small_run_on_the_cpu_from_end_to_end(tmp_path, monkeypatch, capsys):
    class Here:
        def __init__(self, device, spend):
            self.spend, self.device = spend, torch.device(device)

        def __call__(self, job, batch, limit):
            return step.attempt(lambda n: step.measure(job, n, self.spend, self.device), batch)

        def close(self):
            pass

    monkeypatch.setattr(paper_scale, "Worker", Here)
    words = ["--device", "cpu", "--size", "small", "--seconds", "0", "--commit", "fedcba"]
    words += ["--only", "restormer/adair/fp32/eager/ours", "--out", str(tmp_path)]
    paper_scale.main(words)
    path = tmp_path / "paper_scale-cpu-small.json"
    written = path.read_bytes()
    content = json.loads(written)
    (key,) = content["records"]
    assert key == "adair/restormer/adair/fp32/eager/ours"
    record = content["records"][key]
    assert record["git"] == {"commit": "fedcba", "dirty": None}
    assert record["status"] == "ok" and record["batch"] == 2 and record["matmul_share"] > 0
    assert not paper_scale.measured(content)  # So it enters no table.
    assert not (tmp_path / "paper_scale.md").exists()
    capsys.readouterr()
    paper_scale.main(words)
    assert path.read_bytes() == written
    assert "restormer" not in capsys.readouterr().out


def test_command_lines_that_cannot_work(capsys):
    for words, text in (
        (["--device", "cpu"], "--size small"),
        ([], "no GPU here"),
    ):
        if words or not torch.cuda.is_available():
            with pytest.raises(SystemExit):
                paper_scale.arguments(words)
            assert text in capsys.readouterr().err


def test_table_without_a_gpu():
    text = table(EXACT, [])
    claims = text.split("## Ours over")[0].splitlines()
    stereo, ipt = (next(line for line in claims if name in line) for name in ("hat_l", "ipt"))
    assert stereo.count(MISSING) == 6 and ipt.count(MISSING) == 7
    assert "training time -57 %" in stereo and "(claimed 0.43)" in stereo
    assert "1,971,000 | 4.83%" in text and "697,656 | 0.59%" in text and "1,916,928" in text
    assert "ms (" not in text and "Not measured" not in text
    committed = (ROOT / "results" / "benchmarks" / "paper_scale.md").read_text("utf-8")
    gpus = [p for p in ROOT.glob("results/benchmarks/paper_scale-*.json") if "exact" not in p.name]
    found = [c for c in map(paper_scale.read, sorted(gpus)) if paper_scale.measured(c)]
    assert committed == table(EXACT, found)


def test_table_of_a_gpu():
    key = "asteisr/hat_l/{}/fp32/eager/{}"
    stamp = STAMP | {"date": "2026-11-21T10:00:00+00:00"}
    rates = {"flops_per_second": 2e13, "matmul_share": 0.4}
    records = {
        key.format("full+asteisr", "ours"): outcome(1.0, 40 * 2**30, 12) | rates,
        key.format("asteisr", "ours"): outcome(0.6, 30 * 2**30, 12) | rates,
        key.format("full", "ours"): outcome(0.9, 40 * 2**30, 12) | rates,
        key.format("full", "reference"): outcome(0.9, 50 * 2**30, 6) | rates,
        key.format("lora", "reference"): {"status": "failed", "reason": "a | b\nc"},
    }
    records = {name: record | stamp for name, record in records.items()}
    full = records[key.format("full+asteisr", "ours")]
    assert hours(BILLS["asteisr/hat_l"], full) == pytest.approx(400_000 * 2 / 3600)
    text = table(EXACT, [{"records": records}])
    line = next(line for line in text.splitlines() if "1000.0 ms" in line)
    for cell in (
        "12, the largest that fits, for 24 pairs of 32x80",
        "1000.0 ms (900.0 to 1100.0), 1.00 steps/s, 40.0 GiB, 20 TFLOP/s (40%)",
        "| 222.2 h | 133.3 h | 0.60 (claimed 0.43) | 0.75 (claimed 0.85) |",
    ):
        assert cell in line
    assert "| full | fp32, eager | 0.50 | batches 12 and 6 |" in text
    assert f"{key.format('lora', 'reference')} | failed | a / b c |" in text
    assert "Measured on A GPU, 2026-11-21, torch 2.11.0, commit 0123456." in text


@pytest.mark.slow
def test_the_worker_measures_stops_what_takes_too_long_and_starts_again():
    worker = paper_scale.Worker("cpu", 0.0)
    try:
        one = job("adaptir/edt_b/adaptir/fp32/eager/ours")
        assert worker(one, 2, 200)["status"] == "ok"
        first = worker.process.pid
        assert worker(job("adaptir/edt_b/full/bf16/compiled/ours"), 2, 0.01) is None
        assert worker.process is None
        assert worker(one, 2, 200)["status"] == "ok"
        assert worker.process.pid != first
        worker.process.kill()
        worker.process.join()
        found = worker(one, 2, 200)
        assert found["status"] == "died" and "exit code" in found["reason"]
    finally:
        worker.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # The compiler's own.
def test_compiled_blocks_are_compiled():
    found = step.attempt(
        lambda n: step.measure(job("adaptir/edt_b/lora/fp32/compiled/ours"), n, 0.0, CPU), 2
    )
    assert found["status"] == "ok", found
    assert found["compiled_blocks"] == 2 and found["graphs"] >= 2


@pytest.mark.gpu
def test_one_record_at_the_papers_size():
    big = job("adair/restormer/adair/bf16/eager/ours", "paper")
    found = step.attempt(lambda n: step.measure(big, n, 1.0, torch.device("cuda")), 8)
    assert found["status"] == "ok" and found["peak_bytes"] > 2**30
