"""A ledger's counts and requests, read without opening it for writing: for status and for lists."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from storage.errors import LedgerError
from storage.ledger_records import ReleaseRecord, RequestRecord, Retraining
from storage.ledger_requests import COLUMNS

RETRAINING = "retraining"
"""The key of a ledger's value that describes the retraining under way."""


@dataclass(frozen=True)
class LedgerSummary:
    """Counts of a ledger.

    Attributes:
        releases: Committed releases.
        units_deleted: Units on the suppression list.
        requests_waiting: Requests accepted and not yet applied.
        unfinished: State of the batch that a crash or another process left half done, or None.
        last: The newest committed release, or None.
        retraining: The retraining that is under way, or None.
    """

    releases: int
    units_deleted: int
    requests_waiting: int
    unfinished: str | None
    last: ReleaseRecord | None = None
    retraining: Retraining | None = None


def summarize_ledger(path: Path) -> LedgerSummary | None:
    """Return the counts of the ledger at `path`, or None where there is none yet.

    Raises:
        LedgerError: The file is no ledger, or damaged.
    """
    if not path.exists():
        return None
    with _opened(path) as db:
        ((releases,),) = db.execute("SELECT count(*) FROM releases")
        ((deleted,),) = db.execute("SELECT count(*) FROM suppressed")
        ((waiting,),) = db.execute("SELECT count(*) FROM requests WHERE state = 'accepted'")
        batch = db.execute("SELECT state FROM batches WHERE state != 'erased'").fetchone()
        last = db.execute("SELECT record FROM releases ORDER BY release DESC LIMIT 1").fetchone()
        query = "SELECT value FROM ledger WHERE key = ?"
        retraining = db.execute(query, (RETRAINING,)).fetchone()
    return LedgerSummary(
        releases,
        deleted,
        waiting,
        batch[0] if batch else None,
        ReleaseRecord.read(last[0]) if last else None,
        read_retraining(retraining[0] if retraining else None),
    )


@dataclass(frozen=True)
class ListedRequest:
    """A request with what only its entry in the chain tells.

    Attributes:
        record: The request.
        received: When it came, UTC, ISO 8601; None where an earlier version accepted it.
        due: The day by which it is to be carried out, ISO 8601, or None.
    """

    record: RequestRecord
    received: str | None
    due: str | None


def list_requests(path: Path) -> list[ListedRequest]:
    """Return all requests of the ledger at `path`, oldest first; none where there is no ledger.

    Raises:
        LedgerError: The file is no ledger, or damaged.
    """
    if not path.exists():
        return []
    with _opened(path) as db:
        rows = db.execute(f"SELECT {COLUMNS} FROM requests ORDER BY request").fetchall()
        accepted = dict(db.execute(_ACCEPTED_ERRORS))
        # A number is used again after a withdrawal: the last entry is the one that counts.
        told = {number: dates for number, *dates in db.execute(_DATES)}
    records = [RequestRecord(*row) for row in rows]
    if accepted:
        records = [replace(r, accepted_error=accepted.get(str(r.request))) for r in records]
    return [ListedRequest(record, *told.get(record.request, (None, None))) for record in records]


@contextmanager
def ledger_snapshot(path: Path) -> Iterator[Path]:
    """Copy a ledger, as it stands at one moment, into a temporary folder; a writer may be at work.

    Raises:
        LedgerError: There is no ledger, or it is damaged.
    """
    if not path.is_file():
        raise LedgerError(f"{path} is not there: no request was ever accepted")
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        with _opened(path) as db, closing(sqlite3.connect(copy)) as target:
            db.backup(target)
        yield copy


_DATES = (
    "SELECT json_extract(body, '$.request'), json_extract(body, '$.received'), "
    "json_extract(body, '$.due') FROM entries WHERE kind = 'accepted' ORDER BY sequence"
)
_ACCEPTED_ERRORS = (
    "SELECT substr(key, 16), json_extract(value, '$.error') FROM ledger "
    "WHERE key GLOB 'accepted-error-*'"
)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a ledger for reading, as it stands at one moment."""
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.DatabaseError as error:  # such as a folder in its place
        raise _unreadable(path, error) from error
    try:
        db.execute("BEGIN")
        yield db
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from error
    finally:
        db.close()


def read_retraining(text: str | None) -> Retraining | None:
    """Return the retraining that a ledger's value describes, or None."""
    return None if text is None else Retraining(**json.loads(text))


def _unreadable(path: Path, error: sqlite3.DatabaseError) -> LedgerError:
    return LedgerError(f"{path} is not a ledger, or damaged ({error}); restore one from a backup")
