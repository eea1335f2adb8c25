"""Figures about stored rows, for reports: of one block, and of a whole store."""

from collections.abc import Mapping
from dataclasses import dataclass

from storage.chunks import Hierarchy
from storage.manifest import Manifest
from storage.row_entry import RowEntry, relative_error


@dataclass(frozen=True)
class BlockFacts:
    """What a writer reports of a block.

    Attributes:
        rows: rows listed; erased units have none.
        bytes: their codes and scales before any codec.
        max_relative_error: largest |decoded - a| / |a|.
        max_norm: largest |a|.
    """

    rows: int
    bytes: int
    max_relative_error: float
    max_norm: float


def block_facts(entries: Mapping[int, RowEntry]) -> BlockFacts:
    """Facts of listed rows."""
    listed = entries.values()
    return BlockFacts(
        rows=len(entries),
        bytes=sum(entry.bytes or 0 for entry in listed),
        max_relative_error=max((relative_error(entry) for entry in listed), default=0.0),
        max_norm=max((entry.norm or 0.0 for entry in listed), default=0.0),
    )


@dataclass(frozen=True)
class StoreFacts:
    """Totals of a store.

    Attributes:
        rows_written: rows that can be read.
        rows_erased: units that were erased.
        store_bytes: bytes of all stored objects of the generation that is read.
        bytes_per_parameter: stored bytes per value of a written row.
        row_error_max: largest |decoded - a| / |a|.
    """

    rows_written: int
    rows_erased: int
    store_bytes: int
    bytes_per_parameter: float
    row_error_max: float


def store_facts(hierarchy: Hierarchy, manifest: Manifest) -> StoreFacts:
    """Facts of the generation that is read; lists the stored objects, reads none."""
    num_written, largest = manifest.written()
    folder = f"{hierarchy.path}/generation-{manifest.generation}"
    stored = sum(hierarchy.backend.sizes(folder).values())
    values = num_written * hierarchy.layout.spec.num_parameters
    return StoreFacts(
        rows_written=num_written,
        rows_erased=len(manifest.erased),
        store_bytes=stored,
        bytes_per_parameter=stored / values if values else 0.0,
        row_error_max=largest,
    )
