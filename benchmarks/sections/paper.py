"""DistilBERT's paper measured again."""

from __future__ import annotations

from benchmarks.paper import table
from fastdistil.bench.results import Results
from fastdistil.bench.tables import markdown_table

from . import Block


def blocks(results: Results) -> list[Block]:
    return [
        markdown_table(table.SIZES_HEADER, table.size_rows(results)),
        table.note(results),
        markdown_table(table.GAINS_HEADER, table.gain_rows(results)),
        "*Distillation*: BERT-base to DistilBERT-base by the same engine. *Kernels*: eager PyTorch "
        "to this engine at the same precision, on DistilBERT-base; *kernels, precision*: eager "
        "PyTorch fp32 to this engine. *Everything*: BERT-base by eager PyTorch fp32 to "
        "DistilBERT-base by this engine.",
    ]
