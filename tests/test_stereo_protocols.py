"""ASteISR's test protocol: the sets, scales and columns of its tables, and the command."""

import pytest
import torch

import ir_peft
from ir_peft.cli import main
from ir_peft.data import write_image
from ir_peft.data.degradations import Bicubic
from ir_peft.data.stereo_folders import STEREO_SETS, StereoFolderPairs
from ir_peft.stereo_protocols import (
    STEREO_PROTOCOLS,
    TEST_SETS,
    evaluate_stereo_protocol,
    stereo_summary,
)


@pytest.fixture
def root(tmp_path):
    """Two pairs a set at both scales; the low resolution of one has a mark of its own."""
    generator = torch.Generator().manual_seed(0)
    for name in ("Middlebury", "KITTI2012"):
        for scene in ("a", "b"):
            hr = torch.rand(2, 3, 16, 96, generator=generator)
            for view in (0, 1):
                write_image(tmp_path / f"test/{name}/hr/{scene}/hr{view}.png", hr[view])
                for s in (2, 4):
                    lr = Bicubic(s)(hr)[view] * (0.5 if scene == "b" else 1)
                    write_image(tmp_path / f"test/{name}/lr_x{s}/{scene}/lr{view}.png", lr)
    return tmp_path


def nearest(s):
    return lambda x: x.repeat_interleave(s, -1).repeat_interleave(s, -2)


def test_the_sets_have_both_scales_and_a_count():
    assert sorted(STEREO_PROTOCOLS.values()) == [2, 4]
    assert [STEREO_SETS[name].count for name in TEST_SETS] == [20, 20, 5, 112]
    assert all(STEREO_SETS[name].scales == (2, 4) for name in TEST_SETS)


@pytest.mark.parametrize(("name", "s"), STEREO_PROTOCOLS.items())
def test_rows_are_those_of_the_files(root, name, s):
    sets = ("Middlebury", "KITTI2012")
    rows = evaluate_stereo_protocol(
        nearest(s), root, name, sets=sets, any_count=True, progress=False
    )
    found = [(row["protocol"], row["set"], row["image"]) for row in rows]
    assert found == [(name, each, scene) for each in sets for scene in "ab"]
    pairs = StereoFolderPairs(root, "KITTI2012", Bicubic(s), any_count=True)
    for row, expected in zip(
        rows[2:], ir_peft.evaluate_stereo(nearest(s), pairs, progress=False), strict=True
    ):
        assert all(row[key] == expected[key] for key in expected if key != "seconds")
    assert rows[0]["psnr_mean"] > rows[1]["psnr_mean"]  # The darker files were read.


def test_the_summary_has_the_means_of_each_set():
    keys = ("psnr_mean", "ssim_mean", "psnr_left64", "ssim_left64")
    rows = [
        {"protocol": "asteisr_x4", "set": each, "psnr_left": 0.0, "psnr_right": 0.0}
        | {key: value + i for i, key in enumerate(keys)}
        for each, value in (("Middlebury", 20.0), ("Middlebury", 21.0), ("Flickr1024", 30.0))
    ]
    lines = stereo_summary(rows).splitlines()
    assert lines[2:4] == [
        "| asteisr_x4 | Middlebury | 2 | 20.50 | 21.5000 | 22.50 | 23.5000 |",
        "| asteisr_x4 | Flickr1024 | 1 | 30.00 | 31.0000 | 32.00 | 33.0000 |",
    ]
    assert "without its first 64 columns" in lines[-1]


def test_refusals_come_before_a_pair_is_restored(root):
    def run(name="asteisr_x4", model=None, **options):
        evaluate_stereo_protocol(model, root, name, progress=False, **options)

    with pytest.raises(ValueError, match="did you mean 'asteisr_x4'"):
        run("astesr_x4")
    with pytest.raises(ValueError, match="has the sets KITTI2012, .*, not \\('Set5',\\)"):
        run(sets=("Set5",))
    with pytest.raises(ValueError, match="Middlebury has 2 pairs in .*, expected 5"):
        run(sets=("Middlebury",))
    with pytest.raises(FileNotFoundError, match="KITTI2015 is not available"):
        run(any_count=True)
    with pytest.raises(ValueError, match="enlarge by 4, this one by 2"):
        run(model=ir_peft.Stereo(ir_peft.load_backbone("hat_mini_x2")))


def test_the_command_scores_pairs(root, capsys, tmp_path):
    words = ["--data", str(root), "--any-count", "--device", "cpu", "--backbone"]
    assert main(["test", "asteisr_x2", "--sets", "Middlebury", *words, "hat_mini_x2"]) == 0
    said = capsys.readouterr()
    assert "no stereo adapter: each view is restored alone" in said.err
    model = ir_peft.Stereo(ir_peft.load_backbone("hat_mini_x2"))
    rows = evaluate_stereo_protocol(
        model, root, "asteisr_x2", sets=("Middlebury",), any_count=True, progress=False
    )
    assert said.out.strip() == stereo_summary(rows).strip()
    ir_peft.attach_adapter(model, "asteisr")
    ir_peft.save_adapter(model, tmp_path / "adapter")
    adapter = ["hat_mini_x2", "--adapter", str(tmp_path / "adapter")]
    assert main(["test", "asteisr_x2", "--sets", "KITTI2012", *words, *adapter]) == 0
    assert "no stereo adapter" not in capsys.readouterr().err
    for wrong, match in [
        (["asteisr_x4", *words, "hat_mini_x2"], "enlarge by 4, this one by 2"),
        (["asteisr_x2", "promptir_derain", *words, "hat_mini_x2"], "in two runs"),
        (["asteisr_x2", *words, "hat_mini_x2"], "KITTI2015 is not available"),
        (["promptir_derain", *words, *adapter], "enlarges images"),
        (["astesr_x2", *words, "restormer_mini"], "asteisr_x2"),
    ]:
        assert main(["test", *wrong]) == 2
        assert match in capsys.readouterr().err
