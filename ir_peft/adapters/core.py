"""The adapter protocol: `forward(x, out) -> out'` on one frozen layer, attached by its name.

A model with adapters is the model itself: each adapted layer sits in an `AdaptedLayer`, each module
that is trained whole in a `SavedModule`, and both switch by adapter name. Everything here follows
that structure; names of parameters carry no meaning.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .config import AdapterConfig, resolve_config
from .sites import find, select
from .wrappers import AdaptedLayer, Place, SavedModule, Wrapper, walk


class Adapter(nn.Module):
    """Changes the output of one frozen layer. At initialisation it returns `out` bit for bit.

    The exceptions say so: `VPT`, which cannot, and what peft or a config starts elsewhere.
    """

    run_is_forward = False
    """Set where an own `run` is but a faster way to `forward` on the frozen layer's output."""

    @classmethod
    def for_layer(cls, layer: nn.Module, config: AdapterConfig) -> Adapter:
        """Builds the adapter with the widths of `layer`; TypeError where it does not fit."""
        raise NotImplementedError

    @classmethod
    def for_layers(cls, layers: dict[str, nn.Module], config: AdapterConfig) -> dict[str, Adapter]:
        """Builds one adapter for each layer, by its name: those that share tensors override this.

        A shared module is registered in one adapter only, and is a plain reference in the others.
        """
        built = {}
        for name, layer in layers.items():
            try:
                built[name] = cls.for_layer(layer, config)
            except TypeError as error:
                raise TypeError(f"{config.method} cannot adapt {name!r}: {error}") from error
        return built

    def run(self, layer: nn.Module, x: Tensor, *args, **kwargs) -> Tensor:
        """Calls the layer and changes its output: one that acts before the layer overrides this."""
        return self(x, layer(x, *args, **kwargs))

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """The layer's first input and its output -> the new output, of the shape of `out`."""
        raise NotImplementedError

    def merge(self, layer: nn.Module) -> dict[str, Tensor]:
        """New values of the layer's parameters that give the layer this adapter's output.

        A parameter that is None in the layer becomes one.

        Raises:
            TypeError: no such values exist.
        """
        raise TypeError(
            f"{type(self).__name__} is not linear in the layer's input, so no weight can replace it"
        )


@dataclass
class AdapterParts:
    """All modules of one adapter, by the name of the layer or module they belong to."""

    config: AdapterConfig
    adapters: dict[str, Adapter] = field(default_factory=dict)
    copies: dict[str, nn.Module] = field(default_factory=dict)

    def modules(self) -> dict[str, nn.Module]:
        """Module by stored prefix: `<layer>.<method>` for an adapter, `<module>` for a copy."""
        method = self.config.method
        return {f"{name}.{method}": part for name, part in self.adapters.items()} | self.copies


@dataclass
class Attached:
    """A model's adapters, kept on the model as the attribute `attached`."""

    parts: dict[str, AdapterParts]
    active: str | None
    was_trainable: dict[str, bool]
    """`requires_grad` of the model's own parameters before the first adapter."""


def _attached(model: nn.Module) -> Attached:
    return model.__dict__.get("attached") or Attached({}, None, {})


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the attached adapters, oldest first."""
    return list(_attached(model).parts)


def active_adapter(model: nn.Module) -> str | None:
    """Name of the adapter in use; None where there is none or adapters are disabled."""
    return _attached(model).active


def adapter_parts(model: nn.Module, name: str) -> AdapterParts:
    """The modules of the adapter `name`; ValueError where it is not attached."""
    parts = _attached(model).parts
    if name not in parts:
        raise ValueError(f"no adapter {name!r} is attached; attached: {list(parts) or 'none'}")
    return parts[name]


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters, without copies and adapters, by their names without adapters."""
    own = {name: p for name, p in model._parameters.items() if p is not None}
    for place in walk(model):
        for name, parameter in place.layer._parameters.items():
            if parameter is not None:
                own[f"{place.name}.{name}"] = parameter
    return own


