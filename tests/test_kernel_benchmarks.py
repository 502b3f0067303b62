"""benchmarks.kernels: what is computed, counted, checked and told of each operation. No times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import SOME_ENVIRONMENT

from benchmarks import cpu_engine
from benchmarks.kernels import cases, comparison, cpu, one_layer, operations, turns
from benchmarks.kernels.cases import Case
from benchmarks.kernels.operations import CUDA, TRITON, Operands, Operation, Sizes
from fastdistil import cuda_kernels
from fastdistil.bench import timing
from fastdistil.bench.results import Results

CPU = torch.device("cpu")
TINY = Sizes((5, 1, 9), width=64, inner=96, heads=2, vocabulary=50, positions=20, segments=2)
EVEN = replace(TINY, lengths=(8, 8))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(comparison, "TURN_SECONDS", 1e-5)
    monkeypatch.setattr(cpu, "_COPY_SECONDS", 1e-4)
    monkeypatch.setattr(cpu_engine, "PEAK_SECONDS", 0.01)


@pytest.fixture
def tiny_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny encoders in place of the real shapes, and one set of kernels that is everywhere."""
    transformers = pytest.importorskip("transformers", reason="cases have its configs")
    pytest.importorskip("fastdistil._C", reason="kernels are in the C++ extension")
    tiny = transformers.BertConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=20,
    )
    monkeypatch.setattr(cases, "config", lambda shape: tiny)
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "portable")


def operands(operation: Operation, sizes: Sizes = TINY) -> Operands:
    sizes = EVEN if operation is operations.POOLING else sizes
    return operation.operands(sizes, torch.float32, CPU, 0)


def case(*chosen: Operation, layout: str = "2 x 8", compiled: bool = False) -> Case:
    return Case(cases.DISTILBERT, layout, chosen, compiled, rounds=2)


# --- what is computed and counted -----------------------------------------------------------------


def references() -> dict[str, Any]:
    """By operation, what another definition gives for its operands."""
    pytest.importorskip("triton", reason="the kernels' own definitions are beside them")
    from fastdistil.kernels import attention, embedding, gelu, layernorm, linear, packing, pooling

    def affine(o: Operands, activation: str | None = None) -> Any:
        return linear.linear_reference(o["x"], o["weight"], o["bias"], activation, o["residual"])

    def norm(o: Operands) -> Any:
        rows = (o["x"], o["weight"], o["bias"], operations.EPS)
        return layernorm.layernorm_reference(*rows, o["residual"])

    def embed(o: Operands) -> Any:
        names = ("ids", "positions", "segment_ids", "words", "places", "segments", "weight", "bias")
        return embedding.embed_layernorm_reference(*(o[n] for n in names), operations.EPS)

    return {
        "attention": lambda o: attention.varlen_attention_reference(o["qkv"], o["cu_seqlens"]),
        "layernorm": norm,
        "layernorm + residual": norm,
        "bias + gelu": lambda o: gelu.bias_gelu_reference(o["x"], o["bias"]),
        "linear + bias": affine,
        "linear + gelu": lambda o: affine(o, "gelu"),
        "linear + residual": affine,
        "square linear + residual": affine,
        "embedding + layernorm": embed,
        "mean pooling + norm": lambda o: pooling.pool_reference(
            o["hidden"], o["cu_seqlens"], "mean", True
        ),
        "pack": lambda o: packing.pack_reference(o["mask"]),
    }


def test_definitions_are_those_of_the_kernels() -> None:
    found = references()
    assert set(found) == {each.name for each in (*operations.ENCODER, operations.PACKING)}
    for each in (*operations.ENCODER, operations.PACKING):
        o = operands(each)
        want = found[each.name](operations.cast(o, torch.float64))
        assert operations.relative_error(operations.truth(each, o), want) < 1e-7, each.name


