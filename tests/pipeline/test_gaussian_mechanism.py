import random

import numpy as np
import pytest
import torch
from scipy.special import log_ndtr
from scipy.stats import beta, kstest

from pipeline.certificates.privacy import compose, epsilon_of, sigma_for, standard_normals

PAIRS = np.random.default_rng(5)
EPSILONS = np.exp(PAIRS.uniform(np.log(1e-2), np.log(30.0), 200))
DELTAS = np.exp(PAIRS.uniform(np.log(1e-12), np.log(0.4), 200))


def hockey_stick(sigma: float, epsilon: float) -> float:
    """Delta of the Gaussian mechanism at sensitivity 1, Balle & Wang 2018, Theorem 8."""
    upper = log_ndtr(0.5 / sigma - epsilon * sigma)
    lower = epsilon + log_ndtr(-0.5 / sigma - epsilon * sigma)
    return float(-np.exp(upper) * np.expm1(lower - upper))


def smallest_sigma(epsilon: float, delta: float) -> float:
    low, high = 1e-6, 1e6
    for _ in range(200):
        middle = np.sqrt(low * high)
        low, high = (low, middle) if hockey_stick(middle, epsilon) <= delta else (middle, high)
    return float(high)


def test_sigma_is_the_analytic_mechanisms() -> None:
    for epsilon, delta in zip(EPSILONS, DELTAS, strict=True):
        expected = smallest_sigma(epsilon, delta)
        assert sigma_for(1.0, epsilon, delta) == pytest.approx(expected, rel=1e-6)


def test_sigma_is_proportional_to_sensitivity() -> None:
    assert sigma_for(0.25, 1.0, 1e-5) == pytest.approx(0.25 * 3.7306316, rel=1e-7)


@pytest.mark.parametrize(("releases", "epsilon"), [(2, 1.47), (10, 3.6), (100, 14.4)])
def test_releases_compose_in_gaussian_dp(releases: int, epsilon: float) -> None:
    mu = compose([1 / sigma_for(1.0, 1.0, 1e-5)] * releases)
    assert epsilon_of(mu, 1e-5) == pytest.approx(epsilon, rel=1e-2)


@pytest.mark.parametrize("argument", range(3))
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_arguments_are_refused(argument: int, bad: float) -> None:
    arguments = [1.0, 1.0, 1e-5]
    arguments[argument] = bad
    with pytest.raises(ValueError, match="expected"):
        sigma_for(*arguments)


def test_a_delta_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="expected delta"):
        sigma_for(1.0, 1.0, 1.0)


def test_noise_is_standard_normal() -> None:
    # A correct generator fails this in one run of a million.
    assert kstest(standard_normals(200_000), "norm").pvalue > 1e-6


def test_no_seed_changes_the_noise() -> None:
    draws = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        draws.append(standard_normals(8))
    assert not np.array_equal(*draws)


def largest_epsilon_found(without: np.ndarray, with_unit: np.ndarray, delta: float) -> float:
    """Lower 99.9% bound on epsilon from a likelihood-ratio attack with every threshold.

    In one dimension the likelihood ratio of two Gaussians of one sigma is monotone in the value, so
    thresholds on the value are the most powerful tests there are. Thresholds come from one half
    of the draws and are scored on the other; Clopper-Pearson bounds at 1e-3 over 40 thresholds.
    """
    half = without.size // 2
    thresholds = np.quantile(with_unit[:half], np.linspace(0.01, 0.99, 40))
    level = 1e-3 / 80
    best = 0.0
    for threshold in thresholds:
        hits = int((with_unit[half:] > threshold).sum())
        alarms = int((without[half:] > threshold).sum())
        hit_rate = beta.ppf(level, hits, half - hits + 1) if hits else 0.0
        alarm_rate = beta.ppf(1 - level, alarms + 1, half - alarms) if alarms < half else 1.0
        if hit_rate > delta:
            best = max(best, float(np.log((hit_rate - delta) / alarm_rate)))
    return best


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_a_likelihood_ratio_attack_finds_no_epsilon_above_the_claim(epsilon: float) -> None:
    delta, sensitivity, count = 1e-3, 0.3, 100_000
    sigma = sigma_for(sensitivity, epsilon, delta)
    without = sigma * standard_normals(count)
    with_unit = sensitivity + sigma * standard_normals(count)
    assert largest_epsilon_found(without, with_unit, delta) <= epsilon


def test_the_attack_notices_half_the_noise() -> None:
    delta, sensitivity, count = 1e-3, 0.3, 100_000
    sigma = sigma_for(sensitivity, 1.0, delta) / 2
    without = sigma * standard_normals(count)
    with_unit = sensitivity + sigma * standard_normals(count)
    assert largest_epsilon_found(without, with_unit, delta) > 1.0
