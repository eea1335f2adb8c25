"""The ledger of a run: which deletions were asked for, which are done, what privacy they spent.

A request is accepted, batched, committed, done. A batch, which becomes the release of the same
number, is open, committed, published, erased. One transaction commits: its requests are applied,
the release exists, its privacy is spent and its units are suppressed, all or nothing. SQLite in WAL
mode with `synchronous=FULL` makes a returned call durable; `secure_delete` overwrites what is
removed. The ledger decides nothing about mathematics or files: `pipeline.release` does.

One process at a time: the caller holds `storage.run_lock.RunLock`.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from storage.chain import GENESIS, Entry, canonical, link
from storage.errors import LedgerError
from storage.ledger_records import (
    LEDGER_VERSION,
    SCHEMA,
    BatchState,
    NewRequest,
    ReleaseRecord,
    RequestRecord,
)

Faults = Callable[[str], None]
_REQUEST_COLUMNS = (
    "request, request_id, set_digest, num_units, epsilon, delta, state, release, receipt"
)


def no_faults(point: str) -> None:
    """Let every crash point pass; tests put a crash in its place."""


def unit_set_digest(pseudonyms: Iterable[str]) -> str:
    """Return one digest of a set of pseudonyms, whatever their order and repetitions."""
    text = "".join(sorted(set(pseudonyms)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Ledger:
    """The ledger of one run, opened for writing.

    Args:
        path: The SQLite file; created where there is none.
        run_digest: Digest of the trajectory the ledger belongs to.
        key_check: `PseudonymKey.check_value()` of the key its pseudonyms are made with.
        faults: Called with the name of each crash point as it is passed.

    Raises:
        LedgerError: The file is no ledger, of a newer version, of another run or another key.
    """

    def __init__(
        self, path: Path, run_digest: str, key_check: str, faults: Faults = no_faults
    ) -> None:
        self.path = path
        self._faults = faults
        self._db = connect(path)
        expected = {
            "version": str(LEDGER_VERSION),
            "run_digest": run_digest,
            "key_check": key_check,
        }
        try:
            self._create_or_check(expected)
        except BaseException:
            self._db.close()
            raise

    def _create_or_check(self, expected: dict[str, str]) -> None:
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'ledger'").fetchone():
            with self._transaction("create"):
                for statement in SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.executemany("INSERT INTO ledger VALUES (?, ?)", expected.items())
                self._append("created", {"run": expected["run_digest"]})
            return
        found = dict(self._db.execute("SELECT key, value FROM ledger"))
        advice = {
            "version": "open it with the version of the program that wrote it",
            "run_digest": "this ledger belongs to another run; restore this run's own",
            "key_check": "name the key file that this ledger was begun with in UNLEARN_KEY_FILE",
        }
        for field, value in expected.items():
            if found.get(field) != value:
                raise LedgerError(
                    f"{self.path}: expected {field} {value}, found {found.get(field)}; "
                    f"{advice[field]}"
                )

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()

    # --- requests -------------------------------------------------------------------------------

    def accept(self, request: NewRequest) -> RequestRecord:
        """Store a request durably.

        Raises:
            LedgerError: Its id or one of its units was accepted before.
        """
        with self._transaction("accept"):
            cursor = self._db.execute(
                "INSERT INTO requests (request_id, set_digest, num_units, epsilon, delta, state) "
                "VALUES (?, ?, ?, ?, ?, 'accepted')",
                (
                    request.request_id,
                    request.set_digest,
                    len(request.units),
                    request.epsilon,
                    request.delta,
                ),
            )
            number = cursor.lastrowid
            self._db.executemany(
                "INSERT INTO request_units VALUES (?, ?)", ((u, number) for u in request.units)
            )
            self._append(
                "accepted",
                {
                    "request": number,
                    "request_id": request.request_id,
                    "set": request.set_digest,
                    "units": unit_set_digest(request.units),
                    "num_units": len(request.units),
                    "epsilon": request.epsilon,
                    "delta": request.delta,
                },
            )
        return self.request(int(number or 0))

    def withdraw(self, request: int) -> None:
        """Forget a waiting request that was answered with an error; its id is free again."""
        with self._transaction("withdraw"):
            deleted = self._db.execute(
                "DELETE FROM requests WHERE request = ? AND state = 'accepted'", (request,)
            )
            if deleted.rowcount != 1:
                raise LedgerError(f"request {request} does not wait; it cannot be withdrawn")
            self._db.execute("DELETE FROM request_units WHERE request = ?", (request,))
            self._append("withdrawn", {"request": request})

    def find_request(self, request_id: str) -> RequestRecord | None:
        """Return the request with this pseudonymous id, or None."""
        return next(iter(self._requests("request_id = ?", (request_id,))), None)

    def waiting(self) -> list[RequestRecord]:
        """Return the accepted requests that no batch holds, oldest first."""
        return self._requests("state = 'accepted' ORDER BY request", ())

    def requests_of(self, release: int) -> list[RequestRecord]:
        """Return the requests of a batch, oldest first."""
        return self._requests("release = ? ORDER BY request", (release,))

    def request(self, number: int) -> RequestRecord:
        """Return a request by its number."""
        return self._requests("request = ?", (number,))[0]

    def units_of_request(self, number: int) -> list[str]:
        """Return the pseudonyms that a request deletes or has deleted, ascending."""
        rows = self._db.execute(
            "SELECT unit FROM suppressed WHERE request = ?1 UNION "
            "SELECT unit FROM request_units WHERE request = ?1 ORDER BY unit",
            (number,),
        )
        return [unit for (unit,) in rows]

    def _requests(self, where: str, values: Sequence[object]) -> list[RequestRecord]:
        rows = self._db.execute(f"SELECT {_REQUEST_COLUMNS} FROM requests WHERE {where}", values)
        return [RequestRecord(*row) for row in rows]

    def waiting_among(self, units: Sequence[str]) -> set[str]:
        """Return which of these units an uncommitted request already names."""
        return self._among("request_units", units)

    def suppressed_among(self, units: Sequence[str]) -> set[str]:
        """Return which of these units are deleted."""
        return self._among("suppressed", units)

    def _among(self, table: str, units: Sequence[str]) -> set[str]:
        rows = self._db.execute(
            f"SELECT unit FROM {table} WHERE unit IN (SELECT value FROM json_each(?))",
            (json.dumps(units),),
        )
        return {unit for (unit,) in rows}

    def num_waiting_units(self) -> int:
        """Return how many units the uncommitted requests name."""
        return int(self._db.execute("SELECT count(*) FROM request_units").fetchone()[0])

    # --- the life of a batch --------------------------------------------------------------------

    def begin_batch(self, requests: Sequence[RequestRecord]) -> int:
        """Put accepted requests into a new batch and return its number."""
        with self._transaction("batch"):
            if self.unfinished() is not None:
                raise LedgerError("a batch is under way; recover it before beginning another")
            row = self._db.execute("SELECT coalesce(max(release), 0) + 1 FROM releases").fetchone()
            number = int(row[0])
            self._db.execute("INSERT INTO batches VALUES (?, 'open')", (number,))
            self._db.executemany(
                "UPDATE requests SET state = 'batched', release = ? WHERE request = ?",
                ((number, request.request) for request in requests),
            )
            self._append("batched", {"release": number, "requests": [r.request for r in requests]})
        return number

    def roll_back(self, release: int) -> None:
        """Take back a batch that was not committed; its requests wait again."""
        with self._transaction("roll-back"):
            self._expect_batch(release, "open")
            self._db.execute(
                "UPDATE requests SET state = 'accepted', release = NULL WHERE release = ?",
                (release,),
            )
            self._db.execute("DELETE FROM batches WHERE release = ?", (release,))
            self._append("rolled-back", {"release": release})

    def commit(self, record: ReleaseRecord) -> None:
        """Apply a batch: the one transaction that decides."""
        with self._transaction("commit"):
            self._expect_batch(record.release, "open")
            self._db.execute(
                "INSERT INTO suppressed SELECT unit, request, ? FROM request_units "
                "WHERE request IN (SELECT request FROM requests WHERE release = ?)",
                (record.release, record.release),
            )
            self._db.execute(
                "DELETE FROM request_units WHERE request IN "
                "(SELECT request FROM requests WHERE release = ?)",
                (record.release,),
            )
            self._db.execute(
                "UPDATE requests SET state = 'committed' WHERE release = ?", (record.release,)
            )
            body = asdict(record)
            self._db.execute(
                "INSERT INTO releases VALUES (?, ?)", (record.release, canonical(body))
            )
            self._set_batch(record.release, "committed")
            units = unit_set_digest(self.units_of(record.release))
            self._append("committed", {**body, "units": units})

    def mark_published(self, release: int) -> None:
        """Record that the release stands in its place."""
        with self._transaction("publish"):
            self._expect_batch(release, "committed")
            self._set_batch(release, "published")
            self._append("published", {"release": release})

    def finish(self, release: int, receipts: Sequence[tuple[int, str]]) -> None:
        """Record that the rows are erased, with the receipt (JSON) of each request."""
        with self._transaction("finish"):
            self._expect_batch(release, "published")
            self._set_batch(release, "erased")
            self._db.executemany(
                "UPDATE requests SET state = 'done', receipt = ? WHERE request = ?",
                ((receipt, request) for request, receipt in receipts),
            )
            digests = [[request, _digest(receipt)] for request, receipt in receipts]
            self._append("erased", {"release": release, "receipts": digests})

    def unfinished(self) -> tuple[int, BatchState] | None:
        """Return the batch that is under way and its state, or None."""
        row = self._db.execute(
            "SELECT release, state FROM batches WHERE state != 'erased'"
        ).fetchone()
        return None if row is None else (int(row[0]), row[1])

    def _expect_batch(self, release: int, state: BatchState) -> None:
        if self.unfinished() != (release, state):
            raise LedgerError(
                f"expected batch {release} to be {state}, found {self.unfinished()}; "
                "open the run again, which recovers it"
            )

    def _set_batch(self, release: int, state: BatchState) -> None:
        self._db.execute("UPDATE batches SET state = ? WHERE release = ?", (state, release))

    # --- what is known --------------------------------------------------------------------------

    def units_of(self, release: int) -> list[str]:
        """Return the pseudonyms of a batch, ascending, before and after its commit."""
        rows = self._db.execute(
            "SELECT unit FROM suppressed WHERE release = ?1 UNION SELECT unit FROM request_units "
            "WHERE request IN (SELECT request FROM requests WHERE release = ?1) ORDER BY unit",
            (release,),
        )
        return [unit for (unit,) in rows]

    def suppressed(self) -> list[str]:
        """Return the pseudonym of every deleted unit, ascending."""
        return [u for (u,) in self._db.execute("SELECT unit FROM suppressed ORDER BY unit")]

    def releases(self) -> list[ReleaseRecord]:
        """Return every committed release, oldest first."""
        rows = self._db.execute("SELECT record FROM releases ORDER BY release")
        return [ReleaseRecord(**json.loads(record)) for (record,) in rows]

    def entries(self) -> Iterator[Entry]:
        """Yield the chain from its first entry."""
        for row in self._db.execute(
            "SELECT sequence, kind, body, digest FROM entries ORDER BY sequence"
        ):
            yield Entry(*row)

    def head(self) -> str:
        """Return the digest of the last entry."""
        row = self._db.execute(
            "SELECT digest FROM entries ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        return GENESIS if row is None else str(row[0])

    def backup(self, path: Path) -> None:
        """Copy the ledger, as one consistent file without a log, to a path that is free."""
        target = sqlite3.connect(path)
        try:
            self._db.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
        finally:
            target.close()

    # --- transactions ---------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, name: str) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._faults(f"{name}:before-commit")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        self._faults(f"{name}:after-commit")

    def _append(self, kind: str, body: dict[str, object]) -> None:
        text = canonical(body)
        self._db.execute(
            "INSERT INTO entries (kind, body, digest) VALUES (?, ?, ?)",
            (kind, text, link(self.head(), kind, text)),
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def connect(path: Path) -> sqlite3.Connection:
    """Open a SQLite file the way the ledger needs it.

    Raises:
        LedgerError: The file is not a SQLite database.
    """
    fresh = not path.exists()
    if fresh:
        path.touch(mode=0o600)
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA foreign_keys = ON")
    except sqlite3.DatabaseError as error:
        db.close()
        raise LedgerError(f"{path} is not a ledger ({error}); restore one from a backup") from error
    return db