@pytest.mark.skipif(
    cuda_kernels.available() is not None or not cuda_kernels.emulated(),
    reason="needs CUDA C++ kernels that take tensors on the CPU",
)
def test_cuda_kernels_get_what_they_need() -> None:
    for each in (*operations.ENCODER, operations.PACKING):
        function = each.ours[CUDA]
        if callable(function):
            sizes = EVEN if each is operations.POOLING else TINY
            o = each.operands(sizes, torch.bfloat16, CPU, 0)
            error = operations.relative_error(function(o), operations.truth(each, o))
            assert error <= operations.PRECISIONS["bf16"].tolerance, each.name


def test_costs_are_counted_by_hand() -> None:
    tokens, width, inner = 15, 64, 96
    squares = 5 * 5 + 1 + 9 * 9
    by_hand = {
        "attention": (4 * squares * width, 4 * tokens * width * 2),
        "layernorm": (7 * tokens * width, 2 * tokens * width * 2),
        "layernorm + residual": (8 * tokens * width, 3 * tokens * width * 2),
        "bias + gelu": (6 * tokens * inner, 2 * tokens * inner * 2),
        "linear + bias": (
            2 * tokens * 3 * width * width + 3 * tokens * width,
            (tokens * width + 3 * width * width + 3 * tokens * width) * 2,
        ),
        "linear + gelu": (
            2 * tokens * inner * width + 6 * tokens * inner,
            (tokens * width + inner * width + tokens * inner) * 2,
        ),
        "linear + residual": (
            2 * tokens * inner * width + 2 * tokens * width,
            (tokens * inner + inner * width + 2 * tokens * width) * 2,
        ),
        "square linear + residual": (
            2 * tokens * width * width + 2 * tokens * width,
            (3 * tokens * width + width * width) * 2,
        ),
        "embedding + layernorm": (9 * tokens * width, 2 * tokens * width * 2 + 3 * 4 * tokens),
        "mean pooling + norm": (16 * width + 3 * 2 * width, 16 * width * 2 + 2 * width * 4),
    }
    found = {each.name: tuple(each.cost(operands(each), 2)) for each in operations.ENCODER}
    assert found == by_hand
    # A mask of 3 x 9; with the ids, which come as 8 bytes and leave as 4.
    packed = 8 * 27 + 15 * (4 + 8) + 4 * 4
    for each, more in ((operations.PACKING, 0), (operations.HOST_PACKING, 8 * 27 + 4 * 15)):
        assert each.cost(operands(each), 8) == (0, packed + more)


def test_operands_are_ordinary_numbers_and_the_same_ones_again() -> None:
    for each in operations.ENCODER:
        first, again = operands(each), operands(each)
        for name in {"x", "qkv", "hidden", "weight", "words", "residual"} & first.keys():
            if first[name] is not None:
                assert first[name].count_nonzero() == first[name].numel(), each.name
                assert first[name].equal(again[name])


# --- turns ----------------------------------------------------------------------------------------


def test_turns_rotate_and_the_first_does_not_count() -> None:
    order: list[str] = []

    def contender(name: str, *seconds: float) -> turns.Turn:
        own: Iterator[float] = iter(seconds)

        def turn() -> dict[str, float]:
            order.append(name)
            taken = next(own)
            return {"one": taken, "two": 10 * taken}

        return turn

    found = turns.alternate({"a": contender("a", 9, 1, 2), "b": contender("b", 8, 3, 4)}, 2)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert found == {
        "a": {"one": [1, 2], "two": [10, 20]},
        "b": {"one": [3, 4], "two": [30, 40]},
    }


def test_parts_share_the_time_on_the_wall() -> None:
    parts = {part.name: 1.0 for part in one_layer.PARTS.values()} | {"quantise": 2.0}
    # Two threads for 5 s each, which took 6 s: of ten parts, one counts twice.
    found = one_layer.seconds_of_operations(parts, wall=6.0)
    assert found["attention"] == pytest.approx(0.6)
    assert found["layernorm"] == pytest.approx(0.3)  # a layer has two


# --- who is timed ---------------------------------------------------------------------------------


