"""Deleting from the command line: which units, from where, with which privacy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.certificates.declaring import refuse_undeclared
from pipeline.errors import ConfigError
from pipeline.forgetting import opened
from pipeline.releases.request_files import read_request_file
from pipeline.releases.requests import DeletionRequest, Receipt
from pipeline.rundir import RunDirectory
from storage.store import ApproximatorStore


@dataclass(frozen=True)
class DeletionOptions:
    """What a deletion may be asked beside its units; see `DeletionRequest`.

    More than one of `num_readers` has the sum shared among tasks on Ray, to the same bits.
    """

    request_id: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    skip_invalid: bool = False
    dry_run: bool = False
    num_readers: int = 1


def unit_names(ids: str | None, requests: Path | None, column: str | None) -> list[str]:
    """Return the units that `--ids` or `--requests` name.

    Raises:
        ConfigError: If neither or both are given, or no unit is named.
        RequestError: If the file cannot be read as what its name says.
    """
    if (ids is None) == (requests is None):
        raise ConfigError("give the units with either --ids 3,17 or --requests FILE")
    if requests is not None:
        return read_request_file(requests, column)
    if column is not None:
        raise ConfigError("--column belongs to --requests; --ids names units directly")
    names = [name.strip() for name in (ids or "").split(",")]
    if not any(names):
        raise ConfigError("--ids names no unit; give at least one, as in --ids 3,17")
    if not all(names):
        raise ConfigError(f"--ids {ids!r} has an empty name between commas")
    return names


def delete_units(run: RunDirectory, names: Sequence[str], options: DeletionOptions) -> Receipt:
    """Carry out a deletion request on a run whose rows are all stored.

    Raises:
        ConfigError: If rows are still missing.
        UnitsRefusedError: If units are unknown or deleted already; nothing is changed.
    """
    run.trajectory()
    if not run.manifest_exists() and run.config.storage.url is None:
        raise ConfigError(f"{run.path} has no approximators yet; run `unlearn precompute` first")
    refuse_undeclared(run)
    with _store(run, options) as store:
        return _delete_from(run, store, names, options)


@contextmanager
def _store(run: RunDirectory, options: DeletionOptions) -> Iterator[ApproximatorStore]:
    # For a dry run as well: what a crash left half done is finished before any answer is true.
    if options.num_readers == 1:
        yield ApproximatorStore.open(run.store_url, "r+")
        return
    from cluster.shared_store import shared_store  # Ray takes seconds to import

    with shared_store(run, options.num_readers) as store:
        yield store


def _delete_from(
    run: RunDirectory, store: ApproximatorStore, names: Sequence[str], options: DeletionOptions
) -> Receipt:
    # While a repair is under way the old generation serves, which was whole before it began.
    waiting = store.num_blocks - len(store.finished_blocks())
    if waiting and store.building is None:
        raise ConfigError(
            f"{waiting} of {store.num_blocks} blocks of {run.path} are not computed yet; run "
            "`unlearn precompute` first"
        )
    request = DeletionRequest(
        units=names,
        request_id=options.request_id,
        epsilon=options.epsilon,
        delta=options.delta,
        skip_invalid=options.skip_invalid,
        dry_run=options.dry_run,
    )
    with opened(run, store) as releases:
        return releases.delete(request)
