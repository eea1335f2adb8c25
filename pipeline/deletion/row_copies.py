"""Copies of approximators that a run directory may hold beside its store, and their erasure.

    state/       saved blocks of a precomputation, useless once their approximators are listed
    exports/     approximators written out by request
    pilot/parts/, pilot/search/
                 what a pilot that was interrupted has computed: approximators and retrained models
    internal/continuation.safetensors
                 what the approximators of an interrupted repair start from: the sum before this
                 deletion, and the difference of two sums is an approximator
    internal/exports.json
                 where `unlearn export` has written whose approximator, by pseudonym
    *.partial    what a killed writer left; the store sweeps its own

A deletion removes all of them, those of other units included: they can be made again, and a file that
mixes units cannot be edited safely. Exports outside the run are the operator's; they are named in the
receipt. A symbolic link is never followed: what lies outside the run is not ours to remove.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from pipeline.errors import DamagedRunError
from pipeline.run.directory import CONTINUATION, PILOT
from storage.durable_write import sync_folder, write_atomically

FOLDERS = ("state", "exports", f"{PILOT}/parts", f"{PILOT}/search")
EXPORTS = Path("internal", "exports.json")
_STORE = "approximators."


class RowCopies:
    """The copies of approximators inside one run; an `Erasable`."""

    def __init__(self, run_dir: Path) -> None:
        self._root = run_dir

    def check(self) -> None:
        """Refuse what could not be erased; asked before a deletion is committed.

        Raises:
            DamagedRunError: A folder of copies is a symbolic link.
        """
        for name in (*FOLDERS, "internal", PILOT):
            path = self._root / name
            if path.is_symlink():
                raise DamagedRunError(
                    f"{path} is a link to {path.readlink()}, which lies outside the run and is not "
                    "ours to erase; put a folder in its place (mount the other disk there, or move "
                    "the run), and remove what lies behind the link yourself"
                )

    def erase(self, units: Sequence[int | str], pseudonym: Callable[[str], str]) -> None:
        """Remove every copy, whichever units are named; exports of these units alone.

        Raises:
            DamagedRunError: A folder of copies has become a link.
        """
        self.check()
        for name in FOLDERS:
            if (self._root / name).exists():
                shutil.rmtree(self._root / name)
        (self._root / CONTINUATION).unlink(missing_ok=True)
        for path in self._partial():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self._erase_exports({pseudonym(str(unit)) for unit in units})
        sync_folder(self._root)

    def _partial(self) -> list[Path]:
        """Return partial files outside the store, which may hold too many objects to walk."""
        found = []
        for folder, names, files in os.walk(self._root):
            if Path(folder) == self._root:
                names[:] = [name for name in names if not name.startswith(_STORE)]
            here = Path(folder)
            partial = [name for name in (*names, *files) if name.endswith(".partial")]
            found += [here / name for name in partial]
            names[:] = [name for name in names if name not in partial]
        return found

    def record_export(self, path: Path, unit: str) -> None:
        """Remember where an approximator was written to.

        Args:
            path: The file, absolute.
            unit: The unit's pseudonym.
        """
        known = self._exports()
        known[str(path)] = unit
        self._write_exports(known)

    def held_outside(self, deleted: Collection[str]) -> tuple[str, ...]:
        """Return the exports of deleted units that lie outside the run and still exist.

        Args:
            deleted: Pseudonyms.
        """
        return tuple(
            path
            for path, unit in self._exports().items()
            if unit in deleted and Path(path).exists()
        )

    def _erase_exports(self, units: set[str]) -> None:
        known = self._exports()
        for path, unit in list(known.items()):
            inside = Path(path).parent.resolve().is_relative_to(self._root.resolve())
            if inside and unit in units:
                Path(path).unlink(missing_ok=True)
            if not os.path.lexists(path):
                del known[path]
        if known or (self._root / EXPORTS).exists():
            self._write_exports(known)

    def _exports(self) -> dict[str, str]:
        try:
            values = json.loads((self._root / EXPORTS).read_text(encoding="utf-8"))
            return {str(path): str(unit) for path, unit in values.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, RecursionError) as error:
            raise DamagedRunError(
                f"{self._root / EXPORTS} is damaged ({error!r:.80}): it says where approximators "
                "were exported to; remove the exports that you hold, then this file"
            ) from error

    def _write_exports(self, known: dict[str, str]) -> None:
        path = self._root / EXPORTS
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, json.dumps(known, indent=1, sort_keys=True).encode(), mode=0o600)
