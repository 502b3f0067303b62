"""Ways of running DistilBERT that are timed: ours, and the peers as their documentation advises.

All run DistilBERT-base with the same seeded random weights, from token ids that lie on the device
to the last hidden states. Engines that pad get whole batches, and where lengths differ also batches
sorted by length; full batches go without a mask, which is their fastest path.

For few tokens some also go further: to the pooled vectors on the device ("pooled"), and all the way
from lists of token ids to numpy ("answer").
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdistil
from benchmarks.gpu import device as devices
from benchmarks.gpu import engines, tables
from benchmarks.gpu.inputs import Inputs, Padded
from benchmarks.workloads import random_distilbert
from fastdistil.packing import pack_ids

# Of parameters and results. int8 is a precision of weights only.
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.bfloat16,
}
# The least cosine with eager fp32, of any token or vector: far looser than what the engines keep,
# far tighter than what any mistake leaves.
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.999, "fp16": 0.999, "int8": 0.99}
TINY = {
    "n_layers": 2,
    "dim": 64,
    "n_heads": 2,
    "hidden_dim": 128,
    "vocab_size": 500,
    "max_position_embeddings": 64,
}
# The smallest sizes that the low-latency kernel takes.
TINY_LATENCY = {**TINY, "n_layers": 1, "dim": 128, "hidden_dim": 512}

# What a first call may take, compilation included, on a machine with many cores.
_SECONDS_TO_COMPILE = 25.0
_SECONDS_TO_AUTOTUNE = 50.0


class Runner(Protocol):
    """A loaded contender."""

    def call(self, inputs: Inputs, form: str) -> Callable[[], Any]:
        """What is timed: all hidden states, or vectors, of one set, in one of the forms."""

    def tokens(self, inputs: Inputs, form: str, result: Any) -> Tensor:
        """What a call gave, as [T, D] in the packed order, or [B, D]. Not timed."""


@dataclass(frozen=True)
class Setup:
    """What contenders are made from.

    `low_latency`: whether a dry run's model is one that the low-latency kernel takes.
    """

    device: torch.device
    dry: bool
    low_latency: bool = False

    @property
    def model(self) -> Any:
        """transformers' DistilBertModel on the CPU in fp32; not to be changed."""
        return _base(self.dry, self.dry and self.low_latency)

    @property
    def config(self) -> fastdistil.EncoderConfig:
        """Its sizes."""
        return fastdistil.EncoderConfig.from_hf(self.model.config)

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        return int(self.model.config.vocab_size)

    def twin(self, precision: str) -> Any:
        """A copy on the device, with PyTorch's fused attention."""
        twin = copy.deepcopy(self.model)
        twin.set_attn_implementation("sdpa")
        return twin.to(self.device, DTYPES[precision])


@dataclass(frozen=True)
class Contender:
    """One way to run the model.

    Attributes:
        name: for people, and the key among the results.
        precision: one of LEAST_COSINE: decides how close its results must come.
        load: makes it ready on a device.
        forms: "packed", or "padded" and "sorted": the shapes of its input. "sorted" is left out
            where all lengths are equal. Or "pooled" and "answer", see above, of equal lengths only.
        ours: whether it is fastdistil.
        seconds: what its first call may take.
        missing: why it cannot run here, or None.
    """

    name: str
    precision: str
    load: Callable[[Setup], Runner]
    forms: tuple[str, ...] = ("padded", "sorted")
    ours: bool = False
    seconds: float = 2.0
    missing: str | None = None


def ours(
    precision: str,
    graphs: bool = True,
    deterministic: bool = True,
    entries: Mapping[str, Any] | None = None,
) -> Contender:
    """`DistilBertModel.forward_packed`, `encode_packed` where vectors are wanted.

    Args:
        precision, graphs, deterministic: the model's.
        entries: of the launch settings, in place of those that the device has.
    """
    name = f"fastdistil {precision}"
    name += "" if graphs else ", no graphs"
    name += "" if deterministic else ", deterministic=False"
    load = functools.partial(Packed, precision, graphs, deterministic, entries or {})
    return Contender(name, precision, load, ("packed",), ours=True, seconds=5.0)


