"""Every layer method of Hugging Face peft (github.com/huggingface/peft, Apache-2.0) as one of ours.

peft, an optional extra, builds its modules around the frozen layers: LoRA in all its variants, OFT,
IA3, VeRA, LoHa, ... They are attached, switched, trained and stored like every adapter here.
`to_peft_folder` and `from_peft_folder` exchange adapters with peft's own format.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .config import AdapterConfig
from .core import Adapter, adapter_parts, install, plan, resolve_config, unload
from .lora import LoRA, LoRAConfig
from .sites import nearest
from .wrappers import unwrapped

EXTRA = "pip install 'ir_peft[peft]'"
NAME = "default"  # Of the one adapter in each of peft's modules; ours are named outside them.
FOR_TEXT = ("ADAPTION_PROMPT", "POLY", "SHADOW", "TRAINABLE_TOKENS", "XLORA")
OURS = ("peft_type", "target_modules", "exclude_modules", "modules_to_save")


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig(AdapterConfig):
    """A config of peft; None as `target_modules` takes the sites of the backbone's LoRA."""

    method: ClassVar[str] = "peft"

    peft_type: str = "LORA"
    """What peft calls the method: "LORA", "OFT", "IA3", "VERA", "LOHA", ..."""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Fields of peft's own config of that type, such as {"r": 4, "use_dora": True}."""

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.peft_type, str) or not isinstance(self.options, dict):
            raise ValueError(f"peft_type={self.peft_type!r} is no name or options no table")
        for key in OURS:
            if key in self.options:
                raise ValueError(f"options: {key} is a field of {type(self).__name__} itself")


class HuggingFace(Adapter):
    """One of peft's modules, which calls the frozen layer itself.

    Its reference to that layer is no registered one, nor are those to modules that several layers
    share but in the first of them: whatever walks the parameters meets each of them once.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    @classmethod
    def for_layers(
        cls, layers: dict[str, nn.Module], config: HuggingFaceConfig
    ) -> dict[str, HuggingFace]:
        """Fits the layers that peft's method takes, as a rule Linear and Conv2d."""
        peft = _import()
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, layer in layers.items():
            if next(layer.parameters(), None) is None:
                raise TypeError(f"peft cannot adapt {name!r}, which has no weights: {layer}")
        root = _tree(copy.deepcopy(layers))
        names = "|".join(re.escape(name) for name in layers)
        theirs = peft_config(config.peft_type, config.options, names)
        try:
            peft.get_peft_model(root, theirs, NAME, autocast_adapter_dtype=False)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ValueError(f"peft's {config.peft_type} does not fit: {error}") from error
        seen: set[int] = set()
        built = {}
        for name, layer in layers.items():
            module = root.get_submodule(name)
            if not isinstance(module, BaseTunerLayer):
                raise TypeError(f"peft's {config.peft_type} left {name!r} as it was: {layer}")
            _check(module, layer, name, config.peft_type)
            del module._modules["base_layer"]
            module.__dict__["base_layer"] = layer
            _hide(module, seen)
            seen |= _ids(module)
            built[name] = cls(module)
        return built

    def run(self, layer: nn.Module, x: Tensor, *args, **kwargs) -> Tensor:
        """(B, H, W, C) or, of a convolution, (B, C, H, W) -> the layer's output, changed."""
        if isinstance(unwrapped(layer), nn.Conv2d) or x.dim() < 4:
            return self.layer(x, *args, **kwargs)
        # Some of peft's modules take four axes for those of a convolution.
        return self.layer(x.flatten(1, -2), *args, **kwargs).unflatten(1, x.shape[1:-1])

    def merge(self, layer: nn.Module) -> dict[str, Tensor]:
        """What peft merges into a copy of the layer."""
        twin = copy.deepcopy(self.layer)
        try:
            twin.merge()
        except NotImplementedError as error:
            raise TypeError(f"peft does not merge {type(twin).__name__}: {error}") from error
        return dict(twin.get_base_layer().named_parameters(recurse=False))


def _import() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(f"Hugging Face peft is not installed: {EXTRA}") from error
    return peft


def peft_config(peft_type: str, options: dict[str, Any], targets: str | list[str], **more: Any):
    """Peft's own config; ValueError where it has no such type or field."""
    peft = _import()
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as TYPES

    if peft_type not in TYPES:
        raise ValueError(
            f"peft {peft.__version__} has no type {peft_type!r}; nearest: "
            f"{nearest(peft_type, TYPES)}; types: {', '.join(sorted(TYPES))}"
        )
    known = [f.name for f in fields(TYPES[peft_type]) if f.init]
    if "target_modules" not in known or peft_type in FOR_TEXT:
        raise ValueError(f"peft's {peft_type} adapts no layer of images but a model of text")
    for key in options:
        if key not in known:
            raise ValueError(
                f"peft's {peft_type} has no option {key!r}; nearest: {nearest(key, known, 1)}; "
                f"options: {', '.join(k for k in known if k not in OURS)}"
            )
    return TYPES[peft_type](target_modules=targets, **options, **more)


def _ids(module: nn.Module) -> set[int]:
    return {id(tensor) for tensor in (*module.parameters(), *module.buffers())}


def _hide(parent: nn.Module, seen: set[int]) -> None:
    """Makes plain references of the modules below `parent` all of whose tensors are in `seen`."""
    for key, child in list(parent._modules.items()):
        if _ids(child) and _ids(child) <= seen:
            parent.__dict__[key] = parent._modules.pop(key)
        else:
            _hide(child, seen)


