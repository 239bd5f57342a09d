"""Makes ir_peft/data/pack from the photographs of the Debian package lomiri-wallpapers-16.04.

    python tools/build_photo_pack.py [--deb FILE.deb] [--output FOLDER]

Downloads the package (15.8 MB; needs apt-get and dpkg-deb, and `apt-get update` run before),
compares the sha256 of each photograph with the known one, box-downsamples (which removes the JPEG
traces), cuts 160 x 160 tiles, keeps the textured ones, and writes one strip of tiles a photograph
as lossless WebP, with index.json (the place of each tile in the photograph), ATTRIBUTION.md and
the licence texts. Every file is read again and compared before the pack replaces the old one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "lomiri-wallpapers-16.04"
VERSION = "20.04.0-2"
DEB_SHA256 = "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab"
TILE = 160
TEXTURE = 2.5
"""A tile is kept if its mean absolute differences, vertical + horizontal, exceed this (of 255)."""
MAX_BYTES = 16 * 2**20
PACK = Path(__file__).parents[1] / "ir_peft" / "data" / "pack"
SHARE_ALIKE = "CC-BY-SA-4.0"
LICENCE_URLS = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    SHARE_ALIKE: "https://creativecommons.org/licenses/by-sa/4.0/",
}


@dataclass(frozen=True)
class Source:
    """One photograph of the package; authors and licences as its copyright file has them."""

    file: str
    author: str
    licence: str
    sha256: str

    @property
    def name(self) -> str:
        """What the photograph is called in this project."""
        return self.file.split("_by_")[0]

    @property
    def folder(self) -> str:
        """Folder of the strip inside the pack; share-alike photographs have their own."""
        return "share_alike" if self.licence == SHARE_ALIKE else "photos"

    def factor(self, longest_side: int) -> int:
        """Downsampling factor. Picture_1A is nearly free of JPEG traces and stays as it is."""
        if self.name == "Picture_1A":
            return 1
        return 3 if longest_side > 3500 else 2


SOURCES = [
    Source(
        "seeding_by_Clements_Engelhardt.jpg",
        "Clemens Engelhardt",
        "CC0-1.0",
        "a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f",
    ),
    Source(
        "aitzgorri_by_Aitzol_Berasategi.jpg",
        "Aitzol Berasategi",
        "CC-BY-4.0",
        "66268e7b48f8854d36a28765fac6e23ec1aee251daa6da1f64715f201020ad36",
    ),
    Source(
        "friends_by_Aitzol_Berasategi.jpg",
        "Aitzol Berasategi",
        "CC-BY-4.0",
        "cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d",
    ),
    Source(
        "life_by_Aitzol_Berasategi.jpg",
        "Aitzol Berasategi",
        "CC-BY-4.0",
        "4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05",
    ),
    Source(
        "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "Aitzol Berasategi",
        "CC-BY-4.0",
        "414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a",
    ),
    Source(
        "sunset_by_Aitzol_Berasategi.jpg",
        "Aitzol Berasategi",
        "CC-BY-4.0",
        "474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18",
    ),
    Source(
        "Picture_0B_by_freespace.jpg",
        'Trevor "Freespace"',
        "CC-BY-4.0",
        "c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad",
    ),
    Source(
        "Picture_1A_by_freespace.jpg",
        'Trevor "Freespace"',
        "CC-BY-4.0",
        "89e86af38d04daaef975665dc2127e9fa76f0fd68f4eea105a2d0ae3390b010b",
    ),
    Source(
        "Wine_by_Jakkub_Mede.jpg",
        "Jakub Mede",
        "CC-BY-4.0",
        "d2e96e6d4da40dd804b3d0ce295e94de04a2d7d9b6785d42cd9d92ba58bced74",
    ),
    Source(
        "Bridge_by_Sander_Klootwijk.jpg",
        "Sander Klootwijk",
        SHARE_ALIKE,
        "bd86b081f9975e2b83527f71e49b9271a8ab40885428395969d9f7d834d7f050",
    ),
    Source(
        "Dragonfly_by_Bolly.jpg",
        '"Bolly"',
        SHARE_ALIKE,
        "af5af17841009732def24b09bb1e669a1b09d2b4bdeee7812c371101c30d2bb3",
    ),
    Source(
        "free_by_Peter_Nerlich.jpg",
        "Peter Nerlich",
        SHARE_ALIKE,
        "85a5453c2fed514c75973016f3d862aca62eb7ca087618822469274ac1092373",
    ),
    Source(
        "greentock_by_Peter_Nerlich.jpg",
        "Peter Nerlich",
        SHARE_ALIKE,
        "e7b20e2db9dcd6e2b278ca55873c2110b35d89cd38b04d0b18728726888e6889",
    ),
]


def sha256(data: bytes) -> str:
    """Hexadecimal sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def unpack(deb: Path | None, folder: Path) -> None:
    """Downloads the package unless a file is given, checks it, and extracts it into `folder`."""
    if deb is None:
        subprocess.run(["apt-get", "download", f"{PACKAGE}={VERSION}"], cwd=folder, check=True)
        (deb,) = folder.glob("*.deb")
    if sha256(deb.read_bytes()) != DEB_SHA256:
        sys.exit(f"{deb}: sha256 differs from that of {PACKAGE} {VERSION}; nothing was written")
    subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)


