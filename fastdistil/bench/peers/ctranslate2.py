"""CTranslate2, through its own converters of transformers' models."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..engines import Engine, Floats, Variant, tokens_of_batches
from ..workloads import Workload

# bf16 it has on GPUs only: on a CPU it "does not support efficient bfloat16 computation".
_COMPUTE_TYPES = {"fp32": "float32", "int8": "int8_float32"}


def ctranslate2(model: Any, precision: str) -> Engine:
    """CTranslate2 on lists of token ids: all but its attention drops the padding.

    Its documentation leaves open how batches share the cores: one at a time on all of them, or as
    many at once as there are cores.
    """
    ct2 = _with_an_openmp_of_its_own()
    threads = torch.get_num_threads()
    variants = []
    with tempfile.TemporaryDirectory() as folder:
        _convert(model, folder)
        for inter, intra in dict.fromkeys(((1, threads), (threads, 1))):
            encoder = ct2.Encoder(
                folder,
                compute_type=_COMPUTE_TYPES[precision],
                inter_threads=inter,
                intra_threads=intra,
            )
            configuration = f"inter_threads {inter}, intra_threads {intra}"
            variants.append(Variant(configuration, _run(encoder, inter), _rows))
    return Engine(f"CTranslate2 {precision}", precision, tuple(variants))


def _with_an_openmp_of_its_own() -> Any:
    """The package, whose OpenMP is the one that it brings.

    Else it runs on torch's, which then has more threads than there are CPUs and no longer lets any
    of them spin: eager PyTorch in bf16 took 1.7 times as long for one sentence of 16 tokens.
    """
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))
    try:
        import ctranslate2
    finally:
        sys.setdlopenflags(flags)
    return ctranslate2


@torch.no_grad()
def _convert(model: Any, folder: str) -> None:
    """Write the model as CTranslate2 reads it; it is quantised when it is loaded."""
    from ctranslate2.converters.transformers import BertLoader, DistilBertLoader

    # Not TransformersConverter: it wants a folder with a tokenizer, and fails on a BertConfig of
    # transformers 5 ("'BertConfig' object has no attribute 'position_embedding_type'").
    size = model.config.vocab_size
    vocabulary = {f"token {index}": index for index in range(size)}  # only ids are ever fed
    tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary, unk_token="token 0")
    if model.config.model_type == "bert":
        spec = BertLoader()(_as_its_loader_wants(model), tokenizer)
        del spec.pooler_dense, spec.pooler_activation  # nobody is timed with a pooler
    else:
        spec = DistilBertLoader()(model, tokenizer)
    spec.validate()
    spec.optimize()
    spec.save(folder)


def _as_its_loader_wants(bert: Any) -> Any:
    """With what transformers 5 no longer says of a BertModel, and a pooler; not all have one."""
    config = SimpleNamespace(**{**bert.config.to_dict(), "position_embedding_type": "absolute"})
    pooler = SimpleNamespace(dense=torch.nn.Linear(config.hidden_size, config.hidden_size))
    return SimpleNamespace(
        config=config, embeddings=bert.embeddings, encoder=bert.encoder, pooler=pooler
    )


def _run(encoder: Any, at_once: int) -> Callable[[Workload], list[Any]]:
    each = map if at_once == 1 else ThreadPoolExecutor(at_once).map

    def last_hidden_state(sequences: Sequence[Sequence[int]]) -> Any:
        return encoder.forward_batch(sequences).last_hidden_state

    def run(workload: Workload) -> list[Any]:
        starts = range(0, len(workload.sequences), workload.batch)
        batches = (workload.sequences[start : start + workload.batch] for start in starts)
        return list(each(last_hidden_state, batches))

    return run


def _rows(workload: Workload, outputs: Sequence[Any]) -> Floats:
    return tokens_of_batches(workload, [np.asarray(output) for output in outputs])
