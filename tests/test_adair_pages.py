"""AdaIR's pages: one file a question, whatever was run, and the files that `reproduce` writes."""

import re

import pandas as pd
import pytest

from ir_peft import adair_pages, plots, pretrain
from ir_peft.adapters import attach_adapter, count_parameters

from .adair_records import ADAPTER, BASE, PLAN, make_curves, make_records, psnr_of


def study(keep=lambda line: True, seeds=1):
    records = pd.concat(
        [make_records(keep, lambda line, k=k: psnr_of(line) + 0.1 * k, k) for k in range(seeds)],
        ignore_index=True,
    )
    return adair_pages.Study(records, make_curves(records), PLAN)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    paths = adair_pages.write_tables(study(), folder, notes="A note.")
    assert sorted(paths) == sorted(folder.iterdir())
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def test_a_page_a_question_not_a_file_a_task(written):
    assert set(written) == {f"adair-{name}.md" for name in adair_pages.TABLES}
    for name, text in written.items():
        assert text.startswith(f"# {name.removesuffix('.md')}\n\nBackbone")
        assert "A note." in text and "not known to us" in text and "| ---: |" in text
        assert "\n- " in text and "nan" not in text and text.endswith("\n")
        assert "\n\n\n" not in text


def test_pages_hold_the_numbers_of_the_records(written):
    grid = written["adair-multitask.md"]
    [line] = [line for line in grid.splitlines() if line.startswith("| AdaIR |")]
    assert line.startswith("| AdaIR | 60,480 | **27.50** | **27.60** |")
    assert "| LoRA | 60,480 | 27.00 |" in grid and "Bold: the best adapter" in grid
    assert "task `denoise25`, `" not in grid and "tasks `denoise25`, `denoise15`" in grid
    assert "Backbones `restormer_mini_transfer-none`, " in written["adair-transfer.md"]
    alone, adapted, gain = written["adair-transfer.md"].split("\n## ")[1:]
    assert "random weights" in adapted and "random weights |" not in alone + gain
    assert "| From scratch, trained at sigma 25 | denoise50 |" in written["adair-unseen.md"]
    assert "| width | width 5 | 60,480 |" in written["adair-ablation.md"]
    megabytes = 4 * BASE / 1e6
    storage = written["adair-storage.md"]
    assert f"| 10 | {10 * megabytes:.1f} | {megabytes + 40 * ADAPTER / 1e6:.1f} |" in storage
    assert "## Restormer, by count [MB]" in storage and "10 tasks: 1045.1 MB" in storage


def test_seeds_are_on_the_page(tmp_path):
    adair_pages.write_tables(study(lambda line: line.table == "multitask", seeds=3), tmp_path)
    text = (tmp_path / "adair-multitask.md").read_text(encoding="utf-8")
    assert (
        "| **27.60 ± 0.10 (3)** |" in text
        and "of a row on the base differ by up to 0.20 dB" in text
    )


def test_only_what_was_run_has_a_page_and_a_figure(tmp_path, capsys):
    few = study(lambda line: line.table == "ablation" and line.row != "conv3x3")
    assert [p.name for p in adair_pages.write_tables(few, tmp_path)] == ["adair-ablation.md"]
    assert "| not run |" in (tmp_path / "adair-ablation.md").read_text()
    assert {name for name, _ in adair_pages.figures(few)} == {"ablation", "storage"}
    assert "no figure adair-transfer: no cell" in capsys.readouterr().out


def test_the_bases_steps_are_those_of_their_recipes():
    short = {pretrain.RECIPES[f"restormer_mini_{name}"].steps for name in pretrain.TRANSFER}
    (steps,) = short
    assert f"{steps:,} steps of pretraining each" in adair_pages.SHORT_BASES
    base = pretrain.RECIPES["restormer_mini"].steps
    assert f"other pages {base:,};" in adair_pages.SHORT_BASES


def test_every_figure_is_drawn_and_written(tmp_path, monkeypatch):
    saved = {}
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, folder, name, smoke: [saved.setdefault(name, smoke)]
    )
    adair_pages.write_figures(study(seeds=2), tmp_path, smoke=True)
    assert saved == {f"adair-{name}": True for name in adair_pages.FIGURES}


def test_the_full_networks_sizes():
    import torch

    from ir_peft import create_backbone

    with torch.device("meta"):
        model = attach_adapter(create_backbone("restormer"), "adair")
    sizes = adair_pages.RESTORMER_ADAPTER, adair_pages.RESTORMER + adair_pages.RESTORMER_ADAPTER
    assert count_parameters(model) == sizes


def test_sentences_have_no_loose_ends(written):
    for text in written.values():
        for line in re.findall(r"^- (.*)$", text, flags=re.MULTILINE):
            assert line[0].isupper() or line[0] in "±0123456789", line
            assert line.endswith(".") and ".." not in line, line


def test_one_task_a_row_is_enough(tmp_path, capsys):
    """As in the smoke profile: one task of every row, and nothing was validated."""
    first = {(line.table, line.row): line.task for line in PLAN.iloc[::-1].itertuples()}
    few = study(lambda line: first[line.table, line.row] == line.task)
    few = adair_pages.Study(few.records, few.curves.drop(columns="val_psnr"), PLAN)
    assert len(adair_pages.write_tables(few, tmp_path)) == len(adair_pages.TABLES)
    drawn = {name for name, _ in adair_pages.figures(few)}
    assert drawn == set(adair_pages.FIGURES) - {"unseen", "jpeg-curves"}
    assert "no figure adair-unseen" in capsys.readouterr().out
