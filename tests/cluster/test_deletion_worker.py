"""Shared sums: the bits of the serial sum for any number of readers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cluster.deletion_worker import DeletionWorker, Share, sum_share
from pipeline.approximators.precompute import precompute
from pipeline.run.directory import RunDirectory
from storage.errors import UnknownUnitError
from storage.store import ApproximatorStore
from tests.cluster.small_run import NUM_UNITS, trained_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = trained_run(tmp_path_factory.mktemp("run") / "run")
    precompute(run)
    return run


def one_after_the_other(
    store_url: str | Path, shares: Sequence[Share], add: Callable[[npt.NDArray[np.float64]], None]
) -> None:
    for share in shares:
        add(sum_share(store_url, share))


@pytest.mark.parametrize("num_readers", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("weighted", [False, True])
def test_readers_give_the_bits_of_the_serial_sum(
    run: RunDirectory, num_readers: int, weighted: bool
) -> None:
    store = ApproximatorStore.open(run.store_url)
    units = list(store.units)[::-1]
    weights = [1 + 3 * row for row in range(NUM_UNITS)] if weighted else None
    worker = DeletionWorker(run.path, 1, num_readers, one_after_the_other)
    total_P, _ = worker.sum_rows(units, weights)
    assert np.array_equal(total_P, store.sum_rows(units, weights))
    assert np.abs(total_P).max() > 0


def test_a_unit_that_comes_twice_is_refused_though_two_readers_could_hold_it(
    run: RunDirectory,
) -> None:
    worker = DeletionWorker(run.path, 1, 2, one_after_the_other)
    with pytest.raises(ValueError, match="twice"):
        worker.sum_rows(["0", "1", "2", "0"], None)


def test_an_unknown_unit_in_one_share_leaves_no_sum(run: RunDirectory) -> None:
    worker = DeletionWorker(run.path, 1, 2, one_after_the_other)
    with pytest.raises(UnknownUnitError):
        worker.sum_rows(["0", "1", "2", "nobody"], None)
