"""A file of texts in, a file of a task's results out: streaming, and resumable.

The results are JSON lines, {"id": ..., "result": ...}, in the order of the records; the id is the
row's number from 0, or what an id column says. Work is done and kept a shard at a time, as when
vectors are encoded (see `fastdistil.shard_plan`), so an interrupted run continues where it stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from ..progress import Progress
from ..run_folder import TEMPORARY, atomic_file, full_disk_explained, partial_folder
from ..shard_plan import IdSpool, Plan, digest_of, plans
from ..shards import Shard, ShardStore
from ..text_io import UsageError, format_of_input, open_records
from ..vector_io import check_input, check_output


@dataclass(frozen=True)
class TaskSummary:
    """What a finished run did."""

    output: Path
    rows: int
    resumed: int
    """Rows taken over from an earlier run that was interrupted."""
    seconds: float


def run_file(
    pipeline: Any,
    source: str | Path,
    output: str | Path,
    *,
    input_format: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    make_input: Callable[[str], Any] | None = None,
    resume: bool = True,
    show_progress: bool | None = None,
    **options: Any,
) -> TaskSummary:
    """Results of every record of a file, one line each, in order.

    Args:
        pipeline: from `fastdistil.pipeline`.
        source: .txt (a text a line), .jsonl, .csv or .parquet; "-" is standard input.
        output: a .jsonl file; replaced if it exists.
        input_format, text_column, id_column: as for `fastdistil.encode_file.encode_file`.
        make_input: makes the task's input of a text, of JSON's types; by default the text is it.
        resume: continue an interrupted run; False begins again.
        show_progress: on stderr; None: if that is a terminal.
        options: the task's.

    Raises:
        UsageError: formats or options that cannot go together.
        InputError: a record that cannot be used; what was done before it is kept.
        ResumeError: OUT.partial belongs to a run with another model or other options.
        OSError: files that cannot be read or written; a full disk says how to continue.
    """
    started = time.monotonic()
    check_task_files(source, output, input_format, text_column, id_column)
    output = Path(os.path.realpath(output))
    shown = sys.stderr.isatty() if show_progress is None else show_progress
    with (
        open_records(source, input_format, text_column, id_column) as records,
        ShardStore(partial_folder(output)) as store,
        full_disk_explained(store.folder),
    ):
        store.begin(_settings(pipeline, options, make_input), resume=resume)
        with IdSpool(store.folder, id_column is not None) as ids:
            with Progress(shown, records.total) as progress:
                done = list(
                    _worked(pipeline, options, make_input, plans(records, ids), store, progress)
                )
            sizes = [shard.rows for shard, _ in done]
            _assemble(output, store, sizes, ids)
        store.remove()
    resumed = sum(shard.rows for shard, was_there in done if was_there)
    return TaskSummary(output, sum(sizes), resumed, time.monotonic() - started)


def json_line(value: Any, encoding: str = "utf-8") -> str:
    """A value as JSON on one line, in characters that the encoding has: others are escaped, lone
    surrogates for example."""
    line = json.dumps(value, ensure_ascii=False)
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value)
    return line


def check_task_files(
    source: str | Path,
    output: str | Path,
    input_format: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
) -> None:
    """All that can be told about a request before a model is loaded.

    Raises:
        UsageError: an output that is not .jsonl, or formats that are not known.
        OSError: an input that is not there, an output that cannot be.
    """
    format_of_input(source, input_format, text_column, id_column)
    if Path(output).suffix.lower() != ".jsonl":
        raise UsageError(f"results are JSON lines: {str(output)!r} should end in .jsonl")
    check_output(output)
    check_input(source, output)


def _settings(
    pipeline: Any, options: dict[str, Any], make_input: Callable[[str], Any] | None
) -> dict[str, Any]:
    """What decides the results besides the records."""
    return {
        "fastdistil": __version__,
        "task": pipeline.task,
        "model": pipeline.fingerprint(),
        "options": json.loads(json.dumps(options, sort_keys=True, default=str)),
        "input": "text" if make_input is None else "made of the text",
    }


def _worked(
    pipeline: Any,
    options: dict[str, Any],
    make_input: Callable[[str], Any] | None,
    shards: Iterable[tuple[Plan, list[str]]],
    store: ShardStore,
    progress: Progress,
) -> Iterator[tuple[Shard, bool]]:
    """What is known about each shard, and whether it was there before."""
    for plan, texts in shards:
        inputs: list[Any] = list(texts)
        digest = plan.digest
        if make_input is not None:
            # A function cannot be compared with one of another run; what it makes can.
            inputs = [make_input(text) for text in texts]
            digest = digest_of([json.dumps(one, sort_keys=True, default=str) for one in inputs])
        found = store.find(plan.index, digest)
        if found is not None:
            progress.skip(plan.rows, plan.end)
            yield found, True
            continue
        lines: list[str] = []
        for result in pipeline(iter(inputs), **options):
            lines.append(json_line(result))
            here = plan.begin + (plan.end - plan.begin) * len(lines) / plan.rows
            progress.update(1, 0, here)
        data = "\n".join(lines).encode()
        shard = Shard(plan.rows, 0, 0, 0)
        store.write(plan.index, digest, np.frombuffer(data, np.uint8), shard)
        yield shard, False


def _assemble(output: Path, store: ShardStore, sizes: Sequence[int], ids: IdSpool) -> None:
    with atomic_file(output, store.folder / f"output{TEMPORARY}") as stream:
        for index, some in enumerate(ids.blocks(sizes)):
            lines = store.read(index).tobytes().split(b"\n")
            for one, line in zip(some, lines, strict=True):
                stream.write(b'{"id": %b, "result": %b}\n' % (json.dumps(one).encode(), line))
