"""The GPU forward as a list: which kernels run over which buffers, for a number of tokens.

One list serves everything: it is run, captured into a CUDA graph, printed, and added up. Sizes
are rounded up to buckets, so that a few lists serve all batches. What is computed in the rows
between the last token and the end of the bucket is never looked at: every kernel but attention
goes by rows, and attention goes by sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import EncoderConfig
from .cuda_weights import Affine, EncoderWeights, LayerWeights

# Below this, a finer bucket saves no time: a tile has as many rows.
_SMALLEST_BUCKET = 16
# Buckets to a doubling of the size: at most a sixteenth of the rows is computed for nothing.
_BUCKETS_PER_OCTAVE = 16


class Step(Protocol):
    """What a plan is made of; `fastdistil.kernels.launch.Launch` is one."""

    @property
    def name(self) -> str:
        """The operation."""

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiply-add counted as two."""

    @property
    def moved(self) -> int:
        """Bytes that have to move."""

    def run(self) -> None:
        """Queue it on the current stream."""


@dataclass(frozen=True, eq=False)
class CublasLinear:
    """x W^T (+ bias) by cuBLAS, where the settings say that it is faster and may be used."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    out: Tensor
    name: str = "linear (cuBLAS)"

    @property
    def flops(self) -> int:
        """2 T N K."""
        return 2 * self.x.shape[0] * self.weight.numel()

    @property
    def moved(self) -> int:
        """Each operand once."""
        numbers = self.x.numel() + self.weight.numel() + self.out.numel()
        return numbers * self.x.element_size()

    def run(self) -> None:
        """Queue it."""
        if self.bias is None:
            torch.mm(self.x, self.weight.t(), out=self.out)
        else:
            torch.addmm(self.bias, self.x, self.weight.t(), out=self.out)


class Buffers:
    """What a forward reads, writes and leaves between its kernels: allocated once, used by all.

    Args:
        tokens: the most tokens of a forward.
        sequences: the most sequences, empty ones included.

    Attributes:
        input_ids, positions, segment_ids: int32 [tokens].
        cu_seqlens: int32 [sequences + 1].
        num_sequences: int32 [1]: how many of them count.
        errors: int32 [1]: where the embedding kernel notes ids outside their tables.
        hidden: [tokens, D]: the states between the blocks, and in the end the result.
        context: [tokens, D]: what attention gives.
        update: [tokens, D]: what a block's two halves add to the states.
        wide: [tokens, max(3 D, F)]: Q, K and V, and later the feed-forward's inner states.
    """

    def __init__(
        self,
        config: EncoderConfig,
        dtype: torch.dtype,
        device: torch.device,
        tokens: int,
        sequences: int,
    ):
        width, inner = config.hidden_size, config.intermediate_size

        # Zeros: a bucket's rows past the tokens must hold ids that exist and finite numbers.
        def ints(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int32, device=device)

        def states(columns: int) -> Tensor:
            return torch.zeros(tokens * columns, dtype=dtype, device=device)

        self.tokens = tokens
        self.sequences = sequences
        self.input_ids, self.positions, self.segment_ids = (ints(tokens) for _ in range(3))
        self.cu_seqlens = ints(sequences + 1)
        self.num_sequences, self.errors = ints(1), ints(1)
        self._width = width
        self._hidden, self._context, self._update = (states(width) for _ in range(3))
        self._wide = states(max(3 * width, inner))

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    def hidden(self, tokens: int) -> Tensor:
        """The first rows of the states, [tokens, D]."""
        return _rows(self._hidden, tokens, self._width)

    def context(self, tokens: int) -> Tensor:
        """The first rows of attention's result, [tokens, D]."""
        return _rows(self._context, tokens, self._width)

    def update(self, tokens: int) -> Tensor:
        """The first rows of what is added to the states, [tokens, D]."""
        return _rows(self._update, tokens, self._width)

    def wide(self, tokens: int, columns: int) -> Tensor:
        """The wide buffer as [tokens, columns]."""
        return _rows(self._wide, tokens, columns)


def _rows(buffer: Tensor, tokens: int, columns: int) -> Tensor:
    return buffer[: tokens * columns].view(tokens, columns)


