"""Reading a live transformers encoder: where its weights are, and whether we compute what it does.

The truth is the modules themselves, not the configuration object beside them, which other models
may share and anybody may edit: sizes come from the tensors, the number of heads, the epsilon and
the activation from the modules that hold them. `read_layout` looks at everything once, slowly;
`Layout.intact` and `Layout.hindrance` then ask before every call, in a few microseconds, whether
what was read still holds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from operator import contains, getitem, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import parameter_shapes
from .config import EncoderConfig

# Modules of one layer: the canonical name (DistilBERT's own) -> BERT's.
_BERT_LAYER = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}
_WORDS = "embeddings.word_embeddings"
_POSITIONS = "embeddings.position_embeddings"
_SEGMENTS = "embeddings.token_type_embeddings"

# By class name: which name a configuration gives them differs, the mathematics does not.
_ACTIVATIONS = {
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "ReLU": "relu",
    "SiLU": "silu",
    "SiLUActivation": "silu",
}
_SAME_IN_TRAINING = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.ModuleList)
_PLAIN_MODULES = (*_SAME_IN_TRAINING, nn.Dropout)
_ACTIVATION_SOURCES = ("transformers.activations", "torch.nn.modules.activation")
_WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Of a module's `__dict__`.
_is_training = itemgetter("training")

SUPPORTED = "transformers' DistilBertModel and BertModel, alone or inside another model"


class UnsupportedEncoder(ValueError):
    """We would not compute what this encoder computes; the message names the part that differs."""


@dataclass(frozen=True)
class Family:
    """One of the encoder classes of transformers that we stand in for, and where its parts are.

    `layers` is the list of layers; `layer_paths`, `activation` and `attention` are inside one;
    `heads` is the attention's attribute that counts its heads.
    """

    model_type: str
    class_name: str
    modeling: str
    layers: str
    layer_paths: Mapping[str, str]
    activation: str
    attention: str
    heads: str
    tables: tuple[str, ...]

    @property
    def encoder_class(self) -> type[nn.Module] | None:
        """The class, or None while nobody has imported it, so that no instance can exist."""
        return getattr(sys.modules.get(self.modeling), self.class_name, None)


FAMILIES = (
    Family(
        model_type="distilbert",
        class_name="DistilBertModel",
        modeling="transformers.models.distilbert.modeling_distilbert",
        layers="transformer.layer",
        layer_paths={name: name for name in _BERT_LAYER},
        activation="ffn.activation",
        attention="attention",
        heads="n_heads",
        tables=(_WORDS, _POSITIONS),
    ),
    Family(
        model_type="bert",
        class_name="BertModel",
        modeling="transformers.models.bert.modeling_bert",
        layers="encoder.layer",
        layer_paths=_BERT_LAYER,
        activation="intermediate.intermediate_act_fn",
        attention="attention.self",
        heads="num_attention_heads",
        tables=(_WORDS, _POSITIONS, _SEGMENTS),
    ),
)


def family_of(module: object) -> Family | None:
    """The family `module` is an instance of, or None."""
    for family in FAMILIES:
        encoder_class = family.encoder_class
        if encoder_class is not None and isinstance(module, encoder_class):
            return family
    return None


@dataclass(frozen=True, eq=False)
class Layout:
    """What `read_layout` found in one encoder, in the form that is cheap to check again.

    What is asked of each of a hundred things is asked by `map` of something written in C, as in
    `program_cache`.

    Attributes:
        config: what the modules amount to.
        weights: canonical names of the parameters.
        tables, keys: the `_parameters` table that holds each of them, and its key there.
        table_rows: the `_parameters` of each embedding table and its number of rows.
        children, kept: the `_modules` of every module that has some, and what it held.
        names, modules, types: the modules whose work we take over, and their exact classes.
        attributes: the `__dict__` of each of these modules.
        hooks: the two tables of forward hooks of each of these modules, one after the other.
    """

    config: EncoderConfig
    weights: list[str]
    tables: list[dict[str, Any]]
    keys: list[str]
    table_rows: tuple[tuple[dict[str, Any], int], ...]
    children: list[dict[str, Any]]
    kept: list[list[Any]]
    names: list[str]
    modules: list[nn.Module]
    types: list[type]
    attributes: list[dict[str, Any]]
    hooks: list[dict[int, Any]]

    def intact(self) -> bool:
        """Whether the encoder still consists of the modules and table sizes that were read."""
        for table, rows in self.table_rows:
            if "weight" in table and table["weight"].shape[0] != rows:
                return False
        return (
            list(map(list, map(dict.values, self.children))) == self.kept
            and list(map(type, self.modules)) == self.types
        )

    def tensors(self) -> dict[str, Tensor]:
        """The live parameters under their canonical names.

        Raises:
            UnsupportedEncoder: a parameter was taken away (weight normalisation and the like) or
                is no plain `nn.Parameter` (`torch.func.functional_call`, sharded tensors).
        """
        try:
            tensors = dict(zip(self.weights, map(getitem, self.tables, self.keys), strict=True))
        except KeyError:
            places = zip(self.weights, self.tables, self.keys, strict=True)
            missing = next(name for name, table, key in places if key not in table)
            raise UnsupportedEncoder(f"{missing} is computed, not stored") from None
        kinds = set(map(type, tensors.values()))
        if kinds != {nn.Parameter}:
            other = next(kind for kind in kinds if kind is not nn.Parameter)
            raise UnsupportedEncoder(f"a weight is a {other.__name__}, not a plain nn.Parameter")
        return tensors

    def hindrance(self) -> str | None:
        """Why the inner modules must run themselves now: hooks, dropout, a replaced forward."""
        if any(self.hooks):
            for index, table in enumerate(self.hooks):
                if not all(map(_does_nothing, table.values())):
                    return f"a forward hook is registered on {self.names[index // 2]}"
        if any(map(_is_training, self.attributes)):
            for name, module in zip(self.names, self.modules, strict=True):
                if module.training and type(module) not in _SAME_IN_TRAINING:
                    return f"{name} is in training mode"
        replaced = list(map(contains, self.attributes, repeat("forward")))
        if True in replaced:
            return f"the forward of {self.names[replaced.index(True)]} was replaced"
        return None


def _does_nothing(hook: Any) -> bool:
    """Whether a hook is one of transformers' own that mean nothing to a call we can answer.

    Its recorders stay behind after the first request for hidden states and do nothing in a call
    that asks for none. What gradient checkpointing hangs on the embeddings marks their output as
    wanting gradients.
    """
    source = getattr(hook, "__module__", "")
    if source == "transformers.modeling_utils":
        return not torch.is_grad_enabled()
    return source == "transformers.utils.output_capturing"


def read_layout(encoder: nn.Module) -> Layout:
    """Find every weight of `encoder` and make sure that we compute what it does.

    Args:
        encoder: an instance of one of the FAMILIES.

    Raises:
        UnsupportedEncoder: naming the part that is not supported.
    """
    family = family_of(encoder)
    if family is None:
        raise UnsupportedEncoder(f"a {type(encoder).__name__} is none of {SUPPORTED}")
    _check_encoder(encoder, family)
    inner = dict(_inner_modules(encoder))
    for name, module in inner.items():
        _check_module(name, module, family)
    owners = {name: _submodule(encoder, path) for name, path in _paths(encoder, family)}
    for name, owner in owners.items():
        _check_owner(name, owner)
    config = _config(encoder, family, owners)
    sources = [(f"{n}.{key}", o._parameters, key) for n, o in owners.items() for key in _keys(o)]
    _check_shapes(sources, config)
    weights, tables, keys = map(list, zip(*sources, strict=True))
    children = [m._modules for m in (encoder, *inner.values()) if m._modules]
    return Layout(
        config=config,
        weights=weights,
        tables=tables,
        keys=keys,
        table_rows=tuple((owners[n]._parameters, _rows(owners[n])) for n in family.tables),
        children=children,
        kept=list(map(list, map(dict.values, children))),
        names=list(inner),
        modules=list(inner.values()),
        types=[type(module) for module in inner.values()],
        attributes=[module.__dict__ for module in inner.values()],
        hooks=[table for m in inner.values() for table in (m._forward_hooks, m._forward_pre_hooks)],
    )


def is_decoder(encoder: Any) -> bool:
    """Whether `encoder` is the decoder side of something: causal, or with cross-attention."""
    if getattr(encoder.config, "is_decoder", False):
        return True
    return any(name.endswith(".crossattention") for name, _ in encoder.named_modules())


def check_weights(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that we cannot hold to the original's precision, or cannot reach.

    Raises:
        UnsupportedEncoder: several dtypes or devices, float64 and the like, tensors without data.
    """
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1:
        raise UnsupportedEncoder(f"its weights have several dtypes: {_listed(dtypes)}")
    if not dtypes <= set(_WEIGHT_DTYPES):
        raise UnsupportedEncoder(
            f"its weights are {_listed(dtypes)}; supported: {_listed(set(_WEIGHT_DTYPES))}"
        )
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) > 1:
        raise UnsupportedEncoder(f"its weights are on several devices: {_listed(devices)}")
    if next(iter(devices)).type == "meta":
        raise UnsupportedEncoder("its weights are on the meta device and have no values yet")


