"""Task pipelines without an oracle: options, bad input, streams, and how many rows heads are given.

What they answer is compared with transformers in test_task_parity.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from task_checkpoints import LONG, TEXTS, trained_tokenizer, write_task_checkpoint
from torch import Tensor

import fastdistil
from fastdistil import progress
from fastdistil.model import DistilBertModel
from fastdistil.packing import PackedBatch

MOODS = {0: "contradiction", 1: "neutral", 2: "entailment"}
HEADS = {
    "text-classification": "ForSequenceClassification",
    "zero-shot-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "fill-mask": "ForMaskedLM",
    "feature-extraction": "Model",
}
WITH_HEADS = [task for task in HEADS if task != "feature-extraction"]
LABELLED = ("ForSequenceClassification", "ForTokenClassification")

Folders = Callable[[str, str], Path]
Pipelines = Callable[..., Any]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """folder_of(head, family): a checkpoint with that head, written once."""
    written: dict[tuple[str, str], Path] = {}

    def folder(head: str, family: str = "Bert") -> Path:
        if (head, family) not in written:
            config: dict[str, Any] = {}
            if head in LABELLED:
                config = {"id2label": MOODS, "label2id": {v: k for k, v in MOODS.items()}}
            path = tmp_path_factory.mktemp("checkpoint")
            written[head, family] = write_task_checkpoint(path, family, head, **config)
        return written[head, family]

    return folder


@pytest.fixture(scope="module")
def load(folder_of: Folders) -> Pipelines:
    """load(task, family, **options): a pipeline in fp32, loaded once."""
    loaded: dict[str, Any] = {}

    def pipeline(task: str, family: str = "Bert", **options: Any) -> Any:
        key = repr((task, family, options))
        if key not in loaded:
            if task == "zero-shot-classification":
                options = {"candidate_labels": ["river", "boats"], **options}
            folder = folder_of(HEADS[task], family)
            loaded[key] = fastdistil.pipeline(task, folder, precision="fp32", **options)
        return loaded[key]

    return pipeline


@pytest.fixture
def changed(folder_of: Folders, tmp_path: Path) -> Callable[..., Path]:
    """changed(head, family, tensors=..., config=...): a copy with something wrong in it.

    A tensor or a setting of None is left out.
    """

    def copy(
        head: str,
        family: str = "Bert",
        tensors: dict[str, Tensor | None] | None = None,
        config: dict[str, Any] | None = None,
    ) -> Path:
        shutil.copytree(folder_of(head, family), tmp_path, dirs_exist_ok=True)
        weights = {**load_file(tmp_path / "model.safetensors"), **(tensors or {})}
        save_file(
            {name: tensor for name, tensor in weights.items() if tensor is not None},
            tmp_path / "model.safetensors",
        )
        settings = {**json.loads((tmp_path / "config.json").read_text()), **(config or {})}
        settings = {name: value for name, value in settings.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        return tmp_path

    return copy


def one_input(task: str) -> Any:
    if task == "question-answering":
        return {"question": "Where?", "context": TEXTS[0]}
    return "the [MASK] ran past Berlin" if task == "fill-mask" else TEXTS[0]


def close(got: Any, want: Any) -> bool:
    """Equal but for fp32's rounding: batches of other sizes are multiplied in another order."""
    if isinstance(want, float):
        return abs(got - want) <= 1e-5 * max(1.0, abs(want))
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(close(got[key], want[key]) for key in want)
    if isinstance(want, list):
        return len(got) == len(want) and all(map(close, got, want))
    return bool(got == want)


# Which task, which checkpoint ---------------------------------------------------------------------


@pytest.mark.parametrize("family", ["DistilBert", "Bert"])
@pytest.mark.parametrize("task", [task for task in HEADS if task != "zero-shot-classification"])
def test_the_checkpoint_says_its_task(folder_of: Folders, task: str, family: str) -> None:
    assert fastdistil.pipeline(model=folder_of(HEADS[task], family)).task == task


