"""The model card, README.md of a finished checkpoint: what was done and what was measured."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .._version import __version__
from ..checkpoint import HUB_ID
from ..config import DISTILBERT_LAYER_NORM_EPS
from ..progress import duration
from .settings import Settings, Summary

_LIBRARIES = {
    "mlm": "transformers",
    "embedding": "sentence-transformers",
    "classification": "transformers",
}
_PIPELINE_TAGS = {
    "mlm": "fill-mask",
    "embedding": "sentence-similarity",
    "classification": "text-classification",
}
_AIMS = {
    "mlm": "to predict masked words as the teacher does",
    "embedding": "to give the teacher's vectors",
    "classification": "to give the teacher's labels",
}
_SOFT_PLACES = {"masked": "of the masked words", "all": "of every token"}
_TERMS = {
    "soft": "Kullback-Leibler divergence from the teacher's predictions at the temperature, times "
    "the temperature squared",
    "hidden": "1 - cosine of the last hidden states, over all tokens",
}
_HARD_TERMS = {
    "mlm": "cross-entropy of the masked words",
    "classification": "cross-entropy of the given labels",
}
_POOLED_TERMS = {
    "cosine": "1 - cosine of the pooled vectors",
    "mse": "squared distance of the pooled vectors",
}
_METRICS = {
    "pooled_cosine": "cosine between the student's and the teacher's vectors of a text, the mean",
    "token_cosine": "the same for the hidden states of every token",
    "agreement": "share where the student's likeliest answer is the teacher's",
}
_ACCURACIES = {
    "mlm": "share of the masked words that are the student's likeliest",
    "classification": "share of the texts whose label is the student's likeliest",
}


@dataclass(frozen=True)
class Facts:
    """What a model card tells.

    Attributes:
        teacher: as the user gave it: a hub id or a folder, of which only the name is told.
        settings: of the training.
        summary: of the training.
        layers: the teacher's layers that the student began with, counted from 0.
        teacher_layers: how many the teacher has.
        weights: of the losses, by their names in the log; 0: not used.
        precision: what the student multiplied in ("fp32" or "bf16").
        teacher_precision: what the teacher ran in.
        device: where, for example "cpu".
        student: the checkpoint that the first weights came from, where it was not the teacher.
        student_layers: how many that has; None: as many as `layers`.
        segments_folded: the teacher had segment embeddings.
        pooler_dropped: the teacher had a pooler.
        layer_norm_eps: the teacher's.
        eval_given: the texts to evaluate on were given, not held out of the others.
        pooling: how tokens become a vector (embedding).
        normalize: whether that is scaled to length 1 (embedding).
        mask_token: the tokenizer's (mlm).
        image: the plot's file name in the folder; None where there is none.
    """

    teacher: str
    settings: Settings
    summary: Summary
    layers: tuple[int, ...]
    teacher_layers: int
    weights: Mapping[str, float]
    precision: str = "fp32"
    teacher_precision: str = "fp32"
    device: str = "cpu"
    student: str | None = None
    student_layers: int | None = None
    segments_folded: bool = False
    pooler_dropped: bool = False
    layer_norm_eps: float = DISTILBERT_LAYER_NORM_EPS
    eval_given: bool = False
    pooling: str = "mean"
    normalize: bool = False
    mask_token: str = "[MASK]"
    image: str | None = None


def model_card(facts: Facts) -> str:
    """README.md, with the front matter that the Hugging Face hub reads."""
    parts = [
        _front_matter(facts),
        _introduction(facts),
        "## What was done\n\n" + _bullets(_first_weights(facts)),
        "The training:\n\n" + _bullets(_training(facts)),
        "## What was measured\n\n" + _measured(facts),
        "## How to use it\n\n" + _USES[facts.summary.objective](facts),
        _versions(),
    ]
    return "\n\n".join(parts) + "\n"


def shown_name(given: str) -> str:
    """A checkpoint's name for others: a hub id as it is, of a local path its last part."""
    return given if hub_id(given) else Path(given).resolve().name or given


