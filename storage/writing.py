"""Writing one block: rows checked, encoded, made durable, and then listed in the block's part.

Shapes: M rows of a block, P parameters, R rows of an object, W bytes of codes, S scales.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from storage.catalog import Catalog
from storage.chunks import Hierarchy, pack
from storage.encoding import ENCODINGS, ByteArray, Float32Array
from storage.errors import RowCorruptError, RowRejectedError, WriterConflictError
from storage.facts import BlockFacts, block_facts
from storage.layout import SEGMENT
from storage.manifest import Manifest
from storage.quantization import EncodedRow, encode_within, sum_of_squares
from storage.reading import check_row, row_digest, segment_digest
from storage.row_entry import RowEntry

_NORM_PIECE = 1 << 16


def write_block(
    hierarchy: Hierarchy, catalog: Catalog, block: int, rows_MP: npt.NDArray[np.float32]
) -> BlockFacts:
    """Write and list the rows of a block; see `ApproximatorStore.write_rows`."""
    writer = _BlockWriter(hierarchy, catalog, block, rows_MP)
    # A lock that may be a dead writer's is waited for: it runs out, and no later attempt would gain.
    with catalog.block_lock(block, wait=hierarchy.backend.locks_outlive_holders):
        return writer.write()


class _BlockWriter:
    """One block on its way to disk."""

    def __init__(
        self, hierarchy: Hierarchy, catalog: Catalog, block: int, rows_MP: Float32Array
    ) -> None:
        layout = hierarchy.layout
        units = layout.block_units(block)
        expected = (len(units), layout.spec.num_parameters)
        if rows_MP.shape != expected or rows_MP.dtype != np.float32:
            raise RowRejectedError(
                f"block {block} takes float32 rows of shape {expected}, found {rows_MP.dtype} of "
                f"shape {rows_MP.shape}"
            )
        self._hierarchy, self._catalog, self._block = hierarchy, catalog, block
        self._units, self._rows_MP = units, rows_MP

    def write(self) -> BlockFacts:
        # Read under the lock: a unit erased a moment ago must not come back.
        part = self._part(self._catalog.load().target)
        # After the part, as in `listing.read_lists`: a merge in between must not hide the rows.
        manifest = self._catalog.load()
        live = {row: manifest.entries[row] for row in self._units if row in manifest.entries}
        norms = {row: self._checked_norm(entry) for row, entry in live.items()}
        listed = self._listed(manifest, part)
        if listed and self._is_intact(manifest, live, norms, listed):
            return block_facts(listed)
        entries: dict[int, RowEntry] = {}
        self._catalog.begin_block(self._block)
        for chunk in self._chunks():
            in_chunk = {row: live[row] for row in chunk if row in live}
            entries |= self._write_chunk(manifest, chunk, in_chunk, norms)
        part = replace(
            manifest,
            generation=manifest.target,
            building=None,
            entries=entries,
            erased=frozenset(),
            block=self._block,
            candidates=None,
        )
        self._catalog.save_part(part)
        self._catalog.end_block(self._block)
        return block_facts(entries)

    def _checked_norm(self, entry: RowEntry) -> float:
        """|row| in L2; refuses what is not finite or above the cap."""
        row = self._rows_MP[entry.row - self._units.start]
        starts = range(0, row.size, _NORM_PIECE)
        squares = (sum_of_squares(row[i : i + _NORM_PIECE].astype(np.float64)) for i in starts)
        norm = math.sqrt(sum(squares))
        if not math.isfinite(norm):
            raise RowRejectedError(
                f"unit {entry.unit!r}: its row holds values that are not finite; nothing of block "
                f"{self._block} was written"
            )
        cap = self._hierarchy.layout.spec.row_norm_cap
        if cap is not None and norm > cap:
            raise RowRejectedError(
                f"unit {entry.unit!r}: |row| is {norm:.6g}, above row_norm_cap {cap:.6g}; nothing "
                f"of block {self._block} was written"
            )
        return norm

    def _part(self, generation: int) -> Manifest | None:
        """The block's part; a damaged one lists nothing, and the block is written again."""
        try:
            return self._catalog.part(generation, self._block)
        except RowCorruptError:
            return None

    def _listed(self, manifest: Manifest, part: Manifest | None) -> dict[int, RowEntry]:
        """Rows of this block that are listed in the generation being written."""
        listed = {
            row: manifest.entries[row]
            for row in self._units
            if row in manifest.entries and manifest.entries[row].generation == manifest.target
        }
        if part is not None:
            listed |= {r: e for r, e in part.entries.items() if r in manifest.entries}
        return listed

    def _is_intact(
        self,
        manifest: Manifest,
        live: Mapping[int, RowEntry],
        norms: Mapping[int, float],
        listed: Mapping[int, RowEntry],
    ) -> bool:
        """Whether the listed rows are these rows, and are on disk.

        Raises:
            WriterConflictError: they are others.
        """
        for row, entry in live.items():
            found = self._entry(manifest, entry, self._encode(row, norms[row]), norms[row])
            # The digest alone: norms' and errors' last bits may differ between machines.
            if row in listed and found.digest != listed[row].digest:
                raise WriterConflictError(
                    f"unit {entry.unit!r}: block {self._block} is already listed with another row; "
                    "a listed row is never replaced: begin a new generation"
                )
        try:
            for entry in listed.values():
                check_row(self._hierarchy, entry)
        except RowCorruptError:
            return False
        return len(listed) == len(live)

    def _encode(self, row: int, norm: float) -> EncodedRow:
        layout = self._hierarchy.layout
        values = np.ascontiguousarray(self._rows_MP[row - self._units.start])
        return encode_within(values, norm, layout.encodings, layout.spec.error_cap)

    def _entry(
        self, manifest: Manifest, entry: RowEntry, encoded: EncodedRow, norm: float
    ) -> RowEntry:
        layout, kind = self._hierarchy.layout, ENCODINGS[encoded.encoding]
        columns = layout.spec.num_parameters
        segments = []
        for start in range(0, columns, SEGMENT):
            piece = slice(start, min(start + SEGMENT, columns))
            codes, scales = kind.cut(encoded.codes[None], encoded.scales[None], piece)
            segments.append(segment_digest(codes[0], scales[0]))
        written = entry._replace(
            state="written",
            generation=manifest.target,
            encoding=encoded.encoding,
            norm=norm,
            error=encoded.error,
            peak=encoded.peak,
            bytes=encoded.codes.nbytes + encoded.scales.nbytes,
        )
        return written._replace(digest=row_digest(layout, written, segments))

    def _chunks(self) -> Iterator[range]:
        layout = self._hierarchy.layout
        rows = layout.rows_per_chunk(layout.spec.encoding)
        for first in range(self._units.start, self._units.stop, rows):
            yield range(first, min(first + rows, self._units.stop))

    def _write_chunk(
        self,
        manifest: Manifest,
        chunk: range,
        live: Mapping[int, RowEntry],
        norms: Mapping[int, float],
    ) -> dict[int, RowEntry]:
        """Write the rows that share an object, and widened ones into objects of their own."""
        layout = self._hierarchy.layout
        declared, num_columns = ENCODINGS[layout.spec.encoding], layout.spec.num_parameters
        num_rows = layout.rows_per_chunk(declared.name)
        codes_RW = np.zeros((num_rows, declared.code_bytes(num_columns)), np.uint8)
        scales_RS = np.zeros((num_rows, declared.scale_width(num_columns)), np.uint16)
        entries: dict[int, RowEntry] = {}
        shared: RowEntry | None = None
        for row, entry in live.items():
            encoded = self._encode(row, norms[row])
            entries[row] = self._entry(manifest, entry, encoded, norms[row])
            if encoded.encoding == declared.name:
                codes_RW[row - chunk.start] = encoded.codes
                scales_RS[row - chunk.start] = encoded.scales
                shared = entries[row]
            else:
                self._put(entries[row], encoded.codes[None], encoded.scales[None])
        if shared is not None:
            self._put(shared, codes_RW, scales_RS)
        return entries

    def _put(self, entry: RowEntry, codes_RW: ByteArray, scales_RS: npt.NDArray[np.uint16]) -> None:
        """Put the objects of one chunk of rows; `entry` is one of them."""
        hierarchy, name = self._hierarchy, str(entry.encoding)
        objects: dict[str, bytes | ByteArray] = {}
        layout = hierarchy.layout
        width = ENCODINGS[name].code_bytes(layout.chunk_columns(name))
        for column in range(layout.num_column_chunks(name)):
            piece = codes_RW[:, column * width : (column + 1) * width]
            if piece.shape[1] < width:
                piece = np.pad(piece, ((0, 0), (0, width - piece.shape[1])))
            data = pack(np.ascontiguousarray(piece).reshape(-1), layout, name)
            objects[hierarchy.key(entry, "codes", column)] = data
        if ENCODINGS[name].scale_block:
            data = np.ascontiguousarray(scales_RS).reshape(-1).view(np.uint8)
            objects[hierarchy.key(entry, "scales", 0)] = data
        hierarchy.backend.put_all(objects)