@pytest.mark.parametrize("name", ["ner", "sentiment-analysis"])
def test_transformers_other_names(folder_of: Folders, name: str) -> None:
    task = {"ner": "token-classification", "sentiment-analysis": "text-classification"}[name]
    assert fastdistil.pipeline(name, folder_of(HEADS[task])).task == task


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("poetry", r"task: got 'poetry'; there is .*fill-mask.*ner for token-classification"),
        ("translation_en_to_de", r"needs a decoder.*accelerate"),
        ("text2text-generation", r"needs a decoder.*accelerate"),
    ],
)
def test_unknown_task(folder_of: Folders, task: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fastdistil.pipeline(task, folder_of("Model"))


def test_no_task_and_architectures_that_do_not_say_it(changed: Callable[..., Path]) -> None:
    for architectures in (None, ["SomethingElse"]):
        with pytest.raises(ValueError, match=r"task: none given.*architectures"):
            fastdistil.pipeline(model=changed("Model", config={"architectures": architectures}))


def test_no_model_or_one_in_memory(folder_of: Folders) -> None:
    with pytest.raises(ValueError, match="model: none given"):
        fastdistil.pipeline("fill-mask")
    with pytest.raises(TypeError, match=r"model is DistilBertModel.*fastdistil\.accelerate"):
        fastdistil.pipeline(
            "feature-extraction",
            DistilBertModel.from_pretrained(folder_of("Model")),  # type: ignore[arg-type]
        )
    with pytest.raises(FileNotFoundError):
        fastdistil.pipeline("fill-mask", folder_of("Model") / "nowhere")


@pytest.mark.parametrize("family", ["DistilBert", "Bert"])
@pytest.mark.parametrize("task", WITH_HEADS)
def test_a_checkpoint_without_the_head(folder_of: Folders, task: str, family: str) -> None:
    for head in {*HEADS.values()} - {HEADS[task]}:
        with pytest.raises(ValueError, match=r"lacks a .* head"):
            fastdistil.pipeline(task, folder_of(head, family))


def test_a_multiple_choice_head_is_no_classifier(folder_of: Folders) -> None:
    """Its tensors have a classifier's names."""
    for task in ("text-classification", "token-classification"):
        with pytest.raises(ValueError, match="MultipleChoice"):
            fastdistil.pipeline(task, folder_of("ForMultipleChoice", "DistilBert"))


@pytest.mark.parametrize(
    ("task", "family", "tensors", "words"),
    [
        ("text-classification", "DistilBert", {"classifier.weight": torch.zeros(3, 7)}, "3, 7"),
        ("text-classification", "DistilBert", {"classifier.bias": torch.zeros(4)}, r"\[4\]"),
        ("text-classification", "DistilBert", {"classifier.bias": None}, "no classifier.bias"),
        ("text-classification", "DistilBert", {"pre_classifier.weight": torch.zeros(8, 48)}, "8"),
        ("text-classification", "Bert", {"bert.pooler.dense.bias": torch.zeros(7)}, r"\[7\]"),
        ("token-classification", "Bert", {"classifier.weight": torch.zeros(3, 48, 1)}, "3, 48, 1"),
        (
            "token-classification",
            "Bert",
            {"classifier.weight": torch.zeros(3, 48, dtype=torch.int64)},
            "int64",
        ),
        ("question-answering", "Bert", {"qa_outputs.weight": torch.zeros(3, 48)}, "3, 48"),
        ("fill-mask", "DistilBert", {"vocab_layer_norm.weight": torch.zeros(9)}, r"\[9\]"),
        ("fill-mask", "DistilBert", {"vocab_projector.bias": torch.zeros(9)}, r"\[9\]"),
        ("fill-mask", "Bert", {"cls.predictions.bias": None}, "no cls.predictions.bias"),
    ],
)
def test_a_head_of_the_wrong_shape(
    changed: Callable[..., Path],
    task: str,
    family: str,
    tensors: dict[str, Tensor | None],
    words: str,
) -> None:
    with pytest.raises(ValueError, match=words):
        fastdistil.pipeline(task, changed(HEADS[task], family, tensors))


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"0": "a", "1": "b"}, "names 2 labels.* 3 outputs"),
        ({"0": "a", "1": "b", "2": "c", "3": "d"}, "names 4 labels.* 3 outputs"),
        ({"1": "a", "2": "b", "3": "c"}, r"1, 2, 3.*3 outputs"),
        ({"a": "0", "b": "1", "c": "2"}, "id2label has the keys 'a'"),
        (["a", "b", "c"], "id2label is list"),
        ({}, "names 0 labels"),
    ],
)
def test_labels_of_another_head(
    changed: Callable[..., Path], task: str, labels: Any, words: str
) -> None:
    folder = changed(HEADS[task], config={"id2label": labels})
    with pytest.raises(ValueError, match=words):
        fastdistil.pipeline(task, folder)


