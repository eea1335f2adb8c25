import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.deletion.weights import (
    DeletionRule,
    DeletionState,
    NothingRemainsError,
    add_to_state,
    apply_deletion,
    correction_factor,
    unit_weights,
)
from tests.pipeline.fake_store import make_rows

# name, rule, weights of units with 1, 1, 3 samples, factor once 5 of 40 are deleted
RULES = [
    ("batch", DeletionRule("batch", "left-out", 40, 8), None, 1.0),
    ("batch, included", DeletionRule("batch", "included", 40, 8), None, 1.0),
    ("left out", DeletionRule("remaining", "left-out", 40, 8), [39, 39, 37], 1 / 35),
    ("included", DeletionRule("remaining", "included", 40, 8), None, 8 * 39 / (7 * 35)),
]


@pytest.mark.parametrize(("name", "rule", "weights", "factor"), RULES)
def test_weights_and_factor_are_the_methods(
    name: str, rule: DeletionRule, weights: list[int] | None, factor: float
) -> None:
    assert unit_weights(rule, [1, 1, 3]) == weights
    assert correction_factor(rule, 5) == pytest.approx(factor, rel=1e-15)


@pytest.mark.parametrize(("name", "rule", "weights", "factor"), RULES)
def test_parameters_are_the_formula_rounded_once(
    name: str, rule: DeletionRule, weights: list[int] | None, factor: float
) -> None:
    size = 70_001  # two chunks and a part
    rows = list(make_rows(3, size).values())
    trained_P = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    sum_P = sum(w * row for w, row in zip(weights or [1, 1, 1], rows, strict=True))
    state = add_to_state(DeletionState(np.zeros(size)), np.asarray(sum_P), 5)
    expected = trained_P.astype(np.float64) + correction_factor(rule, 5) * np.asarray(sum_P)
    assert np.array_equal(apply_deletion(rule, trained_P, state), expected.astype(np.float32))


def test_one_sample_left_out_gets_its_own_row() -> None:
    rule = DeletionRule("remaining", "left-out", 40, 8)
    (weight,) = unit_weights(rule, [1]) or []
    assert weight * correction_factor(rule, 1) == pytest.approx(1.0, rel=1e-15)


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(9)), cuts=st.lists(st.integers(0, 9), max_size=4))
def test_any_order_and_grouping_gives_the_same_bits(order: list[int], cuts: list[int]) -> None:
    rule = DeletionRule("remaining", "left-out", 40, 8)
    rows, trained_P = list(make_rows(9).values()), np.ones(12, np.float32)
    weight = (unit_weights(rule, [1]) or [1])[0]
    state = DeletionState(np.zeros(12))
    edges = sorted({0, 9, *cuts})
    for start, end in itertools.pairwise(edges):
        batch_P = np.sum([weight * rows[unit] for unit in sorted(order[start:end])], axis=0)
        state = add_to_state(state, batch_P, end - start)
    once = add_to_state(DeletionState(np.zeros(12)), np.sum([weight * r for r in rows], axis=0), 9)
    assert np.array_equal(state.weighted_sum_P, once.weighted_sum_P)
    assert np.array_equal(
        apply_deletion(rule, trained_P, state), apply_deletion(rule, trained_P, once)
    )


def test_the_last_sample_cannot_be_deleted() -> None:
    with pytest.raises(NothingRemainsError, match="no training sample would remain"):
        correction_factor(DeletionRule("remaining", "left-out", 40, 8), 40)


@pytest.mark.parametrize(("num_samples", "batch_size"), [(0, 8), (40, 0), (40, 1)])
def test_impossible_rules_are_refused(num_samples: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match=r"expected positive|minibatch of 1"):
        DeletionRule("remaining", "included", num_samples, batch_size)


def test_a_sum_of_another_length_is_refused() -> None:
    rule = DeletionRule("batch", "left-out", 40, 8)
    with pytest.raises(ValueError, match="expected a sum of shape"):
        apply_deletion(rule, np.ones(3, np.float32), DeletionState(np.ones(4)))
