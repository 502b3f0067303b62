"""Results that survive: one JSON file per stage, written anew after every item.

A run that was stopped, for whatever reason, goes on where it was. An item counts as done while its
fingerprint (of the code and of the settings it was measured with) is the present one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastdistil.bench.results import write_json


class Store:
    """The items of one stage.

    Args:
        path: the JSON file; made when the first item is put.
        environment: the machine's record for this run.
        fingerprint: of what the items depend on. Items with another one are dropped.
        again: whether items that are there are measured anew all the same.
    """

    def __init__(self, path: Path, environment: dict[str, Any], fingerprint: str, again: bool):
        self.path = path
        self.items: dict[str, dict[str, Any]] = {}
        self.left_out: list[str] = []
        self.failed: dict[str, str] = {}
        self._environment = environment
        self._fingerprint = fingerprint
        if not again:
            found = read_items(path)
            self.items = {n: r for n, r in found.items() if r.get("fingerprint") == fingerprint}

    def has(self, name: str) -> bool:
        """Whether that item needs no measuring."""
        return name in self.items

    def put(self, name: str, record: dict[str, Any]) -> None:
        """Keep an item's record (values that JSON knows) and write the file."""
        about = {"fingerprint": self._fingerprint, "date": self._environment["date"]}
        self.items[name] = {**record, **about}
        self.save()

    def leave_out(self, name: str) -> None:
        """Note that there was no time for an item."""
        self.left_out.append(name)

    def fail(self, name: str, reason: str) -> None:
        """Note that an item went wrong, and write the file."""
        self.failed[name] = reason
        self.save()

    def save(self) -> None:
        """Write the file: aside, then renamed."""
        results = {
            "environment": self._environment,
            "items": self.items,
            "failed": self.failed,
            "left_out": self.left_out,
        }
        write_json(self.path, results)


def read_results(path: Path) -> dict[str, Any]:
    """What a stage wrote, or an empty mapping where there is nothing readable."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def read_items(path: Path) -> dict[str, dict[str, Any]]:
    """The items that a stage wrote, by name."""
    return dict(read_results(path).get("items", {}))
