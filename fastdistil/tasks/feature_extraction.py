"""Feature extraction: the hidden state of every token.

As transformers' FeatureExtractionPipeline in arguments and results. For one vector per text there
is `fastdistil.Encoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..batch_stream import Vectors
from .base import Prepared, TaskPipeline, check_text, cutting, refuse_cut


@dataclass(frozen=True)
class FeatureExtractionOptions:
    """Options of `feature-extraction`.

    Attributes:
        return_tensors: True for torch tensors [1, tokens, D], False for nested lists.
        truncation: texts longer than the model takes are cut; False: they are an error.
        tokenize_kwargs: truncation and max_length, as transformers takes them.
        max_length: cuts texts at so many tokens.
    """

    return_tensors: bool = False
    truncation: bool = True
    tokenize_kwargs: dict[str, Any] | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        truncation, max_length = cutting(self.tokenize_kwargs, "tokenize_kwargs", self.truncation)
        object.__setattr__(self, "truncation", truncation)
        if max_length is not None:
            object.__setattr__(self, "max_length", max_length)


class FeatureExtractionPipeline(TaskPipeline[FeatureExtractionOptions]):
    """Hidden states of texts, special tokens included.

    An input is a string. A result is a nested list [1, tokens, D] of floats, or a tensor.
    """

    task = "feature-extraction"
    options_type = FeatureExtractionOptions

    def check_input(self, one: Any, name: str) -> str:
        return check_text(one, name)

    def prepare(self, inputs: Sequence[str], options: FeatureExtractionOptions) -> Prepared:
        """A sequence for each text, all of it read."""
        tokenizer = self.tokenizer.limited(options.max_length)
        tokens = tokenizer.singles(inputs)
        refuse_cut(tokens.truncated, len(inputs), options.truncation, tokenizer.max_length)
        return Prepared(tokens, len(inputs))

    def results(
        self, prepared: Prepared, rows: Vectors, options: FeatureExtractionOptions
    ) -> list[Any]:
        each = (hidden[None] for hidden in prepared.split(rows))
        if options.return_tensors:
            return [torch.from_numpy(hidden.copy()) for hidden in each]
        return [hidden.tolist() for hidden in each]
