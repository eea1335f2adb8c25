"""Rows and stores that several tests use."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from storage import ApproximatorStore, StoreSpec

Rows = npt.NDArray[np.float32]


def gaussian_rows(num_rows: int, num_parameters: int, seed: int = 0) -> Rows:
    """Rows of values around 1e-4."""
    rng = np.random.default_rng([seed, num_rows, num_parameters])
    return rng.standard_normal((num_rows, num_parameters), dtype=np.float32) * np.float32(1e-4)


def write_all(store: ApproximatorStore, rows_NP: Rows) -> None:
    """Write every block and merge."""
    for block in range(store.num_blocks):
        rows = store.block_units(block)
        store.write_rows(block, rows_NP[rows.start : rows.stop])
    store.merge()


def filled_store(url: str | Path, rows_NP: Rows, spec: StoreSpec) -> ApproximatorStore:
    """A store of `rows_NP`, of units "unit 0", "unit 1", ... with one sample each."""
    units = [f"unit {i}" for i in range(len(rows_NP))]
    store = ApproximatorStore.create(url, units, [1] * len(units), spec)
    write_all(store, rows_NP)
    return store


def pseudonym(unit: str) -> str:
    """A pseudonym that does not spell the unit's name."""
    return "p" + "".join(f"{byte ^ 0x55:02x}" for byte in unit.encode())


ROWS = gaussian_rows(4, 301)
SPEC = StoreSpec(301, "int8", block=2)
"""Of the small store that `conftest.py` fills."""
