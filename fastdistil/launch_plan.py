"""The launch plan: what a GPU forward of a given batch launches, moves and computes, and the least
time that can take on a GPU one names. Nothing is run and no GPU is needed.

The plan is the engine's own list of steps (`backends.cuda_plan`), built over tensors without data;
of few tokens also the one launch of the low-latency kernel (`backends.cuda_latency`). A step's
floor is the larger of two times: its operations at the GPU's arithmetic peak, and the bytes it must
move at the memory's bandwidth (Williams et al., "Roofline", CACM 2009). Bytes count as if every
operand came from memory; between neighbouring steps the L2 cache spares some of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .backends.cuda import DTYPES
from .backends.cuda_latency import DTYPES as LATENCY_DTYPES
from .backends.cuda_latency import HIDDEN_SIZES, MOST_TOKENS, cost_of
from .backends.cuda_plan import Buffers, ForwardPlan, Step, bucket_of, length_class_of
from .backends.cuda_weights import fold
from .config import EncoderConfig
from .model import DistilBertModel


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet.

    Attributes:
        name: as people say it.
        target: its generation, as in `kernels/tuning/`.
        half: dense bf16 and fp16 products with float32 sums, in FLOP/s.
        tf32: dense tf32 products, in FLOP/s; float32 products take three of them.
        bandwidth: of its memory, in bytes/s.
        multiprocessors: how many it has.
    """

    name: str
    target: str
    half: float
    tf32: float
    bandwidth: float
    multiprocessors: int

    def rate(self, precision: str) -> float:
        """FLOP/s of products at a precision."""
        return self.tf32 / 3 if precision == "fp32" else self.half


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", "sm_80", 312e12, 156e12, 2.04e12, 108),  # SXM, 80 GB
        Gpu("A10G", "sm_86", 70e12, 35e12, 0.6e12, 80),
        Gpu("RTX 3090", "sm_86", 71e12, 35.6e12, 0.936e12, 82),
        Gpu("L4", "sm_89", 121e12, 60e12, 0.3e12, 58),
        Gpu("L40S", "sm_89", 362e12, 183e12, 0.864e12, 142),
        Gpu("RTX 4090", "sm_89", 165e12, 82.6e12, 1.008e12, 128),
        Gpu("H100", "sm_90", 989e12, 494e12, 3.35e12, 132),  # SXM
        Gpu("H200", "sm_90", 989e12, 494e12, 4.8e12, 132),
        Gpu("B200", "sm_100", 2250e12, 1125e12, 8.0e12, 148),
    )
}


@dataclass(frozen=True)
class PlannedStep:
    """One kind of launch of a forward.

    Attributes:
        name: the operation and, for products, its shape.
        launches: how often the forward launches it.
        grid: programs of one launch.
        flops: operations of one launch.
        moved: bytes one launch must move.
        seconds: the floor of one launch.
        bound: "compute" or "memory": which of the two makes the floor.
    """

    name: str
    launches: int
    grid: tuple[int, ...]
    flops: int
    moved: int
    seconds: float
    bound: str


@dataclass(frozen=True)
class LaunchPlan:
    """A forward's launches, in order of first use; `print()` it.

    Attributes:
        title: what is planned.
        tokens: of the batch; `rows` are computed.
        steps: what is launched.
    """

    title: str
    tokens: int
    rows: int
    steps: tuple[PlannedStep, ...]

    @property
    def seconds(self) -> float:
        """The floor of the whole forward: every launch at its own."""
        return sum(step.launches * step.seconds for step in self.steps)

    @property
    def flops(self) -> int:
        """Operations of the whole forward."""
        return sum(step.launches * step.flops for step in self.steps)

    @property
    def moved(self) -> int:
        """Bytes of the whole forward."""
        return sum(step.launches * step.moved for step in self.steps)

    def __str__(self) -> str:
        head = f"{'kernel':<34}{'launches':>8}{'grid':>8}{'MFLOP':>12}{'MB':>9}{'floor us':>10}"
        lines = [self.title, "", f"{head}  bound"]
        for step in self.steps:
            lines.append(
                f"{step.name:<34}{step.launches:>8}{'x'.join(map(str, step.grid)):>8}"
                f"{step.flops / 1e6:>12,.2f}{step.moved / 1e6:>9,.2f}{step.seconds * 1e6:>10,.2f}"
                f"  {step.bound}"
            )
        launches = sum(step.launches for step in self.steps)
        lines += [
            "",
            f"{launches} launch{'' if launches == 1 else 'es'}, {self.flops / 1e9:,.2f} GFLOP, "
            f"{self.moved / 1e6:,.1f} MB; at least {self.seconds * 1e6:,.1f} us, so at most "
            f"{self.tokens / self.seconds:,.0f} tokens/s",
        ]
        return "\n".join(lines)