def attach_adapter(
    model: nn.Module,
    config: AdapterConfig | str,
    name: str = "default",
    *,
    seed: int | None = None,
    **overrides,
) -> nn.Module:
    """Attaches a new adapter, makes it the active one and freezes everything else.

    Args:
        model: any module; changed in place.
        config: a method's config, or a method's name for the paper's setting on this backbone
            (`model.adapter_defaults`).
        name: under which the adapter is switched and saved.
        seed: of the initialisation; None draws from torch's global generator.
        **overrides: fields that replace the defaults where `config` is a name.

    Returns:
        `model`.

    Raises:
        ValueError: unknown method or field, a pattern that matches nothing, a name in use.
        TypeError: a matched layer does not fit the method.
    """
    config = resolve_config(model, config, overrides)
    return install(model, plan(model, config, name, seed), name)


def plan(model: nn.Module, config: AdapterConfig, name: str, seed: int | None) -> AdapterParts:
    """Builds an adapter without touching the model; raises what `attach_adapter` raises."""
    from . import ADAPTERS  # The registry imports this module.

    if name in adapter_names(model):
        raise ValueError(f"an adapter {name!r} is attached already: unload it or take another name")
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"{name!r} cannot name an adapter: empty, dotted, or a word of nn.ModuleDict"
        )
    places = list(walk(model))
    saved = find(places, config.modules_to_save)
    targets = select(places, config.target_modules or (), config.exclude_modules)
    for i, module in enumerate(saved):
        for other in [*targets, *saved[:i], *saved[i + 1 :]]:
            if f"{other.name}.".startswith(f"{module.name}."):
                raise ValueError(
                    f"{other.name!r} is or lies inside {module.name!r}, which is trained whole: "
                    "name one of the two"
                )
    parts = AdapterParts(config)
    default = next(iter(base_parameters(model).values()), torch.zeros(()))
    fork = nullcontext() if seed is None else torch.random.fork_rng(devices=[])
    with fork:
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        if targets:
            _check_called(targets)
            layers = {place.name: place.layer for place in targets}
            parts.adapters = ADAPTERS[config.method].for_layers(layers, config)
        for key, adapter in parts.adapters.items():
            like = next(layers[key].parameters(), default)  # A site may have no parameters.
            adapter.to(like.device, like.dtype)
    # One call, so that parameters shared between the modules stay shared between the copies.
    copies = copy.deepcopy([place.layer for place in saved])
    for place, module in zip(saved, copies, strict=True):
        for inner in list(walk(module)):  # The copy is of the frozen module, not of its adapters.
            inner.replace(inner.layer)
        parts.copies[place.name] = module.eval()
    return parts


