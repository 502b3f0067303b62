"""The checkpoint of a training run: one file, from which the run goes on to the same bits.

A safetensors file with the weights ("weights.NAME"), what AdamW keeps for each parameter that has
had a gradient ("exp_avg.NAME", "exp_avg_sq.NAME", "step.NAME") and, in the metadata, how far the
run has come. Its last tensor is the CRC-32 of all bytes before it. The file is replaced in one
step, so a run that is killed at any moment leaves the old one or the new one.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..run_folder import atomic_file

_FORMAT = "fastdistil training state 1"
_CHECKSUM = "crc32"
_CHECKSUM_BYTES = 4
_BLOCK_BYTES = 1 << 20
_MOMENTS = ("exp_avg", "exp_avg_sq")
_STEP = "step"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DIFFERENCES_SHOWN = 5


@dataclass(frozen=True)
class TrainingState:
    """How far a run has come."""

    step: int
    tokens: int
    """Tokens that the student was trained on."""
    seconds: float
    """Time the run has taken, over all its parts."""
    teacher_seconds: float
    """Of these, the teacher's."""


class StateFile:
    """The file in which a run's state is kept.

    Learning rates and what else is in the optimizer's groups are the caller's to set: they follow
    from the settings and the step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(
        self,
        state: TrainingState,
        weights: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        names: Sequence[str],
    ) -> None:
        """Makes the file be there, whole, on the disk; until then the former one is.

        Args:
            weights: tensors by name, on any device.
            optimizer: an AdamW, without amsgrad.
            names: of the optimizer's parameters, in the order of its groups.

        Raises:
            ValueError: an optimizer that keeps something else, or other names than parameters.
            OSError: the file cannot be written.
        """
        tensors = {f"weights.{name}": tensor for name, tensor in weights.items()}
        for name, parameter in _named_parameters(optimizer, names).items():
            kept = optimizer.state.get(parameter, {})
            if kept and kept.keys() != {*_MOMENTS, _STEP}:
                raise ValueError(
                    f"the optimizer keeps {', '.join(sorted(kept))} for {name!r}: only what AdamW "
                    "keeps without amsgrad (exp_avg, exp_avg_sq, step) can be saved"
                )
            tensors |= {f"{part}.{name}": tensor for part, tensor in kept.items()}
        with atomic_file(self.path) as stream:
            _write(stream, tensors, {"format": _FORMAT, "state": json.dumps(asdict(state))})

    def load(
        self,
        weights: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        names: Sequence[str],
    ) -> TrainingState | None:
        """Puts back what was saved, to the bit: the weights in place, and the optimizer's state.

        Nothing has changed when it raises.

        Args:
            weights, optimizer, names: as when they were saved; devices may differ.

        Returns:
            how far the run had come; None without a file.

        Raises:
            ValueError: a file that is damaged, is no such state, or is another model's.
        """
        if not self.path.exists():
            return None
        parameters = _named_parameters(optimizer, names)
        with self._opened() as (opened, state):
            self._refuse_others(opened, weights, parameters)
            with torch.no_grad():
                for name, tensor in weights.items():
                    tensor.copy_(opened.get_tensor(f"weights.{name}"))
                kept = _kept_for_each(opened, parameters)
            # The optimizer itself knows best on which device it wants its steps.
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": kept, "param_groups": groups})
        return state

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, TrainingState]]:
        """The file, open and found whole, and the state in its metadata."""
        try:
            with safe_open(self.path, framework="pt") as opened:
                metadata = opened.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise self._unusable(f"its metadata lacks format: {_FORMAT!r}")
                if not _is_whole(self.path):
                    raise self._unusable("its checksum is wrong")
                yield opened, TrainingState(**json.loads(metadata["state"]))
        except SafetensorError as error:
            raise self._unusable(str(error)) from error

    def _unusable(self, why: str) -> ValueError:
        return ValueError(
            f"{self.path} is damaged or not the state of a training run ({why}): begin again with "
            "--restart (resume=False)"
        )

    def _refuse_others(
        self, opened: Any, weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
    ) -> None:
        wanted = {f"weights.{name}": tensor for name, tensor in weights.items()}
        possible = {
            f"{part}.{name}": parameter
            for name, parameter in parameters.items()
            for part in _MOMENTS
        }
        steps = {f"{_STEP}.{name}" for name in parameters}
        found = set(opened.keys()) - {_CHECKSUM} - steps
        different = []
        for key in sorted(found | wanted.keys(), key=lambda key: (key not in wanted, key)):
            here = (wanted | possible).get(key)
            told_here = "nothing" if here is None else _told(_DTYPES.get(here.dtype), here.shape)
            told_there = "nothing"
            if key in found:
                there = opened.get_slice(key)
                told_there = _told(there.get_dtype(), there.get_shape())
            if told_here != told_there:
                different.append(f"{key}: {told_there} there, {told_here} now")
        if different:
            more = len(different) - _DIFFERENCES_SHOWN
            raise ValueError(
                f"{self.path} holds the state of another model or optimizer "
                f"({'; '.join(different[:_DIFFERENCES_SHOWN])}"
                f"{f'; and {more} more' if more > 0 else ''}): continue with those it was made "
                "with, or begin again with --restart (resume=False)"
            )


def _named_parameters(
    optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> dict[str, torch.nn.Parameter]:
    """The optimizer's parameters, in the order of its groups, by name."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    if len(set(names)) != len(names) or len(names) != len(parameters):
        raise ValueError(
            f"names: {len(names)} names, {len(set(names))} of them different, for "
            f"{len(parameters)} parameters of the optimizer: give each its own"
        )
    return dict(zip(names, parameters, strict=True))


