"""Configs: frozen flat dataclasses, and how a method's name becomes one on a given backbone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

from torch import nn

from .sites import nearest
from .wrappers import walk


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What every method's config has. Lists become tuples; a wrong value is a ValueError."""

    method: ClassVar[str]

    target_modules: str | tuple[str, ...] | None = None
    """Layers to adapt: a regular expression for whole names, or a tuple of names or suffixes.
    None takes the backbone's default for the method, () adapts nothing."""
    exclude_modules: str | tuple[str, ...] | None = None
    """Layers to leave out, written like `target_modules`."""
    modules_to_save: tuple[str, ...] = ()
    """Full names of modules that are trained whole and stored with the adapter; what names none is
    a regular expression for whole names."""

    def __post_init__(self):
        for key in (f.name for f in fields(self) if "modules" in f.name):
            value = getattr(self, key)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, key, value)
            if isinstance(value, tuple):
                good = all(isinstance(item, str) for item in value)
            else:
                good = key != "modules_to_save" and isinstance(value, str | None)
            if not good:
                raise ValueError(f"{key}={value!r} must be a tuple of names")

    def require_positive(self, *names: str) -> None:
        """Raises ValueError unless the named fields are integers of at least 1 (or None)."""
        for name in names:
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name}={value!r} must be an integer of at least 1")

    def require_one_of(self, name: str, *choices: str) -> None:
        """Raises ValueError unless the named field is one of `choices`."""
        if getattr(self, name) not in choices:
            raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(choices)}")

    def require_above_zero(self, *names: str) -> None:
        """Raises ValueError unless the named fields are finite numbers above 0."""
        for name in names:
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < float("inf"):
                raise ValueError(f"{name}={value!r} must be a number above 0")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data, for `config_from_dict`."""
        return asdict(self)


def resolve_config(
    model: nn.Module, config: AdapterConfig | str, overrides: dict[str, Any]
) -> AdapterConfig:
    """The config with the backbone's defaults filled in; see `attach_adapter`."""
    from . import CONFIGS, config_from_dict  # The registry imports this module.

    all_defaults = getattr(model, "adapter_defaults", {})
    if isinstance(config, str):
        config = config_from_dict(config, {**all_defaults.get(config, {}), **overrides})
    elif overrides:
        raise TypeError(f"{', '.join(overrides)}: set these in {type(config).__name__}")
    if CONFIGS.get(getattr(config, "method", None)) is not type(config):
        raise TypeError(f"{config!r} is no method's config; methods: {', '.join(CONFIGS)}")
    if config.method in ("full", "frozen"):
        return replace(config, modules_to_save=_whole(model, config))
    sites = "lora" if config.method == "peft" else config.method  # Both change linear layers.
    defaults = all_defaults.get(sites, {})
    for key in ("target_modules", "stereo_modules"):  # The second is of `asteisr` alone.
        if getattr(config, key, ()) is None and key in defaults:
            config = replace(config, **{key: defaults[key]})
    if config.target_modules is None:
        raise ValueError(
            f"{type(model).__name__} has no default sites for {config.method!r}: give "
            f"target_modules (modules: {nearest('', (p.name for p in walk(model)), 8)}, ...)"
        )
    if config.target_modules == () and not config.modules_to_save:
        raise ValueError("neither target_modules nor modules_to_save: nothing would be trained")
    return config


def _whole(model: nn.Module, config: AdapterConfig) -> tuple[str, ...]:
    """What `full` trains: the modules it names, else every child of the model with parameters."""
    if config.target_modules or config.exclude_modules:
        raise ValueError(f"{config.method!r} adapts no layers: leave target_modules to its default")
    if config.method == "frozen" or config.modules_to_save:
        return config.modules_to_save
    loose = [name for name, parameter in model._parameters.items() if parameter is not None]
    if loose:
        raise ValueError(
            f"'full' trains whole submodules, and {', '.join(loose)} belongs to the model itself: "
            "move it into a submodule or name modules_to_save"
        )
    places = [place for place in walk(model) if "." not in place.name]
    return tuple(p.name for p in places if next(p.layer.parameters(), None) is not None)
