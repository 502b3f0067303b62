"""fastdistil.tasks.summarization: sentences, centrality, summaries; and the benchmark of them."""

# Sentences end with the marks of many scripts here.
# ruff: noqa: RUF001

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from helpers import SOME_ENVIRONMENT
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import letter_tokenizer, write_tiny_checkpoint

from benchmarks import summaries
from fastdistil import Encoder
from fastdistil.tasks import sentence_split, summarization
from fastdistil.tasks.centrality import centroid_relevance, choose, lexrank, position_weights
from fastdistil.tasks.sentence_split import sentence_spans
from fastdistil.tasks.summarization import SummarizationPipeline, count_words


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> SummarizationPipeline:
    return SummarizationPipeline(Encoder(minilm_folder, precision="fp32"))


def unit_vectors(count: int, dim: int = 16, seed: int = 0) -> Any:
    """Alike enough for cosines on both sides of 0, as those of sentences are."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim)) + 0.4
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# --- sentences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentences",
    [
        ["Sales rose 3.5% to $1.2bn.", "They fell later!", "Why?", "Nobody knows"],
        ["Mr. Smith met Dr. J. K. Rowling vs. Gen. Lee.", "He left at once."],
        ['"Really?" he said.', '"Yes."', "(It was so.)", "He agreed."],
        ["“It is good,” she said.", "“It is not.”", "They went… home.", "And then?!"],
        ["He works at Acme Inc. and likes it.", "She works at Acme Inc.", "The firm grew."],
        ["The U.S. Senate voted.", "He lives in the U.S.", "It is large."],
        ["At 5 p.m. Tuesday it rained.", "It stopped at 6 p.m.", "The sun came out."],
        ["No. 10 said no.", "No.", "See fig. 3, p. 7 and Jan. 5.", "Done."],
        ["Visit example.com or 10.0.0.1 now.", "Yahoo! was sold.", "Wait... what?"],
        ["Es ist z.B. 5 Uhr.", "Él dijo: ¿qué?", "¡Vamos!"],
        ["हाँ।", "नहीं।", "هل هذا صحيح؟", "نعم."],
    ],
)
def test_sentences_with_spaces_between(sentences: list[str]) -> None:
    assert split(" ".join(sentences)) == sentences


def test_sentences_without_spaces_between() -> None:
    sentences = ["今日は晴れ。", "明日は雨！", "「本当？」", "３．５度です。", "終わり"]
    assert split("".join(sentences)) == sentences


def test_lines() -> None:
    wrapped = "A line that is long enough to have been wrapped by somebody\nat eighty columns."
    text = f"A headline\n{wrapped} Next.\r\n\r\nA paragraph\n\n- one\n- two\n1. First\n2) Second"
    expected = ["A headline", wrapped, "Next.", "A paragraph"]
    assert split(text) == [*expected, "- one", "- two", "1. First", "2) Second"]
    assert split("A headline that\ngoes on") == ["A headline that\ngoes on"]


@pytest.mark.parametrize("text", ["", " \n\t ", "\u3000"])
def test_no_sentences(text: str) -> None:
    assert sentence_spans(text) == []


# What makes the rules meet: stops, spaces, line ends, quotes, capitals, abbreviations, full width.
_MARKS = """. ! ? … 。 ؟ " ” ( ) 「 a B 1 é 字 😀 - • : Mr U.S Inc The No"""
PIECES = st.sampled_from([*_MARKS.split(), " ", "\n", "\r\n", "\u2028", "\x1f", "\ud800", "word "])


@given(st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=60), st.integers(1, 12))
def test_spans_cover_everything_but_space(text: str, longest: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentence_split, "LONGEST", longest)
        spans = sentence_spans(text)
    covered = [0] * len(text)
    end_before = 0
    for start, end in spans:
        assert end_before <= start < end <= len(text)
        assert not text[start].isspace()
        assert not text[end - 1].isspace()
        assert end - start <= longest
        covered[start:end] = [1] * (end - start)
        end_before = end
    assert all(c or character.isspace() for c, character in zip(covered, text, strict=True))


def test_long_sentences_are_cut_at_spaces() -> None:
    pieces = split("word " * 1000 + "x" * 2500)
    assert max(map(len, pieces)) <= sentence_split.LONGEST
    assert set(" ".join(pieces).split()) == {"word", "x" * 1000, "x" * 500}


