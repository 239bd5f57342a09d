"""Stores trained rows in half precision: AdaIR's adapters and models, models of `ipt` and ASteISR.

Run once after `ir-peft run --profile full`, before the weights are committed. The records keep what
was measured in float32; `ir-peft reproduce` recomputes their scores from the halved files and
refuses differences above 0.01 dB. In `ipt` they are 0.002 dB at most; in `ipt-same-size`, whose
images pass the network many times, they would be 0.011 dB, so its files stay whole.

    python tools/halve_rows.py
"""

import json
from pathlib import Path

from ir_peft import save_adapter
from ir_peft.adapters import find_adapter
from ir_peft.experiments import PROFILES, adapted_model, load_specs

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
ADAIR = ("full", "lora", "adair")
ROWS = {
    "adaptir_ipt.toml": lambda spec: spec.method == "full" and not spec.modules_to_save,
    "adair.toml": lambda spec: spec.method in ADAIR,
    "asteisr.toml": lambda spec: spec.row in ("scratch", "full", "full_single"),
    "asteisr_dat.toml": lambda spec: spec.method == "full",
}
"""Experiment file -> whether a row of it is halved."""
WHOLE = ("adair/multitask/haze-full",)
"""Stays in float32: in half precision it would be off by up to 0.016 dB."""


def main() -> None:
    """Rewrites each file that is not halved yet."""
    for file, halved in ROWS.items():
        specs = filter(halved, load_specs(EXPERIMENTS / file))
        for spec in {spec.tag: spec for spec in specs}.values():
            try:
                folder = find_adapter(spec.tag)
            except FileNotFoundError:
                print(f"{spec.tag}: not trained yet")
                continue
            card = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            if "dtype" not in card and spec.tag not in WHOLE:
                save_adapter(adapted_model(spec, PROFILES["demo"]), folder, dtype="fp16")
                print(f"{spec.tag}: halved")


if __name__ == "__main__":
    main()
