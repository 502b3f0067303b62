"""Programs that hold an accelerated model: pipelines, sentence-transformers, generate, Trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_cosine, assert_fp32_budget, padded_batch, randomize, tiny_config
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import fastdistil

transformers = pytest.importorskip("transformers")
VERSION_4 = transformers.__version__.startswith("4.")

WORDS = [
    *("the", "a", "cat", "dog", "bird", "sat", "ran", "on", "under", "mat", "tree"),
    *("big", "small", "red", "it", "is", "about", "animals", "what"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "the cat sat on the mat",
    "a dog ran",
    "it is a big red bird under the small tree",
    "what sat",
    "animals",
]


def family(class_name: str) -> str:
    return "bert" if class_name.startswith("Bert") else "distilbert"


def tokenizer(kind: str) -> Any:
    """Whole words, BERT's special tokens, and the inputs that the model kind's tokenizer gives."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL + WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = ["input_ids", "attention_mask"] + (["token_type_ids"] if kind == "bert" else [])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_input_names=names,
        model_max_length=40,
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL},
    )


def model_of(class_name: str, **settings: Any) -> Any:
    config = tiny_config(family(class_name)).to_hf()
    config = transformers.AutoConfig.for_model(**config, **settings)
    model = getattr(transformers, class_name)(config).eval()
    randomize(model)
    return model


def assert_alike(got: Any, want: Any) -> None:
    """Nested lists and dicts with the same keys, words and numbers (to 1e-5)."""
    assert type(got) is type(want)
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        for key in want:
            assert_alike(got[key], want[key])
    elif isinstance(want, list):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_alike(one, other)
    elif isinstance(want, (float, np.floating)):
        assert got == pytest.approx(want, abs=1e-5, rel=1e-5)
    else:
        assert got == want


ENTAILMENT = {
    "num_labels": 3,
    "label2id": {"contradiction": 0, "neutral": 1, "entailment": 2},
    "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"},
}
MASKED = [f"{text} [MASK]" for text in TEXTS]
PIPELINES = [
    ("text-classification", "DistilBertForSequenceClassification", {}, TEXTS, {"top_k": None}),
    ("text-classification", "BertForSequenceClassification", {}, TEXTS, {"top_k": None}),
    ("token-classification", "DistilBertForTokenClassification", {"num_labels": 4}, TEXTS, {}),
    ("token-classification", "BertForTokenClassification", {"num_labels": 4}, TEXTS, {}),
    ("fill-mask", "DistilBertForMaskedLM", {"vocab_size": 24}, MASKED, {"top_k": 3}),
    ("fill-mask", "BertForMaskedLM", {"vocab_size": 24}, MASKED, {"top_k": 3}),
    (
        "zero-shot-classification",
        "DistilBertForSequenceClassification",
        ENTAILMENT,
        TEXTS,
        {"candidate_labels": ["animals", "a big tree"], "hypothesis_template": "it is about {}"},
    ),
]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    ("task", "class_name", "settings", "texts", "options"),
    PIPELINES,
    ids=[f"{task} {class_name}" for task, class_name, *_ in PIPELINES],
)
def test_pipelines(
    task: str,
    class_name: str,
    settings: dict[str, Any],
    texts: list[str],
    options: dict[str, Any],
    batch_size: int,
) -> None:
    model = model_of(class_name, **{k: v for k, v in settings.items() if k != "vocab_size"})
    if "vocab_size" in settings:  # every prediction is a word the tokenizer knows
        model.resize_token_embeddings(settings["vocab_size"])
    pipe = transformers.pipeline(
        task, model=model, tokenizer=tokenizer(family(class_name)), device="cpu"
    )
    want = pipe(texts, batch_size=batch_size, **options)
    assert fastdistil.accelerate(pipe, precision="fp32") is pipe
    got = pipe(texts, batch_size=batch_size, **options)
    assert_alike(got, want)
    explanation = fastdistil.explain(pipe)
    assert explanation.fast_calls > 0
    assert explanation.fallback_calls == 0


@pytest.mark.parametrize("class_name", ["DistilBertModel", "BertModel"])
def test_feature_extraction_pipeline(class_name: str) -> None:
    pipe = transformers.pipeline(
        "feature-extraction",
        model=model_of(class_name),
        tokenizer=tokenizer(family(class_name)),
        device="cpu",
    )
    want = pipe(TEXTS)
    fastdistil.accelerate(pipe, precision="fp32")
    for batch_size in (1, 3):
        for one, other in zip(pipe(TEXTS, batch_size=batch_size), want, strict=True):
            expected = torch.tensor(other)
            assert_fp32_budget(torch.tensor(one)[:, : expected.shape[1]], expected)
    assert fastdistil.explain(pipe).fallback_calls == 0


