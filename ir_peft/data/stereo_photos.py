"""Photographed stereo pairs to test on, never trained on.

`motorcycle` comes with scikit-image (Middlebury 2014 at a quarter of its size, with disparity).
`fujifilm` and `sugarshack`, two files of consumer 3D cameras, are in Pillow's source archive and
are fetched once into the cache; their right views are brought to the rows of the left ones here.
Three pairs are no benchmark: give the three values, not only their mean.
"""

from __future__ import annotations

import importlib.util
import io
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ir_peft.data.photos import cache_dir, download, sha256_of, verified, verify
from ir_peft.files import write_bytes

__all__ = ["STEREO_PHOTOS", "StereoPhoto", "available", "correct_rows", "fetch", "stereo_photos"]

PILLOW = "pillow==13.0.0"
PILLOW_SHA256 = "cdcd1ba258178f7356d74170c9a81ba4eab6a5d55748bc402a5a2a6fe6be3510"
MARGIN = 2
"""Rows cut off beside those that the correction leaves empty."""


@dataclass(frozen=True, eq=False)
class StereoPhoto:
    """One rectified pair, read-only: left[y, x] is the point right[y, x - d], d >= 0."""

    name: str
    """Of the pair."""
    left: np.ndarray
    """(H, W, 3) uint8."""
    right: np.ndarray
    """(H, W, 3) uint8; of a fetched pair slightly smoother than the left view: it is resampled."""
    disparity: np.ndarray | None
    """(H, W) float32 in pixels, of the left view, NaN where unknown; None without ground truth."""
    licence: str
    """What is known of it."""


@dataclass(frozen=True)
class Rows:
    """How a 3D camera's right view comes to the left one's rows: y_left = a x + b y + c.

    Fitted by tools/fit_stereo_rows.py to matched points of the two views.
    """

    file: str
    """In Pillow's test images, and in the cache."""
    sha256: str
    """Of the file."""
    reduce: int
    """Each k x k pixels are averaged first."""
    a: float
    """Rows a pixel to the right."""
    b: float
    """Rows a row."""
    c: float
    """Rows at the origin, the centre of the first pixel."""
    shift: int
    """Columns cut off at the right view's left and the left view's right: added to d."""
    first: int
    """First row that the corrected right view has."""
    last: int
    """Last row that it has."""


ROWS: dict[str, Rows] = {
    "fujifilm": Rows(
        "fujifilm.mpo",
        "9a762601aacf49a2e5a999521447279ae2a7fd91d1872301f49a1ff8b1c0b544",
        reduce=4, a=-0.005438, b=0.997019, c=1.236, shift=33, first=1, last=677,
    ),
    "sugarshack": Rows(
        "sugarshack.mpo",
        "e21649efe1bb04e342203fbb73fb8381609e3577949d4a8868cfeb90acfa1579",
        reduce=1, a=-0.000341, b=1.001904, c=-2.202, shift=105, first=0, last=477,
    ),
}  # fmt: skip
MOTORCYCLE = {
    "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "motorcycle_right.png": "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797",
    "motorcycle_disp.npz": "2e49c8cebff3fa20359a0cc6880c82e1c03bbb106da81a177218281bc2f113d7",
}
STEREO_PHOTOS = ("motorcycle", *ROWS)
"""Names of the pairs; the first needs no download."""


def stereo_photos(names: tuple[str, ...] = STEREO_PHOTOS) -> list[StereoPhoto]:
    """The named pairs.

    Raises:
        ValueError: there is no such pair, or a file has other bytes than the pair's.
        FileNotFoundError: a file is missing; the message says how to get it.
    """
    _check(names)
    missing = [name for name in names if not available(name)]
    if missing:
        paths = ", ".join(str(_path(name)) for name in missing)
        raise FileNotFoundError(f"missing {paths}; `ir-peft fetch stereo` gets them (47 MB)")
    return [_motorcycle() if name == "motorcycle" else _camera(name) for name in names]


def available(name: str) -> bool:
    """Whether the files of a pair are here."""
    _check((name,))
    return _path(name).is_file()


