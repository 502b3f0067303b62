"""benchmarks.compare: what counts as slower, what is not compared, and how it says so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers import SOME_ENVIRONMENT

from benchmarks import compare
from fastdistil.bench.results import Results, Row, write

STEADY = (1.00, 1.01, 0.99)


def row(name: str, *turns: float, group: str = "mixed", **info: Any) -> Row:
    return Row(group, name, turns, {"tokens": 100, **info})


def run(*rows: Row, **changes: Any) -> Results:
    return Results("models", {**SOME_ENVIRONMENT, **changes}, rows)


def times(row_seconds: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(factor * turn for turn in row_seconds)


def verdicts(before: Results, after: Results, relative_to: str | None = None) -> dict[str, str]:
    return {
        change.name: "slower" if change.is_slower else "faster" if change.is_faster else "same"
        for change in compare.changes(before, after, [], relative_to)
    }


def test_only_more_than_three_times_the_noise_counts() -> None:
    # The spread of STEADY is half a percent: in both runs, three times, 3 %.
    before = run(*(row(name, *STEADY) for name in ("a", "b", "c", "d")))
    factors = {"a": 1.029, "b": 1.031, "c": 1 / 1.029, "d": 1 / 1.031}
    after = run(*(row(name, *times(STEADY, factor)) for name, factor in factors.items()))
    assert verdicts(before, after) == {"a": "same", "b": "slower", "c": "same", "d": "faster"}


def test_turns_that_agree_by_chance_have_the_noise_of_the_others() -> None:
    loose = (1.0, 1.1, 0.9)
    before = run(row("lucky", 1.0, 1.0, 1.0), row("a", *loose), row("b", *loose))
    after = run(row("lucky", 1.2, 1.2, 1.2), row("a", *loose), row("b", *loose))
    assert verdicts(before, after) == {"lucky": "same", "a": "same", "b": "same"}
    alone = [run(row("lucky", *3 * [seconds])) for seconds in (1.0, 1.2)]
    assert verdicts(*alone) == {"lucky": "slower"}


def test_passes_are_compared_not_turns() -> None:
    before = run(row("a", *STEADY, repeats=1))
    after = run(row("a", *times(STEADY, 2), repeats=2))
    assert verdicts(before, after) == {"a": "same"}


def test_a_reference_cancels_what_all_have_in_common() -> None:
    mood = (1.0, 1.5, 1.2)
    before = run(row("eager", *STEADY), row("a", *STEADY), row("b", *STEADY))
    after = run(row("eager", *mood), row("a", *mood), row("b", *times(mood, 1.1)))
    assert verdicts(before, after, relative_to="eager") == {"a": "same", "b": "slower"}


def against_others(ours: float, others: tuple[float, ...], group: str = "mixed") -> compare.Change:
    """fastdistil in `group`, that many times as long as before; the others are all in "mixed"."""
    before = run(
        row("fastdistil", *STEADY, group=group),
        *(row(f"other {place}", *STEADY) for place in range(len(others))),
    )
    after = run(
        row("fastdistil", *times(STEADY, ours), group=group),
        *(row(f"other {place}", *times(STEADY, t)) for place, t in enumerate(others)),
    )
    changes = compare.drifted(compare.changes(before, after, []))
    return next(change for change in changes if change.name == "fastdistil")


def test_what_became_of_all_is_the_machine_s_doing() -> None:
    slow = (1.2,) * 5
    assert not against_others(1.2, slow).is_slower
    assert against_others(1.25, slow).is_slower
    assert against_others(1.15, slow).is_faster
    assert against_others(1.2, slow[:4]).is_slower  # too few to tell
    uneven = (1.0, 1.1, 1.2, 1.3, 1.4)  # whose deviation is 0.13, in logarithms
    assert not against_others(1.7, uneven).is_slower
    assert against_others(1.9, uneven).is_slower


def test_workloads_without_others_have_the_scatter_of_all_of_them() -> None:
    alone = against_others(1.2, (1.1, 0.9, 1.1, 0.9, 1.1), group="alone")
    assert alone.drift.times == 1
    assert not alone.is_slower
    assert against_others(1.6, (1.1, 0.9, 1.1, 0.9, 1.1), group="alone").is_slower
    assert against_others(1.2, (1.0,) * 5, group="alone").is_slower


def test_what_cannot_be_compared_is_said() -> None:
    before = run(
        row("a", *STEADY),
        row("gone", *STEADY),
        row("few", 1.0, 1.0),
        row("other work", *STEADY),
        row("alone", *STEADY, group="w"),
    )
    after = run(
        row("a", *STEADY),
        row("new", *STEADY),
        row("few", 1.0, 1.0),
        row("other work", *STEADY, tokens=50),
        row("alone", *STEADY, group="w"),
    )
    said: list[str] = []
    assert [change.name for change in compare.changes(before, after, said)] == ["a", "alone"]
    assert said == [
        "mixed: gone: only in A",
        "mixed: few: fewer than 3 turns",
        "mixed: other work: 100 tokens in A, 50 in B",
        "mixed: new: only in B",
    ]
    said.clear()
    list(compare.changes(before, after, said, relative_to="a"))
    assert {"mixed: few: no such turns of a", "w: alone: no such turns of a"} <= set(said)


def files(folder: Path, before: Results, after: Results) -> list[str]:
    paths = [folder / "a.json", folder / "b.json"]
    for path, measured in zip(paths, (before, after), strict=True):
        write(path, measured)
    return [str(path) for path in paths]


def test_exit_status_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = run(row("a", *STEADY), row("b", *STEADY), row("c", *STEADY))
    after = run(row("a", *times(STEADY, 1.5)), row("b", *times(STEADY, 0.5)), row("c", *STEADY))
    there = files(tmp_path, before, after)
    assert compare.main(there) == 1
    out = capsys.readouterr().out
    assert "1 slower, 1 faster, 1 within the noise." in out
    slower, faster = (re.findall(rf"\| mixed +\| {name} .*", out) for name in ("a", "b"))
    assert re.findall(r"[\d.]+%?", slower[0]) == ["1", "1.5", "1.500", "1.000", "3.0%"]
    assert re.findall(r"[\d.]+%?", faster[0]) == ["1", "0.5", "0.500", "1.000", "3.0%"]
    assert out.index("Slower") < out.index("Faster")
    assert compare.main([there[0], there[0]]) == 0


def test_other_machines_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = files(tmp_path, run(row("a", *STEADY)), run(row("a", *STEADY), device="Another CPU"))
    with pytest.raises(SystemExit) as refused:
        compare.main(there)
    assert refused.value.code == 2
    assert "not the same machine" in capsys.readouterr().err
    assert compare.main([*there, "--any-device"]) == 0


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_files_that_cannot_be_read_are_named(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (good, bad) = files(tmp_path, run(row("a", *STEADY)), run(row("a", *STEADY)))
    Path(bad).unlink()
    if content is not None:
        Path(bad).write_text(content)
    with pytest.raises(SystemExit) as refused:
        compare.main([good, bad])
    assert refused.value.code == 2
    assert bad in capsys.readouterr().err


def test_nothing_in_common_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = files(tmp_path, run(row("a", *STEADY)), run(row("b", *STEADY)))
    with pytest.raises(SystemExit) as refused:
        compare.main(there)
    assert refused.value.code == 2
    assert "nothing to compare\nmixed: a: only in A" in capsys.readouterr().err
