import numpy as np
import pytest
from scipy.stats import binom

from pipeline.certificates.measured_bounds import (
    attainable_quantile,
    calibrated_declaration,
    smallest_num_audits,
    tolerance_bound,
)


def test_the_bound_is_the_smallest_order_statistic_that_will_do() -> None:
    residuals = np.arange(1.0, 101.0)
    bound = tolerance_bound(residuals.tolist(), quantile=0.9, confidence=0.95)
    rank = int(bound.bound)
    assert binom.cdf(rank - 1, 100, 0.9) >= 0.95 > binom.cdf(rank - 2, 100, 0.9)
    assert rank == 96  # Wilks' tables: the fifth largest of 100 for 90% at 95%
    assert bound.confidence == pytest.approx(binom.cdf(95, 100, 0.9))


def test_59_audits_bound_95_percent_at_95_percent() -> None:
    assert smallest_num_audits(0.95, 0.95) == 59
    assert tolerance_bound(list(range(59)), 0.95, 0.95).bound == 58
    with pytest.raises(ValueError, match=r"at least 59 audits.*found 58"):
        tolerance_bound(list(range(58)), 0.95, 0.95)


@pytest.mark.parametrize("num_audits", [1, 5, 20, 59, 300])
def test_the_attainable_quantile_is_attained(num_audits: int) -> None:
    share = attainable_quantile(num_audits, 0.95)
    declaration = calibrated_declaration({"random": list(range(num_audits))}, 10)
    assert declaration.bounds[0].residual == num_audits - 1
    assert share**num_audits == pytest.approx(0.05)


def check_coverage(repetitions: int, seed: int) -> None:
    """A bound falls short of its quantile no more often than 1 - confidence."""
    generator = np.random.default_rng(seed)
    quantile, confidence, num_audits = 0.8, 0.9, 20
    failures = 0
    for _ in range(repetitions):
        # A heavy tail; its quantile function is known, so coverage is exact and not sampled.
        residuals = generator.pareto(1.5, num_audits)
        bound = tolerance_bound(residuals.tolist(), quantile, confidence)
        coverage = 1 - (1 + bound.bound) ** -1.5
        failures += coverage < quantile
    reached = tolerance_bound(list(range(num_audits)), quantile, confidence).confidence
    # Three standard deviations of a binomial on either side of what was stated.
    spread = 3 * np.sqrt(reached * (1 - reached) / repetitions)
    assert failures / repetitions == pytest.approx(1 - reached, abs=spread)
    assert reached >= confidence


def test_the_bound_is_exceeded_no_more_often_than_stated() -> None:
    check_coverage(1_000, seed=1)


@pytest.mark.torture
def test_the_bound_is_exceeded_no_more_often_than_stated_at_length() -> None:
    check_coverage(50_000, seed=2)


def test_random_and_clustered_sets_are_bounded_apart_and_the_worse_counts() -> None:
    declaration = calibrated_declaration(
        {"random": [0.1] * 20, "clustered": [0.1] * 19 + [0.4]}, max_units=10
    )
    assert declaration.capacity == 10
    assert declaration.for_units(3).total == 0.4
    audits = declaration.evidence["audits"]
    assert audits["random"]["bound"] == 0.1
    assert audits["clustered"] == {
        "num_audits": 20,
        "quantile": pytest.approx(0.861, abs=1e-3),
        "confidence": pytest.approx(0.95),
        "bound": 0.4,
    }


def test_without_clusters_it_says_random_requests_only() -> None:
    declaration = calibrated_declaration({"random": [0.1] * 20}, max_units=10)
    assert declaration.evidence["scope"] == "random requests only"
    assert "random requests only" in declaration.residual_source


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1])
def test_failed_audits_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite residuals"):
        calibrated_declaration({"random": [0.1, bad]}, max_units=10)


def test_no_audits_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        calibrated_declaration({}, max_units=10)
    with pytest.raises(ValueError, match="expected"):
        calibrated_declaration({"random": []}, max_units=10)
