"""What is refused at the edge, and leaves the store as it was."""

import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from storage import ApproximatorStore, StoreSpec
from storage.errors import (
    LayoutError,
    StorageFullError,
    UnknownUnitError,
    WriterConflictError,
)
from storage.layout import canonical_json
from storage.local_backend import LocalBackend
from tests.storage.store_cases import filled_store, gaussian_rows, pseudonym

SPEC = StoreSpec(301, "float32", block=2)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("../x", "path"),
        ("a/../b", "path"),
        ("..\\x", "path"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("\ud800", "control"),
        ("x" * 10_000, "10000 bytes"),
        ("", "non-empty"),
        ("unit 0", "twice"),
        (7, "text"),
    ],
)
def test_a_bad_unit_name_is_refused_and_nothing_created(
    tmp_path: Path, unit: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ApproximatorStore.create(tmp_path / "a.zarr", ["unit 0", unit], [1, 1], SPEC)  # type: ignore[list-item]
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/a.zarr", "credentials"),
        ("s3://bucket/a.zarr?aws_secret_access_key=x", "credentials"),
        ("https://user@host/a.zarr", "credentials"),
        ("folder/approximators", "zarr"),
        ("folder/...zarr", "zarr"),
        ("folder/a\0b.zarr", "zarr"),
    ],
)
def test_a_bad_url_is_refused(url: str, message: str) -> None:
    for attempt in (
        lambda: ApproximatorStore.create(url, ["a"], [1], SPEC),
        lambda: ApproximatorStore.open(url),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()


def test_a_key_cannot_leave_the_folder(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path / "run")
    for key in ("../x", "a/../../x", "/etc/passwd", "a\0b"):
        with pytest.raises(ValueError, match="relative path"):
            backend.put(key, b"")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"num_parameters": 0},
        {"block": 0},
        {"encoding": "float64"},
        {"codec": "pickle"},
        {"row_error_cap": -1.0},
        {"row_error_cap": float("nan")},
        {"row_norm_cap": float("inf")},
    ],
)
def test_a_bad_specification_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        StoreSpec(**{"num_parameters": 301, **change})  # type: ignore[arg-type]


def test_counts_that_do_not_match_the_units_are_refused(tmp_path: Path) -> None:
    for units, counts in ((["a"], [1, 2]), ([], []), (["a"], [-1])):
        with pytest.raises(ValueError, match=r"counts|units"):
            ApproximatorStore.create(tmp_path / "a.zarr", units, counts, SPEC)
    for units, counts in (("ab", [1, 1]), ({"a": 1}, [1]), (["a"], [1.5]), (["a"], ["1"])):
        with pytest.raises(TypeError, match=r"list of units|whole numbers"):
            ApproximatorStore.create(tmp_path / "a.zarr", units, counts, SPEC)  # type: ignore[arg-type]
    assert contents(tmp_path) == {}


def test_a_store_is_never_created_over_another(tmp_path: Path) -> None:
    filled_store(tmp_path / "a.zarr", gaussian_rows(3, 301), SPEC)
    before = contents(tmp_path)
    with pytest.raises(LayoutError, match="already"):
        ApproximatorStore.create(tmp_path / "a.zarr", ["a"], [1], SPEC)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("version", "advice"), [(3, "newer"), (0, "wrote it"), ("1", "newer")])
def test_a_store_of_another_version_is_refused_with_advice(
    tmp_path: Path, version: object, advice: str
) -> None:
    filled_store(tmp_path / "a.zarr", gaussian_rows(3, 301), SPEC)
    path = tmp_path / "a.zarr/zarr.json"
    document = json.loads(path.read_bytes())
    document["attributes"]["format_version"] = version
    path.write_bytes(canonical_json(document))
    with pytest.raises(LayoutError, match=advice):
        ApproximatorStore.open(tmp_path / "a.zarr")


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="missing"):
        ApproximatorStore.open(tmp_path / "a.zarr")
    (tmp_path / "a.zarr").mkdir()
    for text in ("", "[]", "{}", '{"attributes": {"format": "other", "format_version": 1}}'):
        (tmp_path / "a.zarr/zarr.json").write_text(text)
        with pytest.raises(LayoutError):
            ApproximatorStore.open(tmp_path / "a.zarr")


def test_a_manifest_of_another_store_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        filled_store(tmp_path / f"{name}.zarr", gaussian_rows(3, 301), SPEC)
    (tmp_path / "b.parquet").replace(tmp_path / "a.parquet")
    with pytest.raises(LayoutError, match="another store"):
        ApproximatorStore.open(tmp_path / "a.zarr")


