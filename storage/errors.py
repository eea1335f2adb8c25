"""Errors of stored bytes, one class per cause.

Every class derives from `StorageError` and from the builtin that a caller would expect.
"""


class StorageError(Exception):
    """Base of every error that `storage` raises on purpose."""


class LayoutError(StorageError, ValueError):
    """The files on disk are not a store of a version that this program reads."""


class RowCorruptError(StorageError, ValueError):
    """A stored row is missing, truncated, flipped, swapped or stale."""


class RowRejectedError(StorageError, ValueError):
    """A row that was to be written is not one: wrong length, not finite, over the norm cap."""


class UnknownUnitError(StorageError, KeyError):
    """A unit that this store has never held."""

    def __str__(self) -> str:
        """Return the message itself; KeyError would show it in quotes."""
        return str(self.args[0]) if self.args else ""


class UnitErasedError(StorageError, KeyError):
    """A unit whose row was erased."""

    def __str__(self) -> str:
        """Return the message itself; KeyError would show it in quotes."""
        return str(self.args[0]) if self.args else ""


class WriterConflictError(StorageError, RuntimeError):
    """Two writers own the same block, or another process holds the lock."""


class StorageFullError(StorageError, OSError):
    """No space is left where rows are written; the run continues once there is some."""


class LedgerError(StorageError, RuntimeError):
    """The ledger refuses a transaction, or its chain of entries does not hold."""


class SumOverflowError(StorageError, OverflowError):
    """A sum of rows would leave the range in which it is exact."""


class BackendUnavailableError(StorageError, ConnectionError):
    """A storage backend did not answer, refused access, or went on failing through all retries."""
