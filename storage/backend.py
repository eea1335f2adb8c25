"""Storage backends: atomic, durable objects under one folder or URL prefix.

A key is a relative path that this package composes itself; no user's string ever reaches one.
`local_backend.LocalBackend` holds files; `url_backend.UrlBackend` objects behind a URL.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from storage.encoding import ByteArray

PARTIAL = ".partial"
PUTS_AT_ONCE = 16


class ObjectReader(Protocol):
    """An object opened for reading; keeps its bytes readable even if it is replaced meanwhile."""

    size: int

    def read_into(self, buffer: ByteArray, offset: int) -> int:
        """Fill `buffer` from `offset`; returns the bytes read, fewer only at the end."""
        ...

    def close(self) -> None:
        """Release what is held open."""
        ...


class StorageBackend(Protocol):
    """Durable objects by key. Every method is safe to repeat.

    Only the holder of the lock that covers an object puts it.
    """

    # Whether ObjectReader holds a whole object in memory (a reader of many then opens few at once).
    readers_hold_bytes: bool

    # Whether a lock stays for a while when its holder dies.
    locks_outlive_holders: bool

    def read(self, key: str) -> bytes:
        """All bytes of an object; FileNotFoundError without it."""
        ...

    def open(self, key: str) -> ObjectReader:
        """Open an object for reading pieces of it; FileNotFoundError without it."""
        ...

    def put(self, key: str, data: bytes | ByteArray) -> None:
        """Replace an object atomically; durable once `settle` has returned."""
        ...

    def put_all(self, objects: Mapping[str, bytes | ByteArray]) -> None:
        """Put objects, several at a time: most of a put is waiting. If one fails, others may be put."""
        ...

    def settle(self) -> None:
        """Make every change of this instance so far survive a power cut."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        ...

    def delete_folder(self, prefix: str) -> None:
        """Remove every object below the folder `prefix`."""
        ...

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every object below the folder `prefix`, by key."""
        ...

    def folders(self, prefix: str) -> list[str]:
        """Keys of the folders directly below the folder `prefix`."""
        ...

    def version(self, key: str) -> str | None:
        """Something that changes whenever the object does; None without it."""
        ...

    def lock(self, key: str, *, wait: bool) -> AbstractContextManager[None]:
        """Hold `key` alone; WriterConflictError if another does and `wait` is false."""
        ...
