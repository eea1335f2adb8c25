"""A killed writer loses nothing it listed, and lists nothing bad. 200 kills: `make torture`."""

import fcntl
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage import ApproximatorStore, StoreSpec
from storage.local_backend import LocalBackend
from tests.storage.store_cases import gaussian_rows, pseudonym

NUM_UNITS, BLOCK = 120, 4


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; its process id."""
    with warnings.catch_warnings():
        # The child touches no thread of the parent's.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def run_and_kill(work: Callable[[], None], seconds: float) -> bool:
    """Fork a child that works, SIGKILL it after a while; whether it had finished."""
    child = fork(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def write_what_is_missing(url: Path, rows_NP: np.ndarray) -> None:
    store = ApproximatorStore.open(url, "r+")
    for block in sorted(set(range(store.num_blocks)) - store.finished_blocks()):
        rows = store.block_units(block)
        store.write_rows(block, rows_NP[rows.start : rows.stop])
        if block % 5 == 4:
            store.merge()
    store.merge()


def survive_kills(folder: Path, num_kills: int) -> None:
    spec = StoreSpec(301, "int8", block=BLOCK)
    rng = np.random.default_rng(0)
    rows_NP = gaussian_rows(NUM_UNITS, 301)
    names = [f"unit {i}" for i in range(NUM_UNITS)]
    kills, stores = 0, 0
    while kills < num_kills:
        url = folder / f"{stores}.zarr"
        stores += 1
        store = ApproximatorStore.create(url, names, [1] * NUM_UNITS, spec)
        listed: frozenset[int] = frozenset()
        while len(listed) < store.num_blocks and kills < num_kills:
            seconds = float(rng.uniform(0.005, 0.12))
            kills += not run_and_kill(lambda url=url: write_what_is_missing(url, rows_NP), seconds)
            now = ApproximatorStore.open(url).finished_blocks()
            assert now >= listed, "a finished block was lost"
            listed = now
            store = ApproximatorStore.open(url, "r+")
            assert store.verify() == []
            store.merge()
            done = [row for block in sorted(listed) for row in store.block_units(block)]
            errors = np.abs(store.read_rows_at(done) - rows_NP[done])
            assert errors.size == 0 or errors.max() < 1e-5


def test_sigkills_during_writes_lose_no_finished_row(tmp_path: Path) -> None:
    survive_kills(tmp_path, 20)


@pytest.mark.torture
def test_200_sigkills_during_writes_lose_no_finished_row(tmp_path: Path) -> None:
    survive_kills(tmp_path, 200)


def erase_some(url: Path, units: list[str]) -> None:
    ApproximatorStore.open(url, "r+").erase(units, pseudonym)


def test_a_killed_erasure_is_finished_at_the_next_opening(tmp_path: Path) -> None:
    rows_NP = gaussian_rows(NUM_UNITS, 301)
    names = [f"unit {i}" for i in range(NUM_UNITS)]
    store = ApproximatorStore.create(
        tmp_path / "a.zarr", names, [1] * NUM_UNITS, StoreSpec(301, "int8", block=BLOCK)
    )
    write_what_is_missing(tmp_path / "a.zarr", rows_NP)
    for start in range(0, NUM_UNITS - 20, 20):
        units = names[start : start + 20]
        run_and_kill(lambda units=units: erase_some(tmp_path / "a.zarr", units), 0.02)
        store = ApproximatorStore.open(tmp_path / "a.zarr", "r+")
        assert set(store.states[start : start + 20]) in ({"erased"}, {"written"})
        assert store.verify() == []
        store.erase(units, pseudonym)
    kept = list(range(NUM_UNITS - 20, NUM_UNITS))
    assert np.abs(store.read_rows_at(kept) - rows_NP[kept]).max() < 1e-5


def write_half(url: Path, rows_NP: np.ndarray, half: int) -> None:
    for block in range(half, NUM_UNITS // BLOCK, 2):
        # Opened anew for each block, so that one writer sweeps while the other writes.
        store = ApproximatorStore.open(url, "r+")
        rows = store.block_units(block)
        store.write_rows(block, rows_NP[rows.start : rows.stop])


def test_two_processes_write_different_blocks_at_the_same_time(tmp_path: Path) -> None:
    rows_NP, url = gaussian_rows(NUM_UNITS, 301), tmp_path / "a.zarr"
    names = [f"unit {i}" for i in range(NUM_UNITS)]
    spec = StoreSpec(301, "float32", block=BLOCK)
    store = ApproximatorStore.create(url, names, [1] * NUM_UNITS, spec)
    children = [fork(lambda half=half: write_half(url, rows_NP, half)) for half in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert len(store.finished_blocks()) == store.num_blocks
    store.merge()
    assert np.array_equal(store.read_rows_at(range(NUM_UNITS)), rows_NP)
    assert store.verify() == []


def test_files_that_vanish_while_a_folder_is_listed_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = LocalBackend(tmp_path)
    backend.put("a/kept", b"1")
    backend.put("a/renamed", b"2")
    scandir = os.scandir

    def list_then_remove(path: Path) -> list[os.DirEntry[str]]:
        with scandir(path) as entries:
            found = list(entries)
        (tmp_path / "a/renamed").unlink()
        return found

    monkeypatch.setattr(os, "scandir", list_then_remove)
    assert backend.sizes("a") == {"a/kept": 1}


def test_a_lock_that_is_let_go_while_it_is_taken_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, flock = LocalBackend(tmp_path), fcntl.flock

    def unlink_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "a.lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", unlink_first)
    with backend.lock("a.lock", wait=False):
        assert (tmp_path / "a.lock").exists()
