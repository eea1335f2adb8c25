"""The proved bound for L2-regularised softmax regression; the proof is in docs/certificate.md.

For any m units, with `denominator: batch`, the leave-one-out Hessian (`own_rows: left-out`),
`l2_share: step`, no momentum and no clipping:

    G = sqrt(2) R,  L = R^2 / 2,  M = sqrt(6)/9 R^3,  q_t = 1 - eta_t lam
    alpha_u' = q alpha_u + eta (m_u/|B|) G            >= |a_u|, and >= |w_retrained - w| of one unit
    D        = sum of the m largest alpha             >= |w_retrained - w|
    r_T     <= sum_t Q_t eta_t (M/2) D_t^2 + sum of the m largest E_u
    E_u'     = q E_u + eta (m_u/|B|) L D^(m-1)

with Q_t the product of the later q and D^(m-1) the sum of the m - 1 largest alpha. All constants
are known before the data: the feature norm cap R (bias feature included), lam and the schedule.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.certificates.sensitivity import Condition, Declaration, UnitsBound

FLOAT32_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class SoftmaxProblem:
    """Constants of a softmax regression that are known before its data.

    Attributes:
        feature_norm: R, the largest norm of a sample's features, the bias feature included.
        l2: lam, above 0.
        num_features: Features of a sample, the bias feature included.
        num_classes: Classes.
        initial_norm: |w_0|.
        roundoff: Unit roundoff of training and recursion.
    """

    feature_norm: float
    l2: float
    num_features: int
    num_classes: int
    initial_norm: float = 0.0
    roundoff: float = FLOAT32_ROUNDOFF

    def __post_init__(self) -> None:
        if not (0 < self.feature_norm < math.inf and 0 < self.l2 < math.inf):
            raise ValueError(
                f"expected a feature norm and an L2 strength above 0, found {self.feature_norm} "
                f"and {self.l2}; without L2 nothing contracts and no bound holds"
            )

    @property
    def gradient(self) -> float:
        """G, bound on the norm of one sample's gradient."""
        return math.sqrt(2) * self.feature_norm

    @property
    def smoothness(self) -> float:
        """L, bound on the largest eigenvalue of one sample's Hessian."""
        return self.feature_norm**2 / 2

    @property
    def hessian_lipschitz(self) -> float:
        """M, Lipschitz constant of one sample's Hessian."""
        return math.sqrt(6) / 9 * self.feature_norm**3


class SoftmaxRounding:
    """Bounds on what finite precision does to the parameters and to one approximator.

    The standard model, |fl(x op y) - x op y| <= u |x op y|, any order of summation, exp accurate to
    8 u; gamma_k = k u / (1 - k u). `parameters` bounds the distance of the computed w_T from the
    exact one, `row` that of a computed a_u; docs/certificate.md derives both.
    """

    def __init__(self, problem: SoftmaxProblem) -> None:
        self._problem = problem
        self.parameters = 0.0
        self.row = 0.0
        self._norm = problem.initial_norm
        # Each value of an approximator is rounded once to the grid of exact sums, 2^-42 wide.
        self.sum_grid = 2.0**-43 * math.sqrt(problem.num_features * problem.num_classes)

    def advance(self, eta: float, batch_size: int, alpha: float, share: float) -> None:
        """Propagate the bounds through one step.

        Args:
            eta: Learning rate.
            batch_size: |B|.
            alpha: The largest alpha of any unit before the step.
            share: The largest share of the minibatch that is one unit's.
        """
        p = self._problem
        contraction = 1 - eta * p.l2
        gradient = self._gradient_error(batch_size)
        hvp = self._hvp_error(batch_size) * alpha
        source = share * (p.smoothness * self.parameters + gradient)
        moved = p.hessian_lipschitz * self.parameters * alpha
        step = p.roundoff * (self._norm + 3 * eta * (p.gradient + p.l2 * self._norm))
        row_step = p.roundoff * (alpha + 3 * eta * ((p.smoothness + p.l2) * alpha + p.gradient))
        self.row = contraction * self.row + eta * (moved + hvp + source) + row_step
        self.parameters = contraction * self.parameters + eta * gradient + step
        self._norm = contraction * self._norm + eta * p.gradient

    def _gradient_error(self, batch_size: int) -> float:
        """Bound on the error of a computed minibatch gradient."""
        p = self._problem
        probabilities = self._gamma(p.num_features + 4) * p.feature_norm * self._norm
        probabilities += self._gamma(p.num_classes + 20)
        products = self._gamma(batch_size + p.num_classes + 4) * p.gradient
        return p.feature_norm * probabilities + products + 2 * p.roundoff * p.l2 * self._norm

    def _hvp_error(self, batch_size: int) -> float:
        """Bound on the error of a computed Hessian-vector product, per unit of the vector."""
        p = self._problem
        moved = self._gradient_error(batch_size) / p.feature_norm * p.hessian_lipschitz
        length = 2 * (p.num_features + p.num_classes) + batch_size + 20
        return moved + self._gamma(length) * 2 * p.smoothness + 2 * p.roundoff * p.l2

    def _gamma(self, length: int) -> float:
        return length * self._problem.roundoff / (1 - length * self._problem.roundoff)


