"""What tuning decides, and the files it writes: functions over timings and tables of rules.

The file is one of `kernels/tuning`; `kernels/settings.py` says what is in it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from fastdistil.kernels.settings import AttentionSetting, LinearSetting, Settings, load_settings

Rule = dict[str, Any]
# (largest size or None for no limit, setting without the limit)
Bounded = tuple[int | None, Rule]

# Sizes that are tuned at. A choice holds from its size down to the next smaller one, and the
# largest one's for all above.
TOKEN_CLASSES = (16, 64, 256, 1024, 4096, 16384)
LENGTH_CLASSES = (16, 32, 64, 128, 512)

_LINE = 120


def spread(seconds: Sequence[float]) -> float:
    """How far repeats of one thing lie apart: from the 10th to the 90th percentile."""
    if len(seconds) < 2:
        return 0.0
    deciles = statistics.quantiles(seconds, n=10, method="inclusive")
    return deciles[-1] - deciles[0]


def accepts(
    incumbent: Sequence[float],
    candidate: Sequence[float],
    identical: bool,
    incumbent_identical: bool = True,
) -> bool:
    """Whether a candidate replaces the incumbent.

    Args:
        incumbent, candidate: seconds of turns that alternated.
        identical: whether the candidate's bits are the layer's.
        incumbent_identical: whether the incumbent's are; one whose bits differ breaks batch
            invariance and gives way to any that keeps it.
    """
    if not identical:
        return False
    if not incumbent_identical:
        return True
    return statistics.median(candidate) + spread(incumbent) < statistics.median(incumbent)


def plain(setting: LinearSetting | AttentionSetting) -> Rule:
    """A setting as it stands in a file: what is not said there is left out."""
    values = asdict(setting)
    values.pop("key_block", None)
    if values["programs"] is None:
        values.pop("programs")
    default = {field.name: field.default for field in fields(setting)}
    if values["precision"] == default["precision"]:
        values.pop("precision")
    return {"variant": "cublas"} if values.get("variant") == "cublas" else values


def collapse(rules: Sequence[Bounded], limit: str) -> list[Rule]:
    """Rules as they stand in a file, equal neighbours joined.

    Args:
        rules: in rising order of their limits; no limit last.
        limit: the limit's name, "max_tokens" or "max_seqlen".
    """
    kept: list[Bounded] = []
    for most, setting in rules:
        if kept and kept[-1][1] == setting:
            kept.pop()
        kept.append((most, setting))
    return [{limit: most, **setting} for most, setting in kept]


def linear_rules(
    before: Settings, kind: str, shape: tuple[int, int], chosen: Mapping[int, Rule]
) -> list[Rule]:
    """The rules of one layer: what was chosen where that was measured, else as before.

    Args:
        before: the settings that hold now.
        kind: "half" or "fp32".
        shape: (out_features, in_features).
        chosen: the choice by the one of TOKEN_CLASSES that it was made at.
    """
    dtype = _dtype(kind)
    limits = {limit for k, _, limit, _ in before.all_linear() if k == kind and limit is not None}
    ends: list[int | None] = [*sorted(limits | set(TOKEN_CLASSES[:-1])), None]
    rules: list[Bounded] = []
    for end in ends:
        setting = chosen.get(_class_of(end, TOKEN_CLASSES))
        if setting is None:
            tokens = 1 << 30 if end is None else end
            setting = plain(before.linear(dtype, tokens, *shape))
        rules.append((end, setting))
    return collapse(rules, "max_tokens")


def choose_key_block(
    medians: Mapping[int, Mapping[int, float]], incumbent: int, margin: float
) -> int:
    """The one key block of a head size, by the geometric mean over LENGTH_CLASSES.

    Args:
        medians: key block -> length -> seconds of its best setting. Only key blocks that have
            every length are looked at.
        incumbent: the present key block.
        margin: the part of the time that a change has to win more than.
    """
    complete = {k for k, found in medians.items() if set(found) >= set(LENGTH_CLASSES)}
    if incumbent not in complete:
        return incumbent
    base = medians[incumbent]

    def relative(key_block: int) -> float:
        logs = [math.log(medians[key_block][n] / base[n]) for n in LENGTH_CLASSES]
        return math.exp(sum(logs) / len(logs))

    best = min(complete, key=relative)
    return best if relative(best) < 1.0 - margin else incumbent


def attention_rules(present: Sequence[Rule], chosen: Mapping[int, Rule]) -> list[Rule]:
    """The rules of one head size: what was chosen where that was measured, else as before.

    Args:
        present: the rules that hold now, with their limits.
        chosen: the choice by the one of LENGTH_CLASSES that it was made at.
    """
    limits = {rule["max_seqlen"] for rule in present} - {None}
    ends: list[int | None] = [*sorted(limits | set(LENGTH_CLASSES[:-1])), None]
    rules: list[Bounded] = []
    for end in ends:
        setting = chosen.get(_class_of(end, LENGTH_CLASSES))
        if setting is None or not _holds(setting, end):
            setting = _without_limit(_rule_for(present, end))
        rules.append((end, setting))
    return collapse(rules, "max_seqlen")


def write_table(path: Path, table: Mapping[str, Any], target: str) -> None:
    """Write settings that `Settings` accepts; aside first, then renamed.

    Raises:
        ValueError: they are not acceptable; the file is as it was.
    """
    text = format_table(table)
    Settings(target, json.loads(text), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


@contextlib.contextmanager
def settings_with(target: str, entries: Mapping[str, Any]) -> Iterator[None]:
    """Within it, models are prepared with the present table and some entries of its top changed."""
    table = {**load_settings(target).table, **entries}
    before = os.environ.get("FASTDISTIL_TUNING")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{target}.json"
        write_table(path, table, target)
        os.environ["FASTDISTIL_TUNING"] = str(path)
        try:
            yield
        finally:
            if before is None:
                del os.environ["FASTDISTIL_TUNING"]
            else:
                os.environ["FASTDISTIL_TUNING"] = before


def format_table(table: Mapping[str, Any]) -> str:
    """JSON for people: a rule a line."""
    return _format(table, 0) + "\n"


def changed(table: Mapping[str, Any], *keys: str, value: Any) -> dict[str, Any]:
    """A copy of a nested mapping with one place set; levels that miss are made."""
    result = copy.deepcopy(dict(table))
    place = result
    for key in keys[:-1]:
        place = place.setdefault(key, {})
    place[keys[-1]] = value
    return result


def _format(value: Any, depth: int) -> str:
    flat = json.dumps(value)
    if not isinstance(value, (dict, list)) or not value or _is_rule(value):
        return flat
    if depth > 1 and isinstance(value, dict) and len(flat) + 2 * depth <= _LINE:
        return flat
    pad, inner = "  " * depth, "  " * (depth + 1)
    if isinstance(value, list):
        lines = [inner + _format(entry, depth + 1) for entry in value]
        return "[\n" + ",\n".join(lines) + f"\n{pad}]"
    lines = [f"{inner}{json.dumps(k)}: {_format(v, depth + 1)}" for k, v in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{pad}}}"


def _is_rule(value: Any) -> bool:
    return isinstance(value, dict) and not any(isinstance(v, (dict, list)) for v in value.values())


def _class_of(end: int | None, classes: Sequence[int]) -> int:
    """The size that a rule up to `end` is measured at."""
    largest = classes[-1]
    return largest if end is None else next((size for size in classes if end <= size), largest)


def _dtype(kind: str) -> Any:
    import torch

    return torch.float32 if kind == "fp32" else torch.bfloat16


def _holds(setting: Rule, end: int | None) -> bool:
    """Whether heads that share a tile have room in their slots."""
    return setting["slot"] == setting["block_q"] or (end is not None and end <= setting["slot"])


def _rule_for(present: Sequence[Rule], end: int | None) -> Rule:
    for rule in present:
        limit = rule["max_seqlen"]
        if limit is None or (end is not None and end <= limit):
            return rule
    raise ValueError(f"no attention rule for {end} tokens")


def _without_limit(rule: Rule) -> Rule:
    return {name: value for name, value in rule.items() if name != "max_seqlen"}