def _check_called(targets: list[Place]) -> None:
    for place in targets:
        if isinstance(place.parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            raise TypeError(
                f"{place.name}: {type(place.parent).__name__} reads the weights of its children "
                "without calling them, so an adapter there would not run"
            )


def install(model: nn.Module, parts: AdapterParts, name: str) -> nn.Module:
    """Puts planned modules into the model and switches to them."""
    if "attached" not in model.__dict__:
        flags = {key: p.requires_grad for key, p in base_parameters(model).items()}
        model.attached = Attached({}, None, flags)
    places = {place.name: place for place in walk(model)}
    for kind, modules in ((AdaptedLayer, parts.adapters), (SavedModule, parts.copies)):
        for key, module in modules.items():
            wrapper = next((w for w in places[key].wrappers if type(w) is kind), None)
            if wrapper is None:
                wrapper = kind(places[key].outer).train(places[key].outer.training)
                places[key].replace(wrapper)
            wrapper.variants[name] = module.train(module.training and places[key].layer.training)
    model.attached.parts[name] = parts
    for parameter in base_parameters(model).values():
        parameter.requires_grad_(False)
    return set_adapter(model, name)


def set_adapter(model: nn.Module, name: str) -> nn.Module:
    """Switches to the adapter `name`: it alone runs and it alone is trainable. Returns `model`."""
    adapter_parts(model, name)
    for other, parts in _attached(model).parts.items():
        for module in parts.modules().values():
            for parameter in module.parameters():
                if parameter.is_floating_point() or parameter.is_complex():
                    parameter.requires_grad_(other == name)
    _activate(model, name)
    return model


def _activate(model: nn.Module, name: str | None) -> None:
    model.attached.active = name
    for place in walk(model):
        for wrapper in place.wrappers:
            wrapper.active = name if name in wrapper.variants else None


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the model is the frozen backbone; afterwards the same adapter is active again."""
    before = active_adapter(model)
    if before is None:
        yield model
        return
    _activate(model, None)
    try:
        yield model
    finally:
        if before in adapter_names(model):
            _activate(model, before)


def unload(model: nn.Module, name: str | None = None) -> nn.Module:
    """Removes the adapter `name`, or all; with the last one gone the model is as before the first.

    If the active adapter goes and others stay, none is active until `set_adapter`. Returns `model`.
    """
    names = adapter_names(model) if name is None else [name]
    for each in names:
        adapter_parts(model, each)
    if not names:
        return model
    state = model.attached
    for each in names:
        del state.parts[each]
    for place in list(walk(model)):
        outer = place.layer
        for wrapper in reversed(place.wrappers):
            for each in names:
                if each in wrapper.variants:
                    del wrapper.variants[each]
            if wrapper.variants:
                wrapper.base_layer = outer
                outer = wrapper
        if outer is not place.outer:
            place.replace(outer)
    _activate(model, None if state.active in names else state.active)
    if not state.parts:
        for key, parameter in base_parameters(model).items():
            parameter.requires_grad_(state.was_trainable[key])
        del model.attached
    return model


def merge_and_unload(model: nn.Module) -> nn.Module:
    """Writes the active adapter into the weights and removes all adapters; exact up to rounding.

    A model without adapters is returned as it is.

    Raises:
        TypeError: the method cannot be merged (its effect depends on the input).
        ValueError: no adapter is active, or a merged weight would not be finite. In all three cases
            the model is unchanged.
    """
    if not adapter_names(model):
        return model
    name = active_adapter(model)
    if name is None:
        raise ValueError(f"no adapter is active; set one of {adapter_names(model)}")
    parts = adapter_parts(model, name)
    layers = {place.name: place.layer for place in walk(model)}
    with torch.no_grad():
        merged = {key: part.merge(layers[key]) for key, part in parts.adapters.items()}
    for key, weights in merged.items():
        if not all(weight.isfinite().all() for weight in weights.values()):
            raise ValueError(f"merging {key!r} would give values that are not finite")
    unload(model)
    flags = {key: p.requires_grad for key, p in base_parameters(model).items()}
    with torch.no_grad():
        for key, weights in merged.items():
            for attribute, weight in weights.items():
                if getattr(layers[key], attribute) is None:
                    setattr(layers[key], attribute, nn.Parameter(weight))
                else:
                    getattr(layers[key], attribute).copy_(weight)
    for place in list(walk(model)):
        if place.name in parts.copies:
            place.replace(parts.copies[place.name].train(place.layer.training))
    for key, parameter in base_parameters(model).items():
        # A new bias is as trainable as its layer's weight.
        own = key if key in flags else f"{key.rpartition('.')[0]}.weight"
        parameter.requires_grad_(flags[own])
    return model


def train_mode(model: nn.Module) -> nn.Module:
    """Puts the active adapter into training mode, all else, saved copies included, into eval mode.

    So DropPath, Dropout and BatchNorm statistics of the backbone stay still. Returns `model`.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, AdaptedLayer) and module.active is not None:
            module.adapters[module.active].train()
    return model


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by the names they are stored under."""
    stored = {}
    for parts in _attached(model).parts.values():
        for prefix, module in parts.modules().items():
            for name, parameter in module.named_parameters():
                stored[id(parameter)] = f"{prefix}.{name}"
    named = model.named_parameters()
    return {stored.get(id(p), name): p for name, p in named if p.requires_grad}


def _in_use(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that take part in a forward pass with the active adapter."""
    if isinstance(module, SavedModule):
        module = module.current
    elif isinstance(module, AdaptedLayer):
        if module.active is not None:
            yield from module.adapters[module.active].parameters()
        module = module.base_layer
    if isinstance(module, Wrapper):
        yield from _in_use(module)
        return
    yield from module._parameters.values()
    for child in module.children():
        yield from _in_use(child)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) numbers of parameters in a forward pass with the active adapter.

    An inactive adapter does not count, and a module that is trained whole counts once.
    """
    used = {id(p): p for p in _in_use(model) if p is not None}.values()
    trainable = sum(p.numel() for p in used if p.requires_grad)
    return trainable, sum(p.numel() for p in used)


def print_trainable_parameters(model: nn.Module) -> None:
    """Prints `trainable params: 1,234 || all params: 9,999 || trainable%: 12.3412`."""
    trainable, total = count_parameters(model)
    share = 100 * trainable / max(1, total)
    print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}")
