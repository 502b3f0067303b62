"""What the results of `fastdistil bench` say: the table, the settings, and one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from .cost import cost_per_million_tokens
from .environment import describe
from .results import Results, Row
from .subject import MIXED
from .tables import markdown_table
from .timing import ratio

OURS = "fastdistil "
EAGER = "eager PyTorch fp32"

# What an engine of each precision is compared with: engines that give up no more accuracy.
OPPONENTS = {"bf16": ("bf16", "fp32"), "fp32": ("fp32",), "int8": ("int8", "bf16", "fp32")}
# Workloads in tables, and within a sentence.
_LABELS = {MIXED: "real sentences, given order", "mixed, sorted": "real sentences, by length"}
_PLACES = {
    MIXED: "real sentences in the given order",
    "mixed, sorted": "real sentences sorted by length",
}
_ABSENT = re.compile(r"No module named '(\w+)")

METHOD = (
    "Figures are medians of turns that the engines took in rotation, ± half the range of their "
    "middle half; only real tokens count. Every engine's answers were checked against eager "
    "PyTorch fp32 on the same inputs first. The other engines get padded batches, made before the "
    "clock starts."
)
QUICK = "A quick run: few texts, few turns. Not for publishing."


def report(results: Results, price_per_hour: float | None = None) -> str:
    """Everything for a terminal, in Markdown; the table and the sentence come last."""
    sizes = (f"{label(name)}: {size}" for name, size in workloads(results).items())
    lists = (
        [about(results), *sizes],
        settings(results),
        told_left_out(results.left_out),
    )
    parts = ["\n".join(f"- {line}" for line in lines) for lines in lists if lines]
    parts += [METHOD + (f" {QUICK}" if results.quick else "")]
    parts += [f"> {describe(results.environment)}"]
    parts += [markdown_table(*table(results, price_per_hour)), sentence(results)]
    return "\n\n".join(parts)


def label(group: str) -> str:
    """A workload's name for people."""
    return _LABELS.get(group, group)


def is_single(rows: Mapping[str, Row]) -> bool:
    """Whether a group is about one sequence, whose time says more than its throughput."""
    return all(row.info["sequences"] == 1 for row in rows.values())


def figure(row: Row) -> float:
    """Milliseconds of a single sequence, else tokens a second."""
    return 1e3 * row.timing.median if row.info["sequences"] == 1 else row.tokens_per_second


def cell(row: Row | None) -> str:
    """A row's figure and its spread; "-" where there is none."""
    if row is None:
        return "-"
    digits = 2 if row.info["sequences"] == 1 else 0
    return f"{figure(row):,.{digits}f} ±{row.timing.spread:.0%}"


def table(
    results: Results, price_per_hour: float | None = None
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: an engine a row, a workload a column, and what a million tokens cost."""
    groups = results.groups()
    units = {name: "ms" if is_single(rows) else "tok/s" for name, rows in groups.items()}
    header = ["engine", *(f"{label(name)} ({unit})" for name, unit in units.items())]
    names = dict.fromkeys(row.name for row in results.rows)
    body = [[name, *(cell(rows.get(name)) for rows in groups.values())] for name in names]
    if price_per_hour is not None:
        first = _first_group(results)
        header.append(f"{label(first)} (cost of 1M tokens at {price_per_hour:g} an hour)")
        for line in body:
            line.append(_cost(groups[first].get(line[0]), price_per_hour))
    return header, body


def settings(results: Results) -> list[str]:
    """A line for each engine: how it was set up, and how close its answers were at worst."""
    lines = []
    for name in dict.fromkeys(row.name for row in results.rows):
        rows = [row for row in results.rows if row.name == name]
        chosen: dict[str, list[str]] = {}
        for row in rows:
            chosen.setdefault(row.info["configuration"], []).append(label(row.group))
        told = [
            how if len(chosen) == 1 else f"{how} ({' / '.join(where)})"
            for how, where in chosen.items()
        ]
        least = min(row.info["least_cosine"] for row in rows)
        lines.append(f"{name}: {'; '.join(told)}; least cosine of a token {least:.5f}")
    return lines


def told_left_out(left_out: Iterable[str]) -> list[str]:
    """Packages that are not installed, in one line; then what else was not measured, and why."""
    reasons = list(left_out)
    absent = dict.fromkeys(match[1] for line in reasons if (match := _ABSENT.search(line)))
    lines = [f"not measured: {line}" for line in reasons if not _ABSENT.search(line)]
    if absent:
        lines.insert(0, f"not installed: {', '.join(absent)}: pip install 'fastdistil[bench]'")
    return lines


def about(results: Results) -> str:
    """The model and the texts, in a line."""
    info = results.rows[0].info
    return f"model: {info['model']}; texts: {info['texts']}"


def workloads(results: Results) -> dict[str, str]:
    """How much each workload is, by its name."""
    return {name: _size(next(iter(rows.values()))) for name, rows in results.groups().items()}


def _size(row: Row) -> str:
    sequences, tokens = row.info["sequences"], row.info["tokens"]
    return f"{sequences:,} text{'s' * (sequences > 1)}, {tokens:,} tokens"


def sentence(results: Results) -> str:
    """How fast fastdistil is beside the fastest other engine that gives up no more accuracy.

    Of the precisions measured it speaks of the one that is chosen by default.
    """
    group = _first_group(results)
    rows = results.groups()[group]
    ours = next((row for p in OPPONENTS if (row := rows.get(OURS + p))), None)
    if ours is None:
        return "There is no figure of fastdistil: why is said where it was left out."
    allowed = OPPONENTS[ours.info["precision"]]
    peers = [
        row
        for row in rows.values()
        if row.info["precision"] in allowed and not row.name.startswith(OURS)
    ]
    kinds = " or ".join(filter(None, [", ".join(allowed[:-1]), allowed[-1]]))
    if not peers:
        return (
            f"No other engine at {kinds} precision was measured beside {ours.name}, which runs "
            f"{ours.tokens_per_second:,.0f} tokens/s on {_place(group)}."
        )
    best = min(peers, key=lambda row: row.timing.median)
    whom = f"the fastest other engine measured at {kinds} precision ({best.name})"
    told = f"{ours.name} is {_compared(ours, best, whom)} on {_place(group)}"
    eager = rows.get(EAGER)
    if eager is not None and eager is not best:
        told += f", and {_compared(ours, eager, EAGER)}"
    return f"{told}."


def _first_group(results: Results) -> str:
    """The workload that the sentence is about."""
    groups = results.groups()
    return MIXED if MIXED in groups else next(iter(groups))


def _place(group: str) -> str:
    return _PLACES.get(group, f"a batch of {group} tokens")


def _compared(ours: Row, theirs: Row, whom: str) -> str:
    """No more than the spread of their turns allows to say."""
    times = ratio(ours.timing, theirs.timing)
    if abs(times - 1) <= ours.timing.spread + theirs.timing.spread:
        return f"about as fast as {whom}"
    if times < 1:
        return f"only {times:.2f} times as fast as {whom}"
    return f"{times:.{2 if times < 2 else 1 if times < 10 else 0}f} times as fast as {whom}"


def _cost(row: Row | None, price_per_hour: float) -> str:
    if row is None:
        return "-"
    cost = cost_per_million_tokens(row.tokens_per_second, price_per_hour)
    return np.format_float_positional(cost, precision=3, fractional=False, trim="-")
