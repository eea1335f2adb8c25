"""A manifest in segments: what a change costs does not grow with the number of units.

    <stem>.manifest/index.json                          names all others by digest; replaced as a whole
    <stem>.manifest/rows-<i>-<digest>.safetensors       the lines of some thousand rows (`segments.py`)
    <stem>.manifest/names-<b>-<digest>.safetensors      the rows of units by name (`name_index.py`)
    <stem>.manifest/erased-<digest>.txt                 pseudonyms of erased units

A change writes the files that differ under new names, then the index, then removes the files that
the index named before.
"""

import re
from collections.abc import Iterable, Set
from dataclasses import replace
from itertools import groupby

import numpy as np

from storage.backend import PARTIAL, StorageBackend
from storage.errors import LayoutError, RowCorruptError
from storage.layout import KEY_NUMBER, segment_units
from storage.manifest import Manifest
from storage.manifest_index import (
    INDEX_NAME,
    ManifestIndex,
    SegmentLine,
    bucket_key,
    digest_of,
    erased_key,
    segment_key,
)
from storage.name_index import Bucket, bucket_of, hashes_of, make_buckets
from storage.segment_files import SegmentFiles
from storage.segmented_rows import ErasedNames, SegmentedRows
from storage.segments import Segment

_OURS = re.compile(
    rf"(?P<name>index\.json|rows-{KEY_NUMBER}-[0-9a-f]{{16}}\.safetensors"
    rf"|names-{KEY_NUMBER}-[0-9a-f]{{16}}\.safetensors|erased-[0-9a-f]{{16}}\.txt)"
    rf"(?P<suffix>{re.escape(PARTIAL)})?"
)
# Enough for their fsyncs to share the disk's writes; their bytes, 30 MB, are held in memory.
_FILES_PUT_AT_ONCE = 64


