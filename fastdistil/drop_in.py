"""accelerate(), restore(), explain(), warmup(): the fast encoder in the model one has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from .backends import select
from .hf_forward import AcceleratedForward, Reads, is_accelerated, no_gain
from .hf_layout import (
    SUPPORTED,
    UnsupportedEncoder,
    check_weights,
    family_of,
    is_decoder,
    read_layout,
)
from .model import DistilBertModel

ModelT = TypeVar("ModelT")

# What models around an encoder look at. Any other may well take the first position for the whole
# text, as most classifiers do. ColBERT's queries end in positions that nobody attends to, and
# compares with them all the same: sentence-transformers, PyLate and the original name it so.
_READS = {
    "DistilBertForMaskedLM": Reads.REAL,
    "DistilBertForTokenClassification": Reads.REAL,
    "DistilBertForQuestionAnswering": Reads.ALL,
    "BertForMaskedLM": Reads.REAL,
    "BertForTokenClassification": Reads.REAL,
    "BertForQuestionAnswering": Reads.ALL,
    "EncoderDecoderModel": Reads.REAL,
    "MultiVectorEncoder": Reads.ALL,
    "ColBERT": Reads.ALL,
    "HF_ColBERT": Reads.ALL,
}


@dataclass(frozen=True)
class Explanation:
    """How one encoder inside a model runs; `print()` it.

    Attributes:
        encoder: its name inside the model, and its class.
        backend: the engine; "own forward" where only that can run.
        precision: what the engine computes in.
        instruction_set: what runs the engine.
        reason: why this engine was chosen, or why none can be.
        resident_bytes: memory of the weights that the engine reads. On the CPU, models with equal
            weights share what is packed of them; float32 embedding tables are each model's own,
            read in place. None where no engine runs.
        fast_calls: calls the engine has answered since accelerate(); None for a model of ours,
            which counts none.
        fallback_calls: calls the encoder's own forward has answered; compiled ones do not count.
        last_fallback: why the last of those did not go to the engine, or None.
    """

    encoder: str
    backend: str
    precision: str
    instruction_set: str
    reason: str
    resident_bytes: int | None = None
    fast_calls: int | None = None
    fallback_calls: int | None = None
    last_fallback: str | None = None

    def __str__(self) -> str:
        engine = ", ".join(filter(None, (self.backend, self.precision, self.instruction_set)))
        lines = [f"{self.encoder}: {engine}", f"  why: {self.reason}"]
        if self.resident_bytes is not None:
            lines.append(f"  memory: {self.resident_bytes / 1e6:,.1f} MB of weights")
        if self.fast_calls is not None:
            own = f"{self.fallback_calls} by the model's own forward"
            lines.append(f"  calls: {self.fast_calls} fast, {own}")
        if self.last_fallback is not None:
            lines.append(f"  last own forward: {self.last_fallback}")
        return "\n".join(lines)


class Explanations(list[Explanation]):
    """One `Explanation` per encoder, in the order of `model.modules()`."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def accelerate(
    model: ModelT,
    precision: str = "auto",
    backend: str = "auto",
    deterministic: bool = True,
    cuda_graphs: bool = True,
) -> ModelT:
    """Run the DistilBERT and BERT encoders inside `model` on the packed engine, in place.

    Everything that holds the model keeps working: its class, signature, state dict, hooks,
    `save_pretrained`, pipelines, `SentenceTransformer`, `EncoderDecoderModel.generate`,
    `Trainer.evaluate`, deep copies, pickles. Only encoder instances are touched (each gets a
    `forward` attribute), never classes or configurations; decoders are left alone. Give it the
    whole model, not the encoder inside, so that it knows what the head reads.

    Real positions come out as the original's, within the precision's budget; padded positions
    come out as zeros. Where that would not amount to the same (training, gradients, requests for
    attentions or hidden states, `inputs_embeds`, masks that are more than padding, a head that
    reads padded positions, autocast, hooks inside the encoder, tracing), the encoder's own
    forward runs, and `explain` says why. So it does for input that does not fit, which raises
    what it always raised; only ids outside their tables are a ValueError that names them. Labels
    at padded positions must be ignored ones (-100), as transformers' collators set them.

    Weights are prepared at the first call, and again whenever they have changed. A few elements
    written through `.data` leave no mark: call `accelerate` again after that. On a device that no
    engine is there for, a warning says so and the encoder's own forward stays in charge.

    Do not wrap an accelerated model in `torch.nn.DataParallel`: it copies attributes as they are,
    and all replicas would call the first. `DistributedDataParallel` is fine.

    Args:
        model: a module with such an encoder in it, or an object with one as `.model`, like a
            pipeline. Calling again with other options changes them.
        precision: "auto" (the fastest with bf16-class error on this hardware), "fp32", "bf16",
            "fp16" (GPUs) or "int8" (nothing to calibrate; on a GPU for weights only, and faster
            only for few tokens with deterministic=False). On a GPU, "auto" leaves bf16 and
            fp16 models in their own and takes bf16 for fp32 models.
        backend: "auto" (the fastest that runs here), "cuda", "cpu", "reference".
        deterministic: False lets the GPU engine take kernels whose roundings depend on the batch,
            where they are faster: above all one launch for the whole of a few tokens.
        cuda_graphs: False has the GPU engine launch each kernel by itself.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is no module and has none.
        ValueError: no such encoder inside; one with something in it that is not supported, which
            is named; an option that is unknown or not available here. Nothing was changed then.
    """
    root = _module_in(model)
    encoders = {name: m for name, m in _encoders(root) if not is_decoder(m)}
    if not encoders:
        raise ValueError(_nothing_found(root))
    for name, encoder in encoders.items():
        _check(_label(name, encoder), encoder, precision, backend)
    for encoder in encoders.values():
        # What is around the model itself was known if it was accelerated as a part before.
        known = encoder is root and is_accelerated(encoder)
        reads = encoder.forward.reads if known else _reads(root, encoder)
        encoder.forward = AcceleratedForward(
            encoder, precision, backend, reads, deterministic, cuda_graphs
        )
    return model


