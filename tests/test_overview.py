import numpy as np
import pandas as pd

from ir_peft.overview import best_adapters, overview, scores, verdicts


def frame(**psnr):
    """A table of row -> PSNR; LoRA has three seeds."""
    methods = {"full_tail": "full", "lora_tail": "lora"}
    made = pd.DataFrame({"row": list(psnr), "psnr": list(psnr.values())})
    made["method"] = made["row"].map(lambda row: methods.get(row, row))
    made["label"] = made["row"].str.capitalize()
    made["trainable"] = made["row"].map({"frozen": 0, "full": 1_000}).fillna(40)
    made["seeds"] = np.where(made["psnr"].isna(), 0, np.where(made["row"] == "lora", 3, 1))
    return made.assign(psnr_sd=np.where(made["row"] == "lora", 0.03, np.nan))


FRAMES = {
    "sr2": frame(frozen=31.0, full=32.0, lora=31.5, adaptir=31.4, lora_tail=31.9),
    "sr4": frame(frozen=26.0, full=26.3, lora=26.1, adaptir=26.2, vpt=np.nan),
}


def test_the_best_adapter_alone_is_neither_full_nor_with_the_tail():
    assert [best_adapters(made) for made in FRAMES.values()] == [["lora"], ["adaptir"]]
    assert best_adapters(frame(frozen=1.0, full=2.0)) == []
    stereo = frame(full=2.0, scratch=1.5, asteisr=1.0)
    assert best_adapters(stereo.assign(method="asteisr")) == ["asteisr"]
    assert best_adapters(frame(lora=1.001, adaptir=0.999, vpt=0.99)) == ["lora", "adaptir"]


def test_scores_have_a_line_a_row_and_a_column_a_task():
    shown = scores(FRAMES).set_index("method")
    assert shown.columns.tolist() == ["trainable", "sr2", "sr4"]
    assert shown.loc["Lora"].tolist() == ["40", "**31.50 ± 0.03 (3)**", "26.10 ± 0.03 (3)"]
    assert shown.loc["Adaptir"].tolist() == ["40", "31.40", "**26.20**"]
    assert shown.loc["Lora_tail"].tolist() == ["40", "31.90", "–"]
    assert shown.loc["Vpt"].tolist() == ["40", "–", "not run"]


def test_verdicts_have_a_line_a_claim_whatever_its_evidence():
    checks = {
        "sr2": [(True, "It leads: +0.10 dB"), (None, "It lasts: needs lora")],
        "sr4": [(False, "It leads: -0.10 dB: a lot")],
    }
    shown = verdicts(checks).set_index("claim")
    assert shown.loc["It leads"].tolist() == ["holds", "does not hold"]
    assert shown.loc["It lasts"].tolist() == ["open", "–"]


def test_the_page_links_its_tables_and_counts_the_best():
    page = overview("adaptir-ipt", FRAMES, {"sr2": [(True, "It leads: yes")], "sr4": []})
    assert page.startswith("# adaptir-ipt\n")
    assert "Lora on 1, Adaptir on 1 of 2 tasks" in page
    assert "[sr2](adaptir-ipt-sr2.md), [sr4](adaptir-ipt-sr4.md)" in page
    assert "| Adaptir | 40 | 31.40 | **26.20** |" in page
    assert "| It leads | holds | – |" in page
    assert "| claim |" not in overview("adaptir-ipt", FRAMES, {"sr2": [], "sr4": []})
