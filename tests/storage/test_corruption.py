"""Damage of every kind is refused before a sum. Full counts: `make torture`."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import ApproximatorStore, StoreSpec, verify_store
from storage.errors import LayoutError, RowCorruptError, StorageError
from tests.storage.store_cases import filled_store, gaussian_rows, write_all

NUM_UNITS = 8
# Rows of 1 MiB and more stand alone; smaller ones share an object.
SPECS = {
    "shared int8": StoreSpec(301, "int8", block=4),
    "shared float16": StoreSpec(301, "float16", block=4),
    "single float32": StoreSpec(262_200, "float32", block=4),
    "zstd": StoreSpec(301, "float16", block=4, codec="zstd"),
}


@pytest.fixture(params=SPECS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ApproximatorStore:
    spec = SPECS[request.param]
    rows_NP = gaussian_rows(NUM_UNITS, spec.num_parameters)
    return filled_store(tmp_path / "a.zarr", rows_NP, spec)


def objects(folder: Path) -> list[Path]:
    """The files that hold rows."""
    return sorted((folder / "a.zarr").rglob("c.*"))


def refuses(folder: Path) -> bool:
    """Whether opening and summing everything fails with an error of ours."""
    try:
        ApproximatorStore.open(folder / "a.zarr").sum_rows_at(range(NUM_UNITS))
    except StorageError:
        return True
    return False


def all_refused(folder: Path, damage: Callable[[Path, np.random.Generator], None], n: int) -> None:
    """Damage one random object n times; each must be refused, and the store heals in between."""
    rng = np.random.default_rng(0)
    assert not refuses(folder)
    for _ in range(n):
        path = objects(folder)[rng.integers(len(objects(folder)))]
        good = path.read_bytes()
        damage(path, rng)
        assert refuses(folder), f"{path.name} passed"
        path.write_bytes(good)
    assert not refuses(folder)


def flip_a_bit(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def truncate(path: Path, rng: np.random.Generator) -> None:
    os.truncate(path, int(rng.integers(path.stat().st_size)))


def remove(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, remove])
def test_damaged_objects_are_refused(
    store: ApproximatorStore, tmp_path: Path, damage: Callable[[Path, np.random.Generator], None]
) -> None:
    all_refused(tmp_path, damage, 5)


@pytest.mark.torture
@pytest.mark.parametrize(("damage", "count"), [(flip_a_bit, 1000), (truncate, 100), (remove, 100)])
def test_damaged_objects_are_refused_at_full_count(
    store: ApproximatorStore,
    tmp_path: Path,
    damage: Callable[[Path, np.random.Generator], None],
    count: int,
) -> None:
    all_refused(tmp_path, damage, count)


def swap_rows(folder: Path, spec: StoreSpec, first: int, second: int) -> None:
    """Exchange two rows' stored bytes, codes and scales."""
    for array in ("codes", "scales"):
        array_folder = folder / f"a.zarr/generation-0/{spec.encoding}/{array}"
        if not array_folder.exists():
            continue
        width = len(b"".join(p.read_bytes() for p in array_folder.glob("c.*"))) // NUM_UNITS
        data = (
            np.frombuffer(
                b"".join((array_folder / p).read_bytes() for p in chunk_names(array_folder)),
                np.uint8,
            )
            .reshape(NUM_UNITS, width)
            .copy()
        )
        data[[first, second]] = data[[second, first]]
        names = chunk_names(array_folder)
        for name, piece in zip(names, np.split(data, len(names)), strict=True):
            (array_folder / name).write_bytes(piece.tobytes())


def chunk_names(folder: Path) -> list[str]:
    return sorted((p.name for p in folder.glob("c.*")), key=lambda n: int(n.split(".")[1]))