def test_whoever_is_wrong_is_named_with_the_reason() -> None:
    want, wrong = torch.tensor([1.0, -2.0]), list[str]()

    def broken() -> torch.Tensor:
        raise RuntimeError("no such\nthing")

    def proved(precision: str, *got: float) -> float | None:
        return comparison.prove("x", "op", precision, lambda: torch.tensor(got), want, wrong)

    assert proved("bf16", 1.0, -1.99) == pytest.approx(0.005)
    assert wrong == []
    assert proved("fp32", 1.0, -1.99) is None
    assert proved("bf16", float("nan"), -2.0) is None
    assert proved("bf16", 1.0) is None
    assert comparison.prove("x", "op", "int8", broken, want, wrong) is None
    assert wrong == [
        "x fp32, op: wrong results (error 5.0e-03)",
        "x bf16, op: wrong results (error nan)",
        "x bf16, op: ValueError: shape [1]; [2] is right",
        "x int8, op: RuntimeError: no such thing",
    ]


def test_a_row_for_each_operation_and_contender(tiny_layer: None) -> None:
    left_out: list[str] = []
    device = cpu.Cpu(left_out, quick=True)
    rows = device.rows(case(*operations.ENCODER))
    found = Results("kernels", environment(), tuple(rows)).groups()
    peers, own = ["eager PyTorch fp32", "eager PyTorch bf16"], ["C++ portable fp32"]
    assert {group: list(found[group]) for group in found} == {
        f"{each.name}, DistilBERT, 2 x 8": peers + own * (each.name in one_layer.PARTS)
        for each in operations.ENCODER
    }
    assert [line for line in left_out if "wrong" in line or "Error" in line] == []
    assert f"{TRITON}: no CUDA device here" in left_out
    assert f"{CUDA}: no CUDA device here" in left_out

    of_norm = found["layernorm, DistilBERT, 2 x 8"]
    for name, row in of_norm.items():
        size = 2 if name.endswith("bf16") else 4
        assert (row.info["tokens"], row.info["bytes"]) == (16, 2 * 16 * 64 * size)
        assert row.info["flops"] == 7 * 16 * 64
        assert row.info["ceiling_bytes_per_second"] == device.bytes_per_second(row.info["bytes"])
        assert 0 < row.info["error"] <= operations.PRECISIONS[row.info["precision"]].tolerance
        assert len(row.seconds) == 2
    assert of_norm["C++ portable fp32"].info["error_of"] == "the layer"
    assert of_norm["C++ portable fp32"].info["ceiling_flops"] == device.flops("fp32", "portable")


def environment() -> dict[str, Any]:
    return {"platform": "Linux", "python": "3", **SOME_ENVIRONMENT}


def lying(operation: Operation, **answers: Any) -> Operation:
    """The same operation, and others who answer so."""
    return replace(operation, ours={**operation.ours, **answers})


def test_a_wrong_operation_is_not_timed(tiny_layer: None) -> None:
    left_out: list[str] = []
    false = lying(operations.LAYERNORM, false=lambda o: o["x"], true=operations.LAYERNORM.plain)
    rows = cpu.Cpu(left_out, quick=True).rows(case(false))
    names = {row.name for row in rows}
    assert "true fp32" in names
    assert not any(name.startswith("false") for name in names)
    told = [line for line in left_out if line.startswith("false fp32, layernorm, DistilBERT")]
    assert len(told) == 1
    assert "wrong results" in told[0]


