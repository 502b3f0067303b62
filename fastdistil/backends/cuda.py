"""The GPU engine: Triton kernels over packed tokens, a CUDA graph per size.

Few tokens go through one launch of `cuda_latency` instead, where a program may have other bits for
other sizes (`deterministic=False`) and the settings say that it is faster.

A program owns one set of buffers. A forward copies its batch in, runs the steps of `cuda_plan` for
its bucket, and copies the result out, all queued on the caller's stream: nothing waits for the GPU
where the host knows the lengths already (`PackedBatch.facts`). Several threads and streams take
turns at queueing; the GPU keeps their order.

In Triton's interpreter (TRITON_INTERPRET=1) the same engine runs on CPU tensors, without graphs:
that is how it is tested where there is no GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import EncoderConfig
from ..packing import PackedBatch, validate
from ..pooling import check_pooling
from .base import DEFAULT_OPTIONS, EngineOptions, Program, check_rows
from .cuda_graphs import GraphCache
from .cuda_latency import LatencyEncoder, on_device, refusal
from .cuda_plan import Buffers, ForwardPlan, Step, bucket_of, length_class_of
from .cuda_weights import EncoderWeights, fold, in_dtype, rounded_to_int8

# What a precision computes in. int8: weights on 255 levels for each output; few tokens are
# multiplied by them as they are, many by the same numbers in bf16.
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.bfloat16,
}
HEAD_DIMS = (32, 64, 128)

_OLDEST_TRITON = (3, 6)
_OLDEST_GPU = (8, 0)
# Lists of steps kept by a program; building one takes less than a millisecond.
_MOST_PLANS = 1024


class CudaProgram:
    """One model's weights folded for one GPU. Safe to call from several threads and streams."""

    backend = "cuda"

    def __init__(
        self,
        config: EncoderConfig,
        state_dict: Mapping[str, Tensor],
        device: torch.device,
        precision: str,
        options: EngineOptions,
    ):
        from ..kernels.settings import settings_for

        self.precision = precision
        self._config = config
        self._device = device
        self._dtype = DTYPES[precision]
        self._settings = settings_for(device)
        self._options = options
        self._tokens = bucket_of(self._settings.chunk_tokens)
        # Tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            wide = fold(config, state_dict, device, torch.float32)
            if precision == "int8":
                wide = rounded_to_int8(wide)
            self._weights = in_dtype(wide, self._dtype)
            self._latency, self._no_latency = self._latency_of(wide)
            self._plan = self._plan_over(self._tokens)
            self._buffers = self._plan.buffers
            counts = self._buffers.sequences + 1
            self._counts = torch.arange(counts, dtype=torch.int32, device=device)
        self._steps: dict[Hashable, list[Step]] = {}
        self._graphs = GraphCache(device) if options.cuda_graphs and _is_gpu(device) else None
        self._lock = threading.Lock()
        # Whose work the buffers and weights are waiting for: so far, that of making them.
        self._stream = torch.cuda.current_stream(device) if _is_gpu(device) else None
        self._memory = [*self._buffers.tensors(), *self._weights.tensors(), self._counts]
        if self._latency is not None:
            self._memory += self._latency.tensors()

    @property
    def instruction_set(self) -> str:
        """The GPU generation of the kernels, and which launch settings they have."""
        settings = self._settings
        origin = f"measured on {settings.measured_on}" if settings.measured_on else "unmeasured"
        return f"Triton, {settings.target}, settings {settings.fingerprint} ({origin})"

    @property
    def note(self) -> str:
        """What launches the kernels."""
        return f"{self._few_tokens_note()}; {self._many_tokens_note()}"

    def _many_tokens_note(self) -> str:
        if self._graphs is not None and self._graphs.failure is None:
            return "CUDA graphs"
        why = self._graphs.failure if self._graphs is not None else "cuda_graphs=False"
        if not _is_gpu(self._device):
            why = "in the interpreter"
        return f"plain launches ({why})"

    def _few_tokens_note(self) -> str:
        latency = self._latency
        if latency is None:
            return f"few tokens run as many do ({self._no_latency})"
        most = min(self._settings.latency_tokens, latency.most_tokens)
        what = f"up to {most} tokens by the low-latency kernel, {latency.precision} weights"
        if self._settings.latency_chain:
            return f"{what}, in a chain of launches (measured to be faster)"
        if latency.chain_reason is not None:
            return f"{what}, in a chain of launches ({latency.chain_reason})"
        return f"{what}, in one launch"

    @property
    def resident_bytes(self) -> int:
        """Bytes of the folded weights; buffers and graphs are not counted."""
        latency = 0 if self._latency is None else self._latency.resident_bytes
        return sum(tensor.nbytes for tensor in self._weights.tensors()) + latency

    def run(self, batch: PackedBatch) -> Tensor:
        """Last hidden states [T, D] in the dtype that the precision computes in."""
        with torch.no_grad():
            out = torch.empty(
                batch.num_tokens, self._config.hidden_size, dtype=self._dtype, device=self._device
            )
            if self._run_at_once(batch, hidden=out):
                return out
            for piece, plan in self._forward(batch):
                out[piece.tokens].copy_(plan.buffers.hidden(piece.count))
        return out

    def run_rows(self, batch: PackedBatch, rows: Tensor) -> Tensor:
        """Last hidden states [R, D] of some tokens.

        After the last attention no row needs another: from there on only these are computed. Where
        the low-latency kernel may run (deterministic=False) they are picked out of all.

        The host looks at the rows before anything runs. Best they are on the CPU: for rows on the
        GPU it waits for all that is queued before them.
        """
        wanted = check_rows(rows, batch)
        there = _moved(wanted, batch.device)
        with torch.no_grad():
            if self._latency is not None or not self._weights.layers:
                return self.run(batch).index_select(0, there)
            size = (len(wanted), self._config.hidden_size)
            out = torch.empty(size, dtype=self._dtype, device=self._device)
            if not len(wanted):
                self._check(batch)
                return out
            for piece, plan in self._forward(batch, narrowed=True):
                ends = [piece.tokens.start, piece.tokens.stop]
                first, last = np.searchsorted(wanted.numpy(), ends).tolist()
                if first < last:
                    self._narrow(plan, there[first:last] - piece.tokens.start)
                    self._finish_narrowed(plan, last - first)
                    out[first:last].copy_(plan.buffers.hidden(last - first))
        return out

    def run_pooled(self, batch: PackedBatch, pooling: str, normalize: bool) -> Tensor:
        """One float32 vector per sequence, [B, D]."""
        from ..kernels.pooling import pool_launch

        check_pooling(pooling)
        with torch.no_grad():
            size = (batch.num_sequences, self._config.hidden_size)
            out = torch.empty(size, dtype=torch.float32, device=self._device)
            if self._run_at_once(batch, pooled=out, pooling=pooling, normalize=normalize):
                return out
            for piece, plan in self._forward(batch):
                buffers = plan.buffers
                vectors = out[piece.sequences]
                cu_seqlens = buffers.cu_seqlens[: len(vectors) + 1]
                if piece.count == 0:
                    vectors.zero_()
                    continue
                hidden = buffers.hidden(piece.count)
                pool_launch(hidden, cu_seqlens, pooling, normalize, vectors, self._settings).run()
        return out

    def warmup(self, tokens: Sequence[int] | None, max_seqlen: int | None) -> None:
        """Compile the kernels and capture the graphs of these sizes.

        Args:
            tokens: total tokens of batches; None: the powers of two up to the largest at once.
            max_seqlen: their longest sequence; None: the longest the model takes.

        Raises:
            ValueError: a size below 1.
        """
        longest = self._config.max_positions if max_seqlen is None else max_seqlen
        sizes = _powers_of_two(self._tokens) if tokens is None else list(tokens)
        if longest < 1 or min(sizes, default=1) < 1:
            raise ValueError(f"warmup: got tokens {sizes}, max_seqlen {longest}; from 1 up")
        for size in sizes:
            self.run(_example(min(size, self._tokens), longest, self._config).to(self._device))

    def launches(self, tokens: int, max_seqlen: int, segments: bool = False) -> list[Step]:
        """The steps of a forward of that size, over this program's own buffers."""
        key = _key(tokens, 1, max_seqlen, segments, self._tokens)
        return self._cached(key, lambda: self._whole_steps(self._plan, key))

    def _latency_of(self, weights: EncoderWeights) -> tuple[LatencyEncoder | None, str | None]:
        """The encoder for few tokens, or why there is none."""
        if self._options.deterministic:
            return None, "the same bits for all: deterministic=True"
        why = refusal(self._config, self._device, self.precision)
        if why is not None:
            return None, why
        # Tables are not kept twice.
        own = self._weights
        weights = replace(weights, words=own.words, positions=own.positions, segments=own.segments)
        return LatencyEncoder(self._config, weights, self._device, self.precision), None

    def _run_at_once(self, batch: PackedBatch, **results: Any) -> bool:
        """Run a small batch in one launch, straight from its tensors; False if that cannot be."""
        latency = self._latency
        if latency is None or self._in_chain(latency):
            return False
        if batch.num_sequences > self._buffers.sequences:
            return False
        if not self._is_small(latency, batch.num_tokens, batch.max_seqlen):
            return False
        self._check(batch)
        count = self._counts[batch.num_sequences : batch.num_sequences + 1]
        with self._lock, on_device(self._device):
            self._take_over()
            return latency.run(batch, count, **results)

    def _in_chain(self, latency: LatencyEncoder) -> bool:
        return self._settings.latency_chain or latency.chain_reason is not None

    def _is_small(self, latency: LatencyEncoder, tokens: int, max_seqlen: int) -> bool:
        return tokens <= self._settings.latency_tokens and latency.takes(tokens, max_seqlen)

    def _check(self, batch: PackedBatch) -> npt.NDArray[np.int32]:
        """A batch's cu_seqlens, once all of it is known to be right."""
        if batch.device != self._device:
            raise ValueError(f"batch: on {batch.device}, but the weights are on {self._device}")
        return validate(batch, self._config).cu_seqlens

    def _cached(self, key: Hashable, make: Callable[[], list[Step]]) -> list[Step]:
        """Steps over the program's own buffers, made once for a key."""
        steps = self._steps.get(key)
        if steps is None:
            if len(self._steps) >= _MOST_PLANS:
                self._steps.clear()
            steps = self._steps[key] = self._compiled(make())
        return steps

    def _whole_steps(self, plan: ForwardPlan, key: _Key) -> list[Step]:
        return self._chain(plan.buffers, key) or plan.steps(*key)

    def _compiled(self, steps: list[Step]) -> list[Step]:
        """The same, compiled: when they run one by one, they would be compiled so too."""
        from ..kernels.launch import Launch, compile_all

        if _is_gpu(self._device):
            compile_all((step for step in steps if isinstance(step, Launch)), self._device)
        return steps

    def _chain(self, buffers: Buffers, key: _Key) -> list[Step]:
        """The low-latency kernel step by step over the buffers, where that is the way; else []."""
        rows, sequences, length_class, segments = key
        latency, longest = self._latency, min(length_class, self._config.max_positions)
        if latency is None or not self._in_chain(latency):
            return []
        if not self._is_small(latency, rows, longest):
            return []
        batch = PackedBatch(
            buffers.input_ids[:rows],
            buffers.positions[:rows],
            buffers.segment_ids[:rows] if segments else None,
            buffers.cu_seqlens[: sequences + 1],
            longest,
        )
        return list(latency.chain(batch, buffers.num_sequences, buffers.hidden(rows)))

    def _plan_over(self, tokens: int) -> ForwardPlan:
        """A plan with buffers of its own for so many tokens, and as many sequences."""
        buffers = Buffers(self._config, self._dtype, self._device, tokens, sequences=tokens)
        deterministic = self._options.deterministic
        return ForwardPlan(self._config, self._weights, buffers, self._settings, deterministic)

    def _forward(
        self, batch: PackedBatch, narrowed: bool = False
    ) -> Iterator[tuple[_Piece, ForwardPlan]]:
        """Run a batch in one or more turns; a turn's buffers must be read before the next.

        `narrowed`: only as far as the last attention.
        """
        pieces = cut(self._check(batch), self._tokens)
        with self._lock, on_device(self._device):
            self._take_over()
            for piece in pieces:
                # A single sequence longer than the buffers brings its own.
                fits = piece.count <= self._buffers.tokens
                plan = self._plan if fits else self._plan_over(bucket_of(piece.count))
                if piece.count:
                    self._copy_in(batch, piece, plan.buffers)
                    self._compute(plan, piece, batch.segment_ids is not None, narrowed)
                yield piece, plan

    def _take_over(self) -> None:
        """Have the current stream wait for what another one still does with buffers and weights.

        One that is being captured into somebody else's graph cannot: no graph waits for what is
        outside of it. When that graph may run is then for its owner to say.
        """
        if self._stream is None or torch.cuda.is_current_stream_capturing():
            return
        stream = torch.cuda.current_stream(self._device)
        if self._stream != stream:
            stream.wait_stream(self._stream)
            # Once it is freed, the memory is kept until what this stream does with it is done.
            for tensor in self._memory:
                tensor.record_stream(stream)
            self._stream = stream

    def _copy_in(self, batch: PackedBatch, piece: _Piece, buffers: Buffers) -> None:
        first, last = piece.sequences.start, piece.sequences.stop
        tokens, sequences = piece.count, last - first
        given = [batch.input_ids, batch.positions]
        places = [buffers.input_ids[:tokens], buffers.positions[:tokens]]
        if batch.segment_ids is not None:
            given.append(batch.segment_ids)
            places.append(buffers.segment_ids[:tokens])
        ends = batch.cu_seqlens
        if sequences < batch.num_sequences:
            given = [values[piece.tokens] for values in given]
            ends = ends[first : last + 1] - piece.tokens.start
        given += [ends, self._counts[sequences : sequences + 1]]
        places += [buffers.cu_seqlens[: sequences + 1], buffers.num_sequences]
        torch._foreach_copy_(places, given)  # one kernel copies them all

    def _compute(self, plan: ForwardPlan, piece: _Piece, segments: bool, narrowed: bool) -> None:
        sequences = piece.sequences.stop - piece.sequences.start
        capacity = plan.buffers.sequences
        key = _key(piece.count, sequences, piece.max_seqlen, segments, capacity)
        if narrowed:
            self._run_steps(plan, ("narrowed", key), lambda: plan.steps_to_last_attention(*key))
        else:
            self._run_steps(plan, key, lambda: self._whole_steps(plan, key))

    def _narrow(self, plan: ForwardPlan, rows: Tensor) -> None:
        """Moves what the last attention gave for some rows, and their states, to the front."""
        buffers, count = plan.buffers, len(rows)
        for states in (buffers.context, buffers.hidden):
            states(count).copy_(states(buffers.tokens).index_select(0, rows))

    def _finish_narrowed(self, plan: ForwardPlan, rows: int) -> None:
        size = bucket_of(rows)
        steps = plan.steps_after_last_attention
        self._run_steps(plan, ("after the last attention", size), lambda: steps(size))

    def _run_steps(self, plan: ForwardPlan, key: Hashable, make: Callable[[], list[Step]]) -> None:
        """Queues steps over a plan's buffers; over the program's own as a graph, made once."""
        if plan is not self._plan:
            steps = self._compiled(make())
        else:
            steps = self._cached(key, make)
            if self._graphs is not None:
                self._graphs.run(key, steps)
                return
        for step in steps:
            step.run()


