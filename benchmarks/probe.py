"""A real task in each precision: is a film praised or panned? Linear probes on frozen vectors.

    python -m benchmarks.probe                       # some two minutes on two cores
    python -m benchmarks.probe --sentences 2000      # a look
    python -m benchmarks.probe --precisions fp32,int8
    python -m benchmarks.probe --json                # also writes results/<device>/probe.json

Vectors: MiniLM's real weights on the sentences of film reviews that come with vaderSentiment, each
with the mean of some 18 people's scores from -4 to 4. All figures are from five-fold cross
validation: every sentence is judged once, by a probe that has not seen it.

- accuracy, own probe: logistic regression on this precision's own vectors, for the score's sign.
- accuracy, fp32 probe: the one trained on fp32 vectors, asked about this precision's: what happens
  to an index or a classifier that was built in another precision.
- Spearman: rank correlation of people's scores with those that ridge regression expects.

Exits with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdistil
from benchmarks.accuracy import refused
from benchmarks.command import add_json_option, command_parser, save
from benchmarks.corpora import minilm_folder, movie_reviews
from fastdistil.backends import PRECISIONS
from fastdistil.bench.environment import describe, environment
from fastdistil.bench.peers import known_names
from fastdistil.bench.tables import markdown_table

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# How far each of the three figures may be from fp32's, in points (hundredths).
PROMISED_POINTS = {"bf16": 0.5, "int8": 0.5}

FOLDS = 5
# Of a score so close to 0 people do not agree on the sign: the means of such sentences have a
# standard error of about 0.25 themselves. They are left out of the accuracy, not of Spearman's.
NEUTRAL = 0.25
# L2 penalty per training sentence, for features of variance 1: of the powers of ten the best for
# both figures of fp32.
PENALTY = 0.1
# Six steps are enough; probes that are not at their optimum would differ for that reason too.
NEWTON_STEPS = 25
LAST_STEP = 1e-9
FEWEST_SENTENCES = 100

HEADER = (
    "precision",
    "engine",
    "accuracy, own probe (%)",
    "accuracy, fp32 probe (%)",
    "Spearman",
    "largest difference (points)",
    "standard error (points)",
    "promise",
)


@dataclass(frozen=True)
class Linear:
    """A linear probe.

    Attributes:
        weights: [D].
        bias: added to every answer.
    """

    weights: Doubles
    bias: float

    def __call__(self, vectors: Doubles) -> Doubles:
        """Answers [N] to vectors [N, D]."""
        return vectors @ self.weights + self.bias


@dataclass(frozen=True)
class Task:
    """What vectors are asked about.

    Attributes:
        texts: N sentences.
        scores: [N], what people gave them.
    """

    texts: Sequence[str]
    scores: Doubles

    @property
    def clear(self) -> Bools:
        """[N]: whether people agree on the sign, so that there is a right answer."""
        return np.abs(self.scores) >= NEUTRAL

    @property
    def praised(self) -> Bools:
        """[clear sentences]: the right answers."""
        return self.scores[self.clear] > 0


@dataclass(frozen=True)
class Measured:
    """One precision's answers.

    Attributes:
        own: [clear sentences], whether the probe of its own vectors is right.
        fp32_probe: [clear sentences], whether the probe of fp32 vectors is right about its.
        spearman: of expected scores with people's, -1 to 1.
    """

    own: Bools
    fp32_probe: Bools
    spearman: float

    def figures(self) -> Doubles:
        """Both accuracies and the correlation, in hundredths: [3]."""
        return 100 * np.array([self.own.mean(), self.fp32_probe.mean(), self.spearman])


@dataclass(frozen=True)
class Row:
    """One precision in the results.

    Attributes:
        accuracy, fp32_probe_accuracy: percent.
        spearman: -1 to 1.
        difference: from fp32, of the three figures the one that is furthest off, in points.
        standard_error: of the differences of the accuracies, the larger one, in points.
        kept: whether the difference is within the promise; None where nothing is promised.
    """

    precision: str
    backend: str
    instruction_set: str
    accuracy: float
    fp32_probe_accuracy: float
    spearman: float
    difference: float
    standard_error: float
    kept: bool | None


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        results = measure(options.precisions, options.sentences)
    except LookupError as missing:
        sys.exit(f"probe: {missing}")
    print(report(results))
    save(options.json, results)
    return 1 if any(row["kept"] is False for row in results["precisions"]) else 0


def measure(precisions: Sequence[str], sentences: int | None = None) -> dict[str, Any]:
    """Run everything; what comes back is what `report` prints and `--json` writes.

    Args:
        precisions: names; fp32 is what they are compared with, and is always measured.
        sentences: how many; all if None.
    """
    folder = minilm_folder()
    texts, scores = movie_reviews()
    task = Task(texts[:sentences], np.array(scores[:sentences]))
    vectors, engine = encode(folder, "fp32", task.texts)
    probes = cross_fit(fit_logistic, vectors[task.clear], task.praised)
    fp32 = answers(task, vectors, probes)
    rows, skipped = [compare("fp32", engine, fp32, fp32)], []
    for precision in precisions:
        if precision == "fp32":
            continue
        refusal = refused(folder, precision)
        if refusal is not None:
            skipped.append(f"{precision}: {refusal}")
            continue
        vectors, engine = encode(folder, precision, task.texts)
        rows.append(compare(precision, engine, answers(task, vectors, probes), fp32))
    return {
        "environment": environment(),
        "sentences": len(task.texts),
        "all_sentences": len(texts),
        "clear": len(task.praised),
        "praised": int(task.praised.sum()),
        "precisions": [asdict(row) for row in rows],
        "skipped": skipped,
    }


def report(results: dict[str, Any]) -> str:
    """Everything that was measured, in Markdown."""
    clear, praised = results["clear"], results["praised"]
    promises = ", ".join(f"{name} {points}" for name, points in PROMISED_POINTS.items())
    parts = [
        markdown_table(HEADER, [_cells(row) for row in results["precisions"]]),
        f"all-MiniLM-L6-v2, {results['sentences']:,} sentences of film reviews. Accuracy is over "
        f"the {clear:,} whose score is {NEUTRAL} or more from 0; the commoner answer alone would "
        f"be right for {100 * max(praised, clear - praised) / clear:.1f} %. Promised: no figure "
        f"further from fp32's, in points (hundredths), than {promises}.",
        describe(results["environment"]),
    ]
    if results["sentences"] < results["all_sentences"]:
        parts.append(
            f"A look at a part of the sentences, where one answer is {100 / clear:.2f} points: a "
            "promise may seem broken by chance."
        )
    parts += [f"not measured: {line}" for line in results["skipped"]]
    return "\n\n".join(parts)


def encode(folder: Path, precision: str, texts: Sequence[str]) -> tuple[Doubles, dict[str, str]]:
    """Sentence vectors [N, D] as the checkpoint's files say, and `explain` of what made them."""
    encoder = fastdistil.Encoder(folder, "cpu", precision)
    print(f"encoding in {precision}", file=sys.stderr, flush=True)
    vectors = encoder.encode(texts, show_progress=True)
    return vectors.astype(np.float64), encoder.model.explain()


