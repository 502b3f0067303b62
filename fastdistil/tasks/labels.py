"""What a checkpoint's config.json says about its labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True)
class Labels:
    """Names of a head's outputs.

    Attributes:
        names: one per output, by number.
        problem_type: one of PROBLEM_TYPES, or None where the checkpoint does not say.
    """

    names: tuple[str, ...]
    problem_type: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    def starting_with(self, beginning: str) -> int | None:
        """The first label whose name begins so, whatever the case; None where there is none."""
        found = (i for i, name in enumerate(self.names) if name.lower().startswith(beginning))
        return next(found, None)


def read_labels(config: Mapping[str, Any], outputs: int, source: str) -> Labels:
    """The labels of a head with so many outputs.

    A config without `id2label` has transformers' own names: LABEL_0, LABEL_1...

    Args:
        config: a parsed config.json.
        outputs: rows of the head's last matrix.
        source: what to call the config in messages.

    Raises:
        ValueError: labels that do not belong to the head's outputs, or an unknown problem_type.
    """
    problem = config.get("problem_type")
    if problem is not None and problem not in PROBLEM_TYPES:
        raise ValueError(
            f"{source}: problem_type is {problem!r}; it can be {', '.join(PROBLEM_TYPES)}"
        )
    given = config.get("id2label")
    if given is None:
        count = config.get("num_labels", outputs)
        given = {index: f"LABEL_{index}" for index in range(count if isinstance(count, int) else 0)}
    if not isinstance(given, Mapping):
        raise ValueError(f"{source}: id2label is {type(given).__name__}; a JSON object is wanted")
    try:
        by_number = {int(key): str(name) for key, name in given.items()}
    except ValueError:
        raise ValueError(
            f"{source}: id2label has the keys {', '.join(map(repr, list(given)[:8]))}; whole "
            "numbers are wanted"
        ) from None
    if sorted(by_number) != list(range(outputs)):
        raise ValueError(
            f"{source}: id2label names {len(by_number)} labels "
            f"({_numbers(by_number)}), but the checkpoint's head has {outputs} outputs, 0 to "
            f"{outputs - 1}: the config belongs to another head"
        )
    return Labels(tuple(by_number[index] for index in range(outputs)), problem)


def _numbers(labels: Mapping[int, str]) -> str:
    shown = ", ".join(map(str, sorted(labels)[:8]))
    return shown if len(labels) <= 8 else f"{shown}..."
