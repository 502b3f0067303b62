"""The paper's table and the scaling suite on tiny models; what tokens cost. No times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdistil
from benchmarks.paper import measure as paper
from benchmarks.paper import pairs, table
from benchmarks.scaling import axes, test_scaling
from benchmarks.scaling import measure as scaling
from fastdistil.backends.threads import num_threads, usable_cpus
from fastdistil.bench import ours, timing
from fastdistil.bench.cost import cost_per_million_tokens
from fastdistil.bench.engines import Engine
from fastdistil.bench.race import original
from fastdistil.bench.results import Results, Row
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.workloads import Workload, random_model
from tests.helpers import SOME_ENVIRONMENT

TINY_BERT = {
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 3,
    "intermediate_size": 96,
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)


@pytest.fixture
def tiny_configs() -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    return {
        table.TEACHER: transformers.BertConfig(**TINY_BERT),
        table.STUDENT: transformers.DistilBertConfig(n_layers=1, dim=48, n_heads=3, hidden_dim=96),
    }


def test_cost_is_the_hours_price_shared_among_its_tokens() -> None:
    # 3.6 million tokens an hour.
    assert cost_per_million_tokens(1000, 0.36) == pytest.approx(0.1)
    assert cost_per_million_tokens(1000, 0) == 0


@pytest.mark.parametrize("rate", [0, -1.0, float("nan")])
def test_no_tokens_have_no_cost(rate: float) -> None:
    with pytest.raises(ValueError, match="tokens_per_second: got"):
        cost_per_million_tokens(rate, 1.0)


def test_a_price_below_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"price_per_hour: got -1; 0 and more"):
        cost_per_million_tokens(1000, -1)


def test_pairs_are_what_a_tokenizer_makes_of_two_sentences(
    minilm_folder: Path, real_sentences: list[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    short = [t for t in real_sentences[:200] if len(tokenizer(t)["input_ids"]) <= pairs.LONGEST]
    work = pairs.pairs(20)
    assert len(work.sequences) == len(work.batches) == 20
    for first, second, pair in zip(short[::2], short[1::2], work.sequences, strict=False):
        expected = tokenizer(first, second, return_tensors="pt")
        got = pairs.inputs(pair, True)
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in got)
        assert "token_type_ids" not in pairs.inputs(pair, False)


@pytest.mark.usefixtures("minilm_folder")
def test_too_few_sentences_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pairs, axes):
        monkeypatch.setattr(module, "real_sentences", lambda: ["A cat.", "A dog.", "A bird."])
    with pytest.raises(LookupError, match="2 pairs of short sentences wanted, 1 here"):
        pairs.pairs(2)
    with pytest.raises(LookupError, match="1024 tokens of real sentences wanted, 15 here"):
        axes.natural(1024)


def test_bert_is_told_the_segments(tiny_configs: dict[str, Any]) -> None:
    model = random_model(tiny_configs[table.TEACHER])
    work = Workload("pair", ((101, 7, 8, 102, 9, 102),), batch=1)
    variant = pairs.pair_variant(model, "as it is")
    segments = torch.tensor([[0, 0, 0, 0, 1, 1]])
    expected = model(torch.tensor(work.sequences), token_type_ids=segments).last_hidden_state[0]
    got = variant.rows(work, variant.run(work))
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-6)
    assert np.abs(got - original(model, work)).max() > 1e-3  # without segments


@pytest.mark.usefixtures("minilm_folder")
def test_paper_from_models_to_tables(
    tiny_configs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastdistil._C", reason="kernels are in the C++ extension")
    twins = []
    accelerate = fastdistil.accelerate

    def kept(model: Any, precision: str) -> Any:
        twins.append(accelerate(model, precision=precision))
        return twins[-1]

    monkeypatch.setattr(fastdistil, "accelerate", kept)
    left_out: list[str] = []
    rows = paper.measure(tiny_configs, pairs.pairs(3), 2, left_out, quick=True)

    models = {name: random_model(config) for name, config in tiny_configs.items()}
    precisions = ours.precisions(models[table.STUDENT], [])
    engines = ["eager PyTorch fp32", "eager PyTorch bf16"]
    engines += [f"fastdistil {precision}" for precision in precisions]
    assert [row.name for row in rows] == [f"{m}, {e}" for m in models for e in engines]
    assert not [line for line in left_out if "cosine" in line]
    assert len(twins) == 2 * len(precisions)
    for twin in twins:  # segments did not send anybody to the model's own forward
        facts = fastdistil.explain(twin)
        assert facts.fast_calls > 0
        assert facts.fallback_calls == 0
    for row in rows:
        model = models[row.info["model"]]
        assert row.group == "batch 1, pairs"
        assert row.name == f"{row.info['model']}, {row.info['engine']}"
        assert row.info["parameters"] == model.num_parameters()
        assert row.info["layers"] == model.config.num_hidden_layers
        # fp32 and a header.
        assert 0 < row.info["bytes_on_disk"] - 4 * row.info["parameters"] < 10_000
        assert (row.info["sequences"], row.info["pairs_of_a_pass"]) == (3, 1500)
        assert len(row.seconds) == 2
    results = Results("paper", SOME_ENVIRONMENT, tuple(rows))
    assert len(table.gain_rows(results)) == 1 + len(engines)
    assert markdown_table(table.GAINS_HEADER, table.gain_rows(results))
    assert markdown_table(table.SIZES_HEADER, table.size_rows(results))


def passes(model: str, **seconds: float) -> list[Row]:
    """Of 10 pairs, by engine; "eager_fp32" is eager PyTorch fp32."""
    millions, layers = {table.TEACHER: (109, 12), table.STUDENT: (66, 6)}[model]
    info = {
        "model": model,
        "parameters": millions * 1e6,
        "layers": layers,
        "bytes_on_disk": millions * 4e6,
        "sequences": 10,
        "tokens": 273,
        "pairs_of_a_pass": 1500,
    }
    names = {name: name.replace("eager", "eager PyTorch").replace("_", " ") for name in seconds}
    return [
        Row(pairs.GROUP, f"{model}, {names[name]}", (taken,) * 3, {**info, "engine": names[name]})
        for name, taken in seconds.items()
    ]


def test_gains_are_told_apart() -> None:
    rows = [
        *passes(table.TEACHER, eager_fp32=8.0, fastdistil_fp32=2.0, fastdistil_bf16=1.0),
        *passes(
            table.STUDENT,
            eager_fp32=4.0,
            eager_bf16=2.0,
            fastdistil_fp32=1.0,
            fastdistil_bf16=0.4,
            fastdistil_int8=0.2,
        ),
    ]
    results = Results("paper", SOME_ENVIRONMENT, tuple(rows))
    found = {row[0]: row[1:] for row in table.gain_rows(results)}
    assert found == {
        "the paper, in 2019": ("668", "410", "1.63x", "-", "-", "1.63x"),
        "eager PyTorch fp32": ("1200.0 ±0%", "600.0 ±0%", "2.00x", "1.00x", "1.00x", "2.00x"),
        "fastdistil fp32": ("300.0 ±0%", "150.0 ±0%", "2.00x", "4.00x", "4.00x", "8.00x"),
        "fastdistil bf16": ("150.0 ±0%", "60.0 ±0%", "2.50x", "5.00x", "10.00x", "20.00x"),
        "eager PyTorch bf16": ("-", "300.0 ±0%", "-", "1.00x", "2.00x", "4.00x"),
        "fastdistil int8": ("-", "30.0 ±0%", "-", "-", "20.00x", "40.00x"),
    }
    assert table.size_rows(results) == [
        ("BERT-base", "12", "109.0", "110", "436"),
        ("DistilBERT-base", "6", "66.0", "66", "264"),
    ]
    assert "of 1,500, 10 were run, 27.3 tokens each on average" in table.note(results)
    assert "not STS-B's" in table.note(results)


@pytest.mark.parametrize(
    ("cpus", "counts"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))],
)
def test_threads_double_up_to_all_cores(cpus: int, counts: tuple[int, ...]) -> None:
    assert axes.thread_counts(cpus) == counts


@pytest.mark.usefixtures("real_sentences", "minilm_folder")
@pytest.mark.parametrize("axis", axes.AXES)
def test_points_of_an_axis(axis: str) -> None:
    points = axes.AXES[axis].points
    assert list(points) == sorted(set(points))
    for x in points:
        work = axes.workload(axis, x)
        lengths = [len(sequence) for sequence in work.sequences]
        assert work.name == f"{axis}: {x}"
        if axis == "tokens":
            assert 0.9 * x <= work.tokens <= x
            assert lengths == sorted(lengths, reverse=True)
        elif axis == "length":
            assert lengths == [x]
        elif axis == "batch":
            assert lengths == [32] * x
            assert len(work.batches) == 1


def test_threads_are_as_asked_for_and_then_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDISTIL_NUM_THREADS", str(usable_cpus()))
    before = torch.get_num_threads(), num_threads()
    with scaling.threads(1) as count:
        assert (count, torch.get_num_threads(), num_threads()) == (1, 1, 1)
    assert (torch.get_num_threads(), num_threads()) == before


@pytest.mark.usefixtures("real_sentences", "minilm_folder")
def test_scaling_from_model_to_results(
    tiny_benchmark_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = Engine("somebody else fp32", "fp32", ours.packed(tiny_benchmark_model, "fp32").variants)
    prepare = scaling.prepare
    monkeypatch.setattr(scaling, "prepare", lambda *a: prepare(*a) | {"somebody-fp32": fixed})
    left_out: list[str] = []
    field = scaling.Field(tiny_benchmark_model, ["eager-fp32"], left_out)
    assert left_out[-1].startswith("somebody else fp32, threads: ")
    rows: list[Row] = []
    for axis in axes.AXES:
        test_scaling.test_scaling(axis, field, rows.extend, True)
    assert not [line for line in left_out if "cosine" in line]

    groups = Results("scaling", SOME_ENVIRONMENT, tuple(rows)).groups()
    assert list(groups) == [f"{name}: {x}" for name, axis in axes.AXES.items() for x in axis.few]
    flexible = [f"fastdistil {p}" for p in ours.precisions(tiny_benchmark_model, [])]
    flexible.append("eager PyTorch fp32")
    for group, found in groups.items():
        axis, x = group.split(": ")
        assert list(found) == flexible + ([] if axis == "threads" else [fixed.name])
        for name, row in found.items():
            assert (row.info["axis"], row.info["x"], row.info["engine"]) == (axis, int(x), name)
            assert row.info["threads"] == (int(x) if axis == "threads" else num_threads())
