"""The command line of tasks: `fastdistil classify | tag | answer | fill | similar | summarize |
generate`.

Texts are arguments, lines of standard input, or records of a file. On a terminal the answers are
for people, anywhere else JSON lines, {"id": ..., "result": ...}; with an output file they go there,
and an interrupted run continues. Imports torch only when there is work for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from .cli_options import (
    add_engine_options,
    add_input_options,
    add_model_option,
    positive,
    set_threads,
)
from .text_io import STDIN, InputError, RecordId, UsageError, format_of_input, open_records

_SENTENCES = "sentence-transformers/all-MiniLM-L6-v2"
_EXAMPLES = {
    "classify": """\
  fastdistil classify "A quiet, lovely film."
  fastdistil classify -f reviews.csv --text-column review -o labels.jsonl
  fastdistil classify --labels sport,politics,science --model ./my-nli-model < headlines.txt
""",
    "tag": """\
  fastdistil tag "Ada Lovelace was born in London."
  zcat articles.jsonl.gz | fastdistil tag --input-format jsonl --text-column body --json
""",
    "answer": """\
  fastdistil answer "Who wrote it?" "The Voyage Out was written by Virginia Woolf."
  fastdistil answer "When does it open?" -f leaflet.txt --top-k 3
  fastdistil answer "What was sold?" -f articles.jsonl --text-column body -o answers.jsonl
""",
    "fill": """\
  fastdistil fill "The capital of France is [MASK]."
  fastdistil fill "She plays the [MASK]." --targets piano,violin,drums
""",
    "similar": """\
  fastdistil similar "How do I reset it?" "Changing a password" "Opening hours" "Prices"
  fastdistil similar "A cat sleeps." -f sentences.txt --top-k 5
""",
    "summarize": """\
  fastdistil summarize -f article.txt --sentences 3
  fastdistil summarize -f articles.jsonl --text-column body --words 60 -o summaries.jsonl
""",
    "generate": """\
  fastdistil generate "The weather today is" --length 8 --seed 1
  fastdistil generate "I [MASK] to the [MASK] yesterday." --num-return-sequences 5
""",
}


@dataclass(frozen=True)
class _Command:
    """A command, and the task behind it."""

    task: str
    help: str
    model: str
    options: Callable[[argparse.ArgumentParser], None]
    """Adds the task's own."""
    given: tuple[str, ...]
    """Names of those, which go to the task where they are given."""
    show: Callable[[Any, Any], str]
    """A text and its result, for people."""
    whole_files: bool = False
    """A .txt file, and standard input, is one text and not one a line."""


def add_commands(commands: Any) -> None:
    """The tasks' commands, in the parser's list of them."""
    for name, command in COMMANDS.items():
        parser = commands.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"examples:\n{_EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.options(parser)
        add = parser.add_argument
        add("-f", "--file", metavar="IN", help=".txt, .jsonl, .csv or .parquet; - is stdin")
        add_input_options(parser)
        add("--id-column", metavar="NAME", help="column or key that names the rows (default: 0...)")
        add(
            "-o",
            "--output",
            metavar="OUT",
            help="a .jsonl file for the results; an interrupted run continues",
        )
        add("--restart", action="store_true", help="throw away what an interrupted run has done")
        add("--json", action="store_true", help="JSON lines, on a terminal too")
        add_model_option(parser, command.model)
        add_engine_options(parser)


def run(options: argparse.Namespace) -> int:
    """Runs a task's command; returns its exit code."""
    command = COMMANDS[options.command]
    task_options = {
        name: getattr(options, name) for name in command.given if getattr(options, name) is not None
    }
    _check(options, command)
    set_threads(options.threads)
    if options.command == "similar":
        return _similar(options, task_options)
    pipeline = _pipeline(options, command)
    make_input = _question(options.question) if options.command == "answer" else None
    if options.output is not None:
        return _to_file(pipeline, options, command, make_input, task_options)
    records = _records(options, command)
    _print_results(pipeline, records, options, command, make_input, task_options)
    return 0


