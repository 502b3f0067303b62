"""Callables for Ray Data's `map_batches`: they add vectors, or answers, to a column of texts.

    ray.data.read_parquet("reviews/").map_batches(
        BatchEncoder,
        fn_constructor_kwargs={"model": "my-distilbert"},
        batch_format="pyarrow",
        batch_size=4096,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=2),
    ).write_parquet("vectors/")

An object of these classes holds the options and nothing else: it is made at once, and pickles to
some hundred bytes. The model is loaded in the process that gets the first batch, once there.
In a Ray worker the object uses what Ray has assigned to it: as many threads as CPUs, and its GPUs.
docs/scale-out.md has the recipes, what a failure costs, and how large a cluster has to be.
"""

from __future__ import annotations

import functools
import json
import pickle
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

try:
    import pyarrow as pa
    import ray
    import ray.data
except ImportError as error:
    raise ImportError(
        f"fastdistil.integrations.ray needs Ray Data ({error}): pip install 'fastdistil[ray]'"
    ) from error

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BatchEncoder", "BatchPipeline"]

Batch = TypeVar("Batch", dict[str, NDArray[Any]], pa.Table)
Columns = Mapping[str, NDArray[Any] | pa.Array]

# Of a row that is shown in an error; a record can hold a book.
_SHOWN_CHARACTERS = 200


class BatchEncoder:
    """Adds the vectors of a column of texts: `fastdistil.Encoder` for `map_batches`.

    Args:
        model: a checkpoint's folder, which every node has under this path, or a hub id.
        text_column: the column of texts.
        vector_column: the name of the new column.
        threads: CPU threads; by default in a Ray worker as many as it was assigned CPUs (rounded
            down, at least 1), elsewhere what the process uses anyway.
        device: where the model runs; by default on the GPUs assigned by Ray, else on the CPU.
        precision: as for `Encoder`.
        batch_tokens: tokens in a forward; changes speed and memory only. By default as for
            `Encoder.encode`: actors that share a GPU do better with a number.
        encoder_options: `max_length`, `pooling`, `normalize` and what else `Encoder` takes.

    Raises:
        ValueError: pooling "none", which gives no vector of a text.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        text_column: str = "text",
        vector_column: str = "vector",
        threads: int | None = None,
        device: Any = None,
        precision: str = "auto",
        batch_tokens: int | None = None,
        **encoder_options: Any,
    ) -> None:
        if encoder_options.get("pooling") == "none":
            raise ValueError("pooling is 'none'; a vector for each text is wanted: mean, cls, max")
        self._text_column = text_column
        self._vector_column = vector_column
        self._batch_tokens = batch_tokens
        options = {"precision": precision, **encoder_options}
        self._model = _Model(_encoder, str(model), options, _checked_threads(threads), device)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with one column more.

        Args:
            batch: a dict of arrays or a pyarrow Table, which is what `map_batches` gives with
                `batch_format` "numpy" (its default) or "pyarrow".

        Returns:
            the same kind, every other column as it came, vectors of D float32: in a Table a fixed
            size list, in a dict an array [rows, D], of which Ray makes a tensor column.

        Raises:
            KeyError: there is no such column of texts.
            TypeError: another kind of batch, or texts that are not strings, the row named.
            ValueError: the column for the vectors is taken.
        """
        texts = _texts(batch, self._text_column, [self._vector_column])
        vectors = self._model.here().encode(texts, batch_tokens=self._batch_tokens)
        if not isinstance(batch, dict):
            dim = vectors.shape[1]
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
        return _with_columns(batch, {self._vector_column: vectors})


