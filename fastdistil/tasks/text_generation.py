"""Text generation from a masked language model: all positions at once, in a fixed number of passes.

There is no cache and no order from left to right. What is to be written begins as masks; each pass
predicts every mask in parallel, then some positions become masks again:

- "mask-predict": those that the model was least sure of, fewer with every pass (Ghazvininejad et
  al., arXiv 1904.09324);
- "gibbs": a random part of them, as many with every pass, each drawn again given all the others
  (Wang and Cho, arXiv 1902.04094, in blocks).

What such text is worth: a word or two that fit their place are likely, a sentence that makes sense
is luck. DistilBERT and BERT learned to fill gaps in text that is there, not to write. It is for
filling templates, for varying sentences, for looking at what a model expects; whoever wants prose
takes a model with a decoder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..batch_stream import Vectors
from ..checkpoint import Checkpoint
from ..tokenization import TokenizedTexts
from .base import CHUNK_INPUTS, Prepared, TaskPipeline, check_text
from .heads import Head, masked_lm_head

METHODS = ("mask-predict", "gibbs")
_DEFAULT_LENGTH = 20
_DEFAULT_PASSES = 10
# Of all positions, how many are drawn again in one pass of "gibbs".
_GIBBS_PART = 0.3
# Candidates beside the likeliest top_k, for those of them that do not suit their place.
_SPARE = 16
# What stands close to the word before it.
_CLOSING = re.compile("[.,;:!?)\\]}%\u2019\u201d]+|'\\w*")


@dataclass(frozen=True)
class TextGenerationOptions:
    """Options of `text-generation`.

    Attributes:
        length: tokens to write after the prompt (transformers' `max_new_tokens`). By default 20, or
            none where the prompt has masks in it.
        passes: how often the model runs; by default 10, or once for each position if that is less.
        method: "mask-predict" or "gibbs".
        temperature: 0 takes the likeliest token, 1 draws by the model's own probabilities.
        top_k: a token is drawn among the likeliest so many.
        seed: the same prompt with the same seed gives the same text, whatever else is in the call.
        num_return_sequences: texts for each prompt.
        return_full_text: False leaves the prompt out of the text, where it has no masks.
    """

    length: int | None = None
    max_new_tokens: int | None = None
    passes: int | None = None
    method: str = "mask-predict"
    temperature: float = 0.7
    top_k: int = 50
    seed: int = 0
    num_return_sequences: int = 1
    return_full_text: bool = True

    def __post_init__(self) -> None:
        for name, least in (
            ("length", 0),
            ("max_new_tokens", 0),
            ("passes", 1),
            ("top_k", 1),
            ("seed", 0),
            ("num_return_sequences", 1),
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} is {value!r}; a whole number from {least} is wanted")
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; it can be {', '.join(METHODS)}")
        temperature = self.temperature
        if not isinstance(temperature, int | float) or not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature is {temperature!r}; a number from 0 is wanted")
        if self.length is not None and self.max_new_tokens not in (None, self.length):
            raise ValueError("length and max_new_tokens: give one of them")
        if self.length is None:
            object.__setattr__(self, "length", self.max_new_tokens)


@dataclass(eq=False)
class _Draft:
    """A text in the making."""

    parts: list[str]
    """The template's own text around its masks: one more than there are masks."""
    prompt_parts: int
    """1 where the first of them is the whole prompt, all masks coming after it; else 0."""
    ids: NDArray[np.int32]
    """Its tokens, special ones included."""
    places: NDArray[np.int64]
    """Where in them what is to be written lies."""
    confidence: NDArray[np.float64]
    """Log-probability of what is written at each place."""
    masked: NDArray[np.bool_]
    """Which places are masks now."""
    random: np.random.Generator
    """Its own, so that no other text decides what is drawn."""


class TextGenerationPipeline(TaskPipeline[TextGenerationOptions]):
    """Text by masked language modelling; see the module for what it is worth.

    An input is a prompt to continue, or a template with the tokenizer's mask token where words are
    wanted. A result is a list of {"generated_text": text}, one for each of
    `num_return_sequences`.
    """

    task = "text-generation"
    options_type = TextGenerationOptions

    def __init__(self, checkpoint: Checkpoint, *args: Any, **kwargs: Any) -> None:
        super().__init__(checkpoint, *args, **kwargs)
        if self.tokenizer.mask is None:
            raise ValueError(
                f"{checkpoint.folder}: the tokenizer has no mask token; text-generation needs the "
                "tokenizer of a masked language model"
            )
        self.mask = self.tokenizer.mask
        vocabulary = checkpoint.config.vocab_size
        tokens = [self.tokenizer.token(index) for index in range(self.tokenizer.vocab_size)]
        never = [index for index, token in enumerate(tokens) if _never_written(token)]
        never += [*self.tokenizer.special_ids, *range(len(tokens), vocabulary)]
        self._never = torch.zeros(vocabulary, dtype=torch.bool)
        self._never[never] = True
        self._continues = np.zeros(vocabulary, np.bool_)
        self._continues[: len(tokens)] = [token.startswith("##") for token in tokens]

    def build_head(self, checkpoint: Checkpoint) -> Head:
        return masked_lm_head(checkpoint)

    def check_input(self, one: Any, name: str) -> str:
        return check_text(one, name)

    def chunk_results(
        self, inputs: Iterable[Any], options: TextGenerationOptions
    ) -> Generator[tuple[list[Any], int], None, None]:
        """As of other tasks, but each chunk goes through the model once a pass."""
        for chunk in self.chunks(inputs):
            drafts = [
                self._draft(text, options, copy)
                for text in chunk
                for copy in range(options.num_return_sequences)
            ]
            self._write(drafts, options)
            texts = iter([self._text(draft, options) for draft in drafts])
            results = [
                [{"generated_text": next(texts)} for _ in range(options.num_return_sequences)]
                for _ in chunk
            ]
            yield results, sum(len(draft.ids) for draft in drafts)

    def prepare(self, inputs: Sequence[_Draft], options: TextGenerationOptions) -> Prepared:
        """Drafts as sequences, read where they are masks."""
        reads = []
        for draft in inputs:
            each = np.zeros(len(draft.ids), np.bool_)
            each[draft.places[draft.masked]] = True
            reads.append(each)
        tokens = TokenizedTexts(
            np.concatenate([draft.ids for draft in inputs]),
            np.array([len(draft.ids) for draft in inputs], np.int64),
            reads=np.concatenate(reads),
        )
        return Prepared(tokens, len(inputs))

    def results(
        self, prepared: Prepared, rows: Vectors, options: TextGenerationOptions
    ) -> list[Any]:
        """The candidates of each sequence's masks."""
        return prepared.split(rows)

    def finish(self, options: TextGenerationOptions) -> Callable[[Tensor], Tensor]:
        """The likeliest tokens of each row: [R, top_k + _SPARE] log-probabilities, then their ids.

        Ids go along as float32, which holds whole numbers up to 2^24.
        """

        def candidates(logits: Tensor) -> Tensor:
            allowed = logits.masked_fill(self._never.to(logits.device), -torch.inf)
            most = min(options.top_k + _SPARE, logits.shape[1])
            values, ids = allowed.log_softmax(dim=-1).topk(most)
            return torch.cat([values, ids.float()], dim=1)

        return candidates

    def _draft(self, text: str, options: TextGenerationOptions, copy: int) -> _Draft:
        mask = self.tokenizer.token(self.mask)
        given = text.count(mask)
        more = options.length
        if more is None:
            more = 0 if given else _DEFAULT_LENGTH
        parts = text.split(mask)
        parts[-1] += " " if more and parts[-1] and not parts[-1][-1].isspace() else ""
        template = mask.join(parts) + " ".join([mask] * more)
        ids = self.tokenizer.plain([template])[0].ids
        piece = self.tokenizer.single(ids, [True] * len(ids))
        if len(piece.ids) > self.tokenizer.max_length:
            raise ValueError(
                f"inputs: a prompt of {len(ids) - more} tokens and {more} to be written are more "
                f"than the {self.tokenizer.max_length} this model takes, special tokens included: "
                "give a shorter prompt, or a smaller length"
            )
        tokens = np.array(piece.ids, np.int32)
        places = np.flatnonzero(tokens == self.mask)
        return _Draft(
            [*parts, *[" "] * (more - 1), *[""] * bool(more)],
            int(given == 0),
            tokens,
            places,
            np.full(len(places), -np.inf),
            np.ones(len(places), np.bool_),
            np.random.default_rng(
                [options.seed, copy, *hashlib.sha256(template.encode("utf-8", "replace")).digest()]
            ),
        )

    def _write(self, drafts: Sequence[_Draft], options: TextGenerationOptions) -> None:
        """All passes, over all drafts at once."""
        passes = [_passes(draft, options) for draft in drafts]
        for done in range(1, max(passes, default=0) + 1):
            self._one_pass([draft for draft in drafts if draft.masked.any()], options)
            for draft, own in zip(drafts, passes, strict=True):
                if done < own:
                    _mask_again(draft, options.method, own - done, own)
                    draft.ids[draft.places[draft.masked]] = self.mask

    def _one_pass(self, drafts: Sequence[_Draft], options: TextGenerationOptions) -> None:
        """Puts a token in the place of every mask."""
        starts = range(0, len(drafts), CHUNK_INPUTS)
        chunks = iter([list(drafts[start : start + CHUNK_INPUTS]) for start in starts])
        waiting = iter(drafts)
        for found, _ in self.through(chunks, options):
            for candidates in found:
                self._fill(next(waiting), candidates, options)

    def _fill(self, draft: _Draft, candidates: Vectors, options: TextGenerationOptions) -> None:
        masks = np.flatnonzero(draft.masked)
        values, ids = np.split(candidates.astype(np.float64), 2, axis=1)
        for number, scores, tokens in zip(masks, values, ids.astype(np.int64), strict=True):
            place = draft.places[number]
            # Masks side by side are predicted alike: not the token that stands there already.
            suits = tokens != draft.ids[place - 1]
            # Only what is written here may go on with a word: the template's own stay whole.
            if number == 0 or draft.places[number - 1] != place - 1:
                suits &= ~self._continues[tokens]
            if suits.any():
                scores, tokens = scores[suits], tokens[suits]
            scores, tokens = scores[: options.top_k], tokens[: options.top_k]
            chosen = _drawn(scores, options.temperature, draft.random)
            draft.ids[place] = tokens[chosen]
            draft.confidence[number] = scores[chosen]
        draft.masked[:] = False

    def _text(self, draft: _Draft, options: TextGenerationOptions) -> str:
        """The template with its masks filled, its own text as it was given."""
        first = 0 if options.return_full_text else draft.prompt_parts
        text = "" if first else draft.parts[0]
        for number, place in enumerate(draft.places):
            token = self.tokenizer.token(int(draft.ids[place]))
            if self._continues[draft.ids[place]] and text:
                text = text.removesuffix(" ") + token[2:]
            elif _CLOSING.fullmatch(token):
                text = text.removesuffix(" ") + token
            else:
                text += token
            text += draft.parts[number + 1]
        return text


def _passes(draft: _Draft, options: TextGenerationOptions) -> int:
    """How often the model runs for a draft, whatever runs beside it."""
    most = options.passes or _DEFAULT_PASSES
    return most if options.method == "gibbs" else min(most, len(draft.places))


def _drawn(scores: NDArray[np.float64], temperature: float, random: np.random.Generator) -> int:
    """One of some log-probabilities, drawn by the Gumbel-max trick; the first at temperature 0."""
    if temperature == 0:
        return 0
    return int(np.argmax(scores / temperature + random.gumbel(size=len(scores))))


def _mask_again(draft: _Draft, method: str, left: int, passes: int) -> None:
    """Marks what the next pass is to write again; `left` of all passes are to come."""
    places = len(draft.places)
    if method == "mask-predict":
        count = places * left // passes
        again = np.argsort(draft.confidence, kind="stable")[:count]
    else:
        count = max(1, round(_GIBBS_PART * places)) if places else 0
        again = draft.random.choice(places, count, replace=False)
    draft.masked[again] = True


def _never_written(token: str) -> bool:
    """Whether a token is a placeholder of the vocabulary, not a part of any text."""
    return re.fullmatch(r"\[unused\d+\]", token) is not None
