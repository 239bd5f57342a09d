"""Time and peak memory of restoring images of 0.1 to 12 megapixels by x4, and what seams cost.

Every row is measured in a process of its own, since a process does not give all its memory back.
`tensor` rows call `restore`; `file` rows write a PNG strip by strip, as `ir-peft restore` does. A
row that the record already has is kept, so an interrupted run goes on where it was.

On a CPU a 12-megapixel image takes HAT hours. There its rows end at 0.5 megapixels and the larger
ones are predicted: time from the measured time of one tile, memory from the measured peak of one
tile and the bytes of the image's buffers. A small convolution network goes through the same code
up to 12 megapixels and checks that the buffers explain the peak. `--complete` (the default on a
GPU) measures everything. Time and memory do not depend on the weights: HAT's are random.

Usage: python benchmarks/inference.py [--rows hat-tensor-0.1 ...] [--complete] [--device cuda]
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ir_peft import create_backbone, inference, load_backbone, restore
from ir_peft.data import photos
from ir_peft.data.degradations import bicubic_resize
from ir_peft.data.images import write_strips
from ir_peft.files import write_text
from ir_peft.metrics import psnr
from ir_peft.provenance import device_name, git_state, versions
from ir_peft.training_state import peak_memory, reset_peak_memory

SCALE = 4
OVERLAP = 16
SIZES = (0.0655, 0.1, 0.25, 0.5, 1, 2, 4, 8, 12)
"""Megapixels of the input; the first is a single tile of full side."""
NEAR = 16
"""Distance to the cut of a tile within which a difference counts as the cut's [input pixels]."""


class Convolution(nn.Module):
    """The smallest x4 network: its own time and memory are next to nothing."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3 * SCALE**2, 3, padding=1), nn.PixelShuffle(SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 3, 4h, 4w)."""
        return self.body(x)


# Network -> how it is made, and the largest image a CPU measures without --complete [megapixels].
NETWORKS = {
    "convolution": (Convolution, 12),
    "dat_light": (lambda: load_backbone("dat_light_x4"), 1),
    "hat": (lambda: create_backbone("hat", scale=SCALE), 0.5),
}
MODES = ("tensor", "file")


def shape_of(megapixels: float) -> tuple[int, int]:
    """Height and width of an image of that size: 3:4, of a single tile square."""
    if megapixels == SIZES[0]:
        return inference.AUTO_TILE, inference.AUTO_TILE
    width = 4 * round(math.sqrt(megapixels * 1e6 / 12))
    return 3 * width // 4, width


@lru_cache
def tiles_of(height: int, width: int) -> dict[str, int]:
    """The sides and the number of the tiles that "auto" cuts an image into."""
    seen = []

    def model(tiles: Tensor) -> Tensor:
        seen.append(tiles.shape[2:])
        return tiles

    for _ in inference.restore_strips(model, torch.zeros(3, height, width), "auto", OVERLAP):
        pass
    ((h, w),) = set(seen)
    return {"tile_height": h, "tile_width": w, "tiles": len(seen)}


def buffers_of(mode: str, height: int, width: int, tile_height: int) -> dict[str, int]:
    """Bytes of the buffers that grow with the image.

    The input in float32; the output, in float32 or as 4 bytes a pixel of a file; the rows of tiles
    in work: one, what it shares with the one above twice, and of a file a copy in float32 and three
    in bytes.
    """
    row = 3 * 4 * SCALE * width * SCALE
    pixels = SCALE**2 * height * width
    strip = row * (tile_height + 2 * OVERLAP)
    if mode == "file":
        strip += row * tile_height * (4 + 1 + 1 + 4 / 3) / 4
    return {
        "input": 3 * 4 * height * width,
        "output": (3 * 4 if mode == "tensor" else 4) * pixels,
        "strip": int(strip),
    }


