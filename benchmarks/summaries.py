"""Extractive summaries of news, held against the first three sentences and against chance.

    python -m benchmarks.summaries                   # some minutes on two cores
    python -m benchmarks.summaries --quick
    python -m benchmarks.summaries --json FILE

BBC articles without their headlines (see `corpora`), summarised by `fastdistil.tasks.summarization`
with all-MiniLM-L6-v2. Nobody has written summaries of them, so two measures stand in:

- *headline*: ROUGE-1 and ROUGE-2 (Lin 2004; clipped n-gram overlap, lower case, no stemming)
  against the headline, which is no part of what is summarised. An editor's view of what matters,
  but of a few words, and of one who writes the first paragraph to match: it favours the lead.
- *article*: 1 minus the Jensen-Shannon divergence (base 2) between the words of summary and
  article, function words left out. It needs no written summary and goes well with people's
  judgement (Louis and Nenkova, Computational Linguistics 39, 2013). It favours what says the common
  words.

Both grow with length, and central sentences are long ones: a budget of words is the fairer
comparison, 3 sentences the usual one. Neither measure says whether a summary reads well. "Of the
first 3" is the share of its sentences that are among the article's first three. Differences are
means over articles, with 95% intervals of a paired bootstrap. Settings were chosen on the first 700
articles, so these are left out here.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import corpora
from benchmarks.command import add_json_option, add_quick_option, command_parser, save
from fastdistil import Encoder
from fastdistil.bench.environment import describe, environment
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.timing import say
from fastdistil.tasks.centrality import choose
from fastdistil.tasks.sentence_split import sentence_spans
from fastdistil.tasks.summarization import SummarizationPipeline, count_words

SETTINGS_CHOSEN_ON = 700
RANDOM_DRAWS = 20
RESAMPLES = 2000
BUDGETS: dict[str, dict[str, Any]] = {"3 sentences": {"sentences": 3}, "65 words": {"words": 65}}
METHODS: dict[str, dict[str, Any]] = {
    "lead": {"method": "lead"},
    "LexRank": {"method": "lexrank"},
    "LexRank, lead_bias=1": {"method": "lexrank", "lead_bias": 1.0},
    "MMR": {"method": "mmr"},
    "MMR, lead_bias=1": {"method": "mmr", "lead_bias": 1.0},
}
MEASURES = ("headline ROUGE-1 recall", "headline ROUGE-1 F1", "headline ROUGE-2 recall", "article")
LEAD = 3
HEADER = ("summary", *MEASURES, "words", "of the first 3")
COMPARED = ("headline ROUGE-1 recall", "article")

_WORD = re.compile(r"\w+")
# Function words, and what a reporter says of everybody: "Mr X said".
_FUNCTION_WORDS = """
    a about after again against all also am an and any are as at be because been before being
    between both but by can could did do does doing down during each few for from further had has
    have having he her here hers herself him himself his how i if in into is it its itself just me
    more most mr mrs ms my myself no nor not now of off on once only or other our ours out over own
    s said same she should so some such t than that the their theirs them then there these they
    this those through to too under until up very was we were what when where which while who whom
    why will with would you your yours
