"""Compares learning rates for experiments/adaptir.toml on crops of the validation photographs.

Usage: python tools/probe_lr.py STEPS ROW RATE [RATE ...]
For example: python tools/probe_lr.py 60 adaptir_tail 3e-4 1e-3 3e-3
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from ir_peft import train
from ir_peft.evaluate import evaluate
from ir_peft.experiments import (
    PROFILES,
    adapted_model,
    load_specs,
    training_set,
    validation_pairs,
)


def main() -> None:
    """Prints the mean validation PSNR-Y after a short run at each rate."""
    steps, row, rates = int(sys.argv[1]), sys.argv[2], [float(rate) for rate in sys.argv[3:]]
    specs = load_specs("experiments/adaptir.toml")
    spec = next(spec for spec in specs if spec.row == row and spec.task == "lr4_noise30")
    profile = replace(PROFILES["full"], steps=steps)
    for rate in rates:
        model = adapted_model(spec, profile)
        with tempfile.TemporaryDirectory() as folder:
            data = training_set(spec, profile)
            train(
                model, data, steps=steps, batch_size=profile.batch_size, lr=rate, out=Path(folder)
            )
        pairs = validation_pairs(spec, profile)
        rows = evaluate(model, pairs, crop_border=4, channel="y", progress=False)
        mean = sum(r["psnr"] for r in rows) / len(rows)
        print(f"{row} lr {rate:g}: {mean:.3f} dB after {steps} steps", flush=True)


if __name__ == "__main__":
    main()
