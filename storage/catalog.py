"""The manifest's files: the manifest itself, its parts, a pending erasure, and their locks.

Order of durable events, which every crash falls between: rows, then their block's part, then the
manifest that folds the part in, then the part's removal.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

from storage.backend import PARTIAL, StorageBackend
from storage.errors import LayoutError, RowCorruptError, WriterConflictError
from storage.layout import (
    FORMAT_VERSION,
    KEY_NUMBER,
    SEGMENTED_VERSION,
    canonical_json,
    parse_json,
)
from storage.manifest import UNSEALED, Manifest, check_seal, parse_manifest, seal
from storage.segmented_manifest import SegmentedFile

_PART = re.compile(
    rf"generation-(?P<generation>{KEY_NUMBER})-block-(?P<block>{KEY_NUMBER})\.parquet"
    rf"(?P<suffix>{re.escape(PARTIAL)})?"
)
_WRITING = re.compile(rf"block-(?P<block>{KEY_NUMBER})\.writing({re.escape(PARTIAL)})?")
_OURS = re.compile(
    rf"{_PART.pattern}|manifest\.lock|block-{KEY_NUMBER}\.lock|erasure\.json({re.escape(PARTIAL)})?"
    rf"|block-{KEY_NUMBER}\.writing({re.escape(PARTIAL)})?"
)


class WholeFile:
    """The manifest of version 1: one Parquet file."""

    def __init__(self, backend: StorageBackend, stem: str) -> None:
        self._backend = backend
        self.key = f"{stem}.parquet"

    def load(self) -> Manifest:
        """The manifest; FileNotFoundError without it."""
        return parse_manifest(self._backend.read(self.key), self.key)

    def save(self, manifest: Manifest) -> None:
        """Replace it."""
        self._backend.put(self.key, manifest.to_parquet())

    def fold(self, manifest: Manifest, parts: Iterable[Manifest]) -> None:
        """Replace it by one with the lines of parts."""
        entries = (entry for part in list(parts) for entry in part.entries.values())
        self.save(manifest.with_entries(entries))

    def remains(self) -> list[str]:
        """Its files, where it is not the store's manifest."""
        return [self.key] if self._backend.version(self.key) is not None else []


