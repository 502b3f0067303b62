"""Prepare a model once, and again whenever its weights have changed.

A forward of one short sentence must not be spent on finding out that nothing happened. So whatever
is asked of each of a hundred tensors is asked by `map` of something written in C, without a line of
Python for each.
"""

from __future__ import annotations

import ctypes
import operator
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .backends import EngineOptions, Program, Selection, check_names, select
from .backends.cpu import CpuProgram, instruction_set_cap
from .config import EncoderConfig

# A sample is compared as bits, so an integer of its size does for every dtype.
_BITS = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}

# For `map`.
_get = dict.get
_version_of = operator.attrgetter("_version")
_value_of = operator.attrgetter("value")

# Address, version and size of each tensor.
_Fingerprint = tuple[list[int], list[int], list[int]]


class ProgramCache:
    """The program for a set of weights, prepared on first use and whenever they changed.

    A change is seen by a tensor's address or version counter: `load_state_dict`, an optimizer's
    step, `.to()`, `.half()`, tied or replaced parameters. Writes through `.data` and to inference
    tensors move neither; on the CPU one number of every tensor is compared as well, which sees
    those that touch a whole tensor (an optimizer's or a moving average's).

    Safe to use from several threads: they prepare once. Copies and pickles are empty; on the CPU
    their programs are those of any other cache with equal weights, not packed again.
    """

    def __init__(
        self,
        config: EncoderConfig,
        precision: str = "auto",
        backend: str = "auto",
        deterministic: bool = True,
        cuda_graphs: bool = True,
    ):
        check_names(precision, backend)
        self.config = config
        self.precision = precision
        self.backend = backend
        self.options = EngineOptions(deterministic, cuda_graphs)
        self._lock = threading.Lock()
        self._prepared: _Prepared | None = None

    @property
    def selection(self) -> Selection | None:
        """The backend in use and why; None before the first `get`."""
        prepared = self._prepared
        return prepared.selection if prepared else None

    @property
    def program(self) -> Program | None:
        """The last program; None before the first `get`."""
        prepared = self._prepared
        return prepared.program if prepared else None

    @property
    def reason(self) -> str:
        """Why this backend, and how its program is doing; "" before the first `get`."""
        prepared = self._prepared
        if prepared is None:
            return ""
        return "; ".join(filter(None, (prepared.selection.reason, prepared.program.note)))

    def get(self, named_tensors: Mapping[str, Tensor]) -> Program:
        """The program for these weights.

        Args:
            named_tensors: every canonical name to its tensor, always in the same order.

        Raises:
            ValueError: nothing can run this model where its weights are.
        """
        tensors = list(named_tensors.values())
        prepared = self._prepared
        if prepared is not None and prepared.watch.unchanged(tensors):
            return prepared.program
        with self._lock:
            prepared = self._prepared  # another thread may have prepared while this one waited
            if prepared is None or not prepared.watch.unchanged(tensors):
                prepared = self._prepare(named_tensors)
                self._prepared = prepared
            return prepared.program

    def compute(
        self, named_tensors: Mapping[str, Tensor], run: Callable[[Program], Tensor]
    ) -> Tensor:
        """`run` of the program for these weights, which are on the device of what it reads.

        Where that is a GPU, which works while the host goes on, the weights are looked at
        meanwhile: for one sentence that takes as long as half of the forward. Programs hold copies,
        so if the weights have changed, what was computed is only thrown away.

        Args:
            named_tensors: as for `get`.
            run: queues a forward and gives its result.

        Raises:
            ValueError: as `get`; and what `run` raises.
        """
        tensors = list(named_tensors.values())
        prepared = self._prepared
        where = tensors[0].device
        if where.type in _QUEUES and prepared is not None and prepared.watch.device == where:
            result = run(prepared.program)
            if prepared.watch.unchanged(tensors):
                return result
        return run(self.get(named_tensors))

    def _prepare(self, named_tensors: Mapping[str, Tensor]) -> _Prepared:
        first = next(iter(named_tensors.values()))
        device = first.device
        for name, tensor in named_tensors.items():
            if tensor.device != device:
                raise ValueError(
                    f"weights: {name} is on {tensor.device}, others are on {device}; "
                    "all must be on one device"
                )
        selection = select(self.config, device, self.precision, self.backend, first.dtype)
        # Watched from before the weights are read: a change meanwhile is found at the next call.
        watch = _Watch(list(named_tensors.values()))
        if selection.backend.name != "cpu":
            return _Prepared(watch, selection, self._pack(selection, named_tensors, device))
        # Copies of a model, and encoders of one checkpoint, come here with equal weights.
        key = (self.config, selection.precision, instruction_set_cap())
        with _SHARED_LOCK:
            program = _twin(key, watch, named_tensors)
            if program is None:
                program = self._pack(selection, named_tensors, device)
            prepared = _Prepared(watch, selection, program)
            _SHARED.setdefault(key, weakref.WeakSet()).add(prepared)
            return prepared

    def _pack(
        self, selection: Selection, named_tensors: Mapping[str, Tensor], device: torch.device
    ) -> Program:
        with torch.no_grad():
            return selection.backend.prepare(
                self.config, named_tensors, device, selection.precision, self.options
            )

    def __reduce__(self) -> tuple[Any, ...]:
        options = (self.options.deterministic, self.options.cuda_graphs)
        return ProgramCache, (self.config, self.precision, self.backend, *options)


