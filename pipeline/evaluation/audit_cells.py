"""Finished parts of an audit, one small file each, so that an interruption costs one part."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.progress import Progress, silent
from storage.files import write_atomically

# Files of another version are worked out again.
_VERSION = 1


@dataclass
class Cells:
    """A folder of results that belong to one run.

    Attributes:
        folder: Made when the first cell is written.
        identity: Digest of the run; cells of another run are worked out again.
        total: Cells of the whole audit, for progress.
        progress: Called after each cell with those done and `total`.
        done: Cells so far.
    """

    folder: Path
    identity: str
    total: int
    progress: Progress = silent
    done: int = 0

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the stored value of a cell, or compute and store it.

        Args:
            name: A file name without its ending.
            compute: Returns plain values that JSON can hold.
        """
        path = self.folder / f"{name}.json"
        found = self._read(path)
        if found is None:
            found = {"version": _VERSION, "run": self.identity, "value": compute()}
            self.folder.mkdir(parents=True, exist_ok=True)
            # What a model says of deleted samples is for the operator alone.
            write_atomically(path, json.dumps(found, allow_nan=False).encode(), mode=0o600)
        self.done += 1
        self.progress(self.done, self.total)
        return found["value"]

    def _read(self, path: Path) -> dict[str, Any] | None:
        """Return a cell of this run, or None if it is missing, damaged or another run's."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if not isinstance(found, dict) or "value" not in found:
            return None
        same = found.get("version") == _VERSION and found.get("run") == self.identity
        return found if same else None
