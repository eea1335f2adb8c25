"""Upgrading a store to the newest format that suits its size.

The new manifest is written beside the old one; replacing the root document makes it count; then the
old one is removed. A crash before the replacement leaves a store of the old version, one after it a
store of the new version, and the next opening for writing removes what is left of the other.
"""

from dataclasses import replace
from pathlib import Path

from storage import erasure, generations
from storage.errors import LayoutError
from storage.layout import canonical_json, version_for
from storage.opening import catalog_of, locate, open_hierarchy


def upgrade_store(url: str | Path) -> tuple[int, int]:
    """Bring a store to the version in which one of its size would be created today.

    Nobody else may write to it meanwhile.

    Returns:
        Its version before and after; the same where nothing was to be done.

    Raises:
        LayoutError: there is no store, or a new generation of its rows is under way.
        RowCorruptError: the manifest or a part of it is damaged.
    """
    backend, stem = locate(url)
    hierarchy, catalog = open_hierarchy(backend, stem)
    old = hierarchy.layout
    new = replace(old, version=max(old.version, version_for(old.num_units)))
    if new == old:
        return old.version, old.version
    erasure.recover(hierarchy, catalog)
    if catalog.load().building is not None:
        raise LayoutError(f"{hierarchy.path}: its rows are being replaced; finish the repair first")
    generations.merge(hierarchy, catalog)
    successor = catalog_of(backend, stem, new)
    with catalog.lock():
        manifest = catalog.load()
        successor.save(replace(manifest, constants_digest=successor.constants_digest))
        backend.put(f"{hierarchy.path}/zarr.json", canonical_json(new.root_document()))
        backend.settle()
        backend.delete(catalog.key)
        backend.settle()
    return old.version, new.version
