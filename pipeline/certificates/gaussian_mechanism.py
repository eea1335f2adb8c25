"""The Gaussian mechanism: how much noise, how releases add up, and where the noise comes from.

    released = f + N(0, sigma^2 I),      sigma = sensitivity * sigma_1(epsilon, delta)

sigma_1 is the smallest sigma with
Phi(1/(2 sigma) - epsilon sigma) - e^epsilon Phi(-1/(2 sigma) - epsilon sigma) <= delta
(Balle & Wang 2018), as dp-accounting computes it. Releases compose exactly in Gaussian
differential privacy (Dong, Roth & Su 2022): mu = sensitivity / sigma, mu^2 = sum of mu_k^2.

The noise is made from the operating system's entropy alone: there is no seed that could be set,
stored or met again after a fork.
"""

import math
import os
from collections.abc import Iterable

import numpy as np

from pipeline.deletion import Float64Array


def sigma_for(sensitivity: float, epsilon: float, delta: float) -> float:
    """Return the standard deviation of the noise on every parameter.

    Args:
        sensitivity: L2, above 0 and finite.
        epsilon: Above 0.
        delta: In (0, 1).

    Raises:
        ValueError: An argument is out of range.

    >>> round(sigma_for(1.0, 1.0, 1e-5), 7)
    3.7306316
    """
    # Imported where it is used: it takes a second, and a release without noise needs none of it.
    from dp_accounting import get_sigma_gaussian

    _check(sensitivity, "sensitivity", math.inf)
    _check(epsilon, "epsilon", math.inf)
    _check(delta, "delta", 1.0)
    return sensitivity * float(get_sigma_gaussian(epsilon, delta))


def epsilon_of(mu: float, delta: float) -> float:
    """Return the epsilon that mu-Gaussian differential privacy gives at delta.

    >>> round(epsilon_of(1 / 3.7306316348159374, 1e-5), 6)
    1.0
    """
    from dp_accounting import get_epsilon_gaussian

    _check(delta, "delta", 1.0)
    if mu == 0:
        return 0.0
    return float(get_epsilon_gaussian(1.0 / mu, delta))


def compose(mus: Iterable[float]) -> float:
    """Return the mu of several releases together.

    >>> compose([3.0, 4.0])
    5.0
    """
    return math.hypot(*mus)


def standard_normals(count: int) -> Float64Array:
    """Return `count` independent N(0, 1) values, float64, from the operating system's entropy.

    Each takes 64 fresh bits: a sign and 52 bits k, mapped through the inverse of the normal
    distribution at (k + 1/2) / 2^53, which is exact in float64. Values beyond 8.2 standard
    deviations, of probability 2e-16, cannot occur.
    """
    from scipy.special import ndtri

    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    tail = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-53
    magnitude: Float64Array = ndtri(tail)
    return np.where(words & np.uint64(1), magnitude, -magnitude)


def _check(value: float, name: str, below: float) -> None:
    if not 0 < value < below:
        raise ValueError(f"expected {name} above 0 and below {below}, found {value}")
