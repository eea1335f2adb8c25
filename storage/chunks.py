"""Stored objects as raw bytes: opened and checked for size, compressed or not.

Without a codec an object is the chunk's bytes themselves and is read and written directly: Zarr's
own calls cost a millisecond each. With a codec, Zarr encodes and decodes the chunk in memory, so
that what is stored is by construction what Zarr reads.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.backend import ObjectReader, StorageBackend
from storage.encoding import ENCODINGS, ByteArray
from storage.errors import BackendUnavailableError, LayoutError, RowCorruptError
from storage.layout import KEY_NUMBER, Layout, canonical_json
from storage.row_entry import RowEntry

_OBJECT_KEY = re.compile(
    rf"generation-(?P<generation>{KEY_NUMBER})/(?P<encoding>\w+)/(?P<array>codes|scales)"
    rf"/c\.(?P<chunk>{KEY_NUMBER})\.{KEY_NUMBER}(?P<partial>\.partial)?"
)


class BytesReader:
    """An object held in memory."""

    def __init__(self, data: ByteArray) -> None:
        self._data = data
        self.size = data.size

    def read_into(self, buffer: ByteArray, offset: int) -> int:
        """Copy bytes from `offset` into `buffer`."""
        piece = self._data[offset : offset + buffer.size]
        buffer[: piece.size] = piece
        return int(piece.size)

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True)
class ObjectAddress:
    """What an object's key says.

    Attributes:
        generation: of its rows.
        encoding: of its rows.
        array: codes or scales.
        rows: rows that it may hold.
        partial: whether it is a file whose writing was cut short.
    """

    generation: int
    encoding: str
    array: str
    rows: range
    partial: bool


@dataclass(frozen=True)
class Hierarchy:
    """The Zarr hierarchy of one store.

    Attributes:
        backend: where its objects are.
        path: key of the hierarchy's root.
        layout: the store's constants.
    """

    backend: StorageBackend
    path: str
    layout: Layout

    def require_unchanged(self) -> None:
        """Refuse to change a store that was upgraded since it was opened.

        Raises:
            LayoutError: its root document is not the one that was read.
        """
        key = f"{self.path}/zarr.json"
        if self.backend.read(key) != canonical_json(self.layout.root_document()):
            raise LayoutError(f"{key} has changed: the store was upgraded; open it again")

    def key(self, entry: RowEntry, array: str, column: int) -> str:
        """Key of the object that holds a row's part of `codes` or `scales`."""
        rows = self.layout.rows_per_chunk(str(entry.encoding))
        folder = f"{self.path}/generation-{entry.generation}/{entry.encoding}/{array}"
        return f"{folder}/c.{entry.row // rows}.{column}"

    def keys(self, entry: RowEntry) -> list[tuple[str, str]]:
        """(array, key) of every object that holds a part of a row."""
        name = str(entry.encoding)
        columns = range(self.layout.num_column_chunks(name))
        keys = [("codes", self.key(entry, "codes", column)) for column in columns]
        if ENCODINGS[name].scale_block:
            keys.append(("scales", self.key(entry, "scales", 0)))
        return keys

    def object_keys(self, generation: int, row: int) -> list[str]:
        """Keys of all objects that could hold any bytes of a row, in whatever encoding."""
        blank = RowEntry("", "absent", row, 0, generation)
        entries = (blank._replace(encoding=name) for name in self.layout.encodings)
        return [key for entry in entries for _, key in self.keys(entry)]

    def address(self, key: str) -> ObjectAddress | None:
        """Take an object's key apart; None for keys that no row's object has."""
        match = _OBJECT_KEY.fullmatch(key.removeprefix(f"{self.path}/"))
        if match is None or match["encoding"] not in self.layout.encodings:
            return None
        per_chunk = self.layout.rows_per_chunk(match["encoding"])
        first = int(match["chunk"]) * per_chunk
        return ObjectAddress(
            generation=int(match["generation"]),
            encoding=match["encoding"],
            array=match["array"],
            rows=range(first, min(first + per_chunk, self.layout.num_units)),
            partial=match["partial"] is not None,
        )

    def open(self, key: str, encoding: str, array: str) -> ObjectReader:
        """Open an object for reading its uncompressed bytes.

        Raises:
            RowCorruptError: it is missing, no plain file, of another size, or damaged.
        """
        try:
            if array == "codes" and self.layout.spec.codec != "none":
                data = unpack(self.backend.read(key), self.layout, encoding)
                reader: ObjectReader = BytesReader(data)
            else:
                reader = self.backend.open(key)
        except BackendUnavailableError:
            raise
        except FileNotFoundError as error:
            raise RowCorruptError(f"object {key} is missing") from error
        except (LayoutError, OSError) as error:
            raise RowCorruptError(f"object {key}: {error}") from error
        expected = self.layout.chunk_bytes(encoding, array)
        if reader.size != expected:
            reader.close()
            raise RowCorruptError(f"object {key} has {reader.size} bytes, expected {expected}")
        return reader


def pack(chunk: ByteArray, layout: Layout, encoding: str) -> bytes | ByteArray:
    """The stored form of a codes chunk."""
    if layout.spec.codec == "none":
        return chunk
    array, store = _chunk_array(layout, encoding, {})
    array[...] = chunk.view(array.dtype).reshape(array.shape)
    return bytes(store["c.0.0"].to_bytes())


def as_bytes(data: bytes) -> ByteArray:
    """The bytes as an array, read-only."""
    return np.frombuffer(data, np.uint8)


def unpack(data: bytes, layout: Layout, encoding: str) -> ByteArray:
    """The bytes of a codes chunk from their stored form.

    Raises:
        RowCorruptError: they do not decompress.
    """
    if layout.spec.codec == "none":
        return as_bytes(data)
    array, _ = _chunk_array(layout, encoding, {"c.0.0": data})
    try:
        values = np.ascontiguousarray(array[...])
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise RowCorruptError(
            f"a chunk of {encoding} codes does not decompress: {error}"
        ) from error
    return values.reshape(-1).view(np.uint8)


def _chunk_array(layout: Layout, encoding: str, chunks: dict[str, bytes]) -> tuple[Any, Any]:
    """A Zarr array of exactly one chunk, in memory, and the dict behind it."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    document = layout.documents(0)[f"generation-0/{encoding}/codes/zarr.json"]
    one = {**document, "shape": document["chunk_grid"]["configuration"]["chunk_shape"]}
    as_buffer = default_buffer_prototype().buffer.from_bytes
    content = {"zarr.json": as_buffer(canonical_json(one))}
    content.update({key: as_buffer(data) for key, data in chunks.items()})
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(MemoryStore(content), mode="r+"), content
