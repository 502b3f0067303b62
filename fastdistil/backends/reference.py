"""The encoder in plain PyTorch over packed tokens: the definition every other backend must meet.

Differentiable, on any device torch has, in any floating dtype. It is what trains, what runs where
no faster engine can, and what the others are tested against. Linear layers see all T tokens at
once; attention takes sequences of one length at a time, so there is no mask and nothing to pad.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import EncoderConfig
from ..packing import PackedBatch, validate
from ..pooling import check_pooling, pool
from .base import DEFAULT_OPTIONS, EngineOptions, Program, check_rows

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Attention scores of a product: 32 MB in float32, or what one sequence takes.
_MOST_SCORES = 1 << 23

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def forward(config: EncoderConfig, weights: Mapping[str, Tensor], batch: PackedBatch) -> Tensor:
    """Last hidden states of a packed batch.

    Args:
        config: the encoder's sizes.
        weights: canonical names to tensors, live parameters included.
        batch: a batch that `validate` accepts, on the weights' device.

    Returns:
        [T, D] in the weights' dtype.
    """
    hidden = _embed(config, weights, batch)
    lengths = batch.cu_seqlens.diff().tolist()
    for layer in range(config.num_layers):
        hidden = _block(config, weights, f"transformer.layer.{layer}.", hidden, lengths)
    return hidden


def _embed(config: EncoderConfig, weights: Mapping[str, Tensor], batch: PackedBatch) -> Tensor:
    """Word, position and segment embeddings, summed and normalised: [T, D]."""
    table = weights["embeddings.word_embeddings.weight"]
    hidden = F.embedding(batch.input_ids, table, padding_idx=config.pad_token_id)
    if config.num_segments:
        segments = batch.segment_ids
        if segments is None:
            segments = torch.zeros_like(batch.input_ids)
        hidden = hidden + F.embedding(segments, weights["embeddings.token_type_embeddings.weight"])
    hidden = hidden + F.embedding(batch.positions, weights["embeddings.position_embeddings.weight"])
    return _layer_norm(config, weights, "embeddings.LayerNorm", hidden)


def _block(
    config: EncoderConfig,
    weights: Mapping[str, Tensor],
    prefix: str,
    hidden: Tensor,
    lengths: list[int],
) -> Tensor:
    """One transformer block, post-norm: [T, D] to [T, D]."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"])

    query, key, value = (linear(f"attention.{name}_lin", hidden) for name in "qkv")
    context = _attention(config, query, key, value, lengths)
    attended = linear("attention.out_lin", context)
    hidden = _layer_norm(config, weights, f"{prefix}sa_layer_norm", hidden, attended)
    inner = ACTIVATIONS[config.activation](linear("ffn.lin1", hidden))
    widened = linear("ffn.lin2", inner)
    return _layer_norm(config, weights, f"{prefix}output_layer_norm", hidden, widened)


def _attention(
    config: EncoderConfig, query: Tensor, key: Tensor, value: Tensor, lengths: list[int]
) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V within each sequence and head: [T, D] to [T, D].

    Neighbours of one length go through one batched product: nothing is padded, and whoever lays
    sequences of a length side by side (training does) waits for few of them.
    """
    scale = 1.0 / math.sqrt(config.head_dim)
    runs = list(_runs(lengths, config.num_heads))
    sizes = [length * count for length, count in runs]
    contexts = []
    for (length, count), *parts in zip(
        runs, query.split(sizes), key.split(sizes), value.split(sizes), strict=True
    ):
        q, k, v = (x.view(count, length, config.num_heads, -1).transpose(1, 2) for x in parts)
        scores = (q * scale) @ k.transpose(2, 3)  # [count, heads, length, length]
        weights = torch.softmax(scores, dim=-1, dtype=_wide(scores.dtype)).to(v.dtype)
        contexts.append((weights @ v).transpose(1, 2).reshape(count * length, -1))
    return torch.cat(contexts) if contexts else query


def _runs(lengths: Sequence[int], num_heads: int) -> Iterator[tuple[int, int]]:
    """Lengths, and how many neighbours of that length; no more than there is room for scores."""
    for length, run in groupby(lengths):
        left = sum(1 for _ in run) if length else 0
        most = max(_MOST_SCORES // (num_heads * length * length), 1) if length else 0
        while left > 0:
            yield length, min(left, most)
            left -= most


def _layer_norm(
    config: EncoderConfig,
    weights: Mapping[str, Tensor],
    name: str,
    hidden: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    """LayerNorm of the sum, added up and normalised in float32 at least."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    wide = _wide(weight.dtype)
    total = hidden.to(wide) if residual is None else hidden.to(wide) + residual.to(wide)
    normed = F.layer_norm(
        total, (config.hidden_size,), weight.to(wide), bias.to(wide), config.layer_norm_eps
    )
    return normed.to(weight.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True, eq=False)
