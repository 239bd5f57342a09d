"""Checkpoints of IPT: the authors' keys and ours, and what a state dict says of its model."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from .layers import RGB_MEAN

VARIANTS = {
    "ipt_mini": {"channels": 12, "heads": 9, "depth": 3, "expansion": 4, "rgb_range": 1},
}
"""Arguments in which small siblings differ from the released IPT, for their name.

With colours up to 255, as released, the residual stream is a hundred times larger than what fresh
attention and feed-forward layers add to it, too much for a short training.
"""


def checkpoint_filter(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' keys to ours; ours stay as they are."""
    ours = {}
    for key, value in state.items():
        if key.endswith("attn.in_proj_weight"):
            for name, part in zip("qkv", value.chunk(3), strict=True):
                ours[key.replace("in_proj_weight", f"{name}.weight")] = part
        elif key != "body.position_encoding.position_ids":  # 0, 1, 2, ...
            ours[re.sub(r"(layers\.\d+)\.linear", r"\1.ffn.linear", key)] = value
    return ours


def official_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our keys to the authors', the inverse of `checkpoint_filter`."""
    theirs = {}
    for key, value in state.items():
        if key.endswith("attn.q.weight"):
            parts = [state[key.replace("q.weight", f"{name}.weight")] for name in "qkv"]
            theirs[key.replace("q.weight", "in_proj_weight")] = torch.cat(parts)
        elif not key.endswith(("attn.k.weight", "attn.v.weight")):
            theirs[key.replace(".ffn.linear", ".linear")] = value
    tokens = state["body.position_encoding.pe.weight"].shape[0]
    theirs["body.position_encoding.position_ids"] = torch.arange(tokens)[None]
    return theirs


def detect(state: dict[str, Tensor]) -> tuple[str, dict] | None:
    """(architecture, hyper-parameters) of an IPT state dict, None for any other family.

    The number of heads leaves no trace in a state dict: it is that of the entry of `VARIANTS` with
    the same widths, else heads are taken to be 48 wide, as released.
    """
    state = checkpoint_filter(state)
    pe, query = "body.position_encoding.pe.weight", "body.query_embed.weight"
    ffn = "body.encoder.layers.0.ffn.linear1.weight"
    needed = pe, query, ffn, "sub_mean.bias", "head.0.0.weight", "tail.0.1.weight"
    if not all(key in state for key in needed):
        return None
    channels = state["head.0.0.weight"].shape[0]
    tokens, dim = state[pe].shape
    patch_dim = math.isqrt(dim // channels)
    scales = []
    while f"tail.{len(scales)}.1.weight" in state:
        stages = [v for k, v in state.items() if re.match(rf"tail\.{len(scales)}\.0\..*weight", k)]
        scales.append(math.isqrt(math.prod(v.shape[0] // v.shape[1] for v in stages)))
    settings = {
        "scales": tuple(scales),
        "scale": scales[0] if len(scales) == 1 else 4,
        "channels": channels,
        "patch_size": patch_dim * math.isqrt(tokens),
        "patch_dim": patch_dim,
        "heads": max(1, dim // 48),
        "depth": sum(bool(re.match(r"body\.encoder\..*norm1\.weight", key)) for key in state),
        "expansion": state[ffn].shape[0] // dim,
        "queries": state[query].shape[0],
        "out_bias": "body.encoder.layers.0.self_attn.out_proj.bias" in state,
        "rgb_range": round(-float(state["sub_mean.bias"][0]) / RGB_MEAN[0]),
    }
    for name, variant in VARIANTS.items():
        if all(settings[key] == value for key, value in variant.items() if key != "heads"):
            return name, {**settings, **variant}
    return "ipt", settings
