"""The manifest: which rows count, and what each must be to count.

A Parquet table beside the rows, one line per unit, replaced as a whole; parts of it, one per
block, are written by the block's writer and folded in by one owner. An erased unit keeps one line
with a keyed pseudonym and its state, and nothing else, not even its row's position.

The table's metadata holds the store's identity, its generations, and a digest over every value of
the table and the metadata, so that a careless edit of any field is noticed. (A hostile writer can
recompute it: against one, keep `Manifest.digest` elsewhere under a key.)
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from storage.errors import LayoutError, RowCorruptError
from storage.layout import FORMAT_VERSION, canonical_json

STATES = ("absent", "written", "erased")
MAX_UNIT_BYTES = 1024
_METADATA_KEY = b"approximator-manifest"
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f\\ud800-\\udfff]")

SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("state", pa.string()),
        ("row", pa.int64()),
        ("samples", pa.int64()),
        ("generation", pa.int64()),
        ("encoding", pa.string()),
        ("digest", pa.binary(32)),
        ("norm", pa.float64()),
        ("error", pa.float64()),
        ("peak", pa.float64()),
        ("bytes", pa.int64()),
    ]
)


class RowEntry(NamedTuple):
    """One unit of the store.

    Attributes:
        unit: its name.
        state: absent or written.
        row: its position.
        samples: training samples it owns.
        generation: generation of its row; None while absent, like all that follows.
        encoding: the encoding its row is in.
        digest: 32 bytes over the stored row, bound to store, unit and generation.
        norm: |a| (L2) of the row as it was handed in.
        error: |decoded - a| (L2), absolute.
        peak: largest magnitude of a decoded value.
        bytes: bytes of codes and scales before any codec.
    """

    unit: str
    state: str
    row: int
    samples: int
    generation: int | None = None
    encoding: str | None = None
    digest: bytes | None = None
    norm: float | None = None
    error: float | None = None
    peak: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The lines of a manifest, or of a part of one.

    Attributes:
        store_id: the store it belongs to.
        constants_digest: digest of the root attributes, in hexadecimal.
        generation: the generation that is read.
        building: the generation being written beside it, or None.
        entries: units that are not erased, by row.
        erased: pseudonyms of the erased units.
        block: the block of a part, None for the whole manifest.
    """

    store_id: str
    constants_digest: str
    generation: int
    building: int | None
    entries: Mapping[int, RowEntry]
    erased: frozenset[str] = frozenset()
    block: int | None = None
    _rows_of: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def target(self) -> int:
        """The generation that writers write."""
        return self.generation if self.building is None else self.building

    def row_of(self, unit: str) -> int | None:
        """Row of a unit that is not erased."""
        if not self._rows_of:
            self._rows_of.update({entry.unit: row for row, entry in self.entries.items()})
        return self._rows_of.get(unit)

    def with_entries(self, entries: Iterable[RowEntry]) -> "Manifest":
        """A manifest in which `entries` replace those of the same rows; erased rows stay erased."""
        update = {e.row: e for e in entries if e.row in self.entries}
        return replace(self, entries={**self.entries, **update}, _rows_of={})

    def without(self, pseudonyms: Mapping[int, str]) -> "Manifest":
        """A manifest in which the rows named are erased; safe to repeat."""
        kept = {row: e for row, e in self.entries.items() if row not in pseudonyms}
        erased = self.erased | frozenset(pseudonyms.values())
        return replace(self, entries=kept, erased=erased, _rows_of={})

    def digest(self) -> bytes:
        """Digest of everything the manifest says, 32 bytes."""
        return _digest(self._metadata(), self._columns())

    def to_parquet(self) -> bytes:
        """The file."""
        columns = self._columns()
        table = pa.table({f.name: pa.array(columns[f.name], f.type) for f in SCHEMA}, schema=SCHEMA)
        metadata = {**self._metadata(), "digest": self.digest().hex()}
        table = table.replace_schema_metadata({_METADATA_KEY: canonical_json(metadata)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        return bytes(sink.getvalue())

    def _metadata(self) -> dict[str, object]:
        return {
            "format_version": FORMAT_VERSION,
            "store_id": self.store_id,
            "constants_digest": self.constants_digest,
            "generation": self.generation,
            "building": self.building,
            "block": self.block,
        }

    def _columns(self) -> dict[str, list[object]]:
        lines: list[tuple[object, ...]] = [self.entries[row] for row in sorted(self.entries)]
        blank = (None,) * (len(RowEntry._fields) - 2)
        lines += [(name, "erased", *blank) for name in sorted(self.erased)]
        columns: Sequence[Iterable[object]] = list(zip(*lines, strict=True)) or [()] * len(SCHEMA)
        return {f: list(column) for f, column in zip(RowEntry._fields, columns, strict=True)}


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Read a manifest or a part of one.

    Args:
        data: the Parquet file.
        name: what errors call it.

    Raises:
        RowCorruptError: it is not the table that was written.
        LayoutError: it is of another version.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
        metadata = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        version, digest = metadata.get("format_version"), metadata.pop("digest")
    except (pa.ArrowException, OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise RowCorruptError(f"{name} is no manifest that this program wrote: {error}") from error
    if version != FORMAT_VERSION:
        raise LayoutError(
            f"{name} has version {version}; this program reads {FORMAT_VERSION}: use the program "
            "that wrote it, or a newer one"
        )
    if not table.schema.equals(SCHEMA):
        raise RowCorruptError(f"{name} has other columns than version {FORMAT_VERSION} has")
    columns = {f.name: table.column(f.name).to_pylist() for f in SCHEMA}
    if _digest(metadata, columns).hex() != digest:
        raise RowCorruptError(
            f"{name} was edited or damaged: its values do not match its digest; restore it"
        )
    return _assemble(metadata, columns)


def _assemble(metadata: Mapping[str, object], columns: Mapping[str, list[object]]) -> Manifest:
    entries: dict[int, RowEntry] = {}
    erased = set()
    for line in zip(*(columns[f] for f in RowEntry._fields), strict=True):
        entry = RowEntry(*line)
        if entry.state == "erased":
            erased.add(entry.unit)
        else:
            entries[entry.row] = entry
    fields = {k: v for k, v in metadata.items() if k != "format_version"}
    return Manifest(entries=entries, erased=frozenset(erased), **fields)  # type: ignore[arg-type]


def _digest(metadata: Mapping[str, object], columns: Mapping[str, list[object]]) -> bytes:
    """BLAKE3 over the metadata and, column by column, lengths and values."""
    digest = blake3(canonical_json(metadata))
    for name in SCHEMA.names:
        kind, values = SCHEMA.field(name).type, columns[name]
        digest.update(f"\0{name}\0{len(values)}\0".encode())
        digest.update(bytes(v is None for v in values))
        if pa.types.is_floating(kind):
            digest.update(np.array([np.nan if v is None else v for v in values], "<f8").tobytes())
        elif pa.types.is_integer(kind):
            digest.update(np.array([-1 if v is None else v for v in values], "<i8").tobytes())
        elif pa.types.is_string(kind):
            digest.update("\0".join("" if v is None else str(v) for v in values).encode())
        else:
            digest.update(b"".join(v for v in values if isinstance(v, bytes)))
    return digest.digest()


def check_unit_names(units: Sequence[str]) -> None:
    """Refuse names that could be mistaken for another, or for a path.

    Raises:
        ValueError: a name is empty, repeated, not text, longer than 1,024 bytes, or holds control
            characters or `../`.
    """
    for position, unit in enumerate(units):
        if not isinstance(unit, str) or not unit:
            raise ValueError(f"unit {position} must be a non-empty text, found {unit!r:.80}")
        if _UNPRINTABLE.search(unit):
            raise ValueError(f"unit {position} holds a control character: {unit!r:.80}")
        if len(unit.encode()) > MAX_UNIT_BYTES:
            raise ValueError(
                f"unit {position} has {len(unit.encode())} bytes, at most {MAX_UNIT_BYTES} are "
                f"taken: {unit!r:.80}"
            )
        if ".." in unit.replace("\\", "/").split("/"):
            raise ValueError(f"unit {position} looks like a path out of a folder: {unit!r:.80}")
    if len(set(units)) < len(units):
        twice = next(unit for unit, count in Counter(units).items() if count > 1)
        raise ValueError(f"unit names must differ; {twice!r:.80} comes twice")
