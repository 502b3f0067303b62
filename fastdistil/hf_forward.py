"""The forward that stands in for a transformers encoder's own, and the rules for when it does not.

One `AcceleratedForward` is put on an encoder instance as its `forward` attribute. A call that the
packed engine answers just the same goes there; every other call runs the encoder's own forward,
and the reason is kept for explain(). The rules are in `AcceleratedForward._fast`, top to bottom.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.jit._trace import is_tracing

from .backends import Program
from .hf_layout import Layout, UnsupportedEncoder, check_weights, read_layout
from .packing import PaddedFacts, pack_padded, padded_facts, unpack
from .program_cache import ProgramCache

_UNDERSTOOD = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
# They only pass through an encoder on their way to something else, or are looked at by name.
_HARMLESS = frozenset(
    {"return_dict", "output_attentions", "output_hidden_states", "num_items_in_batch"}
)
# What an AcceleratedForward is made from, and copied by.
_GIVEN = ("encoder", "precision", "backend", "reads", "deterministic", "cuda_graphs")
_ID_DTYPES = (torch.int64, torch.int32)
# Implementations of the same attention; anything else registered under a name may be another.
_SAME_ATTENTION = ("eager", "sdpa", "flash_attention", "flex_attention")


class Reads(IntEnum):
    """Which columns of the last hidden state the model around an encoder looks at.

    Padded positions come out of the packed engine as zeros, where the original has states that
    belong to no text. That is the same thing only to those who do not look.
    """

    REAL = 0
    FIRST_TOO = 1
    ALL = 2


class _OwnForward(Exception):
    """Leaves the fast path; the message is the reason, for people."""


class _Reading(NamedTuple):
    """The encoder as last read, and the engine prepared for its configuration."""

    layout: Layout
    cache: ProgramCache


class AcceleratedForward:
    """A `forward` for one encoder instance: callable, picklable, with the original's signature.

    Safe to call from several threads. A copy serves the copied encoder, with its counters at zero
    and the weights yet to be prepared.

    Args:
        encoder: an encoder that `read_layout` accepts.
        precision, backend: as in `fastdistil.accelerate`.
        reads: what the model around the encoder looks at.
        deterministic, cuda_graphs: as in `fastdistil.accelerate`.
    """

    def __init__(
        self,
        encoder: Any,
        precision: str,
        backend: str,
        reads: Reads,
        deterministic: bool = True,
        cuda_graphs: bool = True,
    ):
        self.encoder = encoder
        self.precision = precision
        self.backend = backend
        self.reads = reads
        self.deterministic = deterministic
        self.cuda_graphs = cuda_graphs
        self._start()

    def _start(self) -> None:
        own = type(self.encoder).forward.__get__(self.encoder)
        self.__name__ = own.__name__
        self.__doc__ = own.__doc__
        self.__signature__ = inspect.signature(own)
        self.__code__ = own.__code__  # torch.export wants to know where a forward was written
        parameters = self.__signature__.parameters.values()
        self._names = tuple(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)
        self._takes_any = len(self._names) < len(parameters)
        # transformers 4 has the argument and builds tuples by hand; 5 does both in a decorator.
        self._version_4 = "return_dict" in self._names
        self._lock = threading.Lock()
        self._reading: _Reading | None = None
        self._accepted: Program | None = None
        self._warned = False
        self.fast_calls = 0
        self.fallback_calls = 0
        self.last_fallback: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _GIVEN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The encoder may be an empty shell yet: only its class is looked at here.
        self.__dict__.update(state)
        self._start()

    def __repr__(self) -> str:
        return f"<fastdistil forward of {type(self.encoder).__name__}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or is_tracing():
            # A counter would become a guard that fails at every call, so there is only a store.
            self.last_fallback = "the call was being compiled, exported or traced"
            return self._own(*args, **kwargs)
        try:
            output = self._fast(args, kwargs)
        except (_OwnForward, UnsupportedEncoder) as why:
            reason = str(why)
        else:
            with self._lock:
                self.fast_calls += 1
            return output
        with self._lock:
            self.fallback_calls += 1
            self.last_fallback = reason
        return self._own(*args, **kwargs)

    def _own(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.encoder).forward(self.encoder, *args, **kwargs)

    def program(self) -> tuple[Program, str]:
        """The engine prepared for the weights as they are now, and why that one was chosen.

        Raises:
            UnsupportedEncoder: the encoder, as it is now, can only run itself.
        """
        layout, cache = self._read()
        program = self._prepare(cache, layout.tensors())
        return program, cache.reason

    def _fast(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The packed forward; or the reason against it, raised."""
        if self.encoder.training:
            raise _OwnForward("the encoder is in training mode")
        given = self._by_name(args, kwargs)
        _check_requests(given, self.encoder.config)
        input_ids = _input_ids(given)
        layout, cache = self._read()
        tensors = layout.tensors()
        words = tensors["embeddings.word_embeddings.weight"]
        _check_surroundings(input_ids.device, words.device)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors.values()):
            self._warn_about_gradients()
            raise _OwnForward("gradients are enabled and the weights require them")
        if hindrance := layout.hindrance():
            raise _OwnForward(hindrance)
        length, limit = input_ids.shape[1], layout.config.max_positions
        if length > limit:  # the original raises what its callers expect
            raise _OwnForward(f"{length} tokens are more than the encoder's {limit} positions")
        mask = self._mask(given.get("attention_mask"), input_ids)
        segments = self._ids("token_type_ids", given, input_ids)
        positions = self._ids("position_ids", given, input_ids)
        facts = padded_facts(input_ids, mask, segments, positions)  # all that a GPU is asked for
        _check_padding(facts, self._columns_read())
        program = self._prepare(cache, tensors)
        batch, places = pack_padded(input_ids, mask, segments, positions, facts)
        hidden = unpack(program.run(batch).to(words.dtype), places, *input_ids.shape)
        return self._output(hidden, self._wants_tuple(given))

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        positional = self._names[: len(args)]
        twice = any(name in kwargs for name in positional)
        unknown = not self._takes_any and not kwargs.keys() <= set(self._names)
        if len(args) > len(self._names) or twice or unknown:
            raise _OwnForward("the arguments do not fit the signature")
        return {**dict(zip(positional, args, strict=True)), **kwargs}

    def _mask(self, mask: Any, input_ids: Tensor) -> Tensor | None:
        """The attention mask, [B, S], whatever it holds; None where there is none."""
        if mask is None:
            if self._version_4:  # which gives the user a hint
                self.encoder.warn_if_padding_and_no_attention_mask(input_ids, None)
            return None
        if type(mask) is not Tensor or mask.shape != input_ids.shape:
            raise _OwnForward("attention_mask is not a [batch, length] tensor like input_ids")
        if mask.device != input_ids.device:
            raise _OwnForward("attention_mask and input_ids are on different devices")
        return mask

    def _ids(self, name: str, given: Mapping[str, Any], input_ids: Tensor) -> Tensor | None:
        """Segment or position ids, [B, S] or [1, S]."""
        ids = given.get(name)
        if ids is None or name not in self._names:  # version 5's DistilBERT ignores segments
            return None
        if not _is_ids(ids) or ids.device != input_ids.device:
            raise _OwnForward(f"{name} is not a [batch, length] tensor of integers like input_ids")
        if tuple(ids.shape) not in (tuple(input_ids.shape), (1, input_ids.shape[1])):
            raise _OwnForward(f"{name} is not shaped like input_ids")
        return ids

    def _wants_tuple(self, given: Mapping[str, Any]) -> bool:
        """Whether the caller gets a tuple, by the rule of the transformers version at hand."""
        config = self.encoder.config
        if self._version_4:
            asked = given.get("return_dict")
            return not (config.use_return_dict if asked is None else asked)
        return given.get("return_dict", getattr(config, "return_dict", True)) is False

    def _columns_read(self) -> Reads:
        pooler = getattr(self.encoder, "pooler", None)
        if pooler is None:
            return self.reads
        its_own = type(pooler).__module__.startswith("transformers.")
        return max(self.reads, Reads.FIRST_TOO if its_own else Reads.ALL)

    def _warn_about_gradients(self) -> None:
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            warnings.warn(
                f"fastdistil: {type(self.encoder).__name__} runs its own, slower forward, because "
                "gradients are enabled and its weights require them. For inference, call the "
                "model under `with torch.inference_mode():` (or torch.no_grad()).",
                UserWarning,
                stacklevel=_frames_to_the_caller(),
            )

    def _read(self) -> _Reading:
        reading = self._reading
        if reading is not None and reading.layout.intact():
            return reading
        layout = read_layout(self.encoder)
        if reading is not None and reading.cache.config == layout.config:
            cache = reading.cache
        else:
            cache = ProgramCache(
                layout.config,
                self.precision,
                self.backend,
                deterministic=self.deterministic,
                cuda_graphs=self.cuda_graphs,
            )
        self._reading = reading = _Reading(layout, cache)
        return reading

    def _prepare(self, cache: ProgramCache, tensors: Mapping[str, Tensor]) -> Program:
        try:
            program = cache.get(tensors)
        except ValueError as error:  # nothing can run these weights where they are now
            raise UnsupportedEncoder(str(error)) from None
        if program is not self._accepted:
            check_weights(tensors)
            device = next(iter(tensors.values())).device
            if why := no_gain(program.backend, self.backend, device):
                raise UnsupportedEncoder(why)
            self._accepted = program
        return program

    def _output(self, hidden: Tensor, as_tuple: bool) -> Any:
        """What the original returns around its last hidden state."""
        from transformers import modeling_outputs

        if not hasattr(self.encoder, "pooler"):
            output = modeling_outputs.BaseModelOutput(last_hidden_state=hidden)
            return output.to_tuple() if as_tuple else output
        pooled = None if self.encoder.pooler is None else self.encoder.pooler(hidden)
        if as_tuple and self._version_4:
            return hidden, pooled
        pair = modeling_outputs.BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden, pooler_output=pooled
        )
        return pair.to_tuple() if as_tuple else pair


