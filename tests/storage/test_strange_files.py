"""Files that are not what they should be: each is one line of ours, none is a traceback or a wait."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import ApproximatorStore, verify_store
from storage.errors import BackendUnavailableError, LayoutError, StorageError
from storage.layout import canonical_json
from storage.manifest import SCHEMA, UNSEALED, seal
from tests.storage.store_cases import ROWS, SPEC, pseudonym

DEEP = "[" * 100_000


def write_again(store: ApproximatorStore) -> None:
    for block in range(2):
        store.write_rows(block, ROWS[2 * block : 2 * block + 2])
    store.merge()


USES: list[Callable[[Path], object]] = [
    lambda url: ApproximatorStore.open(url).sum_rows_at(range(4)),
    lambda url: ApproximatorStore.open(url).facts(),
    lambda url: ApproximatorStore.open(url).finished_blocks(),
    lambda url: ApproximatorStore.open(url).verify(),
    lambda url: ApproximatorStore.open(url, "r+"),
    lambda url: ApproximatorStore.open(url, "r+").erase(["unit 1"], pseudonym),
    lambda url: write_again(ApproximatorStore.open(url, "r+")),
    lambda url: ApproximatorStore.open(url, "r+").abandon_generation(),
    lambda url: ApproximatorStore.create(url, ["a"], [1], SPEC),
]


def lines(folder: Path) -> list[str]:
    """Use a copy of the store in every way; the errors, each of which must be ours, in one line."""
    found = []
    for use in USES:
        copy = folder.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        copy_tree(folder, copy)
        try:
            use(copy / "a.zarr")
        except StorageError as error:
            assert str(error).isprintable(), f"{error!r} is not one line"
            found.append(str(error))
    assert all(damage.reason.isprintable() for damage in verify_store(folder / "a.zarr"))
    return found


def copy_tree(source: Path, target: Path) -> None:
    """Copy links as links and pipes as pipes."""
    target.mkdir()
    for path in source.iterdir():
        there = target / path.name
        if path.is_symlink():
            there.symlink_to(path.readlink())
        elif path.is_dir():
            copy_tree(path, there)
        elif path.is_file():
            shutil.copy2(path, there)
        else:
            os.mkfifo(there)


def folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(b"x")


def pipe_in_place(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_in_place(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def loop_in_place(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def empty_in_place(path: Path) -> None:
    path.write_bytes(b"")


def huge_in_place(path: Path) -> None:
    os.truncate(path, 1 << 42)


def deep_in_place(path: Path) -> None:
    path.write_text(DEEP)


DAMAGES = [
    folder_in_place,
    pipe_in_place,
    link_in_place,
    loop_in_place,
    empty_in_place,
    deep_in_place,
]
FILES = [
    "a.zarr/zarr.json",
    "a.parquet",
    "a.parts/generation-1-block-0.parquet",
    "a.zarr/generation-0/int8/codes/c.0.0",
    "a.zarr/generation-0/int8/zarr.json",
    "a.zarr/generation-1/int8/scales/c.0.0",
]


def check_noticed(folder: Path, file: str, damage: Callable[[Path], None]) -> None:
    good = folder.with_name("good")
    copy_tree(folder, good)
    damage(folder / file)
    assert lines(folder), f"nothing was noticed of {file}"
    assert verify_store(folder / "a.zarr"), f"verify does not name {file}"
    shutil.rmtree(folder)
    good.rename(folder)


@pytest.mark.parametrize(("file", "damage"), list(zip(FILES, DAMAGES, strict=True)))
def test_something_else_in_the_place_of_a_file(
    folder: Path, file: str, damage: Callable[[Path], None]
) -> None:
    check_noticed(folder, file, damage)
    assert verify_store(folder / "a.zarr") == []


@pytest.mark.torture
@pytest.mark.parametrize("damage", DAMAGES)
def test_something_else_in_the_place_of_any_file(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 15
    for file in files:
        check_noticed(folder, str(file), damage)


def test_a_file_of_four_tebibytes_is_not_read(folder: Path) -> None:
    for name in ("a.zarr/zarr.json", "a.parquet", "a.zarr/generation-0/zarr.json"):
        good = (folder / name).read_bytes()
        huge_in_place(folder / name)
        with pytest.raises(LayoutError, match="4398046511104 bytes"):
            ApproximatorStore.open(folder / "a.zarr")
        (folder / name).write_bytes(good)


def file_in_place(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"x")


@pytest.mark.parametrize("name", ["a.zarr", "a.parts", "a.zarr/generation-0/int8/codes"])
def test_a_file_in_the_place_of_a_folder(folder: Path, name: str) -> None:
    check_noticed(folder, name, file_in_place)


@pytest.mark.torture
def test_a_file_in_the_place_of_any_folder(folder: Path) -> None:
    folders = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_dir()]
    assert len(folders) > 8
    for name in folders:
        check_noticed(folder, str(name), file_in_place)


def test_a_want_of_descriptors_is_not_called_damage(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    store = ApproximatorStore.open(folder / "a.zarr")
    store.units  # noqa: B018 (the manifest is read)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(BackendUnavailableError, match="Too many open files; repeat"):
            store.read_rows_at([0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert store.read_rows_at([0]).shape == (1, 301)


def sealed_manifest(metadata: bytes, **columns: list[object]) -> bytes:
    """A manifest as a hostile writer would seal it."""
    values = {field.name: [None] for field in SCHEMA} | columns
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, SCHEMA, store_schema=False) as writer:
        writer.write_table(pa.table(values, SCHEMA))
        writer.add_key_value_metadata({b"approximator-manifest": metadata})
    return seal(sink.getvalue().to_pybytes())


def hostile_manifests() -> Iterator[bytes]:
    end = f', "seal": "{UNSEALED}"'.encode()
    yield sealed_manifest(b'{"x": ' + DEEP.encode() + end)
    yield sealed_manifest(b'{"x": 1' + end + b"}")
    known = {"store_id": "x", "constants_digest": "x", "block": None, "format_version": 1}
    for generation, building in ((None, None), ("0", None), ([], None), (0, "1"), (True, None)):
        numbers = {"generation": generation, "building": building, "seal": UNSEALED}
        yield sealed_manifest(canonical_json(known | numbers), unit=["a"], state=["erased"])
    numbers = {"generation": 0, "building": None, "seal": UNSEALED}
    for columns in (
        {},
        {"unit": ["a"]},
        {"unit": ["a"], "state": ["lost"]},
        {"unit": ["a"], "state": ["absent"]},
        {"unit": ["a"], "state": ["written"], "row": [0], "samples": [1]},
    ):
        yield sealed_manifest(canonical_json(known | numbers), **columns)


def test_a_manifest_that_is_sealed_and_nonsense_is_refused(folder: Path) -> None:
    for data in hostile_manifests():
        (folder / "a.parquet").write_bytes(data)
        with pytest.raises(StorageError, match="no manifest that this program wrote"):
            ApproximatorStore.open(folder / "a.zarr")
    assert len(lines(folder)) == len(USES)


def test_a_list_of_erasures_that_is_sealed_and_nonsense_is_refused(folder: Path) -> None:
    end = f'"seal": "{UNSEALED}"'.encode()
    for start in (b"{" + DEEP.encode(), b"{", b'{"erase": [], ', b'{"erase": {"x": "y"}, '):
        (folder / "a.parts/erasure.json").write_bytes(seal(start + end + b"}"))
        with pytest.raises(LayoutError, match=r"erasure\.json is no"):
            ApproximatorStore.open(folder / "a.zarr", "r+")


STRAYS = [
    "a.parts/generation-0-block-0 (1).parquet",
    "a.parts/generation-0-block-00.parquet",
    "a.parts/generation-0-block-\u0660.parquet",
    "a.parts/generation-1-block-0.parquet.bak",
    "a.parts/generation-.parquet",
    "a.parts/sub/generation-0-block-0.parquet",
    "a.parts/..%2f..%2fx",
    "a.parts/.DS_Store",
    "a.parts/line\nbreak",
    "a.parts/\x1b[2J",
    "a.parts/\udcff",
    "a.zarr/..%2f..%2fx",
    "a.zarr/generation-0/int8/codes/c.0.0 (1)",
    "a.zarr/generation-0/int8/codes/c.00.0",
    "a.zarr/generation-0/int8/codes/c.99.0",
    "a.zarr/generation-0/int8/codes/c.\u0660.0",
    "a.zarr/generation-00/int8/codes/c.0.0",
    "a.zarr/.zmetadata",
    "a.zarr/\udcff",
]


def test_strange_files_are_named_and_nothing_else_of_them(folder: Path) -> None:
    for name in STRAYS:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"not ours")
    store = ApproximatorStore.open(folder / "a.zarr", "r+")
    store.erase(["unit 1"], pseudonym)
    write_again(store)
    assert (store.generation, store.states[1]) == (1, "erased")
    assert np.array_equal(store.read_rows_at([0]).shape, (1, 301))
    found = {damage.unit_or_object for damage in store.verify()}
    assert all(name.isprintable() for name in found)
    # What lay in the replaced generation went with it.
    kept = [name for name in STRAYS if not name.startswith("a.zarr/generation-0/")]
    assert {ascii(name)[1:-1] if not name.isprintable() else name for name in kept} == found
    assert all((folder / name).read_bytes() == b"not ours" for name in kept)
