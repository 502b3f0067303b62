"""The definition itself, against the one of Hugging Face: their classes in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from helpers import assert_cosine, assert_fp32_budget, hf_model, padded_batch, tiny_config
from torch import Tensor

from fastdistil.backends.reference import ReferenceBackend, forward
from fastdistil.checkpoint import canonical_state_dict
from fastdistil.config import ACTIVATIONS, EncoderConfig
from fastdistil.packing import PackedBatch, pack_ids, pack_padded, unpack
from fastdistil.pooling import pool

CPU = torch.device("cpu")

# Each with another head_dim (16, 20, 32, 64, 128, 8, 1) and other proportions.
SHAPES = [
    {"model_type": "distilbert"},
    {"model_type": "bert"},
    {"model_type": "bert", "hidden_size": 60, "num_heads": 3, "intermediate_size": 77},
    {"model_type": "distilbert", "hidden_size": 32, "num_heads": 1, "intermediate_size": 33},
    {"model_type": "distilbert", "hidden_size": 256, "num_heads": 4, "num_layers": 3},
    {"model_type": "bert", "hidden_size": 1024, "num_heads": 8, "num_layers": 1},
    {"model_type": "bert", "hidden_size": 96, "num_heads": 12, "num_segments": 5},
    {"model_type": "distilbert", "hidden_size": 7, "num_heads": 7, "intermediate_size": 1},
    {"model_type": "bert", "num_layers": 0},
    {"model_type": "bert", "layer_norm_eps": 1e-3, "pad_token_id": None},
]


def shape_id(sizes: dict[str, Any]) -> str:
    return "-".join(str(value) for value in sizes.values())


def weights_of(model: Any, config: EncoderConfig) -> dict[str, Tensor]:
    return canonical_state_dict(model.state_dict(), config)


def run_padded(
    config: EncoderConfig,
    weights: Mapping[str, Tensor],
    ids: Tensor,
    mask: Tensor | None,
    segments: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    batch, indices = pack_padded(ids, mask, segments, positions)
    return unpack(forward(config, weights, batch), indices, *ids.shape)


def assert_same_at_real_tokens(got: Tensor, want: Tensor, mask: Tensor) -> None:
    keep = mask.bool()
    torch.testing.assert_close(got[keep], want[keep], rtol=1e-9, atol=1e-9)
    assert not got[~keep].any()


@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize("sizes", SHAPES, ids=shape_id)
def test_equals_transformers(sizes: dict[str, Any], side: str) -> None:
    config = tiny_config(**sizes)
    model = hf_model(config).double()
    ids, mask = padded_batch([5, 1, 12, 7], side=side)
    segments = ids % config.num_segments if config.num_segments else None
    extra = {} if segments is None else {"token_type_ids": segments}
    with torch.no_grad():
        want = model(ids, attention_mask=mask, **extra).last_hidden_state
        got = run_padded(config, weights_of(model, config), ids, mask, segments)
    assert_same_at_real_tokens(got, want, mask)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["distilbert", "bert"])
def test_every_activation(kind: str, activation: str) -> None:
    config = tiny_config(kind, activation=activation)
    model = hf_model(config).double()
    ids, mask = padded_batch([9, 4])
    with torch.no_grad():
        want = model(ids, attention_mask=mask).last_hidden_state
        got = run_padded(config, weights_of(model, config), ids, mask)
    assert_same_at_real_tokens(got, want, mask)


def test_given_positions() -> None:
    config = tiny_config("bert")
    model = hf_model(config).double()
    ids, mask = padded_batch([6, 3])
    for positions in (torch.tensor([[5, 4, 3, 2, 1, 0]]), torch.randint(0, 40, ids.shape)):
        with torch.no_grad():
            want = model(
                ids, attention_mask=mask, position_ids=positions.expand_as(ids)
            ).last_hidden_state
            got = run_padded(config, weights_of(model, config), ids, mask, positions=positions)
        assert_same_at_real_tokens(got, want, mask)


def test_sinusoidal_positions() -> None:
    """Their own table, as their class makes it."""
    transformers = pytest.importorskip("transformers")
    config = tiny_config(sinusoidal_positions=True)
    torch.manual_seed(0)
    model = transformers.DistilBertModel(transformers.AutoConfig.for_model(**config.to_hf()))
    model = model.eval().double()
    ids, mask = padded_batch([40, 11])
    with torch.no_grad():
        want = model(ids, attention_mask=mask).last_hidden_state
        got = run_padded(config, weights_of(model, config), ids, mask)
    assert_same_at_real_tokens(got, want, mask)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 511, 512])
def test_lengths_up_to_the_position_table(length: int) -> None:
    config = tiny_config("bert", max_positions=512)
    model = hf_model(config).double()
    ids, mask = padded_batch([length, max(1, length // 3)])
    with torch.no_grad():
        want = model(ids, attention_mask=mask).last_hidden_state
        got = run_padded(config, weights_of(model, config), ids, mask)
    assert_same_at_real_tokens(got, want, mask)


def test_a_wide_batch() -> None:
    config = tiny_config()
    model = hf_model(config).double()
    generator = torch.Generator().manual_seed(3)
    ids, mask = padded_batch(torch.randint(1, 20, (300,), generator=generator).tolist())
    with torch.no_grad():
        want = model(ids, attention_mask=mask).last_hidden_state
        got = run_padded(config, weights_of(model, config), ids, mask)
    assert_same_at_real_tokens(got, want, mask)


@pytest.mark.parametrize("kind", ["distilbert", "bert"])
def test_gradients_equal_those_of_transformers(kind: str) -> None:
    config = tiny_config(kind)
    model = hf_model(config).double()
    ids, mask = padded_batch([6, 3, 9], side="holes")
    ids[0, mask[0].nonzero()[0]] = 0  # a real token that is the pad token: no gradient to its row
    target = torch.randn(*ids.shape, config.hidden_size, dtype=torch.float64)

    def loss(hidden: Tensor) -> Tensor:
        return ((hidden - target)[mask.bool()]).square().sum()

    loss(model(ids, attention_mask=mask).last_hidden_state).backward()
    weights = weights_of(model, config)
    live = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    loss(run_padded(config, live, ids, mask)).backward()
    theirs = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
    for name, gradient in canonical_state_dict(theirs, config).items():
        ours = live[name].grad
        assert ours is not None, name
        torch.testing.assert_close(ours, gradient, rtol=1e-8, atol=1e-8, msg=name)


def test_second_derivatives() -> None:
    config = dataclasses.replace(tiny_config(num_layers=1), hidden_size=6, intermediate_size=5)
    weights = {
        n: t.requires_grad_() for n, t in weights_of(hf_model(config).double(), config).items()
    }
    names = ["transformer.layer.0.attention.q_lin.weight", "transformer.layer.0.ffn.lin1.weight"]
    batch = pack_ids([[5, 6, 7], [8]])

    def run(*chosen: Tensor) -> Tensor:
        return forward(config, weights | dict(zip(names, chosen, strict=True)), batch)

    assert torch.autograd.gradgradcheck(run, [weights[name] for name in names])


# ---- the program


def prepared(precision: str, **sizes: Any) -> tuple[EncoderConfig, dict[str, Tensor], Any]:
    config = tiny_config(**sizes)
    weights = weights_of(hf_model(config), config)
    return config, weights, ReferenceBackend().prepare(config, weights, CPU, precision)


def packed(lengths: list[int]) -> PackedBatch:
    return pack_padded(*padded_batch(lengths))[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_precision_keeps_its_promise(precision: str) -> None:
    config, weights, program = prepared(precision, hidden_size=256, num_heads=4, num_layers=4)
    batch = packed([20, 6, 33])
    want = forward(config, {name: tensor.double() for name, tensor in weights.items()}, batch)
    got = program.run(batch)
    pooled = program.run_pooled(batch, "mean", True)
    assert pooled.dtype == torch.float32
    wanted_pooled = pool(want, batch.cu_seqlens, "mean", True)
    if precision == "fp32":
        assert_fp32_budget(got, want)
        assert_fp32_budget(pooled, wanted_pooled)
    else:
        assert got.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        assert_cosine(got, want, 0.9998)
        assert_cosine(pooled, wanted_pooled, 0.9999)


def test_a_sequence_does_not_depend_on_its_batch() -> None:
    """Up to the order in which torch's matrix products add, which may change with their size."""
    _, _, program = prepared("fp32")
    lengths = [9, 1, 30, 4]
    batch = packed(lengths)
    together = program.run(batch).split(lengths)
    for ids, want in zip(batch.input_ids.split(lengths), together, strict=True):
        assert_fp32_budget(program.run(pack_ids([ids])), want)


