"""Which layers an adapter goes to, and how wide they are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from .wrappers import Place


def nearest(word: str, words: Iterable[str], count: int = 3) -> str:
    """The closest of `words`; of names that differ only in numbers, the first."""
    kinds: dict[str, str] = {}
    for candidate in words:
        kinds.setdefault(re.sub(r"\d+", "*", candidate), candidate)
    close = difflib.get_close_matches(word, kinds.values(), n=count, cutoff=0.0)
    return ", ".join(repr(candidate) for candidate in close) or "none"


def matches(name: str, patterns: str | tuple[str, ...]) -> bool:
    """A string is a regular expression for the whole name, a tuple has names or suffixes."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def select(
    places: list[Place], wanted: str | tuple[str, ...], exclude: str | tuple[str, ...] | None = None
) -> list[Place]:
    """The places that `wanted` names and `exclude` does not.

    Raises:
        ValueError: a pattern matches nothing, or a chosen module has several names.
    """
    names = [place.name for place in places]
    for pattern in (wanted,) if isinstance(wanted, str) else wanted:
        one = pattern if isinstance(wanted, str) else (pattern,)
        try:
            found = any(matches(name, one) for name in names)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        if not found:
            hint = ""
            if isinstance(wanted, str) and any(matches(name, (pattern,)) for name in names):
                hint = f" A string must match whole names; for a suffix write ({pattern!r},)."
            raise ValueError(
                f"no module matches {pattern!r}; nearest names: {nearest(pattern, names)}.{hint}"
            )
    chosen = [place for place in places if matches(place.name, wanted)]
    if exclude:
        kept = [place for place in chosen if not matches(place.name, exclude)]
        if chosen and not kept:
            raise ValueError(f"exclude_modules={exclude!r} excludes all that {wanted!r} matches")
        chosen = kept
    return _check_single(chosen, places)


def find(places: list[Place], names: tuple[str, ...]) -> list[Place]:
    """The places with these names; a name of no place is a regular expression for whole names.

    Raises:
        ValueError: there is no such module, or it has several names.
    """
    known = {place.name: place for place in places}
    chosen = []
    for name in names:
        chosen += [known[name]] if name in known else select(places, name)
    return _check_single(chosen, places)


def _check_single(chosen: list[Place], places: list[Place]) -> list[Place]:
    for place in chosen:
        twins = [other.name for other in places if other.layer is place.layer]
        if len(twins) > 1:
            raise ValueError(f"one module is used under several names: {', '.join(twins)}")
    return chosen


class Widths(NamedTuple):
    """Channels into and out of a layer, and whether they are the last axis."""

    in_features: int
    out_features: int
    channels_last: bool


def widths(layer: nn.Module, *, keeps_size: bool = False) -> Widths:
    """Reads a layer's widths: nn.Linear, nn.Conv2d, or a module with the three attributes.

    Args:
        layer: the frozen layer.
        keeps_size: a convolution must return the H and W it receives.

    Raises:
        TypeError: the layer has no such widths.
    """
    if isinstance(layer, nn.Conv2d):
        if keeps_size and not _keeps_size(layer):
            raise TypeError(f"its output is not of its input's size: {layer}")
        return Widths(layer.in_channels, layer.out_channels, False)
    if isinstance(layer, nn.Linear):
        return Widths(layer.in_features, layer.out_features, True)
    try:
        return Widths(layer.in_features, layer.out_features, layer.channels_last)
    except AttributeError:
        raise TypeError(
            f"{type(layer).__name__} is neither Linear nor Conv2d, nor has it the attributes "
            "in_features, out_features and channels_last"
        ) from None


def channels(layer: nn.Module) -> tuple[int, int]:
    """How many channels a layer with a weight returns, and on which axis.

    Raises:
        TypeError: not a Linear, Conv2d, or LayerNorm over the last axis or BatchNorm with a weight.
    """
    if isinstance(layer, nn.Linear):
        return layer.out_features, -1
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, 1
    if getattr(layer, "weight", None) is not None and layer.weight.dim() == 1:
        if isinstance(layer, nn.LayerNorm):
            return len(layer.weight), -1
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            return len(layer.weight), 1
    raise TypeError(
        f"a Linear, Conv2d, LayerNorm or BatchNorm with a weight is needed, not {layer}"
    )


def _keeps_size(conv: nn.Conv2d) -> bool:
    if isinstance(conv.padding, str):
        return conv.padding == "same"
    sides = zip(conv.kernel_size, conv.padding, conv.dilation, conv.stride, strict=True)
    return all(s == 1 and 2 * p == d * (k - 1) for k, p, d, s in sides)
