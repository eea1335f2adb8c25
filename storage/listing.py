"""Which rows, and so which objects, the manifest and its parts account for."""

from storage.catalog import Catalog
from storage.chunks import Hierarchy
from storage.errors import RowCorruptError
from storage.manifest import Manifest


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
