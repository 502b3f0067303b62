"""An encoder's weights as the GPU kernels want them: folded, joined and converted once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

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


def int8_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of [N, K] on 255 levels around zero: int8 [N, K] and float32 [N], a row's step.

    The step is that of the row's largest number (Jacob et al., arXiv 1712.05877, section 3, with
    one scale for each output channel). What this gives, multiplied out, gives the same again.
    """
    wide = matrix.float()
    largest = wide.abs().amax(1)
    # A row of zeros, or of numbers too small for a step: zeros.
    steps = largest / 127
    usable = steps >= torch.finfo(torch.float32).tiny
    steps = torch.where(usable, steps, torch.ones_like(steps))
    numbers = torch.where(usable[:, None], wide / steps[:, None], torch.zeros_like(wide))
    return numbers.round().clamp(-127, 127).to(torch.int8), steps


def rounded_to_int8(weights: EncoderWeights) -> EncoderWeights:
    """The same with every matrix of a layer as `int8_rows` has it, as float32."""

    def rounded(affine: Affine) -> Affine:
        numbers, steps = int8_rows(affine.weight)
        return Affine(numbers.float() * steps[:, None], affine.bias)

    def layer(old: LayerWeights) -> LayerWeights:
        names = ("qkv", "out", "inner", "outer")
        return replace(old, **{name: rounded(getattr(old, name)) for name in names})

    return replace(weights, layers=tuple(layer(old) for old in weights.layers))


def in_dtype(weights: EncoderWeights, dtype: torch.dtype) -> EncoderWeights:
    """The same, every number rounded to a dtype."""

    def affine(old: Affine) -> Affine:
        return Affine(old.weight.to(dtype), old.bias.to(dtype))

    def layer(old: LayerWeights) -> LayerWeights:
        return LayerWeights(**{name: affine(part) for name, part in vars(old).items()})

    return EncoderWeights(
        words=weights.words.to(dtype),
        positions=weights.positions.to(dtype),
        segments=None if weights.segments is None else weights.segments.to(dtype),
        norm=affine(weights.norm),
        layers=tuple(layer(old) for old in weights.layers),
    )


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
