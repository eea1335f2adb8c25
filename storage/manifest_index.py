"""The index of a manifest in segments: the one file that is replaced, and names all others by digest.

JSON, sealed as every list of a store is. Files are never changed: another content has another name.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from blake3 import blake3

from storage.errors import LayoutError, RowCorruptError
from storage.layout import parse_json
from storage.manifest import UNSEALED, check_seal, seal

INDEX_NAME = "index.json"
INDEX_VERSION = 2
_IDENTITY = ("store_id", "constants_digest", "generation", "building", "segment_units")


class SegmentLine(NamedTuple):
    """What the index says of a segment.

    Attributes:
        digest: BLAKE3 of its file, in hexadecimal.
        num_lines: units that are not erased.
        num_written: those of them whose rows can be read.
        largest_error: largest relative error of a row.
    """

    digest: str
    num_lines: int
    num_written: int
    largest_error: float


@dataclass(frozen=True)
class ManifestIndex:
    """The index.

    Attributes:
        store_id: the store it belongs to.
        constants_digest: digest of the root attributes, in hexadecimal.
        generation: the generation that is read.
        building: the generation being written beside it, or None.
        segment_units: rows of a segment; segment i has those from i * segment_units on.
        segments: one line each.
        names: digests of the buckets of names.
        erased: digest of the list of erased units' pseudonyms.
        num_erased: how many these are.
    """

    store_id: str
    constants_digest: str
    generation: int
    building: int | None
    segment_units: int
    segments: tuple[SegmentLine, ...]
    names: tuple[str, ...]
    erased: str
    num_erased: int

    @property
    def num_lines(self) -> int:
        """Units that are not erased."""
        return sum(line.num_lines for line in self.segments)

    @property
    def num_written(self) -> int:
        """Rows that can be read."""
        return sum(line.num_written for line in self.segments)

    def to_json(self) -> bytes:
        """The sealed file."""
        document: dict[str, Any] = {name: getattr(self, name) for name in _IDENTITY}
        document |= {
            "format_version": INDEX_VERSION,
            "segments": self.segments,
            "names": self.names,
            "erased": [self.erased, self.num_erased],
            "seal": UNSEALED,
        }
        # Without indents: the encoder in C knows none, and the other takes ten times as long.
        return seal(json.dumps(document, sort_keys=True).encode())

    def keys(self) -> Iterator[str]:
        """Names of all files that belong to it."""
        yield from (segment_key(i, line.digest) for i, line in enumerate(self.segments))
        yield from (bucket_key(i, digest) for i, digest in enumerate(self.names))
        yield erased_key(self.erased)


def parse_index(data: bytes, name: str) -> ManifestIndex:
    """Read an index.

    Args:
        data: the file.
        name: what errors call it.

    Raises:
        RowCorruptError: it is not the file that was written.
        LayoutError: it is of another version.
    """
    check_seal(data, name)
    document = parse_json(data, name)
    if document.get("format_version") != INDEX_VERSION:
        raise LayoutError(
            f"{name} has version {document.get('format_version')}; this program reads "
            f"{INDEX_VERSION}: use the program that wrote it, or a newer one"
        )
    try:
        index = ManifestIndex(
            **{field: document[field] for field in _IDENTITY},
            segments=tuple(SegmentLine(*line) for line in document["segments"]),
            names=tuple(document["names"]),
            erased=document["erased"][0],
            num_erased=document["erased"][1],
        )
        _check_types(index)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RowCorruptError(f"{name} is no manifest that this program wrote: {error}") from error
    return index


def _check_types(index: ManifestIndex) -> None:
    """Raise ValueError for values that this program does not write."""
    counts = [index.generation, index.segment_units, index.num_erased]
    counts += [number for line in index.segments for number in line[1:3]]
    counts += [] if index.building is None else [index.building]
    digests = [line.digest for line in index.segments] + [*index.names, index.erased]
    if not all(type(count) is int and count >= 0 for count in counts) or not index.segment_units:
        raise ValueError("a count in it is none")
    if not all(type(digest) is str and len(bytes.fromhex(digest)) == 32 for digest in digests):
        raise ValueError("a digest in it is none")
    if not index.names or not index.segments:
        raise ValueError("it lists nothing")


def digest_of(data: bytes) -> str:
    """The digest by which the index names a file."""
    return blake3(data).hexdigest()


def segment_key(segment: int, digest: str) -> str:
    """Name of a segment's file."""
    return f"rows-{segment}-{digest[:16]}.safetensors"


def bucket_key(bucket: int, digest: str) -> str:
    """Name of a bucket's file."""
    return f"names-{bucket}-{digest[:16]}.safetensors"


def erased_key(digest: str) -> str:
    """Name of the list of erased units' pseudonyms, one a line."""
    return f"erased-{digest[:16]}.txt"