@dataclass(frozen=True, eq=False)
class _Prepared:
    watch: _Watch
    selection: Selection
    program: Program


# Devices that work while the host goes on.
_QUEUES = ("cuda",)

# What is packed for the CPU now, by what must be the same for others to use it too.
_SHARED: dict[tuple[Hashable, ...], weakref.WeakSet[_Prepared]] = {}
_SHARED_LOCK = threading.Lock()


def _twin(
    key: tuple[Hashable, ...], watch: _Watch, named_tensors: Mapping[str, Tensor]
) -> Program | None:
    """A program that shares what was packed from weights equal to these, if there is one."""
    for prepared in _SHARED.get(key, ()):
        if prepared.watch.stands() and prepared.watch.equals(watch):
            assert isinstance(prepared.program, CpuProgram)
            return prepared.program.twin(named_tensors)
    return None


class _Watch:
    """What some tensors looked like, and whether they still do.

    It keeps their memory alive, so an address it knows cannot come back as somebody else's. After
    weights were replaced, that is twice the memory until the next `get`.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self._held = [tensor.detach() for tensor in tensors]
        self._fingerprint = _fingerprint(tensors)
        self._windows = [w for tensor in self._held if (w := _window(tensor)) is not None]
        self._samples = list(map(_value_of, self._windows))

    @property
    def device(self) -> torch.device:
        """Where the first one was."""
        return self._held[0].device

    def stands(self) -> bool:
        """Whether the tensors themselves are what they were, whoever holds them now."""
        return self.unchanged(self._held)

    def equals(self, other: _Watch) -> bool:
        """Whether the tensors of both hold the same numbers, in the same order."""
        pairs = zip(self._held, other._held, strict=True)
        return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)

    def unchanged(self, tensors: Sequence[Tensor]) -> bool:
        # In this order: only tensors that are still where they were may be read through windows.
        return (
            _fingerprint(tensors) == self._fingerprint
            and list(map(_value_of, self._windows)) == self._samples
        )


def _fingerprint(tensors: Sequence[Tensor]) -> _Fingerprint:
    """What changes where a tensor does.

    Another dtype or device is another allocation, so the address tells of those.
    """
    try:
        versions = list(map(_version_of, tensors))
    except RuntimeError:  # inference tensors keep no version
        versions = [-1 if tensor.is_inference() else tensor._version for tensor in tensors]
    return list(map(Tensor.data_ptr, tensors)), versions, list(map(Tensor.numel, tensors))


def _window(tensor: Tensor) -> Any:
    """A live view of one number in the middle of a CPU tensor, as an integer of ctypes.

    Not through `.numpy()`, which marks the storage as never to be resized again.
    """
    if tensor.device.type != "cpu" or tensor.numel() == 0 or tensor.layout != torch.strided:
        return None
    middle = tensor[tuple(size // 2 for size in tensor.shape)]
    return _BITS[middle.element_size()].from_address(middle.data_ptr())


class ParameterWalk:
    """`dict(module.named_parameters())` for a module asked again and again, far faster.

    It remembers where each submodule and parameter hangs, and walks the tree anew only when another
    one hangs there. Copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._found: _Found | None = None

    def parameters(self, module: nn.Module) -> Mapping[str, nn.Parameter]:
        """Every parameter by its full name, in the module's order; tied ones under each name."""
        found = self._found  # one read: another thread may put a newer one here meanwhile
        if found is None or not found.is_current():
            self._found = found = _walk(module)
        return found.parameters

    def __reduce__(self) -> tuple[Any, ...]:
        return ParameterWalk, ()


class _Found(NamedTuple):
    """The parameters of a module, and everything that hung in its tree: a dict, a key, a value."""

    parameters: Mapping[str, nn.Parameter]
    tables: list[dict[str, Any]]
    keys: list[str]
    values: list[Any]

    def is_current(self) -> bool:
        """Whether all of it still hangs there. What was added since is not seen."""
        return all(map(operator.is_, map(_get, self.tables, self.keys), self.values))


def _walk(module: nn.Module) -> _Found:
    parameters: dict[str, nn.Parameter] = {}
    hanging: list[tuple[dict[str, Any], str, Any]] = []
    for prefix, owner in module.named_modules(remove_duplicate=False):
        hanging += [(owner._modules, name, child) for name, child in owner._modules.items()]
        hanging += [(owner._parameters, name, found) for name, found in owner._parameters.items()]
        for name, found in owner._parameters.items():
            if found is not None:
                parameters[f"{prefix}.{name}" if prefix else name] = found
    tables, keys, values = map(list, zip(*hanging, strict=True)) if hanging else ([], [], [])
    return _Found(parameters, tables, keys, values)