def restore(model: ModelT) -> ModelT:
    """Undo `accelerate`: every encoder inside `model` is exactly as it was. Returns `model`."""
    for _, encoder in _encoders(_module_in(model)):
        if is_accelerated(encoder):
            del encoder.forward
    return model


def warmup(
    model: ModelT, tokens: int | Sequence[int] | None = None, max_seqlen: int | None = None
) -> ModelT:
    """Have the encoders inside an accelerated model do now what their first call would wait for.

    The weights are prepared; on a GPU the kernels are compiled and the CUDA graphs captured.

    Args:
        model: as for `accelerate`; or a `DistilBertModel`.
        tokens: real tokens of the batches to come, padding not counted; by default a ladder.
        max_seqlen: their longest sequence; by default the longest the model takes.

    Returns:
        `model` itself.

    Raises:
        ValueError: nothing inside is accelerated, or it can only run its own forward.
    """
    root = _module_in(model)
    if isinstance(root, DistilBertModel):
        root.warmup(tokens, max_seqlen)
        return model
    encoders = [encoder for _, encoder in _encoders(root) if is_accelerated(encoder)]
    if not encoders:
        raise ValueError(_not_accelerated(root))
    sizes = [tokens] if isinstance(tokens, int) else tokens
    for encoder in encoders:
        encoder.forward.program()[0].warmup(sizes, max_seqlen)
    return model


