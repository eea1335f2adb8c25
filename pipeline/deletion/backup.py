"""Backup and restore of a ledger, with the noise-free sum whose digest it holds.

A backup is a folder, mode 0700: `ledger.sqlite`, once something was deleted the sum, and of a run with
class terms these, but not the masses of its units, which a deletion could not erase there. It is as
confidential as internal/ is. Restoring replays the suppression list: a unit that
is deleted in the backup and has an approximator again, because the store came from an older copy, is
erased again.

A backup that is older than the store or than the ledger in place is refused: it would bring back
people whose rows no longer exist.
"""

import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from pipeline.deletion.class_terms import INDEX
from pipeline.deletion.context import DeletionContext, Erasable, RowStore
from pipeline.deletion.files import ReleasePaths, read_sum
from pipeline.deletion.staging import OpenRun
from pipeline.deletion.suppression import refuse_older_ledger, replay_suppression
from pipeline.errors import RequestError
from storage.durable_write import sync_folder
from storage.errors import LedgerError
from storage.ledger import Ledger
from storage.ledger_records import first_break
from storage.pseudonym import load_key
from storage.run_lock import RunLock

_LEDGER = "ledger.sqlite"


def back_up(run: OpenRun, folder: Path) -> None:
    """Write a backup to a folder that does not exist yet.

    Raises:
        RequestError: Something is there.
    """
    if folder.exists():
        raise RequestError(f"{folder} exists; name a folder that does not")
    # A name of its own: what bears another's name is not ours to remove.
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir(mode=0o700, parents=True)
    run.ledger.file.copy_to(partial / _LEDGER)
    last = run.ledger.last_release()
    if last is not None and not run.ledger.is_pruned():
        path = run.paths.weighted_sum(last.release)
        shutil.copyfile(path, partial / path.name)
    terms = run.facts.terms
    if terms is not None:
        _copy_terms(terms.folder, partial / terms.folder.name)
    _make_durable(partial)
    partial.rename(folder)
    sync_folder(folder.parent)


def restore_ledger(
    run_dir: Path,
    backup: Path,
    facts: DeletionContext,
    store: RowStore,
    also_erase: Sequence[Erasable] = (),
) -> int:
    """Put a backup in place of a run's ledger and replay its suppression list.

    Args:
        run_dir: The run's folder.
        backup: A folder that `back_up` wrote.
        facts: What a deletion must know of the run.
        store: Its rows, opened for writing.
        also_erase: Whatever else inside the run may hold rows.

    Returns:
        How many units were erased again.

    Raises:
        LedgerError: The backup is damaged, of another run or key, or older than the ledger here.
        DamagedRunError: The backup is older than the store.
    """
    paths, key = ReleasePaths(run_dir), load_key(run_dir)
    with RunLock(paths.lock), ExitStack() as stack:
        paths.create()
        fresh = ReleasePaths(paths.restored)
        stack.callback(shutil.rmtree, fresh.root, ignore_errors=True)
        shutil.rmtree(fresh.root, ignore_errors=True)
        _copy_backup(backup, fresh)
        with closing(Ledger(fresh.ledger, facts.run_digest, key.check_value())) as ledger:
            run = OpenRun(facts, store, tuple(also_erase), fresh, ledger, key)
            _check_intact(run)
            _check_newer_than_ledger(run, paths.ledger)
            refuse_older_ledger(run)
        _put_in_place(fresh, paths)
        with closing(Ledger(paths.ledger, facts.run_digest, key.check_value())) as ledger:
            return replay_suppression(replace(run, paths=paths, ledger=ledger))


def _copy_backup(backup: Path, fresh: ReleasePaths) -> None:
    if not (backup / _LEDGER).is_file():
        raise RequestError(f"{backup} is not a backup: it holds no {_LEDGER}")
    fresh.root.mkdir(mode=0o700)
    fresh.internal.mkdir(mode=0o700)
    shutil.copyfile(backup / _LEDGER, fresh.ledger)
    for path in backup.glob("weighted-sum-*.safetensors"):
        shutil.copyfile(path, fresh.internal / path.name)
    for folder in backup.glob("class-terms-*"):
        _copy_terms(folder, fresh.internal / folder.name)
    _make_durable(fresh.root)


def _copy_terms(source: Path, target: Path) -> None:
    """Copy class terms and their index, and no masses of units."""
    target.mkdir(mode=0o700)
    for path in (source / INDEX, *source.glob("term-*.safetensors")):
        if path.is_file() and not path.is_symlink():
            shutil.copyfile(path, target / path.name)


def _check_intact(run: OpenRun) -> None:
    broken = first_break(run.ledger.file.entries())
    if broken is not None:
        raise LedgerError(f"the backup's entry {broken} does not follow; take another backup")
    last = run.ledger.last_release()
    if last is not None and not run.ledger.is_pruned():
        path = run.paths.weighted_sum(last.release)
        read_sum(path, last.sum_digest, run.facts.trained_P.size)


def _check_newer_than_ledger(run: OpenRun, present: Path) -> None:
    """Refuse to lose entries of the ledger in place, if there is one that can be read."""
    if not present.exists():
        return
    try:
        with closing(Ledger(present, run.facts.run_digest, run.key.check_value())) as ledger:
            entries = ledger.file.entries()
    except LedgerError:
        return  # what is in place is damaged, which is what a restore is for
    known = {entry.digest for entry in run.ledger.file.entries()}
    if first_break(entries) is None and entries[-1].digest not in known:
        raise LedgerError(
            f"{present} holds entries that the backup does not; restoring it would forget "
            "deletions. Keep the ledger in place, or restore a newer backup"
        )


def _put_in_place(fresh: ReleasePaths, paths: ReleasePaths) -> None:
    """Replace the ledger; a crash before the last rename leaves a restore to be repeated."""
    for path in fresh.internal.iterdir():
        if path.is_dir():
            _put_terms_in_place(path, paths.internal / path.name)
        else:
            path.replace(paths.internal / path.name)
    sync_folder(paths.internal)
    for suffix in ("-wal", "-shm"):
        # The log of the ledger that is replaced must not be replayed into the restored one.
        paths.ledger.with_name(paths.ledger.name + suffix).unlink(missing_ok=True)
    fresh.ledger.replace(paths.ledger)
    sync_folder(paths.root)


def _put_terms_in_place(fresh: Path, target: Path) -> None:
    """Put back the class terms that are missing or differ, where the run still has that generation."""
    if not target.is_dir() or target.is_symlink():
        return
    # The index last, as it was written.
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == INDEX):
        path.replace(target / path.name)
    sync_folder(target)


def _make_durable(folder: Path) -> None:
    """Fsync a folder, everything in it, and close both to others."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            sync_folder(path)
            continue
        path.chmod(0o600)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
