"""Refusing a request for its error while the run is closed, so that not even a lock is touched.

Opening a run for deletions makes its ledger, names the process in its lock and completes what a crash
left half done. A request that the gate refuses must change nothing, so it is asked first, on a copy of
the ledger. Where the answer is yes, the opened run is asked again, under its lock.
"""

from contextlib import closing
from pathlib import Path

from pipeline.deletion.context import DeletionContext, RowStore
from pipeline.deletion.files import ReleasePaths
from pipeline.deletion.requests import DeletionRequest
from pipeline.deletion.verification import copied_ledger
from storage.durable_write import no_faults
from storage.errors import LedgerError, StorageError
from storage.ledger_file import LedgerFile
from storage.ledger_records import ReleaseRecord
from storage.ledger_requests import LedgerRequests
from storage.pseudonym import PseudonymKey, load_key


def refuse_unopened(
    run_dir: Path, facts: DeletionContext, store: RowStore, request: DeletionRequest
) -> None:
    """Raise if the gate refuses a request to a run that is not open.

    What cannot be told without opening, such as from a damaged ledger, is left to the opening.

    Raises:
        ErrorLimitError: The measured error of so many units is above the limit.
    """
    if not facts.gate.can_refuse(store.num_units, facts.rule.num_samples):
        return
    paths = ReleasePaths(run_dir)
    try:
        if paths.ledger.exists():
            with copied_ledger(paths.ledger) as copy, closing(_opened(copy)) as file:
                counted = _counted(file, load_key(run_dir, create=False), facts, request)
        else:
            counted = _asked(facts, request, set())
    except StorageError:
        return
    if counted is not None:
        facts.gate.decide(*counted, request.accept_error)


def _opened(copy: Path) -> LedgerFile:
    if not copy.is_file():
        raise LedgerError(f"{copy} is no ledger")
    return LedgerFile(copy, {}, no_faults)


def _counted(
    file: LedgerFile, key: PseudonymKey, facts: DeletionContext, request: DeletionRequest
) -> tuple[int, int] | None:
    """Return the units and samples deleted after a request; None where it deletes no unit."""
    requests = LedgerRequests(file)
    if request.request_id and requests.find(key.request(request.request_id)) is not None:
        return None  # answered with its first receipt
    names = request.names()
    pseudonyms = key.units(names)
    named = requests.named_among(pseudonyms)
    gone = {name for name, unit in zip(names, pseudonyms, strict=True) if unit in named}
    mine = _asked(facts, request, gone)
    if mine is None or file.value("retraining") is not None:
        return None  # nothing to delete, or the retrained model's to delete
    ((units, samples),) = file.rows(
        "SELECT coalesce(sum(num_units), 0), coalesce(sum(num_samples), 0) FROM requests "
        "WHERE state IN ('accepted', 'batched')"
    )
    rows = file.rows("SELECT record FROM releases ORDER BY release DESC LIMIT 1")
    last = ReleaseRecord.read(rows[0][0]) if rows else None
    if last is not None and last.generation == facts.generation:
        units, samples = units + last.total_units, samples + last.total_samples
    return mine[0] + int(units), mine[1] + int(samples)


def _asked(
    facts: DeletionContext, request: DeletionRequest, gone: set[str]
) -> tuple[int, int] | None:
    """Return the units and samples that a request itself would delete; None for none."""
    owned = facts.samples_per_unit
    valid = [name for name in request.names() if name in owned and name not in gone]
    return (len(valid), sum(owned[name] for name in valid)) if valid else None
