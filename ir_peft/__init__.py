"""Parameter-efficient fine-tuning of image-restoration transformers: AdaptIR, AdaIR and ASteISR.

model = ir_peft.load_backbone("dat_light_x4")
ir_peft.attach_adapter(model, "adaptir")
ir_peft.train(model, patches, steps=400, batch_size=4)
ir_peft.save_adapter(model, "my_adapter")
restored = ir_peft.restore(model, image)
"""

from . import data, metrics, similarity
from .adapters import (
    AdaIRConfig,
    Adapter,
    AdapterConfig,
    AdaptFormerConfig,
    AdaptIRConfig,
    ASteISRConfig,
    ASteISRSpatialConfig,
    ASteISRStereoConfig,
    BitFitConfig,
    FacTConfig,
    HoulsbyConfig,
    HuggingFaceConfig,
    LoRAConfig,
    SSFConfig,
    VPTConfig,
    active_adapter,
    adapter_names,
    attach_adapter,
    attention_maps,
    count_parameters,
    disable_adapters,
    from_peft_folder,
    load_adapter,
    merge_and_unload,
    per_sample,
    print_trainable_parameters,
    save_adapter,
    set_adapter,
    to_peft_folder,
    unload,
)
from .backbones import create_backbone, list_backbones, load_backbone
from .evaluate import evaluate, evaluate_stereo
from .inference import restore
from .stereo import Stereo, load_stereo
from .stereo_inference import restore_stereo
from .train import train
from .version import __version__

__all__ = [
    "ASteISRConfig",
    "ASteISRSpatialConfig",
    "ASteISRStereoConfig",
    "AdaIRConfig",
    "AdaptFormerConfig",
    "AdaptIRConfig",
    "Adapter",
    "AdapterConfig",
    "BitFitConfig",
    "FacTConfig",
    "HoulsbyConfig",
    "HuggingFaceConfig",
    "LoRAConfig",
    "SSFConfig",
    "Stereo",
    "VPTConfig",
    "__version__",
    "active_adapter",
    "adapter_names",
    "attach_adapter",
    "attention_maps",
    "count_parameters",
    "create_backbone",
    "data",
    "disable_adapters",
    "evaluate",
    "evaluate_stereo",
    "from_peft_folder",
    "list_backbones",
    "load_adapter",
    "load_backbone",
    "load_stereo",
    "merge_and_unload",
    "metrics",
    "per_sample",
    "print_trainable_parameters",
    "restore",
    "restore_stereo",
    "save_adapter",
    "set_adapter",
    "to_peft_folder",
    "similarity",
    "train",
    "unload",
]
