"""One vector per sequence from packed hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

POOLINGS = ("mean", "cls", "max")


def pool(hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool = False) -> Tensor:
    """Pool each sequence's tokens, in float32 (float64 states in float64).

    A sequence is reduced by itself, by operations whose order depends on its own length only: its
    vector is the same, bit for bit, in every batch. Differentiable.

    Args:
        hidden: [T, D], any floating dtype.
        cu_seqlens: int32 [B+1].
        pooling: "mean" of all tokens, "cls" (the first token) or "max" over tokens.
        normalize: scale every vector to length 1.

    Returns:
        float32 (or float64) [B, D]; zeros for a sequence of no tokens.

    Raises:
        ValueError: an unknown pooling.
    """
    check_pooling(pooling)
    lengths = cu_seqlens.diff().tolist()
    if not lengths:
        return hidden.new_zeros(0, hidden.shape[1], dtype=_wide(hidden.dtype))
    vectors = torch.stack([_pool_one(part, pooling) for part in hidden.split(lengths)])
    return torch.nn.functional.normalize(vectors, dim=1) if normalize else vectors


def check_pooling(pooling: str) -> None:
    """Raise ValueError unless `pooling` is one of POOLINGS."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: got {pooling!r}; allowed: {', '.join(POOLINGS)}")


def _pool_one(tokens: Tensor, pooling: str) -> Tensor:
    wide = _wide(tokens.dtype)
    if tokens.shape[0] == 0:
        return tokens.new_zeros(tokens.shape[1], dtype=wide)
    if pooling == "cls":
        return tokens[0].to(wide)
    if pooling == "max":
        return tokens.amax(dim=0).to(wide)
    return tokens.to(wide).mean(dim=0)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
