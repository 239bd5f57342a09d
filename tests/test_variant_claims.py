import numpy as np
import pandas as pd
import pytest

from ir_peft.variant_claims import ABLATION, ablation_claims, peft_claims, scaling_claims


def table(rows, spread=np.nan):
    """A table of row -> (method, trainable, PSNR); the spread is that of AdaptIR and LoRA."""
    frame = pd.DataFrame.from_dict(rows, "index", columns=["method", "trainable", "psnr"])
    frame = frame.rename_axis("row").reset_index()
    frame["label"] = frame["row"]
    return frame.assign(psnr_spread=frame["row"].isin(["adaptir", "lora"]).map({True: spread}))


def ablation(spread, **psnr):
    rows = {"adaptir": 23.0, "lim_fam": 22.9, "lim_cgm": 22.8, "fam_cgm": 22.9}
    rows |= {"dense_lim": 23.02, "dense_fam": 22.95} | psnr
    frame = table({row: ("adaptir", 40_000, value) for row, value in rows.items()}, spread)
    frame.loc[frame["row"] == "dense_lim", "trainable"] = 68_000
    return ablation_claims(frame, None)


def test_ablation_claims_compare_with_the_spread_of_the_reference():
    branches, alone, ensemble, cgm, place, depthwise = ablation(0.05)
    assert branches == (
        True,
        "Each of the three branches counts: adaptir against lim_fam +0.10 dB, lim_cgm +0.20 dB, "
        "fam_cgm +0.10 dB; the seeds' spread is 0.05 dB",
    )
    assert [claim[0] for claim in (alone, ensemble, cgm, place)] == [None] * 4
    assert "needs adaptir and lim or fam or cgm" in alone[1]
    assert depthwise[0] is True
    assert "dense_lim +0.02 dB for +28,000 values, dense_fam -0.05 dB for +0 values" in depthwise[1]
    assert ablation(0.15)[0][0] is None
    assert ablation(0.05, fam_cgm=23.1)[0][0] is False
    assert ablation(0.01, dense_lim=23.26)[5][0] is False
    assert ablation(np.nan)[0][0] is True
    assert len(ABLATION) == 5


def curves(adaptir, lora):
    rows = {"frozen": ("frozen", 0, 20.0), "full": ("full", 1_000_000, 30.0)}
    for method, points in (("adaptir", adaptir), ("lora", lora)):
        rows |= {f"{method}, {size}": (method, size, psnr) for size, psnr in points.items()}
    return table(rows)


def test_scaling_reads_the_others_between_their_points():
    frame = curves({1_000: 21.0, 10_000: 23.0}, {1_000: 20.5, 100_000: 22.5})
    size, growth = scaling_claims(frame, None)
    # Half way between 1,000 and 100,000 on the log axis LoRA has 21.5 dB.
    assert size[0] is True
    assert "+0.50 dB at 1,000 values (lora), +1.50 dB at 10,000 values (lora)" in size[1]
    # Both have the sizes from 1,000 to 10,000.
    assert growth[0] is True
    assert "from 1,000 to 10,000 values adaptir +2.00, lora +1.00 dB" in growth[1]


def test_scaling_leaves_out_sizes_that_no_other_method_has():
    frame = curves({1_000: 21.0, 500_000: 23.0}, {500: 21.5, 100_000: 22.5})
    size, _ = scaling_claims(frame, None)
    assert size[0] is False
    assert "at 1,000" in size[1] and "no other was run at 500,000" in size[1]
    beyond = curves({300_000: 21.0, 500_000: 23.0}, {500: 21.5, 100_000: 22.5})
    assert scaling_claims(beyond, None)[0][0] is None
    one = curves({1_000: 21.0}, {500: 21.5, 100_000: 22.5})
    assert [claim[0] for claim in scaling_claims(one, None)] == [None]


@pytest.mark.parametrize(("theirs", "same"), [(22.03, True), (22.2, False)])
def test_peft_claims_set_both_libraries_side_by_side(theirs, same):
    rows = {"frozen": ("frozen", 0, 20.0), "lora": ("lora", 38_880, 22.0)}
    rows |= {"adaptir": ("adaptir", 39_630, 22.5), "peft_lora": ("peft", 38_880, theirs)}
    rows |= {"ia3": ("peft", 1_944, 19.9)}
    ours, lora, both, frozen = peft_claims(table(rows, 0.05), None)
    assert ours[0] is True
    assert f"{22.5 - theirs:+.2f} dB against peft_lora (38,880 values), beyond" in ours[1]
    assert lora[0] is (None if same else False)
    assert both[0] is same
    assert frozen == (
        False,
        "Every method of Hugging Face peft beats the frozen backbone: least ia3, -0.10 dB",
    )
    rows.pop("adaptir")
    assert [claim[0] for claim in peft_claims(table(rows), None)] == [None]