def hub_id(given: str) -> str | None:
    """`given` if it is a hub id and no local folder, else None."""
    return given if HUB_ID.fullmatch(given) and not Path(given).exists() else None


def _front_matter(facts: Facts) -> str:
    objective = facts.summary.objective
    lines = [f"library_name: {_LIBRARIES[objective]}", f"pipeline_tag: {_PIPELINE_TAGS[objective]}"]
    if hub_id(facts.teacher):
        lines.append(f"base_model: {json.dumps(facts.teacher)}")  # a JSON string is a YAML string
    tags = ["distilbert", "distillation", "fastdistil"]
    if objective == "embedding":
        tags += ["sentence-transformers", "feature-extraction"]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _introduction(facts: Facts) -> str:
    summary = facts.summary
    share = summary.parameters / max(summary.teacher_parameters, 1)
    layers = len(facts.layers) if facts.student_layers is None else facts.student_layers
    own, teachers = _millions(summary.parameters), _millions(summary.teacher_parameters)
    return (
        f"# {summary.output.name}\n\n"
        f"A DistilBERT of {_counted(layers, 'layer')} and {own} million parameters, "
        f"distilled from {_code(shown_name(facts.teacher))}, which has "
        f"{_counted(facts.teacher_layers, 'layer')} and {teachers} million: the student is "
        f"{share:.0%} of that. It was trained {_AIMS[summary.objective]}."
    )


def _first_weights(facts: Facts) -> Iterator[str]:
    """How the student began, and what of the teacher a DistilBERT has no place for."""
    if facts.student is not None:
        yield f"First weights: those of {_code(shown_name(facts.student))}."
        return
    chosen = f"layer{'s' * (len(facts.layers) > 1)} {', '.join(map(str, facts.layers))}"
    yield (
        f"First weights: the teacher's embeddings and its {chosen} "
        f"(of 0 to {facts.teacher_layers - 1})."
    )
    if facts.segments_folded:
        yield (
            "DistilBERT has no segment embeddings: the teacher's for segment 0 is added to every "
            "position embedding. Pairs of texts look like one text to the student."
        )
    if facts.pooler_dropped:
        yield "DistilBERT has no pooler: the teacher's is left out."
    if facts.layer_norm_eps != DISTILBERT_LAYER_NORM_EPS:
        yield (
            f"DistilBERT's LayerNorm adds {DISTILBERT_LAYER_NORM_EPS:g} to the variance, where the "
            f"teacher's adds {facts.layer_norm_eps:g}; the student was trained with its own."
        )


def _training(facts: Facts) -> Iterator[str]:
    settings, summary = facts.settings, facts.summary
    terms = [
        f"\n  - {weight:g} x `{name}`: {_term(name, facts)}"
        for name, weight in facts.weights.items()
        if weight
    ]
    yield f"Objective: `{summary.objective}`. The loss is the sum of{''.join(terms)}"
    epochs = f"{summary.epochs:.3g}"
    yield (
        f"{summary.training_texts:,} texts in {epochs} {'epoch' if epochs == '1' else 'epochs'}: "
        f"{summary.tokens:,} tokens in {summary.steps:,} steps of up to "
        f"{settings.batch_tokens * settings.accumulation:,} tokens; {duration(summary.seconds)} on "
        f"{facts.device}."
    )
    yield (
        f"AdamW, learning rate {settings.learning_rate:g}, linear warm-up over "
        f"{settings.warmup:.0%} of the steps and linear decay to 0, weight decay "
        f"{settings.weight_decay:g}, gradients clipped at length {settings.max_gradient_norm:g}."
    )
    if facts.weights.get("soft"):
        yield f"Temperature of the soft targets: {settings.temperature:g}."
    if summary.objective == "mlm":
        yield (
            f"Masked: {settings.mask_probability:.3g} of the tokens, {_maskings(settings)}; of "
            "these 80% became the mask token, 10% any token and 10% stayed as they were."
        )
    if not settings.train_embeddings:
        yield "The embeddings were not trained."
    yield (
        f"Precision: {facts.precision} for the student, {facts.teacher_precision} for the teacher. "
        f"Dropout: none. Seed: {settings.seed}."
    )


