"""Reading plain files only: symbolic links, pipes and devices are refused."""

import errno
import os
import stat

from storage.encoding import ByteArray
from storage.errors import BackendUnavailableError, LayoutError, RowCorruptError

RESTORE = "move away what stands there, and restore the file"
_NO_FILE = {
    errno.ELOOP,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
}


class FileReader:
    """A plain file opened for reading.

    Raises:
        FileNotFoundError: there is none.
        LayoutError: something else stands there, or it may not be read.
        BackendUnavailableError: the system fails to open it, for lack of descriptors or memory.
    """

    def __init__(self, path: str) -> None:
        try:
            # A symbolic link could lead out of the store, and a pipe would be waited for.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._descriptor = os.open(path, flags)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise BackendUnavailableError(
                    f"{path} cannot be read now: {error.strerror}; repeat when it can"
                ) from error
            reason = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise LayoutError(f"{path} cannot be read: {reason}; {RESTORE}") from error
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise LayoutError(f"{path} cannot be read: expected a plain file; {RESTORE}")
        self._path, self.size = path, status.st_size

    def read_into(self, buffer: ByteArray, offset: int) -> int:
        """Fill `buffer` from `offset`; returns the bytes read, fewer only at the end."""
        filled = 0
        while filled < buffer.size:
            try:
                count = os.preadv(self._descriptor, [buffer[filled:].data], offset + filled)
            except OSError as error:
                raise RowCorruptError(
                    f"{self._path} cannot be read: {error.strerror}; check its disk"
                ) from error
            if count == 0:
                break
            filled += count
        return filled

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
