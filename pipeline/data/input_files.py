"""Inputs in their source's own type, kept in files of a run that every process of a node reads.

A file `KEY.inputs` holds an array in row-major order and behind it one line of JSON: its type, its
shape and the BLAKE3 digest of its bytes. It is named by what it was made of. Rows are read with
`pread`, not mapped: they lie once in the node's page cache, count as memory of no process, and a file
that was cut short is an error instead of a signal.

Pictures are personal data, so the folder belongs to a run: its files are their owner's alone, and
pruning the run removes them. It may be removed at any time; the files are made again from the source.
"""

# n samples

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from pipeline.errors import DataError
from storage.durable_write import Faults, no_faults, sync_folder

LARGE_BYTES = 64 << 20
"""Arrays of fewer bytes are held in memory, where reading them costs less."""


def is_large(num_bytes: int) -> bool:
    """Whether an array of so many bytes is kept in a file, where there is a folder for it."""
    return num_bytes >= LARGE_BYTES


Allocate = Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray]
"""Returns an array to fill, of a shape and a type."""

_TYPES = ("uint8", "int32", "int64", "float32")
# The line behind the array ends the file, and says with its last digits how long it is.
_LENGTH_DIGITS, _LONGEST_LINE = 8, 4096
_HASHED_AT_ONCE = 16 << 20


def in_memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return an array in this process's own memory."""
    return np.empty(shape, dtype)


