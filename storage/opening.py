"""Finding, creating and opening a store, and comparing its metadata with the specification."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from blake3 import blake3

from storage.backend import StorageBackend
from storage.catalog import Catalog
from storage.chunks import Hierarchy
from storage.errors import BackendUnavailableError, LayoutError, RowCorruptError
from storage.layout import (
    FORMAT_NAME,
    VERSIONS,
    Layout,
    StoreSpec,
    canonical_json,
    parse_json,
    version_for,
)
from storage.local_backend import LocalBackend
from storage.manifest import Manifest
from storage.names import SUFFIX, check_unit_names, stem_of, whole_numbers
from storage.row_entry import RowEntry

_DOCUMENT_BYTES = 1 << 20


def locate(url: str | Path) -> tuple[StorageBackend, str]:
    """The backend of a store, and its stem.

    Args:
        url: a local path, `file://...`, or another URL, ending in `<stem>.zarr`.

    Raises:
        ValueError: as `stem_of`.
        BackendUnavailableError: what talks to such URLs is not installed.
    """
    text, stem = str(url).rstrip("/"), stem_of(url)
    if "://" not in text:
        return LocalBackend(Path(text).parent), stem
    parts = urlsplit(text)
    if parts.scheme == "file":
        return LocalBackend(Path(parts.path).parent), stem
    try:
        from storage.url_backend import UrlBackend
    except ImportError as error:
        raise BackendUnavailableError(
            f"rows at {parts.scheme}:// need the package obstore ({error}); install it, or this "
            "program with its extra s3"
        ) from error
    return UrlBackend(text.rsplit("/", 1)[0]), stem


def constants_digest(layout: Layout) -> str:
    """Digest of the root attributes, in hexadecimal."""
    return blake3(canonical_json(layout.attributes())).hexdigest()


def catalog_of(backend: StorageBackend, stem: str, layout: Layout) -> Catalog:
    """The lists of a store with these constants."""
    return Catalog(backend, stem, layout.store_id, constants_digest(layout), layout.version)


def create_store(
    url: str | Path,
    units: Sequence[str],
    sample_counts: Sequence[int],
    spec: StoreSpec,
    store_id: str | None,
) -> tuple[Hierarchy, Catalog]:
    """Make an empty store; see `ApproximatorStore.create`."""
    check_unit_names(units)
    counts = whole_numbers(sample_counts)
    if len(units) != len(counts) or not units:
        raise ValueError(
            f"expected a sample count for each of at least one unit, found {len(units)} units "
            f"and {len(counts)} counts"
        )
    if min(counts) < 0:
        raise ValueError(f"sample counts must be at least 0, found {min(counts)}")
    store_id = store_id or secrets.token_hex(16)
    layout = Layout(spec, len(units), sum(counts), store_id, version_for(len(units)))
    backend, stem = locate(url)
    hierarchy = Hierarchy(backend, f"{stem}{SUFFIX}", layout)
    catalog = catalog_of(backend, stem, layout)
    manifest = Manifest(store_id, constants_digest(layout), 0, None, _AbsentRows(units, counts))
    create_hierarchy(hierarchy, catalog, manifest)
    return hierarchy, catalog


class _AbsentRows(Mapping[int, RowEntry]):
    """The lines of a new store, made when they are asked for: a million of them are 200 MB."""

    def __init__(self, units: Sequence[str], counts: Sequence[int]) -> None:
        self._units, self._counts = units, counts

    def __getitem__(self, row: int) -> RowEntry:
        if not 0 <= row < len(self._units):
            raise KeyError(row)
        return RowEntry(self._units[row], "absent", row, self._counts[row])

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._units)))

    def __len__(self) -> int:
        return len(self._units)


def create_hierarchy(hierarchy: Hierarchy, catalog: Catalog, manifest: Manifest) -> None:
    """Put the metadata documents, then the manifest, then the root document, which makes it a store.

    Raises:
        LayoutError: a store is there already, or the manifest of another one, or of rows.
    """
    backend, root = hierarchy.backend, f"{hierarchy.path}/zarr.json"
    others = [key for key in (root, catalog.other_key) if backend.version(key) is not None]
    taken = others[0] if others else None
    if taken is None and backend.version(catalog.key) is not None:
        # A creation that was cut short leaves a manifest like ours; what lists rows is precious.
        taken = None if _is_blank(catalog, manifest) else catalog.key
    if taken is not None:
        raise LayoutError(f"{taken} is there already; open it, or create under another name")
    create_generation(hierarchy, manifest.generation)
    catalog.save(manifest)
    backend.settle()
    backend.put(root, canonical_json(hierarchy.layout.root_document()))
    backend.settle()


def _is_blank(catalog: Catalog, manifest: Manifest) -> bool:
    try:
        return catalog.load().entries == manifest.entries
    except (LayoutError, RowCorruptError):
        return False


def create_generation(hierarchy: Hierarchy, generation: int) -> None:
    """Put the metadata documents of one generation, all arrays at full size."""
    for key, document in hierarchy.layout.documents(generation).items():
        hierarchy.backend.put(f"{hierarchy.path}/{key}", canonical_json(document))
    hierarchy.backend.settle()


def open_hierarchy(backend: StorageBackend, stem: str) -> tuple[Hierarchy, Catalog]:
    """Read the metadata and refuse whatever differs from the specification.

    Raises:
        LayoutError: no store, another version, or edited metadata.
    """
    layout = _layout_of(_read(backend, f"{stem}{SUFFIX}/zarr.json"), stem)
    hierarchy = Hierarchy(backend, f"{stem}{SUFFIX}", layout)
    catalog = catalog_of(backend, stem, layout)
    check_documents(hierarchy, catalog.load())
    return hierarchy, catalog


def check_documents(hierarchy: Hierarchy, manifest: Manifest) -> None:
    """Compare every metadata document of the generations in use with the specification.

    Raises:
        LayoutError: one is missing or differs.
    """
    for generation in {manifest.generation, manifest.target}:
        for key, expected in hierarchy.layout.documents(generation).items():
            if _read(hierarchy.backend, f"{hierarchy.path}/{key}") != canonical_json(expected):
                raise LayoutError(
                    f"{hierarchy.path}/{key} is not what version {hierarchy.layout.version} writes "
                    "for this store: it was edited or damaged; restore it"
                )


def _read(backend: StorageBackend, key: str) -> bytes:
    """A metadata document; far larger ones than this program writes are not read."""
    try:
        with closing(backend.open(key)) as reader:
            if reader.size > _DOCUMENT_BYTES:
                raise LayoutError(f"{key} has {reader.size} bytes, more than a document of ours")
            data = np.empty(reader.size, np.uint8)
            return data[: reader.read_into(data, 0)].tobytes()
    except FileNotFoundError as error:
        raise LayoutError(f"{key} is missing: expected a store there") from error


def _layout_of(root: bytes, stem: str) -> Layout:
    """The layout that the root group's `zarr.json` states."""
    try:
        attributes = parse_json(root, f"{stem}{SUFFIX}/zarr.json")["attributes"]
        found = (attributes["format"], attributes["format_version"])
    except (KeyError, TypeError) as error:
        raise LayoutError(
            f"{stem}{SUFFIX} is not a store of approximators: {type(error).__name__} {error}"
        ) from error
    if found[0] != FORMAT_NAME or found[1] not in VERSIONS or type(found[1]) is not int:
        raise LayoutError(
            f"{stem}{SUFFIX} has format {found[0]}, version {found[1]}; this program reads "
            f"{FORMAT_NAME}, versions {VERSIONS[0]} and {VERSIONS[-1]}: use the program that wrote "
            "it or a newer one"
        )
    try:
        spec = StoreSpec(**{name: attributes[name] for name in StoreSpec.__dataclass_fields__})
        numbers = (attributes["num_units"], attributes["num_samples"], attributes["store_id"])
        layout = Layout(spec, *numbers, found[1])
        expected = canonical_json(layout.root_document())
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LayoutError(f"{stem}{SUFFIX} has attributes that were edited: {error}") from error
    if root != expected:
        raise LayoutError(f"{stem}{SUFFIX} has attributes that were edited; restore zarr.json")
    return layout
