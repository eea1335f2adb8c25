"""One process at a time: an exclusive lock on a run that names its owner.

The lock is the kernel's (`flock`), so it ends with the process that holds it, however that ends;
the text in the file only tells the other process whom to ask. It holds between processes of one
machine, and over network file systems that support it.
"""

import fcntl
import os
import socket
from contextlib import AbstractContextManager
from pathlib import Path

from storage.errors import WriterConflictError


class RunLock(AbstractContextManager["RunLock"]):
    """Hold the exclusive lock on a run's ledger from construction to `close`.

    Raises:
        WriterConflictError: Another process holds it; the message names that process.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._descriptor, 200, 0).decode(errors="replace") or "unknown"
            os.close(self._descriptor)
            raise WriterConflictError(
                f"{path.parent} is in use by {owner}; wait until that ends, then repeat"
            ) from None
        os.ftruncate(self._descriptor, 0)
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        os.pwrite(self._descriptor, owner.encode(), 0)

    def close(self) -> None:
        """Release the lock; closing twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __exit__(self, *_: object) -> None:
        self.close()
