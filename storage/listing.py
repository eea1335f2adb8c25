"""Which objects the manifest and its parts account for."""

from storage.catalog import Catalog
from storage.chunks import Hierarchy
from storage.errors import RowCorruptError
from storage.manifest import Manifest


def listed_rows(hierarchy: Hierarchy, catalog: Catalog, manifest: Manifest) -> dict[str, set[int]]:
    """Rows that the manifest or a part lists, by the key of each object that holds them."""
    lists = [manifest]
    for generation, block in catalog.part_keys():
        try:
            part = catalog.part(generation, block)
        except RowCorruptError:
            continue
        lists += [part] if part is not None else []
    rows: dict[str, set[int]] = {}
    for entries in lists:
        for entry in entries.entries.values():
            if entry.state == "written":
                for _, key in hierarchy.keys(entry):
                    rows.setdefault(key, set()).add(entry.row)
    return rows