def cut(image: Image.Image, factor: int) -> tuple[list[list[int]], np.ndarray, list[int]]:
    """Downsamples by exact means of factor x factor pixels and cuts the textured tiles.

    Returns:
        [row, column] of each kept tile, the tiles under one another (tiles * 160, 160, 3) uint8,
        and [rows, columns] of the whole grid.
    """
    width, height = (side - side % factor for side in image.size)
    pixels = np.asarray(image.crop((0, 0, width, height)).reduce(factor))
    grid = [pixels.shape[0] // TILE, pixels.shape[1] // TILE]
    places, tiles = [], []
    for row in range(grid[0]):
        for column in range(grid[1]):
            y, x = row * TILE, column * TILE
            tile = pixels[y : y + TILE, x : x + TILE]
            grey = tile.mean(axis=2)
            vertical, horizontal = (np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1))
            if vertical + horizontal > TEXTURE:
                places.append([row, column])
                tiles.append(tile)
    return places, np.concatenate(tiles), grid


def write_strip(path: Path, strip: np.ndarray) -> bytes:
    """Writes lossless WebP, reads it again, and returns the file's bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # For lossless files quality is effort; more of it takes minutes and gains nothing here.
    Image.fromarray(strip).save(path, lossless=True, quality=75, method=4)
    if not np.array_equal(np.asarray(Image.open(path)), strip):
        sys.exit(f"{path}: reading gives other pixels than were written")
    return path.read_bytes()


def licence_texts(copyright_file: Path) -> dict[str, str]:
    """Complete licence texts: two from the package's copyright file, CC0 from base-files."""
    texts = {}
    sections = re.split(r"^License: ", copyright_file.read_text(encoding="utf-8"), flags=re.M)
    for licence in ("CC-BY-4.0", SHARE_ALIKE):
        # The section that holds the text is the longest with that name.
        body = max((s for s in sections if s.startswith(licence + "\n")), key=len)
        lines = (line[1:] for line in body.splitlines()[1:] if line.startswith(" "))
        texts[licence] = "\n".join("" if line == "." else line for line in lines).strip() + "\n"
    texts["CC0-1.0"] = Path("/usr/share/common-licenses/CC0-1.0").read_text(encoding="utf-8")
    return texts


