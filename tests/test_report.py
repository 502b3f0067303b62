"""benchmarks.report: results to Markdown and pictures; what is committed against its results."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SOME_ENVIRONMENT
from test_figures import of_parts, texts

from benchmarks import goals, report
from benchmarks.command import RESULTS
from benchmarks.models.workloads import CASES
from benchmarks.sections import models
from fastdistil.bench import ours, results, summary
from fastdistil.bench.results import Results, Row

pytest.importorskip("matplotlib", reason='runs where `pip install -e ".[test]"` was done')

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
# Names that matplotlib makes from what is drawn.
MADE_UP = re.compile(r'(?<=id=")[^"]*|(?<=#)[a-z0-9]+(?=[")])')


def row(group: str, name: str, seconds: float, **info: Any) -> Row:
    """Three turns that spread a little; 100 tokens, of 200 padded."""
    facts = {
        "precision": name.split()[-1],
        "configuration": f"{name} as it is",
        "least_cosine": 0.9999,
        "sequences": 4,
        "tokens": 100,
        "padded_tokens": 200,
        "repeats": 1,
    }
    return Row(group, name, (seconds, 1.02 * seconds, 0.98 * seconds), facts | info)


def forwards(amx: bool = True, **groups: dict[str, float]) -> Results:
    """Of `benchmarks.models`: by group ("_" for a space) and engine, seconds."""
    rows = [
        row(group.replace("_", " "), name, seconds)
        for group, engines in groups.items()
        for name, seconds in engines.items()
    ]
    flags = ["amx_bf16"] if amx else ["avx512f"]
    return Results("models", {**SOME_ENVIRONMENT, "flags": flags}, tuple(rows))


MIXED = {"fastdistil int8": 1.0, "fastdistil bf16": 2.0, "OpenVINO bf16": 3.0}


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


# --- what is committed ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed() -> report.Page:
    """The page and pictures that the committed results give."""
    return report.page(sorted(RESULTS.iterdir()))


def test_docs_are_what_was_measured(committed: report.Page) -> None:
    """Otherwise: python -m benchmarks.report"""
    assert (report.DOCS / "benchmarks.md").read_text(encoding="utf-8") == committed.text


def test_figures_are_what_was_measured(committed: report.Page) -> None:
    """Otherwise: python -m benchmarks.report; a figure that is made no more is to be deleted."""
    there = {f"figures/{file.name}" for file in (report.DOCS / "figures").iterdir()}
    assert there == set(committed.pictures)
    for name, svg in committed.pictures.items():
        drawn = MADE_UP.sub("", (report.DOCS / name).read_text(encoding="utf-8"))
        expected = MADE_UP.sub("", svg)
        assert texts(drawn) == texts(expected), name
        assert NUMBER.sub("", drawn) == NUMBER.sub("", expected), name
        # Another CPU may round the last digit of a place in another way.
        numbers = [[float(n) for n in NUMBER.findall(text)] for text in (drawn, expected)]
        np.testing.assert_allclose(*numbers, rtol=0, atol=0.01, err_msg=name)


def test_nothing_committed_was_measured_in_a_hurry() -> None:
    for file in RESULTS.glob("*/*.json"):
        assert not json.loads(file.read_text(encoding="utf-8")).get("quick"), file


# --- the page -------------------------------------------------------------------------------------


def folder(where: Path, measured: Results, name: str = "some-cpu") -> Path:
    results.write(where / name / f"{measured.suite}.json", measured)
    return where / name


def test_every_figure_of_the_page_is_of_its_file(tmp_path: Path) -> None:
    measured = forwards(mixed=MIXED, **{"1_x_16": {"fastdistil int8": 0.001}})
    there = folder(tmp_path, measured)
    page = report.page([there], out=tmp_path / "docs")
    assert "[models.json](../some-cpu/models.json)" in page.text
    assert "`python -m benchmarks --suites models`" in page.text
    assert "CPU, 2 cores, 2 threads (amx_bf16)" in page.text
    assert "| fastdistil bf16 | 50 ±1%" in re.sub(" +", " ", page.text)
    assert "Padding in the batches of 32" in page.text
    assert f"50% ({summary.label('mixed')})" in page.text
    (name,) = page.pictures
    assert f"]({name})" in page.text
    assert {"100", "50.0", "33.3"} <= set(texts(page.pictures[name]))

    slower = replace(measured.rows[0], seconds=(2.0, 2.0, 2.0))
    folder(tmp_path, replace(measured, rows=(slower, *measured.rows[1:])))
    other = report.page([there], out=tmp_path / "docs")
    assert other.text != page.text
    assert texts(other.pictures[name]) != texts(page.pictures[name])


def test_a_page_comes_out_the_same_again(tmp_path: Path) -> None:
    there = folder(tmp_path, forwards(mixed=MIXED))
    assert report.page([there]) == report.page([there])


def test_who_was_left_out_and_a_hurry_are_said(tmp_path: Path) -> None:
    measured = replace(forwards(mixed=MIXED), left_out=("onednn-int8: why not",), quick=True)
    text = report.page([folder(tmp_path, measured)]).text
    assert "- not measured: onednn-int8: why not" in text
    assert "Not for publishing" in text


def test_tokens_cost_what_the_machine_costs(tmp_path: Path) -> None:
    there = folder(tmp_path, forwards(mixed={"fastdistil int8": 1.0}))
    # 100 tokens/s: a million take 10,000 s.
    (line,) = cells(report.page([there], price_per_hour=0.36).text)[:1]
    assert line == ["fastdistil int8", "100 ±1%", "1"]


def test_the_machine_with_most_comes_first(tmp_path: Path) -> None:
    old, new = ({**SOME_ENVIRONMENT, "date": f"2026-01-0{day}"} for day in (1, 2))
    for name, environment in (("a-old", old), ("b-new", new), ("c-more", old)):
        folder(tmp_path, replace(forwards(mixed=MIXED), environment=environment), name)
    more = {"environment": old, "quick": False, "missing": [], **of_parts()}
    (tmp_path / "c-more" / "parts.json").write_text(json.dumps(more))
    (tmp_path / "d-gpu").mkdir()
    (tmp_path / "d-gpu" / "gpu.md").write_text("# a GPU")
    (tmp_path / "e-nothing").mkdir()
    page = report.page(list(tmp_path.iterdir()), out=tmp_path)
    headings = re.findall(r"^## (.*)", page.text, re.MULTILINE)
    assert headings == ["c-more", "b-new", "a-old", "d-gpu"]
    assert "[gpu.md](d-gpu/gpu.md)" in page.text
    assert {f"figures/c-more-{name}.svg" for name in ("parts", "roofline")} < set(page.pictures)


def test_command_writes_the_page_beside_its_figures(tmp_path: Path) -> None:
    there = folder(tmp_path, forwards(mixed=MIXED))
    assert report.main(["--results", str(there), "--out", str(tmp_path / "docs")]) == 0
    text = (tmp_path / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert [(tmp_path / "docs" / picture).is_file() for picture in pictures] == [True]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("models.json", "{"),
        ("models.json", "{}"),
        ("parts.json", "{}"),
        ("parts.json", '{"environment": {}, "threads": 2}'),
        ("threads.json", "[]"),
    ],
)
def test_files_of_something_else_are_named(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit, match=f"report: {tmp_path / name}: not "):
        report.main(["--results", str(tmp_path), "--out", str(tmp_path)])


def test_no_results_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"report: no results in {tmp_path}"):
        report.main(["--results", str(tmp_path), "--out", str(tmp_path)])


# --- the suites' sections -------------------------------------------------------------------------


def test_scaling_has_a_column_for_each_point(tmp_path: Path) -> None:
    rows = [
        row(
            f"batch: {x}", engine, seconds * x, axis="batch", x=x, x_unit="sequences", engine=engine
        )
        for x in (1, 8)
        for engine, seconds in (("fastdistil int8", 0.001), ("eager PyTorch fp32", 0.004))
    ]
    page = report.page([folder(tmp_path, Results("scaling", SOME_ENVIRONMENT, tuple(rows)))])
    assert cells(page.text) == [
        ["fastdistil int8", "1.00 ±1%", "8.00 ±1%"],
        ["eager PyTorch fp32", "4.00 ±1%", "32.00 ±1%"],
    ]
    (svg,) = page.pictures.values()
    assert {"sequences", "ms a pass", "fastdistil int8", "8"} <= set(texts(svg))


def test_operations_are_held_against_their_ceiling(tmp_path: Path) -> None:
    def operation(name: str, isa_flops: float, seconds: float, **info: Any) -> Row:
        facts = {"operation": "linear", "shape": "MiniLM", "flops": 4e9, "bytes": 1e9, "threads": 2}
        ceilings = {"ceiling_flops": isa_flops, "ceiling_bytes_per_second": 2e9, "error": 0.001}
        return row("linear, MiniLM", name, seconds, **{**facts, **ceilings, **info})

    rows = (
        operation("C++ avx512 fp32", 4e9, 2.0),
        operation("C++ avx2 fp32", 2e9, 4.0),
        operation("eager PyTorch fp32", 4e9, 4.0, bytes=4e9),
        replace(operation("pack", 4e9, 1.0, operation="pack", flops=0), group="pack, MiniLM"),
    )
    page = report.page([folder(tmp_path, Results("kernels", SOME_ENVIRONMENT, rows))])
    shown, *folds = page.text.split("<summary>")
    assert cells(shown) == [
        ["linear, MiniLM", "C++ avx512 fp32", "2,000,000.0 ±1%", "0.5", "2.0", "50%", "1.0e-03"],
        ["linear, MiniLM", "eager PyTorch fp32", "4,000,000.0 ±1%", "1.0", "1.0", "50%", "1.0e-03"],
    ]
    linear, pack, _ = map(cells, folds)  # and the settings
    assert [line[1] for line in linear] == [
        "C++ avx512 fp32",
        "C++ avx2 fp32",
        "eager PyTorch fp32",
    ]
    assert [line[4:6] for line in pack] == [["0.0", "50%"]]
    (svg,) = page.pictures.values()
    assert {"fp32 4 GFLOP/s", "memory 2 GB/s", "linear", "fastdistil"} <= set(texts(svg))


def test_texts_have_rates_and_a_first_vector_seconds(tmp_path: Path) -> None:
    rows = (
        row("sentences", "fastdistil int8", 0.5, peak_process_bytes=2e8),
        replace(row("sentences", "fastembed fp32", 2.0, peak_process_bytes=4e8), seconds=(2.0,)),
        row("first vector", "fastembed fp32", 1.5, sequences=1, peak_process_bytes=3e8),
        row("whole file", "fastdistil encode int8", 2.0, sequences=900, peak_process_bytes=3e8),
    )
    page = report.page([folder(tmp_path, Results("encode", SOME_ENVIRONMENT, rows))])
    assert cells(page.text.split("<details>")[0].split("| first")[0]) == [
        ["fastdistil int8", "8.0 ±1%", "200", "200", "0.99990"],
        ["fastembed fp32", "2.0", "50", "400", "0.99990"],
    ]
    assert "| fastembed fp32 | 1.50 ±1% | 300 | 0.99990 |" in re.sub(" +", " ", page.text)
    assert "| fastdistil encode int8 | 450 ±1% | 50 |" in re.sub(" +", " ", page.text)
    (svg,) = page.pictures.values()
    assert {"sentences", "first vector", "texts/s", "s, less is better"} <= set(texts(svg))
    assert "whole file" not in texts(svg)  # nobody to compare with


def test_paper_has_its_two_tables(tmp_path: Path) -> None:
    facts = {"parameters": 66e6, "layers": 6, "bytes_on_disk": 2.6e8, "pairs_of_a_pass": 1500}
    rows = [
        row("pairs", f"{m}, {e}", seconds, model=m, engine=e, **facts)
        for m, e, seconds in (
            ("BERT-base", "eager PyTorch fp32", 8.0),
            ("DistilBERT-base", "eager PyTorch fp32", 4.0),
            ("DistilBERT-base", "fastdistil fp32", 1.0),
        )
    ]
    page = report.page([folder(tmp_path, Results("paper", SOME_ENVIRONMENT, tuple(rows)))])
    assert "2.00x" in page.text
    assert "8.00x" in page.text


def test_leads_are_over_the_best_peer_of_the_right_kind() -> None:
    measured = forwards(
        mixed={**MIXED, "ONNX Runtime int8": 1.5},
        **{
            "1_x_16": {"fastdistil int8": 1, "OpenVINO fp32": 2},
            "1_x_64": {"fastdistil int8": 1},
            "mixed,_to_vectors": {"fastdistil int8": 1},
        },
    )
    assert cells(models.leads(measured)) == [
        ["mixed", "1.50x (ONNX Runtime int8)", "1.50x (OpenVINO bf16)", "-"],
        ["1 x 16", "2.00x (OpenVINO fp32)", "-", "-"],
        ["1 x 64", "-", "-", "-"],
    ]


def test_verdicts() -> None:
    groups = {
        "mixed": {
            "fastdistil bf16": 1.0,
            "fastdistil int8": 0.5,
            "fastdistil fp32": 8.0,
            "eager PyTorch fp32": 20.0,
            "eager PyTorch bf16": 8.0,
            "ONNX Runtime int8": 6.0,
        },
        "mixed,_sorted": {"fastdistil bf16": 1.0, "OpenVINO bf16": 4.0},
        "1_x_16": {"fastdistil int8": 1.0, "OpenVINO bf16": 4.0},
    }
    rows = goals.rows(forwards(**groups))
    against_best, sorted_bf16, sorted_int8, fp32, *others = [row[1:] for row in rows]
    assert against_best == ("7.5x", "6.00x (ONNX Runtime int8)", "not met")  # the best peer counts
    assert sorted_bf16 == ("3.5x", "4.00x (OpenVINO bf16)", "met")
    assert sorted_int8 == ("5x", "8.00x (OpenVINO bf16)", "met")  # ours in the order given
    assert fp32 == ("2.5x", "2.50x", "met")
    assert {row[1:] for row in others} == {("-", "not measured")}

    rows = goals.rows(forwards(amx=False, **groups))
    assert [row[3] for row in rows[:4]] == ["set for AMX, none here"] * 3 + ["met"]


def test_goals_name_what_is_measured() -> None:
    workloads = {goal.workload for goal in goals.GOALS}
    assert workloads | {goal.peers_workload for goal in goals.GOALS} - {None} <= set(CASES)
    assert {goal.ours for goal in goals.GOALS} == {f"fastdistil {p}" for p in ours.PRECISIONS}


# --- README ---------------------------------------------------------------------------------------


def test_readme_s_section_is_replaced_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    file = folder(tmp_path, forwards(mixed=MIXED)) / "models.json"
    readme = "# Title\n\n<!-- speed: by whom -->\nold figures\n<!-- /speed -->\n\nThe rest.\n"
    written = report.with_figures(readme, file)
    assert written.startswith("# Title\n\n<!-- speed: by whom -->\n| engine ")
    assert written.endswith("<!-- /speed -->\n\nThe rest.\n")
    assert "old figures" not in written
    assert "| fastdistil int8 | 100 ±1%" in re.sub(" +", " ", written)
    assert "[some-cpu/models.json](some-cpu/models.json)" in written
    assert report.with_figures(written, file) == written
    with pytest.raises(ValueError, match="no <!-- speed"):
        report.with_figures("# Title\n", file)
