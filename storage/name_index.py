"""The index of names: buckets of hashes, each with the row of the unit whose name has it.

    hash(name) = first 8 bytes of BLAKE3 over the name in UTF-8, little-endian
    bucket(name) = floor(hash(name) * num_buckets / 2^64)

A bucket's file is safetensors: `hash` uint64 (E,), ascending, and `row` int64 (E,). Names may share
a hash: the row's own line decides. An erased unit has no hash here: whoever can guess a name could
test it against one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.numpy import load, save

from storage.errors import RowCorruptError

Hashes = npt.NDArray[np.uint64]


def name_hash(name: str) -> int:
    """A name's hash."""
    return int.from_bytes(blake3(name.encode()).digest(8), "little")


def bucket_of(name: str, num_buckets: int) -> int:
    """The bucket that a name is in."""
    return name_hash(name) * num_buckets >> 64


@dataclass(frozen=True)
class Bucket:
    """Hashes and rows of some names, by hash and then by row."""

    hashes: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.int64]

    def rows_of(self, name: str) -> list[int]:
        """Rows of the units that may have this name: nearly always one, or none."""
        wanted = np.uint64(name_hash(name))
        first, last = (
            int(np.searchsorted(self.hashes, wanted, side)) for side in ("left", "right")
        )
        return [int(row) for row in self.rows[first:last]]

    def without(self, rows: Iterable[int]) -> "Bucket":
        """The bucket without some rows."""
        kept = ~np.isin(self.rows, list(rows))
        return Bucket(self.hashes[kept], self.rows[kept])

    def to_bytes(self) -> bytes:
        """The bucket's file."""
        return save({"hash": self.hashes, "row": self.rows})

    @staticmethod
    def from_bytes(data: bytes, name: str) -> "Bucket":
        """Read a bucket's file, whose digest was compared.

        Raises:
            RowCorruptError: it is no bucket that this program wrote.
        """
        try:
            columns = load(data)
            hashes, rows = columns["hash"], columns["row"]
        except (SafetensorError, ValueError, KeyError) as error:
            raise RowCorruptError(f"{name} is no index of names that we wrote: {error}") from error
        if hashes.dtype != np.uint64 or hashes.ndim != 1 or hashes.shape != rows.shape:
            raise RowCorruptError(f"{name} is no index of names that we wrote: its columns differ")
        return Bucket(hashes, rows)


def hashes_of(names: Iterable[str]) -> Hashes:
    """Hashes of names, in their order."""
    return np.array([name_hash(name) for name in names], np.uint64)


def make_buckets(hashes: Hashes, rows: npt.ArrayLike, num_buckets: int) -> list[Bucket]:
    """All buckets of an index.

    Args:
        hashes: of the units' names.
        rows: of the same units.
        num_buckets: how many there are.
    """
    positions = np.asarray(rows, np.int64)
    order = np.lexsort((positions, hashes))
    sorted_hashes, sorted_rows = hashes[order], positions[order]
    # The least hash of bucket b is the least whole number of at least b 2^64 / num_buckets.
    starts = [-(-(b << 64) // num_buckets) for b in range(1, num_buckets)]
    cuts = np.searchsorted(sorted_hashes, np.array(starts, np.uint64))
    pieces = zip(np.split(sorted_hashes, cuts), np.split(sorted_rows, cuts), strict=True)
    return [Bucket(*piece) for piece in pieces]
