"""Segments: the lines of neighbouring rows as columns, in one safetensors file.

R lines, ascending by row; U bytes of names:

    row, samples, generation, bytes    int64 (R,)      generation and bytes are -1 while absent
    norm, error, peak                  float64 (R,)    0 while absent
    encoding                           uint8 (R,)      place in ENCODING_NAMES; 255 while absent
    digest                             uint8 (R, 32)   zeros while absent
    name_end                           int64 (R,)      where the unit's name ends in `names`
    names                              uint8 (U,)      UTF-8, one after the other

Columns, because a line costs microseconds where it is a Python object and nanoseconds where it is not.
A line is absent where its encoding is 255, and otherwise written; erased units have none.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from storage.errors import RowCorruptError
from storage.row_entry import RowEntry

ENCODING_NAMES = ("float32", "float16", "bfloat16", "int8", "int4")
ABSENT = 255

Column = npt.NDArray[np.generic]
_COLUMNS = {
    "row": np.int64,
    "samples": np.int64,
    "generation": np.int64,
    "bytes": np.int64,
    "norm": np.float64,
    "error": np.float64,
    "peak": np.float64,
    "encoding": np.uint8,
    "digest": np.uint8,
    "name_end": np.int64,
}


@dataclass(frozen=True)
class Segment:
    """Lines of a manifest.

    Attributes:
        columns: by name, as the module says; not to be changed.
    """

    columns: Mapping[str, Column]

    @staticmethod
    def of(entries: Iterable[RowEntry]) -> "Segment":
        """The segment of entries in the order of their rows."""
        lines = list(entries)
        names = [entry.unit.encode() for entry in lines]
        digests = b"".join(entry.digest or bytes(32) for entry in lines)
        values: dict[str, object] = {
            "row": [entry.row for entry in lines],
            "samples": [entry.samples for entry in lines],
            "generation": [-1 if e.generation is None else e.generation for e in lines],
            "bytes": [-1 if e.bytes is None else e.bytes for e in lines],
            "norm": [entry.norm or 0.0 for entry in lines],
            "error": [entry.error or 0.0 for entry in lines],
            "peak": [entry.peak or 0.0 for entry in lines],
            "encoding": [ENCODING_NAMES.index(e.encoding) if e.encoding else ABSENT for e in lines],
            "name_end": np.cumsum([len(name) for name in names]),
        }
        columns = {name: np.array(value, _COLUMNS[name]) for name, value in values.items()}
        columns["digest"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        columns["names"] = np.frombuffer(b"".join(names), np.uint8)
        return Segment(columns)

    @staticmethod
    def from_bytes(data: bytes, name: str) -> "Segment":
        """Read a segment's file, whose digest was compared.

        Raises:
            RowCorruptError: it is no segment that this program wrote.
        """
        try:
            columns = load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise RowCorruptError(f"{name} is no list of rows that we wrote: {error}") from error
        num_lines = len(columns.get("row", ()))
        shapes = {name: (num_lines, 32) if name == "digest" else (num_lines,) for name in _COLUMNS}
        found = {name: columns[name].shape for name in _COLUMNS if name in columns}
        if found != shapes or "names" not in columns:
            raise RowCorruptError(f"{name} is no list of rows that we wrote: its columns differ")
        return Segment(columns)

    def to_bytes(self) -> bytes:
        """The segment's file."""
        return save({name: np.ascontiguousarray(self.columns[name]) for name in self.columns})

    def __len__(self) -> int:
        return len(self.columns["row"])

    @property
    def num_written(self) -> int:
        """Lines of rows that can be read."""
        return int((self.columns["encoding"] != ABSENT).sum())

    @property
    def largest_error(self) -> float:
        """Largest relative error of a row."""
        error, norm = (self.columns[name].astype(np.float64) for name in ("error", "norm"))
        ratios = np.divide(error, norm, out=np.zeros(len(self)), where=norm > 0)
        return float(ratios.max(initial=0.0))

    def names(self) -> list[str]:
        """Names of the units, in the order of rows."""
        blob, ends = self.columns["names"].tobytes(), self.columns["name_end"].tolist()
        starts = [0, *ends][:-1]
        return [blob[start:end].decode() for start, end in zip(starts, ends, strict=True)]

    def position(self, row: int) -> int | None:
        """Place of a row's line, None without one."""
        rows = self.columns["row"]
        at = int(np.searchsorted(rows, row))
        return at if at < len(rows) and int(rows[at]) == row else None

    def entry(self, at: int) -> RowEntry:
        """The line at a place."""
        columns = self.columns
        start = int(columns["name_end"][at - 1]) if at else 0
        unit = columns["names"][start : int(columns["name_end"][at])].tobytes().decode()
        row, samples = int(columns["row"][at]), int(columns["samples"][at])
        code = int(columns["encoding"][at])
        if code == ABSENT:
            return RowEntry(unit, "absent", row, samples)
        return RowEntry(
            unit,
            "written",
            row,
            samples,
            int(columns["generation"][at]),
            ENCODING_NAMES[code],
            columns["digest"][at].tobytes(),
            float(columns["norm"][at]),
            float(columns["error"][at]),
            float(columns["peak"][at]),
            int(columns["bytes"][at]),
        )

    def entries(self) -> Iterator[RowEntry]:
        """All lines."""
        return map(self.entry, range(len(self)))

    def without(self, rows: Iterable[int]) -> "Segment":
        """The segment without the lines of some rows; those it does not have are passed over."""
        kept = ~np.isin(self.columns["row"], list(rows))
        if kept.all():
            return self
        lengths = np.diff(self.columns["name_end"], prepend=0)
        columns = {name: self.columns[name][kept] for name in _COLUMNS}
        columns["names"] = self.columns["names"][np.repeat(kept, lengths)]
        columns["name_end"] = np.cumsum(lengths[kept]).astype(np.int64)
        return Segment(columns)

    def replaced(self, entries: Mapping[int, RowEntry]) -> "Segment":
        """The segment in which `entries` replace the lines of the same rows; it gets no new ones."""
        return Segment.of(entries.get(entry.row, entry) for entry in self.entries())