@pytest.mark.parametrize(
    "piece", [".", " ", ". ", ".\n", "a.", '."', ".(", "a\n", "\n ", "U.", "1. ", "x", "(", "e.g. "]
)
def test_megabytes(piece: str) -> None:
    """Time is linear; anything else would not come back today."""
    text = piece * (100_000 // len(piece)) + "x"
    assert sum(end - start for start, end in sentence_spans(text)) >= len("".join(text.split()))


# --- centrality -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 60])
@pytest.mark.parametrize("lead_bias", [0.0, 1.0])
@pytest.mark.parametrize("damping", [0.0, 0.5, 0.95])
def test_lexrank_is_pagerank(count: int, lead_bias: float, damping: float) -> None:
    vectors = unit_vectors(count).astype(np.float64)
    weights = position_weights(count, lead_bias)
    graph = networkx.from_numpy_array((1 + vectors @ vectors.T) / 2)
    for node in graph:  # networkx reads a loop's weight as it is, numpy's diagonal
        assert graph[node][node]["weight"] == pytest.approx(1)
    want = networkx.pagerank(
        graph, alpha=damping, personalization=dict(enumerate(weights)), tol=1e-12, max_iter=1000
    )
    expected = [want[node] for node in range(count)]
    np.testing.assert_allclose(lexrank(vectors, weights, damping), expected, rtol=1e-5)
    got = lexrank(vectors.astype(np.float32), weights, damping)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_lexrank_prefers_the_middle_of_the_crowd() -> None:
    crowd = np.array([[1, 0.1, 0], [1, -0.1, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    crowd /= np.linalg.norm(crowd, axis=1, keepdims=True)
    scores = lexrank(crowd)
    assert scores.argmax() == 2
    assert scores.argmin() == 3
    assert lexrank(crowd, position_weights(4, 1.0)).argmax() == 0
    assert lexrank(crowd[:0]).shape == (0,)


def test_memory_is_linear() -> None:
    """A matrix of all pairs would take 1.6 GB."""
    vectors = unit_vectors(20_000)
    tracemalloc.start()
    scores = lexrank(vectors, position_weights(len(vectors), 1.0))
    choose(scores, vectors, most=20, diversity=0.3, redundancy=0.9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * vectors.nbytes


def test_centroid_relevance() -> None:
    vectors = unit_vectors(9).astype(np.float64)
    weights = position_weights(9, 1.0)
    for shares, given_weights in ((np.full(9, 1 / 9), None), (weights, weights)):
        mean = sum(share * vector for share, vector in zip(shares, vectors, strict=True))
        expected = [vector @ mean / np.linalg.norm(mean) for vector in vectors]
        np.testing.assert_allclose(centroid_relevance(vectors, given_weights), expected)
    assert centroid_relevance(np.zeros((3, 4), np.float32)).tolist() == [0, 0, 0]


def mmr_by_the_book(relevance: Any, cosines: Any, most: int, trade: float) -> list[int]:
    """Carbonell and Goldstein's formula, word for word; `trade` is their lambda."""
    chosen: list[int] = []
    while len(chosen) < most:
        rest = [index for index in range(len(relevance)) if index not in chosen]
        chosen.append(
            max(
                rest,
                key=lambda i: (
                    trade * relevance[i]
                    - (1 - trade) * max((cosines[i][j] for j in chosen), default=0)
                ),
            )
        )
    return chosen


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_mmr_by_the_book(diversity: float, seed: int) -> None:
    vectors = unit_vectors(25, seed=seed).astype(np.float64)
    relevance = centroid_relevance(vectors)
    if diversity == 1:  # the formula leaves the first choice open; ours goes by relevance
        relevance = np.arange(25, 0, -1.0)
    want = mmr_by_the_book(relevance, vectors @ vectors.T, 10, 1 - diversity)
    assert choose(relevance, vectors, most=10, diversity=diversity) == want


def test_what_is_chosen() -> None:
    relevance = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8], [0.6, 0.8]], np.float32)
    assert choose(relevance, vectors, most=3) == [0, 1, 2]
    # 1 says what 0 said; it comes when nothing else is left, and short ones after it.
    assert choose(relevance, vectors, most=3, redundancy=0.99) == [0, 2, 3]
    assert choose(relevance, vectors, most=5, redundancy=0.99) == [0, 2, 3, 1, 4]
    short = np.array([True, False, False, False, False])
    assert choose(relevance, vectors, most=5, last_resort=short) == [1, 2, 3, 4, 0]
    # What does not fit is passed over.
    costs = np.array([4, 9, 3, 2, 2])
    assert choose(relevance, vectors, most=5, costs=costs, budget=8) == [0, 2]
    assert choose(relevance, vectors, most=5, costs=costs, budget=9) == [0, 2, 3]
    assert choose(relevance, vectors, most=5, costs=costs, budget=1) == []


# --- summaries ------------------------------------------------------------------------------------

DOCUMENT = "One goes here now. Two goes there too. Three is a crowd. Four is more. Five. Six is it."


def test_structures(tiny: Encoder) -> None:
    summarize = SummarizationPipeline(tiny, sentences=2)
    (one,) = summarize(DOCUMENT)
    assert summarize.task == "summarization"
    assert len(one["sentences"]) == 2
    assert one["sentences"] == sorted(one["sentences"])
    pieces = [DOCUMENT[start:end] for start, end in one["spans"]]
    assert pieces == [split(DOCUMENT)[index] for index in one["sentences"]]
    assert one["summary_text"] == " ".join(pieces)
    assert summarize([DOCUMENT, "", "Short."]) == [
        one,
        {"summary_text": "", "sentences": [], "spans": []},
        {"summary_text": "Short.", "sentences": [0], "spans": [(0, 6)]},
    ]
    assert summarize([]) == []
    stream = summarize(text for text in [DOCUMENT, "Short."])
    assert isinstance(stream, Iterator)
    assert [len(each) for each in stream] == [1, 1]


def test_structures_are_those_of_transformers(tiny: Encoder) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "SummarizationPipeline"):
        pytest.skip("this transformers has no summarization pipeline; 4.57 has")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=letter_tokenizer(), pad_token="[PAD]", eos_token="[SEP]"
    )
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    config = transformers.BartConfig(
        vocab_size=99,
        **sizes,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=64,
        max_length=8,
    )
    theirs = transformers.SummarizationPipeline(
        transformers.BartForConditionalGeneration(config).eval(), tokenizer
    )
    ours = SummarizationPipeline(tiny)

    def shape(result: Any) -> Any:
        if isinstance(result, dict):
            return "summary_text" in result and isinstance(result["summary_text"], str)
        return [shape(each) for each in result]

    for make in (lambda: "a b", lambda: ["a b"], lambda: ["a", "b"], lambda: (t for t in "ab")):
        assert shape(ours(make())) == shape(theirs(make()))


