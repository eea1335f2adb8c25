"""The manifest: which rows are valid, with the digest of each.

A Parquet table beside the rows, one line per unit, replaced as a whole; parts of it, one per
block, are written by the block's writer and folded in by one owner. An erased unit keeps one line
with a keyed pseudonym and its state, and nothing else, not even its row's position.

The table's metadata holds the store's identity, its generations, and the file's seal. A seal guards
against accidents, not against a hostile writer, who can seal an edited file anew.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from storage.encoding import ENCODINGS
from storage.errors import LayoutError, RowCorruptError, UnitErasedError, UnknownUnitError
from storage.layout import FORMAT_VERSION, canonical_json
from storage.row_entry import RowEntry, relative_error

UNSEALED = "0" * 64
_SEAL_LABEL = b'"seal": "'
_SEAL = re.compile(_SEAL_LABEL + rb'([0-9a-f]{64})"')


def seal(data: bytes) -> bytes:
    """Put the digest of `data` where its last seal stands, which must be UNSEALED."""
    match = _last_seal(data)
    if match is None or match[1] != UNSEALED.encode():
        raise ValueError("expected an unsealed seal at the end of the file")
    digest = blake3(data).hexdigest().encode()
    return data[: match.start(1)] + digest + data[match.end(1) :]


def check_seal(data: bytes, name: str) -> None:
    """Refuse a file that is not the one that was sealed.

    Args:
        data: the file.
        name: what errors call it.

    Raises:
        RowCorruptError: it has no seal, or another content than when it was sealed.
    """
    match = _last_seal(data)
    if match is None:
        raise RowCorruptError(f"{name} has no seal: it is not a file that this program wrote")
    unsealed = data[: match.start(1)] + UNSEALED.encode() + data[match.end(1) :]
    if blake3(unsealed).hexdigest().encode() != match[1]:
        raise RowCorruptError(
            f"{name} was edited or damaged: it does not match its seal; restore it"
        )


def _last_seal(data: bytes) -> re.Match[bytes] | None:
    """The seal of a file: the last text of its form.

    A unit's name may have that form too. Names stand in a Parquet file's pages and in its column
    statistics, both before the key-value metadata, and JSON escapes the quotes of every value: so
    nothing but the seal itself can come last.
    """
    return _SEAL.match(data, max(data.rfind(_SEAL_LABEL), 0))


_METADATA_KEY = b"approximator-manifest"
_METADATA_FIELDS = ("store_id", "constants_digest", "generation", "building", "block")

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
        candidates: rows of which one may be that of a unit's name; None looks through `entries`.
    """

    store_id: str
    constants_digest: str
    generation: int
    building: int | None
    entries: Mapping[int, RowEntry]
    erased: Set[str] = frozenset()
    block: int | None = None
    candidates: Callable[[str], Sequence[int]] | None = None
    _rows_of: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def target(self) -> int:
        """The generation that writers write."""
        return self.generation if self.building is None else self.building

    def row_of(self, unit: str) -> int | None:
        """Row of a unit that is not erased."""
        if self.candidates is not None and unit not in self._rows_of:
            return self._row_among(unit, self.candidates(unit))
        if not self._rows_of:
            self._rows_of.update({entry.unit: row for row, entry in self.entries.items()})
        return self._rows_of.get(unit)

    def _row_among(self, unit: str, candidates: Sequence[int]) -> int | None:
        for row in candidates:
            entry = self.entries.get(row)
            if entry is not None and entry.unit == unit:
                self._rows_of[unit] = row
                return row
        return None

    def find(self, unit: str) -> RowEntry:
        """Entry of a unit.

        Raises:
            UnknownUnitError: it is not in this store, or was erased.
            UnitErasedError: it was erased, and `unit` is its pseudonym.
        """
        row = self.row_of(unit)
        if unit in self.erased:
            raise UnitErasedError(f"unit {unit!r:.80} was erased")
        if row is None:
            raise UnknownUnitError(f"unit {unit!r:.80} is not in this store, or was erased")
        return self.entries[row]

    def at(self, row: int, num_units: int) -> RowEntry:
        """Entry of the unit whose row stands at a position.

        Raises:
            UnknownUnitError: there is no such row.
            UnitErasedError: its unit was erased.
        """
        if not 0 <= row < num_units:
            raise UnknownUnitError(f"rows are 0..{num_units - 1}, found {row}")
        if row not in self.entries:
            raise UnitErasedError(f"the unit of row {row} was erased")
        return self.entries[row]

    def lines(self) -> Iterator[tuple[int, str, bool]]:
        """Row and name of every unit that is not erased, and whether its row is written."""
        if not isinstance(self.entries, dict):
            return cast(_Lines, self.entries).lines()
        return ((e.row, e.unit, e.state == "written") for e in self.entries.values())

    def written(self) -> tuple[int, float]:
        """How many rows can be read, and the largest relative error of one."""
        if not isinstance(self.entries, dict):
            return cast(_Lines, self.entries).written()
        listed = [entry for entry in self.entries.values() if entry.state == "written"]
        return len(listed), max(map(relative_error, listed), default=0.0)

    def blocks_waiting(self, size: int) -> set[int]:
        """Blocks of `size` rows of which one is not listed in the generation being written."""
        if not isinstance(self.entries, dict):
            return cast(_Lines, self.entries).blocks_waiting(self.target, size)
        rows = (row for row, e in self.entries.items() if e.generation != self.target)
        return {row // size for row in rows}

    def with_entries(self, entries: Iterable[RowEntry]) -> "Manifest":
        """A manifest in which `entries` replace those of the same rows; erased rows stay erased."""
        update = {e.row: e for e in entries if e.row in self.entries}
        return replace(self, entries={**self.entries, **update}, _rows_of={})

    def without(self, pseudonyms: Mapping[int, str]) -> "Manifest":
        """A manifest in which the rows named are erased; safe to repeat."""
        erased = self.erased | frozenset(pseudonyms.values())
        return replace(self, entries=_without(self.entries, pseudonyms), erased=erased, _rows_of={})

    def to_parquet(self) -> bytes:
        """The sealed file."""
        lines: list[tuple[object, ...]] = [self.entries[row] for row in sorted(self.entries)]
        blank = (None,) * (len(RowEntry._fields) - 2)
        lines += [(name, "erased", *blank) for name in sorted(self.erased)]
        columns: Sequence[Sequence[object]] = list(zip(*lines, strict=True)) or [()] * len(SCHEMA)
        arrays = [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)]
        metadata = {name: getattr(self, name) for name in _METADATA_FIELDS}
        metadata |= {"format_version": FORMAT_VERSION, "seal": UNSEALED}
        table = pa.Table.from_arrays(arrays, schema=SCHEMA)
        sink = pa.BufferOutputStream()
        # store_schema would add what only Arrow reads; the columns' types are Parquet's own.
        with pq.ParquetWriter(sink, SCHEMA, compression="zstd", store_schema=False) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({_METADATA_KEY: canonical_json(metadata)})
        return seal(sink.getvalue().to_pybytes())


