"""Adapters on disk: a folder with `adapter_model.safetensors` and `adapter_config.json`.

The file holds the adapter's parameters and buffers and the modules it replaces, nothing of the
backbone; the config names the backbone and the fingerprint of the weights the adapter was made for.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..files import atomic_path
from ..version import __version__
from .core import (
    AdapterParts,
    adapter_parts,
    install,
    plan,
    resolve_config,
)
from .sites import nearest
from .wrappers import walk

WEIGHTS = Path(__file__).parents[1] / "weights" / "adapters"
DTYPES = {"fp16": torch.float16}
MODEL_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the backbone's own tensors (names, types, shapes, values), without adapters."""
    tensors = dict(_own_tensors(model, ""))
    for place in walk(model):
        tensors |= _own_tensors(place.layer, f"{place.name}.")
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _own_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    stored = module._buffers.keys() - module._non_persistent_buffers_set
    tensors = {**module._parameters, **{name: module._buffers[name] for name in stored}}
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items() if tensor is not None}


def adapter_state_dict(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """Parameters and buffers of one adapter and of the modules it replaces, as references.

    Keys are `<layer>.<method>.<tensor>` and `<module>.<tensor>`, with the names that the model has
    without adapters; the adapter's own name is not among them.
    """
    return _state(adapter_parts(model, name))


def _state(parts: AdapterParts) -> dict[str, Tensor]:
    return {
        f"{prefix}.{key}": tensor
        for prefix, module in parts.modules().items()
        for key, tensor in module.state_dict().items()
    }


def load_adapter_state_dict(
    model: nn.Module, state: dict[str, Tensor], name: str = "default"
) -> None:
    """Copies `state` into an attached adapter.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape or not finite; nothing changes.
    """
    _load(adapter_parts(model, name), state)


def _load(parts: AdapterParts, state: dict[str, Tensor]) -> None:
    own = _state(parts)
    missing, unknown = [k for k in own if k not in state], [k for k in state if k not in own]
    if missing or unknown:
        lines = [f"missing {key!r}" for key in missing[:5]]
        lines += [f"unknown {key!r} (nearest: {nearest(key, own, 1)})" for key in unknown[:5]]
        raise ValueError(
            f"the tensors are not those of the adapter, {len(missing)} missing and "
            f"{len(unknown)} unknown: {'; '.join(lines)}"
        )
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            raise ValueError(
                f"{key!r} has shape {tuple(tensor.shape)}, the adapter needs "
                f"{tuple(own[key].shape)}"
            )
    _check_finite(state)
    for prefix, module in parts.modules().items():
        module.load_state_dict({key: state[f"{prefix}.{key}"] for key in module.state_dict()})


def _check_finite(state: dict[str, Tensor], reason: str = "NaN or infinite") -> None:
    for key, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{key!r} has values that are not finite ({reason})")


def save_adapter(
    model: nn.Module, path: str | Path, name: str = "default", *, dtype: str | None = None
) -> Path:
    """Writes one adapter into the folder `path` and returns the folder.

    Both files are complete before either takes its place; a file that was there stays on any error.

    Args:
        model: with the adapter.
        path: of the folder.
        name: of the adapter.
        dtype: "fp16" halves the file and rounds the values to 11 significant bits; a model that
            loads it has its own precision again. None stores what the adapter has.

    Raises:
        ValueError: the adapter or `dtype` is unknown, or a value is not finite, or too large for
            `dtype`; nothing is written.
        OSError: the folder cannot be written.
    """
    folder = Path(path)
    parts = adapter_parts(model, name)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in _state(parts).items()}
    _check_finite(state)
    if dtype is not None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} must be None or one of {', '.join(DTYPES)}")
        kind = DTYPES[dtype]
        state = {k: t.to(kind) if t.is_floating_point() else t for k, t in state.items()}
        _check_finite(state, f"{dtype} holds no value above {torch.finfo(kind).max:g}")
    card = {
        "method": parts.config.method,
        "config": parts.config.to_dict(),
        "backbone": _backbone(model),
        "scale": getattr(model, "scale", None),
        "task": getattr(model, "task", None),
        "fingerprint": fingerprint(model),
        "version": __version__,
        **({} if dtype is None else {"dtype": dtype}),
        **({"mask_leak": True} if _mask_leak(model) else {}),
    }
    text = json.dumps(card, indent=2) + "\n"
    tied = {tensor.data_ptr() for tensor in state.values() if tensor.numel()}
    if len(tied) < sum(tensor.numel() > 0 for tensor in state.values()):
        state = {key: tensor.clone() for key, tensor in state.items()}  # The format has no aliases.
    data = safetensors.torch.save(state, metadata={"format": "pt", "card": text})
    with atomic_path(folder / CONFIG_FILE) as config_file:
        config_file.write_text(text, encoding="utf-8")
        with atomic_path(folder / MODEL_FILE) as model_file:
            model_file.write_bytes(data)
    return folder


