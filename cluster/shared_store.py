"""Deleting with several readers: a run's store whose sums the deletion actor computes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cluster.ray_choice import LOCAL, NO_RAY, cluster_of_environment
from cluster.session import session
from pipeline.errors import ConfigError
from pipeline.run.directory import RunDirectory
from storage.names import unit_names
from storage.store import ApproximatorStore

if TYPE_CHECKING:
    from pipeline.deletion.weights import SumRows


class SharedStore(ApproximatorStore):
    """A store that has its sums made elsewhere, to the same bits; all else is done here."""

    shared_sum: "SumRows"

    def sum_rows(
        self,
        units: Sequence[str | int],
        weights: Sequence[int] | None = None,
        *,
        num_threads: int = 1,
    ) -> npt.NDArray[np.float64]:
        """Sum weight times row, float64 (P,), as `ApproximatorStore.sum_rows` does."""
        total_P, _ = self.shared_sum(unit_names(units), None if weights is None else list(weights))
        # What comes through Ray's object store is read only, and the caller adds to it in place.
        return np.require(total_P, np.float64, "W")


@contextmanager
def shared_store(run: RunDirectory, num_readers: int) -> Iterator[SharedStore]:
    """Open a run's store with a deletion actor and its readers, on Ray.

    Raises:
        ConfigError: If `cluster.address` is none.
        UnreachableError: If the cluster of `cluster.address` cannot be joined.
    """
    address = run.config.cluster.address
    if address == NO_RAY:
        raise ConfigError(
            f"--readers {num_readers} shares the sum on Ray, but cluster.address is none; leave "
            "--readers away, or set cluster.address to local"
        )
    if address == "auto":
        # Readers were asked for, so Ray is.
        address = cluster_of_environment() or LOCAL
    with session(address, num_readers if address == LOCAL else None):
        from cluster.ray_pool import remote_sum

        store = SharedStore.open(run.store_url, "r+")
        assert isinstance(store, SharedStore)
        with remote_sum(run, num_readers) as store.shared_sum:
            yield store
