"""Gradients and Hessians summed over many samples, and systems solved with them.

Where P^2 fits, the Hessian is formed and factored; where not, conjugate gradients run on
Hessian-vector products.
"""

# C columns at once, P parameters, m samples

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import DivergedError
from pipeline.run.coefficients import Factor
from pipeline.run.problem import Problem

# The largest Hessian that is formed, in float64: P up to 5,792.
DENSE_BYTES = 256 << 20
SAMPLES_AT_ONCE = 512
LEAST_DAMPING = 0.01
# From .01 on, tenfold each: enough for any finite Hessian.
MOST_ATTEMPTS = 12
COLUMNS_AT_ONCE = 128


@dataclass(frozen=True)
class Solution:
    """The answer to (H + damping I) x = b.

    Attributes:
        x_P: Float64.
        residual: |b - (H + damping I) x| / |b|.
        damping: The one with which the matrix is positive definite.
    """

    x_P: Tensor
    residual: float
    damping: float


Attempt = Callable[[float], Solution | None]
"""Given a damping, returns the solution, or None if the matrix is not positive definite with it."""


def gradient_sum(problem: Problem, w_P: Tensor, sample_ids: Tensor) -> Tensor:
    """Return the sum of the samples' loss gradients at w (P,), float64, without L2."""
    total_P = torch.zeros_like(w_P, dtype=torch.float64)
    with problem.arithmetic():
        for ids in sample_ids.split(SAMPLES_AT_ONCE):
            total_P += problem.network.linearize(w_P, problem.minibatch(ids)).gradient_sum()
    return total_P


def hessian_products(
    problem: Problem, w_P: Tensor, sample_ids: Tensor, tangents_KP: Tensor
) -> Tensor:
    """Return the summed Hessian of the samples' losses times each tangent (K, P), float64."""
    total_KP = torch.zeros_like(tangents_KP, dtype=torch.float64)
    tangents_KP = tangents_KP.to(w_P)
    with problem.arithmetic():
        for ids in sample_ids.split(SAMPLES_AT_ONCE):
            linearization = problem.network.linearize(w_P, problem.minibatch(ids))
            total_KP += linearization.hessian_products(tangents_KP, None)
    return total_KP


def dense_hessian(problem: Problem, w_P: Tensor, sample_ids: Tensor) -> Tensor:
    """Return the summed Hessian (P, P), float64, symmetrised."""
    size = len(w_P)
    hessian_PP = torch.zeros(size, size, dtype=torch.float64, device=w_P.device)
    for start in range(0, size, COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, size)
        columns_CP = torch.zeros(stop - start, size, dtype=w_P.dtype, device=w_P.device)
        columns_CP[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
        hessian_PP[start:stop] = hessian_products(problem, w_P, sample_ids, columns_CP)
    return (hessian_PP + hessian_PP.T) / 2


def fits_densely(num_parameters: int) -> bool:
    """Whether a Hessian of this many parameters is formed."""
    return 8 * num_parameters**2 <= DENSE_BYTES


@dataclass(frozen=True)
class RegularisedHessian:
    """scale * sum_i hess l_i(w) + l2 * I + damping * I, over the given samples.

    Attributes:
        problem: Data and network.
        w_P: Parameters at which it is taken.
        sample_ids: The samples of the sum.
        scale: Usually one over their number.
        l2: Factor of the L2 term, or a factor for each parameter, float64.
    """

    problem: Problem
    w_P: Tensor
    sample_ids: Tensor
    scale: float
    l2: Factor

    def solve(self, b_P: Tensor, damping: float) -> Solution:
        """Return x, by factoring where P^2 fits, else by conjugate gradients.

        Where the matrix is not positive definite the damping is raised tenfold until it is, as
        Levenberg and Marquardt do. A Newton step of an indefinite matrix approaches a saddle: on a
        64-32 tanh network (smallest eigenvalue -0.08) damping .01 alone ends 51 times as far from
        retraining as no unlearning.

        Args:
            b_P: Right-hand side.
            damping: The first to try.

        Raises:
            DivergedError: If the Hessian is not finite.
        """
        b_P = b_P.to(torch.float64)
        attempt = self._factored(b_P) if fits_densely(len(b_P)) else self._iterated(b_P)
        for _ in range(MOST_ATTEMPTS):
            found = attempt(damping)
            if found is not None:
                return found
            damping = max(10 * damping, LEAST_DAMPING)
        raise DivergedError(
            f"the Hessian at the trained parameters is not positive definite with a damping of "
            f"{damping:g}: it holds values that are not finite; lower training.learning_rate"
        )

    def _factored(self, b_P: Tensor) -> Attempt:
        hessian_PP = self.scale * dense_hessian(self.problem, self.w_P, self.sample_ids)

        def attempt(damping: float) -> Solution | None:
            matrix_PP = hessian_PP.clone()
            matrix_PP.diagonal().add_(self.l2 + damping)
            factor_PP, failed = torch.linalg.cholesky_ex(matrix_PP)
            if int(failed):
                return None
            x_P = torch.cholesky_solve(b_P[:, None], factor_PP).squeeze(1)
            return Solution(x_P, _norm(b_P - matrix_PP @ x_P) / _norm(b_P), damping)

        return attempt

    def _iterated(self, b_P: Tensor) -> Attempt:
        def attempt(damping: float) -> Solution | None:
            def product(v_P: Tensor) -> Tensor:
                sums_P = hessian_products(self.problem, self.w_P, self.sample_ids, v_P[None])[0]
                return self.scale * sums_P + (self.l2 + damping) * v_P

            found = conjugate_gradients(product, b_P)
            return None if found is None else Solution(*found, damping)

        return attempt


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b_P: Tensor,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> tuple[Tensor, float] | None:
    """Solve A x = b from x = 0; return x and |b - A x| / |b|.

    None if a direction of negative curvature is met: A is not positive definite.

    Args:
        product: Multiplies by a symmetric A.
        b_P: Float64.
        tolerance: On the relative residual. The products come in the run's precision, and single
            precision does not reach below about 1e-6.
        max_iterations: Products at most; the residual tells how far it converged.
    """
    x_P = torch.zeros_like(b_P)
    residual_P, direction_P = b_P.clone(), b_P.clone()
    squared, scale = float(residual_P @ residual_P), _norm(b_P)
    for _ in range(max_iterations):
        if squared**0.5 <= tolerance * scale:
            break
        along_P = product(direction_P)
        curvature = float(direction_P @ along_P)
        if not curvature > 0.0:
            return None
        step = squared / curvature
        x_P += step * direction_P
        residual_P -= step * along_P
        before, squared = squared, float(residual_P @ residual_P)
        direction_P = residual_P + (squared / before) * direction_P
    return x_P, squared**0.5 / scale


def _norm(b_P: Tensor) -> float:
    return max(float(torch.linalg.vector_norm(b_P)), torch.finfo(torch.float64).tiny)
