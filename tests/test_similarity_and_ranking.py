"""Sentences compared by their vectors, and documents ranked by a cross-encoder."""

from __future__ import annotations

import numpy as np
import pytest
from task_checkpoints import TEXTS, write_task_checkpoint
from tiny_checkpoint import write_tiny_checkpoint

import fastdistil


@pytest.fixture(scope="module")
def similar(tmp_path_factory):
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("vectors"))
    return fastdistil.pipeline("sentence-similarity", folder, precision="fp32")


@pytest.fixture(scope="module", params=["DistilBert", "Bert"])
def ranker_folder(request, tmp_path_factory):
    return write_task_checkpoint(
        tmp_path_factory.mktemp("ranker"), request.param, "ForSequenceClassification", num_labels=1
    )


def test_similarities_are_cosines_of_the_encoder_s_vectors(similar):
    vectors = similar.encoder.encode(TEXTS).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = similar({"source_sentence": TEXTS[0], "sentences": TEXTS[1:]})
    assert np.allclose(found, vectors[1:] @ vectors[0], atol=1e-6)
    assert similar(source_sentence=TEXTS[0], sentences=TEXTS[1:]) == found


def test_the_most_alike_first(similar):
    plain = similar(source_sentence=TEXTS[0], sentences=TEXTS)
    best = similar(source_sentence=TEXTS[0], sentences=TEXTS, top_k=3)
    assert [one["index"] for one in best] == np.argsort(-np.array(plain), kind="stable")[
        :3
    ].tolist()
    assert best[0] == {"index": 0, "score": plain[0], "sentence": TEXTS[0]}


def test_lists_and_streams_of_inputs(similar):
    inputs = [
        {"source_sentence": text, "sentences": TEXTS[: row % 4]} for row, text in enumerate(TEXTS)
    ]
    results = similar(inputs)
    assert [len(each) for each in results] == [row % 4 for row in range(len(TEXTS))]
    stream = similar(iter(inputs))
    assert next(stream) == results[0]
    assert list(stream) == results[1:]


def test_meaning_with_real_weights(minilm_folder):
    similar = fastdistil.pipeline("sentence-similarity", minilm_folder)
    best = similar(
        source_sentence="How do I get my money back?",
        sentences=["Our opening hours", "Refunds and returns", "The history of the company"],
        top_k=1,
    )
    assert best[0]["sentence"] == "Refunds and returns"


@pytest.mark.parametrize("function", ["none", "sigmoid"])
def test_ranks_as_sentence_transformers_does(ranker_folder, function):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import torch

    activation = torch.nn.Identity() if function == "none" else torch.nn.Sigmoid()
    theirs = sentence_transformers.CrossEncoder(str(ranker_folder), device="cpu")
    wanted = theirs.rank(TEXTS[0], TEXTS, activation_fn=activation)
    rank = fastdistil.pipeline("text-ranking", ranker_folder, precision="fp32")
    found = rank(query=TEXTS[0], documents=TEXTS, function_to_apply=function)
    assert [one["index"] for one in found] == [one["corpus_id"] for one in wanted]
    assert np.allclose([o["score"] for o in found], [o["score"] for o in wanted], atol=1e-5)
    assert [one["document"] for one in found] == [TEXTS[one["index"]] for one in found]


def test_ranking_many_queries_at_once(ranker_folder):
    rank = fastdistil.pipeline("text-ranking", ranker_folder, precision="fp32", top_k=2)
    inputs = [{"query": text, "documents": TEXTS[:row]} for row, text in enumerate(TEXTS)]
    results = rank(inputs)
    assert [len(each) for each in results] == [min(row, 2) for row in range(len(TEXTS))]
    alone = [rank(one) for one in inputs]
    assert [[o["index"] for o in each] for each in results] == [
        [o["index"] for o in each] for each in alone
    ]
    assert "document" not in rank(inputs[3], return_documents=False)[0]


def test_what_makes_no_sense_is_named(similar, ranker_folder, tmp_path):
    rank = fastdistil.pipeline("text-ranking", ranker_folder)
    with pytest.raises(TypeError, match=r"inputs\[0\]: sentences\[1\] is int"):
        similar(source_sentence="a", sentences=["b", 3])
    with pytest.raises(TypeError, match=r"inputs\[1\] is str"):
        similar([{"source_sentence": "a", "sentences": []}, "b"])
    with pytest.raises(TypeError, match="source_sentence is NoneType"):
        similar(sentences=["a"])
    with pytest.raises(TypeError, match="no option 'topk'"):
        similar({"source_sentence": "a", "sentences": []}, topk=3)
    with pytest.raises(ValueError, match="top_k is 0"):
        rank(query="a", documents=["b"], top_k=0)
    with pytest.raises(TypeError, match="documents is str"):
        rank(query="a", documents="b")
    with pytest.raises(ValueError, match="function_to_apply is 'softmax'"):
        rank(query="a", documents=["b"], function_to_apply="softmax")
    folder = write_task_checkpoint(
        tmp_path, "DistilBert", "ForSequenceClassification", num_labels=3
    )
    with pytest.raises(ValueError, match="the head has 3 outputs"):
        fastdistil.pipeline("text-ranking", folder)
