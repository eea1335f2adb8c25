"""Stores of format version 1 stay readable, and are written the same, byte for byte."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from storage import ApproximatorStore
from tests.storage.golden_store import (
    ENCODINGS,
    ERASED_ROW,
    PSEUDONYM,
    golden_rows,
    write_golden_stores,
)

GOLDEN = Path(__file__).parent / "golden" / "version-1"
KEPT = [0, 1, 2, 4]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_golden_store_is_read(encoding: str) -> None:
    store = ApproximatorStore.open(GOLDEN / f"{encoding}.zarr")
    expected = np.load(GOLDEN / f"{encoding}.npy", allow_pickle=False)
    assert np.array_equal(store.read_rows_at(KEPT), expected)
    assert np.abs(expected - golden_rows()[KEPT]).max() < 3e-4
    assert store.units == ("0", "1", "user é", "", "vier")
    assert store.states[ERASED_ROW] == store.state(PSEUDONYM) == "erased"
    assert (store.num_samples, store.verify()) == (15, [])


def test_golden_stores_are_written_the_same_byte_for_byte(tmp_path: Path) -> None:
    write_golden_stores(tmp_path)
    names = {path.relative_to(GOLDEN) for path in GOLDEN.rglob("*") if path.is_file()}
    assert {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()} == names
    for name in names:
        if name.suffix == ".parquet":
            # Parquet's own bytes depend on the version of Arrow, norms' last bits on numpy's.
            ours, golden = pq.read_table(tmp_path / name), pq.read_table(GOLDEN / name)
            for column in set(golden.column_names) - {"norm", "error"}:
                assert ours.column(column).equals(golden.column(column)), (name, column)
            for column in ("norm", "error"):
                found, expected = ours.column(column), golden.column(column)
                for a, b in zip(found.to_pylist(), expected.to_pylist(), strict=True):
                    assert a == b or a == pytest.approx(b, rel=1e-12)
        else:
            assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes(), name


def test_an_int8_row_above_the_cap_was_widened() -> None:
    lines = pq.read_table(GOLDEN / "int8.parquet").to_pylist()
    assert [line["encoding"] for line in lines] == ["int8", "float16", "int8", "int8", None]
