"""What stands in a layer's place, and the walk that sees through it.

Everything finds layers by `walk`: a model's modules by the names they have without adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

# Not looked up in the wrapped module: these are missing only while a wrapper is unpickled.
_OWN = ("base_layer", "active", "adapters", "copies", "current", "variants")


class Wrapper(nn.Module):
    """Stands in the place of `base_layer` and switches between its variants by name."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.active: str | None = None
        """Name of the variant in use; None is the frozen layer alone."""

    @property
    def variants(self) -> nn.ModuleDict:
        """What each adapter, by name, puts in this place."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The active variant, for printing."""
        return f"active={self.active!r}"


class AdaptedLayer(Wrapper):
    """A frozen layer and its adapters by name: `adapters[active].run(base_layer, x)`.

    Attributes that the parent reads (`weight`, `in_features`, ...) are those of the frozen layer.
    """

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.adapters = nn.ModuleDict()

    @property
    def variants(self) -> nn.ModuleDict:
        """The adapters by name."""
        return self.adapters

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """The layer's own arguments; the first one is the adapter's x."""
        if self.active is None:
            return self.base_layer(x, *args, **kwargs)
        return self.adapters[self.active].run(self.base_layer, x, *args, **kwargs)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in _OWN or name.startswith("__"):
                raise
            return getattr(self.base_layer, name)


class SavedModule(Wrapper):
    """A frozen module and, by adapter name, copies of it that are trained whole.

    It behaves like the one in use: called, iterated, indexed or read.
    """

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.copies = nn.ModuleDict()

    @property
    def variants(self) -> nn.ModuleDict:
        """The copies by adapter name."""
        return self.copies

    @property
    def current(self) -> nn.Module:
        """The module in use."""
        return self.base_layer if self.active is None else self.copies[self.active]

    def forward(self, *args, **kwargs):
        """What the module in use does."""
        return self.current(*args, **kwargs)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in _OWN or name.startswith("__"):
                raise
            return getattr(self.current, name)

    def __getitem__(self, index):
        return self.current[index]

    def __iter__(self):
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)

    def __bool__(self) -> bool:
        return bool(self.current)


class Place(NamedTuple):
    """One module of the model without adapters, and where it hangs."""

    name: str
    parent: nn.Module
    attribute: str
    outer: nn.Module
    """What `parent` holds: the layer itself or the outermost wrapper around it."""

    @property
    def wrappers(self) -> list[Wrapper]:
        """The wrappers around the layer, outermost first."""
        found, module = [], self.outer
        while isinstance(module, Wrapper):
            found.append(module)
            module = module.base_layer
        return found

    @property
    def layer(self) -> nn.Module:
        """The frozen layer itself."""
        return unwrapped(self.outer)

    def replace(self, module: nn.Module) -> None:
        """Hangs `module` where `outer` was."""
        setattr(self.parent, self.attribute, module)


def unwrapped(module: nn.Module) -> nn.Module:
    """The layer inside any wrappers."""
    while isinstance(module, Wrapper):
        module = module.base_layer
    return module


def walk(model: nn.Module, prefix: str = "") -> Iterator[Place]:
    """Every module below `model` in order, as if no adapter were attached."""
    for attribute, child in model._modules.items():
        if child is not None:
            yield Place(prefix + attribute, model, attribute, child)
            yield from walk(unwrapped(child), f"{prefix}{attribute}.")