class SegmentedFile:
    """Reads and replaces the manifest of one store.

    Args:
        backend: where the store is.
        stem: the store's name without suffix.
    """

    def __init__(self, backend: StorageBackend, stem: str) -> None:
        self._backend = backend
        self.files = SegmentFiles(backend, stem)
        self.key, self.folder = self.files.key, self.files.folder

    def load(self) -> Manifest:
        """The manifest; its lines are read when they are asked for.

        Raises:
            FileNotFoundError: there is none.
            RowCorruptError, LayoutError: as `parse_index`.
        """
        index = self.files.index()
        rows = SegmentedRows(self.files, index)
        names = ErasedNames(lambda: self.files.erased(index), index.num_erased)
        identity = (index.store_id, index.constants_digest, index.generation, index.building)
        return Manifest(*identity, rows, names, candidates=rows.candidates)

    def save(self, manifest: Manifest) -> None:
        """Replace the manifest, by a new one or one with fewer lines; durable on return."""
        rows = manifest.entries
        if not isinstance(rows, SegmentedRows):
            self._create(manifest)
            return
        edition = _Edition(self.files, self._backend, rows.index)
        by_bucket: dict[int, list[int]] = {}
        for number, gone in groupby(sorted(rows.gone), lambda row: row // rows.index.segment_units):
            segment, removed = self.files.segment(rows.index, number), list(gone)
            at = [place for row in removed if (place := segment.position(row)) is not None]
            for entry in map(segment.entry, at):
                bucket = bucket_of(entry.unit, len(rows.index.names))
                by_bucket.setdefault(bucket, []).append(entry.row)
            if at:
                edition.put_segment(number, segment.without(removed))
        for number, removed in by_bucket.items():
            edition.put_bucket(number, self.files.bucket(rows.index, number).without(removed))
        if not isinstance(manifest.erased, ErasedNames):
            edition.put_erased(manifest.erased)
        edition.finish(manifest)

    def fold(self, manifest: Manifest, parts: Iterable[Manifest]) -> None:
        """Replace lines by those of parts, which are in the order of their rows; durable on return.

        Raises:
            RowCorruptError: a part is damaged; nothing has changed.
        """
        rows = manifest.entries
        assert isinstance(rows, SegmentedRows), "a manifest that was loaded"
        edition = _Edition(self.files, self._backend, rows.index)
        lines = (part.entries[row] for part in parts for row in sorted(part.entries))
        for number, entries in groupby(lines, lambda entry: entry.row // rows.index.segment_units):
            # Lines of a pending erasure stay: what erases them looks up their names here.
            segment = self.files.segment(rows.index, number, hold=False)
            edition.put_segment(number, segment.replaced({entry.row: entry for entry in entries}))
        edition.finish(manifest)

    def _create(self, manifest: Manifest) -> None:
        entries = manifest.entries
        rows = np.sort(np.fromiter(entries, np.int64, len(entries)))
        size, number = self._extent(manifest, int(rows[-1]) + 1 if len(rows) else 1)
        blank = "00" * 32
        index = ManifestIndex(
            manifest.store_id,
            manifest.constants_digest,
            manifest.generation,
            manifest.building,
            size,
            (SegmentLine(blank, 0, 0, 0.0),) * number,
            (blank,) * number,
            blank,
            0,
        )
        edition = _Edition(self.files, self._backend, index, is_new=True)
        cuts = np.searchsorted(rows, size * np.arange(number + 1))
        hashes = []
        for i in range(number):
            lines = [entries[row] for row in rows[cuts[i] : cuts[i + 1]].tolist()]
            hashes.append(hashes_of(entry.unit for entry in lines))
            edition.put_segment(i, Segment.of(lines))
        for i, bucket in enumerate(make_buckets(np.concatenate(hashes), rows, number)):
            edition.put_bucket(i, bucket)
        edition.put_erased(manifest.erased)
        edition.finish(manifest)
        # A creation that was cut short may have left files of other units.
        self.sweep()

    def _extent(self, manifest: Manifest, num_rows: int) -> tuple[int, int]:
        """Rows of a segment, and segments: no fewer than before, since a reader may count on them."""
        try:
            before = self.files.index()
        except (FileNotFoundError, LayoutError, RowCorruptError):
            before = None
        if before is None or before.store_id != manifest.store_id:
            return segment_units(), -(-num_rows // segment_units())
        size = before.segment_units
        return size, max(len(before.segments), -(-num_rows // size))

    def sweep(self) -> None:
        """Remove what no index names: to be called by the holder of the manifest's lock."""
        for key in self.unnamed():
            self._backend.delete(key)

    def unnamed(self) -> list[str]:
        """Files of ours that the index does not name."""
        named = {INDEX_NAME, *self.files.index().keys()}
        names = [key.removeprefix(f"{self.folder}/") for key in self._backend.sizes(self.folder)]
        return [f"{self.folder}/{n}" for n in names if n not in named and _OURS.fullmatch(n)]

    def remains(self) -> list[str]:
        """Its files, where it is not the store's manifest."""
        names = [key.removeprefix(f"{self.folder}/") for key in self._backend.sizes(self.folder)]
        return [f"{self.folder}/{name}" for name in names if _OURS.fullmatch(name)]

    def strays(self) -> list[str]:
        """Keys in the manifest's folder that no store writes."""
        keys = self._backend.sizes(self.folder)
        return [key for key in keys if not _OURS.fullmatch(key.removeprefix(f"{self.folder}/"))]


class _Edition:
    """The next state of a manifest on its way to disk."""

    def __init__(
        self,
        files: SegmentFiles,
        backend: StorageBackend,
        index: ManifestIndex,
        *,
        is_new: bool = False,
    ) -> None:
        self._files, self._backend, self._index = files, backend, index
        self._before = set() if is_new else set(index.keys())
        self._segments, self._names = list(index.segments), list(index.names)
        self._erased = (index.erased, index.num_erased)
        self._waiting: dict[str, bytes] = {}

    def put_segment(self, number: int, segment: Segment) -> None:
        data = segment.to_bytes()
        line = (digest_of(data), len(segment), segment.num_written, segment.largest_error)
        self._segments[number] = SegmentLine(*line)
        self._put(segment_key(number, line[0]), data)

    def put_bucket(self, number: int, bucket: Bucket) -> None:
        data = bucket.to_bytes()
        self._names[number] = digest_of(data)
        self._put(bucket_key(number, self._names[number]), data)

    def put_erased(self, names: Set[str]) -> None:
        data = "\n".join(sorted(names)).encode()
        self._erased = (digest_of(data), len(names))
        self._put(erased_key(self._erased[0]), data)

    def _put(self, name: str, data: bytes) -> None:
        self._waiting[f"{self._files.folder}/{name}"] = data
        if len(self._waiting) >= _FILES_PUT_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._backend.put_all(self._waiting)
        self._waiting = {}

    def finish(self, manifest: Manifest) -> None:
        """Put the index, then remove what only the one before named."""
        self._flush()
        index = replace(
            self._index,
            generation=manifest.generation,
            building=manifest.building,
            segments=tuple(self._segments),
            names=tuple(self._names),
            erased=self._erased[0],
            num_erased=self._erased[1],
        )
        self._backend.settle()
        self._backend.put(self._files.key, index.to_json())
        self._backend.settle()
        self._files.remember(index)
        for name in sorted(self._before.difference(index.keys())):
            self._backend.delete(f"{self._files.folder}/{name}")
        self._backend.settle()
