"""A ledger's counts, read without opening it for writing: for status and for what must wait."""

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from storage.errors import LedgerError
from storage.ledger_records import ReleaseRecord, Retraining

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
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.DatabaseError as error:  # such as a folder in its place
        raise _unreadable(path, error) from error
    try:
        ((releases,),) = db.execute("SELECT count(*) FROM releases")
        ((deleted,),) = db.execute("SELECT count(*) FROM suppressed")
        ((waiting,),) = db.execute("SELECT count(*) FROM requests WHERE state = 'accepted'")
        batch = db.execute("SELECT state FROM batches WHERE state != 'erased'").fetchone()
        last = db.execute("SELECT record FROM releases ORDER BY release DESC LIMIT 1").fetchone()
        query = "SELECT value FROM ledger WHERE key = ?"
        retraining = db.execute(query, (RETRAINING,)).fetchone()
    except sqlite3.DatabaseError as error:
        raise _unreadable(path, error) from error
    finally:
        db.close()
    return LedgerSummary(
        releases,
        deleted,
        waiting,
        batch[0] if batch else None,
        ReleaseRecord.read(last[0]) if last else None,
        read_retraining(retraining[0] if retraining else None),
    )


def read_retraining(text: str | None) -> Retraining | None:
    """Return the retraining that a ledger's value describes, or None."""
    return None if text is None else Retraining(**json.loads(text))


def _unreadable(path: Path, error: sqlite3.DatabaseError) -> LedgerError:
    return LedgerError(f"{path} is not a ledger, or damaged ({error}); restore one from a backup")