def load_adapter(model: nn.Module, path_or_tag: str | Path, name: str = "default") -> nn.Module:
    """Attaches an adapter from a folder, or one that comes with the package, and makes it active.

    Args:
        model: the backbone that the adapter was made for; changed in place.
        path_or_tag: a folder written by `save_adapter`, or a tag like "adaptir/lr4_noise30-lora".
        name: under which it is switched.

    Returns:
        `model`.

    Raises:
        FileNotFoundError: no such folder or tag, or a file is missing in it.
        ValueError: a file is damaged, the adapter belongs to another backbone, task, scale or
            weights, or its tensors are not those its config asks for. The model is unchanged.
    """
    folder = find_adapter(path_or_tag)
    card, state = read_adapter(folder)
    for what, own, advice in (
        ("backbone", _backbone(model), ""),
        # Some backbones switch between tasks; cards of the others may lack the entry.
        ("task", getattr(model, "task", None), ": call set_task of the model first"),
        ("scale", getattr(model, "scale", None), ""),
        ("mask_leak", _mask_leak(model), f": set model.mask_leak = {card.get('mask_leak', False)}"),
    ):
        made_for = card.get(what, False if what == "mask_leak" else None)
        if made_for != own:
            raise ValueError(
                f"{folder} is for {what} {made_for!r}, this model has {what} {own!r}{advice}"
            )
    if card["fingerprint"] != fingerprint(model):
        raise ValueError(
            f"{folder} was made for other weights of {card['backbone']!r} than this model has: "
            "load the same pretrained weights first, and in the same precision"
        )
    from . import config_from_dict  # The registry imports this module.

    config = resolve_config(model, config_from_dict(card["method"], card["config"]), {})
    with torch.random.fork_rng(devices=[]):  # Loading leaves the caller's random numbers alone.
        parts = plan(model, config, name, seed=None)
    try:
        _load(parts, state)
    except ValueError as error:
        raise ValueError(f"{folder / MODEL_FILE}: {error}") from error
    return install(model, parts, name)


def _backbone(model: nn.Module) -> str:
    name = getattr(model, "name", None)
    return name if isinstance(name, str) else type(model).__name__


def _mask_leak(model: nn.Module) -> bool:
    """Of a HAT as ASteISR's authors run it, which no tensor shows."""
    return getattr(model, "mask_leak", False)


def find_adapter(path_or_tag: str | Path) -> Path:
    """The folder of a saved adapter; FileNotFoundError names what there is instead."""
    for folder in (Path(path_or_tag), WEIGHTS / path_or_tag):
        if folder.is_dir():
            missing = [file for file in (MODEL_FILE, CONFIG_FILE) if not (folder / file).is_file()]
            if not missing:
                return folder
            inside = sorted(path.parent for path in folder.rglob(CONFIG_FILE))
            if inside and len(missing) == 2:
                names = [str(Path(path_or_tag) / i.relative_to(folder)) for i in inside]
                more = ", ... (`ir-peft list` shows all)" if len(names) > 4 else ""
                raise FileNotFoundError(
                    f"{str(path_or_tag)!r} is a folder of {len(inside)} adapters: name one of "
                    f"{', '.join(names[:4])}{more}"
                )
            raise FileNotFoundError(f"{folder} has no {' and no '.join(missing)}")
    tags = [str(file.parent.relative_to(WEIGHTS)) for file in WEIGHTS.rglob(CONFIG_FILE)]
    raise FileNotFoundError(
        f"{str(path_or_tag)!r} is neither a folder nor a bundled adapter; nearest bundled: "
        f"{nearest(str(path_or_tag), sorted(tags))}"
    )


def read_adapter(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """The config and the tensors in a folder; ValueError where a file is damaged."""
    config_file, model_file = folder / CONFIG_FILE, folder / MODEL_FILE
    try:
        card = json.loads(config_file.read_text(encoding="utf-8"))
        wanted = {"method", "config", "backbone", "scale", "fingerprint", "version"}
        if not isinstance(card, dict) or set(card) - {"task", "dtype", "mask_leak"} != wanted:
            raise ValueError(f"its entries must be {', '.join(sorted(wanted))}")
    except ValueError as error:
        raise ValueError(f"{config_file} is damaged: {error}") from error
    try:
        with safetensors.safe_open(model_file, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{model_file} is damaged: {error}") from error
    if metadata.get("card") != config_file.read_text(encoding="utf-8"):
        raise ValueError(f"{config_file} and {model_file.name} come from different saves")
    return card, state
