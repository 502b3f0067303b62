"""An encoder's weights as the GPU kernels want them: folded, joined and converted once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import EncoderConfig


@dataclass(frozen=True, eq=False)
class Affine:
    """A weight and a bias: of a linear layer [N, K] and [N], or of a LayerNorm [D] and [D]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One transformer block.

    Attributes:
        qkv: [3 * D, D]; Q comes first, with the softmax scale and log2(e) folded in, so that the
            kernel's scores go straight into exp2.
        out: [D, D].
        attention_norm: the LayerNorm after attention.
        inner: [F, D].
        outer: [D, F].
        output_norm: the LayerNorm after the feed-forward.
    """

    qkv: Affine
    out: Affine
    attention_norm: Affine
    inner: Affine
    outer: Affine
    output_norm: Affine


@dataclass(frozen=True, eq=False)
class EncoderWeights:
    """A whole encoder, in one dtype on one device.

    Attributes:
        words: [vocabulary, D].
        positions: [positions, D].
        segments: [segments, D], or None where the checkpoint has none.
        norm: the embeddings' LayerNorm.
        layers: the blocks in order.
    """

    words: Tensor
    positions: Tensor
    segments: Tensor | None
    norm: Affine
    layers: tuple[LayerWeights, ...]

    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        yield from (self.words, self.positions)
        if self.segments is not None:
            yield self.segments
        affine = [self.norm]
        for layer in self.layers:
            affine += vars(layer).values()
        for one in affine:
            yield from (one.weight, one.bias)


def fold(
    config: EncoderConfig,
    state_dict: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> EncoderWeights:
    """Weights from canonical names; folded in float32, rounded once. Copies all of them."""

    def wide(name: str) -> Tensor:
        return state_dict[name].detach().to(device, torch.float32)

    def final(tensor: Tensor) -> Tensor:
        return tensor.to(dtype, copy=True).contiguous()

    def affine(name: str) -> Affine:
        return Affine(final(wide(f"{name}.weight")), final(wide(f"{name}.bias")))

    def qkv(prefix: str) -> Affine:
        scale = math.log2(math.e) / math.sqrt(config.head_dim)
        parts = []
        for kind in ("weight", "bias"):
            q, k, v = (wide(f"{prefix}{name}_lin.{kind}") for name in "qkv")
            parts.append(final(torch.cat([q * scale, k, v])))
        return Affine(*parts)

    def layer(index: int) -> LayerWeights:
        prefix = f"transformer.layer.{index}."
        return LayerWeights(
            qkv=qkv(f"{prefix}attention."),
            out=affine(f"{prefix}attention.out_lin"),
            attention_norm=affine(f"{prefix}sa_layer_norm"),
            inner=affine(f"{prefix}ffn.lin1"),
            outer=affine(f"{prefix}ffn.lin2"),
            output_norm=affine(f"{prefix}output_layer_norm"),
        )

    segments = "embeddings.token_type_embeddings.weight"
    return EncoderWeights(
        words=final(wide("embeddings.word_embeddings.weight")),
        positions=final(wide("embeddings.position_embeddings.weight")),
        segments=final(wide(segments)) if config.num_segments else None,
        norm=affine("embeddings.LayerNorm"),
        layers=tuple(layer(index) for index in range(config.num_layers)),
    )
