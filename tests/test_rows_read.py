"""The last layer computed only for the rows that a head reads: the bits of a whole forward.

csrc/tests/test_rows_read.cpp does the same with emulated instruction sets, under sanitizers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_cosine, assert_fp32_budget, random_hf_model, tiny_config
from torch import Tensor

from fastdistil import DistilBertModel
from fastdistil.backends.cpu import CpuBackend, CpuProgram, extension_error, instruction_sets
from fastdistil.config import EncoderConfig
from fastdistil.packing import PackedBatch, pack_ids

needs_extension = pytest.mark.skipif(
    extension_error() is not None, reason=f"{extension_error()}; `make test` builds it"
)
BACKENDS = ["reference", pytest.param("cpu", marks=needs_extension)]
KERNELS = list(
    dict.fromkeys((entry["isa"], entry["precision"]) for entry in instruction_sets()["kernels"])
)
PRECISIONS = sorted({precision for _, precision in KERNELS})
ISAS = list(dict.fromkeys(isa for isa, _ in KERNELS))

# Several chunks of every instruction set; empty sequences; one longer than a chunk's share.
LENGTHS = [1, 5, 0, 16, 17, 33, 31, 500, 2, 64, 0, 48, 15, 300, 70, 1, 90, 110, 32, 0, 250, 3]


def config_for(**changes: Any) -> EncoderConfig:
    """Odd sizes, head_dim 40, two pieces of the intermediate layer."""
    sizes = {"hidden_size": 120, "num_heads": 3, "intermediate_size": 900, "max_positions": 512}
    return tiny_config(**(sizes | changes))


def model_of(config: EncoderConfig, **choices: Any) -> DistilBertModel:
    """Ours with weights that make a difference, for inference."""
    sizes = {name: getattr(config, name) for name in config.__dataclass_fields__}
    theirs = random_hf_model(sizes.pop("model_type"), **sizes)
    ours = DistilBertModel(config, **choices)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval().requires_grad_(False)


def program_of(isa: str, precision: str, **changes: Any) -> CpuProgram:
    model = model_of(config_for(**changes))
    return CpuProgram(model.config, dict(model.named_parameters()), precision, isa)


def batch_of(lengths: list[int]) -> PackedBatch:
    generator = np.random.default_rng(0)
    return pack_ids([generator.integers(1, 99, length) for length in lengths])


def first_tokens(batch: PackedBatch) -> Tensor:
    starts, ends = batch.cu_seqlens[:-1], batch.cu_seqlens[1:]
    return starts[ends > starts]


def choices_of_rows(batch: PackedBatch) -> list[Tensor]:
    """None, all, one, those of one sequence, the first of each, and random ones."""
    tokens = batch.num_tokens
    generator = torch.Generator().manual_seed(0)
    some = [torch.rand(tokens, generator=generator) < share for share in (0.5, 0.1, 0.01, 0.003)]
    return [
        torch.arange(0),
        torch.arange(tokens),
        torch.tensor([tokens - 1]),
        torch.arange(*batch.cu_seqlens[7:9].tolist()),
        first_tokens(batch),
        *(kept.nonzero().flatten() for kept in some),
    ]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many threads are used, more than the machine has CPUs for as well."""
    monkeypatch.setattr("fastdistil.backends.threads.usable_cpus", lambda: 64)
    return lambda count: monkeypatch.setenv("FASTDISTIL_NUM_THREADS", str(count))


# --- the CPU engine -------------------------------------------------------------------------------


@pytest.mark.parametrize(("isa", "precision"), KERNELS)
@pytest.mark.parametrize("layers", [1, 2])
def test_rows_have_the_bits_of_a_whole_forward(
    isa: str, precision: str, layers: int, threads: Callable[[int], None]
) -> None:
    program = program_of(isa, precision, num_layers=layers)
    batch = batch_of(LENGTHS)
    threads(1)
    whole = program.run(batch)
    for count in (1, 2, 5):
        threads(count)
        for rows in choices_of_rows(batch):
            assert torch.equal(program.run_rows(batch, rows), whole[rows])


@pytest.mark.parametrize(("isa", "precision"), KERNELS)
def test_a_few_tokens_shared_by_a_team(
    isa: str, precision: str, threads: Callable[[int], None]
) -> None:
    program = program_of(isa, precision)
    batch = batch_of([20, 0, 3])
    whole = program.run(batch)
    for count in (1, 2, 8):
        threads(count)
        for rows in ([0], [19, 20], [1, 2, 5, 17, 22]):
            assert torch.equal(program.run_rows(batch, torch.tensor(rows)), whole[rows])


@pytest.mark.parametrize(("isa", "precision"), KERNELS)
def test_cls_is_the_first_tokens_alone(
    isa: str, precision: str, threads: Callable[[int], None]
) -> None:
    program = program_of(isa, precision)
    batch = batch_of(LENGTHS)
    filled = torch.tensor(LENGTHS) > 0
    want = torch.zeros(len(LENGTHS), program.run(batch).shape[1])
    want[filled] = program.run(batch)[first_tokens(batch)]
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(program.run_pooled(batch, "cls", False), want)
    unit = torch.nn.functional.normalize(want, dim=1)
    torch.testing.assert_close(program.run_pooled(batch, "cls", True), unit)
    one_token_each = batch_of([1, 0, 1, 1])
    pooled = program.run_pooled(one_token_each, "cls", False)
    assert torch.equal(pooled[[0, 2, 3]], program.run(one_token_each))
    assert not program.run_pooled(batch_of([0, 0]), "cls", True).any()


