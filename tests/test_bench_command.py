"""`fastdistil bench`: what it measures, says and writes, and what it refuses. No times."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SOME_ENVIRONMENT
from tiny_checkpoint import write_tiny_checkpoint

from benchmarks import workloads
from fastdistil.bench import command, html, peers, race, results, sample, subject, summary, timing
from fastdistil.bench.results import Results, Row
from fastdistil.cli import main
from fastdistil.text_io import UsageError

INT8 = "openvino-int8: No module named 'nncf'; `pip install \"fastdistil[bench]\"` brings it"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No pauses; and one thread: on a busy machine two of OpenMP's mostly wait for each other."""
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("model")))


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(model: str, capsys: pytest.CaptureFixture[str]) -> Command:
    """`fastdistil bench` on a tiny model, for what is wanted beside it."""

    def run(*arguments: str) -> tuple[int, str, str]:
        own = {"--model": model, "--workload": "mixed,1x16", "--peers": "eager-fp32"}
        chosen = [word for pair in own.items() if pair[0] not in arguments for word in pair]
        code = main(["bench", "--quick", "--precisions", "fp32", *chosen, *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def needs_engine() -> None:
    pytest.importorskip("transformers", reason="every engine starts from its models")
    pytest.importorskip("fastdistil._C", reason="kernels are in the C++ extension")


# --- from the command to its files ----------------------------------------------------------------


def test_it_ends_with_a_table_and_a_sentence_and_writes_what_it_saw(
    bench: Command, model: str, tmp_path: Path
) -> None:
    needs_engine()
    file, page = tmp_path / "bench.json", tmp_path / "bench.html"
    code, out, err = bench("--json", str(file), "--html", str(page), "--price-per-hour", "0.1")
    assert code == 0
    *_, header, _, _, _, _, last = out.strip().splitlines()
    for column in ("engine", "given order (tok/s)", "1 x 16 (ms)", "at 0.1 an hour"):
        assert column in header
    assert last.startswith("fastdistil fp32 is ")
    assert "eager PyTorch fp32" in last
    assert "A quick run" in out
    assert "\r" not in err  # not a terminal: no bar
    assert f"model: {model}; texts: English sentences that come with fastdistil" in err

    saved = results.read(file)
    assert (saved.suite, saved.quick, saved.left_out) == ("bench", True, ())
    assert {group: list(rows) for group, rows in saved.groups().items()} == {
        group: ["fastdistil fp32", "eager PyTorch fp32"] for group in ("mixed", "1 x 16")
    }
    assert {row.info["model"] for row in saved.rows} == {model}
    assert [len(row.seconds) for row in saved.rows] == [2, 2, 2, 2]
    assert summary.report(saved, 0.1).strip() == out.strip()
    assert page.read_text(encoding="utf-8") == html.page(saved, 0.1)


def test_the_users_own_texts_are_run(bench: Command, tmp_path: Path) -> None:
    needs_engine()
    texts, file = tmp_path / "mine.csv", tmp_path / "bench.json"
    texts.write_text("abc\n\nab, and c\n" + "a b " * 100 + "\n")
    code, out, _ = bench("--texts", str(texts), "--json", str(file), "--workload", "mixed,sorted")
    assert code == 0
    info = results.read(file).rows[0].info
    # Letters are tokens; two special ones each; 40 positions; blank lines are nobody's text.
    assert (info["sequences"], info["tokens"]) == (3, 5 + 9 + 40)
    assert info["texts"] == str(texts)
    assert f"texts: {texts}" in out


def test_engines_that_are_not_installed_are_told_once(
    bench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_engine()

    def absent(module: str) -> Any:
        def build(model: Any) -> Any:
            raise ModuleNotFoundError(f"No module named '{module}'")

        return build

    known = {"eager-fp32": peers.PEERS["eager-fp32"], "compile-bf16": absent("never asked")}
    known |= {name: absent(name.split("-")[0]) for name in ("openvino-fp32", "openvino-bf16")}
    known |= {"onnxruntime-fp32": absent("onnxruntime.transformers")}
    monkeypatch.setattr(race, "PEERS", known)
    monkeypatch.setattr(command, "PEERS", known)
    file = tmp_path / "bench.json"
    arguments = ["bench", "--quick", "--precisions", "fp32", "--workload", "1x16", "--model"]
    arguments += [str(write_tiny_checkpoint(tmp_path / "model")), "--json", str(file)]
    assert main(arguments) == 0
    left_out = results.read(file).left_out
    assert len(left_out) == 4
    assert summary.told_left_out(left_out) == [
        "not installed: openvino, onnxruntime: pip install 'fastdistil[bench]'",
        "not measured: compile-bf16: it compiles for longer than a quick run takes",
    ]


def test_nothing_to_measure_is_an_error(bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_engine()
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "portable")
    code, out, err = bench("--precisions", "bf16")
    assert (code, out) == (1, "")
    assert "nothing of fastdistil can be measured here: fastdistil bf16: " in err
    assert "no bf16 kernels for this CPU" in err


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "abacus"], "--peers: unknown: abacus; known: eager-fp32, eager-bf16, "),
        (["--precisions", "fp7"], "--precisions: unknown: fp7; known: int8, bf16, fp32"),
        (["--workload", "mixed,0x7"], "--workload: unknown: '0x7'; known: mixed, sorted and ROWSx"),
        (["--workload", ""], "--workload: unknown: ''"),
        (["--workload", "2x41"], "--workload: 2x41: the model takes from 3 to 40 tokens"),
        (["--workload", "1x2"], "--workload: 1x2: the model takes from 3 to 40 tokens"),
    ],
)
def test_names_that_are_not_known_are_2(bench: Command, arguments: list[str], message: str) -> None:
    needs_engine()
    code, out, err = bench(*arguments)
    assert (code, out) == (2, "")
    assert f"fastdistil: error: {message}" in err


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--price-per-hour", "dear", "'dear' is not a price like 0.10"),
        ("--price-per-hour", "-1", "'-1' is not a price like 0.10"),
        ("--price-per-hour", "nan", "'nan' is not a price like 0.10"),
        ("--threads", "0", "'0' is not a whole number"),
    ],
)
def test_numbers_that_make_no_sense_are_2(
    option: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", option, text])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_texts_need_a_model_with_a_tokenizer(
    bench: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_engine()
    (tmp_path / "texts.txt").write_text("abc\n")
    texts = ["--texts", str(tmp_path / "texts.txt")]
    assert main(["bench", *texts]) == 2
    assert "--texts needs --model" in capsys.readouterr().err
    bare = write_tiny_checkpoint(tmp_path / "bare", tokenizer=False)
    code, _, err = bench("--model", str(bare), *texts)
    assert code == 1
    assert f"--texts: {bare} has no tokenizer" in err
    (tmp_path / "texts.txt").write_text("\n \n")
    code, _, err = bench(*texts)
    assert code == 1
    assert "no text in it" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "gone/bench.json"], "gone: no such folder to write to"),
        (["--html", "."], ".: is a folder; a file is wanted"),
        (["--texts", "gone.txt"], "gone.txt: No such file or directory"),
        (["--model", "./gone"], "./gone: no such folder"),
    ],
)
def test_files_that_cannot_be_are_told_before_anything_runs(
    bench: Command,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs_engine()
    monkeypatch.chdir(tmp_path)
    code, out, err = bench(*arguments)
    assert (code, out) == (1, "")
    assert f"fastdistil: error: {message}" in err
    assert "preparing" not in err


def test_a_folder_that_cannot_be_written_to(
    bench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by its permissions: root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code, _, err = bench("--json", str(tmp_path / "bench.json"))
    assert code == 1
    assert f"{tmp_path}: this folder cannot be written to" in err


def test_an_interrupt_is_130(bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "race", interrupted)
    needs_engine()
    code, out, err = bench()
    assert (code, out) == (130, "")
    assert err.endswith("fastdistil: interrupted\n")


# --- models and texts -----------------------------------------------------------------------------


def test_the_sample_is_the_sentences_as_the_tokenizer_reads_them(minilm_folder: Path) -> None:
    assert sample.token_ids() == workloads.token_ids(sample.sentences())


def test_a_real_checkpoint_is_the_encoder_alone(minilm_folder: Path) -> None:
    needs_engine()
    what = subject.load(str(minilm_folder), None)
    assert what.model.pooler is None
    assert not what.model.training
    assert {p.dtype.itemsize for p in what.model.parameters()} == {4}
    assert list(what.texts) == workloads.token_ids(sample.sentences(), 256)


def test_a_model_without_a_tokenizer_gets_ids_that_it_has(tmp_path: Path) -> None:
    needs_engine()
    bare = write_tiny_checkpoint(tmp_path / "bare", tokenizer=False)
    what = subject.load(str(bare), None)
    assert [len(ids) for ids in what.texts] == [min(40, len(ids)) for ids in sample.token_ids()]
    assert max(map(max, what.texts)) < 99
    assert "no tokenizer" in what.told["texts"]


def of_texts(*lengths: int) -> subject.Subject:
    class Model:
        class config:
            max_position_embeddings = 512

    texts = tuple((1, *range(2, length), 0) for length in lengths)
    return subject.Subject(Model, texts, {})


def test_workloads_hold_as_much_text_as_there_is_time_for() -> None:
    short = subject.workload("mixed", of_texts(*[20] * 500), quick=True)
    assert len(short.sequences) == 64  # 76 would do: whole batches of 32
    long = subject.workload("mixed", of_texts(*[512] * 500), quick=True)
    assert (len(long.sequences), long.tokens) == (3, 1536)
    assert len(subject.workload("mixed", of_texts(5, 9), quick=False).sequences) == 2
    by_length = subject.workload("sorted", of_texts(5, 9), quick=False)
    assert (by_length.name, [len(ids) for ids in by_length.sequences]) == ("mixed, sorted", [9, 5])


def test_batches_of_one_size_are_filled_from_little_text() -> None:
    rows = subject.workload("16x128", of_texts(2, 5, 9), quick=True)
    assert [len(ids) for ids in rows.sequences] == [128] * 16
    assert (rows.name, rows.batch) == ("16 x 128", 16)
    with pytest.raises(ValueError, match="no text has a word"):
        subject.workload("1x16", of_texts(2), quick=True)
    with pytest.raises(UsageError, match="from 3 to 512"):
        subject.workload("1x513", of_texts(9), quick=True)


# --- the words ------------------------------------------------------------------------------------


def found(groups: dict[str, dict[str, tuple[float, ...]]], *left_out: str) -> Results:
    """Results with these turns (seconds), of 100 tokens each."""
    rows = tuple(
        Row(
            group,
            name,
            turns,
            {
                "precision": name.split()[-1],
                "configuration": f"as {name.split()[0]} on {'one' if '1 x' in group else 'many'}",
                "least_cosine": 0.99,
                "sequences": 1 if group.startswith("1 x") else 4,
                "tokens": 100,
                "repeats": 1,
                "model": "<M&M>",
                "texts": "t",
            },
        )
        for group, engines in groups.items()
        for name, turns in engines.items()
    )
    return Results("bench", SOME_ENVIRONMENT, rows, left_out)


def sentence(**mixed: float) -> str:
    """Of engines, with _ for spaces, that take so many seconds."""
    turns = {name.replace("_", " "): (seconds,) * 3 for name, seconds in mixed.items()}
    return summary.sentence(found({"mixed": turns}))


def test_faster() -> None:
    assert sentence(
        fastdistil_int8=0.1,
        fastdistil_bf16=1.0,
        fastdistil_fp32=8.0,
        eager_PyTorch_fp32=18.0,
        OpenVINO_bf16=4.4,
        ONNX_Runtime_int8=0.5,  # gives up more accuracy: not what bf16 is compared with
    ) == (
        "fastdistil bf16 is 4.4 times as fast as the fastest other engine measured at bf16 or fp32 "
        "precision (OpenVINO bf16) on real sentences in the given order, and 18 times as fast as "
        "eager PyTorch fp32."
    )


def test_slower_is_said_as_plainly() -> None:
    assert sentence(fastdistil_bf16=2.0, eager_PyTorch_fp32=2.0, OpenVINO_bf16=1.0) == (
        "fastdistil bf16 is only 0.50 times as fast as the fastest other engine measured at bf16 "
        "or fp32 precision (OpenVINO bf16) on real sentences in the given order, and about as fast "
        "as eager PyTorch fp32."
    )


def test_no_more_is_said_than_the_spread_allows() -> None:
    turns = {"fastdistil fp32": (0.9, 1.0, 1.1), "ONNX Runtime fp32": (1.0, 1.05, 1.1)}
    assert "is about as fast as" in summary.sentence(found({"1 x 16": turns}))
    narrow = {"fastdistil fp32": (1.0, 1.0, 1.0), "ONNX Runtime fp32": (1.05, 1.05, 1.05)}
    assert "is 1.05 times as fast as" in summary.sentence(found({"1 x 16": narrow}))


def test_int8_and_fp32_have_peers_of_their_own() -> None:
    assert "at int8, bf16 or fp32 precision (ONNX Runtime int8)" in sentence(
        fastdistil_int8=1.0, OpenVINO_bf16=4.0, ONNX_Runtime_int8=2.0
    )
    assert "at fp32 precision (eager PyTorch fp32) on real sentences in the given order." in (
        sentence(fastdistil_fp32=1.0, OpenVINO_bf16=0.5, eager_PyTorch_fp32=2.0)
    )


def test_nobody_to_compare_with() -> None:
    assert sentence(fastdistil_bf16=0.05, ONNX_Runtime_int8=2.0) == (
        "No other engine at bf16 or fp32 precision was measured beside fastdistil bf16, which runs "
        "2,000 tokens/s on real sentences in the given order."
    )
    assert "no figure of fastdistil" in sentence(eager_PyTorch_fp32=2.0)
    alone = found({"16 x 128": {"fastdistil fp32": (1.0,)}})
    assert "on a batch of 16 x 128 tokens" in summary.sentence(alone)


SOME = found(
    {
        "mixed": {"fastdistil bf16": (0.010, 0.010, 0.012), "echo fp32": (0.1, 0.1, 0.1)},
        "1 x 16": {"fastdistil bf16": (0.002,) * 3},
    },
    INT8,
    "echo fp32, 1 x 16: wrong answers (cosine 0.1 < 0.9)",
)


def test_table_has_an_engine_a_row_and_a_workload_a_column() -> None:
    header, body = summary.table(SOME, 0.36)
    assert header == [
        "engine",
        "real sentences, given order (tok/s)",
        "1 x 16 (ms)",
        "real sentences, given order (cost of 1M tokens at 0.36 an hour)",
    ]
    # 10,000 tokens/s: a million in 100 s, which cost 0.36 / 36.
    assert body == [
        ["fastdistil bf16", "10,000 ±5%", "2.00 ±0%", "0.01"],
        ["echo fp32", "1,000 ±0%", "-", "0.1"],
    ]
    assert [line[:3] for line in summary.table(SOME)[1]] == [line[:3] for line in body]
    assert len(summary.table(SOME)[0]) == 3


def test_settings_say_what_was_chosen_where() -> None:
    assert summary.settings(SOME) == [
        "fastdistil bf16: as fastdistil on many (real sentences, given order); as fastdistil on "
        "one (1 x 16); least cosine of a token 0.99000",
        "echo fp32: as echo on many; least cosine of a token 0.99000",
    ]


def test_workloads_are_told() -> None:
    assert summary.workloads(SOME) == {
        "mixed": "4 texts, 100 tokens",
        "1 x 16": "1 text, 100 tokens",
    }


class Page(HTMLParser):
    """What a page shows; fails on tags that do not match, and on what comes from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_shows_bars_figures_settings_and_the_machine() -> None:
    page = Page()
    page.feed(html.page(SOME, 0.36))
    assert page.open == []
    assert page.counts["svg"] == 2
    assert page.counts["rect"] == 3
    assert "script" not in page.counts
    for text in (
        summary.sentence(SOME),
        "real tokens a second",
        "milliseconds a sequence (less is better)",
        "10,000 ±5%",
        "as echo on many",
        "not installed: nncf: pip install 'fastdistil[bench]'",
        "cosine 0.1 < 0.9",
        "<M&M>",
        "commit",
    ):
        assert text in page.text, text


def test_bars_are_as_long_as_their_figures() -> None:
    svg = html.bars("mixed", SOME.groups()["mixed"])
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]
    assert widths[0] == pytest.approx(10 * widths[1], abs=0.5)
    right = [float(x) for x in re.findall(r'x2="([\d.]+)"', svg)]
    assert max(right) <= html._WIDTH - html._RIGHT + 0.1


@pytest.mark.parametrize(("most", "tick"), [(9.5, 2), (6, 1), (0.031, 0.01), (120_000, 20_000)])
def test_ticks_are_round(most: float, tick: float) -> None:
    assert html._tick(most) == pytest.approx(tick)
