"""Erasure of rows, and removal of stored objects that no manifest lists.

An erasure is written down first (rows' positions and pseudonyms, never names), then carried out,
then struck off. Each step may be repeated, so a crash anywhere is repaired by doing all of them
again. Erased means: no file of the store holds the row, raw or encoded, nor the unit's name.
A file system or disk may keep the old blocks of a deleted file; that is beyond a store.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from storage.catalog import Catalog
from storage.chunks import Hierarchy, ObjectAddress, as_bytes, pack, unpack
from storage.errors import (
    LayoutError,
    RowCorruptError,
    UnitErasedError,
    UnknownUnitError,
    WriterConflictError,
)
from storage.layout import KEY_NUMBER
from storage.manifest import Manifest, RowEntry
from storage.names import check_unit_names


def erase(
    hierarchy: Hierarchy,
    catalog: Catalog,
    units: Sequence[str],
    pseudonym: Callable[[str], str],
) -> None:
    """Write down and carry out an erasure; see `ApproximatorStore.erase`."""
    with catalog.lock():
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


def carry_out(hierarchy: Hierarchy, catalog: Catalog) -> None:
    """Finish the erasures that are written down."""
    while pending := catalog.pending_erasure():
        with catalog.lock():
            catalog.save(catalog.load())
        size = hierarchy.layout.spec.block
        for block in sorted({row // size for row in pending}):
            rows = [row for row in pending if row // size == block]
            with catalog.block_lock(block, wait=True):
                _erase_in_block(hierarchy, catalog, block, rows)
        sweep(hierarchy, catalog)
        with catalog.lock():
            # Another process may have written down more rows in the meantime: then once more.
            if catalog.pending_erasure() == pending:
                catalog.end_erasure()


def _erase_in_block(hierarchy: Hierarchy, catalog: Catalog, block: int, rows: list[int]) -> None:
    for generation, part_block in catalog.part_keys():
        if part_block == block:
            _erase_in_part(catalog, generation, block, rows)
    entries = catalog.load().entries
    for generation in _generations(hierarchy):
        for key in sorted({k for row in rows for k in hierarchy.object_keys(generation, row)}):
            address = hierarchy.address(key)
            if address is None or not any(row in entries for row in address.rows):
                hierarchy.backend.delete(key)
            elif hierarchy.backend.version(key) is not None:
                _blank(hierarchy, key, address, rows)


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


def _blank(hierarchy: Hierarchy, key: str, address: ObjectAddress, rows: list[int]) -> None:
    """Rewrite an object that rows share, with zeros in the place of `rows`."""
    layout, compressed = hierarchy.layout, address.array == "codes"
    per_chunk = layout.rows_per_chunk(address.encoding)
    width = layout.chunk_bytes(address.encoding, address.array) // per_chunk
    try:
        data = hierarchy.backend.read(key)
        chunk = unpack(data, layout, address.encoding) if compressed else as_bytes(data)
    except (LayoutError, RowCorruptError):
        # No plain file, or one that does not decompress: no neighbour can be read from it either.
        hierarchy.backend.delete(key)
        return
    chunk = chunk.copy()
    for row in set(rows) & set(address.rows):
        start = (row % per_chunk) * width
        chunk[start : start + width] = 0
    hierarchy.backend.put(key, pack(chunk, layout, address.encoding) if compressed else chunk)


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
    for block, keys in suspects.items():
        _sweep_block(hierarchy, catalog, block, keys)
    # These lie in every folder of rows: one behind a link, where rows could not be erased, is refused
    # here, when a store is opened for writing, and not in the middle of a deletion.
    generations = {manifest.generation, manifest.target}
    documents = [key for g in sorted(generations) for key in hierarchy.layout.documents(g)]
    catalog.sweep([f"{hierarchy.path}/{key}" for key in ("zarr.json", *documents)])
    backend.settle()


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
    except WriterConflictError:
        return


def read_lists(catalog: Catalog) -> tuple[Manifest, dict[tuple[int, int], Manifest]]:
    """The manifest, and the undamaged parts by (generation, block).

    The parts are read first. A merge that comes between saves the manifest before it removes a
    part, so no row is missed; read the other way round, rows just merged would be in neither.
    """
    parts = {}
    for generation, block in catalog.part_keys():
        try:
            part = catalog.part(generation, block)
        except RowCorruptError:
            continue
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