@pytest.mark.parametrize("isa", ISAS)
def test_an_instruction_set_by_its_cap(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", isa)
    config, device = config_for(), torch.device("cpu")
    precision = CpuBackend().auto_precision(config, device)
    model = model_of(config)
    program = CpuBackend().prepare(config, dict(model.named_parameters()), device, precision)
    batch = batch_of(LENGTHS)
    rows = first_tokens(batch)
    assert torch.equal(program.run_rows(batch, rows), program.run(batch)[rows.long()])


@needs_extension
def test_the_model_computes_what_transformers_does(
    minilm_folder: Path, real_sentences: list[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    theirs = transformers.AutoModel.from_pretrained(minilm_folder).eval()
    ids = tokenizer(real_sentences[:100])["input_ids"]
    batch = pack_ids(ids)
    with torch.inference_mode():
        states = [theirs(torch.tensor([sentence])).last_hidden_state[0] for sentence in ids]
    generator = torch.Generator().manual_seed(0)
    rows = (torch.rand(batch.num_tokens, generator=generator) < 0.2).nonzero().flatten()
    for precision, least in (("fp32", None), ("bf16", 0.9998), ("int8", 0.995)):
        if precision not in PRECISIONS:
            continue
        ours = DistilBertModel.from_pretrained(minilm_folder, precision=precision, backend="cpu")
        first = ours.forward_rows(batch, first_tokens(batch))
        some = ours.forward_rows(batch, rows)
        for got, want in (
            (first, torch.stack([state[0] for state in states])),
            (some, torch.cat(states)[rows]),
        ):
            if least is None:
                assert_fp32_budget(got, want)
            else:
                assert_cosine(got, want, least)


# --- every backend, and the model -----------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_what_a_whole_forward_gives(backend: str) -> None:
    model = model_of(config_for(), backend=backend, precision="fp32")
    batch = batch_of(LENGTHS)
    whole = model.forward_packed(batch)
    for rows in choices_of_rows(batch):
        for given in (rows, rows.int(), rows.repeat_interleave(2)[::2]):
            assert torch.equal(model.forward_rows(batch, given), whole[rows])
    nothing = model.forward_rows(pack_ids([[], []]), torch.arange(0))
    assert nothing.shape == (0, 120)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_come_in_the_parameters_dtype(backend: str) -> None:
    model = model_of(config_for(), backend=backend).to(torch.bfloat16)
    batch = batch_of([3, 4])
    rows = torch.tensor([0, 5])
    got = model.forward_rows(batch, rows)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, model.forward_packed(batch)[rows])


def test_gradients_go_through_rows() -> None:
    batch = batch_of([4, 0, 7])
    for rows in (torch.tensor([0, 4, 9]), torch.tensor([2], dtype=torch.int32)):
        wanted = []
        for pick in (
            lambda model, rows=rows: model.forward_rows(batch, rows),
            lambda model, rows=rows: model.forward_packed(batch)[rows.long()],
        ):
            model = model_of(config_for()).requires_grad_()
            pick(model).square().sum().backward()
            wanted.append([parameter.grad for parameter in model.parameters()])
        for got, want in zip(*wanted, strict=True):
            torch.testing.assert_close(got, want)
        assert any(grad.abs().sum() > 0 for grad in wanted[0])


REFUSED = [
    (torch.tensor([0, 7]), ValueError, "rows: got 7; 0 to 6, the batch's tokens, is allowed"),
    (torch.tensor([-1, 3]), ValueError, "rows: got -1; 0 to 6"),
    (torch.tensor([2, 5, 5]), ValueError, "rows: got 5 after 5 at index 2; each must be above"),
    (torch.tensor([0, 4, 2]), ValueError, "rows: got 2 after 4 at index 2"),
    (torch.tensor([2**40]), ValueError, f"rows: got {2**40}; 0 to 6"),
    (torch.tensor([[1, 2]]), ValueError, r"rows: got shape \[1, 2\]; one dimension"),
    (torch.tensor(1), ValueError, r"rows: got shape \[\]; one dimension"),
    (torch.tensor([1.0]), TypeError, "rows: got torch.float32; torch.int64 or torch.int32"),
    (torch.tensor([True] * 7), TypeError, "rows: got torch.bool"),
    (torch.empty(2, dtype=torch.int64, device="meta"), ValueError, "rows: on meta, but the batch"),
    ([1, 2], TypeError, "rows: got list; a torch.Tensor"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "error", "message"), REFUSED)
def test_rows_that_are_none_are_refused_by_name(
    backend: str, rows: Any, error: type[Exception], message: str
) -> None:
    model = model_of(config_for(), backend=backend)
    batch = batch_of([3, 4])
    with pytest.raises(error, match=message):
        model.forward_rows(batch, rows)
    with pytest.raises(error, match=message):
        model.requires_grad_().forward_rows(batch, rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_wrong_with_the_batch_is_still_said(backend: str) -> None:
    model = model_of(config_for(), backend=backend)
    with pytest.raises(ValueError, match=r"input_ids: 500 at token 1 of sequence 1 is outside"):
        model.forward_rows(pack_ids([[3], [9, 500]]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"rows: got 0; of no tokens none is allowed"):
        model.forward_rows(pack_ids([[]]), torch.tensor([0]))


@needs_extension
def test_the_extension_looks_at_rows_itself() -> None:
    """Whoever comes past the checks in Python still reads nothing that is not there."""
    program = program_of(KERNELS[-1][0], "fp32")
    batch = batch_of([3, 4])
    for rows, message in (([0, 7], "rows has 7 at index 1"), ([3, 1], "rows has 1 after 3")):
        numbers = torch.tensor(rows, dtype=torch.int32)
        with pytest.raises(ValueError, match=message):
            program._run(batch, len(rows), "none", False, numbers)
