"""A manifest's lines and erased names, read from their files when they are asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from typing import TypeVar, cast

import numpy as np

from storage.manifest_index import ManifestIndex, SegmentLine
from storage.name_index import bucket_of
from storage.row_entry import RowEntry
from storage.segment_files import SegmentFiles
from storage.segments import ABSENT, Segment

T = TypeVar("T")

# A deletion looks at each of its lines a dozen times.
_LINES_HELD = 1 << 16


class SegmentedRows(Mapping[int, RowEntry]):
    """Lines by row, each segment read when it is asked for.

    Attributes:
        index: names the segments.
        gone: rows that are left out.
    """

    def __init__(
        self, file: SegmentFiles, index: ManifestIndex, gone: frozenset[int] = frozenset()
    ) -> None:
        self._file, self.index, self.gone = file, index, gone
        self._known: dict[int, RowEntry] = {}

    def without(self, rows: Iterable[int]) -> "SegmentedRows":
        """The lines without those of some rows."""
        return SegmentedRows(self._file, self.index, self.gone.union(rows))

    def candidates(self, name: str) -> Sequence[int]:
        """Rows of which one may be that of a name."""
        number = bucket_of(name, len(self.index.names))
        return self._file.bucket(self.index, number).rows_of(name)

    def __getitem__(self, row: int) -> RowEntry:
        if row in self._known:
            return self._known[row]
        number = row // self.index.segment_units
        if row not in self.gone and 0 <= number < len(self.index.segments):
            segment = self._file.segment(self.index, number)
            at = segment.position(row)
            if at is not None:
                if len(self._known) >= _LINES_HELD:
                    self._known.clear()
                return self._known.setdefault(row, segment.entry(at))
        raise KeyError(row)

    def __contains__(self, row: object) -> bool:
        number = cast(int, row) // self.index.segment_units
        if row in self.gone or not 0 <= number < len(self.index.segments):
            return False
        return self._file.segment(self.index, number).position(cast(int, row)) is not None

    def __len__(self) -> int:
        if not self.gone:
            return self.index.num_lines
        return sum(map(len, self.segments()))

    def __iter__(self) -> Iterator[int]:
        for segment in self.segments():
            yield from segment.columns["row"].tolist()

    def lines(self) -> Iterator[tuple[int, str, bool]]:
        """Row and name of every unit, and whether its row is written."""
        for segment in self.segments():
            written = (segment.columns["encoding"] != ABSENT).tolist()
            yield from zip(segment.columns["row"].tolist(), segment.names(), written, strict=True)

    def written(self) -> tuple[int, float]:
        """How many rows can be read, and the largest relative error of one."""
        # Both say these figures of themselves.
        lines: Iterable[Segment | SegmentLine] = (
            self.segments() if self.gone else self.index.segments
        )
        figures = [(line.num_written, line.largest_error) for line in lines]
        return sum(count for count, _ in figures), max(error for _, error in figures)

    def blocks_waiting(self, target: int, size: int) -> set[int]:
        """Blocks of `size` rows of which one is not listed in generation `target`."""
        if target == self.index.generation and self.index.num_written == self.index.num_lines:
            return set()
        waiting: set[int] = set()
        for segment in self.segments():
            rows = segment.columns["row"][segment.columns["generation"] != target]
            waiting.update(np.unique(rows // size).tolist())
        return waiting

    def segments(self) -> Iterator[Segment]:
        """All lines, segment by segment, none of which is held."""
        for number in range(len(self.index.segments)):
            segment = self._file.segment(self.index, number, hold=False)
            yield segment.without(self.gone) if self.gone else segment

    def values(self) -> ValuesView[RowEntry]:
        """All lines, in the order of rows."""
        return _Lines(self)


class _Lines(ValuesView[RowEntry]):
    """The lines of a manifest in segments, each segment read once."""

    def __init__(self, rows: SegmentedRows) -> None:
        super().__init__(rows)
        self._rows = rows

    def __iter__(self) -> Iterator[RowEntry]:
        for segment in self._rows.segments():
            yield from segment.entries()


class ErasedNames(Set[str]):
    """Pseudonyms of erased units, read when they are asked for."""

    def __init__(self, read: Callable[[], frozenset[str]], count: int) -> None:
        self._read, self._count = read, count
        self._names: frozenset[str] | None = None

    @classmethod
    def _from_iterable(cls, it: Iterable[str]) -> frozenset[str]:  # type: ignore[override]
        return frozenset(it)

    def _all(self) -> frozenset[str]:
        if self._names is None:
            self._names = self._read() if self._count else frozenset()
        return self._names

    # `Set` would ask name by name; every deletion compares the whole list with the ledger's.

    def __and__(self, other: Set[object]) -> frozenset[str]:
        return self._all().intersection(other)

    def __or__(self, other: Set[T]) -> frozenset[str | T]:
        return self._all().union(other)

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return self._count
