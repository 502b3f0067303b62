"""Distillation from texts to a finished checkpoint: learning, resuming, and what goes wrong."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from task_checkpoints import write_task_checkpoint
from tokenizers import Tokenizer
from tokenizers.models import Unigram

import fastdistil
from fastdistil.bench.sample import sentences
from fastdistil.checkpoint import load_checkpoint
from fastdistil.distill import (
    DivergedError,
    distill,
    distillation,
    state,
    teacher_cache,
    training,
)
from fastdistil.distill.log import read_log
from fastdistil.distill.state import StateFile
from fastdistil.run_folder import ResumeError
from fastdistil.text_io import InputError, UsageError

HEADS = {
    "embedding": "Model",
    "mlm": "ForMaskedLM",
    "classification": "ForSequenceClassification",
}
TEXTS = sentences()[:150]
LABELS = ["long" if len(text) > 60 else "short" for text in TEXTS]
# Some twenty steps of a second in all.
QUICK: dict[str, Any] = {
    "epochs": 2,
    "batch_tokens": 256,
    "learning_rate": 2e-3,
    "precision": "fp32",
    "checkpoint_every": 5,
    "show_progress": False,
}


@pytest.fixture(scope="module", params=["embedding", "mlm", "classification"])
def objective(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, objective: str) -> Path:
    names = {0: "short", 1: "long"} if objective == "classification" else None
    config = {} if names is None else {"id2label": names}
    folder = tmp_path_factory.mktemp("teacher")
    return write_task_checkpoint(folder, "Bert", HEADS[objective], **config)


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    return write_task_checkpoint(tmp_path / "teacher", "Bert", "Model")


def options(objective: str, **changes: Any) -> dict[str, Any]:
    labels = {"labels": LABELS} if objective == "classification" else {}
    return {**QUICK, **labels, **changes}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert not different


def test_learns_and_says_so(tmp_path: Path, teacher: Path, objective: str) -> None:
    out = tmp_path / "student"
    summary = distill(teacher, TEXTS, out, **options(objective, epochs=8))
    assert summary.objective == objective
    assert summary.after["loss"] < 0.9 * summary.before["loss"]
    assert summary.training_texts + summary.eval_texts == len(TEXTS)
    assert summary.epochs == 8
    assert summary.output == out
    assert 0 < summary.teacher_seconds < summary.seconds
    assert summary.resumed_step == 0
    rows = read_log(out / "log.csv")
    assert [row["step"] for row in rows] == list(range(summary.steps + 1))
    assert rows[-1]["tokens"] == summary.tokens
    assert rows[-1]["eval_loss"] == pytest.approx(summary.after["loss"])
    assert (out / "losses.png").read_bytes().startswith(b"\x89PNG")
    card = (out / "README.md").read_text()
    for name in summary.after:
        assert f"`{name}`" in card
    assert not (tmp_path / "student.partial").exists()


def test_loads_as_what_it_is(tmp_path: Path, teacher: Path, objective: str) -> None:
    """In transformers, accelerated, in `Encoder`, in `pipeline`: nothing knows that it is new."""
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "student"
    distill(teacher, TEXTS, out, **options(objective, epochs=1))
    auto = {
        "embedding": transformers.AutoModel,
        "mlm": transformers.AutoModelForMaskedLM,
        "classification": transformers.AutoModelForSequenceClassification,
    }[objective]
    model, loading = auto.from_pretrained(out, output_loading_info=True)
    assert not [*loading["missing_keys"], *loading["unexpected_keys"]]
    assert type(model).__name__ == f"DistilBert{HEADS[objective]}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    inputs = tokenizer(TEXTS[:5], padding=True, return_tensors="pt")  # without token_type_ids
    with torch.inference_mode():
        want = model.eval()(**inputs)[0]
        fastdistil.accelerate(model, precision="fp32")
        got = model(**inputs)[0]
    explained = fastdistil.explain(model)
    assert explained.last_fallback is None
    real = inputs["attention_mask"].bool()
    rows = slice(None) if objective == "classification" else real
    torch.testing.assert_close(got[rows], want[rows], rtol=1e-4, atol=1e-4)
    encoder = fastdistil.Encoder(out, precision="fp32")
    assert encoder.encode(TEXTS[:3]).shape == (3, 48)
    if objective == "mlm":
        text = f"The {tokenizer.mask_token} is here."
        theirs = transformers.pipeline("fill-mask", model=str(out))(text)
        ours = fastdistil.pipeline("fill-mask", out, precision="fp32")(text)
        assert [one["token"] for one in ours] == [one["token"] for one in theirs]
    if objective == "classification":
        theirs = transformers.pipeline("text-classification", model=str(out))(TEXTS[:9])
        ours = fastdistil.pipeline("text-classification", out, precision="fp32")(TEXTS[:9])
        assert [one["label"] for one in ours] == [one["label"] for one in theirs]
        assert {one["label"] for one in ours} <= {"short", "long"}


def test_a_student_pools_as_its_teacher(
    tmp_path: Path, minilm_folder: Path, real_sentences: list[str]
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    out = tmp_path / "student"
    distill(minilm_folder, real_sentences[:60], out, max_steps=1, held_out=0.1, layers=(5,))
    encoder = fastdistil.Encoder(out, precision="fp32")
    assert (encoder.pooling, encoder.normalize) == ("mean", True)
    assert encoder.require_tokenizer().max_length == 256
    assert encoder.model.config.num_layers == 1
    theirs = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    got, want = (one.encode(real_sentences[60:80]) for one in (encoder, theirs))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_another_kind_of_tokenizer_stays_what_it_is(tmp_path: Path, embedder: Path) -> None:
    """transformers would rebuild a DistilBertTokenizer's words as WordPieces."""
    transformers = pytest.importorskip("transformers")
    letters = {letter for text in TEXTS for letter in text.lower()}
    pieces = [("[PAD]", 0.0), ("[UNK]", -20.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[MASK]", 0.0)]
    pieces += [(letter, -3.0) for letter in sorted(letters)]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=1))
    tokenizer.add_special_tokens([token for token, _ in pieces[:5]])
    tokenizer.save(str(embedder / "tokenizer.json"))
    (embedder / "vocab.txt").unlink(missing_ok=True)
    distill(embedder, TEXTS, tmp_path / "out", **{**QUICK, "max_steps": 1})
    ours = fastdistil.Encoder(tmp_path / "out").require_tokenizer()(TEXTS[:5])
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    found = theirs(TEXTS[:5], truncation=True, max_length=64)
    assert np.concatenate(found["input_ids"]).tolist() == ours.ids.tolist()
    assert len({*ours.ids.tolist()}) > 20  # and not unknown throughout
    assert "token_type_ids" not in found


