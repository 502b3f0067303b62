"""Losses against their formulas in float64; gradients of whole objectives by differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import randomize, tiny_config
from numpy.typing import NDArray
from torch import Tensor

from fastdistil.distill import batches, losses, student, training
from fastdistil.distill.corpus import Corpus
from fastdistil.distill.masking import Masking
from fastdistil.distill.objectives.base import Objective, teacher_logits
from fastdistil.distill.objectives.classification import ClassificationObjective
from fastdistil.distill.objectives.embedding import EmbeddingObjective
from fastdistil.distill.objectives.mlm import MaskedLMObjective
from fastdistil.distill.settings import Settings
from fastdistil.model import DistilBertModel
from fastdistil.tasks.heads import Dense, Head

Doubles = NDArray[np.float64]


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> Doubles:
    return np.random.default_rng(seed).normal(size=shape) * scale


def softmax(row: Doubles) -> Doubles:
    powers = [math.exp(x - max(row)) for x in row]
    return np.array([power / math.fsum(powers) for power in powers])


def soft_by_hand(student: Doubles, teacher: Doubles, temperature: float) -> float:
    terms = []
    for q_logits, p_logits in zip(student, teacher, strict=True):
        q, p = softmax(q_logits / temperature), softmax(p_logits / temperature)
        terms += [a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)]
    return temperature**2 * math.fsum(terms)


def hard_by_hand(student: Doubles, labels: list[int]) -> float:
    rows = zip(student, labels, strict=True)
    return math.fsum(-math.log(softmax(row)[label]) for row, label in rows)


def cosine_by_hand(student: Doubles, teacher: Doubles) -> float:
    rows = zip(student, teacher, strict=True)
    return math.fsum(
        1 - math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b)) for a, b in rows
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_soft_targets(temperature: float, scale: float) -> None:
    own, wanted = random(7, 11, scale=scale), random(7, 11, scale=scale, seed=1)
    got = losses.soft_target_loss(torch.tensor(own), torch.tensor(wanted), temperature)
    assert got.item() == pytest.approx(soft_by_hand(own, wanted, temperature), rel=1e-12)


def test_soft_targets_have_the_gradient_of_cross_entropy() -> None:
    own = torch.tensor(random(5, 9), requires_grad=True)
    wanted, t = torch.tensor(random(5, 9, seed=1)), 3.0
    (got,) = torch.autograd.grad(losses.soft_target_loss(own, wanted, t), own)
    cross = -(wanted / t).softmax(1) * (own / t).log_softmax(1) * t**2
    (want,) = torch.autograd.grad(cross.sum(), own)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_soft_targets_are_met_by_the_teacher_itself() -> None:
    logits = torch.tensor(random(4, 6, scale=50.0))
    assert losses.soft_target_loss(logits, logits, 2.0).item() == 0


def test_hard_labels() -> None:
    own, labels = random(6, 5, scale=4.0), [0, 4, 2, 2, 1, 3]
    got = losses.hard_label_loss(torch.tensor(own), torch.tensor(labels))
    assert got.item() == pytest.approx(hard_by_hand(own, labels), rel=1e-12)


def test_cosine() -> None:
    own, wanted = random(8, 13), random(8, 13, seed=1)
    got = losses.cosine_loss(torch.tensor(own), torch.tensor(wanted))
    assert got.item() == pytest.approx(cosine_by_hand(own, wanted), rel=1e-12)


def test_squared_error() -> None:
    own, wanted = random(8, 13), random(8, 13, seed=1)
    got = losses.squared_error_loss(torch.tensor(own), torch.tensor(wanted))
    by_hand = math.fsum((a - b) ** 2 for a, b in zip(own.flat, wanted.flat, strict=True))
    assert got.item() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        lambda own, wanted: losses.soft_target_loss(own, wanted, 2.0),
        lambda own, wanted: losses.hard_label_loss(own, torch.arange(len(own))),
        losses.cosine_loss,
        losses.squared_error_loss,
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sums_are_float32_at_least(
    loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    own, wanted = (torch.tensor(random(6, 9, seed=seed)).to(dtype) for seed in (0, 1))
    got = loss(own, wanted)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    want = loss(own.double(), wanted.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0.0)


# --- whole objectives -----------------------------------------------------------------------------

WIDTH, LABELS = 12, 3
CONFIG = tiny_config(
    vocab_size=23, hidden_size=WIDTH, num_heads=3, intermediate_size=10, max_positions=9
)
MASKING = Masking(4, (0, 1, 2, 3, 4), 23, 0.4, 0)


def a_student(head: str | None) -> student.Student:
    model = DistilBertModel(CONFIG, dtype=torch.float64)
    made: Any = None
    if head == "mlm":
        made = student.MaskedLMHead(CONFIG, untied=False)
    elif head == "classification":
        made = student.ClassificationHead(CONFIG, LABELS)
    whole = student.Student(model, made).double()
    randomize(whole)
    return whole


def a_corpus() -> Corpus:
    lengths = np.array([5, 7, 2, 5, 4])
    ids = np.random.default_rng(0).integers(5, 23, lengths.sum()).astype(np.int32)
    labels = np.array([0, 2, 1, 1, 0])
    return Corpus(ids, np.cumsum(lengths) - lengths, lengths, labels, 0)


def a_head(outputs: int) -> Head:
    weights = torch.tensor(random(outputs, WIDTH)).float()
    return Head((Dense(weights, torch.tensor(random(outputs)).float()),))


class Fixed:
    """Hidden states that are as good as any teacher's."""

    seconds = 0.0

    def hidden(self, batch: batches.TrainingBatch) -> Tensor:
        # A text's states depend on nothing but the text.
        rows = [random(int(LENGTHS[text]), WIDTH, seed=int(text)) for text in batch.texts]
        return torch.tensor(np.concatenate(rows)).half()


