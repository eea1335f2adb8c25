"""What privacy a release keeps, what all of them keep together, and when that is refused."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.gaussian_mechanism import compose, epsilon_of, sigma_for
from pipeline.refusals import BudgetSpentError, RequestError
from pipeline.sensitivity import Declaration, Kind, Sensitivity
from storage.ledger_records import ReleaseRecord

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
            "this run declares no sensitivity, so no noise can be said to keep epsilon and delta; "
            "declare one with certificate.kind, or release without"
        )
    if declaration.failed:
        failed = "; ".join(f"{c.name} (found {c.found})" for c in declaration.failed)
        raise RequestError(
            f"the {declaration.kind} certificate's conditions did not hold: {failed}; train with "
            "them, or release without epsilon and delta"
        )
    if sensitivity.total == 0:
        raise RequestError("the declared sensitivity is 0, which no measurement or proof can be")
    sigma = sigma_for(sensitivity.total, epsilon, delta)
    return Mechanism(declaration.kind, epsilon, delta, sensitivity, sigma)


@dataclass(frozen=True)
class Spent:
    """What several releases spend together.

    Attributes:
        releases: How many.
        delta: At which epsilon is stated; None if every release was without noise.
        epsilon: None if a release was without noise: nothing bounds it then.
        mu: In Gaussian differential privacy; None likewise.
    """

    releases: int
    delta: float | None
    epsilon: float | None
    mu: float | None


def spent_by(records: Sequence[ReleaseRecord], budget: Budget | None) -> Spent:
    """Return what releases have spent, at the budget's delta or else the last release's."""
    stated = [record.delta for record in records if record.delta is not None]
    delta = budget.delta if budget else (stated[-1] if stated else None)
    if delta is None or len(stated) < len(records):
        return Spent(len(records), delta, None, None)
    mu = compose(_mu(record.sensitivity, record.sigma) for record in records)
    return Spent(len(records), delta, epsilon_of(mu, delta), mu)


def check_budget(
    records: Sequence[ReleaseRecord],
    planned: Iterable[tuple[float | None, float | None]],
    budget: Budget | None,
) -> None:
    """Refuse releases that the budget does not hold.

    Args:
        records: Releases made.
        planned: Epsilon and delta of the releases still to be made.
        budget: None if there is no limit.

    Raises:
        BudgetSpentError: They spend more than the budget.
    """
    if budget is None:
        return
    mus = []
    for record in records:
        if record.sensitivity is None:
            raise BudgetSpentError(f"release {record.release} had no noise: the budget is spent")
        mus.append(_mu(record.sensitivity, record.sigma))
    for epsilon, delta in planned:
        if epsilon is None or delta is None:
            raise BudgetSpentError(
                f"a budget of epsilon {budget.epsilon} at delta {budget.delta} is declared, and a "
                "release without noise would spend more than any budget; name epsilon and delta"
            )
        mus.append(1.0 / sigma_for(1.0, epsilon, delta))
    together = epsilon_of(compose(mus), budget.delta)
    if together > budget.epsilon * (1 + _SLACK):
        before = epsilon_of(compose(mus[: len(records)]), budget.delta)
        raise BudgetSpentError(
            f"this release would bring epsilon to {together:.6g} at delta {budget.delta}; the "
            f"budget is {budget.epsilon:.6g}, and {before:.6g} is spent: choose a smaller epsilon, "
            "gather more requests into one release, or retrain"
        )


def _mu(sensitivity: float | None, sigma: float) -> float:
    if sensitivity is None or sigma == 0:
        raise ValueError("a release without noise has no mu")
    return sensitivity / sigma