def test_a_wrong_layer_is_not_timed(tiny_layer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out: list[str] = []
    device = cpu.Cpu(left_out, quick=True)
    truth = one_layer.reference.forward
    monkeypatch.setattr(one_layer.reference, "forward", lambda *a: truth(*a).flip(0))
    rows = device.rows(case(operations.LAYERNORM))
    assert {row.name for row in rows} == {"eager PyTorch fp32", "eager PyTorch bf16"}
    assert any(line.startswith("C++ portable fp32, DistilBERT, 2 x 8") for line in left_out)


def test_packing_has_contenders_of_its_own(tiny_layer: None) -> None:
    rows = cpu.Cpu([], quick=True).rows(case(operations.HOST_PACKING))
    assert {(row.name, row.info["precision"], row.info["error"]) for row in rows} == {
        ("eager PyTorch", "integers", 0.0),
        ("fastdistil.packing", "integers", 0.0),
    }


def test_segments_reach_the_engine(tiny_layer: None) -> None:
    """Its embeddings would be wrong without: the layer is checked with them."""
    layer = one_layer.OneLayer(cases.config(cases.BERT))
    batch = layer._batch((8, 8))
    assert batch.segment_ids is not None
    assert batch.segment_ids.unique().tolist() == [0, 1]


def test_cases_are_what_the_suite_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "lengths", lambda layout: (8, 8))
    everything = list(cases.cases(operations.HOST_PACKING, quick=False))
    few = list(cases.cases(operations.HOST_PACKING, quick=True))
    for chosen in (everything, few):
        operated = {each.name for c in chosen for each in c.operations}
        assert operated == set(references())
        assert {c.shape for c in chosen} == {"DistilBERT", "MiniLM", "BERT"}
    assert sum(c.sizes.tokens * c.rounds for c in few) < sum(
        c.sizes.tokens * c.rounds for c in everything
    )
    assert [c.name for c in everything if c.compiled] == ["DistilBERT, 8 x 128"]
    assert not any(c.compiled for c in few)
    sizes = {c.shape: c.sizes for c in everything}
    assert (sizes["MiniLM"].width, sizes["MiniLM"].inner, sizes["MiniLM"].heads) == (384, 1536, 12)
    assert (sizes["DistilBERT"].width, sizes["DistilBERT"].segments) == (768, 0)
    assert (sizes["BERT"].width, sizes["BERT"].segments) == (768, 2)


def test_layouts_have_the_tokens_they_say(minilm_folder: Any) -> None:
    assert cases.lengths("8 x 128") == (128,) * 8
    for layout in cases.MIXED:
        found = cases.lengths(layout)
        assert sum(found) == int(layout.split()[-1])
        assert len(set(found)) > 3


def test_more_bytes_are_never_faster(tiny_layer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = dict(zip(cpu._BYTES, (5.0, 7.0, 2.0, 3.0), strict=False))
    monkeypatch.setattr(cpu, "_bandwidth", lambda size, seconds: measured.get(size, 1.0))
    device = cpu.Cpu([], quick=True)
    sizes = (1, cpu._BYTES[0], cpu._BYTES[1], cpu._BYTES[2], cpu._BYTES[4], 10**12)
    assert [device.bytes_per_second(size) for size in sizes] == [7, 7, 7, 3, 1, 1]


# --- on a GPU, without one ------------------------------------------------------------------------


def test_the_same_operations_run_on_a_gpu(tiny_layer: None, tmp_path: Any) -> None:
    """Walked through on the CPU: Triton says why not, CUDA C++ where its emulation is built."""
    pytest.importorskip("triton", reason="the GPU's ceilings launch a kernel")
    from benchmarks.gpu.session import Session
    from benchmarks.kernels.gpu import Gpu

    session = Session("kernels", dry=True, again=True, folder=tmp_path, budget=60.0)
    left_out: list[str] = []
    device = Gpu(session, left_out, quick=True)
    rows = device.rows(case(operations.LAYERNORM, operations.LINEAR_GELU, operations.PACKING))
    found = Results("kernels", environment(), tuple(rows)).groups()
    assert {group.partition(",")[0] for group in found} == {"layernorm", "linear + gelu", "pack"}
    names = list(found["linear + gelu, DistilBERT, 2 x 8"])
    assert names[:1] == ["eager PyTorch fp32"]
    assert f"{CUDA}, linear + gelu: products are Triton's or cuBLAS's" in left_out
    if cuda_kernels.available() is None and cuda_kernels.emulated():
        assert f"{CUDA} bf16" in found["layernorm, DistilBERT, 2 x 8"]