def measure(network: str, mode: str, megapixels: float, device: torch.device) -> dict[str, Any]:
    """One row, in this process."""
    torch.manual_seed(0)
    model = NETWORKS[network][0]().eval().to(device)
    height, width = shape_of(megapixels)
    image = torch.linspace(0, 1, height)[:, None] * torch.linspace(0, 1, width)
    image = image.expand(3, height, width).clone()
    host = torch.device("cpu")
    for where in {host, device}:
        reset_peak_memory(where)
    before, _ = peak_memory(host)
    wall, cpu = time.perf_counter(), time.process_time()
    if mode == "tensor":
        out = restore(model, image, tile="auto", overlap=OVERLAP)
        assert tuple(out.shape) == (3, SCALE * height, SCALE * width)
    else:
        with tempfile.TemporaryDirectory() as folder:
            strips = inference.restore_strips(model, image, tile="auto", overlap=OVERLAP)
            write_strips(Path(folder) / "out.png", strips, SCALE * height, SCALE * width)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tiles = tiles_of(height, width)
    row = {"network": network, "mode": mode, "megapixels": megapixels, "pixels": height * width}
    row |= {"height": height, "width": width, **tiles, "seconds": wall, "cpu_seconds": cpu}
    row |= {"start_bytes": before, "peak_bytes": peak_memory(host)[0]}
    if device.type == "cuda":
        row["device_peak_bytes"] = peak_memory(device)[0]
    row["buffers"] = buffers_of(mode, height, width, tiles["tile_height"])
    return row | {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]}


