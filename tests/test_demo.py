"""`make demo`, on few sentences; and what it says where something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import demo


def test_prints_searches_and_one_line_of_speed(
    minilm_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    pytest.importorskip("transformers", reason="the demo compares with transformers")
    monkeypatch.setattr(demo, "CLASSIFIER", tmp_path / "none")
    monkeypatch.setattr(demo, "TURNS", 1)
    monkeypatch.setattr(demo, "EAGER_TURN_SECONDS", 0.0)
    assert demo.main(["--sentences", "300"]) == 0
    printed = capsys.readouterr().out
    for query in demo.QUERIES:
        assert query in printed
    assert "300 vectors in" in printed
    assert "`make distill-demo` makes it" in printed
    (line,) = [line for line in printed.splitlines() if "times as fast" in line]
    assert line.count("sentences/s") == line.count("tokens/s") == 2
    assert "the same 64 sentences" in printed  # the fewest it compares on
    cosine = float(printed.rsplit(": ", 1)[1].rstrip(")\n"))
    assert 0.9999 <= cosine <= 1.00001


def test_search_ranks_by_cosine() -> None:
    vectors = np.eye(4, dtype=np.float32)
    query = np.array([[0.0, 0.6, 0.0, 0.8]], np.float32)
    ((first, second),) = demo.search(query, vectors, 2)
    assert first == (3, pytest.approx(0.8))
    assert second == (1, pytest.approx(0.6))


@pytest.mark.parametrize(
    ("missing", "cure"),
    [
        (LookupError("no model files: install it with pip"), "install it with pip"),
        (ModuleNotFoundError("No module named 'transformers'"), "`make demo` installs everything"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    missing: Exception,
    cure: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> Path:
        raise missing

    monkeypatch.setattr(demo, "minilm_folder", fail)
    assert demo.main([]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("demo: ")
    assert captured.err.count("\n") == 1
    assert cure in captured.err


def test_without_a_distilled_classifier_one_line_says_how_to_make_it(tmp_path: Path) -> None:
    said = demo.classified(tmp_path / "none")
    assert said == f"no distilled classifier in {tmp_path / 'none'}; `make distill-demo` makes it"
