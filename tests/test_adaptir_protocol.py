"""The AdaptIR paper's own protocol, on a tiny folder of the published layout and a tiny IPT."""

import json
import os
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ir_peft import backbones, evaluate, experiments, load_backbone
from ir_peft.adaptir_protocol import (
    PROTOCOL,
    Sources,
    count_images,
    damage,
    fit,
    scored_pairs,
    steps_per_epoch,
    training_set,
)
from ir_peft.backbones import ipt
from ir_peft.cli import main
from ir_peft.data.degradations import TASKS, Bicubic
from ir_peft.data.folder_pairs import FolderPairs
from ir_peft.data.folders import FOLDER_SETS
from ir_peft.data.images import as_tensor, read_image, write_image
from ir_peft.data.patches import augment
from ir_peft.train import lr_factor

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "experiments" / "adaptir_paper.toml"
PAPER = experiments.PROFILES["paper"]
TINY = replace(PAPER, epochs=2, batch_size=3, lq_size=12, any_count=True)
PUBLISHED = {"DIV2K": 800, "Flickr2K": 2650, "WED": 4744, "BSD400": 400, "RainTrainL": 200}
PUBLISHED |= {"RainTrainH": 1800, "LOL_train": 485}


def image(seed, height=48, width=52):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return as_tensor(pixels)


def make_sets(root):
    """Every set of the protocol with one or two images, at their places in the releases."""
    sr = {"DIV2K": ("0001", "0002"), "Flickr2K": ("000001",)}
    files = {
        f"{name}/{name}_{'train_' if name == 'DIV2K' else ''}{{}}": each
        for name, each in sr.items()
    }
    tests = {"Set5": ("baby", "woman"), "Set14": ("zebra",), "B100": ("101085",)}
    tests |= {"Urban100": ("img_001",), "Manga109": ("ARMS",)}
    files |= {f"{name}/{{}}": each for name, each in tests.items()}
    seed = 0
    for folder, names in files.items():
        for name in names:
            seed += 1
            write_image(root / folder.format("HR") / f"{name}.png", image(seed))
            for scale in (2, 3, 4):
                suffix = f"_LRBI_x{scale}" if name == "ARMS" else f"x{scale}"
                low = root / folder.format("LR_bicubic") / f"X{scale}" / f"{name}{suffix}.png"
                write_image(low, Bicubic(scale)(image(seed)[:, :48, : 52 // scale * scale]))
    for name in ("WED/00001.bmp", "WED/00002.bmp", "BSD400/12003.jpg", "CBSD68/3096.png"):
        write_image(root / name, image(len(name), 16, 18))
    pairs = {
        "RainTrainL/{}rain-1.png": ("no", ""),
        "RainTrainH/{}rain-1.png": ("no", ""),
        "Rain100L/{}rain-001.png": ("no", "rainy/"),
        "Rain100H/{}rain-001.png": ("no", "rainy/"),
        "LOLv1/Train/{}/2.png": ("target", "input"),
        "LOLv1/Test/{}/1.png": ("target", "input"),
    }
    for pattern, names in pairs.items():
        for number, name in enumerate(names):
            write_image(root / pattern.format(name), image(100 + number, 17, 20))
    return root


def make_weights(path):
    """An IPT with the keys of the authors' file and random weights, near the identity."""
    torch.manual_seed(0)
    model = ipt.ipt(channels=16, patch_size=12, heads=3, depth=1)
    torch.save(ipt.official_state_dict(model.state_dict()), path)
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return Sources(make_sets(folder / "data"), make_weights(folder / "IPT_pretrain.pt"))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A clean git repository as the working directory, and the paper profile at small numbers."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / ".gitignore").write_text("runs/\n")
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "start"]):
        subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True)
    monkeypatch.chdir(folder)
    monkeypatch.setitem(experiments.PROFILES, "paper", TINY)
    return folder


def command(sources, *words):
    options = ["--profile", "paper", "--data", str(sources.data), "--weights", str(sources.weights)]
    return main(["run", str(FILE), *options, "--workers", "0", *words])


