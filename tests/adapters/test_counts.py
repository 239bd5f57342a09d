"""Sizes of the AdaptIR paper's methods on whole backbones: built, by formula, and as reported."""

import importlib.util
from pathlib import Path

import pytest
import torch

from ir_peft.adapters import attach_adapter, count_parameters, trainable_parameters
from ir_peft.backbones import create_backbone

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("counts", ROOT / "tools" / "count_parameters.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXACT = {
    "ipt": {
        "full": 118_892_394, "vpt": 884_736, "houlsby": 691_776, "lora": 995_328,
        "adaptformer": 677_952, "ssf": 373_248, "fact": 537_472, "adaptir": 697_656,
    },
    "edt_b": {"adaptir": 173_412},
    "dat_light": {"adaptir": 34_866, "full": 572_766},
}  # fmt: skip
"""What the paper's settings give on its backbones."""


@pytest.mark.parametrize(
    ("backbone", "row"), [(b, method) for b, counts in EXACT.items() for method in counts]
)
def test_exact_counts(tool, backbone, row):
    assert tool.build(backbone, row) == EXACT[backbone][row]


@pytest.mark.parametrize("backbone", ["ipt", "ipt_mini", "edt_b", "dat_light"])
def test_closed_formulas(tool, backbone):
    for row, sizes in tool.SIZES[backbone].items():
        assert tool.build(backbone, row) == tool.evaluate(row, sizes), row


def test_the_papers_numbers_are_ours(tool):
    """Thousands, cut off or rounded; AdaptIR's of v1 has none of v2's gates, 4,704 weights."""
    printed = tool.printed()
    assert printed.pop("full") == round(EXACT["ipt"]["full"], -6)
    for row, number in printed.items():
        ours = EXACT["ipt"][row] - (4_704 if row == "adaptir" else 0)
        assert number in (ours // 1000 * 1000, round(ours, -3)), row


def test_the_committed_table_is_the_tools(tool):
    assert tool.TABLE.read_text(encoding="utf-8") == tool.table()


@pytest.mark.parametrize("form", ["parallel", "sequential"])
@pytest.mark.parametrize("site", ["ffn", "self_attn"])
def test_placements_of_adaptir_have_one_size_and_start_as_the_backbone(site, form):
    target = rf"body\.(encoder|decoder)\.layers\.\d+\.{site}"
    with torch.device("meta"):
        whole = create_backbone("ipt")
        attach_adapter(whole, "adaptir", target_modules=target, form=form)
    assert count_parameters(whole)[0] == 697_656
    torch.manual_seed(0)
    model = create_backbone("ipt", channels=4, heads=3, depth=1, patch_size=12).eval()
    x = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        expected = model(x)
        attach_adapter(model, "adaptir", target_modules=target, form=form)
        assert torch.equal(model(x), expected)
        for p in trainable_parameters(model).values():
            p.add_(0.1)
        assert not torch.equal(model(x), expected)
