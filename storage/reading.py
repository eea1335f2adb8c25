"""Reading rows: every byte is checked against the row's digest before the row counts.

Rows are read in tiles, a segment of columns of one row or of neighbours that share an object, so
that memory stays bounded and the accumulator's columns stay in the cache.

Shapes: M rows of a tile, W bytes of codes, S scales, P parameters.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from storage.accumulator import Accumulator
from storage.backend import ObjectReader
from storage.chunks import Hierarchy
from storage.encoding import ENCODINGS, ByteArray, ScaleArray, decoder
from storage.errors import RowCorruptError, UnknownUnitError
from storage.layout import SEGMENT, Layout
from storage.names import whole_numbers
from storage.row_entry import RowEntry
from storage.summation import MAX_WEIGHT, SumGrid

# Rows read for nothing rather than starting another read.
_ROWS_SKIPPED = 16
# Objects open at once: files cost a descriptor each, whole objects their bytes.
_OPEN_FILES = 32
_HELD_BYTES = 64 << 20


# Called with a run, its columns, codes (M, W) and scales (M, S).
TileUser = Callable[["Run", slice, ByteArray, ScaleArray], None]


class Run(NamedTuple):
    """Rows near each other in one object (one row, unless rows share objects), ascending.

    Attributes:
        entries: the rows.
        positions: where each stood in the caller's list.
    """

    entries: list[RowEntry]
    positions: list[int]


def row_digest(layout: Layout, entry: RowEntry, segments: Sequence[bytes]) -> bytes:
    """Digest that binds a row's bytes to its store, generation, encoding and unit.

    Args:
        layout: the store's constants.
        entry: names unit, generation and encoding.
        segments: BLAKE3 of codes and scales of each segment, in order.
    """
    numbers = struct.pack("<QQ", entry.generation, layout.spec.num_parameters)
    names = f"{entry.encoding}\0{entry.unit}\0".encode()
    header = b"approximator-row-1\0" + bytes.fromhex(layout.store_id) + numbers + names
    return blake3(header + b"".join(segments)).digest()


def segment_digest(codes: ByteArray, scales: ScaleArray) -> bytes:
    """BLAKE3 of one segment's codes and scales."""
    digest = blake3(codes.data)
    if scales.size:
        digest.update(scales.view(np.uint8).data)
    return digest.digest()


def read_rows(
    hierarchy: Hierarchy, entries: Sequence[RowEntry], out: npt.NDArray[np.float32]
) -> None:
    """Decode rows into `out`, float32 (M, P), in the order of `entries`.

    Raises:
        UnknownUnitError: a row was never written.
        RowCorruptError: a row is missing, truncated, flipped, swapped or stale.
    """

    def keep(run: Run, columns: slice, codes: ByteArray, scales: ScaleArray) -> None:
        for i, at in enumerate(run.positions):
            target = out[at : at + 1, columns]
            decoder(str(run.entries[i].encoding), codes[i : i + 1], scales[i : i + 1]).write(target)

    _require_written(entries)
    for group in _groups(hierarchy, entries):
        _visit(hierarchy, group, 1, keep)


def _require_written(entries: Sequence[RowEntry]) -> None:
    for entry in entries:
        if entry.state != "written":
            raise UnknownUnitError(
                f"unit {entry.unit!r:.80} has no row yet: finish the precomputation, then merge"
            )


def sum_rows(
    hierarchy: Hierarchy,
    entries: Sequence[RowEntry],
    weights: Sequence[int],
    grid: SumGrid,
    num_threads: int,
) -> npt.NDArray[np.float64]:
    """Sum weight times row on `grid`, float64 (P,); fails whole if any row does.

    Args:
        hierarchy: where the rows are.
        entries: the rows, each once.
        weights: integer per row, at most 2^26 in magnitude.
        grid: to which each term is rounded.
        num_threads: threads that share the columns.

    Raises:
        TypeError: a weight is no whole number.
        ValueError: a row comes twice, or a weight is too large.
        UnknownUnitError: a row was never written.
        RowCorruptError: a row is missing, truncated, flipped, swapped or stale.
        SumOverflowError: the sum could leave the exact range.
    """
    _require_written(entries)
    if len({entry.row for entry in entries}) < len(entries):
        raise ValueError("a sum takes each unit once; one comes twice")
    factors = whole_numbers(weights)
    if len(factors) != len(entries) or any(abs(factor) > MAX_WEIGHT for factor in factors):
        raise ValueError(
            f"expected {len(entries)} integer weights of at most {MAX_WEIGHT} in magnitude"
        )
    grid.check_bound([float(e.peak or 0) for e in entries], factors)
    total = Accumulator(hierarchy.layout.spec.num_parameters, np.array(factors, np.float64), grid)

    def add(run: Run, columns: slice, codes: ByteArray, scales: ScaleArray) -> None:
        total.add(str(run.entries[0].encoding), run.positions, columns, codes, scales)

    for group in _groups(hierarchy, entries):
        _visit(hierarchy, group, num_threads, add)
    return total.finish()


def check_row(hierarchy: Hierarchy, entry: RowEntry) -> None:
    """Read one row and compare its digest.

    Raises:
        RowCorruptError: it is missing, truncated, flipped, swapped or stale.
    """
    _visit(hierarchy, [Run([entry], [0])], 1, lambda run, columns, codes, scales: None)