def answers(task: Task, vectors: Doubles, fp32_probes: Sequence[Linear]) -> Measured:
    """Train probes on the vectors [N, D] and ask them, and those of fp32, about the same."""
    clear, praised = vectors[task.clear], task.praised
    if not np.isfinite(vectors).all():
        return Measured(np.zeros_like(praised), np.zeros_like(praised), 0.0)  # nothing is right
    own = cross_fit(fit_logistic, clear, praised)
    expected = out_of_fold(cross_fit(fit_ridge, vectors, task.scores), vectors)
    return Measured(
        (out_of_fold(own, clear) > 0) == praised,
        (out_of_fold(fp32_probes, clear) > 0) == praised,
        spearman(expected, task.scores),
    )


def compare(precision: str, engine: dict[str, str], measured: Measured, fp32: Measured) -> Row:
    """The verdict on one precision."""
    figures = measured.figures()
    differences = figures - fp32.figures()
    difference = float(differences[np.abs(differences).argmax()])
    errors = [standard_error(getattr(measured, by), fp32.own) for by in ("own", "fp32_probe")]
    promised = PROMISED_POINTS.get(precision)
    own, fp32_probe, correlation = map(float, figures)
    return Row(
        precision,
        engine["backend"],
        engine["instruction_set"],
        own,
        fp32_probe,
        correlation / 100,
        difference,
        100 * max(errors),
        None if promised is None else abs(difference) <= promised,
    )


def cross_fit(
    fit: Callable[[Doubles, npt.NDArray[Any]], Linear], vectors: Doubles, targets: npt.NDArray[Any]
) -> list[Linear]:
    """FOLDS probes of vectors [N, D] and targets [N]; the k-th saw all but every FOLDS-th from k.

    Sentences come in the order of a digest of their texts, which is as good as any shuffle and
    depends on no library's generator: so folds are simply dealt out.
    """
    fold = np.arange(len(vectors)) % FOLDS
    return [fit(vectors[fold != k], targets[fold != k]) for k in range(FOLDS)]


