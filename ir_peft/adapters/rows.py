"""The two rows that frame every table: everything trained, and nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .config import AdapterConfig


@dataclass(frozen=True, kw_only=True)
class FullConfig(AdapterConfig):
    """Trains whole copies of `modules_to_save`, or of every child of the model if empty."""

    method: ClassVar[str] = "full"


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(AdapterConfig):
    """Trains nothing: the pretrained model as it is."""

    method: ClassVar[str] = "frozen"

    def __post_init__(self):
        super().__post_init__()
        if self.modules_to_save:
            raise ValueError("'frozen' trains nothing: modules_to_save must be empty")
