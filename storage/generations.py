"""From blocks written by many to one manifest: progress, merging, and new generations."""

from collections.abc import Sequence
from dataclasses import replace

from storage import erasure
from storage.catalog import Catalog
from storage.chunks import Hierarchy
from storage.erasure import readable_parts
from storage.errors import RowCorruptError, UnknownUnitError
from storage.opening import create_generation
from storage.row_entry import RowEntry


def finished_blocks(hierarchy: Hierarchy, catalog: Catalog) -> frozenset[int]:
    """Blocks listed in the generation being written, in the manifest or in a part."""
    num_blocks, size = hierarchy.layout.num_blocks, hierarchy.layout.spec.block
    # The parts first, as in `read_lists`: a merge in between must not hide the rows.
    parts = readable_parts(catalog)
    manifest = catalog.load()
    listed = {block for generation, block in parts if generation == manifest.target}
    return frozenset(range(num_blocks)) - (manifest.blocks_waiting(size) - listed)


def is_finished(hierarchy: Hierarchy, catalog: Catalog, block: int) -> bool:
    """Whether one block is listed; looks at no other block's part."""
    units = hierarchy.layout.block_units(block)
    # The part first, as in `read_lists`: a merge in between must not hide the rows.
    target = catalog.load().target
    try:
        part = catalog.part(target, block)
    except RowCorruptError:
        part = None
    manifest = catalog.load()
    if part is not None and manifest.target == target:
        return True
    entries, target = manifest.entries, manifest.target
    return all(entries[row].generation == target for row in units if row in entries)


def written_entries(hierarchy: Hierarchy, catalog: Catalog, rows: Sequence[int]) -> list[RowEntry]:
    """Lines of some rows in the generation being written, merged or not.

    Raises:
        UnknownUnitError: a row is not written there.
        RowCorruptError: a part is damaged; write its block again.
    """
    size, target = hierarchy.layout.spec.block, catalog.load().target
    # The parts first, as in `read_lists`: a merge in between must not hide the rows.
    parts = {block: catalog.part(target, block) for block in sorted({row // size for row in rows})}
    manifest = catalog.load()
    found = []
    for row in rows:
        part = parts[row // size]
        entries = manifest.entries if part is None else part.entries
        entry = entries.get(row)
        if entry is None or entry.generation != target:
            raise UnknownUnitError(f"row {row} of generation {target} is not written yet")
        found.append(entry)
    return found


def merge(hierarchy: Hierarchy, catalog: Catalog) -> None:
    """Fold the parts into the manifest; those of a new generation only when all are there.

    Raises:
        RowCorruptError: a part is damaged.
    """
    with catalog.lock():
        manifest = catalog.load()
        target = manifest.target
        is_new = manifest.building is not None
        if is_new and len(finished_blocks(hierarchy, catalog)) < hierarchy.layout.num_blocks:
            return
        blocks = [block for generation, block in catalog.part_keys() if generation == target]
        catalog.fold(replace(manifest, generation=target, building=None), blocks)
        for block in blocks:
            catalog.delete_part(target, block)
    if is_new:
        # The replaced generation is personal data too, and twice the bytes.
        erasure.sweep(hierarchy, catalog)
    hierarchy.backend.settle()


def begin(hierarchy: Hierarchy, catalog: Catalog) -> int:
    """Start a new generation, or go on with the one under way; returns its number.

    What the present one has listed is merged first, so that all of it stays readable.
    """
    if catalog.load().building is None:
        merge(hierarchy, catalog)
    with catalog.lock():
        manifest = catalog.load()
        if manifest.building is None:
            manifest = replace(manifest, building=manifest.generation + 1)
            create_generation(hierarchy, manifest.target)
            catalog.save(manifest)
    return manifest.target


def give_up(hierarchy: Hierarchy, catalog: Catalog) -> None:
    """Let the generation under way be read without any row; rows can be written into it later."""
    with catalog.lock():
        manifest = catalog.load()
        if manifest.building is None:
            return
        for generation, block in catalog.part_keys():
            catalog.delete_part(generation, block)
        entries = {
            row: RowEntry(entry.unit, "absent", row, entry.samples)
            for row, entry in manifest.entries.items()
        }
        catalog.save(
            replace(
                manifest,
                generation=manifest.building,
                building=None,
                entries=entries,
                candidates=None,
                _rows_of={},
            )
        )
    erasure.sweep(hierarchy, catalog)
    hierarchy.backend.settle()


def abandon(hierarchy: Hierarchy, catalog: Catalog) -> None:
    """Give up the generation under way and remove its rows; does nothing if there is none."""
    with catalog.lock():
        manifest = catalog.load()
        if manifest.building is None:
            return
        for generation, block in catalog.part_keys():
            if generation == manifest.building:
                catalog.delete_part(generation, block)
        catalog.save(replace(manifest, building=None))
    erasure.sweep(hierarchy, catalog)
