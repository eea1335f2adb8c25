"""Encodings: exact errors, exact products, and rows at the edges of float32."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.encoding import ENCODINGS, decoder, widening_chain
from storage.quantization import encode, encode_within
from tests.storage.store_cases import gaussian_rows

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


@pytest.mark.parametrize("name", ENCODINGS)
@given(row=hnp.arrays(np.float32, st.integers(1, 300), elements=FLOATS))
def test_the_error_is_that_of_the_decoded_row(name: str, row: np.ndarray) -> None:
    encoded = encode(row, name)
    decoded = np.empty((1, row.size), np.float32)
    decoder(name, encoded.codes[None], encoded.scales[None]).write(decoded)
    assert np.isclose(
        encoded.error, np.linalg.norm(decoded[0].astype(float) - row.astype(float)), rtol=1e-12
    )
    assert encoded.peak == np.abs(decoded).max()
    assert encoded.codes.size == ENCODINGS[name].code_bytes(row.size)


@pytest.mark.parametrize("name", ENCODINGS)
@given(
    row=hnp.arrays(np.float32, st.integers(1, 300), elements=FLOATS),
    weight=st.integers(-(1 << 26), 1 << 26),
)
def test_weighted_values_are_exact_in_float64(name: str, row: np.ndarray, weight: int) -> None:
    encoded = encode(row, name)
    exact, weighted = np.empty((1, row.size), np.float32), np.empty((1, row.size))
    decoder(name, encoded.codes[None], encoded.scales[None]).write(exact)
    weights = np.array([weight], np.float64)
    decoder(name, encoded.codes[None], encoded.scales[None], weights).write(weighted)
    for value, product in zip(exact[0].tolist(), weighted[0].tolist(), strict=True):
        numerator, denominator = value.as_integer_ratio()
        top, bottom = product.as_integer_ratio()
        assert top * denominator == numerator * weight * bottom


@pytest.mark.parametrize(
    ("name", "largest_error"),
    [("float32", 0.0), ("float16", 2.2e-4), ("bfloat16", 1.8e-3), ("int8", 7e-3), ("int4", 0.09)],
)
@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e-4, 1.0, 1e6])
def test_the_error_of_gaussian_rows_does_not_depend_on_their_size(
    name: str, largest_error: float, scale: float
) -> None:
    row = gaussian_rows(1, 100_000)[0] * np.float32(1e4 * scale)
    norm = float(np.linalg.norm(row.astype(float)))
    assert encode(row, name).error <= largest_error * norm


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_row_of_zeros_has_no_error(name: str) -> None:
    encoded = encode(np.zeros(300, np.float32), name)
    assert (encoded.error, encoded.peak) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["int8", "int4", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [3e38, 1e-45, 1e-38])
def test_a_row_at_the_edge_of_float32_is_widened_until_it_fits(name: str, value: float) -> None:
    row = np.full(300, value, np.float32)
    row[1::3] *= np.float32(0.37)
    norm = float(np.linalg.norm(row.astype(float)))
    encoded = encode_within(row, norm, widening_chain(name), 1e-3)
    assert encoded.error <= 1e-3 * norm


@pytest.mark.parametrize("name", ENCODINGS)
def test_columns_decoded_in_pieces_are_those_decoded_at_once(name: str) -> None:
    row = gaussian_rows(1, 70_001)[0]
    encoded = encode(row, name)
    values = decoder(name, encoded.codes[None], encoded.scales[None])
    whole = np.empty((1, row.size))
    values.write(whole)
    for start in range(0, row.size, 16_384):
        piece = np.empty((1, min(16_384, row.size - start)))
        values.write(piece, start)
        assert np.array_equal(piece, whole[:, start : start + 16_384])
