"""Inputs kept in files: built once, found when damaged, whole after a crash, never in the way."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from pipeline.data import input_files
from pipeline.data.input_files import Allocate, InputFile, InputFiles
from pipeline.errors import DataError

VALUES = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 5), dtype=np.uint8)
MADE_OF = ("a test", 3)


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "LARGE_BYTES", 1)


def counted(builds: list[int], values: np.ndarray = VALUES) -> Callable[[Allocate], np.ndarray]:
    def build(allocate: Allocate) -> np.ndarray:
        filled = allocate(values.shape, values.dtype)
        builds.append(1)
        filled[:] = values
        return filled

    return build


def kept(folder: Path, builds: list[int]) -> InputFile:
    found = InputFiles(folder).kept(MADE_OF, counted(builds))
    assert isinstance(found, InputFile)
    return found


def the_file(folder: Path) -> Path:
    (path,) = folder.glob("*.inputs")
    return path


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32"])
def test_rows_are_those_that_were_built_in_their_own_type(tmp_path: Path, dtype: str) -> None:
    values = VALUES.astype(dtype)
    for _ in range(2):
        found = InputFiles(tmp_path / "inputs").kept(MADE_OF, counted([], values))
        assert isinstance(found, InputFile)
        assert (found.dtype, found.shape, len(found)) == (values.dtype, values.shape, 50)
        chosen = np.array([7, 0, 7, 49])
        np.testing.assert_array_equal(found.take(chosen), values[chosen], strict=True)
        np.testing.assert_array_equal(found.between(3, 9), values[3:9], strict=True)
        np.testing.assert_array_equal(found.between(9, 9), values[9:9], strict=True)


def test_an_array_is_built_once_and_its_file_is_the_owners_alone(tmp_path: Path) -> None:
    builds: list[int] = []
    for _ in range(3):
        kept(tmp_path / "run" / "inputs", builds)
    assert len(builds) == 1
    InputFiles(tmp_path / "run" / "inputs").kept(("other", 3), counted(builds))
    assert len(builds) == 2
    paths = [tmp_path / "run" / "inputs", *(tmp_path / "run" / "inputs").iterdir()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o700, 0o600, 0o600, 0o600]


def test_small_arrays_leave_nothing_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_files, "LARGE_BYTES", VALUES.nbytes + 1)
    found = InputFiles(tmp_path / "inputs").kept(MADE_OF, counted([]))
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, VALUES)
    assert not list(tmp_path.iterdir())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-700])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def reshape(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"[50, 3, 4, 5]", b"[60, 3, 4, 5]"))


@pytest.mark.parametrize("damage", [flip, cut, empty, lengthen, reshape])
def test_a_damaged_file_is_built_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    builds: list[int] = []
    kept(tmp_path, builds)
    damage(the_file(tmp_path))
    found = kept(tmp_path, builds)
    assert len(builds) == 2
    assert np.array_equal(found.between(0, 50), VALUES)
    kept(tmp_path, builds)
    assert len(builds) == 2


def test_a_file_that_shrinks_under_its_reader_is_an_error(tmp_path: Path) -> None:
    found = kept(tmp_path, [])
    assert np.array_equal(found.take([0]), VALUES[:1])
    cut(the_file(tmp_path))
    with pytest.raises(DataError, match="was cut short while it was read"):
        found.take([49])


@pytest.mark.parametrize(
    ("point", "is_there"),
    [("before-digest", False), ("before-rename", False), ("after-rename", True)],
)
def test_a_crash_leaves_the_file_whole_or_not_at_all(
    tmp_path: Path, point: str, is_there: bool
) -> None:
    def crash(at: str) -> None:
        if at == f"inputs:{point}":
            os._exit(17)

    child = os.fork()
    if child == 0:
        InputFiles(tmp_path, crash).kept(MADE_OF, counted([]))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    assert bool(list(tmp_path.glob("*.inputs"))) == is_there
    assert bool(list(tmp_path.glob(".*.partial"))) != is_there
    builds: list[int] = []
    assert np.array_equal(kept(tmp_path, builds).between(0, 50), VALUES)
    assert len(builds) == (0 if is_there else 1)
    assert not list(tmp_path.glob(".*.partial"))


def test_a_builder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(allocate: Allocate) -> np.ndarray:
        allocate(VALUES.shape, VALUES.dtype)
        raise DataError("a picture is damaged")

    with pytest.raises(DataError, match="a picture is damaged"):
        InputFiles(tmp_path).kept(MADE_OF, build)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_of_two_builders_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    builds: list[int] = []
    found: list[InputFile] = []
    # Each opens the lock for itself, as processes do.
    builders = [Thread(target=lambda: found.append(kept(tmp_path, builds))) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(builds) == 1
    assert len(found) == 4
    assert all(np.array_equal(file.between(0, 50), VALUES) for file in found)


def test_without_room_or_permission_arrays_are_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    found = InputFiles(tmp_path / "a file" / "inputs").kept(MADE_OF, counted([]))
    assert isinstance(found, np.ndarray)

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    found = InputFiles(tmp_path / "inputs").kept(MADE_OF, counted([]))
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, VALUES)
    assert [path.name for path in (tmp_path / "inputs").iterdir()] == ["lock"]
