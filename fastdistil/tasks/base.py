"""What all task pipelines share: options, streams of inputs, and the way through the model.

    inputs -> chunks -> prepared (tokens, and what is to be kept) -> batches -> rows -> results
              `--- a thread running ahead ---'                       `-- the caller's thread --'

A task says how a chunk of inputs becomes sequences, and what becomes of the head's rows of that
chunk; batches are cut across chunks, by tokens alone, and results come in the order of the inputs.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic

import numpy as np
from numpy.typing import NDArray

from ..batch_stream import Vectors
from ..checkpoint import Checkpoint
from ..encoder import CHUNKS_AHEAD, SMALL_INPUT
from ..overlap import overlapped
from ..progress import Progress
from ..tokenization import TokenizedTexts
from .heads import Head
from .labels import Labels, read_labels
from .model import Finish, TaskModel
from .options import WITHOUT_EFFECT, OptionsT, chosen_options
from .tokens import Piece, TaskTokenizer

if TYPE_CHECKING:
    from .task_file import TaskSummary

# Inputs prepared at a time; see `fastdistil.encoder`.
CHUNK_INPUTS = 512
_CHUNK_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Prepared:
    """A chunk of inputs as sequences.

    Attributes:
        tokens: all their sequences; `reads` says which rows the task wants.
        inputs: how many inputs they are of.
        state: whatever the task needs to make results of the rows.
    """

    tokens: TokenizedTexts
    inputs: int
    state: Any = None

    @property
    def rows(self) -> int:
        """Rows that are read."""
        return _reads(self.tokens)

    def rows_of_sequences(self) -> NDArray[np.int64]:
        """Rows that are read of each sequence."""
        ends = np.concatenate([[0], np.cumsum(self.tokens.lengths)])
        if self.tokens.reads is None:
            return np.diff(ends)
        return np.diff(np.concatenate([[0], np.cumsum(self.tokens.reads)])[ends])

    def split(self, rows: Vectors) -> list[Vectors]:
        """The rows of each sequence."""
        return np.split(rows, np.cumsum(self.rows_of_sequences())[:-1])


class TaskPipeline(ABC, Generic[OptionsT]):
    """A task from text to answer. Made by `fastdistil.pipeline`; safe to use from several threads.

    Attributes:
        task: its name.
        model: the TaskModel.
        tokenizer: the TaskTokenizer.
    """

    task: ClassVar[str]
    options_type: type[OptionsT]
    """A frozen dataclass: a field for each of the task's options, checked when it is made."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        defaults: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        *,
        tokenizer_folder: Path | None = None,
        **engine: Any,
    ) -> None:
        self.model = TaskModel(checkpoint, self.build_head(checkpoint), **engine)
        config = checkpoint.config
        self.tokenizer = TaskTokenizer(
            tokenizer_folder or checkpoint.folder,
            config.max_positions,
            config.num_segments > 1,
            max_length,
        )
        if self.tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"{self.tokenizer.folder}: the tokenizer knows {self.tokenizer.vocab_size} tokens, "
                f"but the model only {config.vocab_size}: they do not belong together"
            )
        self._defaults = {k: v for k, v in (defaults or {}).items() if k not in WITHOUT_EFFECT}

    def build_head(self, checkpoint: Checkpoint) -> Head | None:
        """The task's head of a checkpoint; None for a task that wants hidden states.

        Raises:
            ValueError: the checkpoint has no such head, or not a sound one.
        """
        return None

    def __call__(self, inputs: Any, *, show_progress: bool | None = None, **options: Any) -> Any:
        """Results of one input, of a list of them, or of a stream.

        Args:
            inputs: one input, a list, or another iterable, such as a generator, of any length.
            show_progress: a bar on a terminal, plain lines otherwise, on stderr; None is False.
            options: the task's, in place of those given to `pipeline`. `batch_size` and
                `num_workers` are taken, for transformers' sake, and have no effect.

        Returns:
            one result; a list of them; or, for a stream, a generator of them.

        Raises:
            TypeError: an unknown option, or an input of another type.
            ValueError: an option or an input that makes no sense; the message names it.
        """
        chosen = self.options(options)
        if self.is_one_input(inputs):
            return next(self._results([inputs], chosen, False))
        if isinstance(inputs, list | tuple):
            return list(self._results(inputs, chosen, show_progress))
        try:
            stream = iter(inputs)
        except TypeError:
            raise TypeError(
                f"inputs is {type(inputs).__name__}; {self.wanted_input}, a list of them or "
                "another iterable is wanted"
            ) from None
        return self._results(stream, chosen, show_progress)

    # What a task defines.

    wanted_input: ClassVar[str] = "a string"
    """An input, for messages."""

    def is_one_input(self, inputs: Any) -> bool:
        """Whether that is one input and not a collection of them."""
        return isinstance(inputs, str)

    def characters(self, one: Any) -> int:
        """About how long an input is."""
        return len(one)

    @abstractmethod
    def check_input(self, one: Any, name: str) -> Any:
        """The input as the task takes it; `name` is what to call it in a TypeError."""

    @abstractmethod
    def prepare(self, inputs: Sequence[Any], options: OptionsT) -> Prepared:
        """Sequences of some inputs. Called in another thread."""

    @abstractmethod
    def results(self, prepared: Prepared, rows: Vectors, options: OptionsT) -> list[Any]:
        """One result for each input of a chunk, from its rows [R, outputs]."""

    def finish(self, options: OptionsT) -> Finish | None:
        """What is done with the head's output before it leaves the device."""
        return None

    def run_file(self, source: str | Path, output: str | Path, **options: Any) -> TaskSummary:
        """Results of a file of texts, in a file: see `fastdistil.tasks.task_file.run_file`."""
        from .task_file import run_file

        return run_file(self, source, output, **options)

    def fingerprint(self) -> str:
        """A hash of all that decides a result, save for a call's options and the arithmetic."""
        engine = self.model.encoder.explain()
        defaults = json.dumps(self._defaults, sort_keys=True, default=str)
        digest = hashlib.sha256(f"{self.task} {engine['precision']} {defaults}".encode())
        digest.update(self.tokenizer.fingerprint().encode())
        digest.update(self.model.fingerprint().encode())
        return digest.hexdigest()

    # The way through.

    def options(self, given: Mapping[str, Any]) -> OptionsT:
        """A call's options: those given, else those of the pipeline, else the task's own.

        Raises:
            TypeError: an option that the task does not have.
            ValueError: from the task, a value that makes no sense.
        """
        return chosen_options(self.options_type, self.task, self._defaults, given)

    def packed(self, pieces: Sequence[Piece], inputs: int, state: Any = None) -> Prepared:
        """A chunk of inputs from their sequences."""
        return Prepared(self.tokenizer.packed(pieces), inputs, state)

    def _results(
        self, inputs: Iterable[Any], options: OptionsT, show_progress: bool | None
    ) -> Generator[Any, None, None]:
        known = len(inputs) if isinstance(inputs, list | tuple) else None
        with Progress(bool(show_progress), known) as progress:
            for some, tokens in self.chunk_results(inputs, options):
                yield from some
                progress.update(len(some), tokens)

    def chunk_results(
        self, inputs: Iterable[Any], options: OptionsT
    ) -> Generator[tuple[list[Any], int], None, None]:
        """Results of a stream of inputs, a chunk of them at a time; how many tokens they had."""
        yield from self.through(self.chunks(inputs), options)

    def through(
        self, chunks: Iterator[list[Any]], options: OptionsT
    ) -> Generator[tuple[list[Any], int], None, None]:
        """The same of chunks of inputs that are checked."""
        # For a few inputs a thread costs more than it hides.
        first = list(next(chunks, ()))
        if not first:
            return
        everything = chain([first], chunks)

        def prepare(chunk: list[Any]) -> Prepared:
            return self.prepare(chunk, options)

        if len(first) < SMALL_INPUT:
            yield from self._computed(map(prepare, everything), options)
            return
        with closing(overlapped(prepare, everything, CHUNKS_AHEAD)) as prepared:
            yield from self._computed(prepared, options)

    def _computed(
        self, chunks: Iterable[Prepared], options: OptionsT
    ) -> Iterator[tuple[list[Any], int]]:
        waiting: deque[Prepared] = deque()

        def tokens() -> Iterator[TokenizedTexts]:
            for prepared in chunks:
                waiting.append(prepared)
                if len(prepared.tokens.lengths):
                    yield prepared.tokens

        there: list[Vectors] = []
        ready = 0
        with closing(self.model.run(tokens(), self.finish(options))) as batches:
            for rows in batches:
                there.append(rows)
                ready += len(rows)
                while waiting and waiting[0].rows <= ready:
                    yield self._finished(waiting.popleft(), there, options)
                    ready = sum(map(len, there))
        while waiting:
            yield self._finished(waiting.popleft(), there, options)

    def _finished(
        self, prepared: Prepared, there: list[Vectors], options: OptionsT
    ) -> tuple[list[Any], int]:
        """A chunk's results from the rows that are there, which are taken off them."""
        rows = np.concatenate(there) if there else np.empty((0, 0), np.float32)
        there[:] = [rows[prepared.rows :]]
        results = self.results(prepared, rows[: prepared.rows], options)
        return results, len(prepared.tokens.ids)

    def chunks(self, inputs: Iterable[Any]) -> Iterator[list[Any]]:
        """Inputs, checked, in lists small enough to prepare in one go."""
        chunk: list[Any] = []
        characters = 0
        for number, one in enumerate(inputs):
            checked = self.check_input(one, f"inputs[{number}]")
            chunk.append(checked)
            characters += self.characters(checked)
            if len(chunk) == CHUNK_INPUTS or characters >= _CHUNK_CHARACTERS:
                yield chunk
                chunk, characters = [], 0
        if chunk:
            yield chunk