def is_accelerated(module: Any) -> bool:
    """Whether an `AcceleratedForward` stands in for the module's own forward."""
    return isinstance(module.__dict__.get("forward"), AcceleratedForward)


def no_gain(engine: str, asked: str, device: torch.device) -> str | None:
    """Why the engine that was chosen for `device` would be slower than the model itself."""
    if engine != "reference" or asked == "reference" or device.type == "cpu":
        return None
    return f"no engine for {device.type} is there; plain PyTorch over packed tokens gains nothing"


def _is_ids(value: Any) -> TypeGuard[Tensor]:
    return type(value) is Tensor and value.dtype in _ID_DTYPES and value.dim() == 2


def _input_ids(given: Mapping[str, Any]) -> Tensor:
    ids = given.get("input_ids")
    if not _is_ids(ids):
        raise _OwnForward("input_ids is not a [batch, length] tensor of integers")
    if ids.numel() == 0:
        raise _OwnForward("input_ids is empty")
    return ids


def _check_requests(given: Mapping[str, Any], config: Any) -> None:
    """Refuse requests for more than the last hidden state, and whatever changes what it is."""
    for flag in ("output_attentions", "output_hidden_states"):
        # Versions differ in what an explicit None or an index means: only a plain False is a no.
        asked = given.get(flag)
        if asked or (asked is not False and getattr(config, flag, False)):
            raise _OwnForward(f"{flag} was requested")
    for name, value in given.items():
        if value is None or value is False or name in _UNDERSTOOD or name in _HARMLESS:
            continue
        raise _OwnForward(f"the argument {name} was given")
    if getattr(config, "is_decoder", False) or getattr(config, "is_causal", False):
        raise _OwnForward("the configuration asks for causal attention")
    attention = getattr(config, "_attn_implementation", None) or "eager"
    if not attention.startswith(_SAME_ATTENTION):
        raise _OwnForward(f"attention implementation {attention!r} may compute something else")