def test_labels_without_names(changed: Callable[..., Path]) -> None:
    folder = changed("ForSequenceClassification", config={"id2label": None})
    classify = fastdistil.pipeline("text-classification", folder)
    assert {each["label"] for each in classify("x", top_k=None)} == {
        "LABEL_0",
        "LABEL_1",
        "LABEL_2",
    }
    with pytest.raises(ValueError, match=r"none of the labels 'LABEL_0'.*begins with 'entail'"):
        fastdistil.pipeline("zero-shot-classification", folder, candidate_labels=["a"])
    folder = changed("ForSequenceClassification", config={"problem_type": "guessing"})
    with pytest.raises(ValueError, match="problem_type is 'guessing'"):
        fastdistil.pipeline("text-classification", folder)


def test_a_tokenizer_without_a_mask_token(folder_of: Folders, tmp_path: Path) -> None:
    shutil.copytree(folder_of("ForMaskedLM"), tmp_path, dirs_exist_ok=True)
    without = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = without["model"]["vocab"]
    vocabulary["[other]"] = vocabulary.pop("[MASK]")
    without["added_tokens"] = [t for t in without["added_tokens"] if t["content"] != "[MASK]"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(without))
    with pytest.raises(ValueError, match="the tokenizer has no mask token"):
        fastdistil.pipeline("fill-mask", tmp_path)


@pytest.mark.parametrize("task", HEADS)
def test_a_tokenizer_of_more_tokens_than_the_model(
    folder_of: Folders, tmp_path: Path, task: str
) -> None:
    trained_tokenizer(vocabulary=1200).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer knows \d+ tokens.*model only \d+"):
        fastdistil.pipeline(task, folder_of(HEADS[task]), tokenizer=tmp_path)


# Options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", HEADS)
def test_an_unknown_option(load: Pipelines, task: str) -> None:
    words = rf"{task} has no option 'colour'; it has .*"
    with pytest.raises(TypeError, match=words):
        load(task)(one_input(task), colour="red")
    with pytest.raises(TypeError, match=words):
        load(task, colour="red")


def test_zero_shot_takes_its_labels_with_the_call(folder_of: Folders) -> None:
    judge = fastdistil.pipeline("zero-shot-classification", folder_of(HEADS["text-classification"]))
    assert judge("x", ["a", "b"]).keys() == {"sequence", "labels", "scores"}
    with pytest.raises(ValueError, match="candidate_labels: none given"):
        judge("x")