def swaps_refused(store: ApproximatorStore, folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(count):
        first, second = rng.choice(NUM_UNITS, 2, replace=False).tolist()
        swap_rows(folder, store.spec, first, second)
        with pytest.raises(RowCorruptError, match="swapped"):
            store.sum_rows_at([first, second])
        swap_rows(folder, store.spec, first, second)
        assert not refuses(folder)


@pytest.mark.parametrize("name", ["shared int8", "single float32"])
def test_swapped_rows_are_refused(tmp_path: Path, name: str) -> None:
    rows_NP = gaussian_rows(NUM_UNITS, SPECS[name].num_parameters)
    swaps_refused(filled_store(tmp_path / "a.zarr", rows_NP, SPECS[name]), tmp_path, 5)


@pytest.mark.torture
@pytest.mark.parametrize("name", ["shared int8", "single float32"])
def test_swapped_rows_are_refused_at_full_count(tmp_path: Path, name: str) -> None:
    rows_NP = gaussian_rows(NUM_UNITS, SPECS[name].num_parameters)
    swaps_refused(filled_store(tmp_path / "a.zarr", rows_NP, SPECS[name]), tmp_path, 100)


def replays_refused(folder: Path, spec: StoreSpec, count: int) -> None:
    """Put objects of generation 0 in the place of those of generation 1."""
    old, new = (gaussian_rows(NUM_UNITS, spec.num_parameters, seed) for seed in (1, 2))
    store = filled_store(folder / "a.zarr", old, spec)
    shutil.copytree(folder / "a.zarr/generation-0", folder / "old")
    store.begin_generation()
    write_all(store, new)
    assert store.generation == 1
    olds = {
        p: folder / "old" / p.relative_to(folder / "a.zarr/generation-1") for p in objects(folder)
    }
    # Scales that are powers of two may be the same in both: nothing is replayed then.
    changed = [path for path, old in olds.items() if old.read_bytes() != path.read_bytes()]
    rng = np.random.default_rng(0)
    for _ in range(count):
        path = changed[rng.integers(len(changed))]
        good = path.read_bytes()
        shutil.copy(olds[path], path)
        assert refuses(folder)
        path.write_bytes(good)
    assert not refuses(folder)


@pytest.mark.parametrize("name", SPECS)
def test_rows_of_an_old_generation_are_refused(tmp_path: Path, name: str) -> None:
    replays_refused(tmp_path, SPECS[name], 3)


@pytest.mark.torture
@pytest.mark.parametrize("name", SPECS)
def test_rows_of_an_old_generation_are_refused_at_full_count(tmp_path: Path, name: str) -> None:
    replays_refused(tmp_path, SPECS[name], 100)


@pytest.fixture
def small_store(tmp_path: Path) -> Iterator[Path]:
    spec = StoreSpec(301, "int8", block=4, row_norm_cap=10.0)
    filled_store(tmp_path / "a.zarr", gaussian_rows(NUM_UNITS, 301), spec)
    yield tmp_path


def edits(document: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Path of every value of a JSON document."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield from edits(value, (*path, key))
    elif isinstance(document, list) and document:
        for i, value in enumerate(document):
            yield from edits(value, (*path, i))
    else:
        yield path


def edited(value: object) -> object:
    if isinstance(value, bool) or value is None:
        return 1
    if isinstance(value, int | float):
        return value + 1
    return value + "x" if isinstance(value, str) else ["x"]


def test_every_field_of_the_zarr_metadata_is_guarded(small_store: Path) -> None:
    checked = 0
    for path in sorted((small_store / "a.zarr").rglob("zarr.json")):
        good = path.read_bytes()
        for where in edits(json.loads(good)):
            document = json.loads(good)
            holder = document
            for key in where[:-1]:
                holder = holder[key]
            holder[where[-1]] = edited(holder[where[-1]])
            path.write_text(json.dumps(document, sort_keys=True, indent=1))
            with pytest.raises(LayoutError):
                ApproximatorStore.open(small_store / "a.zarr")
            checked += 1
        path.write_bytes(good)
    assert checked > 100
    assert not refuses(small_store)


def test_every_field_of_the_manifest_is_guarded(small_store: Path) -> None:
    path = small_store / "a.parquet"
    good = path.read_bytes()
    table = pq.read_table(path)
    for name in table.schema.names:
        values = table.column(name).to_pylist()
        values[3] = b"\0" * 32 if name == "digest" else edited(values[3])
        changed = table.set_column(
            table.schema.get_field_index(name), name, pa.array(values, table.field(name).type)
        )
        pq.write_table(changed, path)
        with pytest.raises(RowCorruptError, match=r"a\.parquet"):
            ApproximatorStore.open(small_store / "a.zarr")
    metadata = {**table.schema.metadata, b"approximator-manifest": b"{}"}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(RowCorruptError, match="seal"):
        ApproximatorStore.open(small_store / "a.zarr")
    path.write_bytes(good)
    assert not refuses(small_store)


def manifest_flips_refused(folder: Path, count: int) -> None:
    path = folder / "a.parquet"
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(count):
        flip_a_bit(path, rng)
        assert refuses(folder)
        truncate(path, rng)
        assert refuses(folder)
        path.write_bytes(good)
    assert not refuses(folder)


def test_a_damaged_manifest_is_refused_before_it_is_parsed(small_store: Path) -> None:
    manifest_flips_refused(small_store, 20)


@pytest.mark.torture
def test_a_damaged_manifest_is_refused_at_full_count(small_store: Path) -> None:
    manifest_flips_refused(small_store, 1000)


def test_a_sum_fails_whole_and_names_the_unit(small_store: Path) -> None:
    path = small_store / "a.zarr/generation-0/int8/codes/c.1.0"
    data = bytearray(path.read_bytes())
    data[301 + 5] ^= 1  # row 5, the second of the second block
    path.write_bytes(data)
    store = ApproximatorStore.open(small_store / "a.zarr")
    with pytest.raises(RowCorruptError, match="unit 5"):
        store.sum_rows_at(range(NUM_UNITS))
    with pytest.raises(RowCorruptError, match="unit 5"):
        store.read_rows_at([5])
    assert store.read_rows_at([4, 6]).shape == (2, 301)
    assert [damage.unit_or_object for damage in store.verify()] == ["unit 5"]


def test_a_link_in_an_objects_place_is_refused(small_store: Path) -> None:
    path = small_store / "a.zarr/generation-0/int8/codes/c.1.0"
    path.rename(small_store / "elsewhere")
    path.symlink_to(small_store / "elsewhere")
    with pytest.raises(RowCorruptError, match="cannot be read"):
        ApproximatorStore.open(small_store / "a.zarr").sum_rows_at(range(NUM_UNITS))


def test_verify_lists_all_damage_at_once(small_store: Path) -> None:
    codes = small_store / "a.zarr/generation-0/int8/codes"
    (codes / "c.0.0").unlink()
    (codes / "c.77.0").write_bytes(b"stray")
    data = bytearray((codes / "c.1.0").read_bytes())
    data[0] ^= 1
    (codes / "c.1.0").write_bytes(data)
    found = {damage.unit_or_object for damage in verify_store(small_store / "a.zarr")}
    stray = "a.zarr/generation-0/int8/codes/c.77.0"
    assert found == {"unit 0", "unit 1", "unit 2", "unit 3", "unit 4", stray}
    (small_store / "a.parquet").unlink()
    (damage,) = verify_store(small_store / "a.zarr")
    assert "missing" in damage.reason


def test_bytes_of_no_listed_row_are_found(tmp_path: Path) -> None:
    spec = StoreSpec(301, "float32", block=4)
    store = filled_store(tmp_path / "a.zarr", gaussian_rows(3, 301), spec)
    path = tmp_path / "a.zarr/generation-0/float32/codes/c.0.0"
    data = bytearray(path.read_bytes())
    data[-1] = 1
    path.write_bytes(data)
    (damage,) = store.verify()
    assert "not zero" in damage.reason
