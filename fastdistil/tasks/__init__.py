"""Tasks from text to answer: `pipeline(task, model)`, without transformers.

A file for each task; `base` has what they share. Names, arguments and results are those of
transformers' pipelines where it has one.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import load_checkpoint, resolve_folder
from ..config import read_hf_config

# Task -> (module, class). The first ones have a head of their own on the encoder's hidden states;
# the others are made of the vectors of a `fastdistil.Encoder`.
_WITH_HEADS = {
    "feature-extraction": ("feature_extraction", "FeatureExtractionPipeline"),
    "fill-mask": ("fill_mask", "FillMaskPipeline"),
    "question-answering": ("question_answering", "QuestionAnsweringPipeline"),
    "text-classification": ("text_classification", "TextClassificationPipeline"),
    "text-generation": ("text_generation", "TextGenerationPipeline"),
    "text-ranking": ("text_ranking", "TextRankingPipeline"),
    "token-classification": ("token_classification", "TokenClassificationPipeline"),
    "zero-shot-classification": ("zero_shot_classification", "ZeroShotClassificationPipeline"),
}
_OF_VECTORS = {
    "dialogue": ("dialogue", "DialoguePipeline"),
    "sentence-similarity": ("sentence_similarity", "SentenceSimilarityPipeline"),
    "summarization": ("summarization", "SummarizationPipeline"),
}
TASKS = tuple(sorted({*_WITH_HEADS, *_OF_VECTORS}))
# transformers' other names.
_ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
# What takes a decoder.
_WITH_DECODER = ("translation", "text2text-generation", "conversational")

# What a class's name says of its head.
_ARCHITECTURES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "Model": "feature-extraction",
}
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "auto": "auto"}
# transformers' arguments that ask for nothing else than what is done anyway.
_TAKEN_AS_READ = {
    "framework": ("pt", None),
    "use_fast": (True, None),
    "trust_remote_code": (False, None),
    "device_map": (None,),
}


def pipeline(
    task: str | None = None,
    model: str | Path | None = None,
    *,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    device: Any = None,
    precision: str = "auto",
    backend: str = "auto",
    max_length: int | None = None,
    batch_tokens: int | None = None,
    deterministic: bool = True,
    cuda_graphs: bool = True,
    **options: Any,
) -> Any:
    """A task from text to answer on the fast encoder.

    Arguments and results are those of `transformers.pipeline`, so that changing the import is
    enough; transformers is not needed. Lists and generators stream: texts are tokenised ahead,
    packed into batches by tokens, without padding, and answered in order.

    Args:
        task: one of `fastdistil.tasks.TASKS`, or transformers' other names for them; by default
            what the checkpoint's head is for.
        model: a checkpoint's folder or a Hugging Face hub id.
        tokenizer: another folder or id whose tokenizer to use.
        revision: a branch, tag or commit on the hub.
        device: where the model runs, by default the CPU; a GPU's number (-1: the CPU); a list of
            GPUs to share the work.
        precision: "auto", "fp32", "bf16", "fp16" (GPUs) or "int8"; of the encoder: heads are fp32.
            transformers' `dtype` (`torch_dtype`) is taken too.
        backend: "auto", "cuda", "cpu" or "reference".
        max_length: most tokens of a sequence; by default what the tokenizer's files say.
        batch_tokens: tokens in a batch; changes speed and memory only.
        deterministic, cuda_graphs: as for `fastdistil.DistilBertModel`.
        options: the task's own, as defaults for its calls.

    Returns:
        the task's pipeline: call it with one input, a list, or a stream.

    Raises:
        FileNotFoundError: no such checkpoint.
        TypeError: an unknown option.
        ValueError: an unknown task; a checkpoint without the head that it needs.
    """
    precision = _precision(precision, options)
    _take_as_read(options)
    if not isinstance(tokenizer, str | Path | None):
        raise TypeError(
            f"tokenizer is {type(tokenizer).__name__}; a folder or a Hugging Face hub id is wanted"
        )
    folder = _folder(model, revision)
    chosen = _task(task, folder)
    engine = {
        "device": _device(device),
        "precision": precision,
        "backend": backend,
        "deterministic": deterministic,
        "cuda_graphs": cuda_graphs,
    }
    if chosen in _OF_VECTORS:
        return _of_vectors(chosen, folder, max_length, batch_tokens, engine, options, tokenizer)
    made = _load(_WITH_HEADS[chosen])(
        load_checkpoint(folder),
        options,
        max_length,
        tokenizer_folder=None if tokenizer is None else resolve_folder(tokenizer),
        batch_tokens=batch_tokens,
        **engine,
    )
    made.options({})  # defaults that make no sense are an error now
    return made


def _of_vectors(
    task: str,
    folder: Path,
    max_length: int | None,
    batch_tokens: int | None,
    engine: Mapping[str, Any],
    options: Mapping[str, Any],
    tokenizer: Any,
) -> Any:
    from ..encoder import Encoder
    from .options import WITHOUT_EFFECT

    if tokenizer is not None:
        raise ValueError(f"tokenizer: {task} uses the checkpoint's own")
    pooling = {k: options[k] for k in ("pooling", "normalize") if k in options}
    encoder = Encoder(folder, max_length=max_length, batch_tokens=batch_tokens, **pooling, **engine)
    rest = {k: v for k, v in options.items() if k not in pooling and k not in WITHOUT_EFFECT}
    return _load(_OF_VECTORS[task])(encoder, **rest)


def _load(home: tuple[str, str]) -> Any:
    module, name = home
    return getattr(importlib.import_module(f".{module}", __name__), name)


def _folder(model: Any, revision: str | None) -> Path:
    if isinstance(model, str | Path):
        return resolve_folder(model, revision)
    if model is None:
        raise ValueError("model: none given; a checkpoint's folder or a Hugging Face hub id")
    raise TypeError(
        f"model is {type(model).__name__}; a checkpoint's folder or a Hugging Face hub id is "
        "wanted. For a transformers model in memory: fastdistil.accelerate(model)"
    )


def _task(task: str | None, folder: Path) -> str:
    if task is None:
        return _task_of(folder)
    name = _ALIASES.get(task, task)
    if name.startswith(_WITH_DECODER):
        raise ValueError(
            f"task: {task!r} needs a decoder. Load transformers' EncoderDecoderModel and call "
            "fastdistil.accelerate(model): its generate() then runs the encoder here"
        )
    if name not in TASKS:
        raise ValueError(
            f"task: got {task!r}; there is {', '.join(TASKS)}; also "
            f"{', '.join(f'{a} for {b}' for a, b in _ALIASES.items())}"
        )
    return name


def _task_of(folder: Path) -> str:
    """The task that a checkpoint's head is for."""
    names = read_hf_config(folder).get("architectures") or []
    for name in names:
        for ending, task in _ARCHITECTURES.items():
            if str(name).endswith(ending):
                return task
    raise ValueError(
        f"task: none given, and {folder}'s architectures are {names!r}, which does not say it; "
        f"there is {', '.join(TASKS)}"
    )


def _precision(precision: str, options: dict[str, Any]) -> str:
    """The precision that transformers' dtype asks for, where it is given; takes it out."""
    for name in ("dtype", "torch_dtype"):
        dtype = options.pop(name, None)
        if dtype is None:
            continue
        known = _DTYPES.get(str(dtype).removeprefix("torch."))
        if known is None:
            raise ValueError(f"{name} is {dtype}; it can be {', '.join(_DTYPES)}")
        if precision not in ("auto", known):
            raise ValueError(f"{name} is {dtype}, but precision is {precision!r}: give one of them")
        precision = known
    return precision


def _take_as_read(options: dict[str, Any]) -> None:
    for name, allowed in _TAKEN_AS_READ.items():
        value = options.pop(name, None)
        if value not in allowed:
            raise ValueError(
                f"{name} is {value!r}; only {' or '.join(map(repr, allowed))} is possible here"
            )


def _device(device: Any) -> Any:
    if isinstance(device, int) and not isinstance(device, bool):
        return torch.device("cpu") if device < 0 else torch.device("cuda", device)
    return device
