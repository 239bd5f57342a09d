"""Stores the fully fine-tuned rows of the table `ipt` in half precision: 39 MB become 20 MB.

Run once after `ir-peft run --profile full`, before the weights are committed. The records keep what
was measured in float32; `ir-peft reproduce` recomputes their scores from the halved files and
refuses differences above 0.01 dB (they are 0.002 dB at most; in the table `ipt-same-size`, whose
images pass the network many times, they would be 0.011 dB, so its files stay whole).

    python tools/halve_full_rows.py
"""

import json
from pathlib import Path

from ir_peft import load_adapter, load_backbone, save_adapter

ADAPTERS = Path(__file__).parents[1] / "ir_peft" / "weights" / "adapters"


def main() -> None:
    """Rewrites each file that is not halved yet."""
    for config in sorted(ADAPTERS.glob("adaptir/ipt/*-full*/adapter_config.json")):
        card = json.loads(config.read_text(encoding="utf-8"))
        if "dtype" in card:
            continue
        model = load_backbone(card["backbone"])
        if "task" in card:
            model.set_task(card["task"])
        save_adapter(load_adapter(model, config.parent), config.parent, dtype="fp16")
        print(config.parent.relative_to(ADAPTERS))


if __name__ == "__main__":
    main()
