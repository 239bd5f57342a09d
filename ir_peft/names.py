"""The nearest known name, for the error about an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(asked: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name resembles the one asked for, else nothing."""
    near = difflib.get_close_matches(asked, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