def _groups(hierarchy: Hierarchy, entries: Sequence[RowEntry]) -> Iterator[list[Run]]:
    """Runs whose objects may be open at the same time, in the order of rows."""
    order = sorted(range(len(entries)), key=lambda i: entries[i].row)
    runs: list[Run] = []
    for at in order:
        entry = entries[at]
        if runs and _joins(hierarchy, runs[-1], entry):
            runs[-1].entries.append(entry)
            runs[-1].positions.append(at)
        else:
            runs.append(Run([entry], [at]))
    most = _runs_at_once(hierarchy)
    for first in range(0, len(runs), most):
        yield runs[first : first + most]


def _joins(hierarchy: Hierarchy, run: Run, entry: RowEntry) -> bool:
    """Whether one read of the rows from the run's first to `entry` is worth its bytes."""
    first, layout = run.entries[0], hierarchy.layout
    per_chunk = layout.rows_per_chunk(layout.spec.encoding)
    return (
        per_chunk > 1
        and layout.num_segments == 1
        and entry.encoding == first.encoding == layout.spec.encoding
        and entry.row // per_chunk == first.row // per_chunk
        and entry.row - run.entries[-1].row <= _ROWS_SKIPPED
    )


def _runs_at_once(hierarchy: Hierarchy) -> int:
    layout = hierarchy.layout
    if not hierarchy.backend.readers_hold_bytes and layout.spec.codec == "none":
        return _OPEN_FILES
    encoding = ENCODINGS[layout.spec.encoding]
    row_bytes = encoding.code_bytes(layout.chunk_columns(encoding.name))
    return max(1, _HELD_BYTES // (row_bytes * layout.rows_per_chunk(encoding.name)))


def _visit(hierarchy: Hierarchy, group: Sequence[Run], num_threads: int, use: TileUser) -> None:
    """Hand every segment of every row to `use`, then compare the rows' digests.

    What `use` has made of the rows must be thrown away if this raises.
    """
    num_segments = hierarchy.layout.num_segments
    digests = [[[b""] * num_segments for _ in run.entries] for run in group]
    with ExitStack() as stack:
        files = OpenObjects(hierarchy, stack)
        for run in group:
            files.open_all(run.entries[0])

        def work(part: range) -> None:
            # Damaged bytes may decode to anything; they are refused below.
            with np.errstate(over="ignore", invalid="ignore"):
                for segment in part:
                    for run, run_digests in zip(group, digests, strict=True):
                        columns, codes, scales = files.read_segment(run, segment)
                        for i, row in enumerate(run_digests):
                            row[segment] = segment_digest(codes[i], scales[i])
                        use(run, columns, codes, scales)

        parts = [range(i, num_segments, num_threads) for i in range(min(num_threads, num_segments))]
        if len(parts) == 1:
            work(parts[0])
        else:
            with ThreadPoolExecutor(len(parts)) as pool:
                list(pool.map(work, parts))
    for run, run_digests in zip(group, digests, strict=True):
        for entry, segments in zip(run.entries, run_digests, strict=True):
            if row_digest(hierarchy.layout, entry, segments) != entry.digest:
                raise RowCorruptError(
                    f"unit {entry.unit!r}: its stored bytes do not match their digest: flipped, "
                    "swapped with another row, or of an old generation; restore or recompute it"
                )


class OpenObjects:
    """The objects of a group of runs, open until the stack closes."""

    def __init__(self, hierarchy: Hierarchy, stack: ExitStack) -> None:
        self._hierarchy = hierarchy
        self._stack = stack
        self._readers: dict[str, ObjectReader] = {}

    def open_all(self, entry: RowEntry) -> None:
        """Open every object that holds a part of a row."""
        for array, key in self._hierarchy.keys(entry):
            if key in self._readers:
                continue
            try:
                reader = self._hierarchy.open(key, str(entry.encoding), array)
            except RowCorruptError as error:
                raise RowCorruptError(f"unit {entry.unit!r}: {error}") from error
            self._readers[key] = self._stack.enter_context(closing(reader))

    def read_segment(self, run: Run, segment: int) -> tuple[slice, ByteArray, ScaleArray]:
        """Columns of a segment, their codes (M, W) and scales (M, S)."""
        layout, first = self._hierarchy.layout, run.entries[0]
        encoding = ENCODINGS[str(first.encoding)]
        offsets = [entry.row - first.row for entry in run.entries]
        count = offsets[-1] + 1
        columns = slice(segment * SEGMENT, min((segment + 1) * SEGMENT, layout.spec.num_parameters))
        per_chunk = layout.chunk_columns(encoding.name)
        chunk, start = divmod(columns.start, per_chunk)
        in_chunk = first.row % layout.rows_per_chunk(encoding.name)
        codes = np.empty((count, encoding.code_bytes(columns.stop - columns.start)), np.uint8)
        offset = in_chunk * encoding.code_bytes(per_chunk) + encoding.code_bytes(start)
        self._fill(first, "codes", chunk, codes, offset)
        width = encoding.scale_width(columns.stop - columns.start)
        scales = np.empty((count, width), np.uint16)
        if width:
            row_width = encoding.scale_width(layout.spec.num_parameters)
            offset = in_chunk * row_width + encoding.scale_width(columns.start)
            self._fill(first, "scales", 0, scales.view(np.uint8), 2 * offset)
        if offsets != list(range(count)):
            return columns, codes[offsets], scales[offsets]
        return columns, codes, scales

    def _fill(self, entry: RowEntry, array: str, column: int, out: ByteArray, offset: int) -> None:
        key = self._hierarchy.key(entry, array, column)
        if self._readers[key].read_into(out.reshape(-1), offset) != out.size:
            raise RowCorruptError(f"unit {entry.unit!r}: object {key} was cut while it was read")
