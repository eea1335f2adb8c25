"""Deleting with many readers: the store of a run whose sums are made by the deletion actor."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from cluster.session import session
from cluster.worker_pool import SumRows, remote_sum
from pipeline.run.directory import RunDirectory
from storage.names import unit_names
from storage.store import ApproximatorStore


class SharedStore(ApproximatorStore):
    """A store that has its sums made elsewhere, to the same bits; all else is done here."""

    shared_sum: SumRows

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
        UnreachableError: If the cluster of `cluster.address` cannot be joined.
    """
    address = run.config.cluster.address
    with session(address, None if address is not None else num_readers):
        store = SharedStore.open(run.store_url, "r+")
        assert isinstance(store, SharedStore)
        store.shared_sum = remote_sum(run, num_readers)
        yield store