def test_unknown_units_are_named(tmp_path: Path) -> None:
    store = filled_store(tmp_path / "a.zarr", gaussian_rows(3, 301), SPEC)
    before = contents(tmp_path)
    for unit in ("unit 3", 3, -1):
        with pytest.raises(UnknownUnitError, match=str(unit)):
            store.sum_rows(["unit 0", unit])
        with pytest.raises(UnknownUnitError, match=str(unit)):
            store.erase(["unit 0", unit], pseudonym)
    for row in (3, -1):
        with pytest.raises(UnknownUnitError, match=f"0..2, found {row}"):
            store.sum_rows_at([0, row])
        with pytest.raises(UnknownUnitError, match=f"0..2, found {row}"):
            store.read_rows_at([0, row])
    for bad in (lambda unit: unit, lambda unit: "unit 1", lambda unit: "", lambda unit: "x"):
        with pytest.raises(ValueError, match=r"pseudonym|unit"):
            store.erase(["unit 0", "unit 2"], bad)
    assert contents(tmp_path) == before


def test_a_store_opened_for_reading_is_not_written(tmp_path: Path) -> None:
    filled_store(tmp_path / "a.zarr", gaussian_rows(3, 301), SPEC)
    store = ApproximatorStore.open(tmp_path / "a.zarr")
    for attempt in (
        lambda: store.write_rows(0, gaussian_rows(2, 301)),
        lambda: store.erase(["unit 0"], pseudonym),
        lambda: store.begin_generation(),
        store.merge,
    ):
        with pytest.raises(PermissionError, match=r"r\+"):
            attempt()
    with pytest.raises(ValueError, match="mode"):
        ApproximatorStore.open(tmp_path / "a.zarr", "w")  # type: ignore[arg-type]


def test_two_writers_of_one_block_exclude_each_other(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    first = ApproximatorStore.create(tmp_path / "a.zarr", names, [1] * 3, SPEC)
    second = ApproximatorStore.open(tmp_path / "a.zarr", "r+")
    rows_NP = gaussian_rows(3, 301)
    with (
        LocalBackend(tmp_path).lock("a.parts/block-0.lock", wait=False),
        pytest.raises(WriterConflictError, match="another writer"),
    ):
        first.write_rows(0, rows_NP[:2])
    first.write_rows(0, rows_NP[:2])
    with pytest.raises(WriterConflictError, match="another row"):
        second.write_rows(0, rows_NP[1:])
    assert second.write_rows(0, rows_NP[:2]) == first.write_rows(0, rows_NP[:2])
    first.merge()
    assert np.array_equal(second.read_rows_at([0, 1]), rows_NP[:2])


def test_a_live_writers_rows_are_not_swept(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    ApproximatorStore.create(tmp_path / "a.zarr", names, [1] * 3, SPEC)
    orphan = tmp_path / "a.zarr/generation-0/float32/codes/c.0.0"
    orphan.write_bytes(b"not listed yet")
    with LocalBackend(tmp_path).lock("a.parts/block-0.lock", wait=False):
        ApproximatorStore.open(tmp_path / "a.zarr", "r+")
        assert orphan.exists()
    ApproximatorStore.open(tmp_path / "a.zarr", "r+")
    assert not orphan.exists()


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A disk on which no file grows past a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_the_run_goes_on_when_space_returns(tmp_path: Path) -> None:
    rows_NP = gaussian_rows(4, 301)
    names = [f"unit {i}" for i in range(4)]
    store = ApproximatorStore.create(tmp_path / "a.zarr", names, [1] * 4, SPEC)
    store.write_rows(0, rows_NP[:2])
    before = contents(tmp_path)
    with largest_file(1000), pytest.raises(StorageFullError, match="no space") as caught:
        store.write_rows(1, rows_NP[2:])
    assert caught.value.errno == errno.EFBIG
    assert contents(tmp_path) == before
    store.write_rows(1, rows_NP[2:])
    with largest_file(1000), pytest.raises(StorageFullError):
        store.merge()
    store.merge()
    with largest_file(1000), pytest.raises(StorageFullError):
        store.erase(["unit 1"], pseudonym)
    store = ApproximatorStore.open(tmp_path / "a.zarr", "r+")
    assert (store.states[1], store.verify()) == ("erased", [])
    assert np.array_equal(store.read_rows_at([0, 2, 3]), rows_NP[[0, 2, 3]])