def attribution(entries: list[dict]) -> str:
    """The attribution table: one row a photograph."""
    lines = [
        "# Attribution of the training photographs",
        "",
        f"Tiles of {len(entries)} photographs from the Debian package `{PACKAGE}` {VERSION}",
        "(Debian 12), where they are in `usr/share/backgrounds/`. Authors and licences are as in",
        "the package's copyright file; all are of 2018. Made by `tools/build_photo_pack.py`.",
        "",
        "The folder `photos/` holds the CC0-1.0 and CC-BY-4.0 photographs. The folder",
        f"`share_alike/` is, as a whole, under {SHARE_ALIKE}. The complete licence texts lie",
        "beside the files.",
        "",
        "| file | original file | author | licence | changes |",
        "|---|---|---|---|---|",
    ]
    for entry in entries:
        factor = entry["factor"]
        changes = f"downsampled by {factor} and cropped" if factor > 1 else "cropped"
        licence = f"[{entry['licence']}]({LICENCE_URLS[entry['licence']]})"
        cells = [f"`{entry['file']}`", f"`{entry['source']}`", entry["author"], licence, changes]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def build(source: Path, output: Path) -> list[dict]:
    """Writes the whole pack from the extracted package; returns the index entries."""
    entries = []
    for photo in SOURCES:
        path = source / "usr/share/backgrounds" / photo.file
        if sha256(path.read_bytes()) != photo.sha256:
            sys.exit(f"{path}: sha256 differs from the known one; nothing was written")
        image = Image.open(path).convert("RGB")
        factor = photo.factor(max(image.size))
        places, strip, grid = cut(image, factor)
        file = f"{photo.folder}/{photo.name}.webp"
        data = write_strip(output / file, strip)
        print(f"{file:32} {len(places):3} tiles {len(data) / 1e6:5.2f} MB")
        entries.append(
            {
                "name": photo.name,
                "file": file,
                "author": photo.author,
                "licence": photo.licence,
                "source": photo.file,
                "source_sha256": photo.sha256,
                "factor": factor,
                "sha256": sha256(data),
                "grid": grid,
                "tiles": places,
            }
        )
    index = {"package": f"{PACKAGE} {VERSION}", "tile": TILE, "photographs": entries}
    text = json.dumps(index, indent=1)
    # One line a tile list, so that the file stays readable.
    text = re.sub(r"\[[\s\d,\[\]]+\]", lambda m: re.sub(r"\s+", "", m[0]).replace(",", ", "), text)
    (output / "index.json").write_text(text + "\n", encoding="utf-8")
    texts = licence_texts(source / "usr/share/doc" / PACKAGE / "copyright")
    for licence, folder in (
        ("CC0-1.0", "photos"),
        ("CC-BY-4.0", "photos"),
        (SHARE_ALIKE, "share_alike"),
    ):
        (output / folder / f"LICENSE-{licence}.txt").write_text(texts[licence], encoding="utf-8")
    (output / "ATTRIBUTION.md").write_text(attribution(entries), encoding="utf-8")
    return entries


def main() -> None:
    """Builds the pack in a temporary folder and puts it in place."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--deb", type=Path, help="the package file, if it is already here")
    parser.add_argument("--output", type=Path, default=PACK, help="default: ir_peft/data/pack")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        # apt drops its rights while it downloads, so it needs to write here as another user.
        Path(temporary).chmod(0o777)
        unpack(options.deb, Path(temporary))
        built = Path(temporary) / "pack"
        entries = build(Path(temporary), built)
        size = sum(path.stat().st_size for path in built.rglob("*") if path.is_file())
        tiles = sum(len(entry["tiles"]) for entry in entries)
        print(f"{len(entries)} photographs, {tiles} tiles, {size / 1e6:.2f} MB in all")
        if size > MAX_BYTES:
            sys.exit(f"the pack exceeds {MAX_BYTES / 2**20:.0f} MiB; nothing was written")
        if options.output.exists():
            shutil.rmtree(options.output)
        shutil.copytree(built, options.output)


if __name__ == "__main__":
    main()