class _Lines(Protocol):
    """Lines that are not all in memory."""

    def without(self, rows: Iterable[int]) -> Mapping[int, RowEntry]: ...

    def lines(self) -> Iterator[tuple[int, str, bool]]: ...

    def written(self) -> tuple[int, float]: ...

    def blocks_waiting(self, target: int, size: int) -> set[int]: ...


def _without(entries: Mapping[int, RowEntry], rows: Mapping[int, str]) -> Mapping[int, RowEntry]:
    if isinstance(entries, dict):
        return {row: entry for row, entry in entries.items() if row not in rows}
    return cast(_Lines, entries).without(rows)


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Read a manifest or a part of one.

    Args:
        data: the Parquet file.
        name: what errors call it.

    Raises:
        RowCorruptError: it is not the file that was written.
        LayoutError: it is of another version.
    """
    # Checked before Arrow parses anything: it was not built for damaged files.
    check_seal(data, name)
    try:
        table = pq.read_table(pa.BufferReader(data))
        metadata = json.loads(table.schema.metadata[_METADATA_KEY])
        version = metadata["format_version"]
        fields = {name: metadata[name] for name in _METADATA_FIELDS}
        if version == FORMAT_VERSION and table.schema.equals(SCHEMA):
            return _assemble(fields, table)
    except (pa.ArrowException, KeyError, ValueError, TypeError, RecursionError) as error:
        raise RowCorruptError(f"{name} is no manifest that this program wrote: {error}") from error
    raise LayoutError(
        f"{name} has version {version}; this program reads {FORMAT_VERSION}: use the program "
        "that wrote it, or a newer one"
    )


def _assemble(fields: Mapping[str, Any], table: pa.Table) -> Manifest:
    """The manifest of a table; ValueError for values that this program does not write."""
    entries: dict[int, RowEntry] = {}
    erased = set()
    for line in zip(*(table.column(f).to_pylist() for f in RowEntry._fields), strict=True):
        entry = RowEntry(*line)
        if entry.unit is None or None in _required(entry):
            raise ValueError(f"the line of unit {entry.unit!r:.80} is not complete")
        if entry.state == "erased":
            erased.add(entry.unit)
        else:
            entries[entry.row] = entry
    numbers = [fields[name] for name in ("generation", "building", "block")]
    if not all(type(number) in (int, type(None)) for number in numbers) or numbers[0] is None:
        raise ValueError(f"generation, building and block are {numbers}")
    return Manifest(entries=entries, erased=frozenset(erased), **fields)


def _required(entry: RowEntry) -> tuple[object, ...]:
    """The fields that a line of its state fills."""
    if entry.state == "written":
        return entry if entry.encoding in ENCODINGS else (None,)
    return {"absent": (entry.row, entry.samples), "erased": ()}.get(entry.state, (None,))
