"""Stores the fully fine-tuned rows of the small IPT in half precision: 67 MB become 34 MB.

Run once after `ir-peft run --profile full`, before the weights are committed. The records keep what
was measured in float32; `ir-peft reproduce` recomputes their scores from the halved files and
refuses differences above 0.01 dB.

    python tools/halve_full_rows.py
"""

import json
from pathlib import Path

from ir_peft import load_adapter, load_backbone, save_adapter

ADAPTERS = Path(__file__).parents[1] / "ir_peft" / "weights" / "adapters"


def main() -> None:
    """Rewrites each file that is not halved yet."""
    for config in sorted(ADAPTERS.glob("adaptir/ipt*/*-full*/adapter_config.json")):
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
