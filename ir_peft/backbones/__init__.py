"""Restoration backbones: plain modules with the state-dict keys of their authors' releases.

`BACKBONES` maps a name to the function that builds it. A family is one module of this package: it
offers those functions, `detect(state)`, which reads the architecture off an official state dict,
and `checkpoint_filter(state)`, which drops or renames what differs from our module. Files of other
families load through spandrel (`foreign`). Nothing here knows about adapters.
"""

from __future__ import annotations

import inspect
import pickle
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..names import did_you_mean
from . import dat, edt, foreign, hat, ipt, restormer

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "dat_light": dat.dat_light,
    "dat_s": dat.dat_s,
    "dat": dat.dat,
    "ipt": ipt.ipt,
    "edt_b": edt.edt_b,
    "hat_s": hat.hat_s,
    "hat": hat.hat,
    "hat_l": hat.hat_l,
    "restormer": restormer.restormer,
    "ipt_mini": ipt.ipt_mini,
    "hat_mini": hat.hat_mini,
    "restormer_mini": restormer.restormer_mini,
}
GARBLED = (ValueError, LookupError, TypeError, AttributeError)
"""What the restricted unpickler raises on bytes that are no pickle, besides its own error."""
FAMILIES = (dat, ipt, edt, hat, restormer)
WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "backbones"
CONTAINERS = (
    "params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net",
)  # fmt: skip
PREFIXES = ("module.", "net.")


def list_backbones() -> list[str]:
    """Names for `create_backbone`, then the bundled tags for `load_backbone`."""
    return list(dict.fromkeys([*BACKBONES, *bundled_tags()]))


def create_backbone(name: str, *, scale: int | None = None, **overrides) -> nn.Module:
    """A backbone with random weights.

    Args:
        name: a key of `BACKBONES`.
        scale: output size over input size; None takes the architecture's default.
        **overrides: other arguments of the backbone's class, for instance `depths=(2,)`.

    Raises:
        ValueError: unknown name (the nearest one is suggested), or a scale that it does not have.
        TypeError: the backbone has no such argument.
    """
    if name not in BACKBONES:
        hint = f"; its weights come with load_backbone({name!r})" if name in bundled_tags() else ""
        raise ValueError(_unknown("architecture", name, BACKBONES) + hint)
    builder = BACKBONES[name]
    arguments = inspect.signature(inspect.signature(builder, eval_str=True).return_annotation)
    known = [key for key in arguments.parameters if key != "name"]
    for key in overrides:
        if key not in known:
            raise TypeError(_unknown(f"argument of {name}", key, known))
    if scale is not None:
        overrides["scale"] = scale
    return builder(**overrides)


def load_backbone(name_or_path: str | Path, *, name: str | None = None) -> nn.Module:
    """A backbone with its weights, in eval mode, on the CPU.

    Args:
        name_or_path: a bundled tag (`dat_light_x4`) or a checkpoint file (.pth, .pt, .safetensors).
            Of an official file the family, the scale and the widths are read off its keys and
            shapes; other families (SwinIR, NAFNet, ...) load through spandrel if it is installed.
        name: a key of `BACKBONES`, to insist on it: another one, or another family, is an error.

    Returns:
        The model; x (B, 3, h, w) in [0, 1] -> (B, 3, s * h, s * w).

    Raises:
        FileNotFoundError: neither a bundled tag nor a file.
        ValueError: a corrupt file, a pickle that holds more than tensors, an unknown family or
            purpose, missing, extra or ill-shaped tensors, NaN weights, metadata that the tensors
            contradict.
    """
    bundled = bundled_tags()
    path = Path(name_or_path)
    if name_or_path in bundled:
        path = WEIGHTS / f"{name_or_path}.safetensors"
    if not path.is_file():
        hint = (
            f" create_backbone({name_or_path!r}) has random weights."
            if name_or_path in BACKBONES
            else ""
        )
        raise FileNotFoundError(_unknown("bundled tag or file", str(name_or_path), bundled) + hint)
    if name is not None and name not in BACKBONES:
        raise ValueError(_unknown("architecture", name, BACKBONES))
    state, metadata = read_state_dict(path)
    family, detected, settings = _detect(state)
    asked = name or metadata.get("architecture", detected)
    if family is None:
        if asked in BACKBONES:
            raise ValueError(f"{path} holds no {asked}: its first keys are {list(state)[:5]}")
        check_finite(state, path)
        return foreign.load(state, path, ", ".join(BACKBONES)).eval()
    scale = metadata.get("scale", str(settings["scale"]))
    if (asked, scale) != (detected, str(settings["scale"])):
        raise ValueError(f"{path} holds a {detected} x{settings['scale']}, not a {asked} x{scale}")
    model = BACKBONES[detected](**settings)
    load_strictly(model, family.checkpoint_filter(state), path)
    return model.eval()


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint file, without its authors' containers and prefixes.

    Only tensors are read: a pickle that would run code is refused.

    Raises:
        ValueError: the file is cut off or damaged, holds no state dict, or asks to run code.
    """
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is no checkpoint of tensors alone, but a damaged or foreign "
            "file, or a pickle that could run code when opened"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, *GARBLED) as error:
        reason = textwrap.shorten(str(error), 120, placeholder="...") or "it has no end"
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is cut off, damaged or of another kind, "
            f"copy or download it again ({path.stat().st_size:,} bytes; {reason})"
        ) from error
    for container in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no state dict but a {type(content).__name__}")
    wrong = [k for k, v in content.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if wrong:
        raise ValueError(f"{path} is no state dict: {wrong[0]!r} is not a tensor")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return content, metadata


def load_strictly(model: nn.Module, state: dict[str, Tensor], source: Path | str) -> None:
    """Loads every tensor or none.

    Raises:
        ValueError: missing, extra or ill-shaped tensors, or values that are not finite; the first
            of them is named.
    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise ValueError(
            f"{source} does not fit: {len(missing)} tensors are missing (first: {missing[:3]}), "
            f"{len(extra)} are not the model's (first: {extra[:3]})"
        )
    for key, value in state.items():
        shape, expected = tuple(value.shape), tuple(own[key].shape)
        if shape != expected:
            raise ValueError(f"{source}: {key} has shape {shape}, the model's has {expected}")
    check_finite(state, source)
    model.load_state_dict(state, strict=True)


def check_finite(state: dict[str, Tensor], source: Path | str) -> None:
    """Raises ValueError where a tensor has NaN or infinite values."""
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{source}: {key} has values that are not finite")


def _detect(state: dict[str, Tensor]):
    """(family, architecture, its settings), or three times None for what no family recognises."""
    for family in FAMILIES:
        found = family.detect(state)
        if found is not None:
            return family, *found
    return None, None, None


def bundled_tags() -> list[str]:
    """Names of the weights that come with the package, for `load_backbone`."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def _unknown(kind: str, asked: str, known: Iterable[str]) -> str:
    hint = did_you_mean(asked, known) or "."
    return f"there is no {kind} {asked!r}{hint} Known: {', '.join(known)}."
