"""The residual bound in the paper's released code; neither proved nor measured here.

Certificates that rest on it are of kind `published` and say so.
"""

from dataclasses import dataclass


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
