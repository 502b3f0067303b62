"""The low-latency encoder of csrc/cuda: a whole forward of a few tokens in one launch.

One cooperative kernel, whose blocks are all on the GPU at once, runs every layer; how is in
csrc/cuda/latency_kernel.h. The same kernel in pieces, one launch for each step, is the chain that
takes its place in a CUDA graph where the driver refuses to run all blocks at once, or where it was
measured to be faster.

Its sums are in another order than the Triton kernels', so a sentence's bits are others: the engine
takes it for small batches where a caller has given up the same bits for all sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import EncoderConfig
from ..kernels.checks import Cost
from ..packing import PackedBatch
from .cuda_weights import Affine, EncoderWeights, LayerWeights, int8_rows

if TYPE_CHECKING:
    from ..cuda_launch import CudaLaunch

# A panel of weights: so many outputs by all columns of the states; a unit of it: so many columns.
_OUTPUTS, _UNIT = 8, 32
# The kernel's steps of a layer; the last states, and their pooling, follow them all.
_STEPS = ("Q, K, V", "attention", "attention output", "feed-forward in", "feed-forward out")
_LAST_STEP = "last states"
# In an emulation there are no multiprocessors to count.
_EMULATED_BLOCKS = 17

# Up to so many tokens go through the kernel, in encoders of these hidden sizes.
MOST_TOKENS = 256
HIDDEN_SIZES = (128, 384, 768, 1024)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.bfloat16}


def refusal(config: EncoderConfig, device: torch.device, precision: str) -> str | None:
    """Why this encoder has no low-latency kernel here, as a clause for people; None if it has."""
    from ..cuda_launch import available, emulated, kernels

    problem = available()
    if problem is not None:
        return problem
    if device.type != ("cpu" if emulated() else "cuda"):
        return f"its kernels are {'emulated' if emulated() else 'for GPUs'}, not for {device.type}"
    if precision not in DTYPES:
        return f"it has {', '.join(DTYPES)}, not {precision}"
    sizes = (config.hidden_size, config.num_heads, config.intermediate_size)
    said = kernels().latency_refusal(*sizes)
    if said:
        return str(said)
    if _blocks(device) < kernels().latency_fewest_blocks:
        return (
            f"it needs {kernels().latency_fewest_blocks} multiprocessors; this device has "
            f"{_blocks(device)}"
        )
    with on_device(device):
        if kernels().latency_longest(precision, config.hidden_size) == 0:
            return "its weights on their way need more shared memory than a block has here"
    return None


def step_costs(
    config: EncoderConfig, lengths: Sequence[int], precision: str
) -> list[tuple[str, Cost]]:
    """The kernel's steps for sequences of these lengths, by name, the last states as result.

    Bytes are those from memory: every weight once, the tokens' embeddings, the result. What the
    steps hand over stays in the L2 cache.
    """
    width, inner, tokens = config.hidden_size, config.intermediate_size, sum(lengths)

    def product(outputs: int, columns: int) -> Cost:
        weights = outputs * columns * (1 if precision == "int8" else 2)
        vectors = outputs * 4 * (2 if precision == "int8" else 1)
        return Cost(2 * tokens * outputs * columns, weights + vectors)

    attention = Cost(4 * width * sum(length * length for length in lengths), 0)
    layer = (
        product(3 * width, width),
        attention,
        product(width, width),
        product(inner, width),
        product(width, inner),
    )
    steps = list(zip(_STEPS, layer, strict=True)) * config.num_layers
    # Around the layers: the embeddings, the vectors of every LayerNorm, and the result.
    tables = 2 + (config.num_segments > 0)
    norms = (1 + 2 * config.num_layers) * 2 * width * 4
    return [*steps, (_LAST_STEP, Cost(0, norms + (tables + 1) * tokens * width * 2))]


def cost_of(config: EncoderConfig, lengths: Sequence[int], precision: str) -> Cost:
    """Of the whole forward."""
    costs = [cost for _, cost in step_costs(config, lengths, precision)]
    return Cost(sum(cost.flops for cost in costs), sum(cost.moved for cost in costs))


class LatencyEncoder:
    """One model's weights in the kernel's order, and the memory that its blocks meet in.

    Used by one thread and stream at a time: the program holds a lock, and sees to the order of
    streams.

    Args:
        config: what `refusal` accepts.
        weights: folded, in float32, on the device.
        device: a GPU, or the CPU where the kernels are emulated.
        precision: "bf16", "fp16" or "int8" (weights only; one step for each output).

    Attributes:
        most_tokens: of a forward.
        longest: sequence that it takes.
        chain_reason: why launches of single steps run in place of one launch; None while it is one.
    """

    def __init__(
        self, config: EncoderConfig, weights: EncoderWeights, device: torch.device, precision: str
    ):
        from ..cuda_launch import kernels

        self._c = kernels()
        self._config = config
        self._device = device
        self.precision = precision
        self.dtype = DTYPES[precision]
        self.chain_reason: str | None = None
        self.most_tokens = int(self._c.latency_rows)
        with on_device(device):
            self.longest = int(self._c.latency_longest(precision, config.hidden_size))
        self._memory = {**self._packed(weights), **self._states()}
        self._encoder = self._c.LatencyEncoder(
            precision,
            {
                "hidden_size": config.hidden_size,
                "num_layers": config.num_layers,
                "vocab_size": config.vocab_size,
                "max_positions": config.max_positions,
                "num_segments": config.num_segments,
            },
            config.layer_norm_eps,
            config.activation,
            {name: tensor.data_ptr() for name, tensor in self._memory.items()}
            | ({} if weights.segments is not None else {"segment": 0}),
            _blocks(device),
        )

    def tensors(self) -> list[Tensor]:
        """All memory it holds."""
        return list(self._memory.values())

    @property
    def resident_bytes(self) -> int:
        """Bytes of its weights."""
        weights = ("panels", "scales", "biases", "norms")
        return sum(self._memory[name].nbytes for name in weights)

    def takes(self, tokens: int, max_seqlen: int) -> bool:
        """Whether a forward of so many tokens fits; it needs one at least."""
        return 1 <= tokens <= self.most_tokens and max_seqlen <= self.longest

    def run(
        self,
        batch: PackedBatch,
        num_sequences: Tensor,
        hidden: Tensor | None = None,
        pooled: Tensor | None = None,
        pooling: str = "mean",
        normalize: bool = False,
    ) -> bool:
        """Queue a forward on the current stream, in one launch.

        Args:
            batch: validated, on the device; it `takes` its sizes.
            num_sequences: int32 [1] on the device: the batch's.
            hidden: [T, D] in `dtype`: the last states go there; None: nowhere.
            pooled: float32 [B, D]: the vectors go there; None: nowhere.
            pooling, normalize: how the vectors are made.

        Returns:
            Whether it is queued. If not, `chain_reason` says what the driver said: there are too
            few multiprocessors to be had for all blocks at once (a slice of a GPU, a share of one).
        """
        call = self._call(batch, num_sequences, hidden, pooled)
        call |= {"pooling": pooling, "normalize": normalize}
        try:
            self.launch(**call, first_step=0, last_step=self._steps(), cooperative=True)
        except RuntimeError as error:
            self.chain_reason = " ".join(str(error).split())[:200]
            return False
        return True

    def chain(self, batch: PackedBatch, num_sequences: Tensor, hidden: Tensor) -> list[CudaLaunch]:
        """The same, bit for bit, as launches of one step each, over memory that stays.

        Args:
            batch: whose tensors are read when the steps run; it may hold fewer tokens then, and
                shorter sequences.
        """
        from ..cuda_launch import CudaLaunch

        call = self._call(batch, num_sequences, hidden, None)
        call |= {"pooling": "mean", "normalize": False, "cooperative": False}
        longest = call["longest"]
        lengths = [longest] * max(batch.num_tokens // longest, 1)
        costs = step_costs(self._config, lengths, self.precision)
        firsts = range(len(costs))
        # Whatever is left after the last states belongs to their launch: there is nothing to pool.
        lasts = [*firsts[1:], self._steps()]
        launches = []
        for first, last, (name, cost) in zip(firsts, lasts, costs, strict=True):
            queue = functools.partial(self.launch, **call, first_step=first, last_step=last)
            launches.append(CudaLaunch(f"latency: {name}", queue, *cost))
        return launches

    def launch(
        self,
        tensors: Sequence[Tensor | None],
        rows: int,
        longest: int,
        pooling: str,
        normalize: bool,
        first_step: int,
        last_step: int,
        cooperative: bool,
    ) -> None:
        """Queue some steps on the current stream.

        Args:
            tensors: input_ids, positions, segment_ids, cu_seqlens, num_sequences, hidden, pooled.
        """
        on_gpu = self._device.type == "cuda"
        ids, positions, segments, ends, count, hidden, pooled = [
            0 if tensor is None else tensor.data_ptr() for tensor in tensors
        ]
        # By position: names cost three microseconds, of the fifteen that all of this may take.
        self._encoder.run(
            ids,
            positions,
            segments,
            ends,
            count,
            rows,
            longest,
            hidden,
            pooled,
            pooling,
            normalize,
            first_step,
            last_step,
            cooperative,
            not cooperative,
            torch.cuda.current_stream(self._device).cuda_stream if on_gpu else 0,
        )

    def _call(
        self,
        batch: PackedBatch,
        num_sequences: Tensor,
        hidden: Tensor | None,
        pooled: Tensor | None,
    ) -> dict[str, Any]:
        segments = batch.segment_ids if self._config.num_segments else None
        tensors = (batch.input_ids, batch.positions, segments, batch.cu_seqlens, num_sequences)
        longest = min(max(batch.max_seqlen, 1), self.longest)
        return {
            "tensors": (*tensors, hidden, pooled),
            "rows": batch.num_tokens,
            "longest": longest,
        }

    def _steps(self) -> int:
        return int(self._c.latency_steps(self._config.num_layers))

    def _packed(self, weights: EncoderWeights) -> dict[str, Tensor]:
        matrices = [_matrices(layer) for layer in weights.layers]
        panels, scales, biases = [], [], []
        for affine in (matrix for layer in matrices for matrix in layer):
            numbers = affine.weight
            if self.precision == "int8":
                numbers, steps = int8_rows(numbers)
                scales.append(steps)
            else:
                numbers = numbers.to(self.dtype)
            panels.append(self._panels(numbers))
            biases.append(affine.bias.float())
        norms = [weights.norm]
        for layer in weights.layers:
            norms += [layer.attention_norm, layer.output_norm]
        vectors = [part for norm in norms for part in (norm.weight, norm.bias)]
        nothing = torch.zeros(1, device=self._device)
        tables = {"word": weights.words, "position": weights.positions}
        if weights.segments is not None:
            tables["segment"] = weights.segments
        return {
            **{name: table.to(self.dtype).contiguous() for name, table in tables.items()},
            "norms": torch.cat(vectors).float(),
            "panels": torch.cat(panels),
            "scales": torch.cat(scales) if scales else nothing,
            "biases": torch.cat(biases),
        }

    def _panels(self, matrix: Tensor) -> Tensor:
        """[N, K] in the order of latency_layout.h, flat.

        Of a unit of 32 columns a lane, 4 g + t, has of output g the columns 2t, 2t + 1, 2t + 8,
        2t + 9, and again 16 further on.
        """
        outputs, columns = matrix.shape
        units = columns // _UNIT
        # Output g; unit; 16 columns; 8 columns; t; two columns.
        parts = matrix.view(outputs // _OUTPUTS, _OUTPUTS, units, 2, 2, 4, 2)
        return parts.permute(0, 2, 1, 5, 3, 4, 6).reshape(-1)

    def _states(self) -> dict[str, Tensor]:
        width, layers = self._config.hidden_size, self._config.num_layers
        bytes_of_set = int(self._c.latency_state_bytes(layers, width))

        def memory(size: int, value: int) -> Tensor:
            return torch.full((size,), value, dtype=torch.uint8, device=self._device)

        return {
            # "Not written yet", as csrc/cuda/published.h has it.
            "states": memory(2 * bytes_of_set, 0xFF),
            "saved": memory(2 * self.most_tokens * width * 2, 0),
            "control": memory(int(self._c.latency_control_bytes()), 0),
            "errors": memory(4, 0),
        }


def _matrices(layer: LayerWeights) -> tuple[Affine, Affine, Affine, Affine]:
    return layer.qkv, layer.out, layer.inner, layer.outer


def _blocks(device: torch.device) -> int:
    """One for each multiprocessor."""
    if device.type != "cuda":
        return _EMULATED_BLOCKS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Within it a GPU is the current one; nothing where kernels run on the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
