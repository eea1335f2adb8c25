"""Erasure of rows, and removal of stored objects that no manifest lists.

An erasure is written down first (rows' positions and pseudonyms, never names), then carried out,
then struck off. Each step may be repeated, so a crash anywhere is repaired by doing all of them
again. Erased means: no file of the store holds the row, raw or encoded, nor the unit's name.
A file system or disk may keep the old blocks of a deleted file; that is beyond a store.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from storage.backend import PARTIAL
from storage.catalog import Catalog
from storage.chunks import Hierarchy, ObjectAddress, as_bytes, pack, unpack
from storage.encoding import ByteArray
from storage.errors import (
    LayoutError,
    RowCorruptError,
    UnitErasedError,
    UnknownUnitError,
    WriterConflictError,
)
from storage.layout import KEY_NUMBER
from storage.manifest import Manifest
from storage.names import check_unit_names
from storage.row_entry import RowEntry

# Enough for their objects' fsyncs to share the disk's writes; their objects are held in memory.
_BLOCKS_AT_ONCE = 64
_BYTES_HELD = 64 << 20


def erase(
    hierarchy: Hierarchy,
    catalog: Catalog,
    units: Sequence[str],
    pseudonym: Callable[[str], str],
) -> None:
    """Write down and carry out an erasure; see `ApproximatorStore.erase`."""
    with catalog.lock():
        hierarchy.require_unchanged()
        manifest = catalog.load()
        found = (_find(manifest, unit, pseudonym) for unit in units)
        names = {entry.row: entry.unit for entry in found if entry is not None}
        if names:
            pseudonyms = _pseudonyms(manifest, names, pseudonym)
            catalog.begin_erasure({**catalog.pending_erasure(), **pseudonyms})
    carry_out(hierarchy, catalog)


def _find(manifest: Manifest, unit: str, pseudonym: Callable[[str], str]) -> RowEntry | None:
    """Entry of a unit; None if it is erased already."""
    try:
        return manifest.find(unit)
    except UnitErasedError:
        return None
    except UnknownUnitError:
        if pseudonym(unit) in manifest.erased:
            return None
        raise


def _pseudonyms(
    manifest: Manifest, names: Mapping[int, str], pseudonym: Callable[[str], str]
) -> dict[int, str]:
    """Pseudonym of each unit to be erased.

    Raises:
        ValueError: a pseudonym is not a name, is the unit's own, or is taken.
    """
    pseudonyms = {row: pseudonym(unit) for row, unit in names.items()}
    check_unit_names(list(pseudonyms.values()))
    for row, name in pseudonyms.items():
        if name == names[row] or name in manifest.erased or manifest.row_of(name) is not None:
            raise ValueError(f"row {row}: a pseudonym must be new and not the unit's own name")
    return pseudonyms


def recover(hierarchy: Hierarchy, catalog: Catalog) -> None:
    """Finish what a crash cut short, and sweep what it left; called when a store is opened."""
    if catalog.pending_erasure():
        carry_out(hierarchy, catalog)
    manifest = catalog.load()
    is_between = manifest.building is not None or _generations(hierarchy) != [manifest.generation]
    if is_between or not catalog.is_settled():
        sweep(hierarchy, catalog)
    else:
        sweep_documents(hierarchy, catalog)


def carry_out(hierarchy: Hierarchy, catalog: Catalog) -> None:
    """Finish the erasures that are written down."""
    while pending := catalog.pending_erasure():
        is_settled = catalog.is_settled()
        with catalog.lock():
            catalog.save(catalog.load())
        size = hierarchy.layout.spec.block
        by_block: dict[int, list[int]] = {}
        for row in sorted(pending):
            by_block.setdefault(row // size, []).append(row)
        parts = {block for _, block in catalog.part_keys()}
        blocks = list(by_block)
        for first in range(0, len(blocks), _BLOCKS_AT_ONCE):
            chosen = {block: by_block[block] for block in blocks[first : first + _BLOCKS_AT_ONCE]}
            _erase_in_blocks(hierarchy, catalog, chosen, parts)
        if not is_settled:
            sweep(hierarchy, catalog)
        with catalog.lock():
            # Another process may have written down more rows in the meantime: then once more.
            if catalog.pending_erasure() == pending:
                # Files that spell these names may also be what a process left that died or failed
                # between two of its own: nothing else tells of those.
                catalog.sweep_manifest()
                catalog.end_erasure()


def _erase_in_blocks(
    hierarchy: Hierarchy, catalog: Catalog, rows_of: Mapping[int, list[int]], parts: set[int]
) -> None:
    """Erase rows by block; the locks are taken in ascending order, as everybody does."""
    with ExitStack() as locks:
        for block in rows_of:
            locks.enter_context(catalog.block_lock(block, wait=True))
        for generation, block in catalog.part_keys() if parts & rows_of.keys() else ():
            if block in rows_of:
                _erase_in_part(catalog, generation, block, rows_of[block])
        blanked: dict[str, bytes | ByteArray] = {}
        for generation in _generations(hierarchy):
            for rows in rows_of.values():
                _erase_objects(hierarchy, catalog, generation, rows, blanked)
                if sum(map(len, blanked.values())) > _BYTES_HELD:
                    hierarchy.backend.put_all(blanked)
                    blanked = {}
        hierarchy.backend.put_all(blanked)


def _erase_objects(
    hierarchy: Hierarchy,
    catalog: Catalog,
    generation: int,
    rows: list[int],
    blanked: dict[str, bytes | ByteArray],
) -> None:
    """Remove the objects of some rows of a block; add to `blanked` those that others share."""
    entries = catalog.load().entries
    for key in sorted({k for row in rows for k in hierarchy.object_keys(generation, row)}):
        address = hierarchy.address(key)
        hierarchy.backend.delete(key + PARTIAL)
        if address is None or not any(row in entries for row in address.rows):
            hierarchy.backend.delete(key)
        elif hierarchy.backend.version(key) is not None:
            chunk = _blanked(hierarchy, key, address, rows)
            if chunk is None:
                hierarchy.backend.delete(key)
            else:
                blanked[key] = chunk


def _generations(hierarchy: Hierarchy) -> list[int]:
    """Generations of which anything is stored."""
    folders = hierarchy.backend.folders(hierarchy.path)
    pattern = re.compile(f"generation-({KEY_NUMBER})")
    matches = [pattern.fullmatch(folder.rsplit("/", 1)[1]) for folder in folders]
    return sorted(int(match[1]) for match in matches if match)


def _erase_in_part(catalog: Catalog, generation: int, block: int, rows: list[int]) -> None:
    try:
        part = catalog.part(generation, block)
    except RowCorruptError:
        # It cannot be read, but it may still spell the unit's name.
        catalog.delete_part(generation, block)
        return
    if part is not None and any(row in part.entries for row in rows):
        kept = {row: entry for row, entry in part.entries.items() if row not in rows}
        catalog.save_part(replace(part, entries=kept, _rows_of={}))


def _blanked(
    hierarchy: Hierarchy, key: str, address: ObjectAddress, rows: list[int]
) -> bytes | ByteArray | None:
    """An object that rows share with zeros in the place of `rows`; None if it cannot be read."""
    layout, compressed = hierarchy.layout, address.array == "codes"
    per_chunk = layout.rows_per_chunk(address.encoding)
    width = layout.chunk_bytes(address.encoding, address.array) // per_chunk
    try:
        data = hierarchy.backend.read(key)
        chunk = unpack(data, layout, address.encoding) if compressed else as_bytes(data)
    except (LayoutError, RowCorruptError):
        # No plain file, or one that does not decompress: no neighbour can be read from it either.
        return None
    chunk = chunk.copy()
    for row in set(rows) & set(address.rows):
        start = (row % per_chunk) * width
        chunk[start : start + width] = 0
    return pack(chunk, layout, address.encoding) if compressed else chunk


def sweep(hierarchy: Hierarchy, catalog: Catalog) -> None:
    """Remove what crashed writers left: cut-off files, rows never listed, replaced generations.

    A block whose lock is held is being written and is passed over.
    """
    manifest = catalog.load()
    backend = hierarchy.backend
    for generation in _generations(hierarchy):
        if generation not in (manifest.generation, manifest.building):
            with catalog.lock():
                if generation not in _kept_generations(catalog):
                    backend.delete_folder(f"{hierarchy.path}/generation-{generation}")
    listed = listed_rows(hierarchy, catalog)
    suspects: dict[int, list[str]] = {}
    for key in backend.sizes(hierarchy.path):
        address = hierarchy.address(key)
        if address is not None and key not in listed and address.rows:
            suspects.setdefault(address.rows[0] // hierarchy.layout.spec.block, []).append(key)
    with catalog.lock():
        catalog.sweep_manifest()
    in_writing = catalog.blocks_in_writing()
    for block in {*suspects, *in_writing}:
        keys = suspects.get(block, [])
        if block in in_writing and block < hierarchy.layout.num_blocks:
            keys = [*keys, *_keys_of_block(hierarchy, block)]
        _sweep_block(hierarchy, catalog, block, keys)
    sweep_documents(hierarchy, catalog)


def sweep_documents(hierarchy: Hierarchy, catalog: Catalog) -> None:
    """Remove cut-off files that may lie beside lists and metadata documents, in every folder."""
    manifest, backend = catalog.load(), hierarchy.backend
    # These lie in every folder of rows: one behind a link, where rows could not be erased, is refused
    # here, when a store is opened for writing, and not in the middle of a deletion.
    generations = {manifest.generation, manifest.target}
    documents = [key for g in sorted(generations) for key in hierarchy.layout.documents(g)]
    catalog.sweep([f"{hierarchy.path}/{key}" for key in ("zarr.json", *documents)])
    backend.settle()


def _keys_of_block(hierarchy: Hierarchy, block: int) -> list[str]:
    """Every key that a writer of a block may have put, cut-off files too."""
    rows, generations = hierarchy.layout.block_units(block), _generations(hierarchy)
    keys = {k for g in generations for row in rows for k in hierarchy.object_keys(g, row)}
    return [name for key in sorted(keys) for name in (key, key + PARTIAL)]


def _kept_generations(catalog: Catalog) -> tuple[int | None, ...]:
    manifest = catalog.load()
    return manifest.generation, manifest.building


def _sweep_block(hierarchy: Hierarchy, catalog: Catalog, block: int, keys: list[str]) -> None:
    try:
        with catalog.block_lock(block, wait=False):
            # Looked up again: the writer may have listed them since.
            listed = listed_rows(hierarchy, catalog)
            for key in keys:
                if key not in listed:
                    hierarchy.backend.delete(key)
            hierarchy.backend.settle()
            catalog.end_block(block)
    except WriterConflictError:
        return


def readable_parts(catalog: Catalog) -> set[tuple[int, int]]:
    """The undamaged parts, by generation and block."""
    return {place for place in catalog.part_keys() if _readable(catalog, *place) is not None}


def _readable(catalog: Catalog, generation: int, block: int) -> Manifest | None:
    try:
        return catalog.part(generation, block)
    except RowCorruptError:
        return None


def read_lists(catalog: Catalog) -> tuple[Manifest, dict[tuple[int, int], Manifest]]:
    """The manifest, and the undamaged parts by (generation, block).

    The parts are read first. A merge that comes between saves the manifest before it removes a
    part, so no row is missed; read the other way round, rows just merged would be in neither.
    """
    parts = {}
    for generation, block in catalog.part_keys():
        part = _readable(catalog, generation, block)
        if part is not None:
            parts[generation, block] = part
    return catalog.load(), parts


def listed_rows(hierarchy: Hierarchy, catalog: Catalog) -> dict[str, set[int]]:
    """Rows that the manifest or a part lists, by the key of each object that holds them."""
    manifest, parts = read_lists(catalog)
    rows: dict[str, set[int]] = {}
    for listed in (manifest, *parts.values()):
        for entry in listed.entries.values():
            if entry.state == "written":
                for _, key in hierarchy.keys(entry):
                    rows.setdefault(key, set()).add(entry.row)
    return rows