BAD_VALUES = [
    ("text-classification", "top_k", 0),
    ("text-classification", "top_k", -1),
    ("text-classification", "top_k", 1.5),
    ("text-classification", "top_k", "all"),
    ("text-classification", "function_to_apply", "tanh"),
    ("text-classification", "function_to_apply", 3),
    ("text-classification", "max_length", 65),
    ("text-classification", "max_length", 2),
    ("feature-extraction", "max_length", "5"),
    ("feature-extraction", "tokenize_kwargs", {"stride": 3}),
    ("feature-extraction", "tokenize_kwargs", 5),
    ("zero-shot-classification", "candidate_labels", []),
    ("zero-shot-classification", "candidate_labels", " , "),
    ("zero-shot-classification", "candidate_labels", ["a", 1]),
    ("zero-shot-classification", "candidate_labels", 5),
    ("zero-shot-classification", "hypothesis_template", "no place"),
    ("zero-shot-classification", "hypothesis_template", "{name}"),
    ("zero-shot-classification", "hypothesis_template", "{} {}"),
    ("zero-shot-classification", "hypothesis_template", "{"),
    ("zero-shot-classification", "hypothesis_template", 7),
    ("token-classification", "aggregation_strategy", "best"),
    ("token-classification", "aggregation_strategy", 2),
    ("token-classification", "ignore_labels", "O"),
    ("token-classification", "ignore_labels", 5),
    ("token-classification", "stride", -1),
    ("token-classification", "stride", 1.5),
    ("token-classification", "stride", 62),
    ("token-classification", "delimiter", 5),
    ("question-answering", "top_k", 0),
    ("question-answering", "top_k", "2"),
    ("question-answering", "doc_stride", -1),
    ("question-answering", "doc_stride", 0.5),
    ("question-answering", "max_answer_len", 0),
    ("question-answering", "max_seq_len", 0),
    ("question-answering", "max_seq_len", 65),
    ("question-answering", "max_seq_len", 4),
    ("question-answering", "max_question_len", 0),
    ("fill-mask", "top_k", 0),
    ("fill-mask", "top_k", "5"),
    ("fill-mask", "targets", []),
    ("fill-mask", "targets", [1]),
    ("fill-mask", "targets", 5),
    ("fill-mask", "targets", [""]),
    ("fill-mask", "tokenizer_kwargs", {"stride": 3}),
    ("fill-mask", "tokenizer_kwargs", 5),
]


@pytest.mark.parametrize(("task", "option", "value"), BAD_VALUES)
def test_a_value_that_makes_no_sense(load: Pipelines, task: str, option: str, value: Any) -> None:
    inputs = one_input(task)
    if option == "doc_stride" or option == "max_seq_len":
        inputs = {"question": "Where?", "context": LONG}
    with pytest.raises((TypeError, ValueError), match=option):
        load(task)(inputs, **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_length", 0),
        ("max_length", 65),
        ("max_length", 1),
        ("max_length", "64"),
        ("batch_tokens", 0),
        ("batch_tokens", "64"),
        ("precision", "fp7"),
        ("backend", "abacus"),
        ("dtype", "complex64"),
        ("device", "moon"),
        ("framework", "tf"),
        ("trust_remote_code", True),
        ("device_map", "auto"),
        ("tokenizer", 5),
    ],
)
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_an_argument_that_makes_no_sense(
    folder_of: Folders, task: str, option: str, value: Any
) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=option):
        fastdistil.pipeline(task, folder_of(HEADS[task]), **{option: value})


def test_dtype_is_a_precision(folder_of: Folders) -> None:
    folder = folder_of("Model")
    for name, dtype in (("dtype", torch.float32), ("torch_dtype", "float32"), ("dtype", "auto")):
        made = fastdistil.pipeline(None, folder, **{name: dtype})
        auto = DistilBertModel.from_pretrained(folder).explain()["precision"]
        wanted = auto if dtype == "auto" else "fp32"
        assert made.model.encoder.explain()["precision"] == wanted
    with pytest.raises(ValueError, match=r"dtype is torch\.float32, but precision is 'bf16'"):
        fastdistil.pipeline(None, folder, dtype=torch.float32, precision="bf16")


