"""Privacy accounting: how much noise a release needs, what all releases spend together, the budget."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.certificates.sensitivity import Declaration, Kind, Sensitivity
from pipeline.errors import BudgetSpentError, RequestError
from storage.ledger_records import ReleaseRecord


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


def standard_normals(count: int) -> NDArray[np.float64]:
    """Return `count` independent N(0, 1) values, float64, from the operating system's entropy.

    Each takes 64 fresh bits: a sign and 52 bits k, mapped through the inverse of the normal
    distribution at (k + 1/2) / 2^53, which is exact in float64. Values beyond 8.2 standard
    deviations, of probability 2e-16, cannot occur.
    """
    from scipy.special import ndtri

    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    tail = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-53
    magnitude: NDArray[np.float64] = ndtri(tail)
    return np.where(words & np.uint64(1), magnitude, -magnitude)


def _check(value: float, name: str, below: float) -> None:
    if not 0 < value < below:
        raise ValueError(f"expected {name} above 0 and below {below}, found {value}")


_SLACK = 1e-9  # of the solvers that turn sigma into epsilon and back


@dataclass(frozen=True)
class Budget:
    """The most that all releases together may spend.

    Attributes:
        epsilon: Above 0.
        delta: In (0, 1); what all releases together spend is stated at this delta.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < float("inf") and 0 < self.delta < 1):
            raise ValueError(
                f"expected a budget with epsilon above 0 and delta between 0 and 1, found {self}"
            )


@dataclass(frozen=True)
class Mechanism:
    """How one release is made.

    Attributes:
        kind: What its certificate is.
        epsilon: None without noise.
        delta: None without noise.
        sensitivity: None without noise.
        sigma: Of the noise on every parameter; 0 without.
    """

    kind: Kind
    epsilon: float | None = None
    delta: float | None = None
    sensitivity: Sensitivity | None = None
    sigma: float = 0.0

    @property
    def update(self) -> bool:
        """Whether the approximators are added to the trained parameters."""
        return self.sensitivity is None or self.sensitivity.update


def plan_release(
    declaration: Declaration, total_units: int, epsilon: float | None, delta: float | None
) -> Mechanism:
    """Return the mechanism of a release after which `total_units` units are deleted.

    Raises:
        RequestError: Privacy is asked for and nothing was declared, or a condition failed.
        RetrainRequiredError: The deletion capacity is passed.
    """
    if declaration.capacity:
        sensitivity = declaration.for_units(total_units)
    if epsilon is None or delta is None:
        return Mechanism("none")
    if declaration.kind == "none":
        raise RequestError(
            "this run declares no sensitivity, so no noise is known to give epsilon and delta; "
            "train a run with certificate.kind set (docs/certificate.md), or release without noise"
        )
    if declaration.failed:
        failed = "; ".join(f"{c.name} (found {c.found})" for c in declaration.failed)
        raise RequestError(
            f"the {declaration.kind} certificate's conditions did not hold: {failed}; train with "
            "them, or release without epsilon and delta"
        )
    if sensitivity.total == 0:
        raise RequestError("the declared sensitivity is 0, which no measurement or proof gives")
    sigma = sigma_for(sensitivity.total, epsilon, delta)
    return Mechanism(declaration.kind, epsilon, delta, sensitivity, sigma)


def spent_mu(last: ReleaseRecord | None, mechanism: Mechanism) -> float | None:
    """Return the mu of all releases once `mechanism` follows the last one."""
    before = 0.0 if last is None else last.spent_mu
    if before is None or mechanism.sensitivity is None:
        return None
    return compose([before, mechanism.sensitivity.total / mechanism.sigma])


def epsilon_spent(
    record: ReleaseRecord, budget: Budget | None
) -> tuple[float | None, float | None]:
    """Return epsilon and delta of all releases up to `record` together.

    Delta is the budget's, or else the release's own. Epsilon is None once a release had no noise:
    nothing bounds it then.
    """
    delta = budget.delta if budget else record.delta
    if delta is None or record.spent_mu is None:
        return None, delta
    return epsilon_of(record.spent_mu, delta), delta


def check_budget(
    last: ReleaseRecord | None,
    planned: Iterable[tuple[float | None, float | None]],
    budget: Budget | None,
) -> None:
    """Refuse releases that the budget does not hold.

    Args:
        last: The last release made, if any.
        planned: Epsilon and delta of the releases still to be made.
        budget: None if there is no limit.

    Raises:
        BudgetSpentError: They spend more than the budget.
    """
    if budget is None:
        return
    before = 0.0 if last is None else last.spent_mu
    if before is None:
        raise BudgetSpentError("an earlier release had no noise: the budget is spent; retrain")
    mus = [before]
    for epsilon, delta in planned:
        if epsilon is None or delta is None:
            raise BudgetSpentError(
                f"a budget of epsilon {budget.epsilon} at delta {budget.delta} is declared, and a "
                "release without noise would spend more than any budget; name epsilon and delta"
            )
        mus.append(1.0 / sigma_for(1.0, epsilon, delta))
    together = epsilon_of(compose(mus), budget.delta)
    if together > budget.epsilon * (1 + _SLACK):
        raise BudgetSpentError(
            f"this release would bring epsilon to {together:.6g} at delta {budget.delta}; the "
            f"budget is {budget.epsilon:.6g}, and {epsilon_of(before, budget.delta):.6g} is spent: "
            "choose a smaller epsilon, gather more requests into one release, or retrain"
        )
