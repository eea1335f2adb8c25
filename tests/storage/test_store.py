"""The store's promises on local folders, against the rows that were handed in."""

from pathlib import Path

import numpy as np
import pytest

from storage import ApproximatorStore, StoreSpec
from storage.errors import (
    RowRejectedError,
    UnitErasedError,
    UnknownUnitError,
    WriterConflictError,
)
from tests.storage.store_cases import filled_store, gaussian_rows, pseudonym, write_all

# Largest relative row error of Gaussian rows, the encoding's arithmetic plus a margin of a tenth.
EXPECTED_ERROR = {
    "float32": 0.0,
    "float16": 2.6e-4,
    "bfloat16": 2.1e-3,
    "int8": 8e-3,
    "int4": 0.125,
}


@pytest.mark.parametrize("encoding", EXPECTED_ERROR)
@pytest.mark.parametrize("num_parameters", [1, 301, 7_850, 300_001])
def test_rows_come_back_within_the_encodings_error(
    tmp_path: Path, encoding: str, num_parameters: int
) -> None:
    rows_NP = gaussian_rows(5, num_parameters)
    spec = StoreSpec(num_parameters, encoding, block=2, row_error_cap=1.0)  # type: ignore[arg-type]
    filled_store(tmp_path / "approximators.zarr", rows_NP, spec)
    found = ApproximatorStore.open(tmp_path / "approximators.zarr").read_rows(
        ["unit 4", "unit 1", "unit 4"]
    )
    norms = np.linalg.norm(rows_NP[[4, 1, 4]].astype(float), axis=1)
    errors = np.linalg.norm(found - rows_NP[[4, 1, 4]].astype(float), axis=1)
    assert found.dtype == np.float32
    if num_parameters > 300:
        assert (errors <= EXPECTED_ERROR[encoding] * norms).all()
        assert (errors > 0).all() == (encoding != "float32")


def test_an_erased_unit_is_gone_and_its_neighbours_stay(tmp_path: Path) -> None:
    store = filled_store(tmp_path / "a.zarr", gaussian_rows(5, 301), StoreSpec(301, block=4))
    neighbours = store.read_rows_at([0, 1, 3, 4])
    store.erase(["unit 2"], pseudonym)
    store.erase(["unit 2"], pseudonym)
    assert store.states[2] == store.state(pseudonym("unit 2")) == "erased"
    assert np.array_equal(store.read_rows_at([0, 1, 3, 4]), neighbours)
    with pytest.raises(UnitErasedError):
        store.read_rows_at([2])
    with pytest.raises(UnknownUnitError):
        store.read_rows(["unit 2"])
    assert store.verify() == []


def test_writing_the_same_rows_again_changes_nothing_and_others_are_refused(
    tmp_path: Path,
) -> None:
    rows_NP = gaussian_rows(4, 301)
    store = filled_store(tmp_path / "a.zarr", rows_NP, StoreSpec(301, block=4))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("c.*")}
    facts = store.write_rows(0, rows_NP)
    assert facts.rows == 4
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("c.*")}
    with pytest.raises(WriterConflictError, match="new generation"):
        store.write_rows(0, rows_NP + np.float32(1))
    assert store.verify() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:, :-1], "shape"),
        (lambda rows: rows.astype(np.float64), "float64"),
        (lambda rows: np.where(rows == rows[1, 3], np.nan, rows), "not finite"),
        (lambda rows: rows * np.float32(1e6), "row_norm_cap"),
    ],
)
def test_a_row_that_is_none_is_refused_and_nothing_written(
    tmp_path: Path, change: object, message: str
) -> None:
    rows_NP = gaussian_rows(4, 301)
    spec = StoreSpec(301, block=4, row_norm_cap=1.0)
    store = ApproximatorStore.create(tmp_path / "a.zarr", list("abcd"), [1] * 4, spec)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RowRejectedError, match=message):
        store.write_rows(0, change(rows_NP))  # type: ignore[operator]
    assert sorted(path for path in tmp_path.rglob("*") if path.suffix != ".parts") == before


def test_a_number_is_the_name_that_its_digits_spell_and_never_a_position(tmp_path: Path) -> None:
    rows_NP = gaussian_rows(4, 301)
    names = ["3", "2", "1", "0"]
    spec = StoreSpec(301, "float32", block=4)
    store = ApproximatorStore.create(tmp_path / "a.zarr", names, [1] * 4, spec)
    write_all(store, rows_NP)
    for three in (3, np.int64(3), "3"):
        assert np.array_equal(store.read_rows([three]), rows_NP[:1])
        assert np.array_equal(store.sum_rows([three], [2]), store.sum_rows_at([0], [2]))
        assert store.state(three) == "written"
    assert np.array_equal(store.read_rows_at([3]), rows_NP[3:])
    store.erase([3], pseudonym)
    assert store.states == ("erased", "written", "written", "written")
    assert store.units == ("", "2", "1", "0")


@pytest.mark.parametrize("units", ["17", b"17", {"1": 1}, {"1", "7"}, {"1": 1}.keys()])
def test_one_text_is_no_list_of_units(tmp_path: Path, units: object) -> None:
    names = ["1", "7", "17"]
    store = ApproximatorStore.create(tmp_path / "a.zarr", names, [1] * 3, StoreSpec(4))
    write_all(store, gaussian_rows(3, 4))
    for attempt in (store.read_rows, store.sum_rows, lambda units: store.erase(units, pseudonym)):
        with pytest.raises(TypeError, match="expected a list of units"):
            attempt(units)  # type: ignore[operator]
    assert store.units == ("1", "7", "17")


@pytest.mark.parametrize("unit", [True, 1.0, b"1", None, ("1",), np.float32(1), np.bool_(True)])
def test_what_is_neither_text_nor_a_whole_number_names_no_unit(
    tmp_path: Path, unit: object
) -> None:
    store = ApproximatorStore.create(tmp_path / "a.zarr", ["1", "7"], [1] * 2, StoreSpec(4))
    write_all(store, gaussian_rows(2, 4))
    for attempt in (store.read_rows, store.sum_rows, lambda units: store.erase(units, pseudonym)):
        with pytest.raises(TypeError, match="named by text"):
            attempt(["7", unit])  # type: ignore[operator]
    with pytest.raises(TypeError, match="named by text"):
        store.state(unit)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="whole numbers"):
        store.read_rows_at(["1"])  # type: ignore[list-item]
    assert store.units == ("1", "7")