def test_arguments_that_ask_for_nothing(folder_of: Folders) -> None:
    folder = folder_of("Model")
    asked: dict[str, Any] = {"framework": "pt", "use_fast": True, "trust_remote_code": False}
    features = fastdistil.pipeline(None, folder, device=-1, batch_size=8, num_workers=2, **asked)
    assert features("x", batch_size=1) == fastdistil.pipeline(None, folder)("x")


# Input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", HEADS)
def test_no_inputs(load: Pipelines, task: str) -> None:
    assert load(task)([]) == []
    assert list(load(task)(iter([]))) == []


@pytest.mark.parametrize("task", HEADS)
def test_inputs_of_another_type(load: Pipelines, task: str) -> None:
    run, good = load(task), one_input(task)
    with pytest.raises(TypeError, match="inputs is int"):
        run(5)
    for wrong in (None, 5, b"bytes"):
        with pytest.raises(TypeError, match=rf"inputs\[1\] is {type(wrong).__name__}"):
            run([good, wrong])
    with pytest.raises(TypeError, match=r"inputs\[600\] is int"):
        list(run(good if number != 600 else 5 for number in range(700)))


def test_pairs_of_another_type(load: Pipelines) -> None:
    run = load("text-classification")
    for wrong in ({}, {"text_pair": "x"}, {"text": 5}, {"text": "x", "pair": "y"}):
        with pytest.raises(TypeError, match=r"inputs\[1\] is a dict"):
            run([TEXTS[0], wrong])
    with pytest.raises(TypeError, match=r"inputs\[0\] is list"):
        run([["a text", "its pair"]])