def _listed(values: set[Any]) -> str:
    return ", ".join(sorted(map(str, values)))


def _inner_modules(encoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module whose work we take over: all but the encoder itself and its pooler."""
    for name, module in encoder.named_modules():
        if name and name.partition(".")[0] != "pooler":
            yield name, module


def _check_encoder(encoder: Any, family: Family) -> None:
    kind = type(encoder)
    if kind.forward is not getattr(family.encoder_class, "forward", None):
        raise UnsupportedEncoder(f"{kind.__name__} overrides the forward of {family.class_name}")
    positions = getattr(encoder, "position_embedding_type", "absolute")
    if positions != "absolute":
        raise UnsupportedEncoder(f"position_embedding_type {positions!r}; supported: 'absolute'")
    if is_decoder(encoder):
        raise UnsupportedEncoder(f"this {kind.__name__} is a decoder; supported: encoders")


def _check_module(name: str, module: nn.Module, family: Family) -> None:
    """Refuse code we have not read: quantised, adapted, parametrised or patched modules."""
    kind = type(module)
    if kind in _PLAIN_MODULES or kind.__module__ in _ACTIVATION_SOURCES:
        return
    if kind.__module__ != family.modeling:
        raise UnsupportedEncoder(f"{name} is a {kind.__module__}.{kind.__qualname__}")
    if not kind.forward.__module__.startswith("transformers."):
        raise UnsupportedEncoder(
            f"the forward of {kind.__name__} was replaced by {kind.forward.__module__}"
        )


def _submodule(encoder: nn.Module, path: str) -> nn.Module:
    try:
        return encoder.get_submodule(path)
    except AttributeError:
        raise UnsupportedEncoder(f"it has no module {path}") from None


def _layers(encoder: nn.Module, family: Family) -> list[nn.Module]:
    """The layers in order; the same module may be several of them."""
    layers = _submodule(encoder, family.layers)._modules.values()
    return [layer for layer in layers if layer is not None]


def _paths(encoder: nn.Module, family: Family) -> Iterator[tuple[str, str]]:
    """Canonical names of the modules that hold weights, and their paths in `encoder`."""
    for name in (*family.tables, "embeddings.LayerNorm"):
        yield name, name
    for index, _ in enumerate(_layers(encoder, family)):
        for name, path in family.layer_paths.items():
            yield f"transformer.layer.{index}.{name}", f"{family.layers}.{index}.{path}"


def _keys(owner: nn.Module) -> list[str]:
    return [key for key, parameter in owner._parameters.items() if parameter is not None]


def _rows(table: Any) -> int:
    return int(table.weight.shape[0])


def _check_owner(name: str, owner: nn.Module) -> None:
    """`owner` must be exactly the plain torch module that we take it for."""
    wanted: type[nn.Module] = nn.Linear
    if name.lower().endswith(("layer_norm", "layernorm")):
        wanted = nn.LayerNorm
    elif name.endswith("_embeddings"):
        wanted = nn.Embedding
    if type(owner) is not wanted:
        raise UnsupportedEncoder(f"{name} is a {type(owner).__name__}, not an {wanted.__name__}")
    expected = ["weight"] if wanted is nn.Embedding else ["weight", "bias"]
    if _keys(owner) != expected:
        raise UnsupportedEncoder(f"{name} holds {_keys(owner)}, not {expected}")
    if getattr(owner, "max_norm", None) is not None:
        raise UnsupportedEncoder(f"{name} renormalises its rows as they are read (max_norm)")


def _config(encoder: nn.Module, family: Family, owners: Mapping[str, Any]) -> EncoderConfig:
    """The configuration that the live modules amount to."""
    layers = _layers(encoder, family)
    if not layers:
        raise UnsupportedEncoder("it has no layers")
    heads = {getattr(_submodule(layer, family.attention), family.heads) for layer in layers}
    norms = {owner.eps for owner in owners.values() if isinstance(owner, nn.LayerNorm)}
    try:
        return EncoderConfig(
            model_type=family.model_type,
            vocab_size=_rows(owners[_WORDS]),
            hidden_size=owners[_WORDS].weight.shape[1],
            num_layers=len(layers),
            num_heads=_shared("number of heads", heads),
            intermediate_size=_rows(owners["transformer.layer.0.ffn.lin1"]),
            max_positions=_rows(owners[_POSITIONS]),
            num_segments=_rows(owners[_SEGMENTS]) if _SEGMENTS in owners else 0,
            activation=_shared("activation", {_activation(layer, family) for layer in layers}),
            layer_norm_eps=_shared("LayerNorm epsilon", norms),
            pad_token_id=owners[_WORDS].padding_idx,
        )
    except ValueError as error:
        raise UnsupportedEncoder(str(error)) from None


def _shared(what: str, values: set[Any]) -> Any:
    if len(values) != 1:
        raise UnsupportedEncoder(f"its layers differ in {what}: {_listed(values)}")
    return next(iter(values))


def _activation(layer: nn.Module, family: Family) -> str:
    parent, _, attribute = family.activation.rpartition(".")
    function = getattr(_submodule(layer, parent), attribute)
    kind = type(function)
    known = kind.__module__ in _ACTIVATION_SOURCES
    name = _ACTIVATIONS.get(kind.__name__) if known else None
    if name is None:
        described = kind.__name__ if isinstance(function, nn.Module) else repr(function)
        raise UnsupportedEncoder(
            f"activation {described}; supported: gelu (exact and its tanh forms), relu, silu"
        )
    return name


def _check_shapes(sources: list[tuple[str, dict[str, Any], str]], config: EncoderConfig) -> None:
    """Every tensor must have the size the rest implies (pruned heads, for one, change some)."""
    expected = parameter_shapes(config)
    for name, table, key in sources:
        shape = tuple(table[key].shape)
        if shape != expected[name]:
            raise UnsupportedEncoder(f"{name} is {list(shape)}, not {list(expected[name])}")