@dataclass(frozen=True)
class InputFile:
    """An array (n, ...) in a file, of which rows are read when they are asked for."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        """Return n."""
        return self.shape[0]

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the rows with these numbers, 0 to n - 1, in this order (m, ...)."""
        taken = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for place, row in enumerate(rows):
            self._read(int(row), taken[place : place + 1])
        return taken

    def between(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to before `stop`."""
        taken = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        self._read(start, taken)
        return taken

    @cached_property
    def _descriptor(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def _read(self, first: int, into: np.ndarray) -> None:
        rest: memoryview = into.reshape(-1).view(np.uint8).data
        offset = first * prod(self.shape[1:]) * self.dtype.itemsize
        while rest:
            count = os.preadv(self._descriptor, [rest], offset)
            if count == 0:
                raise DataError(f"{self.path} was cut short while it was read; repeat the command")
            rest, offset = rest[count:], offset + count

    def __reduce__(self) -> tuple[Any, ...]:
        """Send where the file lies; another process opens it for itself."""
        return InputFile, (self.path, self.shape, self.dtype)

    def __del__(self) -> None:
        """Close the file, if it was opened."""
        descriptor = self.__dict__.pop("_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


@dataclass(frozen=True)
class InputFiles:
    """The files of one run.

    Attributes:
        folder: Where they lie; None holds everything in memory.
        faults: Called at each point where a crash must do no harm; tests crash there.
    """

    folder: Path | None = None
    faults: Faults = no_faults

    def kept(
        self, made_of: Sequence[object], build: Callable[[Allocate], np.ndarray]
    ) -> np.ndarray | InputFile:
        """Return an array: from its file, or built and then kept there if it is large.

        One process builds while others wait for it. A file that is damaged is built anew. Where the
        folder cannot be written, or is full, the array is held in memory.

        Args:
            made_of: What decides every bit of the array, as text; names the file.
            build: Fills the array that it is given room for, and returns it.
        """
        if self.folder is None:
            return build(in_memory)
        name = blake3("\n".join(map(str, made_of)).encode()).hexdigest()[:32]
        path = self.folder / f"{name}.inputs"
        found = _opened(path)
        if found is not None:
            return found
        with ExitStack() as stack:
            room = _Room(path, stack)
            try:
                built = build(room.allocate)
            except _MeanwhileMade as made:
                return made.file
            if room.mapped is None:
                return built
            self._finish(room.temporary, path, room.mapped)
            return InputFile(path, built.shape, built.dtype)

    def _finish(self, temporary: Path, path: Path, array: "np.memmap[Any, Any]") -> None:
        array.flush()
        line = _last_line(
            array.shape, array.dtype, _digest_of(InputFile(temporary, array.shape, array.dtype))
        )
        self.faults("inputs:before-digest")
        with temporary.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.faults("inputs:before-rename")
        temporary.replace(path)
        sync_folder(path.parent)
        self.faults("inputs:after-rename")


IN_MEMORY = InputFiles()


def state_of(path: Path) -> str:
    """Return name, size and time of a source's file, which change when it does.

    Raises:
        OSError: If it is not there.
    """
    status = path.stat()
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"


class _MeanwhileMade(Exception):
    """Another process made the file while this one waited to."""

    def __init__(self, file: InputFile) -> None:
        super().__init__(str(file.path))
        self.file = file


class _Room:
    """Room for an array, which a builder asks for once it knows how much it needs."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        """Take the file's final place; `stack` is closed when the array is whole, or was given up."""
        self._path, self._stack = path, stack
        self.temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self.mapped: np.memmap[Any, Any] | None = None

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return an array in a new file if it is large and the folder can be written.

        Raises:
            _MeanwhileMade: If another process made it first.
        """
        if not is_large(prod(shape) * dtype.itemsize):
            return in_memory(shape, dtype)
        try:
            self._stack.enter_context(_one_at_a_time(self._path.parent))
            found = _opened(self._path)
            if found is None:
                self._stack.callback(self.temporary.unlink, missing_ok=True)
                self.mapped = _new_file(self.temporary, shape, dtype)
        except OSError:
            return in_memory(shape, dtype)
        if found is not None:
            raise _MeanwhileMade(found)
        assert self.mapped is not None
        return self.mapped


def _new_file(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> "np.memmap[Any, Any]":
    """Return an array in a new file; all its room on the disk is taken at once."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        # Writing through a map to a disk that is full would end the process.
        os.posix_fallocate(descriptor, 0, prod(shape) * dtype.itemsize)
    finally:
        os.close(descriptor)
    return np.memmap(path, dtype, "r+", shape=shape)


def _last_line(shape: tuple[int, ...], dtype: np.dtype[Any], digest: str) -> bytes:
    line = json.dumps({"dtype": dtype.name, "shape": shape, "blake3": digest}).encode()
    return line + f"{len(line):0{_LENGTH_DIGITS}d}\n".encode()


def _opened(path: Path) -> InputFile | None:
    """Return a file whose bytes bear its digest; None if there is none, or it is damaged."""
    try:
        file, digest = _described(path)
        return file if _digest_of(file) == digest else None
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None


def _described(path: Path) -> tuple[InputFile, str]:
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _LONGEST_LINE))
        end = stream.read()
    length = int(end[-_LENGTH_DIGITS - 1 : -1])
    values = json.loads(end[-_LENGTH_DIGITS - 1 - length : -_LENGTH_DIGITS - 1])
    shape = tuple(int(count) for count in values["shape"])
    if values["dtype"] not in _TYPES or not shape or min(shape) < 1:
        raise ValueError("no array of inputs")
    dtype = np.dtype(values["dtype"])
    if size != prod(shape) * dtype.itemsize + length + _LENGTH_DIGITS + 1:
        raise ValueError("cut short")
    return InputFile(path, shape, dtype), str(values["blake3"])


def _digest_of(file: InputFile) -> str:
    # Read, not mapped, so that a file that shrinks meanwhile is an error.
    digest, rows = blake3(), max(1, _HASHED_AT_ONCE // max(1, _row_bytes(file)))
    for start in range(0, len(file), rows):
        part = file.between(start, min(len(file), start + rows))
        digest.update(part.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _row_bytes(file: InputFile) -> int:
    return prod(file.shape[1:]) * file.dtype.itemsize


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the folder, made if need be, for building; what builders that crashed left is removed.

    Raises:
        OSError: If it cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left in folder.glob(".*.partial"):
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)
