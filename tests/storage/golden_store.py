"""Writes the golden stores of format version 1: `python -m tests.storage.golden_store FOLDER`.

The committed ones are in `golden/version-1`. They are written once per format version and never
again: a program that reads version 1 must read these bytes.
"""

import sys
from pathlib import Path

import numpy as np

from storage import ApproximatorStore, StoreSpec
from tests.storage.store_cases import Rows, write_all

ENCODINGS = ("float32", "float16", "bfloat16", "int8", "int4")
NUM_UNITS, NUM_PARAMETERS = 5, 301
STORE_ID = "000102030405060708090a0b0c0d0e0f"
UNITS = ("0", "1", "user é", "three", "vier")
ERASED_ROW, PSEUDONYM = 3, "pseudonym-of-three"


def golden_rows() -> Rows:
    """Rows of integers times a power of two: exact on any machine. Row 1 is widened by int8."""
    i, j = np.indices((NUM_UNITS, NUM_PARAMETERS))
    rows_NP = ((7919 * i + 104_729 * j) % 2003 - 1001).astype(np.float32) * np.float32(2.0**-20)
    rows_NP[1] *= np.where(j[1] % 64 == 5, np.float32(1), np.float32(2.0**-6))
    return rows_NP


def write_golden_stores(folder: Path) -> None:
    """Write one store per encoding, and the rows that each must decode to."""
    for encoding in ENCODINGS:
        spec = StoreSpec(NUM_PARAMETERS, encoding, block=2, row_norm_cap=1.0)  # type: ignore[arg-type]
        url = folder / f"{encoding}.zarr"
        store = ApproximatorStore.create(url, UNITS, range(1, NUM_UNITS + 1), spec, STORE_ID)
        write_all(store, golden_rows())
        store.erase([UNITS[ERASED_ROW]], lambda unit: PSEUDONYM)
        np.save(folder / f"{encoding}.npy", store.read_rows_at([0, 1, 2, 4]))


if __name__ == "__main__":
    write_golden_stores(Path(sys.argv[1]))
