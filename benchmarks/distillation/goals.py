"""What the full run sets out to show, and whether it did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.distillation import masked_words

HEADER = ("goal", "wanted", "measured", "verdict")
# Cosine to the teacher on held-out sentences, before and after.
COSINE_BEFORE, COSINE_AFTER = 0.6, 0.93
# Of the teacher's accuracy; DistilBERT's share of BERT's, which the paper gives.
RETAINED = 0.97


def rows(results: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """For a table under HEADER; of the parts that were run."""
    return [
        (goal, wanted, measured, "met" if met else "NOT MET")
        for goal, wanted, measured, met in _goals(results)
    ]


def all_met(results: Mapping[str, Any]) -> bool:
    """Whether every goal of the parts that were run is."""
    return all(met for *_, met in _goals(results))


def retained(probes: Mapping[str, Any]) -> float:
    """The student's probe's accuracy, as a share of the teacher's."""
    models = probes["models"]
    share: float = models["student"]["accuracy"] / models["teacher"]["accuracy"]
    return share


def _goals(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    part = results.get("embedding")
    if part is not None:
        before, after = (part["likeness"][name]["mean"] for name in ("before", "student"))
        share = retained(part["probe"])
        goal = "embedding: mean cosine to the teacher, held out"
        yield f"{goal}, before", f"< {COSINE_BEFORE}", f"{before:.3f}", before < COSINE_BEFORE
        yield f"{goal}, after", f"≥ {COSINE_AFTER}", f"{after:.3f}", after >= COSINE_AFTER
        yield (
            "embedding: the teacher's probe accuracy that is kept",
            f"≥ {RETAINED:.0%}",
            f"{share:.1%}",
            share >= RETAINED,
        )
    part = results.get("masked_words")
    if part is not None:
        ways = part["ways"]
        first = ways[masked_words.DISTILLED]["before"]["hard"]
        taught, alone = (
            ways[way]["after"]["hard"] for way in (masked_words.DISTILLED, masked_words.ALONE)
        )
        goal = "masked words: held-out loss with the teacher"
        yield f"{goal}, after", f"< {first:.3f} before", f"{taught:.3f}", taught < first
        yield f"{goal}, at equal steps", f"< {alone:.3f} without", f"{taught:.3f}", taught < alone
