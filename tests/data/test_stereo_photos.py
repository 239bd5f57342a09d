"""The photographed stereo pairs: hashes, fetching without a network, the correction of rows."""

import hashlib
import io
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ir_peft.data import photos, stereo_photos
from ir_peft.data.stereo_photos import ROWS, Rows, available, correct_rows, fetch


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_motorcycle_is_a_pair_with_the_disparity_of_its_left_view():
    (pair,) = stereo_photos.stereo_photos(("motorcycle",))
    assert pair.left.shape == pair.right.shape == (500, 741, 3)
    known = np.isfinite(pair.disparity)
    assert 0.92 < known.mean() < 0.93 and not np.isinf(pair.disparity).any()
    assert pair.disparity[known].min() > 7 and pair.disparity[known].max() < 60
    y, x = np.nonzero(known)
    there = np.rint(x - pair.disparity[known]).astype(int)
    left, right = pair.left.astype(int), pair.right.astype(int)

    def difference(a, b):
        return np.abs(a - b)[there >= 0].mean()

    of_left = difference(left[y, x], right[y, there])
    assert of_left < 9 < 12 < difference(left[y, there], right[y, x])
    with pytest.raises(ValueError, match="read-only"):
        pair.left[0, 0] = 0


def test_unknown_and_missing_pairs(tmp_path, monkeypatch):
    monkeypatch.setenv("IR_PEFT_CACHE", str(tmp_path))
    assert available("motorcycle") and not available("fujifilm")
    with pytest.raises(FileNotFoundError, match=r"sugarshack.mpo; `ir-peft fetch stereo`"):
        stereo_photos.stereo_photos(("sugarshack",))
    with pytest.raises(ValueError, match="no stereo pair 'tsukuba': there are motorcycle"):
        stereo_photos.stereo_photos(("tsukuba",))


def test_test_pairs_are_no_training_photographs():
    hashes = {rows.sha256 for rows in ROWS.values()} | set(stereo_photos.MOTORCYCLE.values())
    training = [*photos.train_photos(), *photos.validation_photos()]
    assert not hashes & {photo.sha256 for photo in training}


def test_rows_move_where_the_constants_say():
    """A ramp over rows, moved: the value at (x, Y) is the row that goes there."""
    rows = Rows("", "", 1, a=-0.02, b=1.05, c=2.5, shift=0, first=0, last=0)
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None] * 2, (100, 60, 3)).copy()
    moved = correct_rows(ramp, rows)
    x, Y = np.arange(60)[None, :], np.arange(10, 90)[:, None]
    expected = 2 * (Y - rows.a * x - rows.c) / rows.b
    assert np.abs(moved[10:90, :, 0] - expected).max() <= 0.51
    identity = replace(rows, a=0.0, b=1.0, c=0.0)
    assert np.array_equal(correct_rows(ramp, identity), ramp)
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(correct_rows(noise, replace(identity, c=3.0))[3:], noise[:-3])


def mpo(seed: int, height=40, width=60) -> bytes:
    """Two views of one scene, the right one 10 columns to the right: d = -10."""
    scene = np.random.default_rng(seed).integers(0, 256, (height // 4, (width + 10) // 5, 3))
    scene = scene.repeat(4, 0).repeat(5, 1).astype(np.uint8)
    left, right = (Image.fromarray(scene[:, k : k + width]) for k in (10, 0))
    buffer = io.BytesIO()
    left.save(buffer, format="MPO", save_all=True, append_images=[right], quality=98)
    return buffer.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"pillow-13.0.0/Tests/images/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source archive with other pictures, and a pip that has it."""
    monkeypatch.setenv("IR_PEFT_CACHE", str(tmp_path / "cache"))
    files = {rows.file: mpo(i) for i, rows in enumerate(ROWS.values())}
    data = archive(files)
    for name, rows in list(ROWS.items()):
        identity = replace(
            rows,
            sha256=sha256(files[rows.file]),
            reduce=1,
            a=0,
            b=1,
            c=0,
            shift=10,
            first=0,
            last=39,
        )
        monkeypatch.setitem(ROWS, name, identity)
    monkeypatch.setattr(stereo_photos, "PILLOW_SHA256", sha256(data))
    calls = []

    def run(command, **options):
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        (folder / "pillow-13.0.0.tar.gz").write_bytes(data)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(photos.subprocess, "run", run)
    return calls


def test_fetch_verifies_places_and_is_done_once(source, tmp_path, capsys):
    folder = fetch()
    assert sorted(p.name for p in folder.iterdir()) == ["fujifilm.mpo", "sugarshack.mpo"]
    assert source[0][-1] == "pillow==13.0.0" and "--no-binary" in source[0]
    assert "47 MB" in capsys.readouterr().err
    fetch()
    assert len(source) == 1
    pairs = stereo_photos.stereo_photos(("fujifilm", "sugarshack"))
    for pair in pairs:
        assert pair.left.shape == pair.right.shape == (36, 50, 3) and pair.disparity is None
        # Ten columns cut off each: the negative disparity is zero now.
        assert np.abs(pair.left.astype(int) - pair.right).mean() < 3
    (folder / "fujifilm.mpo").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="fujifilm.mpo: sha256 is"):
        stereo_photos.stereo_photos(("fujifilm",))
    fetch()
    assert len(source) == 2


def test_fetch_writes_nothing_of_a_wrong_archive(source, tmp_path, monkeypatch):
    monkeypatch.setattr(stereo_photos, "PILLOW_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="expected 0000"):
        fetch()
    assert not list((tmp_path / "cache" / "stereo").iterdir())


@pytest.mark.parametrize(
    "name, shape", [("fujifilm", (673, 879, 3)), ("sugarshack", (474, 535, 3))]
)
def test_fetched_pairs_have_matching_rows(name, shape):
    if not available(name):
        pytest.skip(f"{name} is not in the cache: `ir-peft fetch stereo`")
    cv2 = pytest.importorskip("cv2")
    (pair,) = stereo_photos.stereo_photos((name,))
    assert pair.left.shape == pair.right.shape == shape
    sift, found = cv2.SIFT_create(1500), []
    for view in (pair.left, pair.right):
        found.append(sift.detectAndCompute(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), None))
    (a, da), (b, db) = found
    matches = cv2.BFMatcher().knnMatch(da, db, k=2)
    good = [m for m, other in matches if m.distance < 0.6 * other.distance]
    offset = np.array([np.subtract(a[m.queryIdx].pt, b[m.trainIdx].pt) for m in good])
    near = np.abs(offset[:, 1]) < 2  # The rest is matched wrongly.
    assert near.mean() > 0.9
    assert np.median(np.abs(offset[near, 1])) < 0.25
    assert np.percentile(offset[near, 0], 2) > -0.5