def test_streams_are_read_as_they_are_asked_for(
    tiny: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summarization, "_TOGETHER", 10)
    read: list[int] = []

    def documents() -> Iterator[str]:
        for index in range(100):
            read.append(index)
            yield DOCUMENT

    stream = SummarizationPipeline(tiny)(documents())
    assert read == []
    next(stream)
    assert read == [0, 1]  # 12 sentences


@pytest.mark.parametrize("method", ["lexrank", "mmr", "lead"])
def test_a_summary_does_not_depend_on_its_company(
    tiny: Encoder, method: str, monkeypatch: pytest.MonkeyPatch, real_sentences: list[str]
) -> None:
    documents = [" ".join(real_sentences[start : start + 9]) for start in range(0, 180, 9)]
    documents[3:3] = ["", "One."]
    summarize = SummarizationPipeline(tiny, method=method)
    alone = [summarize(document)[0] for document in documents]
    assert summarize(documents) == alone
    monkeypatch.setattr(summarization, "_TOGETHER", 7)
    assert [each for (each,) in summarize(iter(documents))] == alone


def test_lead_runs_no_model(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "encode", None)
    summarize = SummarizationPipeline(tiny, method="lead")
    assert summarize(DOCUMENT)[0]["sentences"] == [0, 1, 2]
    assert summarize(DOCUMENT, words=9)[0]["sentences"] == [0, 1, 4]


@pytest.mark.parametrize("method", ["lexrank", "mmr"])
@pytest.mark.parametrize("words", [1, 5, 9, 13, 400])
def test_word_budget(tiny: Encoder, method: str, words: int) -> None:
    (summary,) = SummarizationPipeline(tiny, method=method)(DOCUMENT, words=words)
    used = len(summary["summary_text"].split())
    counts = [len(sentence.split()) for sentence in split(DOCUMENT)]
    assert used <= words
    rest = [n for index, n in enumerate(counts) if index not in summary["sentences"]]
    assert not rest or min(rest) > words - used  # nothing more would fit


def test_a_word_budget_below_every_sentence(tiny: Encoder) -> None:
    summarize = SummarizationPipeline(tiny)
    text = "One goes here now. Two goes there too."
    assert summarize(text, words=2) == summarize(text, sentences=1)