def drop_in(precision: str) -> Contender:
    """`accelerate` on a transformers model: padded in, padded out."""

    def load(setup: Setup) -> Runner:
        model = fastdistil.accelerate(setup.twin(precision), precision=precision, backend="cuda")
        return Transformers(model)

    name = f"fastdistil {precision}, drop-in"
    return Contender(name, precision, load, ours=True, seconds=5.0)


def eager(precision: str) -> Contender:
    """transformers as it comes."""

    def load(setup: Setup) -> Runner:
        return Transformers(setup.twin(precision))

    return Contender(f"transformers {precision}, sdpa", precision, load)


def fast_path(precision: str) -> Contender:
    """torch.nn.TransformerEncoder in inference: fused layers, nested tensors for mixed lengths."""

    def load(setup: Setup) -> Runner:
        return _FastPathRunner(FastPath(setup.model).to(setup.device, DTYPES[precision]).eval())

    return Contender(f"nn.TransformerEncoder {precision}, fast path", precision, load)


def compiled(precision: str, mode: str, dynamic: bool) -> Contender:
    """torch.compile; for static shapes lengths are padded to one shape, and nothing is sorted."""

    def load(setup: Setup) -> Runner:
        torch._dynamo.reset()
        options: dict[str, Any] = {"backend": "eager"} if setup.dry else {"mode": mode}
        return Transformers(
            torch.compile(setup.twin(precision), dynamic=dynamic, **options), steps=True
        )

    name = f"torch.compile {precision}, {mode}, {'dynamic' if dynamic else 'static'}"
    seconds = _SECONDS_TO_COMPILE if mode == "default" else _SECONDS_TO_AUTOTUNE
    forms = ("padded", "sorted") if dynamic else ("padded",)
    return Contender(name, precision, load, forms, seconds=seconds)


def pooling(precision: str, compiled: bool = False) -> Contender:
    """transformers with mean pooling in the same module, by itself or compiled for few tokens."""

    def load(setup: Setup) -> Runner:
        module = MeanPooling(setup.twin(precision))
        if not compiled:
            return Answering(module, setup.device)
        torch._dynamo.reset()
        options: dict[str, Any] = {"backend": "eager"} if setup.dry else {"mode": "reduce-overhead"}
        function = torch.compile(module, dynamic=False, **options)
        return Answering(function, setup.device, steps=True)

    name = f"transformers {precision}, sdpa"
    if compiled:
        name = f"torch.compile {precision}, reduce-overhead, static"
    seconds = _SECONDS_TO_COMPILE if compiled else 2.0
    return Contender(name, precision, load, ("pooled", "answer"), seconds=seconds)


def contenders() -> tuple[list[Contender], list[Contender], list[Contender]]:
    """Ours and the peers that are ready at once; those that build something; the slowest to build.

    All of one group go before the next.
    """
    quick = [
        ours("bf16"),
        ours("bf16", graphs=False),
        ours("fp16"),
        ours("bf16", deterministic=False),
        drop_in("bf16"),
        ours("fp32"),
        eager("bf16"),
        fast_path("fp16"),
        fast_path("bf16"),
        eager("fp16"),
        eager("fp32"),
        fast_path("fp32"),
    ]
    slow = [*engine_contenders(), compiled("bf16", "default", dynamic=True)]
    slowest = [
        compiled("bf16", "max-autotune", dynamic=False),
        compiled("bf16", "default", dynamic=False),
        compiled("bf16", "max-autotune", dynamic=True),
    ]
    return quick, slow, slowest


