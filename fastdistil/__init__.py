"""Fast inference for DistilBERT and BERT encoders: packed tokens, fused kernels, no padding.

The names below are loaded when first used: importing this package loads neither torch nor anything
that is optional.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .config import EncoderConfig
    from .drop_in import accelerate, explain, restore, warmup
    from .encoder import Encoder
    from .model import DistilBertModel
    from .packing import PackedBatch
    from .tasks import pipeline

__all__ = [
    "DistilBertModel",
    "Encoder",
    "EncoderConfig",
    "PackedBatch",
    "__version__",
    "accelerate",
    "explain",
    "pipeline",
    "restore",
    "warmup",
]

_HOMES = {
    "DistilBertModel": "model",
    "Encoder": "encoder",
    "EncoderConfig": "config",
    "PackedBatch": "packing",
    "accelerate": "drop_in",
    "explain": "drop_in",
    "pipeline": "tasks",
    "restore": "drop_in",
    "warmup": "drop_in",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
