"""Adapters: one method a file, attached to any layer by name and stored without the backbone."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .adair import AdaIR, AdaIRConfig
from .adaptir import AdaptIR, AdaptIRConfig
from .asteisr import (
    ASteISR,
    ASteISRConfig,
    ASteISRSpatialConfig,
    ASteISRStereoConfig,
    SpatialAdapter,
    StereoAdapter,
    attention_maps,
    paired_views,
)
from .batch import per_sample
from .bitfit import BitFit, BitFitConfig
from .bottleneck import AdaptFormerConfig, Bottleneck, HoulsbyConfig
from .checkpoint import (
    adapter_state_dict,
    find_adapter,
    fingerprint,
    load_adapter,
    load_adapter_state_dict,
    save_adapter,
)
from .config import AdapterConfig
from .core import (
    Adapter,
    active_adapter,
    adapter_names,
    attach_adapter,
    count_parameters,
    disable_adapters,
    merge_and_unload,
    print_trainable_parameters,
    set_adapter,
    train_mode,
    trainable_parameters,
    unload,
)
from .fact import FacT, FacTConfig
from .huggingface import HuggingFace, HuggingFaceConfig, from_peft_folder, to_peft_folder
from .lora import LoRA, LoRAConfig
from .rows import FrozenConfig, FullConfig
from .sites import nearest
from .ssf import SSF, SSFConfig
from .vpt import VPT, VPTConfig
from .wrappers import AdaptedLayer

ADAPTERS: dict[str, type[Adapter] | None] = {
    "adaptir": AdaptIR,
    "adair": AdaIR,
    "asteisr": ASteISR,
    "asteisr_spatial": SpatialAdapter,
    "asteisr_stereo": StereoAdapter,
    "lora": LoRA,
    "houlsby": Bottleneck,
    "adaptformer": Bottleneck,
    "vpt": VPT,
    "ssf": SSF,
    "fact": FacT,
    "bitfit": BitFit,
    "peft": HuggingFace,
    "full": None,
    "frozen": None,
}
"""The adapter of each method; None where a method adds nothing to a layer."""

CONFIGS: dict[str, type[AdapterConfig]] = {
    "adaptir": AdaptIRConfig,
    "adair": AdaIRConfig,
    "asteisr": ASteISRConfig,
    "asteisr_spatial": ASteISRSpatialConfig,
    "asteisr_stereo": ASteISRStereoConfig,
    "lora": LoRAConfig,
    "houlsby": HoulsbyConfig,
    "adaptformer": AdaptFormerConfig,
    "vpt": VPTConfig,
    "ssf": SSFConfig,
    "fact": FacTConfig,
    "bitfit": BitFitConfig,
    "peft": HuggingFaceConfig,
    "full": FullConfig,
    "frozen": FrozenConfig,
}
"""The config of each method."""


def config_from_dict(method: str, values: dict[str, Any]) -> AdapterConfig:
    """The config of `method` with the given fields; ValueError on an unknown method or field."""
    if method not in CONFIGS:
        raise ValueError(
            f"unknown method {method!r}; nearest: {nearest(method, CONFIGS, 1)}; "
            f"methods: {', '.join(CONFIGS)}"
        )
    known = [field.name for field in fields(CONFIGS[method])]
    for key in values:
        if key not in known:
            raise ValueError(
                f"method {method!r} has no field {key!r}; nearest: {nearest(key, known, 1)}; "
                f"fields: {', '.join(known)}"
            )
    return CONFIGS[method](**values)


__all__ = [
    "ADAPTERS",
    "CONFIGS",
    "AdaIR",
    "AdaIRConfig",
    "ASteISR",
    "ASteISRConfig",
    "ASteISRSpatialConfig",
    "ASteISRStereoConfig",
    "AdaptFormerConfig",
    "AdaptIR",
    "AdaptIRConfig",
    "AdaptedLayer",
    "Adapter",
    "AdapterConfig",
    "BitFit",
    "BitFitConfig",
    "Bottleneck",
    "FacT",
    "FacTConfig",
    "FrozenConfig",
    "FullConfig",
    "HoulsbyConfig",
    "HuggingFace",
    "HuggingFaceConfig",
    "LoRA",
    "LoRAConfig",
    "SSF",
    "SSFConfig",
    "SpatialAdapter",
    "StereoAdapter",
    "VPT",
    "VPTConfig",
    "active_adapter",
    "adapter_names",
    "adapter_state_dict",
    "attach_adapter",
    "attention_maps",
    "config_from_dict",
    "count_parameters",
    "disable_adapters",
    "find_adapter",
    "fingerprint",
    "from_peft_folder",
    "load_adapter",
    "load_adapter_state_dict",
    "merge_and_unload",
    "nearest",
    "per_sample",
    "paired_views",
    "print_trainable_parameters",
    "save_adapter",
    "set_adapter",
    "to_peft_folder",
    "train_mode",
    "trainable_parameters",
    "unload",
]