def test_a_program_does_not_change_with_the_weights_it_was_made_from() -> None:
    _, weights, program = prepared("fp32")
    batch = packed([4, 3])
    before = program.run(batch)
    for tensor in weights.values():
        tensor.zero_()
    assert torch.equal(program.run(batch), before)


def test_autocast_around_the_caller_does_not_change_the_precision() -> None:
    _, _, program = prepared("fp32")
    batch = packed([4, 3])
    plain = program.run(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(program.run(batch), plain)


def test_neighbours_of_one_length_do_not_see_each_other() -> None:
    """They go through one product; alone each goes through its own."""
    _, _, program = prepared("fp32")
    lengths = [3, 3, 3, 5, 0, 0, 5, 3, 1, 1, 5]
    batch = packed(lengths)
    rows = batch.input_ids.split(lengths)
    alone = [program.run(pack_ids([row.tolist()])) for row in rows]
    assert_fp32_budget(program.run(batch), torch.cat(alone))


def test_nothing_to_do() -> None:
    config, _, program = prepared("fp32")
    assert program.run(pack_ids([])).shape == (0, config.hidden_size)
    assert program.run_pooled(pack_ids([]), "mean", True).shape == (0, config.hidden_size)
    pooled = program.run_pooled(pack_ids([[], [5], []]), "mean", True)
    assert pooled.any(dim=1).tolist() == [False, True, False]


def test_the_batch_is_validated_first() -> None:
    _, _, program = prepared("fp32")
    with pytest.raises(ValueError, match="input_ids: 99 at token 1 of sequence 0 is outside"):
        program.run(pack_ids([[5, 99]]))
    with pytest.raises(ValueError, match="pooling: got 'median'"):
        program.run_pooled(pack_ids([[5]]), "median", False)
    with pytest.raises(ValueError, match="batch: on meta, but the weights are on cpu"):
        program.run(pack_ids([[5]]).to("meta"))


def test_what_it_cannot_run_is_said() -> None:
    backend, config = ReferenceBackend(), tiny_config()
    assert backend.supports(config, CPU, "fp32") is None
    assert "no data" in str(backend.supports(config, torch.device("meta"), "fp32"))
    assert "not int8" in str(backend.supports(config, CPU, "int8"))
    assert "fp16 is not available on a CPU" in str(backend.supports(config, CPU, "fp16"))
    assert backend.auto_precision(config, CPU) == "fp32"
