"""What `fastdistil bench` measures: the user's model and texts, or what stands in for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

from ..checkpoint import load_checkpoint, resolve_folder
from ..config import EncoderConfig
from ..sentence_settings import read_sentence_settings
from ..text_io import UsageError, open_records
from ..tokenization import TextTokenizer
from . import sample
from .peers.common import quiet
from .workloads import PEER_BATCH, Workload, full_rows, random_model

Ids = tuple[int, ...]

MIXED, SORTED = "mixed", "sorted"

# Tokens of real texts in a pass, so that long texts take no longer than short ones; quick.
_TOKENS = (6144, 1536)
# A text has a token at least: more lines than this are never needed.
_MOST_TEXTS = max(_TOKENS)
_SAMPLE = "English sentences that come with fastdistil"
_SIZE = re.compile(r"[1-9]\d*x[1-9]\d*", re.ASCII)


@dataclass(frozen=True)
class Subject:
    """A model, and texts to run it on.

    Attributes:
        model: transformers' encoder, fp32, in eval mode, without a pooler.
        texts: token ids of each text, in order; none is empty, none too long for the model.
        told: for people, which model and which texts: {"model": ..., "texts": ...}.
    """

    model: Any
    texts: tuple[Ids, ...]
    told: dict[str, str]


def load(model: str | None, texts: str | None) -> Subject:
    """The subject that `--model` and `--texts` name; None stands for what ships with fastdistil.

    Raises:
        UsageError: texts, but no model with a tokenizer for them.
        ImportError: transformers is missing.
        OSError, ValueError: a model or a file that is not there, or not as it should be.
    """
    if model is None and texts is not None:
        raise UsageError("--texts needs --model: the model without it has no tokenizer")
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"every engine starts from a transformers model ({error}): "
            "pip install 'fastdistil[bench]'"
        ) from None
    transformers.utils.logging.disable_progress_bar()
    if model is None:
        stand_in = random_model(transformers.DistilBertConfig())
        told = {"model": "DistilBERT-base's sizes, seeded random weights", "texts": _SAMPLE}
        return Subject(stand_in, tuple(sample.token_ids()), told)
    folder = resolve_folder(model)
    folder /= read_sentence_settings(folder).transformer
    config = load_checkpoint(folder).config  # its errors are clear, and come before a long run
    ids, source = _ids(folder, config, texts)
    return Subject(_encoder(folder, config), ids, {"model": model, "texts": source})


def workload_names(text: str) -> list[str]:
    """What stands behind `--workload`, each once: `mixed`, `sorted` or ROWSxTOKENS.

    Raises:
        UsageError: something else.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in (MIXED, SORTED) and not _SIZE.fullmatch(name)]
    if unknown:
        raise UsageError(
            f"--workload: unknown: {', '.join(map(repr, unknown))}; known: {MIXED}, {SORTED} and "
            "ROWSxTOKENS, such as 16x128"
        )
    return names


def workload(name: str, subject: Subject, *, quick: bool) -> Workload:
    """One of `workload_names`, of a subject's texts.

    Raises:
        UsageError: more tokens than the model takes, or too few.
        ValueError: the texts have no words to fill it with.
    """
    if name == MIXED:
        return Workload(MIXED, _some(subject.texts, _TOKENS[quick]))
    if name == SORTED:
        return workload(MIXED, subject, quick=quick).sorted_by_length()
    rows, length = map(int, name.split("x"))
    most = subject.model.config.max_position_embeddings
    if not 3 <= length <= most:
        raise UsageError(f"--workload: {name}: the model takes from 3 to {most} tokens a sequence")
    texts = [ids for ids in subject.texts if len(ids) > 2]
    if not texts:
        raise ValueError(f"--workload: {name}: no text has a word to fill it with")
    enough = -(-rows * length // sum(len(ids) - 2 for ids in texts))
    return full_rows(texts * enough, rows, length)


def _encoder(folder: Path, config: EncoderConfig) -> Any:
    from transformers import AutoModel

    # Nobody is asked for a pooler's result, so nobody should compute one.
    choices = {"add_pooling_layer": False} if config.model_type == "bert" else {}
    with quiet():
        model = AutoModel.from_pretrained(folder, **choices)
    return model.float().eval().requires_grad_(False)


def _ids(folder: Path, config: EncoderConfig, file: str | None) -> tuple[tuple[Ids, ...], str]:
    """Of the texts in the file, else of the sample, by the checkpoint's tokenizer; their source.

    A checkpoint without one gets the sample's ids, brought into its vocabulary.
    """
    tokenizer = TextTokenizer.from_folder(folder, config.max_positions)
    if tokenizer is None:
        if file is not None:
            raise ValueError(f"--texts: {folder} has no tokenizer (tokenizer.json or vocab.txt)")
        most, vocabulary = config.max_positions, config.vocab_size
        ids = (tuple(i % vocabulary for i in text[:most]) for text in sample.token_ids())
        return tuple(ids), f"{_SAMPLE}, as token ids: the model has no tokenizer"
    tokenized = tokenizer(sample.sentences() if file is None else _lines(file))
    flat = tokenized.ids.tolist()
    ends = accumulate(tokenized.lengths.tolist(), initial=0)
    found = tuple(tuple(flat[start:end]) for start, end in pairwise(ends) if end > start)
    if not found:
        raise ValueError(f"--texts: {file}: no text in it")
    return found, file or _SAMPLE


def _lines(file: str) -> list[str]:
    """The first lines that are not blank, as many as are ever needed."""
    with open_records(file, "txt") as source:
        lines = (text for block in source.blocks for text in block.texts if text.strip())
        return list(islice(lines, _MOST_TEXTS))


def _some(texts: Sequence[Ids], tokens: int) -> tuple[Ids, ...]:
    """The first texts, of about so many tokens; whole batches for the engines that pad."""
    count = sum(end <= tokens for end in accumulate(map(len, texts)))
    if count > PEER_BATCH:
        count -= count % PEER_BATCH
    return tuple(texts[: max(1, count)])
