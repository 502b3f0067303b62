"""A student before it has learned anything: what it takes over is what the teacher computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import assert_fp32_budget, tiny_config
from task_checkpoints import write_task_checkpoint

from fastdistil.checkpoint import load_checkpoint
from fastdistil.distill import student as students
from fastdistil.packing import pack_ids

IDS = [[2, 7, 9, 30, 3], [2, 3], [2, 44, 45, 46, 47, 48, 49, 50, 3]]


@pytest.mark.parametrize(
    ("asked", "teacher_layers", "layers"),
    [
        (None, 12, (1, 3, 5, 7, 9, 11)),
        (None, 6, (1, 3, 5)),
        (None, 5, (0, 2, 4)),
        (None, 1, (0,)),
        (6, 6, (0, 1, 2, 3, 4, 5)),
        (1, 6, (5,)),
        (2, 6, (2, 5)),
        (4, 6, (0, 2, 3, 5)),
        ((0, 2, 4), 6, (0, 2, 4)),
        ((5, 0), 6, (5, 0)),
    ],
)
def test_chooses_layers(
    asked: int | tuple[int, ...] | None, teacher_layers: int, layers: tuple[int, ...]
) -> None:
    assert students.chosen_layers(asked, teacher_layers) == layers


@pytest.mark.parametrize("asked", [0, 7, (0, 6)])
def test_refuses_layers_that_are_not_there(asked: int | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^layers: got \d+; the teacher"):
        students.chosen_layers(asked, 6)


def test_all_layers_of_a_bert_are_a_distilbert_that_computes_the_same(tmp_path: Path) -> None:
    """The segment embeddings are in the positions, the pooler is not missed."""
    transformers = pytest.importorskip("transformers")
    folder = write_task_checkpoint(tmp_path, "Bert", "Model")
    teacher = load_checkpoint(folder)
    layers = students.chosen_layers(2, 2)
    config = students.student_config(teacher.config, layers)
    encoder = students.new_encoder(config, students.first_weights(teacher, layers))
    assert config.model_type == "distilbert"
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        got = encoder.forward_packed(pack_ids(IDS))
        want = torch.cat([theirs(torch.tensor([ids])).last_hidden_state[0] for ids in IDS])
    assert_fp32_budget(got, want)


def test_takes_the_layers_that_were_named(tmp_path: Path) -> None:
    folder = write_task_checkpoint(tmp_path, "DistilBert", "Model")
    teacher = load_checkpoint(folder)
    weights = students.first_weights(teacher, (1,))
    for name, tensor in weights.items():
        source = name.replace("transformer.layer.0.", "transformer.layer.1.")
        assert torch.equal(tensor, teacher.state_dict[source])
        assert tensor.data_ptr() != teacher.state_dict[source].data_ptr()  # its own


@pytest.mark.parametrize("family", ["Bert", "DistilBert"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_masked_lm_head_is_the_teachers(tmp_path: Path, family: str, tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_task_checkpoint(tmp_path, family, "ForMaskedLM", tie_word_embeddings=tied)
    teacher = load_checkpoint(folder)
    config = students.student_config(teacher.config, (0, 1))
    encoder = students.new_encoder(config, students.first_weights(teacher, (0, 1)))
    student = students.Student(encoder, students.masked_lm_head(config, teacher))
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    assert isinstance(student.head, students.MaskedLMHead)
    assert student.head.untied is not tied
    with torch.no_grad():
        got = student.head(encoder.forward_packed(pack_ids(IDS)), student.words)
        want = torch.cat([theirs(torch.tensor([ids])).logits[0] for ids in IDS])
    assert_fp32_budget(got, want)


def test_a_distilberts_classifier_is_taken_over(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_task_checkpoint(
        tmp_path, "DistilBert", "ForSequenceClassification", num_labels=4
    )
    teacher = load_checkpoint(folder)
    config = students.student_config(teacher.config, (0, 1))
    encoder = students.new_encoder(config, students.first_weights(teacher, (0, 1)))
    head = students.classification_head(config, teacher, 4, 0)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = pack_ids(IDS)
    with torch.no_grad():
        got = head(encoder.forward_packed(batch)[batch.cu_seqlens[:-1].long()])
        want = torch.cat([theirs(torch.tensor([ids])).logits for ids in IDS])
    assert_fp32_budget(got, want)


def test_a_berts_classifier_is_not(tmp_path: Path) -> None:
    """It reads what the pooler makes of the first token. A new one depends on the seed alone."""
    folder = write_task_checkpoint(tmp_path, "Bert", "ForSequenceClassification", num_labels=4)
    teacher = load_checkpoint(folder)
    config = tiny_config(hidden_size=48)
    heads = [students.classification_head(config, teacher, 4, seed) for seed in (0, 0, 1)]
    first, same, other = (head.pre_classifier.weight for head in heads)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(0.02, rel=0.05)
    assert not heads[0].classifier.bias.any()