@pytest.mark.skipif(not VERSION_4, reason="transformers 5 has no question-answering pipeline")
@pytest.mark.parametrize(
    "class_name", ["DistilBertForQuestionAnswering", "BertForQuestionAnswering"]
)
def test_question_answering_pipeline(class_name: str) -> None:
    pipe = transformers.pipeline(
        "question-answering",
        model=model_of(class_name),
        tokenizer=tokenizer(family(class_name)),
        device="cpu",
    )
    questions = [{"question": "what sat", "context": text} for text in TEXTS]
    want = pipe(questions)
    got = fastdistil.accelerate(pipe, precision="fp32")(questions)
    assert_alike(got, want)
    assert fastdistil.explain(pipe).fast_calls > 0


# sentence-transformers


@pytest.fixture(scope="module")
def sentence_transformer(minilm_folder: Path) -> Any:
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers does not load beside this version"
    )
    return sentence_transformers.SentenceTransformer(str(minilm_folder), device="cpu")


def test_sentence_transformer(sentence_transformer: Any, real_sentences: list[str]) -> None:
    sentences = real_sentences[:60]
    want = sentence_transformer.encode(sentences)
    model = copy.deepcopy(sentence_transformer)
    assert fastdistil.accelerate(model, precision="fp32") is model
    got = model.encode(sentences)
    assert np.abs(got - want).max() <= 1e-5
    assert fastdistil.explain(model).fast_calls == 2
    assert fastdistil.explain(model).fallback_calls == 0
    assert np.allclose(fastdistil.restore(model).encode(sentences), want, atol=1e-6)


def test_sentence_transformer_bf16(sentence_transformer: Any, real_sentences: list[str]) -> None:
    sentences = real_sentences[60:120]
    want = torch.from_numpy(sentence_transformer.encode(sentences))
    model = fastdistil.accelerate(copy.deepcopy(sentence_transformer), precision="bf16")
    got = torch.from_numpy(model.encode(sentences))
    assert got.dtype == torch.float32
    assert_cosine(got, want, 0.9999)


# Trainer


def trainer_of(model: Any, folder: Path) -> Any:
    pytest.importorskip("accelerate", reason="Trainer needs the package accelerate")
    ids, mask = padded_batch([6, 3, 5, 9, 1, 4, 2, 7], width=9)
    rows = [
        {"input_ids": i, "attention_mask": m, "labels": n % 2}
        for n, (i, m) in enumerate(zip(ids, mask, strict=True))
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_eval_batch_size=3,
        per_device_train_batch_size=4,
        max_steps=2,
        learning_rate=0.01,
        save_strategy="no",
        seed=0,
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)


CLASSIFIERS = ["DistilBertForSequenceClassification", "BertForSequenceClassification"]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.parametrize("class_name", CLASSIFIERS)
def test_trainer_evaluates(class_name: str, tmp_path: Path) -> None:
    model = model_of(class_name)
    trainer = trainer_of(model, tmp_path)
    want, predicted = trainer.evaluate(), trainer.predict(trainer.eval_dataset)
    fastdistil.accelerate(model, precision="fp32")
    got, found = trainer.evaluate(), trainer.predict(trainer.eval_dataset)
    assert got["eval_loss"] == pytest.approx(want["eval_loss"], rel=1e-5)
    assert (found.label_ids == predicted.label_ids).all()
    assert_fp32_budget(torch.tensor(found.predictions), torch.tensor(predicted.predictions))
    explanation = fastdistil.explain(model)
    assert (explanation.fast_calls, explanation.fallback_calls) == (6, 0)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.parametrize("class_name", CLASSIFIERS)
def test_trainer_trains_the_same_and_evaluates_what_it_trained(
    class_name: str, tmp_path: Path
) -> None:
    losses = []
    for accelerated in (False, True):
        model = model_of(class_name)
        trainer = trainer_of(model, tmp_path)
        if accelerated:
            fastdistil.accelerate(model, precision="fp32")
            trainer.evaluate()
        transformers.set_seed(0)
        trainer.train()
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    explanation = fastdistil.explain(model)
    assert (explanation.fast_calls, explanation.fallback_calls) == (6, 2)
    assert explanation.last_fallback == "the encoder is in training mode"
