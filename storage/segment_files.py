"""Reading the files of a manifest in segments; what was read is held for a while.

A reader that holds an older index, and finds a file gone, takes the one that the present index names in
its place.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import cast

from storage.backend import StorageBackend
from storage.errors import RowCorruptError
from storage.manifest_index import (
    INDEX_NAME,
    ManifestIndex,
    bucket_key,
    digest_of,
    erased_key,
    parse_index,
    segment_key,
)
from storage.name_index import Bucket
from storage.segments import Segment

# Files kept in memory: the segments and buckets of 10,000 units among a million fit.
_FILES_HELD = 4096


class SegmentFiles:
    """Reads the files of one manifest.

    Args:
        backend: where the store is.
        stem: the store's name without suffix.
    """

    def __init__(self, backend: StorageBackend, stem: str) -> None:
        self._backend = backend
        self.folder = f"{stem}.manifest"
        self.key = f"{self.folder}/{INDEX_NAME}"
        self._cached: tuple[str | None, ManifestIndex] | None = None
        self._held: OrderedDict[str, Segment | Bucket] = OrderedDict()

    def index(self) -> ManifestIndex:
        """The index as it stands."""
        version = self._backend.version(self.key)
        if self._cached is None or version is None or self._cached[0] != version:
            self._cached = (version, parse_index(self._backend.read(self.key), self.key))
        return self._cached[1]

    def remember(self, index: ManifestIndex) -> None:
        """Take an index for the present one: called by the lock's holder, who has put it."""
        self._cached = (self._backend.version(self.key), index)

    def segment(self, index: ManifestIndex, number: int, *, hold: bool = True) -> Segment:
        """A segment; kept in memory for a while if it is to be held.

        Raises:
            RowCorruptError: its file is gone, or is not the one that the index names.
        """

        def key_in(index: ManifestIndex) -> tuple[str, str]:
            digest = index.segments[number].digest
            return segment_key(number, digest), digest

        return cast(Segment, self._parsed(index, key_in, Segment.from_bytes, hold=hold))

    def bucket(self, index: ManifestIndex, number: int) -> Bucket:
        """A bucket of names; raises as `segment`."""

        def key_in(index: ManifestIndex) -> tuple[str, str]:
            return bucket_key(number, index.names[number]), index.names[number]

        return cast(Bucket, self._parsed(index, key_in, Bucket.from_bytes, hold=True))

    def erased(self, index: ManifestIndex) -> frozenset[str]:
        """Pseudonyms of the erased units; raises as `segment`."""
        _, data = self._read(index, lambda index: (erased_key(index.erased), index.erased))
        return frozenset(data.decode().split("\n")) - {""}

    def _parsed(
        self,
        index: ManifestIndex,
        key_in: Callable[[ManifestIndex], tuple[str, str]],
        parse: Callable[[bytes, str], Segment | Bucket],
        *,
        hold: bool,
    ) -> Segment | Bucket:
        name, _ = key_in(index)
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        name, data = self._read(index, key_in)
        parsed = parse(data, f"{self.folder}/{name}")
        if hold:
            self._held[name] = parsed
            if len(self._held) > _FILES_HELD:
                self._held.popitem(last=False)
        return parsed

    def _read(
        self, index: ManifestIndex, key_in: Callable[[ManifestIndex], tuple[str, str]]
    ) -> tuple[str, bytes]:
        """Name and content of a file: as named here or, if that is gone, in the present index."""
        name, digest = key_in(index)
        key = f"{self.folder}/{name}"
        try:
            data = self._backend.read(key)
        except FileNotFoundError as error:
            present = self.index()
            if key_in(present)[0] != name:
                return self._read(present, key_in)
            raise RowCorruptError(
                f"{key} is missing, and {self.key} names it; restore it"
            ) from error
        if digest_of(data) != digest:
            raise RowCorruptError(
                f"{key} was edited or damaged: it is not the file that {self.key} names; restore it"
            )
        return name, data