def explain(model: object) -> Explanation | Explanations:
    """How the accelerated encoders inside `model` run, and why one last ran its own forward.

    Takes `DistilBertModel` and `Encoder` too. Prepares the weights where no call has done so yet.

    Returns:
        An `Explanation`, or a list of them where there are several encoders.

    Raises:
        TypeError: `model` is no module and has none.
        ValueError: nothing inside is accelerated.
    """
    root = _module_in(model)
    if isinstance(root, DistilBertModel):
        ours = root.explain()
        return Explanation(
            type(root).__name__,
            ours["backend"],
            ours["precision"],
            ours["instruction_set"],
            ours["reason"],
            root.resident_bytes(),
        )
    explanations = Explanations(
        _explanation(_label(name, encoder), encoder.forward)
        for name, encoder in _encoders(root)
        if is_accelerated(encoder)
    )
    if not explanations:
        raise ValueError(_not_accelerated(root))
    return explanations[0] if len(explanations) == 1 else explanations


def _module_in(model: object) -> nn.Module:
    inner = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(inner, nn.Module):
        raise TypeError(
            f"model: got {_kind(model)}; a torch.nn.Module is allowed, or a pipeline of one"
        )
    return inner


def _encoders(root: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in root.named_modules():
        if family_of(module) is not None:
            yield name, module


def _kind(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _label(name: str, encoder: nn.Module) -> str:
    return f"{name} ({type(encoder).__name__})" if name else type(encoder).__name__


def _not_accelerated(root: nn.Module) -> str:
    return f"model: {_kind(root)} is not accelerated; call fastdistil.accelerate(model) first"


def _nothing_found(root: nn.Module) -> str:
    decoders = [_label(name, module) for name, module in _encoders(root)]
    what = f"only decoders ({', '.join(decoders)})" if decoders else "no such encoder"
    return f"model: got {_kind(root)}, which has {what} in it; supported: {SUPPORTED}"


def _check(label: str, encoder: nn.Module, precision: str, backend: str) -> None:
    """Raise unless `encoder` can be accelerated with these options."""
    if "forward" in encoder.__dict__ and not is_accelerated(encoder):
        raise ValueError(
            f"model: the forward of {label} was already replaced, by "
            f"{encoder.__dict__['forward']!r}; undo that first"
        )
    try:
        layout = read_layout(encoder)
        tensors = layout.tensors()
        check_weights(tensors)
    except UnsupportedEncoder as why:
        raise UnsupportedEncoder(f"model: {label} is not supported: {why}") from None
    first = next(iter(tensors.values()))
    device = first.device
    selection = select(layout.config, device, precision, backend, first.dtype)
    if reason := no_gain(selection.backend.name, backend, device):
        warnings.warn(f"fastdistil: {label} keeps its own forward: {reason}", stacklevel=3)


def _reads(root: nn.Module, encoder: nn.Module) -> Reads:
    """What the modules around `encoder` look at; the most demanding of them counts."""
    reads = Reads.REAL
    for name, module in root.named_modules(remove_duplicate=False):
        if module is encoder and name:
            *above, parent = _ancestors(root, name)
            known = [value for value in map(_reads_of, above) if value is not None]
            direct = _reads_of(parent)
            reads = max(reads, Reads.FIRST_TOO if direct is None else direct, *known)
    return reads


def _ancestors(root: nn.Module, name: str) -> list[nn.Module]:
    """The modules that hold the module called `name`, from the root down."""
    parts = name.split(".")
    return [root.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]


def _reads_of(module: nn.Module) -> Reads | None:
    names = (kind.__name__ for kind in type(module).__mro__)
    return next((_READS[name] for name in names if name in _READS), None)


def _explanation(label: str, forward: AcceleratedForward) -> Explanation:
    try:
        program, reason = forward.program()
        engine = (program.backend, program.precision, program.instruction_set, reason)
        resident = program.resident_bytes
    except UnsupportedEncoder as why:
        engine, resident = ("own forward", "", "", str(why)), None
    calls = (forward.fast_calls, forward.fallback_calls)
    return Explanation(label, *engine, resident, *calls, forward.last_fallback)
