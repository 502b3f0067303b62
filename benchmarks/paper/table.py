"""The paper's table, measured again: results to rows for `markdown_table`."""

from __future__ import annotations

from fastdistil.bench.results import Results, Row
from fastdistil.bench.timing import ratio

TEACHER, STUDENT = "BERT-base", "DistilBERT-base"
_AS_THE_PAPER = "eager PyTorch fp32"

SIZES_HEADER = ("model", "layers", "parameters (millions)", "the paper's", "MB on disk, fp32")
PAPER_MILLIONS = {TEACHER: 110, STUDENT: 66}

# distillation: BERT-base to DistilBERT-base, same engine.
# kernels: eager PyTorch to this engine, same precision, on DistilBERT-base.
# kernels, precision: eager PyTorch fp32 to this engine, on DistilBERT-base.
# everything: BERT-base by eager PyTorch fp32 to DistilBERT-base by this engine.
GAINS_HEADER = (
    "engine",
    f"{TEACHER} (s)",
    f"{STUDENT} (s)",
    "distillation",
    "kernels",
    "kernels, precision",
    "everything",
)
PAPER_SECONDS = {TEACHER: 668, STUDENT: 410}
_NOTHING = "-"


def size_rows(results: Results) -> list[tuple[str, ...]]:
    """Each model's sizes, under SIZES_HEADER."""
    facts = {row.info["model"]: row.info for row in results.rows}
    return [
        (
            model,
            str(info["layers"]),
            f"{info['parameters'] / 1e6:.1f}",
            str(PAPER_MILLIONS[model]),
            f"{info['bytes_on_disk'] / 1e6:.0f}",
        )
        for model, info in facts.items()
    ]


def gain_rows(results: Results) -> list[tuple[str, ...]]:
    """Seconds of a whole pass by engine and model, and how many times as fast, under GAINS_HEADER.

    The paper's own row comes first. "-" stands for what was not measured, or has no meaning.
    """
    found = {(row.info["model"], row.info["engine"]): row for row in results.rows}
    paper = [f"{PAPER_SECONDS[model]}" for model in (TEACHER, STUDENT)]
    gain = f"{PAPER_SECONDS[TEACHER] / PAPER_SECONDS[STUDENT]:.2f}x"
    rows = [("the paper, in 2019", *paper, gain, *[_NOTHING] * 2, gain)]
    for engine in dict.fromkeys(row.info["engine"] for row in results.rows):
        teacher, student = (found.get((model, engine)) for model in (TEACHER, STUDENT))
        precision = engine.rpartition(" ")[2]
        same = found.get((STUDENT, f"eager PyTorch {precision}"))
        gains = (
            _times(teacher, student),
            _times(same, student),
            _times(found.get((STUDENT, _AS_THE_PAPER)), student),
            _times(found.get((TEACHER, _AS_THE_PAPER)), student),
        )
        rows.append((engine, _pass_seconds(teacher), _pass_seconds(student), *gains))
    return rows


def note(results: Results) -> str:
    """What was counted and what was run, in a few sentences."""
    info = results.rows[0].info
    run, whole = info["sequences"], info["pairs_of_a_pass"]
    return (
        "Parameters are the encoder's with its embeddings, without a pooler or a head. "
        f"Seconds of a pass over {whole:,} pairs at batch 1, scaled: of {whole:,}, {run:,} were "
        f"run, {info['tokens'] / run:.1f} tokens each on average. They are real sentences, but not "
        "STS-B's, and this is another machine than the paper's (one Intel Xeon E5-2690 v3)."
    )


def _pass_seconds(row: Row | None) -> str:
    if row is None:
        return _NOTHING
    timing, info = row.timing, row.info
    seconds = timing.median * info["pairs_of_a_pass"] / info["sequences"]
    return f"{seconds:.1f} ±{timing.spread:.0%}"


def _times(before: Row | None, after: Row | None) -> str:
    if before is None or after is None:
        return _NOTHING
    return f"{ratio(after.timing, before.timing):.2f}x"