def test_words_and_texts_are_told_apart(load: Pipelines) -> None:
    run = load("token-classification")
    with pytest.raises(TypeError, match="is_split_into_words=True is wanted"):
        run([["New", "York"]])
    with pytest.raises(TypeError, match="with is_split_into_words=True a list of words"):
        run("New York", is_split_into_words=True)
    with pytest.raises(TypeError, match=r"inputs\[1\]\[1\] is int"):
        run([["New", "York"], ["x", 5]], is_split_into_words=True)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"inputs": {"question": "", "context": "x"}}, "question is empty"),
        ({"inputs": {"question": "x", "context": ""}}, "context is empty"),
        ({"inputs": {"question": "x"}}, "context is missing"),
        ({"inputs": {"question": "x", "context": 5}}, "context is int"),
        ({"question": "x"}, "context: none given"),
        ({"context": "x"}, "question: none given"),
        ({}, "question: none given"),
        ({"question": ["x", "y"], "context": ["a"]}, "2 of them for 1 contexts"),
        ({"question": 5, "context": "a"}, "question is int"),
        ({"question": "x", "context": ["a"]}, "context list"),
        ({"inputs": [], "question": "x"}, "not both"),
        ({"question": LONG, "context": "a"}, r"question: \d+ tokens"),
    ],
)
def test_questions_that_cannot_be_asked(load: Pipelines, asked: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        load("question-answering")(**asked)


def test_a_text_without_a_mask(load: Pipelines) -> None:
    fill = load("fill-mask")
    with pytest.raises(ValueError, match=r"no \[MASK\] in 'nothing here'"):
        fill(["a [MASK]", "nothing here"])
    with pytest.raises(ValueError, match=r"\[MASK\] of .* lies behind the 64 tokens"):
        fill(LONG + " [MASK]")  # cut off


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction", "fill-mask"])
def test_long_texts_are_refused_where_cutting_is_not_wanted(load: Pipelines, task: str) -> None:
    text = "[MASK] " + LONG
    load(task)(text)
    with pytest.raises(ValueError, match="1 of 2 texts have more than 64 tokens"):
        load(task)(["[MASK]", text], truncation=False)


@pytest.mark.parametrize("task", HEADS)
def test_lone_surrogates_count_as_replacement_characters(load: Pipelines, task: str) -> None:
    def with_character(character: str) -> Any:
        if task == "question-answering":
            return {"question": f"Where{character}?", "context": f"{character} Berlin {character}"}
        return f"the {character} [MASK] ran past {character} Berlin"

    got, want = load(task)(with_character("\ud83d")), load(task)(with_character("\ufffd"))
    as_said = json.dumps(got).replace("\\ud83d", "\\ufffd")
    assert close(json.loads(as_said), json.loads(json.dumps(want)))


@pytest.mark.parametrize("strategy", ["simple", "first", "max"])
def test_lone_surrogates_in_entities(load: Pipelines, strategy: str) -> None:
    """An unknown token's word is what the text has there, which is not valid Unicode here."""
    options = {"aggregation_strategy": strategy, "ignore_labels": []}
    got = load("token-classification")("a😀\ud83d😀 Berlin", **options)
    want = load("token-classification")("a😀\ufffd😀 Berlin", **options)
    assert [(each["start"], each["end"]) for each in got] == [
        (each["start"], each["end"]) for each in want
    ]


def test_offsets_behind_a_pair_of_surrogates(load: Pipelines) -> None:
    """Two code points of the string, one character for the tokenizer."""
    text = "\ud83d\ude00 Berlin"
    found = load("token-classification")(text, aggregation_strategy="first", ignore_labels=[])
    assert found[-1]["end"] == len(text)
    assert text[found[-1]["start"] :].endswith("Berlin")


def test_long_texts_are_read_to_their_end(load: Pipelines) -> None:
    """By windows, without being asked; every word once."""
    tag = load("token-classification")
    tokens = tag(LONG, ignore_labels=[])
    starts = [token["start"] for token in tokens]
    assert starts == sorted(set(starts))
    assert tokens[-1]["end"] == len(LONG)
    covered = "".join(LONG[token["start"] : token["end"]] for token in tokens)
    assert covered == LONG.replace(" ", "")


# Streams ------------------------------------------------------------------------------------------


def many(task: str) -> Iterator[Any]:
    """Inputs of all lengths, without end."""
    for number in count():
        text = LONG[: 1 + 37 * number % 150] + f" {number}"
        if task == "question-answering":
            yield {"question": f"Where is {number % 7}?", "context": text}
        else:
            yield text + " [MASK]" * (task == "fill-mask")


@pytest.mark.parametrize("task", HEADS)
def test_a_stream_is_drawn_from_as_it_is_answered(load: Pipelines, task: str) -> None:
    """In order, a few chunks of 512 ahead, and nothing runs on when it is closed early."""
    before = threading.active_count()
    drawn = 0

    def inputs() -> Iterator[Any]:
        nonlocal drawn
        for one in many(task):
            drawn += 1
            yield one

    run = load(task)
    results = run(inputs())
    assert drawn == 0
    got = list(islice(results, 40))
    assert drawn <= 6 * 512
    assert close(got, run(list(islice(many(task), 40))))
    results.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
@pytest.mark.parametrize("task", HEADS)
def test_results_do_not_depend_on_batches(load: Pipelines, task: str, batch_tokens: int) -> None:
    inputs = list(islice(many(task), 90))
    got = load(task, batch_tokens=batch_tokens)(inputs)
    assert len(got) == 90
    assert close(got, load(task)(inputs))


def test_single_texts_before_pairs_in_a_stream(load: Pipelines) -> None:
    """A chunk without segments, and then one with them, in one batch."""
    classify = load("text-classification")
    pair = {"text": "the river", "text_pair": "ran past Berlin"}
    inputs: list[Any] = [TEXTS[0]] * 512 + [pair] * 100 + [TEXTS[0]] * 600
    got = classify(inputs, top_k=None)
    assert len(got) == len(inputs)
    assert close(got[511], classify(TEXTS[0], top_k=None))
    assert close(got[512], classify(pair, top_k=None))
    assert close(got[611], classify(pair, top_k=None))
    assert close(got[-1], classify(TEXTS[0], top_k=None))


@pytest.mark.parametrize("task", HEADS)
def test_several_threads_at_once(load: Pipelines, task: str) -> None:
    run, inputs = load(task), list(islice(many(task), 80))
    want = run(inputs)
    with ThreadPoolExecutor(4) as threads:
        for got in threads.map(run, [inputs] * 4):
            assert close(got, want)


def test_an_error_in_a_stream_comes_through(load: Pipelines) -> None:
    def inputs() -> Iterator[str]:
        yield from islice(many("text-classification"), 1500)
        raise OSError("the source is gone")

    before = threading.active_count()
    with pytest.raises(OSError, match="the source is gone"):
        list(load("text-classification")(inputs()))
    assert threading.active_count() == before


def test_progress(
    load: Pipelines, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    load("text-classification")(TEXTS, show_progress=True)
    assert f"{len(TEXTS)} rows, 100%" in capsys.readouterr().err
    load("text-classification")(TEXTS)
    assert capsys.readouterr().err == ""


# What heads are given -----------------------------------------------------------------------------


class Rows:
    """Counts the rows that are computed, and the tokens that they are of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = self.tokens = 0
        some, all_of_them = DistilBertModel.forward_rows, DistilBertModel.forward_packed

        def forward_rows(model: DistilBertModel, batch: PackedBatch, rows: Tensor) -> Tensor:
            self.read += len(rows)
            self.tokens += batch.num_tokens
            return some(model, batch, rows)

        def forward_packed(model: DistilBertModel, batch: PackedBatch) -> Tensor:
            self.read += batch.num_tokens
            self.tokens += batch.num_tokens
            return all_of_them(model, batch)

        monkeypatch.setattr(DistilBertModel, "forward_rows", forward_rows)
        monkeypatch.setattr(DistilBertModel, "forward_packed", forward_packed)


SENTENCE = "the river ran past Berlin"


@pytest.mark.parametrize(
    ("task", "inputs", "read", "special"),
    [
        ("text-classification", [SENTENCE] * 3, 3, 6),
        ("zero-shot-classification", [SENTENCE] * 3, 6, None),
        ("token-classification", [SENTENCE] * 3, None, 6),
        ("fill-mask", ["[MASK] river", "the [MASK] [MASK]"], 3, 4),
        ("feature-extraction", [SENTENCE] * 3, None, 0),
    ],
)
def test_heads_see_the_rows_that_are_read(
    load: Pipelines,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    inputs: list[str],
    read: int | None,
    special: int | None,
) -> None:
    """`read` rows; where that is None all but so many `special` ones, which are nobody's."""
    run = load(task)
    rows = Rows(monkeypatch)
    run(inputs)
    assert rows.read == (rows.tokens - (special or 0) if read is None else read)
    assert 0 < rows.read <= rows.tokens


def test_question_answering_reads_contexts(
    load: Pipelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And [CLS], but neither questions nor [SEP]; a window is as long as its text, unpadded."""
    answer = load("question-answering")
    questions = ["Where is it?", "the river ran past what?"]
    context, *asked = (
        len(encoding.ids) for encoding in answer.tokenizer.plain([SENTENCE, *questions])
    )
    rows = Rows(monkeypatch)
    answer(question=questions, context=SENTENCE)
    assert rows.read == 2 * (context + 1)
    assert rows.tokens == 2 * (context + 3) + sum(asked)


# Without transformers -----------------------------------------------------------------------------

WITHOUT_TRANSFORMERS = """
import sys
sys.modules["transformers"] = None
import fastdistil
for folder, inputs in zip(sys.argv[1::2], sys.argv[2::2]):
    print(fastdistil.pipeline(model=folder)(inputs))
assert sys.modules["transformers"] is None
"""


def test_nothing_needs_transformers(folder_of: Folders) -> None:
    arguments: list[str] = []
    for task in ("text-classification", "token-classification", "fill-mask", "feature-extraction"):
        arguments += [str(folder_of(HEADS[task])), str(one_input(task))]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRANSFORMERS, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
