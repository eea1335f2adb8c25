"""What a ledger holds, in numbers, read without its lock while another process may be writing."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from storage.errors import LedgerError


@dataclass(frozen=True)
class LedgerSummary:
    """Counts of a ledger.

    Attributes:
        releases: Committed releases.
        units_deleted: Units on the suppression list.
        requests_waiting: Requests accepted and not yet applied.
        unfinished: State of the batch that a crash or another process left half done, or None.
    """

    releases: int
    units_deleted: int
    requests_waiting: int
    unfinished: str | None


def summarize_ledger(path: Path) -> LedgerSummary | None:
    """Return the counts of the ledger at `path`, or None where there is none yet.

    Raises:
        LedgerError: The file is no ledger, or damaged.
    """
    if not path.exists():
        return None
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        ((releases,),) = db.execute("SELECT count(*) FROM releases")
        ((deleted,),) = db.execute("SELECT count(*) FROM suppressed")
        ((waiting,),) = db.execute("SELECT count(*) FROM requests WHERE state = 'accepted'")
        batch = db.execute("SELECT state FROM batches WHERE state != 'erased'").fetchone()
    except sqlite3.DatabaseError as error:
        raise LedgerError(
            f"{path} is not a ledger, or damaged ({error}); restore one from a backup"
        ) from error
    finally:
        db.close()
    return LedgerSummary(releases, deleted, waiting, batch[0] if batch else None)
