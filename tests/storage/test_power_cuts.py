"""A power cut between any two file operations of each kind of change, one after the other."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from storage import ApproximatorStore, StoreSpec, opening
from tests.storage.fragile_backend import FragileBackend, PowerCutError
from tests.storage.store_cases import filled_store, gaussian_rows, pseudonym

Change = Callable[[ApproximatorStore], None]
OLD, NEW = gaussian_rows(6, 40, seed=1), gaussian_rows(6, 40, seed=2)
SPEC = StoreSpec(40, "float32", block=3)


def empty(folder: Path) -> None:
    names = [f"unit {i}" for i in range(6)]
    ApproximatorStore.create(folder / "a.zarr", names, [1] * 6, SPEC)


def half_written(folder: Path) -> None:
    empty(folder)
    ApproximatorStore.open(folder / "a.zarr", "r+").write_rows(0, OLD[:3])


def full(folder: Path) -> None:
    filled_store(folder / "a.zarr", OLD, SPEC)


def repaired(folder: Path) -> None:
    full(folder)
    store = ApproximatorStore.open(folder / "a.zarr", "r+")
    store.begin_generation()
    for block in range(2):
        store.write_rows(block, NEW[3 * block : 3 * block + 3])


def write(store: ApproximatorStore) -> None:
    store.write_rows(1, OLD[3:])


def erase(store: ApproximatorStore) -> None:
    store.erase(["unit 1", "unit 3"], pseudonym)


def merge(store: ApproximatorStore) -> None:
    store.merge()


def begin(store: ApproximatorStore) -> None:
    store.begin_generation()


def check(store: ApproximatorStore, finished: frozenset[int]) -> None:
    """What must hold after any cut: nothing listed is bad, and nothing finished is lost."""
    assert store.verify() == []
    assert store.finished_blocks() >= finished or store.generation > 0
    rows_NP = NEW if store.generation else OLD
    written = [row for row in range(6) if store.states[row] == "written"]
    assert np.array_equal(store.read_rows_at(written), rows_NP[written])
    assert len({store.states[1], store.states[3]} & {"erased"}) == (store.states[1] == "erased")


CHANGES = [
    (half_written, write),
    (half_written, merge),
    (half_written, erase),
    (full, erase),
    (full, begin),
    (repaired, merge),
    (repaired, erase),
]


@pytest.fixture(params=CHANGES, ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}")
def change(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Change:
    """A change to the store that lies in `tmp_path / "start"`."""
    prepare, wanted = request.param
    (tmp_path / "start").mkdir()
    prepare(tmp_path / "start")
    monkeypatch.setattr(opening, "LocalBackend", FragileBackend)
    monkeypatch.setattr(FragileBackend, "unsynced", {})
    return cast(Change, wanted)


def test_a_power_cut_after_every_third_file_operation_breaks_nothing(
    tmp_path: Path, change: Change
) -> None:
    fuse = 0
    while cut_off(tmp_path, change, fuse, seed=fuse % 4):
        fuse += 3
    assert fuse >= 6


@pytest.mark.torture
def test_a_power_cut_between_any_two_file_operations_breaks_nothing(
    tmp_path: Path, change: Change
) -> None:
    fuse, seed = 0, 0
    while cut_off(tmp_path, change, fuse, seed):
        fuse, seed = (fuse, seed + 1) if seed < 7 else (fuse + 1, 0)
    assert fuse >= 5


def cut_off(folder: Path, change: Change, fuse: int, seed: int) -> bool:
    """Change a copy of the store, die after `fuse` operations; whether it died before the end."""
    shutil.copytree(folder / "start", folder / "copy")
    store = ApproximatorStore.open(folder / "copy/a.zarr", "r+")
    finished = frozenset() if change is begin else store.finished_blocks()
    FragileBackend.unsynced.clear()
    FragileBackend.fuse, FragileBackend.undone = fuse, seed
    died = False
    try:
        change(store)
    except PowerCutError:
        died = True
    finally:
        FragileBackend.fuse = None
    store = ApproximatorStore.open(folder / "copy/a.zarr", "r+")
    check(store, finished)
    # The work goes on as if nothing had happened.
    change(store)
    check(store, frozenset())
    shutil.rmtree(folder / "copy")
    return died
