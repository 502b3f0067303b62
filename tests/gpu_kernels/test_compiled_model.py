"""A model written in the kernels' own operations, under torch.compile without a graph break."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastdistil.kernels.attention import varlen_attention
from fastdistil.kernels.embedding import embed_layernorm
from fastdistil.kernels.gelu import bias_gelu
from fastdistil.kernels.layernorm import layernorm
from fastdistil.kernels.linear import linear
from fastdistil.kernels.pooling import pool

HEADS, HEAD_DIM, INNER, VOCABULARY = 2, 32, 96, 50
WIDTH = HEADS * HEAD_DIM


class Encoder(nn.Module):
    """Embeddings, one block and pooling, as somebody would write them with these operations."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(16, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.inner = nn.Linear(WIDTH, INNER)
        self.outer = nn.Linear(INNER, WIDTH)

    def forward(self, ids: Tensor, places: Tensor, cu_seqlens: Tensor, errors: Tensor) -> Tensor:
        norm = (self.norm.weight, self.norm.bias, self.norm.eps)
        tables = (self.words.weight, self.places.weight, None)
        hidden = embed_layernorm(ids, places, None, *tables, *norm, errors)
        qkv = linear(hidden, self.qkv.weight, self.qkv.bias)
        context = varlen_attention(qkv.view(-1, 3, HEADS, HEAD_DIM), cu_seqlens, 16)
        hidden = layernorm(context, *norm, residual=hidden)
        inner = bias_gelu(linear(hidden, self.inner.weight, None), self.inner.bias)
        outer = linear(inner, self.outer.weight, self.outer.bias, None, hidden)
        return pool(outer, cu_seqlens, "mean", normalize=True)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_traces_whole_and_computes_the_same(device: torch.device, backend: str) -> None:
    torch.manual_seed(0)
    model = Encoder().eval().requires_grad_(False).to(device)
    cu_seqlens = torch.tensor([0, 5, 5, 12], dtype=torch.int32, device=device)
    ids = torch.arange(12, dtype=torch.int32, device=device)
    places = torch.arange(12, dtype=torch.int32, device=device) % 7
    errors = torch.zeros(1, dtype=torch.int32, device=device)
    want = model(ids, places, cu_seqlens, errors)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert torch.equal(compiled(ids, places, cu_seqlens, errors), want)
    assert want.isfinite().all()
    assert not want[1].any()
    assert not errors.any()
