"""`fastdistil bench`: how fast a model runs here, beside the engines that one would use instead.

The options are in `fastdistil.cli`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..text_io import UsageError
from ..vector_io import check_output
from . import ours, results, subject, summary
from .engines import Engine
from .environment import environment
from .html import page
from .peers import PEERS, known_names
from .race import Contender, choose, original, prepare, race
from .results import Results, Row
from .subject import Subject
from .timing import say
from .workloads import Workload

# Of a run, and of a quick one, which has to end within two minutes.
_WORKLOADS = ("mixed,sorted,16x128,1x16", "mixed,8x128,1x16")
# One of these takes longer than everything else in a quick run.
_COMPILED = "compile-"
# Turns of each engine: of a run, of a quick one.
_ROUNDS = (5, 2)


def run(options: argparse.Namespace) -> None:
    """Measure and print; options as `fastdistil.cli` declares them.

    Raises:
        UsageError: a name that is not known; the message lists those that are.
        ImportError: transformers is missing.
        OSError, ValueError: a file or a model that cannot be read, a file that cannot be written.
        RuntimeError: nothing could be measured.
    """
    left_out: list[str] = []
    peers = _peers(options.peers, left_out, quick=options.quick)
    precisions = _names("--precisions", options.precisions, ours.PRECISIONS)
    names = subject.workload_names(
        _WORKLOADS[options.quick] if options.workload is None else options.workload
    )
    for file in filter(None, (options.json, options.html)):
        check_output(file)
    what = subject.load(options.model, options.texts)
    say("; ".join(f"{name}: {told}" for name, told in what.told.items()))
    works = [subject.workload(name, what, quick=options.quick) for name in names]
    rows = _measure(what, works, peers, precisions, left_out, quick=options.quick)
    if not rows:
        raise RuntimeError(f"nothing could be measured: {'; '.join(left_out)}")
    record = tuple(dict.fromkeys(left_out))
    found = Results("bench", environment(), tuple(rows), record, quick=options.quick)
    print(summary.report(found, options.price_per_hour))
    if options.json is not None:
        results.write(options.json, found)
    if options.html is not None:
        options.html.write_text(page(found, options.price_per_hour), encoding="utf-8")


def _peers(text: str | None, left_out: list[str], *, quick: bool) -> list[str]:
    """Those that are named, else all; but in a quick run not those that compile for minutes."""
    if text is not None:
        return _names("--peers", text, PEERS)
    slow = [name for name in PEERS if quick and name.startswith(_COMPILED)]
    left_out += [f"{name}: it compiles for longer than a quick run takes" for name in slow]
    return [name for name in PEERS if name not in slow]


def _names(option: str, text: str, known: Iterable[str]) -> list[str]:
    try:
        return known_names(text, known)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{option}: {error}") from None


def _measure(
    what: Subject,
    works: Sequence[Workload],
    peers: Sequence[str],
    precisions: Sequence[str],
    left_out: list[str],
    *,
    quick: bool,
) -> list[Row]:
    """A row for every engine on every workload; a line in `left_out` for each that has none."""
    own_precisions = ours.precisions(what.model, left_out, precisions)
    if not own_precisions:
        raise RuntimeError(f"nothing of fastdistil can be measured here: {'; '.join(left_out)}")

    @functools.cache
    def own(make: Callable[[Any, str], Engine]) -> list[Engine]:
        return [make(what.model, precision) for precision in own_precisions]

    rows: list[Row] = []
    steps = len(peers) + 2 * len(works) * (len(peers) + len(own_precisions))
    with _progress(steps) as advance:
        prepared: list[Engine] = []
        for name in peers:
            prepared += prepare(what.model, [name], left_out, left_out).values()
            advance()
        for line in summary.told_left_out(left_out):
            say(line)
        for work in works:
            expected = original(what.model, work)
            # fastdistil's own model takes texts as they come; batches of one length, the drop-in.
            texts = work.name.startswith(subject.MIXED)
            engines = [*own(ours.packed if texts else ours.drop_in), *prepared]
            chosen: list[Contender] = []
            for engine in engines:
                chosen += choose([engine], work, expected, left_out, quick=quick)
                advance()
            timed = race(work, chosen, _ROUNDS[quick], quick=quick)
            rows += [replace(row, info={**row.info, **what.told}) for row in timed]
            advance(len(engines))
    return rows


@contextlib.contextmanager
def _progress(steps: int) -> Iterator[Callable[..., object]]:
    """A bar below the lines that are said, on a terminal; elsewhere only the lines."""
    from tqdm import tqdm
    from tqdm.contrib import DummyTqdmFile

    shape = "{percentage:3.0f}%|{bar:24}| {elapsed}"
    with (
        tqdm(total=steps, bar_format=shape, leave=False, disable=None) as bar,
        contextlib.redirect_stderr(DummyTqdmFile(sys.stderr)),
    ):
        yield bar.update
