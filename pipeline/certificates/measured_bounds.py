"""Bounds that are not proved: measured by audit retrainings, or from the paper's released code."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import binom

from pipeline.certificates.sensitivity import Declaration, UnitsBound

CLUSTERED = "clustered"
RANDOM = "random"


@dataclass(frozen=True)
class ToleranceBound:
    """An upper tolerance bound.

    Attributes:
        bound: With probability `confidence` over the audits, at least a share `quantile` of all
            sets have a residual of at most this.
        num_audits: N.
        quantile: In (0, 1).
        confidence: In (0, 1), as reached, at least what was asked for.
    """

    bound: float
    num_audits: int
    quantile: float
    confidence: float


def smallest_num_audits(quantile: float, confidence: float) -> int:
    """Return the smallest N whose largest residual bounds the quantile with this confidence.

    >>> smallest_num_audits(0.95, 0.95)
    59
    """
    _check_share(quantile, "quantile")
    _check_share(confidence, "confidence")
    return math.ceil(math.log1p(-confidence) / math.log(quantile))


def attainable_quantile(num_audits: int, confidence: float) -> float:
    """Return the largest quantile that the largest of N residuals bounds with this confidence.

    >>> round(attainable_quantile(20, 0.95), 3)
    0.861
    """
    _check_share(confidence, "confidence")
    if num_audits < 1:
        raise ValueError(f"expected at least one audit, found {num_audits}")
    return math.pow(1.0 - confidence, 1.0 / num_audits)


def tolerance_bound(
    residuals: Sequence[float], quantile: float, confidence: float
) -> ToleranceBound:
    """Return the smallest order statistic that bounds the quantile with the confidence.

    Args:
        residuals: |w_retrained - w_released before noise| of each audited set, L2.
        quantile: The share of sets to bound.
        confidence: Probability that the bound holds for the quantile, over the audits.

    Raises:
        ValueError: A residual is not a finite number of at least 0, or there are too few.
    """
    needed = smallest_num_audits(quantile, confidence)
    if not all(0 <= residual < math.inf for residual in residuals):
        raise ValueError("expected finite residuals of at least 0; an audit has failed")
    if len(residuals) < needed:
        raise ValueError(
            f"expected at least {needed} audits for a quantile of {quantile} at confidence "
            f"{confidence}, found {len(residuals)}; audit more sets, or claim the quantile "
            f"{attainable_quantile(max(len(residuals), 1), confidence):.3f}"
        )
    count = len(residuals)
    ranks = range(1, count + 1)
    rank = next(k for k in ranks if binom.cdf(k - 1, count, quantile) >= confidence)
    reached = float(binom.cdf(rank - 1, count, quantile))
    return ToleranceBound(sorted(residuals)[rank - 1], count, quantile, reached)


def calibrated_declaration(
    residuals_by_choice: Mapping[str, Sequence[float]],
    max_units: int,
    confidence: float = 0.95,
    quantile: float | None = None,
) -> Declaration:
    """Return the declaration that audits of sets of `max_units` units allow.

    Args:
        residuals_by_choice: Residuals by how sets were chosen: "random" and, where they were
            audited, "clustered". The largest of their bounds is declared.
        max_units: Units in each audited set; the deletion capacity.
        confidence: Probability that the bound holds for the quantile, over the audits.
        quantile: The share of sets to bound; by default the largest attainable.

    Raises:
        ValueError: No sets were audited, or too few.
    """
    if not residuals_by_choice:
        raise ValueError("expected residuals for at least one way of choosing sets, found none")
    bounds = {}
    for choice, residuals in residuals_by_choice.items():
        # Slightly below the attainable quantile, so that rounding of power and root loses no audit.
        share = quantile or attainable_quantile(len(residuals), confidence) * (1 - 1e-12)
        bounds[choice] = tolerance_bound(residuals, share, confidence)
    scope = "sets chosen at random or as clusters"
    if CLUSTERED not in bounds:
        scope = "random requests only"
    return Declaration(
        kind="calibrated",
        bounds=(UnitsBound(max_units, max(bound.bound for bound in bounds.values())),),
        residual_source=f"measured on audit retrainings with {max_units} units each; {scope}",
        row_error_source="contained in the measured residual",
        evidence={
            "proof": "none: a measured bound, which holds for sets chosen as the audited ones",
            "scope": scope,
            "audits": {choice: _evidence(bound) for choice, bound in bounds.items()},
        },
    )


def _evidence(bound: ToleranceBound) -> dict[str, float]:
    # The order of the keys is that of certificates, which `verify` compares byte by byte.
    return {
        "num_audits": bound.num_audits,
        "quantile": bound.quantile,
        "confidence": bound.confidence,
        "bound": bound.bound,
    }


def _check_share(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"expected a {name} between 0 and 1, found {value}")


@dataclass(frozen=True)
class PublishedFormula:
    """Constants of `published_residual`.

    Attributes:
        learning_rate: eta at step 0.
        decay: q, per step.
        num_steps: T, a multiple of `steps_per_epoch`.
        steps_per_epoch: B = ceil(n/|B|).
        batch_size: |B|.
        clip_norm: G.
        rho: Measured spectral radius of I - eta H.
    """

    learning_rate: float
    decay: float
    num_steps: int
    steps_per_epoch: int
    batch_size: int
    clip_norm: float
    rho: float


def published_residual(formula: "PublishedFormula", num_deleted: int) -> float:
    """Return B(m) by the formula of the paper's released code; neither proved nor measured here.

    b = 2 eta^2 G (1-q) [ (rho^T - q^T)/(rho - q) - (rho^T - q^(2T))/(rho - q^2) ]
        + 2 eta G (m/|B|) (rho^T - q^T)/(rho^B - q^B) rho^B q^B

    The fractions are geometric sums, and are computed as such: nothing is divided by zero where
    rho = q.
    """
    f = formula
    steps, per_epoch = f.num_steps, f.steps_per_epoch
    drift = _geometric_sum(f.rho, f.decay, steps) - _geometric_sum(f.rho, f.decay**2, steps)
    rho_B, q_B = f.rho**per_epoch, f.decay**per_epoch
    visits = _geometric_sum(rho_B, q_B, steps // per_epoch) * rho_B * q_B
    scale = 2 * f.learning_rate * f.clip_norm
    return (
        scale * f.learning_rate * (1 - f.decay) * drift
        + scale * (num_deleted / f.batch_size) * visits
    )


def _geometric_sum(a: float, b: float, count: int) -> float:
    """Return (a^count - b^count) / (a - b) = sum of a^(count-1-k) b^k, also where a = b."""
    total, power = 0.0, 1.0
    for _ in range(count):
        total = total * a + power
        power *= b
    return total
