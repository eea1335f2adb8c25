"""The proved bound for L2-regularised softmax regression; the proof is in docs/certificate.md.

For any m units, with `denominator: batch`, own rows left out, `l2_share: step`, no momentum and no
clipping:

    G = sqrt(2) R,  L = R^2 / 2,  M = sqrt(6)/9 R^3,  q_t = 1 - eta_t lam
    alpha_u' = q alpha_u + eta (m_u/|B|) G            >= |a_u|, and >= |w_retrained - w| of one unit
    D        = sum of the m largest alpha             >= |w_retrained - w|
    r_T     <= sum_t Q_t eta_t (M/2) D_t^2 + sum of the m largest E_u
    E_u'     = q E_u + eta (m_u/|B|) L D^(m-1)

with Q_t the product of the later q and D^(m-1) the sum of the m - 1 largest alpha. All constants
are known before the data: the feature norm cap R (bias feature included), lam and the schedule.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.certificates.sensitivity import UnitsBound
from pipeline.certificates.softmax_problem import SoftmaxProblem
from pipeline.certificates.softmax_rounding import SoftmaxRounding
from pipeline.deletion import Float64Array

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
    """The scalars of the proof, carried from step to step."""

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

    def _largest_sums(self) -> tuple[Float64Array, Float64Array]:
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


def _largest_sum(values_N: Float64Array, numbers_M: NDArray[np.integer]) -> Float64Array:
    """Return the sum of the m largest values for each m; m = 0 gives 0."""
    most = int(numbers_M.max())
    if most == 0:
        return np.zeros(numbers_M.size)
    largest = np.partition(values_N, values_N.size - most)[values_N.size - most :]
    sums = np.concatenate([[0.0], np.cumsum(np.sort(largest)[::-1])])
    return np.asarray(sums[numbers_M], dtype=np.float64)
