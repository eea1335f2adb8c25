"""The commands backup, restore, prune and data fetch."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli_options import RunFolder, open_directory
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.run.directory import RunDirectory
    from storage.store import ApproximatorStore


def backup(
    folder: RunFolder,
    to: Annotated[Path, typer.Option("--to", help="A folder that does not exist yet.")],
) -> None:
    """Copy the ledger and the noise-free sum to a new folder."""
    back_up(open_directory(folder), to)
    typer.echo(str(to))


def restore(
    folder: RunFolder,
    source: Annotated[Path, typer.Option("--from", help="A folder made by `unlearn backup`.")],
) -> None:
    """Restore the ledger from a backup. Erases again all units that it lists as deleted."""
    typer.echo(f"units erased again: {restore_backup(open_directory(folder), source)}")


def prune(
    folder: RunFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
) -> None:
    """Remove remaining traces of deleted units. No deletion, repair or audit is possible then."""
    opened = open_directory(folder)
    if not yes:
        typer.confirm(
            f"After this no other unit can be deleted from {opened.path}. Continue?", abort=True
        )
    prune_run(opened)
    typer.echo("pruned")


def upgrade(folder: RunFolder) -> None:
    """Convert the run's store to the newest format that suits its size. Crash-safe; may be repeated."""
    before, after = upgrade_run(open_directory(folder))
    done = "nothing to do" if before == after else f"was {before}"
    typer.echo(f"format version {after} ({done})")


data = typer.Typer(help="Download data sets.", no_args_is_help=True)


@data.command()
def fetch(
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist, cifar10, celeba, ...")],
    folder: Annotated[Path | None, typer.Option("--to", help="Folder; default data/NAME.")] = None,
) -> None:
    """Download a data set, or list the files to download by hand."""
    from pipeline.data.fetch import fetch as download

    typer.echo(str(download(name, folder)))


@data.callback()
def sources() -> None:
    """Make `data` a group of commands, however many it has."""


def upgrade_run(run: "RunDirectory") -> tuple[int, int]:
    """Bring a run's store to today's format; return its version before and after.

    Raises:
        WriterConflictError: If a driver or a deletion is at work on the run.
        ConfigError: If there are no approximators, or the store is another run's.
        StorageError: If the store is damaged, or its rows are being replaced.
    """
    from pipeline.deletion.delete import refuse_without_rows
    from pipeline.run.directory import exclusive
    from storage.run_lock import RunLock
    from storage.upgrade import upgrade_store

    refuse_without_rows(run)
    stored = run.stored()
    if stored is None:
        raise ConfigError(f"{run.path} has no approximators yet; run `unlearn precompute` first")
    run.refuse_store_of_another(stored.store_id)
    with exclusive(run), RunLock(run.ledger_lock_path):
        return upgrade_store(run.store_url)


def _writable_store(run: "RunDirectory") -> "ApproximatorStore":
    from pipeline.deletion.delete import refuse_without_rows
    from storage.store import ApproximatorStore

    refuse_without_rows(run)
    return ApproximatorStore.open(run.store_url, mode="r+")


def back_up(run: "RunDirectory", folder: Path) -> None:
    """Copy the ledger and the noise-free sum to a new folder."""
    from pipeline.deletion.delete import open_run

    with open_run(run, _writable_store(run)) as releases:
        releases.backup(folder.absolute())


def restore_backup(run: "RunDirectory", folder: Path) -> int:
    """Restore a backup and erase again the units that it knows as deleted; return how many."""
    from pipeline.deletion.backup import restore_ledger
    from pipeline.deletion.delete import deletion_context
    from pipeline.deletion.row_copies import RowCopies

    store = _writable_store(run)
    facts = deletion_context(run, store)
    return restore_ledger(run.path, folder.absolute(), facts, store, (RowCopies(run.path),))


def prune_run(run: "RunDirectory") -> None:
    """Remove internal/, inputs/ and the trajectory, which ends at the model trained on all units.

    Afterwards the releases stay as they are; deletion, repair and audit of this run have ended.
    """
    from pipeline.deletion.delete import open_run
    from pipeline.run.checkpoints import INPUTS
    from storage.durable_write import write_atomically

    if not run.is_pruned():
        run.trajectory()
        with open_run(run, _writable_store(run)) as releases:
            releases.prune()
        write_atomically(run.path / "pruned", b"")
    # Repeated, so that a prune that was interrupted can be finished.
    held = [run.path / name for name in ("internal", "audit", INPUTS)]
    held += [run.state_folder, *run.path.glob("trajectory*")]
    for folder in held:
        if folder.exists():
            shutil.rmtree(folder)
