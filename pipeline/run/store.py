"""The run's approximator store: made once, opened by every worker that fills it."""

from pipeline.config import StorageConfig
from pipeline.errors import ConfigError
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.sizes import stored_encoding
from storage.errors import LayoutError
from storage.layout import StoreSpec
from storage.store import ApproximatorStore


def store_spec(config: StorageConfig, num_parameters: int) -> StoreSpec:
    """Return what the store promises, with "auto" settled.

    Args:
        config: Of a problem, so that the block is a number.
        num_parameters: P.
    """
    assert config.block != "auto", "a problem settles the block"
    cap = None if config.row_error_cap == "auto" else config.row_error_cap
    return StoreSpec(
        num_parameters=num_parameters,
        encoding=stored_encoding(config, num_parameters),
        block=config.block,
        row_error_cap=cap,
        row_norm_cap=config.row_norm_cap,
        codec=config.codec,
    )


def check_store(run: RunDirectory) -> None:
    """Ask for the place of the rows before training, which may take days.

    Raises:
        ConfigError: If a store is there already: it cannot be of a run that is not trained.
        BackendUnavailableError: If `storage.url` does not answer or refuses access.
    """
    if run.config.storage.url is None:
        return
    try:
        ApproximatorStore.open(run.store_url)
    except LayoutError:
        return
    raise ConfigError(_of_another_run(run))


def _of_another_run(run: RunDirectory) -> str:
    other = "--out" if run.config.storage.url is None else "storage.url"
    return f"the store at {run.store_url} is another run's; move it away, or choose another {other}"


def open_store(run: RunDirectory, problem: Problem) -> ApproximatorStore:
    """Open the run's store for writing; make it if there is none.

    Raises:
        ConfigError: If the store at `storage.url` is of other units or another encoding.
    """
    spec = store_spec(run.config.storage, problem.num_parameters)
    try:
        store = ApproximatorStore.open(run.store_url, mode="r+")
    except LayoutError as error:
        data = problem.data
        try:
            # The trajectory's digest names the store: another run's cannot pass for this one's.
            return ApproximatorStore.create(
                run.store_url, data.units, problem.unit_masses(), spec, run.store_id()
            )
        except LayoutError:
            # Something is there, and what is wrong with it was said first.
            raise error from None
    if store.store_id != run.store_id():
        raise ConfigError(_of_another_run(run))
    return store


def refuse_repaired(run: RunDirectory, store: ApproximatorStore) -> None:
    """Raise ConfigError if the rows are no longer those of the training."""
    if store.generation:
        raise ConfigError(
            f"{run.path} was repaired: its rows belong to the repaired model, and trials and audits "
            "compare with the trained one; use a fresh run of the same configuration"
        )