# N units, B samples of a minibatch, M numbers of units to bound


@dataclass(frozen=True)
class SoftmaxStep:
    """One step of the schedule.

    Attributes:
        learning_rate: eta_t.
        units_B: The unit of each sample of the minibatch, integers of shape (B,).
    """

    learning_rate: float
    units_B: NDArray[np.integer]


def softmax_bounds(
    problem: SoftmaxProblem,
    schedule: Iterable[SoftmaxStep],
    num_units: int,
    numbers: Sequence[int],
) -> tuple[UnitsBound, ...]:
    """Return r_T, D_T and the rounding for each number of units m, in O(N T).

    Args:
        problem: The constants.
        schedule: Every step in order.
        num_units: N.
        numbers: The m to bound, ascending, each in 1..N.

    Raises:
        ValueError: A number is out of range, or a step does not contract.
    """
    if not numbers or list(numbers) != sorted(set(numbers)) or not 1 <= numbers[0] <= num_units:
        raise ValueError(f"expected ascending numbers of units from 1 to {num_units}")
    if numbers[-1] > num_units:
        raise ValueError(f"expected at most the {num_units} units there are, found {numbers[-1]}")
    recursion = _BoundRecursion(problem, num_units, np.asarray(numbers))
    for step in schedule:
        recursion.advance(step)
    return recursion.bounds()


class _BoundRecursion:
    """The scalars of the proof, propagated step by step."""

    def __init__(
        self, problem: SoftmaxProblem, num_units: int, numbers_M: NDArray[np.integer]
    ) -> None:
        self._problem = problem
        self._numbers_M = numbers_M
        self._alpha_N = np.zeros(num_units)
        self._neighbours_MN = np.zeros((numbers_M.size, num_units))
        self._curvature_M = np.zeros(numbers_M.size)
        self._rounding = SoftmaxRounding(problem)

    def advance(self, step: SoftmaxStep) -> None:
        problem, eta = self._problem, step.learning_rate
        if not 0 < eta * (problem.smoothness + 2 * problem.l2) <= 2:
            raise ValueError(
                f"expected 0 < eta (L + 2 lam) <= 2, found eta {eta} with L {problem.smoothness} "
                f"and lam {problem.l2}: such a step need not contract, and the proof does not hold"
            )
        contraction = 1 - eta * problem.l2
        distance_M, others_M = self._largest_sums()
        present_K, counts_K = np.unique(step.units_B, return_counts=True)
        share_K = eta * counts_K / step.units_B.size
        largest_share = float(share_K.max(initial=0.0)) / eta
        self._rounding.advance(eta, step.units_B.size, float(self._alpha_N.max()), largest_share)
        self._curvature_M *= contraction
        self._curvature_M += eta * problem.hessian_lipschitz / 2 * distance_M**2
        self._neighbours_MN *= contraction
        self._neighbours_MN[:, present_K] += problem.smoothness * np.outer(others_M, share_K)
        self._alpha_N *= contraction
        self._alpha_N[present_K] += problem.gradient * share_K

    def _largest_sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the sums of the m and of the m - 1 largest alpha, shape (M,) each."""
        return _largest_sum(self._alpha_N, self._numbers_M), _largest_sum(
            self._alpha_N, self._numbers_M - 1
        )

    def bounds(self) -> tuple[UnitsBound, ...]:
        distance_M, _ = self._largest_sums()
        result = []
        for index, m in enumerate(self._numbers_M):
            neighbours = _largest_sum(self._neighbours_MN[index], np.asarray([m]))[0]
            result.append(
                UnitsBound(
                    max_units=int(m),
                    residual=float(self._curvature_M[index] + neighbours),
                    rounding=2 * self._rounding.parameters
                    + int(m) * (self._rounding.row + self._rounding.sum_grid),
                    distance=float(distance_M[index]),
                    distance_rounding=2 * self._rounding.parameters,
                )
            )
        return tuple(result)


def _largest_sum(
    values_N: NDArray[np.float64], numbers_M: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return the sum of the m largest values for each m; m = 0 gives 0."""
    most = int(numbers_M.max())
    if most == 0:
        return np.zeros(numbers_M.size)
    largest = np.partition(values_N, values_N.size - most)[values_N.size - most :]
    sums = np.concatenate([[0.0], np.cumsum(np.sort(largest)[::-1])])
    return np.asarray(sums[numbers_M], dtype=np.float64)