def specs(task, row="adaptir"):
    (spec,) = (s for s in experiments.load_specs(FILE) if (s.task, s.row) == (task, row))
    return spec


# ---------------------------------------------------------------- the whole command


@pytest.mark.parametrize(
    ("task", "sets", "steps", "channel", "columns"),
    [
        ("lr4_noise30", "Set5 Set14 B100 Urban100 Manga109", 2, "y", ["26.46 / 0.7441", "24.67"]),
        ("sr2", "Set5 Set14 B100 Urban100 Manga109", 2, "y", ["38.38", "39.82"]),
        ("denoise30", "CBSD68 Urban100", 4, "rgb", ["30.74", "31.98"]),
        ("derain_light", "Rain100L", 16, "y", ["41.99"]),
        ("low_light", "LOL_test", 10, "rgb", ["21.56 / 0.8415"]),
    ],
)
def test_one_command_trains_scores_and_prints_the_papers_columns(
    sources, checkout, capsys, task, sets, steps, channel, columns
):
    assert command(sources, "--tasks", task, "--rows", "frozen", "adaptir") == 0
    printed = capsys.readouterr().out
    assert f"sha256 {sources.sha256}" in printed and f"= {steps} steps" in printed
    folder = checkout / "runs" / "paper"
    found = [json.loads(path.read_text()) for path in (folder / "records").glob("*.json")]
    assert {record["spec"]["row"] for record in found} == {"frozen", "adaptir"}
    for record in found:
        names = [row["image"] for row in record["scores"]]
        assert list(dict.fromkeys(name.partition("/")[0] for name in names)) == sets.split()
        profile, protocol = record["profile"], record["protocol"]
        assert (profile["steps"], profile["batch_size"]) == (steps, 3)
        assert profile["files"].keys() == {*protocol["train"], *protocol["test"]}
        assert profile["weights"] == sources.sha256 and not record["git"]["dirty"]
        assert record["metric"]["channel"] == channel and record["spec"]["backbone"] == "ipt"
        assert (record["curve"] != []) == (record["spec"]["row"] == "adaptir")
        trained = record["spec"]["row"] == "adaptir"
        # Two layers of width 144: AdaptIR's parts at hidden 6, rank 3, gate 1.
        adapter = 870 + 12 + 18 + 27 + 6 + 12 + 12 + 7 + 45 + 864 + 19 + 7
        assert record["parameters"]["trainable"] == (2 * adapter if trained else 0)
    text = (folder / "tables" / f"adaptir-paper-{task}.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| AdaptIR |"))
    assert all(f"| {value}" in line for value in columns)
    header = next(line for line in text.splitlines() if line.startswith("| method |"))
    names = [name.strip() for name in header.split("|")]
    for name in sets.split():
        place = names.index(name)
        paper = {"LOL_test": "LOLv1", "B100": "BSDS100" if task == "lr4_noise30" else "B100"}
        assert names[place + 1] == f"paper {paper.get(name, name)}"
    assert "LoRA" in text and "not run" in text and sources.sha256 in text
    assert not (checkout / "results").exists()


def test_scores_are_those_of_the_published_pairs(sources, checkout):
    """The frozen row on Set5, image by image, by numpy."""
    assert command(sources, "--tasks", "sr4", "--rows", "frozen") == 0
    (path,) = (checkout / "runs" / "paper" / "records").glob("*.json")
    scores = {row["image"]: row["psnr"] for row in json.loads(path.read_text())["scores"]}
    model = load_backbone(sources.weights, name="ipt")
    model.set_task("sr_4")
    for name in ("baby", "woman"):
        low = read_image(sources.data / "Set5" / "LR_bicubic" / "X4" / f"{name}x4.png")
        with torch.no_grad():
            restored = model(low[None])[0]
        gt = read_image(sources.data / "Set5" / "HR" / f"{name}.png")
        a, b = (
            (x.clamp(0, 1) * 255).round().permute(1, 2, 0).double().numpy()[4:-4, 4:-4]
            @ np.array([65.481, 128.553, 24.966])
            / 255
            for x in (restored, gt)
        )
        expected = 10 * np.log10(255**2 / ((a - b) ** 2).mean())
        assert scores[f"Set5/{name}"] == pytest.approx(expected, abs=1e-3)