def fetch() -> Path:
    """Fetch the missing pairs into the cache, with pip from Pillow's source; nothing is installed.

    Returns:
        The folder of the fetched files.

    Raises:
        ValueError: the download has other bytes than expected.
        RuntimeError: pip could not download.
        OSError: the cache cannot be written.
    """
    folder = cache_dir() / "stereo"
    files = {_path(name): rows for name, rows in ROWS.items()}
    if all(sha256_of(path) == rows.sha256 for path, rows in files.items()):
        return folder
    folder.mkdir(parents=True, exist_ok=True)  # An unwritable cache shows before the download.
    print(f"downloading the source of {PILLOW} (47 MB) for its stereo images ...", file=sys.stderr)
    archive = download(PILLOW, PILLOW_SHA256, "--no-binary", "pillow")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for path, rows in files.items():
            data = tar.extractfile(f"pillow-13.0.0/Tests/images/{rows.file}").read()
            verify(data, rows.sha256, rows.file)
            write_bytes(path, data)
    print(f"{len(files)} files verified, in {folder}", file=sys.stderr)
    return folder


def correct_rows(right: np.ndarray, rows: Rows) -> np.ndarray:
    """Move each pixel of (H, W, 3) from row y to row a x + b y + c, by Keys' cubic interpolation.

    Rows from beyond the image repeat its first and last one.
    """
    H, W = right.shape[:2]
    column = np.arange(W)
    source = (np.arange(H)[:, None] - rows.a * column - rows.c) / rows.b  # (H, W)
    base = np.floor(source).astype(int)
    t = source - base
    taps = {
        -1: ((2 - t) * t - 1) * t / 2,
        0: ((3 * t - 5) * t * t + 2) / 2,
        1: ((4 - 3 * t) * t + 1) * t / 2,
        2: (t - 1) * t * t / 2,
    }
    moved = sum(
        weight[..., None] * right[(base + k).clip(0, H - 1), column] for k, weight in taps.items()
    )
    return moved.round().clip(0, 255).astype(np.uint8)


def _camera(name: str) -> StereoPhoto:
    rows = ROWS[name]
    views = []
    with Image.open(io.BytesIO(verified(_path(name), rows.sha256))) as file:
        for frame in (0, 1):  # Left, right.
            file.seek(frame)
            views.append(np.asarray(file.convert("RGB").reduce(rows.reduce)))
    left, right = views[0], correct_rows(views[1], rows)
    kept = slice(rows.first + MARGIN, rows.last + 1 - MARGIN)
    left, right = left[kept, : -rows.shift], right[kept, rows.shift :]
    return StereoPhoto(name, _frozen(left), _frozen(right), None, "MIT-CMU, with Pillow")


def _motorcycle() -> StereoPhoto:
    folder = _path("motorcycle").parent
    data = {name: verified(folder / name, sha256) for name, sha256 in MOTORCYCLE.items()}
    left, right = (
        np.asarray(Image.open(io.BytesIO(data[f"motorcycle_{side}.png"])).convert("RGB"))
        for side in ("left", "right")
    )
    disparity = np.load(io.BytesIO(data["motorcycle_disp.npz"]))["arr_0"].astype(np.float32)
    disparity[~np.isfinite(disparity)] = np.nan  # The file has inf where it is unknown.
    licence = "Middlebury 2014 (cite Scharstein et al., GCPR 2014), with scikit-image"
    return StereoPhoto("motorcycle", _frozen(left), _frozen(right), _frozen(disparity), licence)


def _frozen(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array


def _path(name: str) -> Path:
    if name in ROWS:
        return cache_dir() / "stereo" / ROWS[name].file
    spec = importlib.util.find_spec("skimage")
    if spec is None:
        raise FileNotFoundError(
            "motorcycle is in scikit-image, which is not installed: pip install scikit-image"
        )
    return Path(spec.submodule_search_locations[0]) / "data" / "motorcycle_left.png"


def _check(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in STEREO_PHOTOS:
            raise ValueError(f"no stereo pair {name!r}: there are {', '.join(STEREO_PHOTOS)}")
