"""Distillation: a small, fast DistilBERT from a BERT or another DistilBERT, on one's own texts.

The names below are loaded when first used: importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .distillation import distill
    from .settings import Settings, Summary
    from .training import DivergedError

__all__ = ["DivergedError", "Settings", "Summary", "distill"]

_HOMES = {
    "DivergedError": "training",
    "Settings": "settings",
    "Summary": "settings",
    "distill": "distillation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
