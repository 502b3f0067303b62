"""The CPU engine by itself: packed batches in, hidden states out, no module and no padding around.

For benchmarks that ask what the kernels and the scheduler do. What a user gets is in `ours`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.command import add_json_option, add_quick_option, command_parser, save
from fastdistil import DistilBertModel, EncoderConfig
from fastdistil.backends.cpu import CpuProgram, extension_error, instruction_sets
from fastdistil.backends.threads import num_threads
from fastdistil.bench import ours
from fastdistil.bench.workloads import Workload
from fastdistil.packing import PackedBatch

# Long enough that the clock is what it is under that load.
PEAK_SECONDS = 0.3


@dataclass(frozen=True)
class CpuEngine:
    """One precision's kernels and weights."""

    program: CpuProgram
    isa: str
    precision: str
    description: str

    @property
    def name(self) -> str:
        """As the engines of all benchmarks are called."""
        return f"fastdistil {self.precision}"

    def run(
        self, batch: PackedBatch, *, threads: int | None = None, parts: bool = False
    ) -> dict[str, float]:
        """One forward to [T, D].

        Args:
            threads: as many as that, even more than there are cores; None for what a user gets.
            parts: whether to clock the parts of the forward.

        Returns:
            seconds of each part, summed over the threads; nothing where `parts` is false.
        """
        out = torch.empty(batch.num_tokens, self.program._config.hidden_size)
        seconds = self.program._encoder.run(
            input_ids=batch.input_ids.data_ptr(),
            positions=batch.positions.data_ptr(),
            segment_ids=0,
            cu_seqlens=batch.cu_seqlens.data_ptr(),
            sequences=batch.num_sequences,
            tokens=batch.num_tokens,
            out=out.data_ptr(),
            pooling="none",
            normalize=False,
            threads=num_threads() if threads is None else threads,
            parts=parts,
        )
        return dict(seconds or {})

    def peaks(self, *, quick: bool) -> dict[str, float]:
        """FLOP/s of all threads that do nothing but multiply and add for PEAK_SECONDS.

        Of the products, and of attention, which runs in another precision with int8 products. Less
        long, and less sure, if `quick`.
        """
        from fastdistil._C import cpu

        seconds = PEAK_SECONDS / 10 if quick else PEAK_SECONDS
        attention = self.program._encoder.attention_precision
        # The best of three: one that was measured while a neighbour was busy is no peak.
        peak = {
            precision: 2 * max(cpu.peak(self.isa, precision, num_threads(), seconds) for _ in "123")
            for precision in {self.precision, attention}
        }
        return {"products": peak[self.precision], "attention": peak[attention]}


def prepare(model: Any, precision: str) -> CpuEngine:
    """Pack a transformers model's weights for the best kernels of that precision.

    Raises:
        LookupError: there are none here.
    """
    entries = instruction_sets()["kernels"]
    kernels = next((e for e in entries if e["precision"] == precision), None)
    if kernels is None:
        raise LookupError(f"no {precision} kernels for this CPU")
    config = EncoderConfig.from_hf(model.config)
    twin = DistilBertModel(config)
    twin.load_state_dict(model.state_dict())
    program = CpuProgram(config, dict(twin.named_parameters()), precision, kernels["isa"])
    return CpuEngine(program, kernels["isa"], precision, kernels["description"])


def flops(config: EncoderConfig, workload: Workload) -> dict[str, float]:
    """Floating-point operations of the parts that multiply matrices, all layers together."""
    hidden, inner = config.hidden_size, config.intermediate_size
    weight = 2.0 * config.num_layers * workload.tokens
    squares = sum(len(sequence) ** 2 for sequence in workload.sequences)
    return {
        "qkv": weight * hidden * 3 * hidden,
        "attention": 4.0 * config.num_layers * hidden * squares,
        "attention_out": weight * hidden * hidden,
        "ffn_in": weight * hidden * inner,
        "ffn_out": weight * hidden * inner,
    }


def seconds_at_peak(flop: Mapping[str, float], peaks: Mapping[str, float]) -> float:
    """What a forward of these operations would take if all threads ran at these peaks."""
    return sum(
        count / peaks["attention" if part == "attention" else "products"]
        for part, count in flop.items()
    )


def run_command(
    name: str,
    description: str | None,
    measure: Callable[..., dict[str, Any]],
    report: Callable[[Mapping[str, Any]], str],
    arguments: Sequence[str] | None,
) -> int:
    """``python -m benchmarks.<name>`` of a benchmark of the CPU engine.

    Args:
        description: what `--help` says.
        measure: from precisions, and whether it is to be `quick`, to what ``<name>.json`` holds; a
            LookupError where something that it needs cannot be had.
        report: from that to Markdown.
    """
    parser = command_parser(f"benchmarks.{name}", description)
    add_quick_option(parser)
    ours.add_precisions_option(parser)
    add_json_option(parser, f"{name}.json")
    options = parser.parse_args(arguments)
    problem = extension_error()
    if problem is not None:
        sys.exit(f"{name}: {problem}")
    try:
        results = measure(options.precisions, quick=options.quick)
    except LookupError as missing:
        sys.exit(f"{name}: {missing}")
    print(report(results))
    save(options.json, results)
    return 0