class BatchPipeline:
    """Adds the answers of `fastdistil.pipeline` for a column of texts.

    Args:
        task: the task's name, such as "text-classification".
        model, threads, device: as for `BatchEncoder`.
        text_column: the column of texts; for a task of several, the column of each, such as
            {"question": "title", "context": "body"}.
        result_column: the name of the new column, or the first part of several: where a text's
            answer is a dict of strings and numbers, each has a column of its own, such as
            `result_label` and `result_score`. Any other answer (lists of entities, all labels'
            scores) is JSON text in the one column, because the types of nested columns would differ
            from block to block, an empty list having none.
        pipeline_options: what else the task's pipeline takes.
    """

    def __init__(
        self,
        task: str,
        model: str | Path,
        *,
        text_column: str | Mapping[str, str] = "text",
        result_column: str = "result",
        threads: int | None = None,
        device: Any = None,
        **pipeline_options: Any,
    ) -> None:
        self._text_column = text_column
        self._result_column = result_column
        load = functools.partial(_pipeline, task)
        self._model = _Model(load, str(model), pipeline_options, _checked_threads(threads), device)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with the answers; kinds of batches and errors as for `BatchEncoder`."""
        inputs: Sequence[Any]
        if isinstance(self._text_column, str):
            inputs = _texts(batch, self._text_column, [])
        else:
            columns = [_texts(batch, column, []) for column in self._text_column.values()]
            rows = zip(*columns, strict=True)
            inputs = [dict(zip(self._text_column, row, strict=True)) for row in rows]
        # A stream, since some tasks answer a list of one like the one in it.
        answers = list(self._model.here()(iter(inputs))) if inputs else []
        added = _answer_columns(answers, self._result_column)
        _check_free(batch, added)
        if isinstance(batch, dict):
            arrays = {name: c.to_numpy(zero_copy_only=False) for name, c in added.items()}
            return _with_columns(batch, arrays)
        return _with_columns(batch, added)


@dataclass(frozen=True)
class _Model:
    """What is to be loaded, where this object gets to.

    Attributes:
        load: from a checkpoint, a device and options to what is called.
        path_or_id: the checkpoint.
        options: for `load`.
        threads, device: those asked for; None for those that Ray assigns.
    """

    load: Callable[..., Any]
    path_or_id: str
    options: Mapping[str, Any]
    threads: int | None
    device: Any

    def here(self) -> Any:
        """The model, loaded by the first call in this process."""
        threads, device = self.threads, self.device
        assigned = _assigned()
        if assigned is not None:
            threads = assigned[0] if threads is None else threads
            device = assigned[1] if device is None else device
        if threads is not None:
            from fastdistil.backends.threads import use_threads

            use_threads(threads)
        with _LOADING:
            return _loaded(pickle.dumps((self.load, self.path_or_id, device, self.options)))


_LOADING = threading.Lock()


# By value, since Ray unpickles an object that is no class anew for every task. Two: a job may have
# two models in turn in one process, and more would fill the memory.
@functools.lru_cache(maxsize=2)
def _loaded(pickled: bytes) -> Any:
    load, path_or_id, device, options = pickle.loads(pickled)
    return load(path_or_id, device=device, **options)


def _encoder(path_or_id: str, **options: Any) -> Any:
    from fastdistil import Encoder

    return Encoder(path_or_id, **options)


def _pipeline(task: str, path_or_id: str, **options: Any) -> Any:
    from fastdistil import pipeline

    return pipeline(task, path_or_id, **options)


def _assigned() -> tuple[int, str | list[str] | None] | None:
    """The threads and the GPUs that are ours in a task or an actor of Ray; None elsewhere."""
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.get_task_id() is None:  # the process that started the job
        return None
    threads = max(1, int(context.get_assigned_resources().get("CPU", 0)))
    # Ray lets a process see its own GPUs only, so they count from 0.
    gpus = [f"cuda:{i}" for i, _ in enumerate(context.get_accelerator_ids().get("GPU", ()))]
    return threads, gpus if len(gpus) > 1 else next(iter(gpus), None)


def _checked_threads(threads: int | None) -> int | None:
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1")
    return threads


def _names(batch: Any) -> list[str]:
    return list(batch) if isinstance(batch, dict) else batch.column_names


def _texts(batch: Any, column: str, new: Sequence[str]) -> list[str]:
    """The texts of a batch, checked, and that there is room for the new columns."""
    if not isinstance(batch, dict | pa.Table):
        raise TypeError(
            f"the batch is {type(batch).__module__}.{type(batch).__name__}; give map_batches "
            "batch_format='pyarrow' or 'numpy'"
        )
    if column not in _names(batch):
        raise KeyError(f"text_column is {column!r}; the batch has {', '.join(_names(batch))}")
    _check_free(batch, new)
    values = batch[column]
    texts = values.to_pylist() if isinstance(batch, pa.Table) else np.asarray(values).tolist()
    if not {*map(type, texts)} <= {str}:
        row = next(i for i, text in enumerate(texts) if not isinstance(text, str))
        found = "None" if texts[row] is None else type(texts[row]).__name__
        raise TypeError(
            f"text_column {column!r} is {found} in row {row} of a batch"
            f"{_others(batch, column, row)}; a string is wanted: leave such rows out (filter) or "
            "fill them in before map_batches"
        )
    return texts


def _others(batch: Any, column: str, row: int) -> str:
    """What else is known of a row, to find it by."""
    others = {name: batch[name][row] for name in _names(batch) if name != column}
    if not others:
        return ""
    shown = ", ".join(f"{name}={value}" for name, value in others.items())
    return f" ({shown[:_SHOWN_CHARACTERS]})"


def _check_free(batch: Any, new: Iterable[str]) -> None:
    for name in new:
        if name in _names(batch):
            raise ValueError(
                f"the batch has a column {name!r} already; give another vector_column or "
                "result_column, or drop that column"
            )


def _with_columns(batch: Batch, columns: Columns) -> Batch:
    if isinstance(batch, dict):
        return {**batch, **columns}
    for name, column in columns.items():
        batch = batch.append_column(name, column)
    return batch


def _answer_columns(answers: Sequence[Any], name: str) -> dict[str, pa.Array]:
    """A column for each key of dicts of scalars; one of scalars; else one of JSON texts."""
    if not answers:
        return {}
    if all(isinstance(a, dict) and all(map(_is_scalar, a.values())) for a in answers):
        keys = dict.fromkeys(key for answer in answers for key in answer)
        return {f"{name}_{key}": pa.array([a.get(key) for a in answers]) for key in keys}
    if all(map(_is_scalar, answers)):
        return {name: pa.array(answers)}
    return {name: pa.array([json.dumps(a, default=_plain) for a in answers], pa.string())}


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float | np.number)


def _plain(value: Any) -> Any:
    """For json: numpy's and torch's numbers and arrays as Python's."""
    return value.tolist()
