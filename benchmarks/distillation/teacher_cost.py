"""Part 4: what a teacher's forwards cost, by what runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy import refused
from benchmarks.corpora import minilm_folder
from benchmarks.distillation import embedding
from fastdistil.bench.ours import PRECISIONS
from fastdistil.bench.race import least_cosine
from fastdistil.bench.timing import alternate, say
from fastdistil.bench.workloads import pad
from fastdistil.checkpoint import Checkpoint, load_checkpoint
from fastdistil.distill.batches import StepPlan, TrainingBatch, make_batch
from fastdistil.distill.corpus import Texts, tokenised
from fastdistil.distill.teacher import Teacher
from fastdistil.tokenization import TextTokenizer

EAGER = "eager PyTorch fp32"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Amount:
    """How much of everything.

    Attributes:
        batches: of the first epoch, in a timed pass.
        rounds: timed passes of every engine.
    """

    batches: int = 40
    rounds: int = 5


FULL = Amount()
QUICK = Amount(batches=3, rounds=2)


def measure(amount: Amount, learned: embedding.Amount) -> dict[str, Any]:
    """Seconds of the teacher of part 1 over batches that its student is trained on.

    Args:
        learned: the amount of part 1, which decides the batches.

    Raises:
        LookupError: the weights or the sentences cannot be had here.
    """
    folder = minilm_folder()
    checkpoint = load_checkpoint(folder)
    batches = training_batches(checkpoint, embedding.sentences(learned)[1], amount.batches)
    missing: list[str] = []
    found = engines(checkpoint, batches, missing)
    expected = _doubles(found[EAGER](batches[0]))
    cosines = {
        name: least_cosine(_doubles(run(batches[0])), expected) for name, run in found.items()
    }
    say(f"turns of {len(found)} teachers")
    turns = alternate({name: _over(run, batches) for name, run in found.items()}, amount.rounds)
    tokens = sum(batch.packed.num_tokens for batch in batches)
    padded = sum(batch.packed.num_sequences * batch.packed.max_seqlen for batch in batches)
    return {
        "batches": len(batches),
        "batch_tokens": embedding.SETTINGS["batch_tokens"],
        "tokens": tokens,
        "padding": 1 - tokens / padded,
        "engines": [
            {"name": name, "least_cosine": cosines[name], "seconds": list(turns[name].seconds)}
            for name in found
        ],
        "missing": missing,
    }


def training_batches(
    checkpoint: Checkpoint, texts: Sequence[str], count: int
) -> list[TrainingBatch]:
    """The first ones of a training on the texts."""
    tokenizer = TextTokenizer.from_folder(checkpoint.folder, checkpoint.config.max_positions)
    assert tokenizer is not None, "the model of the demonstration has a tokenizer"
    corpus = tokenised(Texts(texts, None, "texts"), tokenizer, None)
    plan = StepPlan(corpus.lengths, embedding.SETTINGS["batch_tokens"], 1, 1, None, seed=0)
    return [
        make_batch(corpus, texts, None, 0)
        for step in islice(plan.after(0), count)
        for texts in step.pieces
    ]


Run = Callable[[TrainingBatch], Tensor]


def engines(
    checkpoint: Checkpoint, batches: Sequence[TrainingBatch], missing: list[str]
) -> dict[str, Run]:
    """From a batch to its tokens' last hidden states [T, D]: eager PyTorch, and our teachers.

    Padded batches are made in here, packed ones are there already: neither is timed.

    Args:
        missing: gets a line for each precision that nothing here runs.
    """
    eager = eager_teacher(checkpoint.folder, batches)

    def autocast(batch: TrainingBatch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return eager(batch)

    found: dict[str, Run] = {EAGER: eager, "eager PyTorch bf16": autocast}
    for precision in reversed(PRECISIONS):
        if (why := refused(checkpoint.folder, precision)) is not None:
            missing.append(f"fastdistil {precision}: {why}")
            continue
        found[f"fastdistil {precision}"] = Teacher(checkpoint, _CPU, precision).hidden
    return found


def eager_teacher(folder: Path, batches: Sequence[TrainingBatch]) -> Run:
    """transformers' model, in fp32 or under the caller's autocast."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    # Without its pooler, which no student is asked for.
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    inputs: dict[int, Mapping[str, Tensor]] = {}
    for batch in batches:
        ends = batch.packed.cu_seqlens[1:-1].numpy()
        padded = pad(np.split(batch.packed.input_ids.numpy(), ends))
        inputs[id(batch)] = {
            "input_ids": torch.from_numpy(padded.input_ids),
            "attention_mask": torch.from_numpy(padded.attention_mask),
        }

    @torch.inference_mode()
    def run(batch: TrainingBatch) -> Tensor:
        given = inputs[id(batch)]
        hidden: Tensor = model(**given).last_hidden_state
        return hidden[given["attention_mask"].bool()]

    return run


def _over(run: Run, batches: Sequence[TrainingBatch]) -> Callable[[], object]:
    def all_batches() -> None:
        for batch in batches:
            run(batch)

    return all_batches


def _doubles(hidden: Tensor) -> Any:
    return hidden.double().numpy()