def _check(options: argparse.Namespace, command: _Command) -> None:
    """What can be told before a model is loaded.

    Raises:
        UsageError: texts from two places or from none, an output for texts that are arguments.
    """
    if options.texts and options.file is not None:
        raise UsageError(f"texts: as arguments or from {options.file}, not both")
    if options.command == "classify" and options.candidate_labels is not None:
        if options.top_k is not None:
            raise UsageError("--top-k: with --labels all of them have a score")
    elif options.command == "classify" and options.hypothesis_template is not None:
        raise UsageError("--hypothesis-template is for --labels")
    if options.output is not None and options.texts:
        raise UsageError("--output is for texts from a file (-f) or from standard input")
    if not options.texts and options.file is None:
        if sys.stdin.isatty():
            raise UsageError(
                f"no text: give one as an argument, a file with -f, or pipe texts into fastdistil "
                f"{options.command}"
            )
        options.file = STDIN
    if options.file is not None:
        columns = (options.text_column, options.id_column)
        chosen = format_of_input(options.file, options.input_format, *columns)
        if options.file != STDIN and not Path(options.file).is_file():
            raise FileNotFoundError(2, "no such file", options.file)
        if options.output is not None and command.whole_files and chosen == "txt":
            raise UsageError(
                "--output is for files of many texts: .jsonl, .csv or .parquet; a .txt file is "
                "one text here"
            )
        if options.output is not None:
            from .tasks.task_file import check_task_files

            check_task_files(options.file, options.output, options.input_format, *columns)


def _pipeline(options: argparse.Namespace, command: _Command) -> Any:
    from .tasks import pipeline

    task = command.task
    if options.command == "classify" and options.candidate_labels is not None:
        task = "zero-shot-classification"
    return pipeline(
        task,
        options.model,
        device=options.device,
        precision=options.precision,
        backend=options.backend,
        max_length=options.max_length,
        batch_tokens=options.batch_tokens,
    )


def _records(options: argparse.Namespace, command: _Command) -> Iterator[tuple[RecordId, str]]:
    """Ids and texts."""
    if options.texts:
        yield from enumerate(options.texts)
        return
    columns = (options.text_column, options.id_column)
    if (
        command.whole_files
        and format_of_input(options.file, options.input_format, *columns) == "txt"
    ):
        yield 0, _whole(options.file)
        return
    numbers = count()
    with open_records(options.file, options.input_format, *columns) as records:
        for block in records.blocks:
            yield from zip(block.ids or numbers, block.texts, strict=False)


def _whole(file: str) -> str:
    """All of a file, its line ends as they are, so that characters count as in the file."""
    data = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8; convert "
            "the file first, for example: iconv -f WINDOWS-1252 -t UTF-8 IN > OUT"
        ) from None


def _question(question: str) -> Callable[[str], dict[str, str]]:
    def asked(context: str) -> dict[str, str]:
        return {"question": question, "context": context}

    return asked


def _to_file(
    pipeline: Any,
    options: argparse.Namespace,
    command: _Command,
    make_input: Callable[[str], Any] | None,
    task_options: dict[str, Any],
) -> int:
    from .progress import duration
    from .tasks.task_file import run_file

    summary = run_file(
        pipeline,
        options.file,
        options.output,
        input_format=options.input_format,
        text_column=options.text_column,
        id_column=options.id_column,
        make_input=make_input,
        resume=not options.restart,
        show_progress=True,
        **task_options,
    )
    resumed = f", {summary.resumed:,} of them from the run before" if summary.resumed else ""
    print(
        f"{options.output}: {summary.rows:,} results in {duration(summary.seconds)}{resumed}",
        file=sys.stderr,
    )
    return 0


def _print_results(
    pipeline: Any,
    records: Iterable[tuple[RecordId, str]],
    options: argparse.Namespace,
    command: _Command,
    make_input: Callable[[str], Any] | None,
    task_options: dict[str, Any],
) -> None:
    waiting: list[tuple[RecordId, str]] = []

    def inputs() -> Iterator[Any]:
        for one in records:
            waiting.append(one)
            yield one[1] if make_input is None else make_input(one[1])

    for result in pipeline(inputs(), **task_options):
        number, text = waiting.pop(0)
        _print(number, text, result, options, command)


