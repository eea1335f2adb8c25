"""Erasure, and the sweeping of what no list names.

An erasure is written down first (rows' positions and pseudonyms, never names), then carried out,
then forgotten. Each step may be repeated, so a crash anywhere is repaired by doing all of them
again. Erased means: no file of the store holds the row, raw or encoded, nor the unit's name.
A file system or disk may keep the old blocks of a deleted file; that is beyond a store.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from storage.catalog import Catalog
from storage.chunks import Hierarchy, as_bytes, pack, unpack
from storage.errors import RowCorruptError, WriterConflictError
from storage.listing import listed_rows
from storage.manifest import Manifest, check_unit_names


def pseudonyms_of(
    manifest: Manifest, rows: Mapping[int, str], pseudonym: Callable[[str], str]
) -> dict[int, str]:
    """Pseudonym of each unit to be erased, checked.

    Raises:
        ValueError: a pseudonym is not a name, is the unit's own, or is taken.
    """
    names = {row: pseudonym(unit) for row, unit in rows.items()}
    check_unit_names(list(names.values()))
    for row, name in names.items():
        if name == rows[row] or name in manifest.erased or manifest.row_of(name) is not None:
            raise ValueError(f"row {row}: a pseudonym must be new and not the unit's own name")
    return names


def carry_out(hierarchy: Hierarchy, catalog: Catalog) -> None:
    """Finish the erasure that is written down, if there is one."""
    pending = catalog.pending_erasure()
    if not pending:
        return
    with catalog.lock():
        manifest = catalog.load()
        catalog.save(manifest)
    size = hierarchy.layout.spec.block
    for block in sorted({row // size for row in pending}):
        rows = [row for row in pending if row // size == block]
        with catalog.block_lock(block, wait=True):
            _erase_in_block(hierarchy, catalog, block, rows)
    sweep(hierarchy, catalog)
    catalog.end_erasure()


def _erase_in_block(hierarchy: Hierarchy, catalog: Catalog, block: int, rows: list[int]) -> None:
    for generation, part_block in catalog.part_keys():
        if part_block == block:
            _erase_in_part(catalog, generation, block, rows)
    for generation in _generations(hierarchy):
        for key in sorted({k for row in rows for k in hierarchy.object_keys(generation, row)}):
            if hierarchy.place.version(key) is not None:
                _blank(hierarchy, key, rows)


def _generations(hierarchy: Hierarchy) -> list[int]:
    """Generations of which anything is stored."""
    manifest_like = re.compile(rf"{re.escape(hierarchy.path)}/generation-(\d+)")
    return sorted(
        int(match[1])
        for name in hierarchy.place.folders(hierarchy.path)
        if (match := manifest_like.fullmatch(name))
    )


def _erase_in_part(catalog: Catalog, generation: int, block: int, rows: list[int]) -> None:
    try:
        part = catalog.part(generation, block)
    except RowCorruptError:
        # Nobody can read it, but it may still spell the unit's name.
        catalog.delete_part(generation, block)
        return
    if part is not None and any(row in part.entries for row in rows):
        kept = {row: entry for row, entry in part.entries.items() if row not in rows}
        catalog.save_part(replace(part, entries=kept, _rows_of={}))


def _blank(hierarchy: Hierarchy, key: str, rows: list[int]) -> None:
    """Rewrite an object without `rows`, or delete it when no other row is in it."""
    address = hierarchy.address(key)
    if address is None or all(row in rows for row in address.rows):
        hierarchy.place.delete(key)
        return
    layout, compressed = hierarchy.layout, address.array == "codes"
    per_chunk = layout.rows_per_chunk(address.encoding)
    width = layout.chunk_bytes(address.encoding, address.array) // per_chunk
    data = hierarchy.place.read(key)
    try:
        chunk = unpack(data, layout, address.encoding) if compressed else as_bytes(data)
    except RowCorruptError:
        # It does not decompress: no neighbour can be read from it either.
        hierarchy.place.delete(key)
        return
    chunk = chunk.copy()
    for row in set(rows) & set(address.rows):
        start = (row % per_chunk) * width
        chunk[start : start + width] = 0
    if chunk.any():
        hierarchy.place.put(key, pack(chunk, layout, address.encoding) if compressed else chunk)
    else:
        hierarchy.place.delete(key)


def sweep(hierarchy: Hierarchy, catalog: Catalog) -> None:
    """Remove what crashed writers left: cut-off files, rows never listed, replaced generations.

    A block whose lock is held is being written and is passed over.
    """
    manifest = catalog.load()
    place = hierarchy.place
    for generation in _generations(hierarchy):
        if generation not in (manifest.generation, manifest.building):
            with catalog.lock():
                if generation not in _kept_generations(catalog):
                    place.delete_folder(f"{hierarchy.path}/generation-{generation}")
    listed = listed_rows(hierarchy, catalog, manifest)
    suspects: dict[int, list[str]] = {}
    for key in place.sizes(hierarchy.path):
        address = hierarchy.address(key)
        if address is not None and key not in listed and address.rows:
            suspects.setdefault(address.rows[0] // hierarchy.layout.spec.block, []).append(key)
    for block, keys in suspects.items():
        _sweep_block(hierarchy, catalog, block, keys)
    catalog.sweep()
    place.settle()


def _kept_generations(catalog: Catalog) -> tuple[int | None, ...]:
    manifest = catalog.load()
    return manifest.generation, manifest.building


def _sweep_block(hierarchy: Hierarchy, catalog: Catalog, block: int, keys: list[str]) -> None:
    try:
        with catalog.block_lock(block, wait=False):
            # Looked up again: the writer may have listed them since.
            listed = listed_rows(hierarchy, catalog, catalog.load())
            for key in keys:
                if key not in listed:
                    hierarchy.place.delete(key)
    except WriterConflictError:
        return