def _term(name: str, facts: Facts) -> str:
    if name == "hard":
        return _HARD_TERMS.get(facts.summary.objective, name)
    if name == "pooled":
        return _POOLED_TERMS[facts.settings.pooled_loss]
    if name == "soft" and facts.summary.objective == "mlm":
        return f"{_TERMS[name]}, {_SOFT_PLACES[facts.settings.soft_targets]}"
    return _TERMS[name]


def _maskings(settings: Settings) -> str:
    if settings.maskings is None:
        return "others in every epoch"
    return f"{_counted(settings.maskings, 'masking')} in turn"


def _measured(facts: Facts) -> str:
    summary = facts.summary
    if not summary.after:
        return "Nothing: no texts were held out."
    if facts.eval_given:
        chosen = f"On {summary.eval_texts:,} texts that were given for it"
    else:
        chosen = (
            f"On {summary.eval_texts:,} texts that were held out of the training, chosen by a "
            "digest of the text"
        )
    rows = "\n".join(
        f"| `{name}` | {_measure(summary.before.get(name))} | {_measure(after)} |"
        for name, after in summary.after.items()
    )
    table = f"| | before | after |\n|---|---|---|\n{rows}"
    parts = [f"{chosen}, before the training and after it:", table]
    if notes := _bullets(_notes(facts)):
        parts.append(notes)
    if facts.image is not None:
        parts.append(f"![losses and measurements over the steps]({facts.image})")
    return "\n\n".join(parts)


def _notes(facts: Facts) -> Iterator[str]:
    """What the metrics mean; the losses among them are explained above."""
    for name in facts.summary.after:
        if name == "accuracy":
            yield f"`accuracy`: {_ACCURACIES.get(facts.summary.objective, name)}."
        elif name in _METRICS:
            yield f"`{name}`: {_METRICS[name]}."


def _use_embedding(facts: Facts) -> str:
    name, shell = _quoted(facts.summary.output.name)
    pooled = f"{facts.pooling} pooling" + (", scaled to length 1" if facts.normalize else "")
    return (
        f"A text's vector is made by {pooled}; the folder says so to the libraries below. "
        "`transformers.AutoModel` gives the hidden states.\n\n"
        + _code_block(
            "python",
            f"""\
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer({name}).encode(["A quiet, lovely film."])""",
        )
        + _code_block(
            "python",
            f"""\
from fastdistil import Encoder

vectors = Encoder({name}).encode(["A quiet, lovely film."])""",
        )
        + _code_block("bash", f"fastdistil encode sentences.txt -o vectors.npy --model {shell}")
    ).rstrip()


def _use_classification(facts: Facts) -> str:
    return _use_task(facts, "text-classification", "classify", "A quiet, lovely film.")


def _use_mlm(facts: Facts) -> str:
    return _use_task(facts, "fill-mask", "fill", f"The capital of France is {facts.mask_token}.")


def _use_task(facts: Facts, task: str, command: str, text: str) -> str:
    name, shell = _quoted(facts.summary.output.name)
    call = f'print(pipeline("{task}", {name})("{text}"))'
    return "".join(
        [
            _code_block("python", f"from transformers import pipeline\n\n{call}"),
            _code_block("python", f"from fastdistil import pipeline\n\n{call}"),
            _code_block("bash", f'fastdistil {command} "{text}" --model {shell}'),
        ]
    ).rstrip()


_USES = {"embedding": _use_embedding, "classification": _use_classification, "mlm": _use_mlm}


def _quoted(name: str) -> tuple[str, str]:
    """A folder's name for Python and for a shell."""
    return json.dumps(name, ensure_ascii=False), shlex.quote(name)


def _versions() -> str:
    try:
        torch = version("torch")
    except PackageNotFoundError:  # built without a distribution, as some Linux packages are
        torch = "of an unknown version"
    return f"Made with fastdistil {__version__} and torch {torch}."


def _bullets(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _code_block(language: str, code: str) -> str:
    return f"```{language}\n{code}\n```\n\n"


def _code(name: str) -> str:
    return f"`{name}`"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g}"


def _measure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