class ReferenceProgram:
    """Weights converted to one dtype on one device, and `forward` over them."""

    config: EncoderConfig
    weights: Mapping[str, Tensor]
    device: torch.device
    precision: str
    backend: str = "reference"
    note: str = ""

    @property
    def instruction_set(self) -> str:
        """Whatever torch picks."""
        return f"PyTorch on {self.device.type}"

    @property
    def resident_bytes(self) -> int:
        """Bytes of the converted weights."""
        return sum(tensor.nbytes for tensor in self.weights.values())

    def run(self, batch: PackedBatch) -> Tensor:
        """Last hidden states [T, D] in the precision's dtype."""
        if batch.device != self.device:
            raise ValueError(f"batch: on {batch.device}, but the weights are on {self.device}")
        validate(batch, self.config)
        # The precision is this program's own; an autocast around the caller must not change it.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return forward(self.config, self.weights, batch)

    def run_rows(self, batch: PackedBatch, rows: Tensor) -> Tensor:
        """Last hidden states [R, D] of some tokens, by definition: those that `run` gives them."""
        there = check_rows(rows, batch).to(batch.device)
        with torch.no_grad():
            return self.run(batch).index_select(0, there)

    def run_pooled(self, batch: PackedBatch, pooling: str, normalize: bool) -> Tensor:
        """One float32 vector per sequence, [B, D]."""
        check_pooling(pooling)
        with torch.no_grad():
            return pool(self.run(batch), batch.cu_seqlens, pooling, normalize)

    def warmup(self, tokens: Sequence[int] | None, max_seqlen: int | None) -> None:
        """Nothing is left to do."""


class ReferenceBackend:
    """Plain PyTorch: slow, and everywhere."""

    name = "reference"

    def supports(self, config: EncoderConfig, device: torch.device, precision: str) -> str | None:
        """Everything but data-less tensors, and the narrow types torch lacks."""
        if device.type == "meta":
            return "tensors on the meta device hold no data"
        if precision not in _DTYPES:
            return f"plain PyTorch has {', '.join(_DTYPES)}, not {precision}"
        if precision == "fp16" and device.type == "cpu":
            return "fp16 is not available on a CPU; fp32 and bf16 are"
        return None

    def auto_precision(
        self, config: EncoderConfig, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> str:
        """16 bits where a GPU has bf16 in hardware (compute capability 8.0), else fp32."""
        if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
            return "fp16" if dtype == torch.float16 else "bf16"
        return "fp32"

    def describe(self, config: EncoderConfig, device: torch.device, precision: str) -> str:
        """What runs, for people."""
        return f"plain PyTorch in {precision} on {device.type}"

    def prepare(
        self,
        config: EncoderConfig,
        state_dict: Mapping[str, Tensor],
        device: torch.device,
        precision: str,
        options: EngineOptions = DEFAULT_OPTIONS,
    ) -> Program:
        """A converted copy of the weights."""
        dtype = _DTYPES[precision]
        weights = {
            name: tensor.detach().to(device, dtype, copy=True)
            for name, tensor in state_dict.items()
        }
        return ReferenceProgram(config, weights, device, precision)
