"""A folder that loses power: operations stop after a number of them, and may be undone then."""

from pathlib import Path

import numpy as np

from storage.encoding import ByteArray
from storage.local_backend import LocalBackend


class PowerCutError(BaseException):
    """The machine is off."""


class FragileBackend(LocalBackend):
    """Files whose operations stop after a number of them, and may be lost when they do."""

    # One after the other: what a cut leaves must not depend on threads.
    puts_at_once = 1
    fuse: int | None = None
    undone = 0
    unsynced: dict[Path, list[tuple[Path, bytes | None]]] = {}  # noqa: RUF012 (shared on purpose)

    @classmethod
    def burn(cls) -> None:
        if cls.fuse is not None:
            cls.fuse -= 1
            if cls.fuse < 0:
                cls.lose_unsynced()
                raise PowerCutError

    @classmethod
    def lose_unsynced(cls) -> None:
        """Undo the latest changes of folders that were not fsynced, as a disk may."""
        rng = np.random.default_rng(cls.undone)
        for changes in cls.unsynced.values():
            kept = int(rng.integers(len(changes) + 1)) if cls.undone else len(changes)
            for path, before in reversed(changes[kept:]):
                if before is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(before)
                elif path.exists():
                    path.unlink()
        cls.unsynced.clear()

    def remember(self, path: Path) -> None:
        before = path.read_bytes() if path.exists() else None
        self.unsynced.setdefault(path.parent, []).append((path, before))

    def _write(self, path: Path, data: bytes | ByteArray) -> None:
        if self.fuse == 0:
            path.write_bytes(bytes(data)[: len(data) // 2])
        self.burn()
        super()._write(path, data)

    def _rename(self, source: Path, target: Path) -> None:
        self.burn()
        self.remember(target)
        super()._rename(source, target)

    def _unlink(self, path: Path) -> bool:
        self.burn()
        if path.exists():
            self.remember(path)
        return super()._unlink(path)

    def _fsync_folder(self, folder: Path) -> None:
        self.burn()
        super()._fsync_folder(folder)
        self.unsynced.pop(folder, None)