@pytest.mark.parametrize(("ratio", "count"), [(0.01, 1), (0.2, 2), (0.5, 5), (1.0, 10), (1, 10)])
def test_ratio(tiny: Encoder, ratio: float, count: int) -> None:
    text = "".join(f"Sentence number {index} is this. " for index in range(10))
    assert len(SummarizationPipeline(tiny)(text, ratio=ratio)[0]["sentences"]) == count


def test_a_budget_in_the_call_replaces_the_default(tiny: Encoder) -> None:
    summarize = SummarizationPipeline(tiny, words=400)
    assert len(summarize(DOCUMENT)[0]["sentences"]) == 6
    assert len(summarize(DOCUMENT, sentences=2)[0]["sentences"]) == 2


def test_short_sentences_come_last(tiny: Encoder) -> None:
    summarize = SummarizationPipeline(tiny, min_sentence_words=3)
    assert summarize(DOCUMENT, sentences=5)[0]["sentences"] == [0, 1, 2, 3, 5]


def test_chinese_has_words_and_no_spaces(tiny: Encoder) -> None:
    assert count_words("東京は首都です。") == 7
    assert count_words("It's 3 o'clock. ") == 3
    text = "東京は首都です。大阪も大きい。京都は古い。"
    (summary,) = SummarizationPipeline(tiny, min_sentence_words=0)(text, sentences=2)
    first, second = (split(text)[index] for index in summary["sentences"])
    assert summary["summary_text"] == first + second


def test_bad_input(tiny: Encoder) -> None:
    summarize = SummarizationPipeline(tiny)
    for options, error, message in [
        ({"sentences": 0}, ValueError, "sentences is 0"),
        ({"words": -1}, ValueError, "words is -1"),
        ({"sentences": 2.5}, TypeError, "sentences is 2.5"),
        ({"words": True}, TypeError, "words is True"),
        ({"ratio": 0.0}, ValueError, "ratio is 0"),
        ({"ratio": 1.5}, ValueError, "ratio is 1.5"),
        ({"ratio": float("nan")}, ValueError, "ratio is nan"),
        ({"ratio": "half"}, TypeError, "ratio is 'half'"),
        ({"sentences": 2, "words": 50}, ValueError, "sentences and words are given"),
        ({"method": "textrank"}, ValueError, "method is 'textrank'; it can be lexrank, mmr, lead"),
        ({"diversity": 2}, ValueError, "diversity is 2"),
        ({"redundancy": -0.5}, ValueError, "redundancy is -0.5"),
        ({"lead_bias": -1}, ValueError, "lead_bias is -1"),
        ({"min_sentence_words": -1}, ValueError, "min_sentence_words is -1"),
    ]:
        with pytest.raises(error, match=message):
            summarize(DOCUMENT, **options)
        with pytest.raises(error, match=message):
            SummarizationPipeline(tiny, **options)
    with pytest.raises(TypeError, match="no option 'max_length'"):
        SummarizationPipeline(tiny, max_length=30)
    for documents, message in [
        (3, "documents is int"),
        (b"bytes", "documents is bytes"),
        ({"text": "x"}, "documents is dict"),
        (["a", None], r"documents\[1\] is NoneType"),
    ]:
        with pytest.raises(TypeError, match=message):
            summarize(documents)
    with pytest.raises(TypeError, match=r"documents\[1\] is int"):
        list(summarize(iter(["a", 1])))


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path) -> None:
    encoder = Encoder(write_tiny_checkpoint(tmp_path, tokenizer=False))
    with pytest.raises(ValueError, match="no tokenizer"):
        SummarizationPipeline(encoder)


def test_an_encoder_without_pooling_is_pooled(tiny: Encoder) -> None:
    unpooled = Encoder(tiny.folder, pooling="none")
    assert SummarizationPipeline(unpooled)(DOCUMENT) == SummarizationPipeline(tiny)(DOCUMENT)


# --- what real vectors make of real texts ---------------------------------------------------------

STORM = [
    "A storm hit the northern coast on Monday and cut the power of 40,000 homes.",
    "The storm with its strong winds damaged houses and power lines along the coast.",
    "My aunt prefers her tea without sugar.",
    "Engineers are repairing the power lines that the storm on the coast brought down.",
    "Chess is older than most board games.",
]


@pytest.mark.parametrize("method", ["lexrank", "mmr"])
def test_the_subject_beats_asides(minilm: SummarizationPipeline, method: str) -> None:
    text = " ".join(STORM)
    assert minilm(text, method=method, sentences=3)[0]["sentences"] == [0, 1, 3]
    assert minilm(text, method="lead")[0]["sentences"] == [0, 1, 2]


