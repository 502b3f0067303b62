"""What several peers share: copies of a model, inputs to trace with, silence."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..workloads import Padded


def cache_folder() -> Path:
    """Where exported models are kept from one run to the next: below XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fastdistil" / "bench"


def fingerprint(model: Any) -> str:
    """A name for a model's weights and sizes: what is exported once serves until they change."""
    state = hashlib.sha256(repr(model.config).encode())
    for name, tensor in model.state_dict().items():
        state.update(name.encode())
        state.update(memoryview(tensor.contiguous().view(torch.uint8).flatten().numpy()))
    return f"{model.config.model_type}-{state.hexdigest()[:16]}"


def make_once(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` make a file or a folder, unless it is there already.

    Args:
        write: gets another path, so that nothing half made is ever found.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with quiet():
        write(part)
    part.rename(path)


def copy_of(model: Any, attention: str, dtype: torch.dtype) -> Any:
    """An independent copy of a transformers model with another attention and dtype."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation(attention)
    return twin.to(dtype)


def feeds(batch: Padded) -> dict[str, Any]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def example() -> Any:
    """Inputs to trace with: two rows, one of them padded."""
    input_ids = torch.arange(48).view(2, 24)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 10:] = 0
    return input_ids, attention_mask


class LastHiddenState(torch.nn.Module):
    """A model whose forward is tensors in, one tensor out: what exporters can name."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return outputs.last_hidden_state


@contextlib.contextmanager
def quiet() -> Any:
    """Exporters talk at length about what is theirs to worry about."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
