"""The launch plan of a forward against numbers worked out by hand."""

from __future__ import annotations

import pytest

from fastdistil.backends.cuda_plan import bucket_of
from fastdistil.config import EncoderConfig
from fastdistil.launch_plan import GPUS, LaunchPlan, PlannedStep, plan_latency, plan_launches

# 32 sequences of 128 tokens through DistilBERT-base: D = 768, F = 3072, 12 heads, 6 layers.
T, D, F, LAYERS = 4096, 768, 3072, 6


@pytest.fixture(scope="module")
def plan() -> LaunchPlan:
    return plan_launches(EncoderConfig(), [128] * 32, "bf16", "H100")


def step(plan: LaunchPlan, name: str) -> PlannedStep:
    found = [s for s in plan.steps if s.name == name]
    assert len(found) == 1, f"{name}: {found}"
    return found[0]


def test_seven_launches_a_layer_and_the_embeddings(plan: LaunchPlan) -> None:
    assert sum(step.launches for step in plan.steps) == 1 + 7 * LAYERS
    assert step(plan, "embed_layernorm").launches == 1
    assert step(plan, "varlen_attention").launches == LAYERS
    assert step(plan, "layernorm").launches == 2 * LAYERS


@pytest.mark.parametrize(
    ("name", "columns", "depth"),
    [
        ("linear", 3 * D, D),  # Q, K and V
        ("linear", D, D),  # attention's output
        ("linear_gelu", F, D),  # into the feed-forward
        ("linear", D, F),  # and out of it
    ],
)
def test_products(plan: LaunchPlan, name: str, columns: int, depth: int) -> None:
    found = step(plan, f"{name} {columns}x{depth}")
    assert found.flops == 2 * T * columns * depth
    assert found.launches == LAYERS
    # Two bytes a number: x, the weight, the bias, the result.
    assert found.moved == 2 * (T * depth + columns * depth + columns + T * columns)


def test_attention(plan: LaunchPlan) -> None:
    found = step(plan, "varlen_attention")
    # Scores and their use: two products of 128 x 64 x 128 in each of 12 heads and 32 sequences.
    assert found.flops == 2 * 2 * 128 * 128 * 64 * 12 * 32
    # Q, K, V and the result, and 33 times four bytes of cu_seqlens, give or take its padding.
    assert 0 <= found.moved - 2 * 4 * T * D <= 4 * (T + 2)


def test_layernorm(plan: LaunchPlan) -> None:
    found = step(plan, "layernorm")
    # The update, the residual and the result, a scale and a shift.
    assert found.moved == 2 * (3 * T * D + 2 * D)
    assert found.bound == "memory"


def test_the_floor_is_the_larger_of_two_times(plan: LaunchPlan) -> None:
    h100 = GPUS["H100"]
    inner = step(plan, "linear_gelu 3072x768")
    assert inner.bound == "compute"
    assert inner.seconds == pytest.approx(2 * T * F * D / 989e12)
    norm = step(plan, "layernorm")
    assert norm.seconds == pytest.approx(norm.moved / h100.bandwidth)
    assert plan.seconds == pytest.approx(sum(s.launches * s.seconds for s in plan.steps))


def test_the_whole_forward(plan: LaunchPlan) -> None:
    """84.9 MFLOP a token in the products, 18.4 kFLOP times the length in attention."""
    per_token = (plan.flops - 12 * step(plan, "layernorm").flops) / T
    per_token -= step(plan, "embed_layernorm").flops / T
    assert per_token == pytest.approx(84.93e6 + 18.43e3 * 128, rel=1e-3)


def test_ragged_batches_count_their_own_scores() -> None:
    lengths = [5, 0, 17, 128]
    plan = plan_launches(EncoderConfig(), lengths)
    assert (plan.tokens, plan.rows) == (150, bucket_of(150))
    assert step(plan, "varlen_attention").flops == 4 * D * sum(n * n for n in lengths)


def test_a_slower_gpu_has_a_higher_floor() -> None:
    slow, fast = (plan_launches(EncoderConfig(), [64] * 64, gpu=gpu) for gpu in ("L4", "H200"))
    assert slow.seconds > fast.seconds
    assert slow.flops == fast.flops


def test_float32_takes_three_passes() -> None:
    plan = plan_launches(EncoderConfig(), [128] * 32, "fp32")
    assert step(plan, "linear_gelu 3072x768").seconds == pytest.approx(2 * T * F * D / (494e12 / 3))


def test_it_prints_as_a_table(plan: LaunchPlan) -> None:
    lines = str(plan).splitlines()
    assert lines[0] == "32 sequences, 4096 tokens (4096 rows) in bf16 on one H100"
    assert lines[2].split()[0] == "kernel"
    assert lines[-1].startswith("43 launches, ")
    assert len({len(line.rsplit("  ", 1)[0]) for line in lines[2:-2]}) == 1


def test_few_tokens_in_one_launch() -> None:
    plan = plan_latency(EncoderConfig(), [16])
    assert plan is not None
    (only,) = plan.steps
    assert (only.launches, only.grid, only.bound) == (1, (132,), "memory")
    # The products' weights once, in two bytes; 3.35 TB/s.
    weights = LAYERS * (4 * D * D + 2 * D * F)
    assert 2 * weights < plan.moved < 2.02 * weights
    assert plan.seconds == pytest.approx(plan.moved / 3.35e12)
    eight = plan_latency(EncoderConfig(), [16], "int8")
    assert eight is not None
    assert eight.moved < 0.51 * plan.moved
    assert str(plan).splitlines()[-1].startswith("1 launch, ")


@pytest.mark.parametrize(
    ("config", "lengths", "precision"),
    [
        (EncoderConfig(), [256, 1], "bf16"),
        (EncoderConfig(), [16], "fp32"),
        (EncoderConfig(hidden_size=512, num_heads=8, intermediate_size=2048), [16], "bf16"),
    ],
)
def test_no_low_latency_kernel(config: EncoderConfig, lengths: list[int], precision: str) -> None:
    assert plan_latency(config, lengths, precision) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([16], "bf16", "H101"), "gpu: got 'H101'; allowed: A100, "),
        (([16], "int4", "H100"), "precision: got 'int4'; allowed: bf16, fp16, fp32, int8"),
        (([], "bf16", "H100"), "lengths: got "),
        (([0], "bf16", "H100"), "lengths: got "),
        (([513], "bf16", "H100"), "lengths: got 513; the model takes 512"),
    ],
)
def test_bad_arguments(arguments: tuple[list[int], str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_launches(EncoderConfig(), *arguments)
