"""Sums on a grid: exact, hence the same in any order and grouping."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import ApproximatorStore, StoreSpec, SumGrid
from storage.errors import SumOverflowError
from tests.storage.store_cases import filled_store, gaussian_rows

VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=40)


@given(values=VALUES, num_samples=st.integers(1, 100_000), seed=st.integers(0, 1000))
def test_any_order_and_grouping_gives_the_exact_sum(
    values: list[float], num_samples: int, seed: int
) -> None:
    grid = SumGrid.for_weights(num_samples)
    snapped = grid.snap(np.array(values))
    exact = sum((Fraction(v) for v in snapped.tolist()), Fraction(0))
    order = np.random.default_rng(seed).permutation(len(values))
    total = np.zeros(1)
    for group in np.array_split(snapped[order], 3):
        partial = np.zeros(1)
        for value in group:
            partial += value
        grid.add(total, partial)
    assert Fraction(float(total[0])) == exact


@given(value=st.floats(-100, 100), num_samples=st.integers(1, 100_000))
def test_snapping_moves_a_value_by_half_a_step_at_most(value: float, num_samples: int) -> None:
    grid = SumGrid.for_weights(num_samples)
    snapped = float(grid.snap(np.array([value]))[0])
    assert abs(Fraction(snapped) - Fraction(value)) * 2 <= Fraction(grid.step)
    assert (Fraction(snapped) / Fraction(grid.step)).denominator == 1


def test_a_sum_that_could_leave_the_exact_range_is_refused(tmp_path: object) -> None:
    grid = SumGrid.for_weights(4)
    with pytest.raises(SumOverflowError, match="fewer rows"):
        grid.check_bound([1.0, 2.0], [1 << 26, 3])
    with pytest.raises(SumOverflowError, match="retrain"):
        grid.add(np.array([grid.limit * 0.75]), np.array([grid.limit * 0.75]))


def test_a_store_refuses_weights_past_its_range(tmp_path: object) -> None:
    rows_NP = gaussian_rows(4, 50) * np.float32(1e5)
    store = filled_store(f"{tmp_path}/a.zarr", rows_NP, StoreSpec(50, block=4))
    with pytest.raises(SumOverflowError):
        store.sum_rows_at(range(4), [1 << 26] * 4)
    with pytest.raises(ValueError, match="at most 67108864"):
        store.sum_rows_at([0], [(1 << 26) + 1])
    with pytest.raises(TypeError, match=r"whole numbers, found float 1\.5"):
        store.sum_rows_at([0, 1], [1, 1.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="once"):
        store.sum_rows_at([0, 0])
    with pytest.raises(ValueError, match="once"):
        store.sum_rows(["unit 0", "unit 0"])


@pytest.mark.parametrize("num_parameters", [301, 300_001])
@pytest.mark.parametrize("encoding", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_a_sum_is_that_of_its_rows_to_the_bit(
    tmp_path: object, encoding: str, num_parameters: int
) -> None:
    spec = StoreSpec(num_parameters, encoding, block=4)  # type: ignore[arg-type]
    filled_store(f"{tmp_path}/a.zarr", gaussian_rows(9, num_parameters), spec)
    store = ApproximatorStore.open(f"{tmp_path}/a.zarr")
    weights = [1, 1000, -7, 1 << 20, 3, 5, 11, 13, 17]
    whole = store.sum_rows_at(range(9), weights)
    backwards = store.sum_rows_at(range(8, -1, -1), weights[::-1], num_threads=2)
    grid = store.grid(weighted=True)
    odd = store.sum_rows([f"unit {i}" for i in range(1, 9, 2)], weights[1::2])
    grouped = grid.add(store.sum_rows_at(range(0, 9, 2), weights[0::2]), odd)
    by_hand = np.zeros(num_parameters)
    for weight, row in zip(weights, store.read_rows_at(range(9)), strict=True):
        by_hand += grid.snap(row.astype(np.float64) * weight)
    for other in (backwards, grouped, by_hand):
        assert np.array_equal(whole, other)
    plain = store.sum_rows_at(range(9))
    assert np.allclose(plain, store.read_rows_at(range(9)).astype(float).sum(axis=0), atol=1e-11)


def test_a_sum_of_many_rows_takes_the_memory_of_less_than_four(tmp_path: object) -> None:
    num_parameters = 1_200_000
    filled_store(
        f"{tmp_path}/a.zarr", gaussian_rows(12, num_parameters), StoreSpec(num_parameters, "int8")
    )
    store = ApproximatorStore.open(f"{tmp_path}/a.zarr")
    tracemalloc.start()
    store.sum_rows_at(range(12), [3] * 12)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * num_parameters * 4
