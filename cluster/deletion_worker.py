"""The worker that sums rows for a deletion, in an actor or in the driver's process."""

# P parameters

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.heap import keep_freed_memory
from pipeline.run.directory import RunDirectory
from storage.store import ApproximatorStore


@dataclass(frozen=True)
class Share:
    """The part of a sum that one reader computes.

    Attributes:
        units: Names of rows.
        weights: Integer per row; None counts each once.
    """

    units: tuple[str, ...]
    weights: tuple[int, ...] | None


def sum_share(store_url: str | Path, share: Share) -> npt.NDArray[np.float64]:
    """Return the weighted sum of a share's rows, float64 (P,).

    Raises:
        StorageError: If any row is missing, damaged or erased.
    """
    return ApproximatorStore.open(store_url).sum_rows(share.units, share.weights)


SumShares = Callable[[str | Path, Sequence[Share], Callable[[npt.NDArray[np.float64]], None]], None]
"""Sums shares of a store and passes on each sum, in the order of the shares."""


class DeletionWorker:
    """Reads and sums rows; needs the run's files, not its data or model."""

    def __init__(
        self,
        run_path: str | Path,
        num_threads: int = 1,
        num_readers: int = 1,
        sum_shares: SumShares | None = None,
    ) -> None:
        """Open the run's store for reading.

        Args:
            run_path: Run directory.
            num_threads: Threads of a sum that is not shared.
            num_readers: Readers that share a batch of at least that many units.
            sum_shares: Has readers sum the shares; None sums here.
        """
        keep_freed_memory()
        self._num_threads, self._num_readers = num_threads, num_readers
        self._sum_shares = sum_shares
        self._store_url = RunDirectory.open(run_path).store_url
        self._store = ApproximatorStore.open(self._store_url)

    def sum_rows(
        self, units: Sequence[str], weights: Sequence[int] | None
    ) -> tuple[npt.NDArray[np.float64], float]:
        """Return the weighted sum of rows, float64 (P,), and the seconds it took.

        However many readers share it, the bits are those of `ApproximatorStore.sum_rows`: sums on
        the store's grid add up exactly.

        Raises:
            StorageError: If any row is missing, damaged or erased; there is no partial sum.
        """
        began = time.perf_counter()
        if self._sum_shares is None or self._num_readers < 2 or len(units) < self._num_readers:
            total_P = self._store.sum_rows(units, weights, num_threads=self._num_threads)
        else:
            total_P = self._sum_with_readers(self._sum_shares, units, weights)
        return total_P, time.perf_counter() - began

    def _sum_with_readers(
        self, sum_shares: SumShares, units: Sequence[str], weights: Sequence[int] | None
    ) -> npt.NDArray[np.float64]:
        if len(set(units)) < len(units):
            # Each reader sees its own share alone, so what comes twice is found here.
            raise ValueError("a sum takes each unit once; one comes twice")
        grid = self._store.grid(weighted=weights is not None)
        total_P = np.zeros(self._store.spec.num_parameters)

        def add(partial_P: npt.NDArray[np.float64]) -> None:
            grid.add(total_P, partial_P)

        shares = split_into_shares(units, weights, self._num_readers)
        sum_shares(self._store_url, shares, add)
        return total_P


def split_into_shares(
    units: Sequence[str], weights: Sequence[int] | None, num_shares: int
) -> list[Share]:
    """Cut a batch into runs of neighbouring units, as equal as can be: rows share objects.

    >>> [share.units for share in split_into_shares("abcde", None, 2)]
    [('a', 'b', 'c'), ('d', 'e')]
    """
    size, longer = divmod(len(units), num_shares)
    shares, start = [], 0
    for number in range(num_shares):
        stop = start + size + (number < longer)
        chosen = None if weights is None else tuple(weights[start:stop])
        shares.append(Share(tuple(units[start:stop]), chosen))
        start = stop
    return [share for share in shares if share.units]