def plan_launches(
    config: EncoderConfig,
    lengths: Sequence[int],
    precision: str = "bf16",
    gpu: str = "H100",
) -> LaunchPlan:
    """What one forward of a batch would launch.

    A batch larger than the engine takes at once (`chunk_tokens` of the settings) is planned as if
    it were not cut.

    Args:
        config: the encoder.
        lengths: tokens of each sequence.
        precision: "bf16", "fp16", "fp32" or "int8" (as many tokens meet it: weights in bf16).
        gpu: one of GPUS.

    Raises:
        ValueError: an unknown name, or lengths that make no batch.
    """
    from .kernels.settings import load_settings

    if gpu not in GPUS:
        raise ValueError(f"gpu: got {gpu!r}; allowed: {', '.join(GPUS)}")
    if precision not in DTYPES:
        raise ValueError(f"precision: got {precision!r}; allowed: {', '.join(DTYPES)}")
    counts = np.asarray(lengths, np.int64)
    if counts.ndim != 1 or counts.sum() < 1 or counts.min() < 0:
        raise ValueError(f"lengths: got {list(lengths)!r}; one count of tokens for each sequence")
    if counts.max() > config.max_positions:
        raise ValueError(f"lengths: got {counts.max()}; the model takes {config.max_positions}")
    device, dtype = torch.device("meta"), DTYPES[precision]
    tokens = int(counts.sum())
    rows = bucket_of(tokens)
    weights = fold(config, DistilBertModel(config, "meta").state_dict(), device, dtype)
    sequences = max(rows, len(counts))
    buffers = Buffers(config, dtype, device, rows, sequences)
    plan = ForwardPlan(config, weights, buffers, load_settings(GPUS[gpu].target))
    steps = plan.steps(rows, sequences, length_class_of(int(counts.max())), segments=False)
    # The kernel's own count assumes that all sequences are of the longest's length.
    attention = 4 * int((counts**2).sum()) * config.hidden_size
    return LaunchPlan(
        f"{_count(len(counts), 'sequence')}, {_count(tokens, 'token')} ({_count(rows, 'row')}) in "
        f"{precision} on one {gpu}",
        tokens,
        rows,
        tuple(_counted(steps, attention, GPUS[gpu], precision)),
    )


def plan_latency(
    config: EncoderConfig, lengths: Sequence[int], precision: str = "bf16", gpu: str = "H100"
) -> LaunchPlan | None:
    """What the low-latency kernel does for a batch; None where there is none for it.

    Its floor is the larger of two times for the whole forward, since its weights arrive while it
    computes.

    Args:
        config: the encoder.
        lengths: tokens of each sequence, one at least in all.
        precision: "bf16", "fp16", "fp32" or "int8".
        gpu: one of GPUS.
    """
    tokens = sum(lengths)
    fits = config.hidden_size in HIDDEN_SIZES and tokens <= MOST_TOKENS
    if not fits or precision not in LATENCY_DTYPES:
        return None
    cost, chosen = cost_of(config, lengths, precision), GPUS[gpu]
    compute, memory = cost.flops / chosen.rate(precision), cost.moved / chosen.bandwidth
    step = PlannedStep(
        "low-latency encoder",
        1,
        (chosen.multiprocessors,),
        cost.flops,
        cost.moved,
        max(compute, memory),
        "compute" if compute > memory else "memory",
    )
    title = f"the same in one launch, {precision} weights (deterministic=False)"
    return LaunchPlan(title, tokens, tokens, (step,))


def _counted(
    steps: Sequence[Step], attention_flops: int, gpu: Gpu, precision: str
) -> list[PlannedStep]:
    """Equal steps once, with their number."""
    counts: dict[tuple[str, tuple[int, ...], int, int], int] = {}
    for step in steps:
        flops = attention_flops if step.name == "varlen_attention" else step.flops
        key = (_label(step), getattr(step, "grid", ()), flops, step.moved)
        counts[key] = counts.get(key, 0) + 1
    planned = []
    for (name, grid, flops, moved), launches in counts.items():
        compute, memory = flops / gpu.rate(precision), moved / gpu.bandwidth
        bound = "compute" if compute > memory else "memory"
        seconds = max(compute, memory)
        planned.append(PlannedStep(name, launches, grid, flops, moved, seconds, bound))
    return planned


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _label(step: Step) -> str:
    """The operation; for a product with the shape of its weight."""
    constants = getattr(step, "constants", {})
    shape = f" {constants['WIDTH']}x{constants['DEPTH']}" if "DEPTH" in constants else ""
    return step.name + shape
