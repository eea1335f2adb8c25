"""Version 2 against crashes beside a writer that goes on, failing disks, and awkward sizes."""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from storage import ApproximatorStore, StoreSpec, opening
from storage.errors import LayoutError, StorageError, UnknownUnitError
from storage.local_backend import LocalBackend
from storage.manifest_index import parse_index
from storage.opening import locate, open_hierarchy
from storage.upgrade import upgrade_store
from tests.storage.fragile_backend import FragileBackend, PowerCutError
from tests.storage.store_cases import filled_store, gaussian_rows, pseudonym, write_all

SPEC = StoreSpec(24, "float32", block=2)
ROWS = gaussian_rows(11, 24)


pytestmark = pytest.mark.usefixtures("segments_of_three_rows")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    filled_store(tmp_path / "store/a.zarr", ROWS, SPEC)
    return tmp_path / "store"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of version 1 that would be created in version 2 today."""
    with monkeypatch.context() as patch:
        patch.setattr("storage.layout.WHOLE_MANIFEST_UNITS", 100)
        filled_store(tmp_path / "store/a.zarr", ROWS, SPEC)
    return tmp_path / "store"


def assert_forgotten(folder: Path, *units: str) -> None:
    """No file spells the names, and none lies there that the manifest does not name."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(unit.encode() in content for unit in units), path
    index = parse_index((folder / "a.manifest/index.json").read_bytes(), "index")
    there = {path.name for path in (folder / "a.manifest").iterdir()}
    assert there == {"index.json", *index.keys()}
    assert not (folder / "a.parquet").exists() and not any((folder / "a.parts").iterdir())
    assert ApproximatorStore.open(folder / "a.zarr", "r+").verify() == []


# After every fourth file operation, and at `make torture` after each.
EVERY = pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.torture)])


def crashes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, change: Callable[[Path], object]
) -> Iterator[tuple[Path, ApproximatorStore]]:
    """Copies whose change died after a number of file operations; a store of each, opened before."""
    monkeypatch.setattr(FragileBackend, "unsynced", {})
    fuse, died = 0, True
    while died:
        copy = folder.with_name("copy")
        shutil.copytree(folder, copy)
        beside = ApproximatorStore.open(copy / "a.zarr", "r+")
        FragileBackend.unsynced.clear()
        FragileBackend.fuse, FragileBackend.undone = fuse, 0
        died = False
        with monkeypatch.context() as patch:
            patch.setattr(opening, "LocalBackend", FragileBackend)
            try:
                change(copy / "a.zarr")
            except PowerCutError:
                died = True
            finally:
                FragileBackend.fuse = None
        yield copy, beside
        shutil.rmtree(copy)
        fuse += step
    assert fuse > 10


@EVERY
def test_a_writer_beside_one_that_died_while_it_erased_leaves_no_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def change(url: Path) -> None:
        ApproximatorStore.open(url, "r+").erase(["unit 4"], pseudonym)

    for copy, beside in crashes(folder, monkeypatch, step, change):
        begun = (copy / "a.parts/erasure.json").exists() or pseudonym("unit 4") in beside.erased
        beside.erase(["unit 5", "unit 8"], pseudonym)
        assert_forgotten(copy, "unit 5", "unit 8", *(["unit 4"] if begun else []))
        assert np.array_equal(beside.read_rows(["unit 3"]), ROWS[3:4])


@EVERY
def test_a_writer_beside_one_that_died_while_it_merged_leaves_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder = tmp_path / "store"
    names = [f"unit {i}" for i in range(11)]
    store = ApproximatorStore.create(folder / "a.zarr", names, [1] * 11, SPEC)
    for block in range(store.num_blocks):
        rows = store.block_units(block)
        store.write_rows(block, ROWS[rows.start : rows.stop])

    def change(url: Path) -> None:
        ApproximatorStore.open(url, "r+").merge()

    for copy, beside in crashes(folder, monkeypatch, step, change):
        beside.erase(["unit 5"], pseudonym)
        beside.merge()
        beside.erase(["unit 8"], pseudonym)
        assert_forgotten(copy, "unit 5", "unit 8")


@EVERY
def test_a_writer_beside_one_that_died_while_it_gave_up_rows_leaves_no_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    ApproximatorStore.open(folder / "a.zarr", "r+").begin_generation()

    def change(url: Path) -> None:
        ApproximatorStore.open(url, "r+").give_up_rows()

    for copy, beside in crashes(folder, monkeypatch, step, change):
        beside.erase(["unit 5"], pseudonym)
        assert_forgotten(copy, "unit 5")


