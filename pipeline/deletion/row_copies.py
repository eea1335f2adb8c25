"""Copies of rows that a run directory may hold beside its store, and their erasure.

    state/       saved blocks of a precomputation, useless once their rows are listed
    exports/     rows written out by request
    internal/continuation.safetensors
                 what the rows of an interrupted repair start from: the sum before this deletion,
                 and the difference of two sums is a row
    *.partial    what a killed writer left; the store sweeps its own

A deletion removes all of them, other people's included: they can be made again, and a file that
mixes units cannot be edited safely.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.run.directory import CONTINUATION
from storage.durable_write import sync_folder

FOLDERS = ("state", "exports")
_STORE = "approximators."


class RowCopies:
    """The copies of rows inside one run; an `Erasable`."""

    def __init__(self, run_dir: Path) -> None:
        self._root = run_dir

    def erase(self, units: Sequence[int | str], pseudonym: Callable[[str], str]) -> None:
        """Remove every copy, whichever units are named."""
        del units, pseudonym
        for name in FOLDERS:
            if (self._root / name).exists():
                shutil.rmtree(self._root / name)
        (self._root / CONTINUATION).unlink(missing_ok=True)
        for path in self._partial():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        sync_folder(self._root)

    def _partial(self) -> list[Path]:
        """Return partial files outside the store, which may hold too many objects to walk."""
        found = list(self._root.glob("*.partial"))
        for folder in self._root.iterdir():
            if folder.is_dir() and not folder.name.startswith(_STORE):
                found += folder.rglob("*.partial")
        return found