# What the bound on rounding is derived for; TF32 and bfloat16 products round much earlier.
_FULL_PRECISION = ("float32", "float64")


@dataclass(frozen=True)
class TrainingFacts:
    """What the conditions are checked against.

    Attributes:
        denominator: `retraining.denominator`.
        own_rows: `recursion.own_rows`.
        l2_share: `retraining.l2_share`.
        optimizer: `training.optimizer`.
        label_smoothing: `training.label_smoothing`.
        loss: `training.loss`.
        beyond: Settings that the proof does not know, such as `training.groups`.
        momentum: `training.momentum`.
        clip_norm: `training.clip_norm`, or None.
        starts_at_zero: Whether w_0 = 0.
        largest_learning_rate: Over all steps.
        largest_feature_norm: As measured on the training set, the bias feature included.
        row_norm_cap: `storage.row_norm_cap`, or None.
        engine: `recursion.engine`.
        expected_fraction: `recursion.expected_fraction`.
        dtype: `recursion.dtype`.
    """

    denominator: str
    own_rows: str
    l2_share: str
    momentum: float
    clip_norm: float | None
    starts_at_zero: bool
    largest_learning_rate: float
    largest_feature_norm: float
    row_norm_cap: float | None
    engine: str = "hvp"
    expected_fraction: float = 0.0
    dtype: str = "float32"
    optimizer: str = "sgd"
    label_smoothing: float = 0.0
    loss: str = "cross-entropy"
    beyond: tuple[str, ...] = ()


def softmax_conditions(problem: SoftmaxProblem, training: TrainingFacts) -> tuple[Condition, ...]:
    """Return the conditions of the proof, checked; one that failed withdraws `certified`."""
    eta = training.largest_learning_rate
    curvature = eta * (problem.smoothness + 2 * problem.l2)
    enough = 2 * problem.gradient
    no_clipping = training.clip_norm is None or (
        training.starts_at_zero and training.clip_norm >= enough
    )
    largest = training.largest_feature_norm
    cap, fraction = training.row_norm_cap, training.expected_fraction
    plain, smoothed = training.loss == "cross-entropy", f"{training.label_smoothing:g} smoothed"
    return (
        Condition("denominator is batch", training.denominator == "batch", training.denominator),
        Condition("leave-one-out Hessian", training.own_rows == "left-out", training.own_rows),
        Condition("l2_share is step", training.l2_share == "step", training.l2_share),
        Condition("optimizer sgd", training.optimizer == "sgd", training.optimizer),
        Condition(
            "plain cross-entropy",
            plain and training.label_smoothing == 0,
            smoothed if plain else training.loss,
        ),
        *(Condition(f"no {name}", False, "set") for name in training.beyond),
        Condition("no momentum", training.momentum == 0, str(training.momentum)),
        Condition("eta (L + 2 lam) <= 2", curvature <= 2, f"{curvature:.6g}"),
        Condition(
            f"no clipping, or w_0 = 0 and clip norm >= 2 G = {enough:.6g}",
            no_clipping,
            f"clip norm {training.clip_norm}, w_0 = 0: {training.starts_at_zero}",
        ),
        Condition(
            f"every feature norm <= R = {problem.feature_norm:.6g}",
            largest <= problem.feature_norm * (1 + 4 * problem.roundoff),
            f"{largest:.6g}",
        ),
        Condition("a row norm cap was declared", cap is not None, str(cap)),
        Condition(
            "approximators follow the linear recursion", training.engine == "hvp", training.engine
        ),
        Condition("Hessians are not scaled", fraction == 0, f"expected fraction {fraction}"),
        Condition("full precision", training.dtype in _FULL_PRECISION, training.dtype),
    )


def certified_declaration(
    problem: SoftmaxProblem,
    training: TrainingFacts,
    bounds: Sequence[UnitsBound],
    row_error: float,
) -> Declaration:
    """Return the declaration of a proved bound, with its conditions and constants.

    Args:
        problem: The constants.
        training: What the conditions are checked against.
        bounds: From `softmax_bounds`.
        row_error: row_error_cap * row_norm_cap.
    """
    return Declaration(
        kind="certified",
        bounds=tuple(bounds),
        row_error=row_error,
        residual_source="proved for L2-regularised softmax regression, worst placement",
        row_error_source="row_error_cap * row_norm_cap for each unit, both declared",
        conditions=softmax_conditions(problem, training),
        evidence={
            "proof": "docs/certificate.md",
            "R": problem.feature_norm,
            "lam": problem.l2,
            "G": problem.gradient,
            "L": problem.smoothness,
            "M": problem.hessian_lipschitz,
        },
    )
