"""From blocks written by many to one manifest: progress, merging, and new generations."""

from dataclasses import replace

from storage import erasure
from storage.catalog import Catalog
from storage.chunks import Hierarchy
from storage.erasure import read_lists
from storage.errors import RowCorruptError
from storage.manifest import RowEntry
from storage.opening import create_generation


def finished_blocks(hierarchy: Hierarchy, catalog: Catalog) -> frozenset[int]:
    """Blocks listed in the generation being written, in the manifest or in a part."""
    manifest, parts = read_lists(catalog)
    target, entries = manifest.target, manifest.entries

    def is_merged(block: int) -> bool:
        rows = hierarchy.layout.block_units(block)
        return all(entries[row].generation == target for row in rows if row in entries)

    return frozenset(
        block
        for block in range(hierarchy.layout.num_blocks)
        if is_merged(block) or (target, block) in parts
    )


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
        parts = [part for block in blocks if (part := catalog.part(target, block)) is not None]
        merged = manifest.with_entries(entry for part in parts for entry in part.entries.values())
        catalog.save(replace(merged, generation=target, building=None))
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
