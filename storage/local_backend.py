"""Objects as files of a folder: written beside, fsynced, renamed, and the folder fsynced."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np

from storage.backend import PARTIAL
from storage.durable_write import no_faults, sync_folder, write_durably
from storage.encoding import ByteArray
from storage.errors import StorageFullError, WriterConflictError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LOCK_POLL_SECONDS = 0.02


class _FileReader:
    """A file opened for reading."""

    def __init__(self, path: str) -> None:
        # A symbolic link could lead out of the store: O_NOFOLLOW refuses it.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def read_into(self, buffer: ByteArray, offset: int) -> int:
        filled = 0
        while filled < buffer.size:
            count = os.preadv(self._descriptor, [buffer[filled:].data], offset + filled)
            if count == 0:
                break
            filled += count
        return filled

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class LocalBackend:
    """Objects as files below a folder: written beside, fsynced, renamed, the folder fsynced.

    Args:
        root: the folder; created with the first object.
    """

    readers_hold_bytes = False
    locks_outlive_holders = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self._unsettled: set[Path] = set()

    def path(self, key: str) -> Path:
        """The file of `key`, which must stay below the root."""
        if key.startswith("/") or ".." in key.split("/") or "\0" in key:
            raise ValueError(f"a key is a relative path without '..', found {key!r}")
        return self.root / key

    def read(self, key: str) -> bytes:
        """All bytes of a file."""
        with closing(self.open(key)) as reader:
            data = np.empty(reader.size, np.uint8)
            return data[: reader.read_into(data, 0)].tobytes()

    def open(self, key: str) -> _FileReader:
        """Open a file; a symbolic link is refused with OSError."""
        return _FileReader(str(self.path(key)))

    def put(self, key: str, data: bytes | ByteArray) -> None:
        """Write beside, fsync, rename.

        Raises:
            StorageFullError: no space is left; nothing has changed.
        """
        path = self.path(key)
        partial = path.with_name(path.name + PARTIAL)
        try:
            self._make_folder(path.parent)
            # A crash may have left one; the writer takes a name that is free.
            self._unlink(partial)
            self._write(partial, data)
            self._rename(partial, path)
        except OSError as error:
            self._unlink(partial)
            if error.errno in _FULL:
                raise StorageFullError(
                    error.errno,
                    f"no space for {len(data)} bytes; nothing has changed: free some and run again",
                    str(path),
                ) from error
            raise
        self._unsettled.add(path.parent)

    def settle(self) -> None:
        """Fsync every folder that has changed."""
        while self._unsettled:
            folder = self._unsettled.pop()
            if folder.exists():
                self._fsync_folder(folder)

    def delete(self, key: str) -> None:
        """Unlink a file if it is there; empty folders stay."""
        path = self.path(key)
        if self._unlink(path):
            self._unsettled.add(path.parent)

    def delete_folder(self, prefix: str) -> None:
        """Unlink the files below a folder, then the folders."""
        folder = self.path(prefix)
        for key in self.sizes(prefix):
            self._unlink(self.path(key))
        for below, _, _ in os.walk(folder, topdown=False):
            Path(below).rmdir()
        self._unsettled.add(folder.parent)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Sizes of the files below a folder, links not followed."""
        return dict(self._walk(prefix))

    def folders(self, prefix: str) -> list[str]:
        """Folders directly below a folder."""
        try:
            entries = list(os.scandir(self.path(prefix)))
        except FileNotFoundError:
            return []
        return [f"{prefix}/{e.name}" for e in entries if e.is_dir(follow_symlinks=False)]

    def version(self, key: str) -> str | None:
        """Inode, size and time of change."""
        try:
            status = self.path(key).stat()
        except FileNotFoundError:
            return None
        return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"

    @contextmanager
    def lock(self, key: str, *, wait: bool) -> Iterator[None]:
        """Hold a lock file; the kernel releases it when its holder dies."""
        path = self.path(key)
        descriptor = self._lock_file(path, wait)
        try:
            yield
        finally:
            # Unlinked before it is released: a process that waits on it finds it gone and retries.
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def _lock_file(self, path: Path, wait: bool) -> int:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._inode(path) == os.fstat(descriptor).st_ino:
                    return descriptor
                os.close(descriptor)
            except BlockingIOError:
                os.close(descriptor)
                if not wait:
                    raise WriterConflictError(
                        f"{path} is held by another writer; one writer owns a block: wait for it, "
                        "or plan blocks so that each has one"
                    ) from None
                time.sleep(_LOCK_POLL_SECONDS)

    def _inode(self, path: Path) -> int | None:
        try:
            return path.stat().st_ino
        except FileNotFoundError:
            return None

    def _walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        try:
            entries = list(os.scandir(self.path(prefix)))
        except FileNotFoundError:
            return
        for entry in entries:
            key = f"{prefix}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(key)
            else:
                # Another writer may have renamed or removed it since the folder was listed.
                with suppress(FileNotFoundError):
                    yield key, entry.stat(follow_symlinks=False).st_size

    # The file operations, one method each: tests let a process die between any two of them.

    def _make_folder(self, folder: Path) -> None:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            self._unsettled.add(new.parent)

    def _write(self, path: Path, data: bytes | ByteArray) -> None:
        write_durably(
            path, [data if isinstance(data, bytes) else data.data], no_faults, cached=True
        )

    def _rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def _unlink(self, path: Path) -> bool:
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    def _fsync_folder(self, folder: Path) -> None:
        sync_folder(folder)