def _kept_for_each(
    opened: Any, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[int, dict[str, Tensor]]:
    """What the file holds for the optimizer, by the parameter's number; on its parameter's device
    and laid out in memory as it, which fused steps rely on."""
    keys = set(opened.keys())
    kept = {}
    for number, (name, parameter) in enumerate(parameters.items()):
        if f"{_STEP}.{name}" in keys:
            # A copy: what get_tensor returns is a view of the file.
            kept[number] = {_STEP: opened.get_tensor(f"{_STEP}.{name}").clone()}
            for part in _MOMENTS:
                stored = opened.get_tensor(f"{part}.{name}")
                kept[number][part] = torch.empty_like(parameter).copy_(stored)
    return kept


def _told(dtype: str | None, shape: Iterable[int]) -> str:
    return f"{dtype} {list(shape)}"


def _write(stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, one tensor after the other.

    The library's own writer wants all of them in memory once more, and refuses tensors that share
    memory, as tied weights do. The format is simple enough
    (https://github.com/huggingface/safetensors#format): length of header, header, numbers.
    """
    # Readers want numbers aligned to their size.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered.items():
        if tensor.dtype not in _DTYPES:
            known = ", ".join(map(str, _DTYPES))
            raise ValueError(f"{name} is of {tensor.dtype}: only {known} can be saved")
        header[name] = _entry(_DTYPES[tensor.dtype], tensor.shape, end, tensor.nbytes)
        end += tensor.nbytes
    header[_CHECKSUM] = _entry("U8", [_CHECKSUM_BYTES], end, _CHECKSUM_BYTES)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    checksum = 0
    beginning: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    for part in chain(beginning, map(_bytes_of, ordered.values())):
        checksum = zlib.crc32(part, checksum)
        stream.write(part)
    stream.write(checksum.to_bytes(_CHECKSUM_BYTES, "little"))


def _entry(dtype: str, shape: Sequence[int], begin: int, size: int) -> dict[str, Any]:
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data


def _is_whole(path: Path) -> bool:
    """Whether the file's last bytes are the checksum of all before them."""
    with open(path, "rb") as stream:
        left = os.fstat(stream.fileno()).st_size - _CHECKSUM_BYTES
        checksum = 0
        while left > 0 and (block := stream.read(min(left, _BLOCK_BYTES))):
            checksum = zlib.crc32(block, checksum)
            left -= len(block)
        return stream.read() == checksum.to_bytes(_CHECKSUM_BYTES, "little")