class Catalog:
    """Reads and replaces the files that say which rows count.

    Args:
        backend: where the store is.
        stem: the store's name without suffix.
        store_id: of the store; files of another one are refused.
        constants_digest: digest of the root attributes, bound into every file.
        version: of the format.
    """

    def __init__(
        self,
        backend: StorageBackend,
        stem: str,
        store_id: str,
        constants_digest: str,
        version: int = FORMAT_VERSION,
    ) -> None:
        self._backend = backend
        whole, segmented = WholeFile(backend, stem), SegmentedFile(backend, stem)
        self.segmented = segmented if version == SEGMENTED_VERSION else None
        self._file: WholeFile | SegmentedFile = self.segmented or whole
        self._other: WholeFile | SegmentedFile = whole if self.segmented else segmented
        self.key, self.other_key = self._file.key, self._other.key
        self.folder = f"{stem}.parts"
        self._erasure_key = f"{self.folder}/erasure.json"
        self.constants_digest = constants_digest
        self._identity = (store_id, constants_digest)
        self._cached: tuple[str, Manifest] | None = None

    def version(self) -> str:
        """Changes whenever what `load` returns may have."""
        versions = (self._backend.version(self.key), self._backend.version(self._erasure_key))
        return "/".join(str(version) for version in versions)

    def load(self) -> Manifest:
        """The manifest, with a pending erasure already taken out.

        Raises:
            LayoutError: it is missing, of another store, or of another version.
            RowCorruptError: it was edited or damaged.
        """
        # Taken before reading: a change in between makes the next call read again.
        version = self.version()
        if self._cached is None or self._cached[0] != version:
            self._cached = (version, self._load())
        return self._cached[1]

    def _load(self) -> Manifest:
        try:
            manifest = self._file.load()
        except FileNotFoundError as error:
            if self._backend.version(self.other_key) is not None:
                raise LayoutError(
                    f"{self.key} is gone, and {self.other_key} is there: the store was upgraded; open "
                    "it again"
                ) from error
            raise LayoutError(
                f"{self.key} is missing: without a manifest no row counts; restore it"
            ) from error
        self._check_identity(manifest, self.key)
        pending = self.pending_erasure()
        return manifest.without(pending) if pending else manifest

    def save(self, manifest: Manifest) -> None:
        """Replace the manifest; durable on return."""
        self._backend.settle()
        self._file.save(manifest)
        self._backend.settle()

    def fold(self, manifest: Manifest, blocks: Iterable[int]) -> None:
        """Save a manifest with the lines of some blocks' parts in it, those of its generation.

        Raises:
            RowCorruptError: a part is damaged; nothing has changed.
        """
        self._backend.settle()
        found = (self.part(manifest.generation, block) for block in sorted(blocks))
        self._file.fold(manifest, (part for part in found if part is not None))
        self._backend.settle()

    def lock(self) -> AbstractContextManager[None]:
        """Hold the manifest; waits for its holder."""
        return self._backend.lock(f"{self.folder}/manifest.lock", wait=True)

    def block_lock(self, block: int, *, wait: bool) -> AbstractContextManager[None]:
        """Hold a block's objects and part."""
        return self._backend.lock(f"{self.folder}/block-{block}.lock", wait=wait)

    def begin_block(self, block: int) -> None:
        """Write down that a block's objects are about to change: called by its lock's holder."""
        if self.segmented is not None:
            self._backend.put(self._writing_key(block), b"objects of this block may be unlisted")
            self._backend.settle()

    def end_block(self, block: int) -> None:
        """Strike that off, once all its objects are listed or gone."""
        if self.segmented is not None:
            self._backend.delete(self._writing_key(block))

    def _writing_key(self, block: int) -> str:
        return f"{self.folder}/block-{block}.writing"

    def blocks_in_writing(self) -> list[int]:
        """Blocks whose writers are at work, or have died."""
        matches = (_WRITING.fullmatch(name) for name in self._names())
        return sorted({int(match["block"]) for match in matches if match})

    def is_settled(self) -> bool:
        """Whether nothing but a pending erasure is under way: then there is nothing to sweep.

        Versions before 2 write down no beginning of a block, so that nobody can tell.
        """
        names = [name for name in self._names() if _OURS.fullmatch(name)]
        return self.segmented is not None and set(names) <= {"erasure.json"}

    def _names(self) -> list[str]:
        keys = self._backend.sizes(self.folder)
        return [key.removeprefix(f"{self.folder}/") for key in keys]

    def part(self, generation: int, block: int) -> Manifest | None:
        """A block's part; None without it.

        Raises:
            RowCorruptError: it is there but damaged.
            LayoutError: it is of another store, or no file.
        """
        key = self._part_key(generation, block)
        try:
            part = parse_manifest(self._backend.read(key), key)
        except FileNotFoundError:
            return None
        self._check_identity(part, key)
        if (part.generation, part.block) != (generation, block):
            raise RowCorruptError(f"{key} is the part of another block; write the block again")
        return part

    def save_part(self, part: Manifest) -> None:
        """List a block's rows, once everything put before is durable."""
        self._backend.settle()
        self._backend.put(self._part_key(part.generation, int(part.block or 0)), part.to_parquet())
        self._backend.settle()

    def delete_part(self, generation: int, block: int) -> None:
        """Remove a part that is folded in, or empty."""
        self._backend.delete(self._part_key(generation, block))

    def part_keys(self) -> dict[tuple[int, int], str]:
        """Key of every part by (generation, block)."""
        found = {}
        for key in self._backend.sizes(self.folder):
            match = _PART.fullmatch(key.removeprefix(f"{self.folder}/"))
            if match is not None and match["suffix"] is None:
                found[int(match["generation"]), int(match["block"])] = key
        return found

    def strays(self) -> list[str]:
        """Keys in the folder of parts that no store writes."""
        found = [f"{self.folder}/{name}" for name in self._names() if not _OURS.fullmatch(name)]
        return found + (self.segmented.strays() if self.segmented else [])

    def unnamed(self) -> list[str]:
        """Files of a manifest that count for nothing: the next sweep removes them."""
        found = self.segmented.unnamed() if self.segmented else []
        return found + self._other.remains()

    def sweep(self, documents: Sequence[str]) -> None:
        """Remove files that a crash cut off while they were written.

        Args:
            documents: keys of metadata documents, which the manifest's lock covers as well.
        """
        with self.lock():
            for key in (self.key, self._erasure_key, *documents):
                self._backend.delete(key + PARTIAL)
            self._sweep_other()
        for key in self._backend.sizes(self.folder):
            match = _PART.fullmatch(key.removeprefix(f"{self.folder}/"))
            if match is None or match["suffix"] is None:
                continue
            try:
                with self.block_lock(int(match["block"]), wait=False):
                    self._backend.delete(key)
            except WriterConflictError:
                continue

    def _sweep_other(self) -> None:
        # Left by an upgrade that was cut short, before its end or after it.
        for key in self._other.remains():
            self._backend.delete(key)

    def sweep_manifest(self) -> None:
        """Remove files of manifests that crashes left and no index names: by the lock's holder."""
        if self.segmented is not None:
            self.segmented.sweep()
        self._sweep_other()

    def pending_erasure(self) -> dict[int, str]:
        """Pseudonyms by row of an erasure that was begun and not finished.

        Raises:
            RowCorruptError: the file is damaged; delete it and repeat the erasure.
            LayoutError: it is no file, or not what this program writes.
        """
        try:
            data = self._backend.read(self._erasure_key)
        except FileNotFoundError:
            return {}
        check_seal(data, self._erasure_key)
        document = parse_json(data, self._erasure_key)
        try:
            return {int(row): str(pseudonym) for row, pseudonym in document["erase"].items()}
        except (AttributeError, KeyError, ValueError) as error:
            raise LayoutError(
                f"{self._erasure_key} is no list of erasures that this program wrote; delete it "
                "and repeat the deletion"
            ) from error

    def begin_erasure(self, pseudonyms: Mapping[int, str]) -> None:
        """Write down what is to be erased; from here on it will be, whatever crashes."""
        names = {str(row): name for row, name in pseudonyms.items()}
        document = canonical_json({"erase": names, "seal": UNSEALED})
        self._backend.put(self._erasure_key, seal(document))
        self._backend.settle()

    def end_erasure(self) -> None:
        """Remove the note of a finished erasure."""
        self._backend.settle()
        self._backend.delete(self._erasure_key)
        self._backend.settle()

    def _part_key(self, generation: int, block: int) -> str:
        return f"{self.folder}/generation-{generation}-block-{block}.parquet"

    def _check_identity(self, manifest: Manifest, key: str) -> None:
        if (manifest.store_id, manifest.constants_digest) != self._identity:
            raise LayoutError(
                f"{key} belongs to another store, or the store's attributes were edited: expected "
                f"store {self._identity[0]}, found {manifest.store_id}; restore both together"
            )
