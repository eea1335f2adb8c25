"""Objects as files of a folder: written beside, fsynced, renamed, and the folder fsynced."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np

from storage.backend import PARTIAL, PUTS_AT_ONCE
from storage.durable_write import no_faults, sync_folder, write_durably
from storage.encoding import ByteArray
from storage.errors import (
    BackendUnavailableError,
    LayoutError,
    StorageError,
    StorageFullError,
    WriterConflictError,
)
from storage.file_reader import RESTORE, FileReader

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LOCK_POLL_SECONDS = 0.02

T = TypeVar("T")


class LocalBackend:
    """Objects as files below a folder: written beside, fsynced, renamed, the folder fsynced.

    Files are readable by their owner alone, and so are folders made here. Below the root nothing is
    written or removed behind a symbolic link: what lies there is not the store's, and rows written
    there could not be erased.

    Args:
        root: the folder; created with the first object. It may be reached through links.
    """

    readers_hold_bytes = False
    locks_outlive_holders = False
    puts_at_once = PUTS_AT_ONCE

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
            try:
                data = np.empty(reader.size, np.uint8)
            except MemoryError as error:
                raise LayoutError(
                    f"{self.path(key)} has {reader.size} bytes, more than memory holds; {RESTORE}"
                ) from error
            return data[: reader.read_into(data, 0)].tobytes()

    def open(self, key: str) -> FileReader:
        """Open a file; anything else than a plain file is refused with LayoutError."""
        return FileReader(str(self.path(key)))

    def put(self, key: str, data: bytes | ByteArray) -> None:
        """Write beside, fsync, rename.

        Raises:
            StorageFullError: no space is left; nothing has changed.
            BackendUnavailableError: the file may not be written, or a folder is in its place.
            LayoutError: it would lie behind a symbolic link.
        """
        path = self._own(key)
        partial = path.with_name(path.name + PARTIAL)
        with self._refusals(path):
            try:
                self._make_folder(path.parent)
                # A crash may have left one; the writer takes a name that is free.
                self._unlink(partial)
                self._write(partial, data)
                self._rename(partial, path)
            except OSError as error:
                with suppress(OSError):
                    self._unlink(partial)
                if error.errno in _FULL:
                    raise StorageFullError(
                        error.errno,
                        f"no space for {len(data)} bytes; nothing has changed: free some and run "
                        "again",
                        str(path),
                    ) from error
                raise
        self._unsettled.add(path.parent)

    def put_all(self, objects: Mapping[str, bytes | ByteArray]) -> None:
        """Put files by several threads: their fsyncs share the disk's writes.

        With 8 threads files of 32 kB take a fifteenth of their time (.5 ms against 8 ms each).
        """
        self._each(lambda item: self.put(*item), list(objects.items()))

    def settle(self) -> None:
        """Fsync every folder that has changed."""
        folders, self._unsettled = sorted(self._unsettled), set()
        try:
            self._each(self._settle_folder, folders)
        except BaseException:
            self._unsettled.update(folders)
            raise

    def delete(self, key: str) -> None:
        """Unlink a file, or a link itself, if it is there; empty folders stay.

        Raises:
            BackendUnavailableError: the file may not be removed, or is a folder.
            LayoutError: it lies behind a symbolic link.
        """
        path = self._own(key)
        with self._refusals(path):
            if self._unlink(path):
                self._unsettled.add(path.parent)

    def delete_folder(self, prefix: str) -> None:
        """Unlink the files and links below a folder, then the folders; raises as `delete`."""
        folder = self._own(f"{prefix}/")
        with self._refusals(folder):
            for key in self.sizes(prefix):
                self._unlink(self.path(key))
            for below, _, _ in os.walk(folder, topdown=False):
                Path(below).rmdir()
        self._unsettled.add(folder.parent)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Sizes of the files below a folder, links not followed."""
        return dict(self._walk(prefix))

    def folders(self, prefix: str) -> list[str]:
        """Folders directly below a folder, links not counted."""
        entries = self._entries(prefix)
        return [f"{prefix}/{e.name}" for e in entries if e.is_dir(follow_symlinks=False)]

    def version(self, key: str) -> str | None:
        """Inode, size and time of change."""
        try:
            status = self.path(key).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"

    @contextmanager
    def lock(self, key: str, *, wait: bool) -> Iterator[None]:
        """Hold a lock file; the kernel releases it when its holder dies."""
        path = self._own(key)
        with self._refusals(path):
            descriptor = self._lock_file(path, wait)
        try:
            yield
        finally:
            # Unlinked before it is released: a process that waits on it finds it gone and retries.
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def _lock_file(self, path: Path, wait: bool) -> int:
        while True:
            self._make_folder(path.parent)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
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
        for entry in self._entries(prefix):
            key = f"{prefix}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(key)
            else:
                # Another writer may have renamed or removed it since the folder was listed.
                with suppress(FileNotFoundError):
                    yield key, entry.stat(follow_symlinks=False).st_size

    def _entries(self, prefix: str) -> list[os.DirEntry[str]]:
        try:
            return list(os.scandir(self.path(prefix)))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise LayoutError(
                f"{self.path(prefix)} cannot be listed: {error.strerror}; {RESTORE}"
            ) from error

    def _own(self, key: str) -> Path:
        """The file of `key`, for changing it."""
        path, folder = self.path(key), str(self.root)
        # Texts, not paths: an erasure asks this for tens of thousands of keys.
        for name in key.split("/")[:-1]:
            folder = f"{folder}/{name}"
            if os.path.islink(folder):  # noqa: PTH114
                raise LayoutError(
                    f"{folder} is a symbolic link; nothing is written or removed behind it: put "
                    "what it leads to in its place, or open the store where it lies"
                )
        return path

    @contextmanager
    def _refusals(self, path: Path) -> Iterator[None]:
        """Turn the system's refusals to change a file into errors of ours."""
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            raise BackendUnavailableError(
                f"{path} cannot be changed: {error.strerror}; nothing has changed: check what "
                "stands there and whose it is"
            ) from error

    def _each(self, change: Callable[[T], None], items: Sequence[T]) -> None:
        threads = min(self.puts_at_once, len(items))
        if threads <= 1:
            for item in items:
                change(item)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(change, items))

    def _settle_folder(self, folder: Path) -> None:
        if folder.exists():
            self._fsync_folder(folder)

    # The file operations, one method each: tests let a process die between any two of them.

    def _make_folder(self, folder: Path) -> None:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(mode=0o700, exist_ok=True)
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
