"""A student: a DistilBERT with some of its teacher's layers, and the head that its task needs.

As DistilBERT was made of BERT (Sanh et al., arXiv 1910.01108, section 2): the width stays, the
depth is halved by taking one layer out of two, the pooler and the segment embeddings are dropped.
Texts are single segments, so segment 0 was added to every token: it goes into the positions, and
the embeddings compute what the teacher's did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backends.reference import ACTIVATIONS
from ..checkpoint import Checkpoint
from ..config import DISTILBERT_LAYER_NORM_EPS, EncoderConfig
from ..model import DistilBertModel

_LAYER = "transformer.layer."
_SEGMENTS = "embeddings.token_type_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
_WORDS = "embeddings.word_embeddings.weight"
# Of layers that nothing is copied into, as BERT starts them.
_STANDARD_DEVIATION = 0.02


class MaskedLMHead(nn.Module):
    """DistilBertForMaskedLM's: [R, D] to logits [R, vocabulary]; the last matrix may be the words'.

    Args:
        untied: whether that matrix is the head's own.
    """

    def __init__(self, config: EncoderConfig, untied: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self._activation = ACTIVATIONS[config.activation]
        self.vocab_transform = nn.Linear(width, width)
        self.vocab_layer_norm = nn.LayerNorm(width, DISTILBERT_LAYER_NORM_EPS)
        self.vocab_projector = _Projector(config, untied)

    @property
    def untied(self) -> bool:
        """Whether the last matrix is the head's own."""
        return self.vocab_projector.weight is not None

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Logits; `words` are the word embeddings [vocabulary, D]."""
        hidden = self.vocab_layer_norm(self._activation(self.vocab_transform(hidden)))
        own = self.vocab_projector.weight
        return F.linear(hidden, words if own is None else own, self.vocab_projector.bias)


class _Projector(nn.Module):
    """A linear layer whose matrix may be another's."""

    def __init__(self, config: EncoderConfig, untied: bool) -> None:
        super().__init__()
        shape = (config.vocab_size, config.hidden_size)
        self.weight = nn.Parameter(torch.empty(shape)) if untied else None
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))


class ClassificationHead(nn.Module):
    """DistilBertForSequenceClassification's: first tokens [B, D] to logits [B, labels]."""

    def __init__(self, config: EncoderConfig, labels: int) -> None:
        super().__init__()
        self.pre_classifier = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, labels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(F.relu(self.pre_classifier(hidden)))


class Student(nn.Module):
    """What is trained.

    Attributes:
        encoder: in training mode, so that it computes in plain PyTorch on its live parameters.
        head: for the task; None where hidden states are all that is wanted.
    """

    def __init__(
        self, encoder: DistilBertModel, head: MaskedLMHead | ClassificationHead | None
    ) -> None:
        super().__init__()
        self.encoder = encoder.train().requires_grad_()
        self.head = head

    @property
    def words(self) -> Tensor:
        """The word embeddings [vocabulary, D]."""
        return self.encoder.embeddings.word_embeddings.weight

    def tensors(self) -> dict[str, Tensor]:
        """All weights under the names that transformers gives them in a checkpoint's file."""
        prefix = "" if self.head is None else "distilbert."
        found = {prefix + name: t for name, t in self.encoder.state_dict().items()}
        return found if self.head is None else found | self.head.state_dict()


def chosen_layers(asked: int | tuple[int, ...] | None, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layers that a student begins with, counted from 0.

    Of a number of layers they are spaced evenly and the last is one of them: hidden states and
    heads hang on it. (Of 12, six are 1, 3, 5, 7, 9 and 11.)

    Args:
        asked: how many, or which; None: half of them, rounded up.

    Raises:
        ValueError: layers that the teacher has not.
    """
    if asked is None:
        asked = (teacher_layers + 1) // 2
    if isinstance(asked, int):
        if not 1 <= asked <= teacher_layers:
            raise ValueError(f"layers: got {asked}; the teacher has {teacher_layers}")
        return tuple((place + 1) * teacher_layers // asked - 1 for place in range(asked))
    beyond = [layer for layer in asked if layer >= teacher_layers]
    if beyond:
        raise ValueError(f"layers: got {beyond[0]}; the teacher's are 0 to {teacher_layers - 1}")
    return asked


def student_config(teacher: EncoderConfig, layers: tuple[int, ...]) -> EncoderConfig:
    """A DistilBERT as wide as its teacher, of some of its layers."""
    return replace(
        teacher,
        model_type="distilbert",
        num_layers=len(layers),
        num_segments=0,
        layer_norm_eps=DISTILBERT_LAYER_NORM_EPS,
    )


def first_weights(teacher: Checkpoint, layers: tuple[int, ...]) -> dict[str, Tensor]:
    """The encoder's weights to begin with, float32 copies under canonical names."""
    source = {name: tensor.float() for name, tensor in teacher.state_dict.items()}
    found = {name: t.clone() for name, t in source.items() if not name.startswith(_LAYER)}
    segments = found.pop(_SEGMENTS, None)
    if segments is not None:
        found[_POSITIONS] += segments[0]
    for place, layer in enumerate(layers):
        beginning = f"{_LAYER}{layer}."
        for name, tensor in source.items():
            if name.startswith(beginning):
                found[f"{_LAYER}{place}.{name.removeprefix(beginning)}"] = tensor.clone()
    return found


def new_encoder(config: EncoderConfig, weights: Mapping[str, Tensor]) -> DistilBertModel:
    """An encoder of its own weights, float32 on the CPU."""
    encoder = DistilBertModel(config, "meta", backend="reference")
    encoder.load_state_dict(dict(weights), assign=True)
    return encoder


def masked_lm_head(config: EncoderConfig, teacher: Checkpoint) -> MaskedLMHead:
    """A copy of the teacher's head.

    Raises:
        ValueError: it has none.
    """
    from ..tasks.heads import masked_lm_head as teacher_head

    dense, norm, projection = teacher_head(teacher).layers
    tensors = {
        **{f"vocab_transform.{name}": t for name, t in dense.tensors().items()},
        **{f"vocab_layer_norm.{name}": t for name, t in norm.tensors().items()},
        **{f"vocab_projector.{name}": t for name, t in projection.tensors().items()},
    }
    untied = not torch.equal(tensors["vocab_projector.weight"], teacher.state_dict[_WORDS].float())
    if not untied:
        del tensors["vocab_projector.weight"]
    head = MaskedLMHead(config, untied)
    head.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()})
    return head


def classification_head(
    config: EncoderConfig, source: Checkpoint | None, labels: int, seed: int
) -> ClassificationHead:
    """A DistilBERT's own head, copied; a new one for what has none that fits.

    Args:
        source: whose head is copied if it is a DistilBERT's with as many labels. A BERT's reads
            what its pooler makes of the first token, and that is dropped.
    """
    head = ClassificationHead(config, labels)
    found = {} if source is None else source.head
    shapes = {name: tensor.shape for name, tensor in head.state_dict().items()}
    if shapes == {name: found[name].shape for name in shapes if name in found}:
        head.load_state_dict({name: found[name].float().clone() for name in shapes})
        return head
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (head.pre_classifier, head.classifier):
            layer.weight.normal_(0, _STANDARD_DEVIATION, generator=draws)
            layer.bias.zero_()
    return head
