"""How like a student's vectors are to its teacher's, and whether they find the same neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.probe import Doubles

NEIGHBOURS = 10
LOW_PERCENTILE = 5


def likeness(student: Doubles, teacher: Doubles) -> dict[str, float]:
    """Figures of both models' vectors [N, D] of the same texts.

    Returns:
        mean, low (the 5th percentile) and least cosine of a text's two vectors; nearest, the share
        of the texts whose nearest other text is the same for both; overlap, the mean share of a
        text's ten nearest that are.
    """
    cosines = (_unit(student) * _unit(teacher)).sum(axis=1)
    count = min(NEIGHBOURS, len(student) - 1)
    ours, theirs = (neighbours(vectors, count) for vectors in (student, teacher))
    shared = [len(np.intersect1d(a, b)) for a, b in zip(ours, theirs, strict=True)]
    return {
        "mean": float(cosines.mean()),
        "low": float(np.percentile(cosines, LOW_PERCENTILE)),
        "least": float(cosines.min()),
        "nearest": float((ours[:, 0] == theirs[:, 0]).mean()),
        "overlap": float(np.mean(shared) / count),
    }


def neighbours(vectors: Doubles, count: int) -> npt.NDArray[np.int64]:
    """For each of [N, D] the `count` others of the largest cosines, the nearest first."""
    unit = _unit(vectors)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]


def _unit(vectors: Doubles) -> npt.NDArray[Any]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
