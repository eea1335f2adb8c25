"""The SQLite file of a ledger: connection, transactions and the chain of entries.

WAL mode with `synchronous=FULL` makes a returned transaction durable; `secure_delete` overwrites
what is removed; closing folds the write-ahead log into the file. What is stored is `Ledger`'s.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.durable_write import Faults
from storage.errors import LedgerError, StorageError, StorageFullError
from storage.ledger_records import GENESIS, SCHEMA, Entry, canonical, link

_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = ON",
)
_ADVICE = {
    "version": "open it with the version of the program that wrote it",
    "run_digest": "it belongs to another run; restore this run's own",
    "key_check": "name the key file that it was begun with in UNLEARN_KEY_FILE",
}


def text_digest(text: str) -> str:
    """Return the SHA-256 digest of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


class LedgerFile:
    """An open ledger file.

    Args:
        path: The SQLite file; created, readable by its owner alone, where there is none.
        identity: Values by field that the ledger was or is begun with: version, run, key.
        faults: Called with the name of each crash point as it is passed.

    Raises:
        LedgerError: The file is no ledger, or one of another identity.
    """

    def __init__(self, path: Path, identity: Mapping[str, str], faults: Faults) -> None:
        self.path = path
        self._faults = faults
        if not path.exists():
            path.touch(mode=0o600)
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
        except sqlite3.DatabaseError as error:  # such as a folder in its place
            raise self._refusal(error) from error
        try:
            for pragma in _PRAGMAS:
                self.run(pragma)
            self._begin_or_check(identity)
        except BaseException:
            self._db.close()
            raise

    def _begin_or_check(self, identity: Mapping[str, str]) -> None:
        if not self.rows("SELECT 1 FROM sqlite_master WHERE name = 'ledger'"):
            with self.transaction("create"):
                for statement in SCHEMA.split(";"):
                    self.run(statement)
                for field, value in identity.items():
                    self.set_value(field, value)
                self.append("created", dict(identity))
            return
        for field, value in identity.items():
            found = self.value(field)
            if found != value:
                raise LedgerError(
                    f"{self.path}: expected {field} {value}, found {found}; {_ADVICE[field]}"
                )

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it; closing twice does nothing."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.ProgrammingError:
            return
        except sqlite3.DatabaseError:
            pass  # a damaged file has nothing to fold in, and must be let go all the same
        self._db.close()

    def run(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Execute one statement.

        Raises:
            LedgerError: The file is damaged, or the statement breaks a rule of the schema.
            StorageFullError: The disk is full, or fails.
        """
        try:
            return self._db.execute(statement, values)
        except sqlite3.DatabaseError as error:
            raise self._refusal(error) from error

    def run_many(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Execute one statement for each row of values; raises as `run` does."""
        try:
            self._db.executemany(statement, rows)
        except sqlite3.DatabaseError as error:
            raise self._refusal(error) from error

    def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query; raises as `run` does."""
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: sqlite3.DatabaseError) -> StorageError:
        if isinstance(error, sqlite3.IntegrityError):
            return LedgerError(f"{self.path}: {error}; a request or unit is there already")
        # The low byte names the kind; extended codes stand above it.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (
            sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_IOERR,
        ):
            return StorageFullError(
                f"{self.path}: {error}; make room on its disk, or check it, and repeat the command: "
                "what was committed is whole"
            )
        return LedgerError(
            f"{self.path} is not a ledger, or damaged ({error}); restore one from a backup"
        )

    @contextmanager
    def transaction(self, name: str) -> Iterator[None]:
        """Carry out everything in the context, durably, or nothing."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self._faults(f"{name}:before-commit")
            self.run("COMMIT")
        except BaseException:
            # A full disk makes SQLite roll back by itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._faults(f"{name}:after-commit")

    def append(self, kind: str, body: Mapping[str, object]) -> None:
        """Add an entry to the chain; inside a transaction."""
        text = canonical(body)
        self.run(
            "INSERT INTO entries (kind, body, digest) VALUES (?, ?, ?)",
            (kind, text, link(self.head(), kind, text)),
        )

    def head(self) -> str:
        """Return the digest of the last entry."""
        found = self.rows("SELECT digest FROM entries ORDER BY sequence DESC LIMIT 1")
        return str(found[0][0]) if found else GENESIS

    def entries(self) -> list[Entry]:
        """Return the chain from its first entry."""
        query = "SELECT sequence, kind, body, digest FROM entries ORDER BY sequence"
        return [Entry(*row) for row in self.rows(query)]

    def value(self, key: str) -> str | None:
        """Return a named value, or None."""
        found = self.rows("SELECT value FROM ledger WHERE key = ?", (key,))
        return str(found[0][0]) if found else None

    def set_value(self, key: str, value: str) -> None:
        """Store a named value; inside a transaction."""
        self.run("INSERT OR REPLACE INTO ledger VALUES (?, ?)", (key, value))

    def remove_value(self, key: str) -> None:
        """Remove a named value if it is there; inside a transaction."""
        self.run("DELETE FROM ledger WHERE key = ?", (key,))

    def first_inconsistency(self) -> str | None:
        """Return what SQLite itself finds wrong with the file, or None."""
        found = str(self.rows("PRAGMA integrity_check(1)")[0][0])
        return None if found == "ok" else found

    def copy_to(self, path: Path) -> None:
        """Copy the ledger, as one consistent file without a log, to a path that is free."""
        target = sqlite3.connect(path)
        try:
            self._db.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
        finally:
            target.close()
