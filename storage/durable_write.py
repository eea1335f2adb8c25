"""Writing files so that they outlive a crash, and their digest on the way.

A file is on disk when `write_durably` returns; its *name* is once `sync_folder` of its folder has.
Large files go around the page cache where the file system allows it: filling fresh cache pages
costs more than the disk does (45 MB: .012 s against .2 s through the cache, both with fsync,
on the machine of docs/certificate.md).
"""

import errno
import fcntl
import mmap
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

from blake3 import blake3

Bytes = bytes | memoryview
_BUFFER_BYTES = 4 << 20
_O_DIRECT = getattr(os, "O_DIRECT", 0)

Faults = Callable[[str], None]
"""Called with the name of each point at which a crash must do no harm; tests crash there."""


def no_faults(point: str) -> None:
    """Pass a crash point."""


def shared_mode(folder: Path) -> int:
    """Return the mode of a file for all that may list `folder`: its owner, or its group too.

    Never others: what a run holds describes people.
    """
    return 0o640 if folder.stat().st_mode & 0o040 else 0o600


def make_shared_folder(path: Path) -> None:
    """Make a folder that its owner, and the group that may list its parent, may read."""
    path.mkdir(mode=0o700, exist_ok=True)
    if path.parent.stat().st_mode & 0o040:
        path.chmod(0o2750)


def write_atomically(path: Path, content: bytes | Iterable[Bytes], mode: int | None = None) -> None:
    """Put a file in its place whole or not at all: write beside it, fsync, rename, fsync the folder.

    Args:
        path: Its folder must exist; a file of this name is replaced.
        content: The whole file, or its parts in order.
        mode: Permission bits of the new file, from its first byte on; None takes `shared_mode`.
    """
    mode = shared_mode(path.parent) if mode is None else mode
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    parts = [content] if isinstance(content, bytes) else content
    try:
        write_durably(temporary, parts, no_faults, mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_durably(
    path: Path,
    parts: Iterable[Bytes],
    faults: Faults,
    mode: int = 0o600,
    *,
    cached: bool = False,
) -> str:
    """Write a new file, fsync it, and return its BLAKE3 digest in hexadecimal.

    Args:
        path: A name that is free.
        parts: The contents in order; each part may be reused by the caller once the next is asked.
        faults: Called before and after the fsync with the file's name.
        mode: Permissions, before the umask.
        cached: Leave the contents in the page cache, for a file that is read again soon.
    """
    digest = blake3()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        for block in _blocks(parts):
            digest.update(block)
            _write_whole(descriptor, block, is_direct=not cached and len(block) == _BUFFER_BYTES)
        faults(f"{path.name}:before-fsync")
        os.fsync(descriptor)
        faults(f"{path.name}:after-fsync")
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _blocks(parts: Iterable[Bytes]) -> Iterable[memoryview]:
    """Yield the parts joined into page-aligned blocks of `_BUFFER_BYTES`, the last one shorter."""
    # Not closed by hand: a write that fails keeps a view of the buffer in its traceback.
    block = memoryview(mmap.mmap(-1, _BUFFER_BYTES))
    filled = 0
    for part in parts:
        rest = memoryview(part).cast("B")
        while rest:
            count = min(len(rest), _BUFFER_BYTES - filled)
            block[filled : filled + count] = rest[:count]
            filled, rest = filled + count, rest[count:]
            if filled == _BUFFER_BYTES:
                yield block
                filled = 0
    if filled:
        yield block[:filled]


def _write_whole(descriptor: int, block: memoryview, *, is_direct: bool) -> None:
    """Write a block, directly if asked and the file system agrees."""
    _set_direct(descriptor, is_direct)
    while block:
        try:
            written = os.write(descriptor, block)
        except OSError as error:
            if error.errno != errno.EINVAL or not _is_direct(descriptor):
                raise
            _set_direct(descriptor, False)
        else:
            block = block[written:]


def _is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & _O_DIRECT)


def _set_direct(descriptor: int, wanted: bool) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _O_DIRECT if wanted else flags & ~_O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:  # this file system has no direct writes
            raise


def sync_folder(path: Path, faults: Faults = no_faults) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        faults(f"{path.name}/:before-fsync")
        os.fsync(descriptor)
        faults(f"{path.name}/:after-fsync")
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the BLAKE3 digest of a file in hexadecimal."""
    return blake3().update_mmap(path).hexdigest()