"""
_IS_FUNCTION_WORD = frozenset(_FUNCTION_WORDS.split()).__contains__


@dataclass(frozen=True)
class Article:
    headline: str
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("benchmarks.summaries", __doc__)
    add_quick_option(parser)
    add_json_option(parser, "summaries.json")
    options = parser.parse_args(arguments)
    try:
        results = measure(quick=options.quick)
    except LookupError as missing:
        sys.exit(f"summaries: {missing}")
    print(report(results))
    save(options.json, results)
    return 0


def measure(*, quick: bool) -> dict[str, Any]:
    """Run everything; what comes back is what `report` prints and `--json` writes."""
    articles = load_articles()[SETTINGS_CHOSEN_ON:]
    articles = articles[:150] if quick else articles
    summarize = SummarizationPipeline(Encoder(corpora.minilm_folder()))
    budgets = []
    for budget, limit in BUDGETS.items():
        say(f"{budget}: {len(articles)} articles")
        scores = {"random": random_scores(articles, limit)}
        for name, options in METHODS.items():
            summaries = summarize([article.text for article in articles], **options, **limit)
            scores[name] = scores_of(articles, summaries)
        budgets.append({"budget": budget, "methods": summarised(scores)})
    return {
        "environment": environment(),
        "quick": quick,
        "articles": len(articles),
        "precision": summarize.encoder.model.explain()["precision"],
        "budgets": budgets,
    }


def load_articles() -> list[Article]:
    """Headlines and texts.

    Raises:
        LookupError: they cannot be had here.
    """
    return [Article(*each) for each in corpora.bbc_articles_and_headlines()]


def random_scores(articles: Sequence[Article], limit: Mapping[str, int]) -> NDArray[np.float64]:
    """The mean of RANDOM_DRAWS summaries of sentences drawn at random, [articles, columns]."""
    generator = np.random.default_rng(0)
    sentences = [_sentences(article.text) for article in articles]
    total = np.zeros((len(articles), len(HEADER) - 1))
    for _ in range(RANDOM_DRAWS):
        total += scores_of(articles, [_drawn(each, limit, generator) for each in sentences])
    return total / RANDOM_DRAWS


def _sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


def _drawn(
    sentences: Sequence[str], limit: Mapping[str, int], generator: np.random.Generator
) -> dict[str, Any]:
    """A summary of random sentences, as many as are allowed, by the rules of the pipeline."""
    words = np.array([count_words(sentence) for sentence in sentences], np.int64)
    order = generator.random(len(sentences))
    nothing = np.zeros((len(sentences), 0))
    chosen = choose(
        order,
        nothing,
        most=limit.get("sentences", len(sentences)),
        costs=words if "words" in limit else None,
        budget=limit.get("words", 0),
    )
    chosen = sorted(chosen or [int(order.argmax())])
    return {"summary_text": " ".join(sentences[i] for i in chosen), "sentences": chosen}


def scores_of(
    articles: Sequence[Article], summaries: Sequence[Mapping[str, Any]]
) -> NDArray[np.float64]:
    """The measures of each summary and what it is like, [articles, columns of HEADER but one].

    Args:
        summaries: results of the pipeline.
    """
    rows = []
    for article, summary in zip(articles, summaries, strict=True):
        text, chosen = summary["summary_text"], summary["sentences"]
        recall, f1 = rouge(text, article.headline, 1)
        recall_of_pairs, _ = rouge(text, article.headline, 2)
        leading = sum(index < LEAD for index in chosen) / len(chosen)
        measures = (recall, f1, recall_of_pairs, likeness(text, article.text))
        rows.append((*measures, count_words(text), leading))
    return np.array(rows)


def rouge(summary: str, reference: str, n: int) -> tuple[float, float]:
    """ROUGE-n: recall and F1 of n-grams, each counted as often as it is in both.

    0 where the reference has no n-gram.
    """
    found, wanted = _n_grams(summary, n), _n_grams(reference, n)
    common = (found & wanted).total()
    recall = common / max(1, wanted.total())
    precision = common / max(1, found.total())
    return recall, 2 * recall * precision / (recall + precision) if common else 0.0


def _n_grams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def likeness(summary: str, article: str) -> float:
    """1 minus the Jensen-Shannon divergence of the words that are not function words, 0 to 1."""
    ours, theirs = _content(summary), _content(article)
    if not ours or not theirs:
        return 0.0
    words = sorted(ours | theirs)
    p = np.array([ours[word] for word in words]) / ours.total()
    q = np.array([theirs[word] for word in words]) / theirs.total()
    middle = (p + q) / 2
    return 1 - (_divergence(p, middle) + _divergence(q, middle)) / 2


def _content(text: str) -> Counter[str]:
    return Counter(itertools.filterfalse(_IS_FUNCTION_WORD, _WORD.findall(text.lower())))


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Kullback and Leibler's, in bits."""
    seen = p > 0
    return float((p[seen] * np.log2(p[seen] / q[seen])).sum())


def summarised(scores: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Means of each method, and how it differs from the lead and from chance."""
    return [
        {
            "name": name,
            "means": dict(zip(HEADER[1:], values.mean(axis=0).tolist(), strict=True)),
            "differences": {
                other: differences(values, scores[other])
                for other in ("lead", "random")
                if other != name
            },
        }
        for name, values in scores.items()
    ]


def differences(
    ours: NDArray[np.float64], theirs: NDArray[np.float64]
) -> dict[str, tuple[float, float, float]]:
    """The mean difference of each measure in COMPARED, and its 95% interval.

    Args:
        ours, theirs: [articles, columns].
    """
    columns = [HEADER[1:].index(name) for name in COMPARED]
    pairs = (ours - theirs)[:, columns]
    count = len(pairs)
    # How often each article is drawn in a resample is all that its mean depends on.
    drawn = np.random.default_rng(0).multinomial(count, [1 / count] * count, RESAMPLES)
    low, high = np.quantile(drawn @ pairs / count, (0.025, 0.975), axis=0)
    each = zip(pairs.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)
    return dict(zip(COMPARED, each, strict=True))


def report(results: Mapping[str, Any]) -> str:
    """Everything that was measured, in Markdown."""
    parts = []
    for budget in results["budgets"]:
        parts.append(f"**{budget['budget']}**, means over {results['articles']:,} articles:")
        parts.append(markdown_table(HEADER, [_row(method) for method in budget["methods"]]))
        for other in ("lead", "random"):
            parts.append(f"Difference to {other} (95% interval):")
            header = ("summary", *COMPARED)
            parts.append(markdown_table(header, _difference_rows(budget["methods"], other)))
    parts.append(f"all-MiniLM-L6-v2, {results['precision']}. {describe(results['environment'])}")
    if results["quick"]:
        parts.append("A quick run: few articles. Not for publishing.")
    return "\n\n".join(parts)


def _row(method: Mapping[str, Any]) -> tuple[str, ...]:
    means = method["means"]
    figures = (f"{means[name]:.4f}" for name in MEASURES)
    return method["name"], *figures, f"{means['words']:.1f}", f"{means['of the first 3']:.0%}"


def _difference_rows(methods: Sequence[Mapping[str, Any]], other: str) -> list[tuple[str, ...]]:
    return [
        (method["name"], *(_interval(*method["differences"][other][name]) for name in COMPARED))
        for method in methods
        if other in method["differences"]
    ]


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    sys.exit(main())
