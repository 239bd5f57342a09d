"""The benchmark of a training step on small networks: what it measures, judges and writes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import harness  # noqa: E402
import train_step  # noqa: E402
import train_step_report as report  # noqa: E402

from ir_peft import create_backbone  # noqa: E402

CPU = torch.device("cpu")
SMALL = {
    "dat_light": ({"depths": (2,)}, (1, 3, 32, 32)),
    "hat_s": ({"depths": (1,)}, (1, 3, 16, 16)),
    "ipt": ({"channels": 16, "patch_size": 12, "heads": 3, "depth": 1}, (1, 3, 12, 12)),
    "restormer": ({"dim": 16, "depths": (1, 1, 1, 1), "refinement": 1}, (1, 3, 16, 16)),
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),  # The references'.
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),
]


@pytest.mark.parametrize("name", SMALL)
def test_the_reference_has_the_same_output(name):
    sizes, shape = SMALL[name]
    torch.manual_seed(0)
    ours = create_backbone(name, **sizes).eval()
    x = torch.rand(shape)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), harness.reference_of(ours)(x), rtol=0, atol=1e-5)


def test_a_model_without_a_reference_is_refused():
    with pytest.raises(TypeError, match="no reference for Linear"):
        harness.reference_of(nn.Linear(2, 2))


def test_runs_take_turns():
    order = []
    runs = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = harness.alternate(runs, 2, CPU, warm_up=1)
    assert order == ["a", "b"] * 3 and [len(t) for t in times.values()] == [2, 2]
    assert harness.ratio([2.0, 6.0, 4.0], [1.0, 2.0, 1.0]) == {"q25": 2.5, "median": 3, "q75": 3.5}


def test_saved_bytes_are_exact():
    layer, x = nn.Linear(3, 5, bias=False), torch.rand(7, 3)
    assert harness.saved_bytes(layer, lambda: layer(x).sum()) == 7 * 3 * 4  # x, for the weight.
    assert harness.saved_bytes(layer, lambda: layer(x).square().sum()) == 7 * (3 + 5) * 4
    layer.requires_grad_(False)
    assert harness.saved_bytes(layer, lambda: layer(x.requires_grad_()).sum()) == 0


def test_peak_is_what_a_run_takes():
    size = 2**26
    peak = harness.peak_bytes(lambda: torch.ones(size // 4).add_(1), CPU)
    assert 0.9 * size < peak < 1.5 * size


def test_profile_sorts_operators_by_kind():
    a = torch.rand(400, 400)
    found = harness.profiled(lambda: (a @ a @ a @ a).relu(), CPU)
    calls = {row["name"]: row["calls"] for row in found["operators"]}
    assert calls["aten::mm"] == 3 and calls["aten::relu"] == 1
    assert 0 < found["shares"]["matrix products"] < 1  # How much depends on the machine's load.
    assert sum(found["shares"].values()) == pytest.approx(1)
    kinds = {
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward": "attention",
        "aten::addmm": "matrix products",
        "aten::convolution_backward": "convolutions",
        "aten::copy_": "copies",
        "aten::native_layer_norm": "norms and softmax",
        "aten::mul": "elementwise and other",
    }
    assert {key: harness.kind_of(key) for key in kinds} == kinds


def case(**changes):
    sizes, shape = SMALL["dat_light"]
    return train_step.Case("dat_light", shape, ("lora",), sizes, "2 blocks", **changes)


@pytest.mark.parametrize("mode, names", [
    ("forward", ["ours", "forward"]),
    ("full", ["ours", "full"]),
    ("frozen", ["ours", "frozen"]),
    ("peft", ["ours", "full", "frozen", "adapted"]),
])  # fmt: skip
def test_each_mode_trains_what_it_says(mode, names):
    method = "lora" if mode == "peft" else None
    steps = train_step.runners(case(), mode, method, "fp32", "none", CPU)
    assert list(steps) == names
    for name, step in steps.items():
        trained = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in step.model.parameters())
        everything = name == "full" or (name, mode) == ("ours", "full")
        assert (trained == total) == everything
        assert (trained == 0) == (name in ("forward", "frozen") or mode in ("forward", "frozen"))
        before = [p.clone() for p in step.model.parameters()]
        step()
        changed = [
            not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True)
        ]
        assert any(changed) == (trained > 0)
    if mode == "peft":
        counts = [sum(p.numel() for p in steps[n].model.parameters()) for n in ("ours", "adapted")]
        assert counts[0] == counts[1]


def test_a_record_becomes_a_report_and_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(train_step.CASES, "dat_light", case())
    monkeypatch.setattr(harness, "machine_rates", lambda *_: {"gflops": 50.0, "gbytes": 5.0})
    git = {"commit": "0" * 40, "dirty": False}  # That of a shared checkout may change meanwhile.
    monkeypatch.setattr(train_step, "git_state", lambda root: git)
    command = ["train_step.py", "dat_light", "--rounds", "1", "--clock", "cpu", "--resume"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path)])
    train_step.main()
    path = tmp_path / "train_step-cpu.json"
    first = json.loads(path.read_text())
    assert [row["mode"] for row in first["cases"]["dat_light"]["rows"]] == [
        "forward", "full", "peft", "frozen",
    ]  # fmt: skip
    rows = {row["mode"]: row for row in first["cases"]["dat_light"]["rows"]}
    assert rows["peft"]["networks"]["ours"]["saved_bytes"] > 0
    text = (tmp_path / "train_step.md").read_text()
    assert "2 blocks" in text and "not yet measured" in text  # There is no GPU's record.
    train_step.main()
    assert json.loads(path.read_text()) == first  # Nothing was measured again.


def row(speedup, saved, profile=None):
    ours = {"seconds": 1.0, "saved_bytes": saved * 2**20, "peak_bytes": 0}
    full = {"seconds": speedup, "saved_bytes": 100 * 2**20, "peak_bytes": 0}
    full["speedup"] = {"q25": speedup, "median": speedup, "q75": speedup}
    made = {"mode": "peft", "method": "lora", "networks": {"ours": ours, "full": full}}
    return made | ({"profile": {"ours": profile}} if profile else {})


def test_goals_are_bounds_on_what_was_measured():
    assert report.misses(row(2.0, 50), "hat", "cpu") == []
    slow = report.misses(row(1.99, 50), "hat", "cpu")
    assert [goal.bound for goal in slow] == [2.0]
    assert report.misses(row(1.99, 50), "restormer", "cpu") == []  # The goal names HAT and DAT.
    assert [goal.quantity for goal in report.misses(row(2.0, 51), "dat", "cpu")] == ["saved"]
    assert [goal.bound for goal in report.misses(row(1.4, 90), "hat", "cuda")] == [1.5]


@pytest.mark.parametrize("attention, verdict", [(0.9, "kernels themselves"), (0.1, "surrounds")])
def test_the_limit_that_binds_is_computed(attention, verdict):
    shares = {"attention": attention, "matrix products": 0.05, "convolutions": 0.0}
    shares |= {"copies": 0.95 - attention}
    spent = {"shares": shares, "gflop": 10.0, "page_faults": 256, "system_seconds": 0.5}
    missed = row(1.5, 50, spent | {"copies": 7})
    (goal,) = report.misses(missed, "hat", "cpu")
    text = report.bound_by(goal, missed, {"gflops": 100.0})
    assert verdict in text and "The goal is 0.750 s, ours takes 1.000 s" in text
    assert "10.0 GFLOP would take 0.100 s" in text and "1 MiB of fresh pages" in text