def test_a_run_goes_on_at_its_checkpoint(sources, checkout):
    """The seconds of a second run are those of the first: nothing was trained again."""
    words = ("--tasks", "sr4", "--rows", "adaptir")
    assert command(sources, *words) == 0
    (path,) = (checkout / "runs" / "paper" / "records").glob("*.json")
    first = json.loads(path.read_text())
    path.unlink()
    assert command(sources, *words) == 0
    second = json.loads(path.read_text())
    assert (first["curve"], first["seconds"]) == (second["curve"], second["seconds"])
    assert [r["psnr"] for r in first["scores"]] == [r["psnr"] for r in second["scores"]]


# ---------------------------------------------------------------- counts and lengths


@pytest.mark.parametrize(
    ("task", "per_epoch"),
    [
        ("lr4_noise30", 215),
        ("sr3", 215),
        ("denoise50", 8594 // 16),
        ("derain_light", 300),
        ("derain_heavy", 4 * 1800 // 16),
        ("low_light", 485),
    ],
)
def test_steps_of_an_epoch(task, per_epoch):
    assert steps_per_epoch(task, PUBLISHED, 16) == per_epoch
    for name in PROTOCOL[task].train:
        assert FOLDER_SETS[name].count in (PUBLISHED[name], None)


def test_the_hybrid_tasks_have_the_papers_length_and_milestones():
    steps = PAPER.epochs * steps_per_epoch("lr4_jpeg30", PUBLISHED, PAPER.batch_size)
    assert steps == 107_500
    for place, step in enumerate((53_750, 86_000, 96_750, 102_125), start=1):
        assert lr_factor(step - 1, steps, PAPER.schedule) == 0.5 ** (place - 1)
        assert lr_factor(step, steps, PAPER.schedule) == 0.5**place
    with pytest.raises(ValueError, match="2 samples an epoch do not fill a batch of 16"):
        steps_per_epoch("sr4", {"DIV2K": 1, "Flickr2K": 1}, 16)


def test_the_file_has_the_papers_methods_and_tasks():
    found = experiments.load_specs(FILE)
    assert {(s.table, s.backbone, s.lr, str(s.adapter)) for s in found} == {
        ("paper", "ipt", 1e-4, "{}")
    }
    assert (
        {s.task for s in found}
        == set(PROTOCOL)
        <= set(TASKS) & (set(ipt.TASK_MAP) | set(ipt.ALIASES))
    )
    methods = "full frozen vpt houlsby lora adaptformer ssf fact adaptir"
    assert Counter(s.method for s in found) == dict.fromkeys(methods.split(), 10)
    sets = {name for p in PROTOCOL.values() for name in p.train + p.test}
    assert sets <= set(FOLDER_SETS)


def test_an_epoch_visits_every_image_equally_often(sources):
    spec = specs("derain_light")
    profile = fit(replace(TINY, batch_size=5), spec, sources)
    assert profile.files == {"RainTrainL": 1, "Rain100L": 1}
    assert profile.steps == 2 * (24 // 5)
    data = training_set(specs("sr4"), fit(TINY, specs("sr4"), sources), sources)
    names = [data._file(index, None).name for index in range(len(data))]
    assert sorted(names[:3]) == sorted(names[3:]) == ["000001", "0001", "0002"]
    data.epoch = 6  # Two rounds.
    assert set(Counter(data._file(i, None).name for i in range(6)).values()) == {2}
    data.epoch, data.pairs = 4, data.pairs[:2] * 30
    orders = [[data._file(e * 4 + i, None).name for i in range(4)] for e in range(9)]
    assert len({tuple(order) for order in orders}) > 1


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("task", list(PROTOCOL))
def test_training_and_test_images_of_every_task(sources, task):
    """Scale, size and files: what is read is what lies there, and only noise is added."""
    spec = specs(task)
    profile = fit(TINY, spec, sources)
    data, s = training_set(spec, profile, sources), TASKS[task].scale
    lq, gt = data[1]
    assert lq.shape == (3, 12, 12) and gt.shape == (3, 12 * s, 12 * s)
    assert len(data) == profile.steps * profile.batch_size
    levels = lq * 255
    assert (levels - levels.round()).abs().max() < 1e-3  # 8 bits in training, in every task.
    pairs = scored_pairs(spec, profile, sources)
    assert [name for name, _, _ in pairs][0].startswith(PROTOCOL[task].test[0] + "/")
    for name, lq, gt in pairs:
        assert gt.shape[1:] == (s * lq.shape[1], s * lq.shape[2])
        levels = lq * 255
        whole = (levels - levels.round()).abs().max() < 1e-3
        assert whole == (not task.startswith("denoise")), name
        assert lq.min() >= 0 and lq.max() <= 1


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_training_reads_the_low_resolution_files_of_its_own_scale(sources, scale):
    spec = specs(f"sr{scale}")
    lq, _ = training_set(spec, fit(TINY, spec, sources), sources)[0]
    files = list(sources.data.glob(f"*/*_LR_bicubic/X{scale}/*.png"))
    assert len(files) == 3
    places = [
        path
        for path in files
        for window in [read_image(path).unfold(1, 12, 1).unfold(2, 12, 1)]
        for turn in range(8)
        for y in range(window.shape[1])
        for x in range(window.shape[2])
        if torch.equal(augment(window[:, y, x], turn), lq)
    ]
    assert len(places) == 1


def test_rain_is_cut_to_a_multiple_of_16_around_its_centre(sources):
    """17 x 20 pixels: of the 16 x 16 in the middle, columns 2 to 17."""
    spec = specs("derain_light")
    profile = replace(fit(TINY, spec, sources), lq_size=16)
    data = training_set(spec, profile, sources)
    lq, gt = data[0]
    rain = read_image(sources.data / "RainTrainL" / "rain-1.png")[:, :16, 2:18]
    (turn,) = (k for k in range(8) if torch.equal(augment(rain, k), lq))
    clean = read_image(sources.data / "RainTrainL" / "norain-1.png")[:, :16, 2:18]
    assert torch.equal(augment(clean, turn), gt)


@pytest.mark.parametrize("task", ["lr4_noise30", "denoise50"])
def test_noise_of_a_test_image_depends_on_nothing_but_its_set_and_name(sources, tmp_path, task):
    """The same image in a folder of others, under another number, in another order of sets."""
    data = tmp_path / "data"
    shutil.copytree(sources.data / "Urban100", data / "Urban100")
    shutil.copytree(sources.data / "Urban100", data / "Set5")
    for path in list(data.glob("Urban100/**/img_001*")):
        shutil.copy(path, path.with_name(path.name.replace("img_001", "img_000")))
    made = damage(task, "test")
    alone = FolderPairs(sources.data, "Urban100", made, any_count=True)[0]
    pairs = FolderPairs(data, "Urban100", made, any_count=True)
    again = dict((name, lq) for name, lq, _ in [pairs[1], pairs[0]])
    assert torch.equal(again["img_001"], alone[1])
    assert not torch.equal(again["img_000"], alone[1])  # The same pixels under another name.
    other = FolderPairs(data, "Set5", made, any_count=True)[0]
    assert other[0] == "img_001" and not torch.equal(other[1], alone[1])


# ---------------------------------------------------------------- what is missing


def test_everything_that_is_missing_is_named_before_anything_is_trained(
    sources, checkout, tmp_path, capsys
):
    data = tmp_path / "data"
    shutil.copytree(sources.data, data)
    shutil.rmtree(data / "Flickr2K" / "Flickr2K_HR")
    shutil.rmtree(data / "Manga109")
    (data / "Set5" / "LR_bicubic" / "X4" / "babyx4.png").unlink()
    broken = Sources(data, sources.weights)
    assert command(broken, "--tasks", "sr4", "denoise30", "--rows", "frozen", "adaptir") == 2
    error = capsys.readouterr().err
    assert "lacks what sr4, denoise30 need" in error
    assert "Flickr2K/Flickr2K_HR/* with Flickr2K/Flickr2K_LR_bicubic/X4/*x4, 2650 images" in error
    assert "Manga109/LR_bicubic/X4/*_LRBI_x4" in error
    assert "1 images without a partner: ['baby']" in error
    assert "Usable: DIV2K (2), Set14 (1)" in error
    assert "The folder holds: B100, BSD400" in error and "ir-peft data check" in error
    assert not (checkout / "runs").exists()


def test_numbers_of_images_are_the_published_ones(sources):
    with pytest.raises(FileNotFoundError, match="DIV2K has 2 images in .*, expected 800"):
        count_images(sources.data, ["sr4"], any_count=False)
    with pytest.raises(ValueError, match="AdaptIR has no task 'haze'"):
        count_images(sources.data, ["haze"], any_count=True)


def test_missing_and_foreign_weights(sources, checkout, tmp_path, capsys):
    words = ("--tasks", "sr4", "--rows", "frozen")
    assert command(replace(sources, weights=tmp_path / "none.pt"), *words) == 2
    assert "no such file of weights" in capsys.readouterr().err
    tag = backbones.WEIGHTS / "dat_light_x4.safetensors"
    assert command(replace(sources, weights=tag), *words) == 2
    assert "holds a dat_light x4, not a ipt" in capsys.readouterr().err
    single = tmp_path / "IPT_sr4.pt"
    model = ipt.ipt(channels=16, patch_size=12, heads=3, depth=1, scales=(4,))
    torch.save(ipt.official_state_dict(model.state_dict()), single)
    foreign = replace(sources, weights=single)
    assert command(foreign, "--tasks", "sr4", "low_light", "--rows", "frozen") == 2
    assert "has no task 'low_light'" in capsys.readouterr().err
    assert command(replace(sources, data=tmp_path / "nowhere"), *words) == 2
    assert "no such folder of data sets" in capsys.readouterr().err
    assert not (checkout / "runs").exists()


def test_other_profiles_and_the_paper_one_say_what_they_take(sources, checkout, capsys):
    assert main(["run", str(FILE), "--profile", "paper", "--data", str(sources.data)]) == 2
    assert "--data FOLDER --weights IPT_pretrain.pt" in capsys.readouterr().err
    words = ["run", str(FILE), "--profile", "smoke", "--data", str(sources.data)]
    assert main(words) == 2
    assert "are for --profile paper, not smoke" in capsys.readouterr().err
    with pytest.raises(ValueError, match="profile paper takes published images"):
        experiments.run(specs("sr4"), TINY)
    smoke = experiments.PROFILES["smoke"]
    with pytest.raises(ValueError, match="profile smoke takes no published images"):
        experiments.run(specs("sr4"), smoke, sources=sources)
    with pytest.raises(ValueError, match="trains a row on one task"):
        fit(TINY, replace(specs("sr4"), train_tasks=("sr2", "sr4")), sources)


# ---------------------------------------------------------------- the authors' weights


def test_the_frozen_ipt_has_the_papers_score_on_set5():
    """LR x4 & noise 30, the row Pretrain: 19.74 dB and 0.3569, but for the draw of the noise."""
    names = {"IR_PEFT_DATA": "the folder of Set5", "IR_PEFT_IPT": "IPT_pretrain.pt"}
    missing = [f"{name} ({what})" for name, what in names.items() if name not in os.environ]
    if missing:
        pytest.skip(f"needs the authors' weights and Set5: set {' and '.join(missing)}")
    model = load_backbone(os.environ["IR_PEFT_IPT"], name="ipt")
    model.set_task("lr4_noise30")
    pairs = FolderPairs(os.environ["IR_PEFT_DATA"], "Set5", damage("lr4_noise30", "test"))
    rows = evaluate(model, pairs, channel="y", crop_border=4, progress=False)
    psnr, ssim = (sum(row[key] for row in rows) / len(rows) for key in ("psnr", "ssim"))
    assert psnr == pytest.approx(19.74, abs=0.1) and ssim == pytest.approx(0.3569, abs=0.01)
