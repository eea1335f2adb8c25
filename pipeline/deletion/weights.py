"""The arithmetic of a deletion: the weighted sum of approximators, and its mass correction.

    denominator batch:                w = w_T + S                                S = sum a_u
    denominator remaining, left out:  w = w_T + S / (n - M)                      S = sum (n-n_u) a_u
    denominator remaining, included:  w = w_T + S |B|(n-1) / ((|B|-1)(n-M))      S = sum a_u

With an exponent rho below 1 (Adam), n - n_u and n - M stand to the power of rho. Where the run has
class terms (`class_terms.py`), they are added.

S is what is kept between requests, M the number of samples deleted so far. Where samples weigh
differently, n, n_u and M are masses, whole numbers (`Problem.sample_masses`). Every correction is
applied to the whole of S at the end, so requests in any order and any grouping give the same
parameters; the reader of rows sums on a fixed grid, which makes "the same" mean to the bit.

Source: Qiao et al. 2025, Theorem 1 (additivity) for the first line. The other two are this
project's mass correction: each row was computed against a mean over all but its own samples, and
retraining averages over all but those of every deleted unit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.deletion.class_terms import ClassTerms, Masses

# P parameters, C parameters handled at once
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
# Parameters in the precision that the run trains in.
ParameterArray = Float32Array | Float64Array

SumRows = Callable[[list[str], list[int] | None], tuple[Float64Array, float]]
"""Sums the approximators of named units by weight (None: all 1); returns (P,) and the seconds taken."""

# 32,768 values are 256 KiB of float64: both buffers stay in a core's second-level cache, and the
# whole is one pass over memory instead of one for each operation.
_CHUNK = 1 << 15


class NothingRemainsError(ValueError):
    """Every sample of the training set would be deleted; there is no mean over none."""


@dataclass(frozen=True)
class DeletionRule:
    """What fixes the weights of units and the correction of their sum.

    Attributes:
        denominator: What retraining divides a minibatch's gradients by: its own size, or the
            number of samples that remain in it.
        own_rows: Whether a unit's rows were computed with its own Hessians included.
        num_samples: n, the samples trained on, or their mass.
        batch_size: |B|, samples; at least 2 where `remaining` meets `included`.
        exponent: rho of the mass correction; 1 for SGD, about 1/2 for Adam, whose second moment grows
            with the gradient and so takes back half of it (docs/method.md, section 4).
    """

    denominator: Literal["batch", "remaining"]
    own_rows: Literal["included", "left-out"]
    num_samples: int
    batch_size: int
    exponent: float = 1.0

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.batch_size < 1:
            raise ValueError(
                f"expected positive numbers of samples and of samples in a minibatch, found "
                f"{self.num_samples} and {self.batch_size}"
            )
        if self.denominator == "remaining" and self.own_rows == "included" and self.batch_size < 2:
            raise ValueError(
                "with denominator 'remaining' and own rows included a minibatch of 1 leaves "
                "nothing to average over; leave own rows out, or train with larger minibatches"
            )


def deletion_rule(config: RunConfig, num_samples: int) -> DeletionRule:
    """Return which weights and correction a run's conventions ask for, n samples trained on."""
    # Retrainings leave own rows out by their nature.
    always_left_out = config.recursion.engine in ("leave-one-out", "weighing")
    return DeletionRule(
        config.retraining.denominator,
        "left-out" if always_left_out else config.recursion.own_rows,
        num_samples,
        min(config.training.batch_size, num_samples),
        mass_exponent(config),
    )


def mass_exponent(config: RunConfig) -> float:
    """Return rho of the mass correction, with "auto" settled."""
    exponent = config.recursion.mass_exponent
    if exponent == "auto":
        return 1.0 if config.training.optimizer == "sgd" else 0.5
    return exponent


@dataclass(frozen=True)
class DeletionState:
    """What earlier deletions left behind.

    Attributes:
        weighted_sum_P: S, float64 of shape (P,), uncorrected.
        num_deleted_samples: M.
        generation: Which w_T the rows belong to: 0 as trained, one more after each repair.
        masses_C: Mass of each class deleted so far, of runs with class terms; None: nothing.
    """

    weighted_sum_P: Float64Array
    num_deleted_samples: int = 0
    generation: int = 0
    masses_C: Masses | None = None


def unit_weights(rule: DeletionRule, samples_per_unit: Sequence[int]) -> list[int] | None:
    """Return the integer weight of each unit in S, or None where every weight is 1.

    >>> unit_weights(DeletionRule("remaining", "left-out", 100, 10), [1, 4])
    [99, 96]
    """
    if rule.denominator == "remaining" and rule.own_rows == "left-out":
        return [_mass(rule, count) for count in samples_per_unit]
    return None


def mass_weight(rule: DeletionRule, mass: float) -> float:
    """Return g(m), the weight of what leaves `mass` out: rows are weighed by it, and sums divided.

    >>> mass_weight(DeletionRule("remaining", "left-out", 100, 10), 4)
    96.0
    """
    if rule.denominator == "batch":
        return 1.0
    return float((rule.num_samples - mass) ** rule.exponent)


