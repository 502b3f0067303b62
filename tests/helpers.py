"""What several test modules share: small models, padded batches, and the accuracy promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdistil.config import EncoderConfig

# What `fastdistil.bench.environment` says, of a machine that does not matter.
SOME_ENVIRONMENT: dict[str, Any] = {
    "device": "CPU",
    "cores": 2,
    "threads": 2,
    "flags": [],
    "platform": "Linux",
    "python": "3",
    "fastdistil": "0",
    "packages": {},
    "commit": "none",
    "date": "today",
}


def tiny_config(model_type: str = "distilbert", **changes: Any) -> EncoderConfig:
    """An encoder that runs in microseconds, with a different number for every size."""
    sizes: dict[str, Any] = {
        "vocab_size": 99,
        "hidden_size": 48,
        "num_layers": 2,
        "num_heads": 3,
        "intermediate_size": 80,
        "max_positions": 40,
        "num_segments": 2 if model_type == "bert" else 0,
    }
    return EncoderConfig(model_type=model_type, **(sizes | changes))


def hf_model(config: EncoderConfig, class_name: str | None = None, seed: int = 0) -> Any:
    """The transformers model of a config, in eval mode, with weights that make a difference.

    transformers starts weights so small that attention is nearly uniform, biases zero and
    LayerNorms idle: a backend that left one of them out would pass. These weights spread scores
    and touch everything.

    Args:
        class_name: a transformers class, for example "BertForMaskedLM"; by default the bare model.
    """
    transformers = pytest.importorskip("transformers")
    hf_config = transformers.AutoConfig.for_model(**config.to_hf())
    name = class_name or {"bert": "BertModel", "distilbert": "DistilBertModel"}[config.model_type]
    model = getattr(transformers, name)(hf_config).eval()
    randomize(model, seed)
    return model


def random_hf_model(kind: str, class_name: str | None = None, seed: int = 0, **sizes: Any) -> Any:
    """`hf_model` of `tiny_config(kind, **sizes)`."""
    return hf_model(tiny_config(kind, **sizes), class_name, seed)


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Seeded weights that keep the size of what goes through them: 1 / sqrt(inputs) in matrices."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                is_scale = name.endswith("orm.weight")
                parameter.copy_(noise * 0.2 + (1.0 if is_scale else 0.0))
            elif "embeddings" in name:
                parameter.copy_(noise * 0.5)
            else:
                parameter.copy_(noise * 1.4 / parameter.shape[1] ** 0.5)


def padded_batch(
    lengths: Sequence[int], *, width: int | None = None, side: str = "right", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Random ids [B, S] from 1 to 98 and their mask; other random ids under the padding too.

    Args:
        side: "right", "left", or "holes": as many real tokens, at random places.
    """
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) if width is None else width
    columns = torch.arange(width).expand(len(lengths), width)
    counts = torch.tensor(lengths).unsqueeze(1)
    if side == "left":
        mask = columns >= width - counts
    elif side == "holes":
        order = torch.rand(len(lengths), width, generator=generator).argsort(dim=1)
        mask = order < counts
    else:
        mask = columns < counts
    ids = torch.randint(1, 99, (len(lengths), width), generator=generator)
    return ids, mask.long()


def assert_fp32_budget(got: Tensor, want: Tensor) -> None:
    """fp32's promise: no error above 2e-5 of the largest magnitude in the original."""
    error = (got.double() - want.double()).abs().max().item()
    allowed = 2e-5 * want.abs().max().item()
    assert error <= allowed, f"largest error {error:.3g}, allowed {allowed:.3g}"


def assert_cosine(got: Tensor, want: Tensor, least: float) -> None:
    """The narrow types' promise: every vector along the last dimension points the right way."""
    cosine = torch.cosine_similarity(got.double(), want.double(), dim=-1).min().item()
    assert cosine >= least, f"smallest cosine {cosine:.6f}, allowed {least}"