def _tree(layers: dict[str, nn.Module]) -> nn.Module:
    """A module in which the layers have their names, so that peft's patterns find them."""
    root = nn.Module()
    for name, layer in layers.items():
        parent, *rest = root, *name.split(".")
        for part in rest[:-1]:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
        parent.add_module(rest[-1], layer)
    return root


def _check(module: nn.Module, layer: nn.Module, name: str, peft_type: str) -> None:
    """Refuses what would not leave the layer frozen or not be trained as it is."""
    copied = module.get_base_layer()
    before, after = layer.state_dict(), copied.state_dict()
    same = before.keys() == after.keys() and all(before[k].equal(after[k]) for k in before)
    frozen = {id(p) for p in copied.parameters()}
    if not same or any(p.requires_grad for p in copied.parameters()):
        raise ValueError(
            f"peft's {peft_type} with these options changes the frozen weights of {name!r}: an "
            "initialisation that splits them, or a bias, cannot be stored without the backbone"
        )
    for key, parameter in module.named_parameters():
        if id(parameter) not in frozen and not parameter.requires_grad:
            raise ValueError(
                f"peft's {peft_type} needs steps of its own in the training loop: it keeps "
                f"{key!r} of {name!r} out of the gradient"
            )


def _parts_of(theirs: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Of peft's model: its layers and the modules it trains whole, by their names in ours."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    layers, saved = {}, {}
    for name, module in theirs.base_model.model.named_modules():
        if isinstance(module, BaseTunerLayer):
            layers[name] = module
        elif isinstance(module, ModulesToSaveWrapper):
            saved[name] = module.modules_to_save[NAME]
    return layers, saved


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Tensors of an adapter or a copy by their names in peft's module, as references."""
    if isinstance(module, HuggingFace):
        return module.layer.state_dict()
    state = module.state_dict()
    if isinstance(module, LoRA):  # lora_A.weight -> lora_A.default.weight
        return {key.replace(".", f".{NAME}.", 1): tensor for key, tensor in state.items()}
    return state


def to_peft_folder(model: nn.Module, path: str | Path, name: str = "default") -> Path:
    """Writes the adapter `name`, a LoRA or one of peft's methods, in peft's own format.

    `peft.PeftModel.from_pretrained(backbone, path)` then gives the same outputs on the same
    backbone; peft checks neither its name nor its weights.

    Raises:
        TypeError: peft has no such method.
        ValueError: peft would match other modules than the adapter has.
    """
    peft = _import()
    parts = adapter_parts(model, name)
    config = parts.config
    if isinstance(config, LoRAConfig):
        peft_type, options = "LORA", {"r": config.r, "lora_alpha": config.alpha}
    elif isinstance(config, HuggingFaceConfig):
        peft_type, options = config.peft_type, config.options
    else:
        raise TypeError(f"peft has no method {config.method!r}: export 'lora' or 'peft'")
    names = "|".join(re.escape(key) for key in parts.adapters)
    more = {"modules_to_save": list(parts.copies)} if parts.copies else {}
    base = unload(copy.deepcopy(model))
    theirs = peft.get_peft_model(base, peft_config(peft_type, options, names, **more), NAME)
    layers, saved = _parts_of(theirs)
    if layers.keys() != parts.adapters.keys() or saved.keys() != parts.copies.keys():
        wrong = layers.keys() ^ parts.adapters.keys() or saved.keys() ^ parts.copies.keys()
        raise ValueError(f"peft matches modules by the end of their names: also {sorted(wrong)}")
    with torch.no_grad():
        for key, module in (parts.adapters | parts.copies).items():
            target = {**layers, **saved}[key].state_dict()
            for inner, tensor in _tensors(module).items():
                target[inner].copy_(tensor)
    theirs.save_pretrained(str(path), save_embedding_layers=False)
    return Path(path)


def from_peft_folder(model: nn.Module, path: str | Path, name: str = "default") -> nn.Module:
    """Attaches an adapter that peft has written and makes it active: a plain LoRA becomes ours.

    Raises:
        FileNotFoundError: `path` is no folder of peft.
        ValueError: the folder's tensors or types do not fit the model, which is unchanged.
    """
    file = Path(path) / "adapter_config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no folder of peft: it has no {file.name}")
    raw = json.loads(file.read_text(encoding="utf-8"))
    if "peft_type" not in raw:
        raise ValueError(f"{path} was not written by peft: use load_adapter")
    peft = _import()
    theirs = peft.PeftModel.from_pretrained(unload(copy.deepcopy(model)), str(path), NAME)
    layers, saved = _parts_of(theirs)
    default = type(theirs.peft_config[NAME])().to_dict()
    plain = (*OURS, "task_type", "auto_mapping", "base_model_name_or_path", "revision")
    plain += ("peft_version", "inference_mode", "layers_to_transform", "layers_pattern")
    options = {
        key: value
        for key, value in raw.items()
        if key not in plain and value != json.loads(json.dumps(default.get(key), default=list))
    }
    where = {
        "target_modules": "|".join(re.escape(key) for key in layers),
        "modules_to_save": tuple(saved),
    }
    if raw["peft_type"] == "LORA" and options.keys() <= {"r", "lora_alpha"}:
        alpha = options.get("lora_alpha", default["lora_alpha"])
        config = LoRAConfig(r=options.get("r", default["r"]), alpha=alpha, **where)
    else:
        config = HuggingFaceConfig(peft_type=raw["peft_type"], options=options, **where)
    with torch.random.fork_rng(devices=[]):
        parts = plan(model, resolve_config(model, config, {}), name, seed=None)
    with torch.no_grad():
        for key, module in (parts.adapters | parts.copies).items():
            source = {**layers, **saved}[key].state_dict()
            for inner, tensor in _tensors(module).items():
                tensor.copy_(source[inner])
    return install(model, parts, name)