def _print(
    number: RecordId, text: str, result: Any, options: argparse.Namespace, command: _Command
) -> None:
    if options.json or not sys.stdout.isatty():
        _print_json({"id": number, "result": result})
    else:
        _print_shown(command.show(text, result))


def _print_json(value: Any) -> None:
    from .tasks.task_file import json_line

    print(json_line(value, sys.stdout.encoding or "utf-8"), flush=True)


def _print_shown(text: str) -> None:
    """For people: what their terminal cannot show becomes a question mark."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


def _similar(options: argparse.Namespace, task_options: dict[str, Any]) -> int:
    """One answer for all texts: the most alike."""
    command = COMMANDS["similar"]
    if options.output is not None:
        raise UsageError("similar has one answer for all texts: --output is not for it")
    pipeline = _pipeline(options, command)
    sentences = [text for _, text in _records(options, command)]
    found = pipeline(source_sentence=options.source, sentences=sentences, **task_options)
    if options.json or not sys.stdout.isatty():
        for each in found:
            _print_json(each)
    elif found:
        _print_shown(command.show(options.source, found))
    return 0


# The tasks' own options.


def _texts(parser: argparse.ArgumentParser, name: str = "TEXT", what: str = "a text") -> None:
    parser.add_argument("texts", nargs="*", metavar=name, help=f"{what}; without any, from -f")


def _classify_options(parser: argparse.ArgumentParser) -> None:
    _texts(parser)
    add = parser.add_argument
    add("--top-k", type=positive, metavar="N", help="the best N labels (default: the best)")
    add(
        "--labels",
        dest="candidate_labels",
        metavar="NAME,NAME",
        help="labels of your own, judged by a model of entailment (zero-shot)",
    )
    add("--hypothesis-template", metavar="TEXT", help="with {} for a label of --labels")


def _tag_options(parser: argparse.ArgumentParser) -> None:
    _texts(parser)
    parser.add_argument(
        "--aggregation-strategy",
        default="simple",
        metavar="NAME",
        help="none, simple, first, average or max (default: %(default)s)",
    )


def _answer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", metavar="QUESTION")
    _texts(parser, "CONTEXT", "a text to find the answer in")
    add = parser.add_argument
    add("--top-k", type=positive, metavar="N", help="the best N answers (default: 1)")
    add(
        "--handle-impossible-answer",
        action="store_true",
        default=None,
        help="let there be no answer",
    )


def _fill_options(parser: argparse.ArgumentParser) -> None:
    _texts(parser, "TEXT", "a text with the model's mask token in it, often [MASK]")
    add = parser.add_argument
    add("--top-k", type=positive, metavar="N", help="the best N words (default: 5)")
    add("--targets", type=_comma, metavar="WORD,WORD", help="words to choose among")


def _similar_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SENTENCE")
    _texts(parser, "OTHER", "a sentence to compare with")
    parser.add_argument(
        "--top-k", type=positive, default=10, metavar="N", help="the best N (default: 10)"
    )


def _summarize_options(parser: argparse.ArgumentParser) -> None:
    _texts(parser, "DOCUMENT", "a document")
    add = parser.add_argument
    add("--sentences", type=positive, metavar="N", help="so many sentences (default: 3)")
    add("--words", type=positive, metavar="N", help="at most so many words")
    add("--ratio", type=float, metavar="R", help="a part of the sentences, 0 to 1")
    add("--method", metavar="NAME", help="lexrank, mmr or lead (default: lexrank)")
    add("--lead-bias", type=float, metavar="B", help="favour the beginning; 1 suits news")


def _generate_options(parser: argparse.ArgumentParser) -> None:
    _texts(parser, "PROMPT", "a text to go on with, or one with masks to fill")
    add = parser.add_argument
    add("--length", type=positive, metavar="TOKENS", help="tokens to write (default: 20)")
    add("--passes", type=positive, metavar="N", help="how often the model runs (default: 10)")
    add("--method", metavar="NAME", help="mask-predict or gibbs (default: mask-predict)")
    add("--temperature", type=float, metavar="T", help="0: the likeliest words (default: 0.7)")
    add("--seed", type=int, metavar="N", help="another number, another text (default: 0)")
    add("--num-return-sequences", type=positive, metavar="N", help="texts for each prompt")


def _comma(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


# Results for people.


def _show_classify(text: str, result: Any) -> str:
    if isinstance(result, dict) and "labels" in result:
        pairs = list(zip(result["labels"], result["scores"], strict=True))
    else:
        each = result if isinstance(result, list) else [result]
        pairs = [(one["label"], one["score"]) for one in each]
    scores = ", ".join(f"{label} {score:.3f}" for label, score in pairs)
    return f"{scores}  {_shortened(text)}"


def _show_tag(text: str, result: Any) -> str:
    """The text with its entities in brackets: [Ada Lovelace PER] was born in [London LOC]."""
    shown, at = "", 0
    for one in result:
        label = one.get("entity_group", one.get("entity"))
        shown += f"{text[at : one['start']]}[{text[one['start'] : one['end']]} {label}]"
        at = one["end"]
    return shown + text[at:]


def _show_answer(text: str, result: Any) -> str:
    lines = []
    for one in result if isinstance(result, list) else [result]:
        answer = one["answer"] or "(no answer)"
        around = _shortened(text[max(one["start"] - 40, 0) : one["end"] + 40])
        lines.append(f"{one['score']:.3f}  {answer}  ... {around} ...")
    return "\n".join(lines)


def _show_fill(text: str, result: Any) -> str:
    masks = result if result and isinstance(result[0], list) else [result]
    lines = []
    for number, words in enumerate(masks, start=1):
        if len(masks) > 1:
            lines.append(f"mask {number}:")
        lines += [f"{one['score']:.3f}  {one['token_str']:<16} {one['sequence']}" for one in words]
    return "\n".join(lines)


def _show_similar(text: str, result: Any) -> str:
    return "\n".join(f"{one['score']:.3f}  {_shortened(one['sentence'])}" for one in result)


def _show_summary(text: str, result: Any) -> str:
    each = result if isinstance(result, list) else [result]
    return "\n".join(one["summary_text"] for one in each)


def _show_generated(text: str, result: Any) -> str:
    return "\n".join(one["generated_text"] for one in result)


def _shortened(text: str, width: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


COMMANDS = {
    "classify": _Command(
        "text-classification",
        "texts to labels",
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        _classify_options,
        ("top_k", "candidate_labels", "hypothesis_template"),
        _show_classify,
    ),
    "tag": _Command(
        "token-classification",
        "names and other entities in texts",
        "dslim/distilbert-NER",
        _tag_options,
        ("aggregation_strategy",),
        _show_tag,
    ),
    "answer": _Command(
        "question-answering",
        "the part of a text that answers a question",
        "distilbert/distilbert-base-cased-distilled-squad",
        _answer_options,
        ("top_k", "handle_impossible_answer"),
        _show_answer,
        whole_files=True,
    ),
    "fill": _Command(
        "fill-mask",
        "the likeliest words for a mask",
        "distilbert/distilbert-base-uncased",
        _fill_options,
        ("top_k", "targets"),
        _show_fill,
    ),
    "similar": _Command(
        "sentence-similarity",
        "the sentences that are most alike in meaning to one",
        _SENTENCES,
        _similar_options,
        ("top_k",),
        _show_similar,
    ),
    "summarize": _Command(
        "summarization",
        "the sentences that say the most of a document",
        _SENTENCES,
        _summarize_options,
        ("sentences", "words", "ratio", "method", "lead_bias"),
        _show_summary,
        whole_files=True,
    ),
    "generate": _Command(
        "text-generation",
        "text from a masked language model (do not expect much of it)",
        "distilbert/distilbert-base-uncased",
        _generate_options,
        ("length", "passes", "method", "temperature", "seed", "num_return_sequences"),
        _show_generated,
    ),
}