def bucket_of(tokens: int) -> int:
    """The size that `tokens` is rounded up to: never more than a sixteenth above it, or 16."""
    if tokens <= _SMALLEST_BUCKET:
        return _SMALLEST_BUCKET
    octave = 1 << (tokens - 1).bit_length() - 1
    step = max(octave // _BUCKETS_PER_OCTAVE, _SMALLEST_BUCKET)
    return -(-tokens // step) * step


def length_class_of(max_seqlen: int) -> int:
    """The length that `max_seqlen` is rounded up to: a power of two, at least 16."""
    return max(1 << (max_seqlen - 1).bit_length() if max_seqlen > 0 else 0, 16)


@dataclass(frozen=True, eq=False)
class ForwardPlan:
    """Writes the list. It allocates nothing and touches no device, so it works on "meta" too.

    Attributes:
        config, weights, buffers: of one encoder, in one dtype on one device.
        settings: `fastdistil.kernels.settings.Settings` for the GPU.
        deterministic: whether rules whose bits depend on the size are left out.
    """

    config: EncoderConfig
    weights: EncoderWeights
    buffers: Buffers
    settings: Any
    deterministic: bool = True

    def steps(self, tokens: int, sequences: int, max_seqlen: int, segments: bool) -> list[Step]:
        """The forward over the first `tokens` rows of the buffers.

        Args:
            tokens: rows to compute; the batch's, rounded up.
            sequences: no batch that this serves has more.
            max_seqlen: the longest sequence, rounded up.
            segments: whether segment ids are given.
        """
        steps = self.steps_to_last_attention(tokens, sequences, max_seqlen, segments)
        return [*steps, *self.steps_after_last_attention(tokens)]

    def steps_to_last_attention(
        self, tokens: int, sequences: int, max_seqlen: int, segments: bool
    ) -> list[Step]:
        """The first part of `steps`: as far as every row may need every other."""
        steps = [self._embed(tokens, segments)]
        for number, layer in enumerate(self.weights.layers):
            if number:
                steps += self._after_attention(self.weights.layers[number - 1], tokens)
            steps += self._attention(layer, tokens, sequences, max_seqlen)
        return steps

    def steps_after_last_attention(self, rows: int) -> list[Step]:
        """The rest, each row by itself: over the first rows of `context` and `hidden`, whichever
        tokens' they are."""
        return self._after_attention(self.weights.layers[-1], rows) if self.weights.layers else []

    def _embed(self, tokens: int, segments: bool) -> Step:
        from ..kernels.embedding import embed_layernorm_launch

        buffers, weights = self.buffers, self.weights
        return embed_layernorm_launch(
            buffers.input_ids[:tokens],
            buffers.positions[:tokens],
            buffers.segment_ids[:tokens] if segments else None,
            weights.words,
            weights.positions,
            weights.segments,
            weights.norm.weight,
            weights.norm.bias,
            self.config.layer_norm_eps,
            buffers.hidden(tokens),
            buffers.errors,
            self.settings,
        )

    def _attention(
        self, layer: LayerWeights, tokens: int, sequences: int, max_seqlen: int
    ) -> list[Step]:
        """Q, K and V; attention."""
        from ..kernels.attention import attention_launch

        config, buffers = self.config, self.buffers
        hidden, context = buffers.hidden(tokens), buffers.context(tokens)
        qkv = buffers.wide(tokens, 3 * config.hidden_size)
        attend = attention_launch(
            qkv.view(tokens, 3, config.num_heads, config.head_dim),
            buffers.cu_seqlens[: sequences + 1],
            max_seqlen,
            context,
            self.settings,
            scale_folded=True,
            num_sequences=buffers.num_sequences,
        )
        return [*self._linear(hidden, layer.qkv, None, qkv), attend]

    def _after_attention(self, layer: LayerWeights, rows: int) -> list[Step]:
        """The output projection, the two linear layers with the activation between; residual and
        LayerNorm after either."""
        buffers = self.buffers
        hidden, context, update = buffers.hidden(rows), buffers.context(rows), buffers.update(rows)
        inner = buffers.wide(rows, self.config.intermediate_size)
        return [
            *self._linear(context, layer.out, None, update),
            self._add_and_norm(update, layer.attention_norm, hidden),
            *self._linear(hidden, layer.inner, self.config.activation, inner),
            *self._linear(inner, layer.outer, None, update),
            self._add_and_norm(update, layer.output_norm, hidden),
        ]

    def _linear(self, x: Tensor, layer: Affine, activation: str | None, out: Tensor) -> list[Step]:
        from ..kernels.gelu import bias_gelu_launch
        from ..kernels.linear import linear_launch

        weight, bias = layer.weight, layer.bias
        setting = self.settings.linear(x.dtype, x.shape[0], *weight.shape, self.deterministic)
        if setting.variant != "cublas":
            return [linear_launch(x, weight, bias, activation, None, out, self.settings, setting)]
        if activation is None:
            return [CublasLinear(x, weight, bias, out)]
        return [
            CublasLinear(x, weight, None, out),
            bias_gelu_launch(out, bias, activation, out, self.settings),
        ]

    def _add_and_norm(self, update: Tensor, norm: Affine, hidden: Tensor) -> Step:
        """hidden = LayerNorm(update + hidden), in place.

        The residual is added here in float32 rather than in the product's epilogue: as many bytes
        move, the sum is not rounded before it is normalised, and the product keeps its registers.
        """
        from ..kernels.layernorm import layernorm_launch

        return layernorm_launch(
            update,
            norm.weight,
            norm.bias,
            self.config.layer_norm_eps,
            hidden,
            hidden,
            self.settings,
        )
