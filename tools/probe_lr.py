"""Compares learning rates for rows of an experiment file on crops of the validation photographs.

For example: python tools/probe_lr.py experiments/adaptir_ipt.toml --rows lora --rates 1e-3 3e-3
"""

import argparse
import tempfile
from dataclasses import replace

from ir_peft import train
from ir_peft.experiments import (
    PROFILES,
    adapted_model,
    load_specs,
    score,
    training_set,
    validation_pairs,
)


def main() -> None:
    """Prints the mean validation PSNR after a short run of each row at each rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--task", default="lr4_noise30")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--rates", nargs="+", type=float, required=True)
    options = parser.parse_args()
    profile = replace(PROFILES["full"], steps=options.steps)
    for spec in load_specs(options.file):
        if spec.row not in options.rows or spec.task != options.task or spec.seed:
            continue
        pairs = validation_pairs(spec, profile)
        for rate in options.rates:
            model = adapted_model(spec, profile)
            with tempfile.TemporaryDirectory() as folder:
                train(
                    model,
                    training_set(spec, profile),
                    steps=profile.steps,
                    batch_size=profile.batch_size,
                    lr=rate,
                    schedule=profile.schedule,
                    out=folder,
                )
            rows = score(model, pairs, spec, progress=False)
            mean = sum(row["psnr"] for row in rows) / len(rows)
            print(f"{spec.row} lr {rate:g}: {mean:.3f} dB after {profile.steps} steps", flush=True)


if __name__ == "__main__":
    main()
