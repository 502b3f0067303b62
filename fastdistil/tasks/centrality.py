"""Which of some vectors stand for all of them: LexRank, nearness to the centroid, and a greedy
choice that avoids saying the same thing twice. NumPy only.

Time and memory are linear in the number of vectors: no matrix of all pairs is ever made. With unit
vectors V [N, D] the similarities (1 + cos) / 2 are (1 1' + V V') / 2, so their product with a
vector p [N] is (sum(p) + V (V' p)) / 2: two thin products in place of one with [N, N].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

DAMPING = 0.95
"""How much of a sentence's score comes from the others. Erkan and Radev have 0.85; with (1 + cos) /
2 even strangers are 0.5 alike, so that the walk wanders anywhere by itself."""

# The second eigenvalue is about 0.1 with sentences of one text: a dozen rounds reach the tolerance.
_TOLERANCE = 1e-6
_MOST_ROUNDS = 200


def position_weights(count: int, lead_bias: float) -> NDArray[np.float64]:
    """A weight for each place in a text, (1 + place) ** -lead_bias, summing to 1. 0: all alike."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -lead_bias
    return weights / weights.sum()


def lexrank(vectors: Floats, restart: Floats | None = None, damping: float = DAMPING) -> Floats:
    """Continuous LexRank (Erkan and Radev, JAIR 22, 2004): PageRank in the graph of similarities.

    Solves p = damping * M' p + (1 - damping) * restart by power iteration, where M [N, N] is the
    matrix of similarities (1 + cos) / 2 with rows scaled to sum 1, the diagonal included.

    Args:
        vectors: [N, D], of length 1 (or 0, which is at right angles to everything).
        restart: [N], not negative, sums to 1: where the walk begins anew, so what is favoured
            beforehand; by default anywhere alike.
        damping: 0 to below 1.

    Returns:
        [N] float64, sums to 1.
    """
    count = len(vectors)
    if count == 0:
        return np.zeros(0)
    begin = np.full(count, 1 / count) if restart is None else np.asarray(restart, np.float64)
    degrees = _similarity_product(vectors, np.ones(count))
    # Without restarts this is the answer already, the graph having no direction.
    scores = degrees / degrees.sum()
    for _ in range(_MOST_ROUNDS):
        before = scores
        scores = damping * _similarity_product(vectors, before / degrees) + (1 - damping) * begin
        scores /= scores.sum()  # rounding alone would let it drift
        if np.abs(scores - before).sum() < _TOLERANCE:
            break
    return scores


def _similarity_product(vectors: Floats, weights: Floats) -> NDArray[np.float64]:
    """The matrix of (1 + cos) / 2 times a vector, [N]; without the matrix."""
    direction = weights.astype(vectors.dtype) @ vectors
    return (weights.sum() + (vectors @ direction).astype(np.float64)) / 2


def centroid_relevance(vectors: Floats, weights: Floats | None = None) -> Floats:
    """The cosine of each vector with their mean, [N].

    Args:
        vectors: [N, D], of length 1.
        weights: [N], of each in the mean; by default all alike.
    """
    count = len(vectors)
    shares = np.full(count, 1 / max(1, count)) if weights is None else weights
    centroid = shares.astype(vectors.dtype) @ vectors
    return vectors @ (centroid / max(float(np.linalg.norm(centroid)), 1e-12))


def choose(
    relevance: Floats,
    vectors: Floats,
    *,
    most: int,
    costs: NDArray[np.int64] | None = None,
    budget: int = 0,
    diversity: float = 0.0,
    redundancy: float = 1.0,
    last_resort: NDArray[np.bool_] | None = None,
) -> list[int]:
    """Greedily the most relevant, as long as they fit; the first chosen first.

    With a `diversity` this is maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998):
    each time the highest of (1 - diversity) * relevance - diversity * (the largest cosine with one
    chosen before). Takes O(N D) for each one chosen.

    Args:
        relevance: [N].
        vectors: [N, D], of length 1. D may be 0 where neither cosine is asked for.
        most: how many at most.
        costs: [N], what each takes of `budget`. One that is too dear is passed over, not the end.
        diversity: 0 to 1.
        redundancy: those with so large a cosine with one chosen before come after all others.
        last_resort: [N], those that come after even these.
    """
    count = len(relevance)
    left = np.ones(count, bool)
    later = np.zeros(count, bool) if last_resort is None else last_resort
    prices = np.zeros(count, np.int64) if costs is None else costs
    nearest = np.full(count, -np.inf)
    chosen: list[int] = []
    while len(chosen) < most:
        fits = left & (prices <= budget)
        if not fits.any():
            break
        near = nearest >= redundancy
        for tier in (fits & ~later & ~near, fits & ~later, fits):
            if tier.any():
                break
        scores = relevance
        if chosen and diversity > 0:
            scores = (1 - diversity) * relevance - diversity * nearest
        pick = int(np.where(tier, scores, -np.inf).argmax())
        chosen.append(pick)
        left[pick] = False
        budget -= int(prices[pick])
        if diversity > 0 or redundancy < 1:
            nearest = np.maximum(nearest, vectors @ vectors[pick])
    return chosen
