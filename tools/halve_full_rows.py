"""Stores the fully trained rows of some tables of an experiment file in half precision.

Run once after `ir-peft run --profile full`, before the weights are committed. The records keep what
was measured in float32; `ir-peft reproduce` recomputes their scores from the halved files and
refuses differences above 0.01 dB. In AdaptIR's table `ipt` and in AdaIR's they are 0.002 dB at
most; in `ipt-same-size`, whose images pass the network many times, they would be 0.011 dB, so its
files stay whole.

    python tools/halve_full_rows.py experiments/adaptir_ipt.toml ipt
    python tools/halve_full_rows.py experiments/adair.toml multitask unseen
"""

import argparse
import json

from ir_peft import adapters, save_adapter
from ir_peft.experiments import PROFILES, adapted_model, load_specs


def main() -> None:
    """Rewrites each file that is not halved yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("tables", nargs="+")
    options = parser.parse_args()
    rows = [spec for spec in load_specs(options.file) if spec.method == "full"]
    for spec in {spec.tag: spec for spec in rows if spec.table in options.tables}.values():
        folder = adapters.find_adapter(spec.tag)
        card = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if "dtype" not in card:
            save_adapter(adapted_model(spec, PROFILES["demo"]), folder, dtype="fp16")
            print(spec.tag)


if __name__ == "__main__":
    main()
