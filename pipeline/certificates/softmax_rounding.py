"""What finite precision does to softmax regression, bounded; derived in docs/certificate.md."""

import math

from pipeline.certificates.softmax_problem import SoftmaxProblem


class SoftmaxRounding:
    """Bounds on what finite precision does to the parameters and to one row.

    The standard model, |fl(x op y) - x op y| <= u |x op y|, any order of summation, exp accurate to
    8 u; gamma_k = k u / (1 - k u). `parameters` bounds the distance of the computed w_T from the
    exact one, `row` that of a computed a_u; docs/certificate.md derives both.
    """

    def __init__(self, problem: SoftmaxProblem) -> None:
        self._problem = problem
        self.parameters = 0.0
        self.row = 0.0
        self._norm = problem.initial_norm
        # Each value of a row is rounded once to the grid of exact sums, 2^-42 wide.
        self.sum_grid = 2.0**-43 * math.sqrt(problem.num_features * problem.num_classes)

    def advance(self, eta: float, batch_size: int, alpha: float, share: float) -> None:
        """Carry the bounds through one step.

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