# What a list of steps is made for: rows, most sequences, longest sequence, whether segments come.
_Key = tuple[int, int, int, bool]


def _key(tokens: int, sequences: int, max_seqlen: int, segments: bool, capacity: int) -> _Key:
    """Sizes rounded up, so that few lists serve all batches.

    Hardly a batch has more sequences than rows, since most of them would be empty.
    """
    rows = bucket_of(tokens)
    most = rows if sequences <= rows else capacity
    return rows, most, length_class_of(max_seqlen), segments


@dataclass(frozen=True)
class _Piece:
    """Consecutive sequences of a batch that go through the buffers together."""

    sequences: slice
    tokens: slice
    max_seqlen: int

    @property
    def count(self) -> int:
        """How many tokens they have."""
        return int(self.tokens.stop - self.tokens.start)


def cut(cu_seqlens: npt.NDArray[np.int32], most: int) -> list[_Piece]:
    """Cut a batch into runs of whole sequences, of about equal size.

    Args:
        cu_seqlens: [B + 1].
        most: tokens and sequences in a run; a longer sequence is a run of its own.
    """
    total, sequences = int(cu_seqlens[-1]), len(cu_seqlens) - 1
    if total <= most and 0 < sequences <= most:
        return [_piece(cu_seqlens, 0, sequences)]
    turns = max(-(-total // most), 1)
    share = max(-(-total // turns), 1)
    pieces, first = [], 0
    while first < sequences:
        start = int(cu_seqlens[first])
        # As far as an even share reaches, with the sequence on its edge if that one fits.
        last = int(np.searchsorted(cu_seqlens, start + share, side="left"))
        if last > sequences or cu_seqlens[last] - start > most:
            last = int(np.searchsorted(cu_seqlens, start + most, side="right")) - 1
        last = min(max(last, first + 1), first + most, sequences)
        pieces.append(_piece(cu_seqlens, first, last))
        first = last
    return pieces


def _piece(cu_seqlens: npt.NDArray[np.int32], first: int, last: int) -> _Piece:
    """The sequences from `first` to before `last`."""
    longest = int((cu_seqlens[first + 1 : last + 1] - cu_seqlens[first:last]).max())
    tokens = slice(int(cu_seqlens[first]), int(cu_seqlens[last]))
    return _Piece(slice(first, last), tokens, longest)


class CudaBackend:
    """Triton kernels for NVIDIA GPUs from compute capability 8.0 on."""

    name = "cuda"

    def supports(self, config: EncoderConfig, device: torch.device, precision: str) -> str | None:
        """None where it can run this, else why it cannot."""
        if precision not in DTYPES:
            return f"it has {', '.join(DTYPES)}, not {precision}"
        if config.head_dim not in HEAD_DIMS:
            allowed = ", ".join(map(str, HEAD_DIMS))
            return f"its attention takes heads of {allowed} numbers, not {config.head_dim}"
        return _triton_problem() or _device_problem(device)

    def auto_precision(
        self, config: EncoderConfig, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> str:
        """The weights' own 16-bit type; bf16 for float32 weights."""
        return "fp16" if dtype == torch.float16 else "bf16"

    def describe(self, config: EncoderConfig, device: torch.device, precision: str) -> str:
        """The kernels, for people."""
        if not _is_gpu(device):
            return f"Triton {precision} kernels in Triton's interpreter"
        return f"Triton {precision} kernels on {torch.cuda.get_device_name(device)}"

    def prepare(
        self,
        config: EncoderConfig,
        state_dict: Mapping[str, Tensor],
        device: torch.device,
        precision: str,
        options: EngineOptions = DEFAULT_OPTIONS,
    ) -> Program:
        """Folded copies of the weights, and the buffers."""
        return CudaProgram(config, state_dict, device, precision, options)


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _triton_problem() -> str | None:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "triton is not installed (pip install triton)"
    numbers = tuple(int(part) for part in found.split(".")[:2])
    if numbers < _OLDEST_TRITON:
        wanted = ".".join(map(str, _OLDEST_TRITON))
        return f"it needs triton {wanted} or newer; this is {found}"
    return None


def _device_problem(device: torch.device) -> str | None:
    from ..kernels.launch import interpreted

    if device.type == "cpu" and interpreted():
        return None
    if not _is_gpu(device):
        return f"it runs on cuda devices, not on {device.type}"
    if interpreted():
        return "TRITON_INTERPRET is set, and Triton's interpreter takes CPU tensors here"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST_GPU:
        have, need = (".".join(map(str, numbers)) for numbers in (capability, _OLDEST_GPU))
        name = torch.cuda.get_device_name(device)
        return f"it needs compute capability {need} or newer; {name} has {have}"
    return None


def _moved(rows: Tensor, device: torch.device) -> Tensor:
    """Rows on the device, without a wait: from memory that is not pinned a copy waits for it."""
    return rows.pin_memory().to(device, non_blocking=True) if _is_gpu(device) else rows


def _powers_of_two(most: int) -> list[int]:
    return [1 << power for power in range(4, most.bit_length()) if 1 << power <= most]


def _example(tokens: int, max_seqlen: int, config: EncoderConfig) -> PackedBatch:
    """A batch of so many tokens in sequences of at most that length, of ids that exist."""
    ends = np.append(np.arange(0, tokens, max_seqlen), tokens).astype(np.int32)
    zeros = torch.zeros(tokens, dtype=torch.int32)
    # Whether segment ids are given decides which graph a batch takes; most callers give none.
    return PackedBatch(
        zeros, zeros, None, torch.from_numpy(ends), min(max_seqlen, config.max_positions)
    )