class LabellingPipeline(TaskPipeline[OptionsT]):
    """A task whose head has a name for each of its outputs.

    Attributes:
        labels: the names, from config.json.
    """

    def __init__(self, checkpoint: Checkpoint, *args: Any, **kwargs: Any) -> None:
        super().__init__(checkpoint, *args, **kwargs)
        assert self.model.head is not None
        source = str(checkpoint.folder / "config.json")
        self.labels: Labels = read_labels(self.model.config, self.model.head.outputs, source)


def check_text(one: Any, name: str) -> str:
    """A string.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(one, str):
        raise TypeError(f"{name} is {type(one).__name__}; a string is wanted")
    return one


def first_tokens_read(tokens: TokenizedTexts) -> TokenizedTexts:
    """The same sequences, each read at its first token, where classifiers look."""
    reads = np.zeros(len(tokens.ids), np.bool_)
    reads[np.cumsum(tokens.lengths) - tokens.lengths] = True
    return replace(tokens, reads=reads)


def cutting(kwargs: Any, name: str, truncation: bool) -> tuple[bool, int | None]:
    """(truncation, max_length) as transformers' keyword arguments for a tokenizer say it.

    Args:
        kwargs: them, or None.
        name: what to call them in messages.
        truncation: what holds where they do not say.

    Raises:
        ValueError: arguments for anything else.
    """
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(kwargs, dict) or kwargs.keys() - {"truncation", "max_length", "padding"}:
        raise ValueError(
            f"{name} is {kwargs!r}; a dict with truncation, max_length and padding is wanted"
        )
    return bool(kwargs.get("truncation", truncation)), kwargs.get("max_length")


def refuse_cut(truncated: int, texts: int, truncation: bool, max_length: int) -> None:
    """Raise where texts were cut and the caller does not want that.

    Raises:
        ValueError: that is so.
    """
    if truncated and not truncation:
        raise ValueError(
            f"inputs: {truncated} of {texts} texts have more than {max_length} tokens, which is "
            "all this model takes; truncation=True cuts them"
        )


def _reads(tokens: TokenizedTexts) -> int:
    return len(tokens.ids) if tokens.reads is None else int(np.count_nonzero(tokens.reads))