def _mass(rule: DeletionRule, num_owned: int) -> int:
    """Return n^(1 - rho) (n - n_u)^rho as the nearest integer: sums are exact for integer weights."""
    n = rule.num_samples
    if rule.exponent == 1:
        return n - num_owned
    return round(float(n ** (1 - rule.exponent) * (n - num_owned) ** rule.exponent))


def correction_factor(rule: DeletionRule, num_deleted_samples: int) -> float:
    """Return the factor that S is multiplied by once `num_deleted_samples` (M) are deleted.

    Raises:
        NothingRemainsError: M is not below n.

    >>> correction_factor(DeletionRule("remaining", "left-out", 100, 10), 20)
    0.0125
    """
    if not 0 <= num_deleted_samples < rule.num_samples:
        raise NothingRemainsError(
            "no training sample would remain (or none that weighs anything); at least one must: "
            "discard the model instead"
        )
    if rule.denominator == "batch":
        return 1.0
    num_remaining = rule.num_samples - num_deleted_samples
    if rule.exponent != 1:
        return _adaptive_factor(rule, num_remaining)
    if rule.own_rows == "left-out":
        return 1.0 / num_remaining
    return rule.batch_size * (rule.num_samples - 1) / ((rule.batch_size - 1) * num_remaining)


def _adaptive_factor(rule: DeletionRule, num_remaining: int) -> float:
    n, rho = rule.num_samples, rule.exponent
    if rule.own_rows == "left-out":
        return float(1.0 / (n ** (1 - rho) * num_remaining**rho))
    share = rule.batch_size / (rule.batch_size - 1)
    return float(share * ((n - 1) / num_remaining) ** rho)


def add_to_state(
    state: DeletionState,
    weighted_sum_P: Float64Array,
    num_samples: int,
    masses_C: Masses | None = None,
) -> DeletionState:
    """Return the state after `num_samples` more samples whose weighted sum and masses are given.

    The memory of `weighted_sum_P` is taken over: at P = 11 million another vector is 90 MB.
    """
    if masses_C is not None and state.masses_C is not None:
        masses_C = state.masses_C + masses_C
    return replace(
        state,
        weighted_sum_P=np.add(state.weighted_sum_P, weighted_sum_P, out=weighted_sum_P),
        num_deleted_samples=state.num_deleted_samples + num_samples,
        masses_C=masses_C,
    )


def apply_deletion(
    rule: DeletionRule,
    trained_P: ParameterArray,
    state: DeletionState,
    variances: Sequence[slice] = (),
    terms: ClassTerms | None = None,
) -> ParameterArray:
    """Return w_T + factor * S + class terms in w_T's type; in float64, rounded once at the end.

    Running variances are clamped at 0.
    """
    out_P = np.empty_like(trained_P)
    for start, values_C in deleted_chunks(rule, trained_P, state, terms):
        out_P[start : start + values_C.size] = values_C
    clamp(out_P, 0, variances)
    return out_P


def deleted_chunks(
    rule: DeletionRule,
    trained_P: ParameterArray,
    state: DeletionState,
    terms: ClassTerms | None = None,
) -> Iterator[tuple[int, Float64Array]]:
    """Yield (start, w_T + factor * S + class terms) in float64; a chunk lives until the next one."""
    factor = correction_factor(rule, state.num_deleted_samples)
    add = None if terms is None or state.masses_C is None else terms.adder(state.masses_C)
    for start, values_C in scaled_chunks(trained_P, state.weighted_sum_P, factor):
        if add is not None:
            add(start, values_C)
        yield start, values_C


def clamp(values_C: NDArray[np.floating], start: int, variances: Sequence[slice]) -> None:
    """Set negative running variances to 0, in place; the values begin at `start` of all parameters."""
    for part in variances:
        inside = slice(max(0, part.start - start), max(0, part.stop - start))
        np.maximum(values_C[inside], 0, out=values_C[inside])


def add_scaled(trained_P: ParameterArray, sum_P: Float64Array, factor: float) -> ParameterArray:
    """Return w + factor * S in w's type, in one pass over the vectors.

    Args:
        trained_P: w of shape (P,).
        sum_P: S, float64 of shape (P,).
        factor: Any finite number.
    """
    out_P = np.empty_like(trained_P)
    for start, values_C in scaled_chunks(trained_P, sum_P, factor):
        out_P[start : start + values_C.size] = values_C
    return out_P


def scaled_chunks(
    trained_P: ParameterArray, sum_P: Float64Array, factor: float
) -> Iterator[tuple[int, Float64Array]]:
    """Yield (start, w + factor * S) chunk by chunk in float64; a chunk lives until the next one.

    Raises:
        ValueError: The two vectors differ in length.
    """
    if trained_P.shape != sum_P.shape:
        raise ValueError(f"expected a sum of shape {trained_P.shape}, found {sum_P.shape}")
    buffer_C = np.empty(_CHUNK)
    for start in range(0, trained_P.size, _CHUNK):
        part = slice(start, min(start + _CHUNK, trained_P.size))
        values_C = buffer_C[: part.stop - start]
        np.multiply(sum_P[part], factor, out=values_C)
        np.add(trained_P[part], values_C, out=values_C)
        yield start, values_C
