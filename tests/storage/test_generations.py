"""A repaired run stores its rows anew, beside the old ones until all are there."""

from pathlib import Path

import numpy as np
import pytest

from storage import ApproximatorStore, StoreSpec
from storage.catalog import Catalog
from storage.erasure import listed_rows
from storage.errors import RowCorruptError, UnitErasedError
from storage.opening import locate, open_hierarchy
from tests.storage.store_cases import filled_store, gaussian_rows, pseudonym, write_all

OLD, NEW = gaussian_rows(5, 301, seed=1), gaussian_rows(5, 301, seed=2)
SPEC = StoreSpec(301, "float32", block=2)


def test_the_old_generation_is_whole_until_the_new_one_is_complete(tmp_path: Path) -> None:
    store = filled_store(tmp_path / "a.zarr", OLD, SPEC)
    reader = ApproximatorStore.open(tmp_path / "a.zarr")
    assert store.begin_generation() == store.begin_generation() == 1
    assert store.finished_blocks() == frozenset()
    store.write_rows(0, NEW[:2])
    store.write_rows(2, NEW[4:])
    store.merge()
    assert (store.generation, store.finished_blocks()) == (0, {0, 2})
    assert np.array_equal(reader.read_rows_at(range(5)), OLD)
    assert store.verify() == []
    store.write_rows(1, NEW[2:4])
    store.merge()
    assert (store.generation, reader.generation) == (1, 1)
    assert np.array_equal(reader.read_rows_at(range(5)), NEW)
    assert not (tmp_path / "a.zarr/generation-0").exists()
    assert store.verify() == []


@pytest.mark.parametrize("is_new", [False, True])
def test_no_row_is_missed_while_another_process_merges(
    is_new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled_store(tmp_path / "a.zarr", OLD, SPEC)
    if is_new:
        store.begin_generation()
    for block, rows in enumerate((OLD[:2], OLD[2:4], OLD[4:])):
        store.write_rows(block, rows)
    part_keys = Catalog.part_keys

    def merge_just_before(catalog: Catalog) -> dict[tuple[int, int], str]:
        monkeypatch.setattr(Catalog, "part_keys", part_keys)
        store.merge()
        return part_keys(catalog)

    hierarchy, catalog = open_hierarchy(*locate(tmp_path / "a.zarr"))
    catalog.load()
    monkeypatch.setattr(Catalog, "part_keys", merge_just_before)
    listed = listed_rows(hierarchy, catalog)
    assert set().union(*listed.values()) == set(range(5))


def test_erased_units_stay_erased_in_a_new_generation(tmp_path: Path) -> None:
    store = filled_store(tmp_path / "a.zarr", OLD, SPEC)
    store.erase(["unit 1"], pseudonym)
    store.begin_generation()
    damaged = NEW.copy()
    damaged[1] = np.nan  # rows of erased units are not looked at
    store.write_rows(0, damaged[:2])
    store.erase(["unit 2"], pseudonym)
    write_all(store, damaged)
    assert store.generation == 1
    for row in (1, 2):
        with pytest.raises(UnitErasedError):
            store.read_rows_at([row])
    assert np.array_equal(store.read_rows_at([0, 3, 4]), NEW[[0, 3, 4]])
    assert store.units == ("unit 0", "", "", "unit 3", "unit 4")
    assert store.facts().rows_erased == 2
    assert store.verify() == []


def test_erasing_while_a_new_generation_is_written_erases_from_both(tmp_path: Path) -> None:
    store = filled_store(tmp_path / "a.zarr", OLD, SPEC)
    store.begin_generation()
    store.write_rows(0, NEW[:2])
    store.erase(["unit 0"], pseudonym)
    for row_P in (OLD[0], NEW[0]):
        needle = row_P[:8].tobytes()
        assert not any(needle in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert not any(b"unit 0" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert np.array_equal(store.read_rows_at([1, 2]), OLD[[1, 2]])
    assert store.verify() == []


def test_a_damaged_part_is_written_again(tmp_path: Path) -> None:
    names = [f"unit {i}" for i in range(5)]
    store = ApproximatorStore.create(tmp_path / "a.zarr", names, [1] * 5, SPEC)
    store.write_rows(1, OLD[2:4])
    (part,) = (tmp_path / "a.parts").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-3])
    assert store.finished_blocks() == frozenset()
    with pytest.raises(RowCorruptError, match="block-1"):
        store.merge()
    write_all(store, OLD)
    assert np.array_equal(store.read_rows_at(range(5)), OLD)


def test_damaged_objects_are_healed_by_writing_the_same_rows(tmp_path: Path) -> None:
    store = filled_store(tmp_path / "a.zarr", OLD, SPEC)
    path = tmp_path / "a.zarr/generation-0/float32/codes/c.0.0"
    path.write_bytes(path.read_bytes()[:-1])
    assert [damage.unit_or_object for damage in store.verify()] == ["unit 0", "unit 1"]
    store.write_rows(0, OLD[:2])
    store.merge()
    assert store.verify() == []
    assert np.array_equal(store.read_rows_at(range(5)), OLD)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_rows_of_zeros_outlive_their_erased_neighbour(tmp_path: Path, codec: str) -> None:
    rows_NP = np.zeros((2, 301), np.float32)
    store = filled_store(tmp_path / "a.zarr", rows_NP, StoreSpec(301, block=2, codec=codec))
    store.erase(["unit 0"], pseudonym)
    assert np.array_equal(store.read_rows_at([1]), rows_NP[1:])
    assert store.verify() == []


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("num_parameters", [301, 300_001])
@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_no_file_holds_an_erased_row(
    tmp_path: Path, encoding: str, num_parameters: int, codec: str
) -> None:
    spec = StoreSpec(num_parameters, encoding, block=2, codec=codec)  # type: ignore[arg-type]
    rows_NP = gaussian_rows(4, num_parameters)
    store = filled_store(tmp_path / "a.zarr", rows_NP, spec)
    kept = store.read_rows_at([0, 2])
    store.erase(["unit 1", "unit 3"], pseudonym)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"unit 1" not in data and b"unit 3" not in data
    import zarr

    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")[f"generation-0/{encoding}"]
    for _, array in group.arrays():
        assert not array[1].any() and not array[3].any()
        assert array[0].any()
    assert np.array_equal(store.read_rows_at([0, 2]), kept)
    assert store.verify() == []
