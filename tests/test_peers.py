"""The engines beside fastdistil: each computes the model, leaves no trace, is named if absent."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdistil.bench import race, sample
from fastdistil.bench.engines import Engine
from fastdistil.bench.peers import PEERS
from fastdistil.bench.workloads import Workload, random_model

# Fewer words and positions than the sample sentences have.
WORDS, LONGEST, LAYERS = 99, 40, 2
SENTENCES = 70
COMPILED = [name for name in PEERS if name.startswith("compile-")]
OTHERS = [name for name in PEERS if name not in COMPILED]


def tiny(kind: str, pooler: bool = False) -> Any:
    transformers = pytest.importorskip("transformers", reason="every peer starts from its models")
    sizes = {"vocab_size": WORDS, "max_position_embeddings": LONGEST}
    if kind == "distilbert":
        config = transformers.DistilBertConfig(
            dim=48, hidden_dim=96, n_heads=3, n_layers=LAYERS, **sizes
        )
        return random_model(config)
    config = transformers.BertConfig(
        hidden_size=48,
        intermediate_size=96,
        num_attention_heads=3,
        num_hidden_layers=LAYERS,
        layer_norm_eps=0.05,  # far enough from any default to matter
        position_embedding_type="absolute",  # which checkpoints from before transformers 5 have
        **sizes,
    )
    model = random_model(config)
    if pooler:
        with_pooler = transformers.BertModel(config).eval().requires_grad_(False)
        with_pooler.load_state_dict(model.state_dict(), strict=False)
        return with_pooler
    return model


@pytest.fixture
def workload(little_to_do: None) -> Workload:
    """Padded batches of several shapes, the last one smaller."""
    texts = (tuple(i % WORDS for i in text[:LONGEST]) for text in sample.token_ids())
    return Workload("w", tuple(texts))


def prepared(name: str, model: Any) -> Engine:
    """The engine; skips where it is not for this machine."""
    package, _, precision = name.partition("-")
    if name == "onednn-fp32" and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN here; runs with the builds for x86")
    quantising = torch.backends.quantized.supported_engines
    if package in ("onednn", "fbgemm") and precision == "int8" and package not in quantising:
        pytest.skip(f"torch quantises with {', '.join(quantising)} here; {package} is for x86")
    packages = {"openvino-int8": ("nncf", "openvino")}.get(name, (package,))
    for each in packages if package in ("openvino", "onnxruntime", "ctranslate2") else ():
        if find_spec(each) is None:  # not imported: how CTranslate2 is, is the peer's business
            where = '`pip install "fastdistil[bench]"`'
            pytest.skip(f"{each} is not here; runs where {where} was done")
    return PEERS[name](model)


def check(engine: Engine, model: Any, workload: Workload) -> None:
    expected = race.original(model, workload).astype(float)
    for variant in engine.variants:
        got = variant.rows(workload, variant.run(workload))
        least = race.least_cosine(got.astype(float), expected)
        assert least >= race.LEAST_COSINE[engine.precision], variant.configuration


@pytest.fixture(autouse=True)
def little_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and fewer sentences to calibrate on than there are."""
    some = sample.token_ids()[:SENTENCES]
    monkeypatch.setattr(sample, "token_ids", lambda: some)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("kind", ["distilbert", "bert"])
@pytest.mark.parametrize("name", OTHERS)
def test_every_variant_of_every_peer_computes_the_model(
    name: str, kind: str, workload: Workload
) -> None:
    model, threads = tiny(kind), torch.get_num_threads()
    engine = prepared(name, model)
    assert engine.precision == name.rpartition("-")[2]
    assert len({variant.configuration for variant in engine.variants}) == len(engine.variants)
    check(engine, model, workload)
    assert torch.get_num_threads() == threads, "the engines after this one would be slower"


@pytest.mark.parametrize("name", ["eager-fp32", "onednn-fp32", "onednn-int8", "ctranslate2-fp32"])
def test_a_pooler_is_nobodys_trouble(name: str, workload: Workload) -> None:
    model = tiny("bert", pooler=True)
    check(prepared(name, model), model, workload)


@pytest.mark.parametrize("name", COMPILED)
def test_torch_knows_the_options_it_compiles_with(name: str) -> None:
    (variant,) = PEERS[name](tiny("distilbert")).variants
    assert "frozen weights" in variant.configuration


@pytest.mark.slow
def test_torch_compile_computes_the_model_with_frozen_weights(workload: Workload) -> None:
    """One of them, because each compiles for a quarter of a minute."""
    from torch._dynamo.utils import counters

    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("torch packs bf16 weights only where the CPU has AVX-512")
    model = tiny("distilbert")
    counters.clear()
    check(PEERS["compile-bf16"](model), model, workload)
    packed = counters["inductor"]["mkldnn_linear_weight_pack_matcher_count"]
    assert packed % (6 * LAYERS) == 0
    assert packed > 0


def test_what_is_slow_to_make_is_made_once(workload: Workload, tmp_path: Path) -> None:
    model = tiny("distilbert")
    names = ("onnxruntime-int8", "openvino-int8")
    for name in names:
        prepared(name, model)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.suffix for path in made} == {".onnx", ".xml", ".bin"}
    for name in names:
        prepared(name, model)
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_peers_that_cannot_be_prepared_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(model: Any) -> Engine:
        raise ModuleNotFoundError("No module named 'absent'")

    def unfit(model: Any) -> Engine:
        raise ImportError("this torch cannot do that")

    def broken(model: Any) -> Engine:
        raise RuntimeError

    whole = Engine("whole", "fp32", ())
    known = {"absent": absent, "unfit": unfit, "broken": broken, "whole": lambda model: whole}
    monkeypatch.setattr(race, "PEERS", known)
    missing: list[str] = []
    failed: list[str] = []
    assert race.prepare(None, list(known), missing, failed) == {"whole": whole}
    assert missing == [
        "absent: No module named 'absent'; `pip install \"fastdistil[bench]\"` brings it",
        "unfit: this torch cannot do that",
    ]
    assert failed == ["broken: RuntimeError"]