def test_labels_keep_their_names(tmp_path: Path) -> None:
    """A config may only say how many there are."""
    transformers = pytest.importorskip("transformers")
    folder = write_task_checkpoint(
        tmp_path / "teacher", "Bert", HEADS["classification"], num_labels=3
    )
    config = json.loads((folder / "config.json").read_text())
    config.pop("id2label")
    config.pop("label2id")
    (folder / "config.json").write_text(json.dumps({**config, "num_labels": 3}))
    distill(folder, TEXTS, tmp_path / "out", **QUICK)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert model.classifier.weight.shape == (3, 48)


# --- the same weights -----------------------------------------------------------------------------


def test_the_same_twice_and_from_a_cache(tmp_path: Path, teacher: Path, objective: str) -> None:
    asked = options(objective)
    distill(teacher, TEXTS, tmp_path / "one", **asked)
    distill(teacher, TEXTS, tmp_path / "other", **asked)
    assert_same_weights(tmp_path / "one", tmp_path / "other")
    distill(teacher, TEXTS, tmp_path / "seed", **options(objective, seed=1))
    assert not torch.equal(*map(one_matrix, (tmp_path / "one", tmp_path / "seed")))
    program = fastdistil.DistilBertModel.from_pretrained(teacher).program()
    if program.backend == "reference":
        pytest.skip("plain PyTorch rounds by the size of the batch; runs where the extension is")
    for name in ("made", "read"):
        distill(teacher, TEXTS, tmp_path / name, teacher_cache=tmp_path / "cache", **asked)
        assert_same_weights(tmp_path / "one", tmp_path / name)


def one_matrix(folder: Path) -> torch.Tensor:
    name = "transformer.layer.0.ffn.lin1.weight"
    return next(tensor for key, tensor in weights(folder).items() if key.endswith(name))


