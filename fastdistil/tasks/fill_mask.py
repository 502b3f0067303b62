"""Fill-mask: the likeliest words for [MASK].

As transformers' FillMaskPipeline in arguments and results. The masked-LM head, whose last matrix
has a row for every token of the vocabulary, is computed at the masks and nowhere else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batch_stream import Vectors
from ..checkpoint import Checkpoint
from ..tokenization import TokenizedTexts
from .base import Prepared, TaskPipeline, check_text, cutting, refuse_cut
from .heads import Head, masked_lm_head


@dataclass(frozen=True)
class FillMaskOptions:
    """Options of `fill-mask`.

    Attributes:
        top_k: words for each mask.
        targets: words (or one) to choose among, in place of the whole vocabulary. Of a word that is
            no token the first token is taken, with a warning.
        truncation: texts longer than the model takes are cut; False: they are an error.
        tokenizer_kwargs: truncation and max_length, as transformers takes them.
        max_length: cuts texts at so many tokens.
    """

    top_k: int | None = None
    targets: str | Sequence[str] | None = None
    truncation: bool = True
    tokenizer_kwargs: dict[str, Any] | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        top_k = 5 if self.top_k is None else self.top_k
        if not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k is {self.top_k!r}; a whole number from 1 is wanted")
        object.__setattr__(self, "top_k", top_k)
        if self.targets is not None:
            targets = [self.targets] if isinstance(self.targets, str) else self.targets
            if (
                not isinstance(targets, list | tuple)
                or not targets
                or not all(isinstance(target, str) for target in targets)
            ):
                raise ValueError(
                    f"targets is {self.targets!r}; a word or a list of words is wanted"
                )
            object.__setattr__(self, "targets", tuple(targets))
        truncation, max_length = cutting(self.tokenizer_kwargs, "tokenizer_kwargs", self.truncation)
        object.__setattr__(self, "truncation", truncation)
        if max_length is not None:
            object.__setattr__(self, "max_length", max_length)


class FillMaskPipeline(TaskPipeline[FillMaskOptions]):
    """Words for masks.

    An input is a string with the tokenizer's mask token in it, once or several times. A result is a
    list of {"score": probability, "token": id, "token_str": its text, "sequence": the text with
    it}, the best first; for several masks a list of such lists, each as if the other masks stayed.
    """

    task = "fill-mask"
    options_type = FillMaskOptions

    def __init__(self, checkpoint: Checkpoint, *args: Any, **kwargs: Any) -> None:
        super().__init__(checkpoint, *args, **kwargs)
        if self.tokenizer.mask is None:
            raise ValueError(
                f"{checkpoint.folder}: the tokenizer has no mask token; fill-mask needs the "
                "tokenizer of a masked language model"
            )
        self.mask = self.tokenizer.mask

    @property
    def mask_token(self) -> str:
        """What to write for a word that is wanted."""
        return self.tokenizer.token(self.mask)

    def build_head(self, checkpoint: Checkpoint) -> Head:
        return masked_lm_head(checkpoint)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See `TaskPipeline.__call__`; a list of one is answered as one, as transformers does."""
        results = super().__call__(inputs, **options)
        return results[0] if isinstance(inputs, list) and len(inputs) == 1 else results

    def check_input(self, one: Any, name: str) -> str:
        return check_text(one, name)

    def prepare(self, inputs: Sequence[str], options: FillMaskOptions) -> Prepared:
        """A sequence for each text, of which the masks are read."""
        tokenizer = self.tokenizer.limited(options.max_length)
        tokens = tokenizer.singles(inputs)
        refuse_cut(tokens.truncated, len(inputs), options.truncation, tokenizer.max_length)
        reads = tokens.ids == self.mask
        prepared = Prepared(
            TokenizedTexts(tokens.ids, tokens.lengths, tokens.truncated, reads=reads), len(inputs)
        )
        without = np.flatnonzero(prepared.rows_of_sequences() == 0)
        if without.size:
            text = inputs[without[0]]
            if self.mask_token in text:
                raise ValueError(
                    f"inputs: the {self.mask_token} of {_short(text)!r} lies behind the "
                    f"{tokenizer.max_length} tokens that are read; cut the text before it"
                )
            raise ValueError(
                f"inputs: no {self.mask_token} in {_short(text)!r}; put one where a word is wanted"
            )
        return prepared

    def finish(self, options: FillMaskOptions) -> Callable[[Tensor], Tensor]:
        """The best tokens of each row, so that not the whole vocabulary leaves the device.

        Ids go along as float32, which holds whole numbers up to 2^24.
        """
        targets = self._target_ids(options)
        assert options.top_k is not None

        def best(logits: Tensor) -> Tensor:
            scores = logits.softmax(dim=-1)
            if targets is None:
                values, ids = scores.topk(min(options.top_k or 1, scores.shape[1]))
            else:
                wanted = targets.to(scores.device)
                values, places = scores[:, wanted].topk(min(options.top_k or 1, len(wanted)))
                ids = wanted[places]
            return torch.cat([values, ids.float()], dim=1)

        return best

    def _target_ids(self, options: FillMaskOptions) -> Tensor | None:
        if options.targets is None:
            return None
        ids = []
        for target in options.targets:
            known = self.tokenizer.id_of(target)
            if known is None:
                pieces = self.tokenizer.plain([target])[0].ids
                if not pieces:
                    warnings.warn(f"targets: {target!r} has no token; left out", stacklevel=2)
                    continue
                known = pieces[0]
                warnings.warn(
                    f"targets: {target!r} is no token of the vocabulary; its first one, "
                    f"{self.tokenizer.token(known)!r}, stands in",
                    stacklevel=2,
                )
            ids.append(known)
        if not ids:
            raise ValueError(f"targets: none of {list(options.targets)} has a token")
        return torch.tensor(sorted(set(ids)))

    def results(self, prepared: Prepared, rows: Vectors, options: FillMaskOptions) -> list[Any]:
        ends = np.cumsum(prepared.tokens.lengths)
        starts = ends - prepared.tokens.lengths
        sequences = [
            prepared.tokens.ids[begin:end] for begin, end in zip(starts, ends, strict=True)
        ]
        found = []
        for ids, best in zip(sequences, prepared.split(rows), strict=True):
            masks = np.flatnonzero(ids == self.mask)
            filled = [
                self._filled(ids, place, each, len(masks) == 1)
                for place, each in zip(masks.tolist(), best, strict=True)
            ]
            found.append(filled[0] if len(masks) == 1 else filled)
        return found

    def _filled(self, ids: Any, place: int, best: Vectors, only_mask: bool) -> list[dict[str, Any]]:
        values, tokens = np.split(best, 2)
        propositions = []
        for score, token in zip(values.tolist(), tokens.astype(np.int64).tolist(), strict=True):
            filled = ids.copy()
            filled[place] = token
            kept = filled[
                filled != -1 if self.tokenizer.pad is None else filled != self.tokenizer.pad
            ]
            propositions.append(
                {
                    "score": score,
                    "token": token,
                    "token_str": self.tokenizer.decode([token]),
                    # With other masks left the special tokens stay in, and the masks with them.
                    "sequence": self.tokenizer.decode(kept.tolist(), skip_special_tokens=only_mask),
                }
            )
        return propositions


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
