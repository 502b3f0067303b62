"""Which tokens a masked language model is asked for.

BERT's rule (Devlin et al., arXiv 1810.04805, section 3.1): of the words' tokens 15% are chosen. Of
the chosen, 80% become [MASK], 10% another token, 10% stay; the model is asked for what each was.

A text's masking is a function of the seed, the number of the masking and the number of the text,
and of nothing else: not of its batch, and not of what was drawn before. So a run that goes on after
a crash asks what it would have asked, and a teacher's outputs can be kept for a masking.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BECOMES_MASK = 0.8
_BECOMES_ANOTHER = 0.1


@dataclass(frozen=True)
class Masking:
    """BERT's rule for one tokenizer.

    Attributes:
        mask_id: the id of [MASK].
        special_ids: tokens that are never chosen.
        vocab_size: other tokens are drawn from 0 to vocab_size - 1.
        probability: the share that is chosen.
        seed: from 0.
    """

    mask_id: int
    special_ids: tuple[int, ...]
    vocab_size: int
    probability: float
    seed: int

    def __call__(
        self, ids: NDArray[np.int32], lengths: Iterable[int], texts: Iterable[int], number: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Masks texts that lie end to end.

        Args:
            ids: [T].
            lengths: tokens of each text, of sum T.
            texts: the number of each text, which decides its draws.
            number: of the masking.

        Returns:
            the ids with masks [T], and which tokens were chosen, ascending, [M].
        """
        pieces = zip(lengths, texts, strict=True)
        draws = [self._draws(length, text, number) for length, text in pieces]
        choose, become, other = np.concatenate([np.empty((3, 0)), *draws], axis=1)
        chosen = np.flatnonzero((choose < self.probability) & ~np.isin(ids, self.special_ids))
        masked = ids.copy()
        fate = become[chosen]
        masked[chosen[fate < _BECOMES_MASK]] = self.mask_id
        swapped = chosen[(fate >= _BECOMES_MASK) & (fate < _BECOMES_MASK + _BECOMES_ANOTHER)]
        masked[swapped] = (other[swapped] * self.vocab_size).astype(np.int32)
        return masked, chosen

    def _draws(self, length: int, text: int, number: int) -> NDArray[np.float64]:
        """Three numbers from 0 to 1 for each token: a stream of its own for each text."""
        stream = np.random.Philox(key=[self.seed, number], counter=[0, 0, 0, text])
        return np.random.Generator(stream).random((3, length))
