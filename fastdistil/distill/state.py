"""The checkpoint of a training run: one file, from which the run goes on to the same bits.

A safetensors file with the weights ("weights.NAME"), what AdamW keeps for each parameter that has
had a gradient ("exp_avg.NAME", "exp_avg_sq.NAME", "step.NAME") and, in the metadata, how far the
run has come and a hash of it all. The file is replaced in one step, so a run that is killed at any
moment leaves the old one or the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..checkpoint import add_to_digest
from ..run_folder import atomic_file

_FORMAT = "fastdistil training state 1"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_STEP = "step"
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
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        told = json.dumps(asdict(state))
        metadata = {"format": _FORMAT, "state": told, "sha256": _digest(told, tensors)}
        with atomic_file(self.path) as stream:
            stream.write(save(tensors, metadata))

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
        state, tensors = self._read()
        self._refuse_others(tensors, weights, parameters)
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(tensors[f"weights.{name}"])
            kept = _kept_for_each(tensors, parameters)
        # The optimizer itself knows best on which device it wants its steps.
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": kept, "param_groups": groups})
        return state

    def _read(self) -> tuple[TrainingState, dict[str, Tensor]]:
        """All that the file says, found whole."""
        try:
            with safe_open(self.path, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no dict
        except SafetensorError as error:
            raise self._unusable(str(error)) from error
        if metadata.get("format") != _FORMAT:
            raise self._unusable(f"its metadata lacks format: {_FORMAT!r}")
        told = metadata.get("state", "")
        if metadata.get("sha256") != _digest(told, tensors):
            raise self._unusable("its checksum is wrong")
        return TrainingState(**json.loads(told)), tensors

    def _unusable(self, why: str) -> ValueError:
        return ValueError(
            f"{self.path} is damaged or not the state of a training run ({why}): begin again with "
            "--restart (resume=False)"
        )

    def _refuse_others(
        self,
        tensors: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> None:
        wanted = {f"weights.{name}": tensor for name, tensor in weights.items()}
        moments = {f"{part}.{name}": p for name, p in parameters.items() for part in _MOMENTS}
        steps = {f"{_STEP}.{name}" for name in parameters}
        different = []
        found = tensors.keys() - steps
        for key in sorted(found | wanted.keys(), key=lambda key: (key not in wanted, key)):
            there, here = _told(tensors.get(key)), _told((wanted | moments).get(key))
            if there != here:
                different.append(f"{key}: {there} there, {here} now")
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
    tensors: Mapping[str, Tensor], parameters: Mapping[str, torch.nn.Parameter]
) -> dict[int, dict[str, Tensor]]:
    """What was kept for the optimizer, by the parameter's number; on its parameter's device and
    laid out in memory as it, which fused steps rely on."""
    kept = {}
    for number, (name, parameter) in enumerate(parameters.items()):
        if f"{_STEP}.{name}" in tensors:
            # A copy: what was read is a view of the file.
            kept[number] = {_STEP: tensors[f"{_STEP}.{name}"].clone()}
            for part in _MOMENTS:
                kept[number][part] = torch.empty_like(parameter).copy_(tensors[f"{part}.{name}"])
    return kept


def _told(tensor: Tensor | None) -> str:
    if tensor is None:
        return "nothing"
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _digest(state: str, tensors: Mapping[str, Tensor]) -> str:
    """A hash of all that a file says."""
    digest = hashlib.sha256(state.encode())
    add_to_digest(digest, dict(sorted(tensors.items())))
    return digest.hexdigest()
