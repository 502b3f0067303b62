"""A task's options: those of a call, those of its pipeline, and those that decide nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, TypeVar

# transformers' pipelines take them; here they decide nothing, and results do not depend on them.
WITHOUT_EFFECT = frozenset({"batch_size", "num_workers", "padding"})

OptionsT = TypeVar("OptionsT")


def chosen_options(
    kind: type[OptionsT], task: str, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> OptionsT:
    """A call's options: those given, else those of the pipeline, else the task's own.

    Args:
        kind: a dataclass, which checks its values when it is made.

    Raises:
        TypeError: an option that the task does not have.
        ValueError: from `kind`, a value that makes no sense.
    """
    chosen = {k: v for k, v in {**defaults, **given}.items() if k not in WITHOUT_EFFECT}
    refuse_unknown(chosen, kind, task)
    return kind(**chosen)


def refuse_unknown(given: Collection[str], kind: type[Any], task: str) -> None:
    """Raise TypeError for names that are neither a task's options nor without effect."""
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(given) - known - WITHOUT_EFFECT)
    if unknown:
        raise TypeError(
            f"{task} has no option {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(sorted(known))}"
        )
