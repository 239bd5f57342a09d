"""Time and saved bytes of one training step, ours beside the reference, in one process.

Both models have the same weights and inputs. Their steps alternate, so that whatever else the
machine does hits both; reported is the median of the ratios of neighbouring steps, with quartiles.

    forward   no gradients
    full      forward, backward and AdamW step of every parameter
    frozen    all weights frozen, gradient down to the input: the floor for an adapter in the body
    peft      as frozen, but with a LoRA that trains in ours; the reference has none

Bytes saved for backward are exact: unique storages that autograd keeps, parameters not counted.
Usage: python benchmarks/train_step.py dat_light hat_s --repeats 9 --out results/benchmarks
"""

import argparse
import json
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ir_peft import attach_adapter, create_backbone
from ir_peft.files import write_text
from ir_peft.provenance import device_name, git_state, versions


def reference_dat(model: nn.Module) -> nn.Module:
    """The DAT of spandrel, at the same size."""
    from spandrel.architectures.DAT import DAT

    light, first = model.name == "dat_light", model.layers[0].blocks[0]
    blocks = [len(group.blocks) for group in model.layers]
    return DAT(
        embed_dim=first.ffn.in_features,
        split_size=list(first.attn.attns[0].window),
        depth=blocks,
        num_heads=[first.attn.heads] * len(blocks),
        expansion_factor=first.ffn.fc1.out_features / first.ffn.in_features,
        upscale=model.scale,
        resi_connection="3conv" if light else "1conv",
        upsampler="pixelshuffledirect" if light else "pixelshuffle",
    )


def reference_hat(model: nn.Module) -> nn.Module:
    """The HAT-S or HAT of spandrel."""
    from spandrel.architectures.HAT import HAT

    light = model.name == "hat_s"
    return HAT(
        img_size=64,
        embed_dim=144 if light else 180,
        depths=(6,) * 6,
        num_heads=[6] * 6,
        window_size=16,
        compress_ratio=24 if light else 3,
        squeeze_factor=24 if light else 30,
        conv_scale=0.01,
        overlap_ratio=0.5,
        mlp_ratio=2,
        upscale=model.scale,
        upsampler="pixelshuffle",
    )


def reference_restormer(model: nn.Module) -> nn.Module:
    """The Restormer of spandrel-extra-arches."""
    from spandrel_extra_arches.architectures.Restormer import Restormer

    return Restormer()


# Architecture -> (reference, patch side, batch).
FAMILIES: dict[str, tuple[Callable[[nn.Module], nn.Module], int, int]] = {
    "dat_light": (reference_dat, 32, 4),
    "dat": (reference_dat, 64, 1),
    "hat_s": (reference_hat, 64, 1),
    "hat": (reference_hat, 64, 1),
    "restormer": (reference_restormer, 128, 1),
}
MODES = ("forward", "full", "frozen", "peft")


def step(model: nn.Module, x: torch.Tensor, mode: str, optimizer: Any) -> None:
    """One step of a mode."""
    if mode == "forward":
        with torch.no_grad():
            model(x)
        return
    model(x).abs().mean().backward()
    if optimizer:
        optimizer.step()
        optimizer.zero_grad()


def seconds(run: Callable[[], None]) -> float:
    """Wall time of one call, the device's work included."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def saved_bytes(model: nn.Module, run: Callable[[], None]) -> int:
    """Bytes of the unique storages that autograd keeps for backward, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def prepare(model: nn.Module, mode: str, adapter: bool) -> Any:
    """Sets what trains in a mode and returns the optimiser, if any."""
    model.requires_grad_(mode == "full")
    if mode == "peft" and adapter:
        attach_adapter(model, "lora")
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-6) if trained else None


def measure(name: str, mode: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """One row: ours and the reference alternately, `repeats` pairs."""
    make_reference, side, batch = FAMILIES[name]
    torch.manual_seed(0)
    ours = create_backbone(name).eval().to(device)
    reference = make_reference(ours).eval().to(device)
    missing, unexpected = reference.load_state_dict(ours.state_dict(), strict=False)
    rebuilt = ("attn_mask", "relative_position_index", "rpe_biases")
    if unexpected or any(not any(word in key for word in rebuilt) for key in missing):
        raise SystemExit(f"{name}: the reference has other weights: {missing[:3]} {unexpected[:3]}")
    x = torch.rand(batch, 3, side, side, device=device)
    runs = {}
    for who, model in (("ours", ours), ("reference", reference)):
        optimizer = prepare(model, mode, adapter=who == "ours")
        given = x if optimizer or mode == "forward" else x.clone().requires_grad_()
        runs[who] = lambda m=model, o=optimizer, g=given: step(m, g, mode, o)
        seconds(runs[who])  # Warm up.
    pairs = [(seconds(runs["ours"]), seconds(runs["reference"])) for _ in range(repeats)]
    ratio = torch.tensor([theirs / our for our, theirs in pairs]).quantile(
        torch.tensor([0.25, 0.5, 0.75])
    )
    our, theirs = torch.tensor(pairs).median(dim=0).values.tolist()
    row = {
        "backbone": name,
        "mode": mode,
        "input": [batch, 3, side, side],
        "ours_seconds": our,
        "reference_seconds": theirs,
        "speedup": dict(zip(("q25", "median", "q75"), ratio.tolist(), strict=True)),
        "pairs": repeats,
    }
    if mode != "forward":
        row["ours_saved_bytes"] = saved_bytes(ours, runs["ours"])
        row["reference_saved_bytes"] = saved_bytes(reference, runs["reference"])
    return row


def main() -> None:
    """Measures, prints a table and writes one JSON file a device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="*", default=["dat_light"], help=", ".join(FAMILIES))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    unknown = set(options.backbones) - set(FAMILIES)
    if unknown:
        raise SystemExit(f"unknown: {sorted(unknown)}; there are {', '.join(FAMILIES)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name in options.backbones:
        for mode in MODES:
            row = measure(name, mode, options.repeats, device)
            speed = row["speedup"]
            line = f"{name:10} {mode:8} {row['ours_seconds']:7.3f} s, {speed['median']:5.2f}x"
            if "ours_saved_bytes" in row:
                ours, theirs = row["ours_saved_bytes"], row["reference_saved_bytes"]
                line += f", saved {ours / 2**20:.0f} of {theirs / 2**20:.0f} MiB"
            print(line, flush=True)
            rows.append(row)
    report = {
        "rows": rows,
        "reference": "spandrel",
        "device": device_name(),
        "versions": versions(),
        "git": git_state(Path.cwd()),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    path = options.out / f"train_step-{device.type}.json"
    write_text(path, json.dumps(report, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
