r"""The on-disk format of an approximator store, versions 1 and 2.

A store is three siblings in one folder (or under one URL prefix), named after its stem:

    approximators.zarr/       rows: a Zarr v3 hierarchy without consolidated metadata
    approximators.parquet     manifest: which rows count, and their digests (`manifest.py`)
    approximators.manifest/   version 2 has this in its place: the manifest in segments
                              (`segmented_manifest.py`)
    approximators.parts/      work under way: parts of the manifest, locks, a pending erasure

**Hierarchy.** The root group's attributes are the store's constants (`attributes`). A run that is
repaired stores its rows anew in another *generation*, a group of its own. Row r is one unit; it
stands in exactly one encoding, which the manifest names:

    generation-<g>/<encoding>/codes    shape (num_units, code_width)     the row's codes
    generation-<g>/<encoding>/scales   shape (num_units, scale_width)    uint16, bfloat16 bits

| encoding | codes dtype | code_width | one scale per | column j of a row is |
|---|---|---|---|---|
| float32 | float32 | P | (no array) | codes[j] |
| bfloat16 | uint16 | P | (no array) | float32 whose upper half is codes[j] |
| float16 | float16 | P | 262,144 columns | codes[j] * scale |
| int8 | int8 | P | 128 columns | codes[j] * scale |
| int4 | uint8 | ceil(P/2) | 64 columns | LEVELS[nibble] * scale; even columns in the low nibble |

A scale is the float32 whose upper 16 bits are stored. The products are exact in float32. LEVELS
stands in the attributes of the int4 `codes` array as `levels`. A store holds its declared encoding
and those it widens to: int4 -> int8 -> float16 -> float32 and bfloat16 -> float32.

**Objects.** Chunk (i, j) of an array is the key `c.i.j`, little-endian, row-major, without a
compressor unless `codec` names one (then on `codes` alone). A row of 1 MiB or more is an object
of its own, split in columns only above 64 MiB (the split is a multiple of SEGMENT columns, the
last object padded with zeros). Smaller rows share a chunk of at most 8 MiB, R rows of one block,
R a divisor of `block`; rows of it that are absent, erased, or widened are zero bytes. A widened row
is an object of its own.

**Blocks.** Rows [b * block, (b + 1) * block) are block b. One writer owns all objects of a block.

**Digest.** A row is cut into segments of SEGMENT = 262,144 columns. With H = BLAKE3 (32 bytes),
    digest = H(header | H(codes_0 | scales_0) | H(codes_1 | scales_1) | ...)
over the uncompressed codes and scales of each segment, and
    header = "approximator-row-1\0" | store id (16 bytes) | generation u64 | P u64
             | encoding, "\0" | unit in UTF-8, "\0"
so that a row of another unit, store or generation, or in another encoding, is refused.

**Sums.** A weighted value w * x (w an integer of at most 2^26, x float32) is exact in float64. It
is rounded to a multiple of `sum_grid` (`summation.py`), and sums of such multiples are exact
while they stay below 2^52 of them: the same bits in any order and grouping. The grid is
2^(ceil(log2 n) - 42) for weighted sums and 2^-42 for plain ones, n the samples of all units.

**Versions.** Version 2 differs from version 1 in the manifest alone. A store of up to 2,048 units is
created in version 1, a larger one in version 2. A program reads the versions it knows and refuses
others before reading a row.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from storage.encoding import DEFAULT_ERROR_CAPS, ENCODINGS, INT4_LEVELS, Encoding, widening_chain
from storage.errors import LayoutError
from storage.summation import grid_exponent

FORMAT_NAME = "approximator-store"
FORMAT_VERSION = 1
SEGMENTED_VERSION = 2
VERSIONS = (FORMAT_VERSION, SEGMENTED_VERSION)
SEGMENT = 1 << 18
SHARED_BELOW_BYTES = 1 << 20
SHARED_CHUNK_BYTES = 8 << 20
OBJECT_BYTES = 64 << 20
# Up to this many units a manifest is one file, which any program reads; more are kept in segments.
WHOLE_MANIFEST_UNITS = 2048
# Read and written whole at each erasure: 4,096 lines are 460 kB. Fewer would make one deletion hardly
# faster, and one of thousands slower, which waits for each file's fsync.
SEGMENT_UNITS = 4096

# A number in a key, in the one form that this program writes: other forms are not its files.
KEY_NUMBER = "(?:0|[1-9][0-9]*)"

EncodingName = Literal["float32", "float16", "bfloat16", "int8", "int4"]
JsonObject = dict[str, Any]

# Codecs of the Zarr v3 specification; "pcodec" stands outside it, knows no 8-bit types, and needs
# the package of that name.
CODECS: dict[str, JsonObject | None] = {
    "none": None,
    "zstd": {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
    "gzip": {"name": "gzip", "configuration": {"level": 1}},
}


def version_for(num_units: int) -> int:
    """The version in which a store of so many units is created."""
    return FORMAT_VERSION if num_units <= WHOLE_MANIFEST_UNITS else SEGMENTED_VERSION


def segment_units() -> int:
    """Rows of a segment of new manifests."""
    return SEGMENT_UNITS


@dataclass(frozen=True)
class StoreSpec:
    """What a store promises about its rows, fixed at creation.

    Attributes:
        num_parameters: P, values of a row; at least 1.
        encoding: how rows are encoded unless the error cap widens them.
        block: units per block, the rows that one writer owns; at least 1.
        row_error_cap: largest |decode(encode(a)) - a| / |a| (L2) of a stored row; a row above it
            is widened to the next encoding. None takes the encoding's default.
        row_norm_cap: largest |a| (L2) of a stored row; a row above it is refused. None: no cap.
        codec: a lossless Zarr codec on the codes: none, zstd or gzip.
    """

    num_parameters: int
    encoding: EncodingName = "float16"
    block: int = 256
    row_error_cap: float | None = None
    row_norm_cap: float | None = None
    codec: str = "none"

    def __post_init__(self) -> None:
        """Refuse what no store can hold."""
        if self.num_parameters < 1 or self.block < 1:
            raise ValueError(
                "a store needs num_parameters >= 1 and block >= 1, "
                f"found {self.num_parameters} and {self.block}"
            )
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding must be one of {sorted(ENCODINGS)}, found {self.encoding}")
        if self.codec not in CODECS:
            raise ValueError(f"codec must be one of {sorted(CODECS)}, found {self.codec!r}")
        for name in ("row_error_cap", "row_norm_cap"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number >= 0 or None, found {value}")

    @property
    def error_cap(self) -> float:
        """The relative error cap in force."""
        default = DEFAULT_ERROR_CAPS[self.encoding]
        return default if self.row_error_cap is None else self.row_error_cap


@dataclass(frozen=True)
class Layout:
    """Where every byte of a store stands: a pure function of its constants.

    Attributes:
        spec: what the store promises.
        num_units: N, rows of each array.
        num_samples: samples of all units together; fixes the grid of sums.
        store_id: 32 hexadecimal digits, random, bound into every digest.
        version: of the format; decides what the manifest is.
    """

    spec: StoreSpec
    num_units: int
    num_samples: int
    store_id: str
    version: int = FORMAT_VERSION

    @property
    def encodings(self) -> tuple[str, ...]:
        """The encodings a row of this store may have, the declared one first."""
        return widening_chain(self.spec.encoding)

    @property
    def num_blocks(self) -> int:
        """Number of blocks, the last one possibly shorter."""
        return -(-self.num_units // self.spec.block)

    @property
    def num_segments(self) -> int:
        """Segments of SEGMENT columns in a row, the last one possibly shorter."""
        return -(-self.spec.num_parameters // SEGMENT)

    def block_units(self, block: int) -> range:
        """Rows that `block` owns."""
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"blocks are 0..{self.num_blocks - 1}, found {block}")
        first = block * self.spec.block
        return range(first, min(first + self.spec.block, self.num_units))

    def rows_per_chunk(self, encoding: str) -> int:
        """Rows that share one object: R for small rows in the declared encoding, otherwise 1."""
        return self._shared_rows if encoding == self.spec.encoding else 1

    @cached_property
    def _shared_rows(self) -> int:
        row_bytes = ENCODINGS[self.spec.encoding].code_bytes(self.spec.num_parameters)
        if row_bytes >= SHARED_BELOW_BYTES:
            return 1
        most = min(SHARED_CHUNK_BYTES // row_bytes, self.spec.block)
        return max(d for d in range(1, most + 1) if self.spec.block % d == 0)

    def chunk_columns(self, encoding: str) -> int:
        """Columns (parameters) of one object of `codes`: all, or a multiple of SEGMENT."""
        total = self.spec.num_parameters
        objects = -(-ENCODINGS[encoding].code_bytes(total) // OBJECT_BYTES)
        if objects == 1:
            return total
        return -(-total // (objects * SEGMENT)) * SEGMENT

    def num_column_chunks(self, encoding: str) -> int:
        """Objects that one row's codes are split into."""
        return -(-self.spec.num_parameters // self.chunk_columns(encoding))

    def chunk_bytes(self, encoding: str, array: str) -> int:
        """Bytes of one uncompressed object of `codes` or `scales`."""
        kind, rows = ENCODINGS[encoding], self.rows_per_chunk(encoding)
        if array == "scales":
            return 2 * rows * kind.scale_width(self.spec.num_parameters)
        return rows * kind.code_bytes(self.chunk_columns(encoding))

    def attributes(self) -> JsonObject:
        """The attributes of the root group: everything that fixes the layout."""
        spec = asdict(self.spec)
        spec["row_error_cap"] = self.spec.error_cap
        return {
            "format": FORMAT_NAME,
            "format_version": self.version,
            "store_id": self.store_id,
            "num_units": self.num_units,
            "num_samples": self.num_samples,
            "sum_grid": 2.0 ** grid_exponent(self.num_samples),
            **spec,
        }

    def documents(self, generation: int) -> dict[str, JsonObject]:
        """Every `zarr.json` of one generation by its key inside the hierarchy, root excluded."""
        group = f"generation-{generation}"
        documents = {f"{group}/zarr.json": _group({"generation": generation})}
        for name in self.encodings:
            documents[f"{group}/{name}/zarr.json"] = _group({"encoding": name})
            documents[f"{group}/{name}/codes/zarr.json"] = self._codes_document(ENCODINGS[name])
            if ENCODINGS[name].scale_block:
                path = f"{group}/{name}/scales/zarr.json"
                documents[path] = self._scales_document(ENCODINGS[name])
        return documents

    def root_document(self) -> JsonObject:
        """The root group's `zarr.json`."""
        return _group(self.attributes())

    def _codes_document(self, encoding: Encoding) -> JsonObject:
        width = encoding.code_width(self.spec.num_parameters)
        columns = encoding.code_width(self.chunk_columns(encoding.name))
        attributes: JsonObject = {"encoding": encoding.name, "scale_block": encoding.scale_block}
        if encoding.name == "int4":
            attributes["levels"] = list(INT4_LEVELS)
        codec = CODECS[self.spec.codec]
        return _array(
            (self.num_units, width),
            (self.rows_per_chunk(encoding.name), columns),
            encoding.zarr_dtype,
            attributes,
            [] if codec is None else [codec],
        )

    def _scales_document(self, encoding: Encoding) -> JsonObject:
        width = encoding.scale_width(self.spec.num_parameters)
        attributes = {"encoding": "bfloat16 bits", "scale_block": encoding.scale_block}
        rows = self.rows_per_chunk(encoding.name)
        return _array((self.num_units, width), (rows, width), "uint16", attributes, [])


def _group(attributes: JsonObject) -> JsonObject:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _array(
    shape: tuple[int, int],
    chunk: tuple[int, int],
    dtype: str,
    attributes: JsonObject,
    codecs: list[JsonObject],
) -> JsonObject:
    as_bytes: JsonObject = {"name": "bytes"}
    if dtype not in ("int8", "uint8"):
        as_bytes["configuration"] = {"endian": "little"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0 if dtype.startswith("float") else 0,
        "codecs": [as_bytes, *codecs],
        "dimension_names": ["row", "column"],
        "attributes": attributes,
    }


def parse_json(data: bytes, name: str) -> JsonObject:
    """The JSON object that a file holds.

    Args:
        data: the file.
        name: what errors call it.

    Raises:
        LayoutError: it holds none, or one nested too deeply to be ours.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{name} is no JSON that this program wrote: {error}") from error
    if not isinstance(document, dict):
        raise LayoutError(f"{name} is no JSON object that this program wrote")
    return document


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys: equal bytes for equal documents, and 1, 1.0 and true apart."""
    return json.dumps(document, sort_keys=True, indent=1).encode()