def seams(
    backbone: str, name: str, tile: int, overlaps: list[int], device: torch.device
) -> list[dict[str, Any]]:
    """A bundled backbone on a test photograph, as a whole and in tiles, a row an overlap.

    Two effects are told apart: near the cuts tiles lack what is beyond them; far from the cuts
    tiles differ from the whole because the network averages channels over all it is given.
    """
    model = load_backbone(backbone).to(device)
    (photo,) = (photo for photo in photos.test_set("photos6") if photo.name == name)
    gt, s = photos.as_tensor(photo.image), model.scale
    H, W = (n // s for n in gt.shape[1:])
    gt = gt[:, : s * H, : s * W]
    lq = bicubic_resize(gt, 1 / s)
    whole = restore(model, lq)

    def score(x: Tensor) -> float:
        return psnr(x, gt, crop_border=s, channel="y").item()

    outputs = {overlap: restore(model, lq, tile=tile, overlap=overlap) for overlap in overlaps}
    rows = []
    for overlap, out in outputs.items():
        near = near_cuts(H, tile, overlap, s)[:, None] | near_cuts(W, tile, overlap, s)
        square = (out - whole).square().mean(0)
        row = {"backbone": backbone, "photo": name, "tile": tile, "overlap": overlap}
        row |= {"psnr_whole": score(whole), "psnr": score(out)}
        row |= {"psnr_widest": score(outputs[max(overlaps)])}
        row |= {"max_difference": (out - whole).abs().max().item()}
        row |= {"rmse_near": square[near].mean().sqrt().item(), "near": near.float().mean().item()}
        row |= {"rmse_far": square[~near].mean().sqrt().item() if (~near).any() else None}
        rows.append(row)
    return rows


def near_cuts(length: int, tile: int, overlap: int, scale: int) -> Tensor:
    """(scale * length,) bool: pixels less than NEAR from where one tile hands over to the next."""
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    cuts = torch.tensor([(left + tile + right) / 2 for left, right in pairwise(starts)])
    pixels = (torch.arange(scale * length) + 0.5) / scale
    return ((pixels[:, None] - cuts).abs() < NEAR).any(1)


def predicted(rows: list[dict], network: str, mode: str, megapixels: float, gpu: bool) -> dict:
    """What a row would be, from the network's row of one tile and the buffers.

    Seconds are those of one tile times the tiles' area; bytes those of one tile, its own buffers
    left out, and the buffers of the image.
    """
    one = next(
        r for r in rows if (r["network"], r["megapixels"]) == (network, SIZES[0])
        and r["mode"] == "tensor"
    )  # fmt: skip
    height, width = shape_of(megapixels)
    tiles = tiles_of(height, width)
    area = tiles["tiles"] * tiles["tile_height"] * tiles["tile_width"] / one["pixels"]
    buffers = buffers_of(mode, height, width, tiles["tile_height"])
    constant = one["peak_bytes"] - sum(one["buffers"].values())
    row = {"network": network, "mode": mode, "megapixels": megapixels, "pixels": height * width}
    row |= {"height": height, "width": width, **tiles, "buffers": buffers, "predicted": True}
    row |= {"seconds": area * one["seconds"], "cpu_seconds": area * one["cpu_seconds"]}
    row["peak_bytes"] = constant + sum(buffers.values())
    if gpu:
        row["device_peak_bytes"] = one["device_peak_bytes"]
    return row


def key(row: dict[str, Any]) -> str:
    """The name of a row, as --rows takes it."""
    return f"{row['network']}-{row['mode']}-{row['megapixels']:g}"


def plan(complete: bool) -> list[str]:
    """Names of the rows to measure, the fast ones first."""
    return [
        key({"network": network, "mode": mode, "megapixels": size})
        for network, (_, largest) in NETWORKS.items()
        for mode in MODES
        for size in SIZES
        if complete or size <= largest and (mode == "tensor" or network == "convolution")
    ]


def run(name: str, device: torch.device) -> dict[str, Any]:
    """Measures a row in a fresh process."""
    command = [sys.executable, __file__, "--measure", name, "--device", str(device)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: the measuring process failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def load(file: Path) -> dict[str, Any]:
    """The record so far."""
    if not file.exists():
        return {"rows": [], "seams": []}
    return json.loads(file.read_text(encoding="utf-8"))


def add(file: Path, part: str, rows: list[dict], device: torch.device) -> dict[str, Any]:
    """Adds rows to the record as it is now: another run may have added others."""
    record = load(file)
    stamp = {"git": git_state(Path(__file__).resolve().parents[1])}
    stamp["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record[part] += [row | stamp for row in rows]
    record |= {"device": device_name(device), "versions": versions(), "seed": 0, "scale": SCALE}
    record |= {"overlap": OVERLAP, "near": NEAR}
    write_text(file, json.dumps(record, indent=1) + "\n")
    return record


def main() -> None:
    """Measures what is missing, writes the record, the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", metavar="NETWORK-MODE-SIZE", help="only these")
    parser.add_argument("--photos", nargs="*", default=photos.TEST_SETS["photos6"])
    parser.add_argument("--overlaps", nargs="*", type=int, default=[0, 4, 8, 16, 32])
    parser.add_argument("--backbone", default="dat_light_x4", help="a bundled tag, for the seams")
    parser.add_argument("--tile", type=int, default=64, help="for the seams")
    parser.add_argument("--complete", action="store_true", help="nothing is predicted")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.measure:
        network, mode, size = options.measure.split("-")
        print(json.dumps(measure(network, mode, float(size), device)))
        return
    known = plan(complete=True)
    wanted = plan(options.complete or device.type == "cuda")
    if options.rows is not None:
        unknown = set(options.rows) - set(known)
        if unknown:
            raise SystemExit(f"unknown rows {sorted(unknown)}; there are {', '.join(known)}")
        wanted = options.rows
    file = options.out / "benchmarks" / f"inference-{device.type}.json"
    record = load(file)
    for name in wanted:
        if name in map(key, record["rows"]):
            continue
        row = run(name, device)
        record = add(file, "rows", [row], device)
        print(f"{name}: {row['seconds']:.1f} s, {row['peak_bytes'] / 2**20:.0f} MiB", flush=True)
    for name in options.photos:
        asked = (options.backbone, name, options.tile)
        if asked in {(row["backbone"], row["photo"], row["tile"]) for row in record["seams"]}:
            continue
        rows = seams(*asked, options.overlaps, device)
        record = add(file, "seams", rows, device)
        print(f"seams: {name}", flush=True)
    import inference_report  # Beside this file; draws, so that measuring needs no matplotlib.

    inference_report.write(record, options.out, device.type == "cuda")


if __name__ == "__main__":
    main()
