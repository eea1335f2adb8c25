"""Keeping a run: backup and restore of its ledger, and removing what the operator still holds."""

import shutil
from pathlib import Path

from pipeline.deletion.backup import restore_ledger
from pipeline.deletion.delete import deletion_context, open_run, refuse_without_rows
from pipeline.deletion.row_copies import RowCopies
from pipeline.run.directory import RunDirectory
from storage.durable_write import write_atomically
from storage.store import ApproximatorStore


def _writable_store(run: RunDirectory) -> ApproximatorStore:
    refuse_without_rows(run)
    return ApproximatorStore.open(run.store_url, mode="r+")


def back_up(run: RunDirectory, folder: Path) -> None:
    """Copy the ledger and the noise-free sum to a new folder."""
    with open_run(run, _writable_store(run)) as releases:
        releases.backup(folder.absolute())


def restore(run: RunDirectory, folder: Path) -> int:
    """Put a backup in place and erase again whoever it knows as deleted; return how many."""
    store = _writable_store(run)
    facts = deletion_context(run, store)
    return restore_ledger(run.path, folder.absolute(), facts, store, (RowCopies(run.path),))


def prune(run: RunDirectory) -> None:
    """Remove internal/ and the trajectory, whose end is the model that knew everybody.

    Afterwards the releases stay as they are; deletion, repair and audit of this run have ended.
    """
    if not run.is_pruned():
        run.trajectory()
        with open_run(run, _writable_store(run)) as releases:
            releases.prune()
        write_atomically(run.path / "pruned", b"")
    # Repeated, so that a prune that was interrupted can be finished.
    held = [run.path / name for name in ("internal", "audit")]
    held += [run.state_folder, *run.path.glob("trajectory*")]
    for folder in held:
        if folder.exists():
            shutil.rmtree(folder)