LENGTHS = a_corpus().lengths


def objective(name: str) -> Objective:
    if name == "embedding":
        return EmbeddingObjective(Settings(pooled_weight=0.7, hidden_weight=0.3), "mean", True)
    if name == "embedding, mse, max":
        return EmbeddingObjective(Settings(pooled_loss="mse", hidden_weight=0.0), "max", True)
    if name == "mlm":
        return MaskedLMObjective(Settings(), a_head(CONFIG.vocab_size))
    if name == "mlm, all":
        return MaskedLMObjective(Settings(soft_targets="all"), a_head(CONFIG.vocab_size))
    return ClassificationObjective(Settings(), a_head(LABELS), labelled=True)


def a_training(name: str) -> training.Training:
    head = name.split(",")[0]
    corpus, settings = a_corpus(), Settings(precision="fp32")
    source: Any = Fixed()
    plan = batches.StepPlan(corpus.lengths, 100, 1, 1, None, 0)
    masking = MASKING if head == "mlm" else None
    made = a_student(head if head != "embedding" else None)
    cpu = torch.device("cpu")
    return training.Training(
        made,
        objective(name),
        settings,
        source,
        source,
        corpus,
        corpus,
        masking,
        cpu,
        "fp32",
        plan,
        0.0,
    )


OBJECTIVES = ["embedding", "embedding, mse, max", "mlm", "mlm, all", "classification"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients(name: str) -> None:
    """Of everything that is trained, by torch's gradcheck."""
    run = a_training(name)
    batch = batches.make_batch(run.corpus, np.arange(5), run.masking, 0)
    weights = [weight for weight in run.student.parameters() if weight.requires_grad]

    def loss(*_: Tensor) -> Tensor:  # gradcheck changes the parameters in place
        sums = training.losses_of(run, batch, run.source, False)
        return torch.stack([run.objective.weights[k] * v for k, v in sums.items()]).sum()

    assert torch.autograd.gradcheck(loss, weights, fast_mode=True, atol=1e-7, rtol=1e-5)
    assert {*training.losses_of(run, batch, run.source, False)} == {*run.objective.weights}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pieces_of_a_step_have_the_gradient_of_the_whole(name: str) -> None:
    """Means are over all rows of a step, whatever the pieces: sequences differ in length here."""
    run = a_training(name)
    results = []
    for pieces in ([np.arange(5)], [np.array([0, 1]), np.array([2]), np.array([3, 4])]):
        run.student.zero_grad()
        made = [batches.make_batch(run.corpus, texts, run.masking, 0) for texts in pieces]
        found = training._gradients(run, made)
        gradients = {n: w.grad for n, w in run.student.named_parameters() if w.grad is not None}
        results.append((found, gradients))
    (whole, want), (parts, got) = results
    # The teacher's head is float32, and its products round by their size.
    assert parts == pytest.approx(whole, rel=1e-7)
    assert got.keys() == want.keys()
    for key, gradient in got.items():
        torch.testing.assert_close(gradient, want[key], rtol=1e-6, atol=1e-8)


def test_the_teachers_head_is_float32_whatever_runs_around_it() -> None:
    head, states = a_head(23), torch.tensor(random(6, WIDTH)).half()
    want = head(states.float())
    with torch.autocast("cpu", torch.bfloat16):
        got = teacher_logits(head, states)
    assert torch.equal(got, want)


def test_the_masked_lm_objective_by_hand() -> None:
    run = a_training("mlm")
    batch = batches.make_batch(run.corpus, np.arange(5), run.masking, 0)
    assert batch.rows is not None
    assert batch.targets is not None
    rows = batch.rows
    got = training.losses_of(run, batch, run.source, False)
    with torch.no_grad():
        hidden = run.student.encoder.forward_packed(batch.packed)
        assert isinstance(run.student.head, student.MaskedLMHead)
        logits = run.student.head(hidden[rows], run.student.words).numpy()
    states = run.source.hidden(batch)
    wanted = a_head(CONFIG.vocab_size)(states[rows].float()).double().numpy()
    assert got["soft"].item() == pytest.approx(soft_by_hand(logits, wanted, 2.0), rel=1e-6)
    assert got["hard"].item() == pytest.approx(hard_by_hand(logits, batch.targets.tolist()))
    by_hand = cosine_by_hand(hidden.numpy(), states.double().numpy())
    assert got["hidden"].item() == pytest.approx(by_hand)
    assert run.objective.weights == {"soft": 5.0, "hard": 2.0, "hidden": 1.0}


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (
            lambda asked: EmbeddingObjective(asked, "mean", True),
            {"soft_weight": 1.0},
            "soft_weight: got 1.0, but the embedding objective",
        ),
        (
            lambda asked: MaskedLMObjective(asked, a_head(23)),
            {"pooled_weight": 2.0},
            "pooled_weight: got 2.0, but the mlm objective",
        ),
        (
            lambda asked: EmbeddingObjective(asked, "mean", True),
            {"pooled_weight": 0, "hidden_weight": 0},
            "all are 0",
        ),
        (
            lambda asked: ClassificationObjective(asked, a_head(LABELS), labelled=False),
            {"hard_weight": 1.0},
            "the texts have no labels",
        ),
    ],
)
def test_weights_that_make_no_sense(
    make: Callable[[Settings], Objective], settings: dict[str, Any], message: str
) -> None:
    asked = Settings(**settings)
    with pytest.raises(ValueError, match=message):
        make(asked)
