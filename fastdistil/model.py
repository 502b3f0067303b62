"""DistilBertModel: the encoder as a module, under Hugging Face's own parameter names.

The modules below only hold parameters, so that a state dict reads as transformers writes it. What
they compute is in `backends`: packed tokens go in, packed hidden states come out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .backends import Program, reference
from .backends.base import check_rows
from .checkpoint import Checkpoint, hf_state_dict, load_checkpoint, translate_keys
from .config import EncoderConfig
from .packing import PackedBatch, pack_padded, unpack, validate
from .pooling import check_pooling, pool
from .program_cache import ParameterWalk, ProgramCache


class EncoderOutput(dict[str, Tensor]):
    """What a model returns: read it as an attribute, a mapping or a tuple, and assign to it."""

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __getattr__(self, name: str) -> Tensor:
        try:
            return super().__getitem__(name)
        except KeyError:
            raise AttributeError(f"EncoderOutput has no {name!r}; it has {list(self)}") from None

    def __setattr__(self, name: str, value: Tensor) -> None:
        self[name] = value

    def to_tuple(self) -> tuple[Tensor, ...]:
        """The values, in order."""
        return tuple(self.values())


class DistilBertModel(nn.Module):
    """A DistilBERT or BERT encoder that computes no padding.

    It computes with the fastest backend there is. In training mode, or where a parameter wants
    gradients, it computes in plain PyTorch from the live parameters instead, in their own dtype
    and without dropout.

    Args:
        config: the encoder's sizes.
        device: where the parameters are made.
        dtype: of the parameters, and of what the model returns.
        precision: what the backend computes in: "auto", "fp32", "bf16", "fp16" (GPUs) or "int8"
            (on a GPU for weights only).
        backend: "auto", "cuda", "cpu" or "reference".
        deterministic: False lets the GPU engine take kernels whose roundings depend on the batch,
            where they are faster: above all one launch for the whole of a few tokens. A
            sequence's bits then may differ from batch to batch.
        cuda_graphs: False has the GPU engine launch each kernel by itself.

    Raises:
        ValueError: an unknown precision or backend, or one that is not available.
    """

    def __init__(
        self,
        config: EncoderConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        precision: str = "auto",
        backend: str = "auto",
        deterministic: bool = True,
        cuda_graphs: bool = True,
    ):
        super().__init__()
        self.config = config
        self._cache = ProgramCache(config, precision, backend, deterministic, cuda_graphs)
        self._walk = ParameterWalk()
        with torch.device(device) if device is not None else nullcontext():
            self.embeddings = _Embeddings(config, dtype)
            self.transformer = _Transformer(config, dtype)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        device: torch.device | str | None = None,
        precision: str = "auto",
        backend: str = "auto",
        revision: str | None = None,
        deterministic: bool = True,
        cuda_graphs: bool = True,
    ) -> DistilBertModel:
        """Read a checkpoint: a local folder or a hub id, DistilBERT's or BERT's.

        The model is in eval mode and its parameters want no gradients: this is for inference.
        For fine-tuning call `.train()` and `.requires_grad_()`. A task head or pooler in the
        checkpoint is left out.

        Raises:
            FileNotFoundError, ValueError: see `fastdistil.checkpoint.load_checkpoint`.
        """
        checkpoint = load_checkpoint(path_or_id, revision=revision)
        return cls.from_checkpoint(
            checkpoint, device, precision, backend, deterministic, cuda_graphs
        )

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        device: torch.device | str | None = None,
        precision: str = "auto",
        backend: str = "auto",
        deterministic: bool = True,
        cuda_graphs: bool = True,
    ) -> DistilBertModel:
        """The same of a checkpoint that has been read; float32 weights are not copied."""
        model = cls(
            checkpoint.config,
            "meta",
            precision=precision,
            backend=backend,
            deterministic=deterministic,
            cuda_graphs=cuda_graphs,
        )
        weights = {name: tensor.float() for name, tensor in checkpoint.state_dict.items()}
        model.load_state_dict(weights, assign=True)
        return model.to(device).eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors as transformers' AutoModel reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps(self.config.to_hf(), indent=2)
        (folder / "config.json").write_text(config + "\n", encoding="utf-8")
        named = hf_state_dict(self.state_dict(), self.config)
        # safetensors refuses tensors that share memory or are not contiguous.
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters and of the output."""
        return self.embeddings.word_embeddings.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embeddings.word_embeddings.weight.device

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> EncoderOutput:
        """Padded in, padded out.

        Args:
            input_ids: integers [B, S].
            attention_mask: [B, S], nonzero at real tokens; None: all are.
            token_type_ids: integers [B, S] or [1, S], for checkpoints with segment embeddings.
            position_ids: integers [B, S] or [1, S]; by default the column.

        Returns:
            `last_hidden_state` [B, S, D] in the parameters' dtype, zeros at the pads.

        Raises:
            TypeError, ValueError: input that does not fit the model, named in the message.
        """
        _check_device(input_ids, self.device)
        batch, indices = pack_padded(input_ids, attention_mask, token_type_ids, position_ids)
        hidden = self.forward_packed(batch)
        return EncoderOutput(last_hidden_state=unpack(hidden, indices, *input_ids.shape))

    def forward_packed(self, batch: PackedBatch) -> Tensor:
        """Last hidden states [T, D] of a packed batch, in the parameters' dtype."""
        parameters = self._walk.parameters(self)
        _check_device(batch.input_ids, _first(parameters).device)
        if self._wants_gradients(parameters):
            validate(batch, self.config)
            return reference.forward(self.config, parameters, batch)
        hidden = self._cache.compute(parameters, lambda program: program.run(batch))
        return hidden.to(_first(parameters).dtype)

    def forward_rows(self, batch: PackedBatch, rows: Tensor) -> Tensor:
        """Last hidden states of some tokens only, [R, D]: exactly `forward_packed(batch)[rows]`.

        The engines compute the last layer for these alone: a head that reads one token of each
        sequence need not wait for the others.

        Args:
            batch: a packed batch on the model's device.
            rows: int64 or int32 [R], there or (better) on the CPU: which of the batch's tokens, in
                strictly ascending order; R may be 0.

        Returns:
            [R, D] in the parameters' dtype.

        Raises:
            TypeError, ValueError: rows that are no such thing, named in the message.
        """
        parameters = self._walk.parameters(self)
        _check_device(batch.input_ids, _first(parameters).device)
        if self._wants_gradients(parameters):
            there = check_rows(rows, batch).to(batch.device)
            return self.forward_packed(batch).index_select(0, there)
        hidden = self._cache.compute(parameters, lambda program: program.run_rows(batch, rows))
        return hidden.to(_first(parameters).dtype)

    def encode_packed(
        self, batch: PackedBatch, pooling: str = "mean", normalize: bool = False
    ) -> Tensor:
        """One float32 vector per sequence, [B, D], as `fastdistil.pooling.pool` defines it."""
        check_pooling(pooling)
        parameters = self._walk.parameters(self)
        if self._wants_gradients(parameters):
            return pool(self.forward_packed(batch), batch.cu_seqlens, pooling, normalize)
        _check_device(batch.input_ids, _first(parameters).device)
        return self._cache.compute(
            parameters, lambda program: program.run_pooled(batch, pooling, normalize)
        )

    def program(self) -> Program:
        """The weights as they are now, prepared for the backend that was chosen for them."""
        return self._cache.get(self._walk.parameters(self))

    def warmup(
        self, tokens: int | Sequence[int] | None = None, max_seqlen: int | None = None
    ) -> None:
        """Prepare the weights, and whatever else a first batch would wait for.

        On a GPU: compiles the kernels and captures the CUDA graphs.

        Args:
            tokens: total tokens of the batches to come; by default a ladder of sizes.
            max_seqlen: their longest sequence; by default the longest the model takes.
        """
        sizes = [tokens] if isinstance(tokens, int) else tokens
        self.program().warmup(sizes, max_seqlen)

    def explain(self) -> dict[str, str]:
        """What computes this model and why.

        Returns:
            `backend`, `precision`, `instruction_set` and `reason`. In training mode, or where
            gradients are wanted now, that is plain PyTorch.
        """
        parameters = self._walk.parameters(self)
        if self._wants_gradients(parameters):
            mode = "training mode" if self.training else "gradients are wanted"
            return {
                "backend": "reference",
                "precision": _dtype_name(self.dtype),
                "instruction_set": f"PyTorch on {self.device.type}",
                "reason": f"{mode}, so plain PyTorch on the live parameters",
            }
        program = self.program()
        return {
            "backend": program.backend,
            "precision": program.precision,
            "instruction_set": program.instruction_set,
            "reason": self._cache.reason,
        }

    def resident_bytes(self) -> int | None:
        """Memory of the weights that the engine reads, in bytes; None where there is no engine.

        float32 embedding tables are counted: on the CPU the engine reads the model's own.
        """
        if self._wants_gradients(self._walk.parameters(self)):
            return None
        return self.program().resident_bytes

    def _wants_gradients(self, parameters: Mapping[str, Tensor]) -> bool:
        return self.training or (
            torch.is_grad_enabled() and any(p.requires_grad for p in parameters.values())
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take Hugging Face's names: translate them in place before torch looks for its own."""
        theirs = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
        ours = translate_keys({key[len(prefix) :]: tensor for key, tensor in theirs.items()})
        state_dict.update({prefix + name: tensor for name, tensor in ours.items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig, dtype: torch.dtype):
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = _table(config.vocab_size, width, dtype)
        self.position_embeddings = _table(config.max_positions, width, dtype)
        if config.num_segments:
            self.token_type_embeddings = _table(config.num_segments, width, dtype)
        self.LayerNorm = nn.LayerNorm(width, config.layer_norm_eps, dtype=dtype)
        if self.word_embeddings.weight.is_meta:
            return
        with torch.no_grad():
            if config.pad_token_id is not None:
                self.word_embeddings.weight[config.pad_token_id] = 0
            if config.sinusoidal_positions:
                self.position_embeddings.weight.copy_(_sinusoids(config.max_positions, width))


class _Attention(nn.Module):
    def __init__(self, width: int, dtype: torch.dtype):
        super().__init__()
        self.q_lin = _linear(width, width, dtype)
        self.k_lin = _linear(width, width, dtype)
        self.v_lin = _linear(width, width, dtype)
        self.out_lin = _linear(width, width, dtype)


class _FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, dtype: torch.dtype):
        super().__init__()
        self.lin1 = _linear(width, inner, dtype)
        self.lin2 = _linear(inner, width, dtype)


class _Block(nn.Module):
    def __init__(self, config: EncoderConfig, dtype: torch.dtype):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.attention = _Attention(width, dtype)
        self.sa_layer_norm = nn.LayerNorm(width, eps, dtype=dtype)
        self.ffn = _FeedForward(width, config.intermediate_size, dtype)
        self.output_layer_norm = nn.LayerNorm(width, eps, dtype=dtype)


class _Transformer(nn.Module):
    def __init__(self, config: EncoderConfig, dtype: torch.dtype):
        super().__init__()
        self.layer = nn.ModuleList(_Block(config, dtype) for _ in range(config.num_layers))


def _linear(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    """Weights as BERT starts them: normal, standard deviation 0.02, biases zero."""
    module = nn.Linear(inputs, outputs, dtype=dtype)
    _start(module.weight)
    nn.init.zeros_(module.bias)
    return module


def _table(rows: int, width: int, dtype: torch.dtype) -> nn.Embedding:
    # nn.Embedding(rows, width) would draw numbers itself, which `_start` is to do or leave.
    module = nn.Embedding.from_pretrained(torch.empty(rows, width, dtype=dtype), freeze=False)
    _start(module.weight)
    return module


def _start(weight: Tensor) -> None:
    """Normal random numbers; none on the meta device, where that imports torch's compiler."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=0.02)


def _sinusoids(rows: int, width: int) -> Tensor:
    """sin and cos of row / 10000^(2i / width) in alternating columns (Vaswani et al., 2017)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(rows).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


def _first(parameters: Mapping[str, Tensor]) -> Tensor:
    return next(iter(parameters.values()))


def _check_device(input_ids: Tensor, device: torch.device) -> None:
    if isinstance(input_ids, Tensor) and input_ids.device != device:
        raise ValueError(
            f"input_ids: on {input_ids.device}, but the model is on {device}; "
            "both must be on one device"
        )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
