"""Engines on one workload: each proves its answers first, then they take turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .allocator import keep_freed_memory
from .engines import Engine, Floats, Variant, torch_variant
from .peers import PEERS
from .results import Row
from .timing import alternate, fastest, repeats, say
from .workloads import PEER_BATCH, Workload

# The least cosine of any real token with eager fp32: looser than what engines keep, tighter than
# what a mistake (mask, positions, a forgotten bias) leaves. In int8 ONNX Runtime and OpenVINO keep
# 0.95 to 0.96 of the worst token of trained weights (MiniLM); a wrong mask leaves 0.8 or less. And
# what an engine kept stands beside its figures. A smaller mistake shows in its fp32.
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.999, "int8": 0.95}

# About how long each engine's turn lasts at least, in a run and in a quick one: it is as many
# passes as that takes.
TURN_SECONDS = (0.4, 0.1)


@dataclass(frozen=True)
class Contender:
    """An engine in the way that suits a workload best.

    Attributes:
        cosine: the least of any of its rows with the original's.
    """

    engine: Engine
    variant: Variant
    cosine: float


def prepare(
    model: Any, names: Sequence[str], missing: list[str], failed: list[str]
) -> dict[str, Engine]:
    """Peers by their names in PEERS; a line for each that is not installed, or does not work."""
    engines = {}
    for name in names:
        say(f"preparing {name}")
        try:
            engines[name] = PEERS[name](model)
        except ModuleNotFoundError as error:
            missing.append(f'{name}: {error}; `pip install "fastdistil[bench]"` brings it')
        except ImportError as error:  # there, but not with what is needed
            missing.append(f"{name}: {error}")
        except Exception as error:  # whatever other people's packages raise
            failed.append(f"{name}: {_first_line(error)}")
            say(failed[-1])
    return engines


def original(model: Any, workload: Workload) -> Floats:
    """The fp32 answer of the original model: [T, D]."""
    variant = torch_variant(model, "the original")
    return variant.rows(workload, variant.run(workload))


def choose(
    engines: Sequence[Engine],
    workload: Workload,
    expected: Floats,
    failed: list[str],
    *,
    quick: bool,
) -> Iterator[Contender]:
    """Each engine's fastest variant for this workload, once all of its variants proved right.

    They share this process, whose heap keeps what they free from now on.

    Args:
        expected: fp32 [rows, D], in the order of `Variant.rows`.
        failed: gets a line for each engine whose answers are too far off, or that gives none.
        quick: one turn for each variant, not two.

    Raises:
        ValueError: what is expected is zero, which proves nothing and runs faster on some hardware.
    """
    keep_freed_memory()
    if not expected.any():
        raise ValueError(f"{workload.name}: the reference is all zeros; measure on real numbers")
    for engine in engines:
        try:
            cosines = {v.configuration: _cosine(v, workload, expected) for v in engine.variants}
        except Exception as error:
            failed.append(f"{engine.name}, {workload.name}: {_first_line(error)}")
            say(failed[-1])
            continue
        worst, wanted = min(cosines.values()), LEAST_COSINE[engine.precision]
        if not worst >= wanted:
            told = f"answers too far off (least cosine {worst:.4f}, wanted {wanted})"
            failed.append(f"{engine.name}, {workload.name}: {told}")
            say(failed[-1])
            continue
        few = workload.head(2 * PEER_BATCH)
        by_name = {variant.configuration: variant for variant in engine.variants}
        turns = {name: partial(variant.run, few) for name, variant in by_name.items()}
        best = by_name[fastest(turns, rounds=1 if quick else 2)]
        cosine = cosines[best.configuration]
        say(f"{workload.name}: {engine.name}: {best.configuration} (cosine {cosine:.5f})")
        yield Contender(engine, best, cosine)


def race(
    workload: Workload,
    contenders: Sequence[Contender],
    rounds: int,
    *,
    quick: bool,
    warm_up: bool = False,
) -> list[Row]:
    """Time them, `rounds` turns each: a row for each, in the group of the workload's name.

    A turn begins with an untimed batch and then lasts TURN_SECONDS, or a pass where that is longer:
    else what a pause and the others' turns do to caches and clocks would be charged to whoever is
    fast. Measured on 16 x 128 in int8, 80 ms a pass: the first takes 120 ms after eager PyTorch's
    turn, 260 ms after a second's sleep.
    """
    say(f"{workload.name}: {rounds} turns each")
    few = workload.head(workload.batch)
    seconds_of_few = TURN_SECONDS[quick] * few.tokens / workload.tokens
    lead_ins = {c.engine.name: partial(c.variant.run, few) for c in contenders}
    passes = {name: repeats(run, seconds_of_few) for name, run in lead_ins.items()}
    turns = {
        c.engine.name: partial(_turn, c.variant, workload, passes[c.engine.name])
        for c in contenders
    }
    timings = alternate(turns, rounds, warm_up=warm_up, lead_ins=lead_ins)
    facts = {
        "sequences": len(workload.sequences),
        "tokens": workload.tokens,
        "padded_tokens": sum(batch.input_ids.size for batch in workload.batches),
    }
    return [
        Row(
            workload.name,
            c.engine.name,
            timings[c.engine.name].seconds,
            {
                "precision": c.engine.precision,
                "configuration": c.variant.configuration,
                "least_cosine": c.cosine,
                "repeats": passes[c.engine.name],
                **facts,
            },
        )
        for c in contenders
    ]


def least_cosine(got: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> float:
    """The smallest cosine between rows of the two; NaN, which keeps no promise, if any is NaN."""
    if got.shape != expected.shape:
        raise ValueError(f"shapes {got.shape} and {expected.shape} differ")
    squares = (got * got).sum(1) * (expected * expected).sum(1)
    return float(((got * expected).sum(1) / np.sqrt(squares)).min())


def _cosine(variant: Variant, workload: Workload, expected: Floats) -> float:
    got = variant.rows(workload, variant.run(workload))
    return least_cosine(got.astype(float), expected.astype(float))


def _turn(variant: Variant, workload: Workload, passes: int) -> None:
    for _ in range(passes):
        variant.run(workload)


def _first_line(error: Exception) -> str:
    """What went wrong, as one line of a report."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # OpenVINO's messages begin with where in its sources it happened.
    told = [line for line in lines if not line.startswith("Exception from ")]
    return (told or lines or [type(error).__name__])[0]
