"""Reading every stored byte, and listing all damage."""

import re
from dataclasses import dataclass
from pathlib import Path

from storage.backend import PARTIAL
from storage.catalog import Catalog
from storage.chunks import Hierarchy, as_bytes, unpack
from storage.erasure import listed_rows
from storage.errors import LayoutError, RowCorruptError
from storage.layout import KEY_NUMBER
from storage.manifest import Manifest
from storage.manifest_check import check_index
from storage.names import shown
from storage.opening import check_documents, locate, open_hierarchy
from storage.reading import check_row

_UNLISTED = "no list names this file; open the store with r+ to sweep"
_STRAY = "no store writes this file; look what it holds and move it away"


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written.

    Attributes:
        unit_or_object: the unit's name, or the key of a file.
        reason: what is wrong with it.
    """

    unit_or_object: str
    reason: str


def verify_store(url: str | Path) -> list[Damage]:
    """List all damage of a store, including what keeps it from being opened."""
    try:
        hierarchy, catalog = open_hierarchy(*locate(url))
    except (LayoutError, RowCorruptError) as error:
        return [Damage(str(url), str(error))]
    return verify(hierarchy, catalog)


def verify(hierarchy: Hierarchy, catalog: Catalog) -> list[Damage]:
    """List all damage of an opened store."""
    try:
        manifest = catalog.load()
        return [
            *_metadata(hierarchy, manifest),
            *_lists(catalog),
            *_rows(hierarchy, manifest),
            *_parts(hierarchy, catalog),
            # What an erasure that is written down has yet to remove is no damage.
            *([] if catalog.pending_erasure() else _unlisted(hierarchy, catalog, manifest)),
            *_strays(catalog),
        ]
    except (LayoutError, RowCorruptError) as error:
        # What keeps lists and folders from being read keeps the rest from being checked.
        return [Damage(hierarchy.path, str(error))]


def _lists(catalog: Catalog) -> list[Damage]:
    """The manifest's files against each other, where it has several."""
    damages = [Damage(key, _UNLISTED) for key in catalog.unnamed()]
    if catalog.segmented is not None:
        damages += [Damage(place, reason) for place, reason in check_index(catalog.segmented.files)]
    return damages


def _strays(catalog: Catalog) -> list[Damage]:
    return [Damage(shown(key), _STRAY) for key in catalog.strays()]


def _metadata(hierarchy: Hierarchy, manifest: Manifest) -> list[Damage]:
    try:
        check_documents(hierarchy, manifest)
    except LayoutError as error:
        return [Damage(hierarchy.path, str(error))]
    return []


def _rows(hierarchy: Hierarchy, manifest: Manifest) -> list[Damage]:
    damages = []
    for entry in manifest.entries.values():
        if entry.state != "written":
            continue
        try:
            check_row(hierarchy, entry)
        except RowCorruptError as error:
            damages.append(Damage(entry.unit, str(error)))
    return damages


def _parts(hierarchy: Hierarchy, catalog: Catalog) -> list[Damage]:
    damages = []
    for (generation, block), key in catalog.part_keys().items():
        try:
            part = catalog.part(generation, block)
        except (LayoutError, RowCorruptError) as error:
            damages.append(Damage(key, str(error)))
        else:
            damages += _rows(hierarchy, part) if part is not None else []
    return damages


def _unlisted(hierarchy: Hierarchy, catalog: Catalog, manifest: Manifest) -> list[Damage]:
    """Objects that no list names, and bytes of shared objects that belong to no listed row."""
    listed = listed_rows(hierarchy, catalog)
    used = {manifest.generation, manifest.target}
    documents = {
        f"{hierarchy.path}/{key}"
        for generation in used
        for key in hierarchy.layout.documents(generation)
    }
    documents.add(f"{hierarchy.path}/zarr.json")
    damages = []
    for key in hierarchy.backend.sizes(hierarchy.path):
        if key in documents:
            continue
        if key in listed:
            if not _is_blank_elsewhere(hierarchy, key, listed[key]):
                damages.append(Damage(key, "bytes that belong to no listed row are not zero"))
        elif key.removesuffix(PARTIAL) in documents or _is_swept(hierarchy, key, used):
            damages.append(Damage(key, _UNLISTED))
        else:
            damages.append(Damage(shown(key), _STRAY))
    return damages


def _is_swept(hierarchy: Hierarchy, key: str, used: set[int]) -> bool:
    """Whether the next sweep removes a key that no list names."""
    address = hierarchy.address(key)
    if address is not None:
        return len(address.rows) > 0
    generation = re.match(f"{re.escape(hierarchy.path)}/generation-({KEY_NUMBER})/", key)
    return generation is not None and int(generation[1]) not in used


def _is_blank_elsewhere(hierarchy: Hierarchy, key: str, rows: set[int]) -> bool:
    """Whether an object holds zeros wherever no listed row stands."""
    address = hierarchy.address(key)
    if address is None:
        return False
    layout = hierarchy.layout
    per_chunk = layout.rows_per_chunk(address.encoding)
    if per_chunk == 1 and layout.num_column_chunks(address.encoding) == 1:
        return True
    try:
        data = hierarchy.backend.read(key)
        is_codes = address.array == "codes"
        chunk = unpack(data, layout, address.encoding) if is_codes else as_bytes(data)
        rows_RW = chunk.reshape(per_chunk, -1)
    except (FileNotFoundError, LayoutError, RowCorruptError, ValueError):
        # Damage that the rows' own check has named already.
        return True
    first = address.rows.start
    free = [i for i in range(per_chunk) if first + i not in rows]
    return not rows_RW[free].any()