def out_of_fold(probes: Sequence[Linear], vectors: Doubles) -> Doubles:
    """Answers [N] about vectors [N, D], each by the probe of `cross_fit` that has not seen it."""
    result = np.empty(len(vectors))
    for k, probe in enumerate(probes):
        result[k :: len(probes)] = probe(vectors[k :: len(probes)])
    return result


def fit_logistic(vectors: Doubles, labels: Bools) -> Linear:
    """L2-regularised logistic regression, by Newton's method to its optimum.

    The loss is strictly convex in all but the bias, which is not penalised.

    Args:
        vectors: [N, D], standardised in here.
        labels: [N], both kinds among them.

    Returns:
        a probe whose answers are log-odds: above 0 for True.

    Raises:
        ArithmeticError: no optimum was reached; vectors that are not finite have none.
    """
    features, mean, scale = _standardised(vectors)
    features = np.hstack([features, np.ones((len(features), 1))])
    penalty = np.full(features.shape[1], PENALTY * len(features))
    penalty[-1] = 0
    weights = np.zeros(features.shape[1])
    for _ in range(NEWTON_STEPS):
        odds = 0.5 * (1 + np.tanh(0.5 * (features @ weights)))  # the sigmoid, without overflow
        gradient = features.T @ (odds - labels) + penalty * weights
        curvature = features.T @ (features * (odds * (1 - odds))[:, None]) + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < LAST_STEP:
            return _of_raw_vectors(weights[:-1], float(weights[-1]), mean, scale)
    raise ArithmeticError(f"logistic regression is not done after {NEWTON_STEPS} Newton steps")


def fit_ridge(vectors: Doubles, targets: Doubles) -> Linear:
    """Ridge regression of targets [N] on vectors [N, D]; the bias is not penalised."""
    features, mean, scale = _standardised(vectors)
    curvature = features.T @ features + PENALTY * len(features) * np.eye(features.shape[1])
    weights = np.linalg.solve(curvature, features.T @ (targets - targets.mean()))
    return _of_raw_vectors(weights, float(targets.mean()), mean, scale)


def _standardised(vectors: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Features of mean 0 and variance 1, [N, D]; what was taken off, and divided by, [D] each."""
    mean, scale = vectors.mean(axis=0), vectors.std(axis=0)
    scale[scale == 0] = 1  # a constant says nothing, but is no error
    return (vectors - mean) / scale, mean, scale


def _of_raw_vectors(weights: Doubles, bias: float, mean: Doubles, scale: Doubles) -> Linear:
    """The probe of standardised features as one that takes vectors as they come."""
    weights = weights / scale
    return Linear(weights, bias - float(mean @ weights))


def spearman(first: Doubles, second: Doubles) -> float:
    """Rank correlation of two [N]: Pearson's of the ranks. 0 if either is constant."""
    ranks = [_ranks(values) for values in (first, second)]
    first, second = (each - each.mean() for each in ranks)
    norms = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / norms if norms else 0.0


def _ranks(values: Doubles) -> Doubles:
    """From 1 up, [N]; equal values get the mean of their places."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def standard_error(first: Bools, second: Bools) -> float:
    """Of the difference of the shares of True in two [N] about the same sentences."""
    return float((first.astype(float) - second).std() / np.sqrt(len(first)))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    measured = row["precision"] != "fp32"
    return (
        row["precision"],
        f"{row['backend']}, {row['instruction_set']}",
        f"{row['accuracy']:.2f}",
        f"{row['fp32_probe_accuracy']:.2f}",
        f"{row['spearman']:.4f}",
        f"{row['difference']:+.2f}" if measured else "-",
        f"{row['standard_error']:.2f}" if measured else "-",
        {True: "kept", False: "BROKEN", None: "-"}[row["kept"]],
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("benchmarks.probe", __doc__)
    parser.add_argument(
        "--sentences", type=_count, metavar="N", help="how many (default: all 10,605)"
    )
    parser.add_argument(
        "--precisions",
        type=_precisions,
        default="fp32,bf16,int8",
        metavar="NAME,NAME",
        help="which, beside fp32 (default: %(default)s); one that nothing here runs is skipped",
    )
    add_json_option(parser, "probe.json")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < FEWEST_SENTENCES:
        raise argparse.ArgumentTypeError(f"{text}: a number from {FEWEST_SENTENCES} up is wanted")
    return int(text)


def _precisions(text: str) -> list[str]:
    return known_names(text, [name for name in PRECISIONS if name != "auto"])


if __name__ == "__main__":
    sys.exit(main())