def engine_contenders() -> list[Contender]:
    """Engines that need packages of their own, where they are installed."""

    def contender(name: str, make: Any, missing: str | None) -> Contender:
        def load(setup: Setup) -> Runner:
            return Transformers(make(setup.twin("fp32"), setup.device))

        return Contender(name, "fp16", load, ("padded", "sorted"), seconds=40.0, missing=missing)

    return [
        contender("ONNX Runtime fp16, CUDA", engines.OnnxRuntime, engines.missing_onnxruntime()),
        contender("TensorRT fp16", engines.TensorRT, engines.missing_tensorrt()),
    ]


class Packed:
    """fastdistil's own model: packed tokens in. The arguments are those of `ours`."""

    def __init__(
        self,
        precision: str,
        graphs: bool,
        deterministic: bool,
        entries: Mapping[str, Any],
        setup: Setup,
    ):
        self._device = setup.device
        # Parameters in the computing dtype, so that results need no conversion.
        dtype = DTYPES[precision]
        self.model = fastdistil.DistilBertModel(
            setup.config,
            device=setup.device,
            dtype=dtype,
            precision=precision,
            backend="cuda",
            deterministic=deterministic,
            cuda_graphs=graphs,
        )
        self.model.load_state_dict(setup.model.state_dict())
        self.model.eval().requires_grad_(False)
        if entries:
            with tables.settings_with(devices.target(setup.device), entries):
                self.model.program()  # reads them now

    def call(self, inputs: Inputs, form: str) -> Callable[[], Any]:
        """See `Runner`."""
        batch = inputs.packed
        self.model.warmup(tokens=batch.num_tokens, max_seqlen=batch.max_seqlen)
        if form == "pooled":
            return functools.partial(_without_gradients, self.model.encode_packed, batch)
        if form == "answer":
            return functools.partial(_without_gradients, self._answer, lists_of(inputs))
        return functools.partial(_without_gradients, self.model.forward_packed, batch)

    def tokens(self, inputs: Inputs, form: str, result: Any) -> Tensor:
        """See `Runner`."""
        return torch.from_numpy(result) if form == "answer" else result

    def _answer(self, ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        batch = pack_ids(ids).to(self._device)
        found: npt.NDArray[np.float32] = self.model.encode_packed(batch).cpu().numpy()
        return found


class Answering:
    """A `MeanPooling`, compiled or not: full batches in, vectors out.

    `steps`: whether each call must be marked for PyTorch's own CUDA graphs.
    """

    def __init__(
        self, module: Callable[[Tensor], Tensor], device: torch.device, steps: bool = False
    ):
        self._module, self._device, self._steps = module, device, steps

    def call(self, inputs: Inputs, form: str) -> Callable[[], Any]:
        """See `Runner`."""
        if form == "pooled":
            return functools.partial(_without_gradients, self._run, inputs.padded.input_ids)
        return functools.partial(_without_gradients, self._answer, lists_of(inputs))

    def tokens(self, inputs: Inputs, form: str, result: Any) -> Tensor:
        """See `Runner`."""
        return torch.from_numpy(result) if form == "answer" else result

    def _run(self, input_ids: Tensor) -> Tensor:
        if self._steps:
            torch.compiler.cudagraph_mark_step_begin()
        return self._module(input_ids)

    def _answer(self, ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = self._run(torch.tensor(ids).to(self._device)).cpu().numpy()
        return found


class MeanPooling(nn.Module):
    """A transformers model, and the mean of the states of each row, in float32."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, S] without padding to [B, D]."""
        hidden: Tensor = self.model(input_ids=input_ids).last_hidden_state
        return hidden.mean(1, dtype=torch.float32)


def lists_of(inputs: Inputs) -> list[list[int]]:
    """A set's token ids as a caller has them; of equal lengths."""
    found: list[list[int]] = inputs.padded.input_ids.tolist()
    return found


def least_cosine(got: Tensor, want: Tensor) -> float:
    """Over all rows; -1 for what is no number."""
    if got.shape != want.shape:
        raise ValueError(f"wrong shape: {list(got.shape)}, not {list(want.shape)}")
    got = got.to(want.device)
    cosines = torch.cosine_similarity(got.double(), want.double(), dim=-1)
    # Not min() of Python's: NaN must come through.
    return float(cosines.nan_to_num(nan=-1.0).min())


class Transformers:
    """A callable with a transformers model's signature: padded in, padded out.

    `steps`: whether each call must be marked for PyTorch's own CUDA graphs.
    """

    def __init__(self, model: Callable[..., Any], steps: bool = False):
        self._model, self._steps = model, steps

    def call(self, inputs: Inputs, form: str) -> Callable[[], Any]:
        """See `Runner`."""
        batches = (inputs.padded,) if form == "padded" else inputs.batches
        return functools.partial(_without_gradients, self._run, batches)

    def tokens(self, inputs: Inputs, form: str, result: Any) -> Tensor:
        """See `Runner`."""
        if form == "padded":
            return inputs.padded.real(result[0])
        pairs = zip(inputs.batches, result, strict=True)
        by_length = torch.cat([batch.real(hidden) for batch, hidden in pairs])
        return torch.empty_like(by_length).index_copy_(0, inputs.order, by_length)

    def _run(self, batches: tuple[Padded, ...]) -> list[Tensor]:
        found = []
        for batch in batches:
            if self._steps:
                torch.compiler.cudagraph_mark_step_begin()
            output = self._forward(batch)
            # The next call of a captured graph writes into the same memory.
            found.append(output.clone() if self._steps and len(batches) > 1 else output)
        return found

    def _forward(self, batch: Padded) -> Tensor:
        output = self._model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return output.last_hidden_state


class _FastPathRunner(Transformers):
    def _forward(self, batch: Padded) -> Tensor:
        return self._model(batch.input_ids, batch.attention_mask)


class FastPath(nn.Module):
    """DistilBERT on torch.nn.TransformerEncoder, with a transformers model's weights.

    Args:
        model: transformers' DistilBertModel; copied.
    """

    def __init__(self, model: Any):
        super().__init__()
        config = model.config
        self.embeddings = copy.deepcopy(model.embeddings)
        layer = nn.TransformerEncoderLayer(
            config.dim,
            config.n_heads,
            config.hidden_dim,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=1e-12,
            batch_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=True)
        for mine, theirs in zip(self.encoder.layers, model.transformer.layer, strict=True):
            mine.load_state_dict(_fast_path_weights(theirs))
        self.requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[B, S] to [B, S, D]; padding comes last in each row."""
        tables = self.embeddings
        places = tables.position_embeddings.weight[: input_ids.shape[1]]
        hidden = tables.LayerNorm(tables.word_embeddings(input_ids) + places)
        if attention_mask is None:
            return self.encoder(hidden)
        padding = attention_mask == 0
        out: Tensor = self.encoder(hidden, src_key_padding_mask=padding)
        # Nested tensors come back as wide as their longest row.
        return F.pad(out, (0, 0, 0, input_ids.shape[1] - out.shape[1]))


def _fast_path_weights(layer: Any) -> dict[str, Tensor]:
    """One layer's weights under torch.nn.TransformerEncoderLayer's names."""
    attention = layer.attention
    parts = (attention.q_lin, attention.k_lin, attention.v_lin)
    modules = {
        "self_attn.out_proj": attention.out_lin,
        "linear1": layer.ffn.lin1,
        "linear2": layer.ffn.lin2,
        "norm1": layer.sa_layer_norm,
        "norm2": layer.output_layer_norm,
    }
    found = {
        f"{name}.{kind}": getattr(module, kind)
        for name, module in modules.items()
        for kind in ("weight", "bias")
    }
    found["self_attn.in_proj_weight"] = torch.cat([part.weight for part in parts])
    found["self_attn.in_proj_bias"] = torch.cat([part.bias for part in parts])
    return found


@torch.inference_mode()
def _without_gradients(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@functools.cache
def _base(dry: bool, low_latency: bool) -> Any:
    tiny = TINY_LATENCY if low_latency else TINY
    return random_distilbert(**(tiny if dry else {}))
