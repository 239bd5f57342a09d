"""Checkpoints of DAT: the authors' keys, and what a state dict says of its model."""

from __future__ import annotations

import math

from torch import Tensor

REBUILT = ("attn_mask_0", "attn_mask_1", "relative_position_index", "rpe_biases")
"""Ends of the keys of the authors' buffers that our modules compute: masks, indices, offsets."""


def checkpoint_filter(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict without what our modules compute."""
    return {key: value for key, value in state.items() if not key.endswith(REBUILT)}


def detect(state: dict[str, Tensor]) -> tuple[str, dict] | None:
    """(architecture, hyper-parameters) of a DAT's state dict, None for any other family.

    The windows' shape is in the authors' files only; without it, it is the architecture's own.
    """
    block = "layers.0.blocks.0."
    inner = (block + key for key in ("ffn.fc1", "ffn.sg.conv", "attn.attns.0.pos.pos3.2"))
    if not all(f"{key}.weight" in state for key in ("conv_first", "upsample.0", *inner)):
        return None
    dim = state["conv_first.weight"].shape[0]
    expansion = state[block + "ffn.fc1.weight"].shape[0] / dim
    light = "conv_last.weight" not in state
    # One stage of the upsampler multiplies the area by its outputs over its inputs, or over RGB.
    stages = [
        state[key].shape for key in ("upsample.0.weight", "upsample.2.weight") if key in state
    ]
    area = math.prod(shape[0] // (3 if light else shape[1]) for shape in stages)
    blocks = [key.split(".")[1] for key in state if key.endswith(".ffn.fc1.weight")]
    depths = tuple(blocks.count(group) for group in dict.fromkeys(blocks))
    settings = {
        "scale": math.isqrt(area),
        "dim": dim,
        "depths": depths,
        "heads": 2 * len(state[block + "attn.attns.0.pos.pos3.2.weight"]),
        "expansion": expansion,
        "light": light,
    }
    offsets = state.get(block + "attn.attns.0.rpe_biases")
    if offsets is not None:
        settings["split_size"] = tuple(int(v) + 1 for v in offsets[-1])
    if light:
        return "dat_light", settings
    small = settings.get("split_size", (8, 16)) == (8, 16) and expansion == 2
    return "dat_s" if small else "dat", settings
