"""Task heads: the few small layers between hidden states and a task's numbers.

A head is a function of one row: it never sees padding, and is given only the rows that its task
reads. Names and formulas are those of transformers' DistilBertFor... and BertFor... classes; heads
compute in float32 on the hidden states' device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.reference import ACTIVATIONS
from ..checkpoint import Checkpoint
from ..config import DISTILBERT_LAYER_NORM_EPS, EncoderConfig

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {**ACTIVATIONS, "tanh": torch.tanh}


@dataclass(frozen=True, eq=False)
class Dense:
    """activation(x W^T + b): weight [outputs, inputs], bias [outputs] or None."""

    weight: Tensor
    bias: Tensor | None
    activation: str | None = None

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        found = {"weight": self.weight}
        return found if self.bias is None else found | {"bias": self.bias}

    def __call__(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        return out if self.activation is None else _ACTIVATIONS[self.activation](out)

    def to(self, device: torch.device) -> Dense:
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm: weight and bias [width]."""

    weight: Tensor
    bias: Tensor
    eps: float

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return {"weight": self.weight, "bias": self.bias}

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def to(self, device: torch.device) -> Norm:
        return replace(self, weight=self.weight.to(device), bias=self.bias.to(device))


@dataclass(frozen=True, eq=False)
class Head:
    """Layers one after the other, on hidden states [R, D] in float32.

    Attributes:
        layers: the last is a Dense.
    """

    layers: tuple[Dense | Norm, ...]

    def __call__(self, hidden: Tensor) -> Tensor:
        """[R, outputs], float32."""
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden

    @property
    def outputs(self) -> int:
        """Numbers for each row."""
        return self.layers[-1].weight.shape[0]

    def to(self, device: torch.device) -> Head:
        """The same head with its tensors there."""
        return Head(tuple(layer.to(device) for layer in self.layers))


def sequence_classification_head(checkpoint: Checkpoint) -> Head:
    """Of DistilBertForSequenceClassification (pre_classifier, ReLU, classifier) or
    BertForSequenceClassification (pooler, tanh, classifier): reads a sequence's first token.

    Raises:
        ValueError: the checkpoint has no such head, or one whose shapes disagree.
    """
    source = _Tensors(checkpoint, "a sequence classification head")
    source.refuse("ForTokenClassification", "token-classification")
    source.refuse("ForMultipleChoice", "multiple choice")
    width = checkpoint.config.hidden_size
    if checkpoint.config.model_type == "distilbert":
        first = source.dense("pre_classifier", (width, width), "relu")
    else:
        first = source.dense("pooler.dense", (width, width), "tanh")
    return Head((first, source.dense("classifier", (None, width))))


def token_classification_head(checkpoint: Checkpoint) -> Head:
    """Of DistilBertForTokenClassification and BertForTokenClassification: one linear layer.

    Raises:
        ValueError: as for `sequence_classification_head`.
    """
    source = _Tensors(checkpoint, "a token classification head")
    source.refuse("ForSequenceClassification", "text-classification")
    source.refuse("ForMultipleChoice", "multiple choice")
    return Head((source.dense("classifier", (None, checkpoint.config.hidden_size)),))


def question_answering_head(checkpoint: Checkpoint) -> Head:
    """Of DistilBertForQuestionAnswering and BertForQuestionAnswering: the logits of being an
    answer's first and last token.

    Raises:
        ValueError: as for `sequence_classification_head`.
    """
    source = _Tensors(checkpoint, "a question answering head")
    return Head((source.dense("qa_outputs", (2, checkpoint.config.hidden_size)),))


def masked_lm_head(checkpoint: Checkpoint) -> Head:
    """Of DistilBertForMaskedLM and BertForMaskedLM: the logits of every token of the vocabulary.

    The last matrix is the word embeddings where the file leaves it out, as tied weights are.

    Raises:
        ValueError: as for `sequence_classification_head`.
    """
    config = checkpoint.config
    source = _Tensors(checkpoint, "a masked language model head")
    width, vocabulary = config.hidden_size, config.vocab_size
    square = (width, width)
    if config.model_type == "distilbert":
        transform, norm, projection = "vocab_transform", "vocab_layer_norm", "vocab_projector"
        bias, eps = f"{projection}.bias", DISTILBERT_LAYER_NORM_EPS
    else:
        transform = "cls.predictions.transform.dense"
        norm = "cls.predictions.transform.LayerNorm"
        projection, eps = "cls.predictions.decoder", config.layer_norm_eps
        bias = "cls.predictions.bias"
    return Head(
        (
            source.dense(transform, square, config.activation),
            Norm(
                source.take(f"{norm}.weight", (width,)),
                source.take(f"{norm}.bias", (width,)),
                eps,
            ),
            Dense(
                source.tied(f"{projection}.weight", (vocabulary, width)),
                # Untied, BERT's class adds the layer's own; tied, a file may have either name.
                source.either((f"{projection}.bias", bias), (vocabulary,)),
            ),
        )
    )


class _Tensors:
    """The head's tensors of a checkpoint, checked as they are taken."""

    def __init__(self, checkpoint: Checkpoint, wanted: str) -> None:
        self._folder = checkpoint.folder
        self._tensors: Mapping[str, Tensor] = checkpoint.head
        self._words = checkpoint.state_dict["embeddings.word_embeddings.weight"]
        self._config: EncoderConfig = checkpoint.config
        self._wanted = wanted
        self._architectures = checkpoint.hf_config.get("architectures")

    def take(self, name: str, shape: Sequence[int | None]) -> Tensor:
        """A tensor in float32; None in `shape` is any number."""
        if name not in self._tensors:
            raise ValueError(
                f"{self._folder}: no {name}, so the checkpoint lacks {self._wanted}; its "
                f"architectures are {self._architectures!r}, and beside the encoder it has "
                f"{_some(self._tensors)}"
            )
        tensor = self._tensors[name]
        fits = tensor.dim() == len(shape) and all(
            want is None or want == got for want, got in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(
                f"{self._folder}: {name} has shape {list(tensor.shape)}; [{wanted}] is wanted of "
                f"{self._wanted} for this encoder"
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"{self._folder}: {name} holds {tensor.dtype}; a floating dtype is wanted"
            )
        return tensor.float()

    def dense(
        self, name: str, shape: tuple[int | None, int], activation: str | None = None
    ) -> Dense:
        """A linear layer, weight and bias."""
        weight = self.take(f"{name}.weight", shape)
        return Dense(weight, self.take(f"{name}.bias", weight.shape[:1]), activation)

    def tied(self, name: str, shape: tuple[int, int]) -> Tensor:
        """A matrix that is the word embeddings' where the file does not have it."""
        if name in self._tensors:
            return self.take(name, shape)
        return self._words.float()

    def either(self, names: Sequence[str], shape: tuple[int]) -> Tensor:
        """A tensor that goes by one of several names: the first that is there; usually the last."""
        found = [name for name in names if name in self._tensors]
        return self.take(found[0] if found else names[-1], shape)

    def refuse(self, ending: str, task: str) -> None:
        """Raise for a checkpoint of the class that ends so: its tensors have the same names."""
        for name in self._architectures or ():
            if str(name).endswith(ending):
                raise ValueError(f"{self._folder}: {name} lacks {self._wanted}; it is for {task}")


def _some(names: Mapping[str, Tensor]) -> str:
    shown = ", ".join(sorted(names)[:6])
    if not shown:
        return "nothing"
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