@pytest.mark.parametrize("at", [3, 5, 12, "the end"])
def test_an_interrupted_run_makes_the_same_weights(
    tmp_path: Path, teacher: Path, objective: str, at: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = options(objective)
    whole = distill(teacher, TEXTS, tmp_path / "whole", **asked)
    take = training._take

    def stops(run: Any, optimizer: Any, step: Any) -> Any:
        if step.number == at:
            raise KeyboardInterrupt
        return take(run, optimizer, step)

    def stops_at_the_end(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_take", stops)
        if at == "the end":
            patch.setattr(distillation, "write_checkpoint", stops_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            distill(teacher, TEXTS, tmp_path / "out", **asked)
    found = distill(teacher, TEXTS, tmp_path / "out", **asked)
    assert found.resumed_step == {3: 0, 5: 0, 12: 10, "the end": whole.steps}[at]
    assert_same_weights(tmp_path / "whole", tmp_path / "out")
    assert found.after == whole.after
    logs = [read_log(tmp_path / name / "log.csv") for name in ("whole", "out")]
    for row in (row for log in logs for row in log):
        row.pop("seconds")
    assert logs[0] == logs[1]


def test_long_steps_are_saved_one_by_one(
    tmp_path: Path, embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = training._take

    def stops(run: Any, optimizer: Any, step: Any) -> Any:
        if step.number == 4:
            raise KeyboardInterrupt
        return take(run, optimizer, step)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_take", stops)
        patch.setattr(training, "_MOST_SECONDS_TO_LOSE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            distill(embedder, TEXTS, tmp_path / "out", **QUICK)
    assert distill(embedder, TEXTS, tmp_path / "out", **QUICK).resumed_step == 3
    distill(embedder, TEXTS, tmp_path / "whole", **QUICK)
    assert_same_weights(tmp_path / "whole", tmp_path / "out")


KILLED = """
import os, signal, sys
import torch
from fastdistil.distill import distill, training

torch.set_num_threads(1)
take = training._take

def killed(run, optimizer, step):
    if step.number == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return take(run, optimizer, step)

training._take = killed
from fastdistil.bench.sample import sentences
distill(sys.argv[1], sentences()[:150], sys.argv[2], epochs=2, batch_tokens=256,
        learning_rate=2e-3, checkpoint_every=5, show_progress=False)
"""


def test_a_killed_run_makes_the_same_weights(tmp_path: Path, embedder: Path) -> None:
    def run(out: str, step: int) -> int:
        command = [sys.executable, "-c", KILLED, str(embedder), str(tmp_path / out), str(step)]
        return subprocess.run(command, check=False).returncode

    assert run("whole", -1) == 0
    assert run("out", 4) == run("out", 13) == -9
    assert (tmp_path / "out.partial" / "state.safetensors").exists()
    assert run("out", -1) == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "out")


def test_a_finished_part_counts_only_for_the_same_run(tmp_path: Path, embedder: Path) -> None:
    def interrupted(**changes: Any) -> None:
        asked = {**QUICK, **changes}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distillation, "write_checkpoint", interrupt)
            distill(embedder, TEXTS, tmp_path / "out", **asked)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for changes in ({"learning_rate": 1e-3}, {"seed": 3}, {"layers": (0,)}, {"held_out": 0.2}):
        with pytest.raises(ResumeError, match=r"an unfinished run with other settings"):
            interrupted(**changes)
    with pytest.raises(ResumeError, match="texts"):
        distill(embedder, TEXTS[:-1], tmp_path / "out", **QUICK)
    assert distill(embedder, TEXTS, tmp_path / "out", **QUICK).resumed_step > 0
    distill(embedder, TEXTS, tmp_path / "second", resume=False, **QUICK)
    assert_same_weights(tmp_path / "out", tmp_path / "second")


def test_accumulation_takes_the_steps_of_larger_batches(tmp_path: Path, embedder: Path) -> None:
    summary = distill(embedder, TEXTS, tmp_path / "out", accumulation=4, **QUICK)
    alone = distill(embedder, TEXTS, tmp_path / "alone", **QUICK)
    assert summary.tokens == alone.tokens
    assert summary.steps == 2 * -(-alone.steps // 2 // 4)
    assert summary.after["loss"] < summary.before["loss"]


def test_frozen_embeddings_stay_as_they_were(tmp_path: Path, embedder: Path) -> None:
    distill(embedder, TEXTS, tmp_path / "out", train_embeddings=False, **QUICK)
    name = "embeddings.word_embeddings.weight"
    teacher = load_checkpoint(embedder).state_dict
    assert torch.equal(weights(tmp_path / "out")[name], teacher[name])
    distill(embedder, TEXTS, tmp_path / "trained", **QUICK)
    assert not torch.equal(weights(tmp_path / "trained")[name], teacher[name])


def test_goes_on_from_a_student(tmp_path: Path, embedder: Path) -> None:
    first = distill(embedder, TEXTS, tmp_path / "first", **QUICK)
    second = distill(embedder, TEXTS, tmp_path / "second", student=tmp_path / "first", **QUICK)
    assert second.before["loss"] == pytest.approx(first.after["loss"], rel=1e-4)
    assert second.after["loss"] < second.before["loss"]


def test_a_student_with_another_head_gets_a_new_one(tmp_path: Path) -> None:
    words = write_task_checkpoint(tmp_path / "words", "DistilBert", HEADS["mlm"])
    teacher = write_task_checkpoint(
        tmp_path / "teacher", "Bert", HEADS["classification"], num_labels=2
    )
    more = write_task_checkpoint(
        tmp_path / "more", "DistilBert", HEADS["classification"], num_labels=5
    )
    for name, student in (("one", words), ("other", more)):
        distill(teacher, TEXTS, tmp_path / name, student=student, **QUICK)
        assert weights(tmp_path / name)["classifier.weight"].shape == (2, 48)
    bare = write_task_checkpoint(tmp_path / "bare", "DistilBert", "Model")
    masked = write_task_checkpoint(tmp_path / "masked", "Bert", HEADS["mlm"])
    distill(masked, TEXTS, tmp_path / "third", student=bare, **QUICK)
    assert "vocab_transform.weight" in weights(tmp_path / "third")


def test_texts_to_evaluate_on_are_not_trained_on(tmp_path: Path, embedder: Path) -> None:
    kept = [f" {text} " for text in TEXTS[:10]]
    summary = distill(embedder, TEXTS, tmp_path / "out", eval_texts=kept, **QUICK)
    assert (summary.training_texts, summary.eval_texts) == (len(TEXTS) - 10, 10)
    with pytest.raises(ValueError, match="eval_texts: all of texts are among them"):
        distill(embedder, TEXTS, tmp_path / "other", eval_texts=TEXTS, **QUICK)


def test_without_a_teacher_it_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_task_checkpoint(tmp_path / "teacher", "Bert", "ForMaskedLM")
    alone = {"soft_weight": 0, "hidden_weight": 0}

    def asked(*_: object) -> None:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr("fastdistil.distill.teacher.Teacher.hidden", asked)
    summary = distill(folder, TEXTS, tmp_path / "out", **alone, **QUICK)
    assert summary.teacher_seconds == 0
    assert summary.after["hard"] < summary.before["hard"]
    assert "agreement" not in summary.after


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_loss_that_is_no_number(
    tmp_path: Path, embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said with step and terms; what was saved before is whole, and the run can go on."""
    losses_of, calls = training.losses_of, []

    def breaks(*arguments: Any) -> Any:
        found = losses_of(*arguments)
        calls.append(found)
        return {k: v * float("nan") for k, v in found.items()} if len(calls) == 12 else found

    with monkeypatch.context() as patch:
        patch.setattr(training, "losses_of", breaks)
        with pytest.raises(
            DivergedError,
            match=r"^step \d+: the loss is nan \(pooled nan, hidden nan\).*learning_rate",
        ):
            distill(embedder, TEXTS, tmp_path / "out", **QUICK)
    assert distill(embedder, TEXTS, tmp_path / "out", **QUICK).resumed_step == 5
    distill(embedder, TEXTS, tmp_path / "whole", **QUICK)
    assert_same_weights(tmp_path / "whole", tmp_path / "out")


@pytest.mark.parametrize("full", ["state", "result"])
def test_a_full_disk(
    tmp_path: Path, embedder: Path, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if full == "state":
            save, calls = StateFile.save, []

            def fails_later(self: StateFile, *arguments: Any) -> None:
                calls.append(arguments)
                if len(calls) == 3:
                    no_space()
                save(self, *arguments)

            patch.setattr(state.StateFile, "save", fails_later)
        else:
            patch.setattr("fastdistil.distill.result.save", no_space)
        with pytest.raises(OSError, match=r"no space left.* kept in .*out\.partial: make room"):
            distill(embedder, TEXTS, tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()
    assert distill(embedder, TEXTS, tmp_path / "out", **QUICK).resumed_step >= 10
    distill(embedder, TEXTS, tmp_path / "whole", **QUICK)
    assert_same_weights(tmp_path / "whole", tmp_path / "out")


def test_a_full_disk_under_the_cache(
    tmp_path: Path, embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(teacher_cache.ShardStore, "write", no_space)
    with pytest.raises(OSError, match=r"no space left.* kept in .*cache: make room"):
        distill(embedder, TEXTS, tmp_path / "out", teacher_cache=tmp_path / "cache", **QUICK)


def test_a_student_that_reads_other_tokens(tmp_path: Path, embedder: Path) -> None:
    other = write_task_checkpoint(tmp_path / "other", "DistilBert", "Model", more_tokens=3)
    with pytest.raises(ValueError, match=r"^student: its vocabulary has \d+ tokens, the teacher's"):
        distill(embedder, TEXTS, tmp_path / "out", student=other, **QUICK)
    same_size = write_task_checkpoint(tmp_path / "same size", "DistilBert", "Model")
    written = json.loads((same_size / "tokenizer.json").read_text())
    vocabulary = written["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (same_size / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"'[ab]' is token \d+ there and \d+ here .*2 that differ"):
        distill(embedder, TEXTS, tmp_path / "out", student=same_size, **QUICK)
    assert not (tmp_path / "out.partial").exists()


def test_a_student_that_cannot_follow(tmp_path: Path, embedder: Path) -> None:
    short = write_task_checkpoint(tmp_path / "short", "DistilBert", "Model", positions=12)
    with pytest.raises(ValueError, match=r"^student: it takes 12 tokens, .* give max_length=12"):
        distill(embedder, TEXTS, tmp_path / "out", student=short, **QUICK)
    narrow = write_task_checkpoint(tmp_path / "narrow", "DistilBert", "Model")
    config = json.loads((narrow / "config.json").read_text())
    model = fastdistil.DistilBertModel(
        fastdistil.EncoderConfig(
            vocab_size=config["vocab_size"],
            hidden_size=24,
            num_layers=1,
            num_heads=3,
            intermediate_size=40,
            max_positions=64,
        )
    )
    model.save_pretrained(narrow)
    for changes, cure in (({}, "give another"), ({"hidden_weight": 0}, "give another")):
        with pytest.raises(ValueError, match=rf"^student: its hidden states have 24 .*{cure}"):
            distill(embedder, TEXTS, tmp_path / "out", student=narrow, **{**QUICK, **changes})
    teacher = write_task_checkpoint(
        tmp_path / "classifier", "Bert", HEADS["classification"], num_labels=2
    )
    with pytest.raises(ValueError, match=r"^student: .*give hidden_weight=0, or another"):
        distill(teacher, TEXTS, tmp_path / "out", student=narrow, **QUICK)
    distill(teacher, TEXTS, tmp_path / "out", student=narrow, hidden_weight=0, **QUICK)


def test_another_config_is_another_teacher(tmp_path: Path, embedder: Path) -> None:
    """The same weights under other attention heads give other states."""
    distill(embedder, TEXTS, tmp_path / "one", teacher_cache=tmp_path / "cache", **QUICK)
    config = json.loads((embedder / "config.json").read_text())
    (embedder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 6}))
    with pytest.raises(ResumeError, match=r"a teacher's outputs with other settings"):
        distill(embedder, TEXTS, tmp_path / "two", teacher_cache=tmp_path / "cache", **QUICK)


def test_bad_requests(tmp_path: Path, embedder: Path) -> None:
    def fails(kind: type[Exception], message: str, texts: Any = TEXTS, **changes: Any) -> None:
        with pytest.raises(kind, match=message):
            distill(embedder, texts, tmp_path / "out", **{**QUICK, **changes})
        assert not (tmp_path / "out.partial").exists()

    (tmp_path / "empty.txt").write_text("")
    fails(InputError, r"empty\.txt: no texts", tmp_path / "empty.txt")
    fails(FileNotFoundError, "missing", tmp_path / "missing.txt")
    fails(ValueError, "layers: got 3; the teacher has 2", layers=3)
    fails(ValueError, "layers: got 2; the teacher's are 0 to 1", layers=(2,))
    fails(ValueError, "lacks a masked language model head", objective="mlm")
    fails(ValueError, "lacks a sequence classification head", objective="classification")
    fails(ValueError, "labels: only the classification objective", labels=LABELS)
    fails(ValueError, "max_length is 2", max_length=2)
    fails(ValueError, "held_out: .*1 different text", ["the same"] * 3)
    fails(ValueError, "eval_labels: given without eval_texts", eval_labels=[0])
    fails(ValueError, "text_column: got 'body', but texts is no file", text_column="body")
    fails(ValueError, r"^teacher_precision: .*fp8", teacher_precision="fp8")
    fails(ValueError, "^device: nowhere cannot be used here", device="nowhere")
    fails(UsageError, "teacher_cache: .*is in .*out", teacher_cache=tmp_path / "out" / "cache")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    fails(UsageError, "out: .*out holds something: choose another name")
    assert (tmp_path / "out" / "mine").exists()


def test_labels_that_are_not_the_teachers(tmp_path: Path) -> None:
    names = {0: "short", 1: "long"}
    folder = write_task_checkpoint(
        tmp_path / "teacher", "Bert", HEADS["classification"], id2label=names
    )
    with pytest.raises(ValueError, match=r"labels: 'wide' of texts, text 3 .*they are short, long"):
        distill(
            folder, TEXTS, tmp_path / "out", **{**QUICK, "labels": ([0, 1, "1", "wide"] * 40)[:150]}
        )
    kinds = [names[1], 0, "1", "short"] * 38
    summary = distill(folder, TEXTS, tmp_path / "out", **{**QUICK, "labels": kinds[:150]})
    assert {"accuracy", "agreement", "hard"} <= summary.after.keys()


def test_labels_whose_names_are_numbers(tmp_path: Path) -> None:
    """An int is a label's number, a string its name."""
    names = {0: "1", 1: "2", 2: "3"}
    folder = write_task_checkpoint(
        tmp_path / "teacher", "DistilBert", HEADS["classification"], id2label=names
    )
    numbers = [0, 1, 2] * 50
    for name, labels in (("numbers", numbers), ("names", [names[number] for number in numbers])):
        distill(folder, TEXTS, tmp_path / name, labels=labels, **QUICK)
    assert_same_weights(tmp_path / "numbers", tmp_path / "names")
    with pytest.raises(ValueError, match="labels: 3 of texts, text 0"):
        distill(folder, TEXTS, tmp_path / "out", labels=[3] * 150, **QUICK)


def test_teachers_that_there_is_no_objective_for(tmp_path: Path) -> None:
    tagger = write_task_checkpoint(tmp_path / "tagger", "Bert", "ForTokenClassification")
    with pytest.raises(
        ValueError, match=r"^objective: the teacher is a BertForTokenClassification"
    ):
        distill(tagger, TEXTS, tmp_path / "out", **QUICK)
    assert distill(tagger, TEXTS, tmp_path / "out", objective="embedding", **QUICK).after
    score = write_task_checkpoint(tmp_path / "score", "Bert", HEADS["classification"], num_labels=1)
    with pytest.raises(ValueError, match=r"^teacher: its head has one output"):
        distill(score, TEXTS, tmp_path / "other", **QUICK)


def test_errors_in_a_file_name_its_labels(tmp_path: Path) -> None:
    folder = write_task_checkpoint(tmp_path / "teacher", "Bert", HEADS["classification"])
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"text": "a", "y": 0.5}) + "\n")
    for column, message in (
        ("y", "'y' is a JSON number; a label must be a string or an integer"),
        ("z", r"no key 'z'.* name one with --label-column \(label_column=\)"),
    ):
        with pytest.raises(InputError, match=message):
            distill(folder, file, tmp_path / "out", label_column=column, **QUICK)


def test_files_with_labels(tmp_path: Path) -> None:
    folder = write_task_checkpoint(
        tmp_path / "teacher",
        "DistilBert",
        HEADS["classification"],
        id2label={0: "short", 1: "long"},
    )
    lines = [json.dumps({"t": t, "y": y}) for t, y in zip(TEXTS, LABELS, strict=True)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    asked = {**QUICK, "text_column": "t", "label_column": "y"}
    source = tmp_path / "texts.jsonl"
    distill(folder, source, tmp_path / "file", **asked)
    distill(folder, TEXTS, tmp_path / "list", labels=LABELS, **QUICK)
    assert_same_weights(tmp_path / "file", tmp_path / "list")