def _check_padding(facts: PaddedFacts, reads: Reads) -> None:
    """Refuse a mask that is more than a padding mask, and padding that somebody looks at."""
    if not facts.is_binary:  # versions differ in what such values mean
        raise _OwnForward("attention_mask holds values other than 0 and 1")
    if facts.keeps_all:
        return
    if facts.has_empty_row:
        raise _OwnForward("a row of attention_mask is all zeros")
    if reads is Reads.ALL:
        raise _OwnForward("there is padding, and the model around the encoder reads all positions")
    if reads is Reads.FIRST_TOO and not facts.keeps_first:
        raise _OwnForward("the first position is padding, and a pooler or a head may read it")


def _check_surroundings(inputs: torch.device, weights: torch.device) -> None:
    """Refuse calls inside something that changes or watches what the modules do."""
    if inputs != weights or inputs.type == "meta":
        raise _OwnForward(f"input_ids is on {inputs}, the weights are on {weights}")
    if torch.is_autocast_enabled(inputs.type):
        raise _OwnForward("autocast is active; accelerate(model, precision='bf16') needs none")
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack():
        raise _OwnForward("a dispatch mode or a torch.func transformation is active")
    hooks = torch.nn.modules.module
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        raise _OwnForward("forward hooks are registered on all modules")


def _frames_to_the_caller() -> int:
    """`stacklevel` of a warning that points at whoever called the model, outside the libraries."""
    libraries = ("torch", "transformers", "fastdistil", "contextlib")
    level, frame = 1, inspect.currentframe()
    while frame is not None and (frame := frame.f_back) is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in libraries:
            break
        level += 1
    return level