@EVERY
def test_a_writer_opened_before_an_upgrade_is_refused_or_leaves_no_name(
    old: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    refused = set()
    for copy, beside in crashes(old, monkeypatch, step, upgrade_store):
        try:
            beside.erase(["unit 5"], pseudonym)
            refused.add(False)
        except LayoutError as error:
            assert "open it again" in str(error)
            refused.add(True)
            ApproximatorStore.open(copy / "a.zarr", "r+").erase(["unit 5"], pseudonym)
        spelled = [p for p in copy.rglob("*") if p.is_file() and b"unit 5" in p.read_bytes()]
        assert spelled == []
        # Of a manifest that does not count, nothing is left either.
        assert (copy / "a.parquet").exists() != (copy / "a.manifest/index.json").exists()
        upgrade_store(copy / "a.zarr")
        assert_forgotten(copy, "unit 5")
    assert refused == {True, False}


def test_a_reader_opened_before_an_upgrade_is_told_to_open_it_again(old: Path) -> None:
    reader = ApproximatorStore.open(old / "a.zarr")
    upgrade_store(old / "a.zarr")
    with pytest.raises(LayoutError, match="open it again"):
        reader.read_rows(["unit 1"])


def test_an_erasure_that_a_disk_interrupted_and_that_is_repeated_leaves_no_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = LocalBackend._unlink
    for prefix in ("rows-", "names-", "erased-"):
        store = ApproximatorStore.open(folder / "a.zarr", "r+")
        unit = f"unit {3 + len(store.erased)}"

        def fail(self: LocalBackend, path: Path, prefix: str = prefix) -> bool:
            if path.name.startswith(prefix) and not path.name.endswith(".partial"):
                raise OSError(5, os.strerror(5))
            return unlink(self, path)

        with monkeypatch.context() as patch:
            patch.setattr(LocalBackend, "_unlink", fail)
            with pytest.raises((StorageError, OSError)):
                store.erase([unit], pseudonym)
        store.erase([unit], pseudonym)
        assert_forgotten(folder, unit)


def test_writers_that_erase_at_once_erase_all(folder: Path) -> None:
    stores = [ApproximatorStore.open(folder / "a.zarr", "r+") for _ in range(5)]
    units = [[f"unit {i}"] for i in (0, 1, 4, 9, 10)]
    units[1].append("unit 0")
    with ThreadPoolExecutor(5) as pool:
        list(
            pool.map(
                lambda each: each[0].erase(each[1], pseudonym), zip(stores, units, strict=True)
            )
        )
    assert_forgotten(folder, *(unit for each in units for unit in each if unit != "unit 1"))
    assert ApproximatorStore.open(folder / "a.zarr").num_erased == 5


@pytest.mark.parametrize("num_units", [1, 2, 3, 4, 6, 7])
def test_every_size_around_a_segment_lives_through_its_whole_life(
    tmp_path: Path, num_units: int
) -> None:
    rows = gaussian_rows(num_units, 24)
    store = filled_store(tmp_path / "a.zarr", rows, SPEC)
    names = [f"unit {i}" for i in range(num_units)]
    assert np.array_equal(store.read_rows(names), rows)
    # From the end, so that whole segments become empty.
    for left in range(num_units - 1, -1, -1):
        reader = ApproximatorStore.open(tmp_path / "a.zarr")
        assert reader.num_erased == num_units - left - 1
        store.erase([names[left]], pseudonym)
        assert reader.states == ("written",) * left + ("erased",) * (num_units - left)
        if left % 2:
            write_all(store, rows)
        else:
            store.begin_generation()
            store.give_up_rows()
            write_all(store, rows)
        assert np.array_equal(reader.read_rows(names[:left]), rows[:left])
        with pytest.raises(UnknownUnitError):
            reader.read_rows([names[left]])
        assert store.verify() == [] and store.units == (*names[:left], *[""] * (num_units - left))
    assert not any(b"unit " in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_a_reader_keeps_its_place_while_all_rows_are_given_up(folder: Path) -> None:
    _, catalog = open_hierarchy(*locate(folder / "a.zarr"))
    manifest = catalog.load()
    store = ApproximatorStore.open(folder / "a.zarr", "r+")
    store.erase([f"unit {i}" for i in range(3, 11)], pseudonym)
    store.begin_generation()
    store.give_up_rows()
    # Its index names files that are gone, and more segments than there are units left.
    assert manifest.find("unit 1").row == 1
    assert [row for row, _, _ in manifest.lines()] == [0, 1, 2]
    with pytest.raises(UnknownUnitError):
        manifest.find("unit 9")


def test_a_list_that_changes_while_it_is_checked_is_not_called_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage import manifest_check
    from storage.segment_files import SegmentFiles

    _, catalog = open_hierarchy(*locate(folder / "a.zarr"))
    assert catalog.segmented is not None
    writer, segment = ApproximatorStore.open(folder / "a.zarr", "r+"), SegmentFiles.segment
    waiting = ["unit 9", "unit 1"]

    def read(self: SegmentFiles, *words: object, **options: object) -> object:
        if self is files and waiting:
            writer.erase([waiting.pop()], pseudonym)
        return segment(self, *words, **options)  # type: ignore[arg-type]

    files = catalog.segmented.files
    monkeypatch.setattr(SegmentFiles, "segment", read)
    assert list(manifest_check.check_index(files)) == []
    assert not waiting