def test_the_same_is_not_said_twice(minilm: SummarizationPipeline) -> None:
    text = " ".join([*STORM, STORM[0], STORM[0]])
    assert 5 not in minilm(text, sentences=3)[0]["sentences"]
    repeated = minilm(text, sentences=3, redundancy=1.0)[0]["sentences"]
    assert len({0, 5, 6} & set(repeated)) >= 2


def test_news(minilm: SummarizationPipeline) -> None:
    """The goal, on few articles: better than chance, and not worse than the lead. How much by:
    `python -m benchmarks.summaries`."""
    try:
        articles = summaries.load_articles()[-30:]
    except LookupError as missing:
        pytest.skip(str(missing))
    texts = [article.text for article in articles]
    chance = summaries.random_scores(articles, {"words": 65})
    lead = summaries.scores_of(articles, minilm(texts, method="lead", words=65))
    for options in ({"lead_bias": 1.0}, {"method": "mmr", "lead_bias": 1.0}):
        ours = summaries.scores_of(articles, minilm(texts, words=65, **options))
        for name, (_, low, _) in summaries.differences(ours, chance).items():
            assert low > 0, name
        for name, (_, _, high) in summaries.differences(ours, lead).items():
            assert high >= 0, name


# --- the benchmark --------------------------------------------------------------------------------


def test_rouge_by_hand() -> None:
    # the, cat, sat are common; "the" counts twice in the summary and once in the reference.
    recall, f1 = summaries.rouge("The cat sat. The dog ran.", "the cat sat down", 1)
    assert (recall, f1) == (3 / 4, pytest.approx(2 * 3 / (6 + 4)))
    recall, f1 = summaries.rouge("The cat sat. The dog ran.", "the cat sat down", 2)
    assert (recall, f1) == (2 / 3, pytest.approx(2 * 2 / (5 + 3)))
    assert summaries.rouge("", "a", 1) == (0, 0)
    assert summaries.rouge("a", "a", 2) == (0, 0)


def test_likeness_is_scipys_divergence() -> None:
    distance = pytest.importorskip("scipy.spatial.distance")
    # storm, coast, power; "the" and "and" are function words.
    got = summaries.likeness("The storm and the coast", "storm storm coast power")
    want = 1 - distance.jensenshannon([1, 1, 0], [2, 1, 1], base=2) ** 2
    assert got == pytest.approx(want)
    assert summaries.likeness("storm coast", "coast storm") == 1
    assert summaries.likeness("storm", "coast") == 0
    assert summaries.likeness("the", "coast") == 0


def test_differences() -> None:
    ours = np.zeros((200, 6))
    ours[:, 0] = 1 + np.resize([0.1, -0.1], 200)
    found = summaries.differences(ours, np.zeros((200, 6)))
    mean, low, high = found["headline ROUGE-1 recall"]
    assert mean == pytest.approx(1)
    # The mean of 200 with standard deviation 0.1, normally distributed: 1.96 * 0.1 / sqrt(200).
    assert low == pytest.approx(1 - 0.0139, abs=0.002)
    assert high == pytest.approx(1 + 0.0139, abs=0.002)
    assert found["article"] == (0, 0, 0)


def test_the_report(
    tiny: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    articles = [summaries.Article("One there", DOCUMENT), summaries.Article("Two", DOCUMENT)]
    monkeypatch.setattr(summaries, "load_articles", lambda: articles)
    monkeypatch.setattr(summaries, "SETTINGS_CHOSEN_ON", 0)
    monkeypatch.setattr(summaries, "Encoder", lambda _: tiny)
    monkeypatch.setattr(summaries.corpora, "minilm_folder", lambda: None)
    monkeypatch.setattr(summaries, "environment", lambda: SOME_ENVIRONMENT)
    assert summaries.main(["--quick", "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    # Two budgets: the measures, the differences to the lead, those to chance.
    assert [rows.count(name) for name in ("random", "lead", "LexRank", "MMR")] == [4, 4, 6, 6]
    assert "2 articles" in printed
    assert "Not for publishing" in printed
    assert (tmp_path / "out.json").is_file()


def test_the_report_without_the_articles(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise LookupError("no network")

    monkeypatch.setattr(summaries, "load_articles", missing)
    with pytest.raises(SystemExit, match="summaries: no network"):
        summaries.main([])
