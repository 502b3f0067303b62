"""What tasks made of a sentence encoder's vectors share: whole files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..encoder import Encoder
    from .task_file import TaskSummary


class VectorTask:
    """A task on the vectors of `encoder`.

    Attributes:
        task: its name.
        encoder: the sentence encoder.
    """

    task: str
    encoder: Encoder
    _defaults: dict[str, Any]

    def run_file(self, source: str | Path, output: str | Path, **options: Any) -> TaskSummary:
        """Results of a file of texts, in a file: see `fastdistil.tasks.task_file.run_file`."""
        from .task_file import run_file

        return run_file(self, source, output, **options)

    def fingerprint(self) -> str:
        """A hash of all that decides a result, save for a call's options and the arithmetic."""
        precision = self.encoder.model.explain()["precision"]
        settings = [self.task, precision, self.encoder.pooling, self._defaults]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(self.encoder.fingerprint().encode())
        return digest.hexdigest()
