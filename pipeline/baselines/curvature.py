"""Gradients and Hessians summed over many samples, and systems solved with them.

Where P^2 fits, the Hessian is formed and factored; where not, conjugate gradients run on
Hessian-vector products.
"""

# C columns at once, P parameters, m samples

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.problem import Problem

# The largest Hessian that is formed, in float64: P up to 5,792.
DENSE_BYTES = 256 << 20
SAMPLES_AT_ONCE = 512
COLUMNS_AT_ONCE = 128


@dataclass(frozen=True)
class Solution:
    """The answer to H x = b.

    Attributes:
        x_P: Float64.
        residual: |b - H x| / |b|.
        iterations: Products taken; 0 for a factored Hessian.
        negative_curvature: Whether conjugate gradients met a direction along which the loss bends
            down, and stopped before it: the Hessian is not positive definite, x is the last iterate.
    """

    x_P: Tensor
    residual: float
    iterations: int = 0
    negative_curvature: bool = False


def gradient_sum(problem: Problem, w_P: Tensor, sample_ids: Tensor) -> Tensor:
    """Return the sum of the samples' loss gradients at w (P,), float64, without L2."""
    total_P = torch.zeros_like(w_P, dtype=torch.float64)
    with problem.arithmetic():
        for ids in sample_ids.split(SAMPLES_AT_ONCE):
            total_P += problem.network.linearize(w_P, *problem.minibatch(ids)).gradient_sum()
    return total_P


def hessian_products(
    problem: Problem, w_P: Tensor, sample_ids: Tensor, tangents_KP: Tensor
) -> Tensor:
    """Return the summed Hessian of the samples' losses times each tangent (K, P), float64."""
    total_KP = torch.zeros_like(tangents_KP, dtype=torch.float64)
    tangents_KP = tangents_KP.to(w_P)
    with problem.arithmetic():
        for ids in sample_ids.split(SAMPLES_AT_ONCE):
            linearization = problem.network.linearize(w_P, *problem.minibatch(ids))
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
    """scale * sum_i hess l_i(w) + shift * I, over the given samples.

    Attributes:
        problem: Data and network.
        w_P: Where.
        sample_ids: Over which samples.
        scale: Usually one over their number.
        shift: L2 and damping together.
    """

    problem: Problem
    w_P: Tensor
    sample_ids: Tensor
    scale: float
    shift: float

    def product(self, v_P: Tensor) -> Tensor:
        """Return the matrix times v (P,), float64."""
        sums_P = hessian_products(self.problem, self.w_P, self.sample_ids, v_P[None])[0]
        return self.scale * sums_P + self.shift * v_P

    def solve(self, b_P: Tensor) -> Solution:
        """Return x with H x = b, by factoring where P^2 fits, else by conjugate gradients."""
        b_P = b_P.to(torch.float64)
        if not fits_densely(len(b_P)):
            return conjugate_gradients(self.product, b_P)
        matrix_PP = self.scale * dense_hessian(self.problem, self.w_P, self.sample_ids)
        matrix_PP.diagonal().add_(self.shift)
        x_P = torch.linalg.solve(matrix_PP, b_P)
        residual = torch.linalg.vector_norm(b_P - matrix_PP @ x_P) / _norm(b_P)
        return Solution(x_P, float(residual))


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b_P: Tensor,
    tolerance: float = 1e-6,
    max_iterations: int = 500,
) -> Solution:
    """Solve H x = b by conjugate gradients from x = 0, stopping before negative curvature.

    Stopped there, x is a descent step of the quadratic model, as in truncated Newton methods
    (Nocedal and Wright, Algorithm 7.1); its residual says how far from solved the system is.

    Args:
        product: Multiplies by a symmetric H.
        b_P: Float64.
        tolerance: On |b - H x| / |b|. The products come in the run's precision, and single precision
            does not reach below about 1e-6.
        max_iterations: Products at most.
    """
    x_P = torch.zeros_like(b_P)
    residual_P, direction_P = b_P.clone(), b_P.clone()
    squared = float(residual_P @ residual_P)
    scale = _norm(b_P)
    iterations = 0
    while squared**0.5 > tolerance * scale and iterations < max_iterations:
        along_P = product(direction_P)
        iterations += 1
        curvature = float(direction_P @ along_P)
        if curvature <= 0.0:
            if iterations == 1:
                # Not even the gradient is a direction of convexity: take it unscaled.
                x_P = b_P.clone()
            return Solution(x_P, squared**0.5 / scale, iterations, negative_curvature=True)
        step = squared / curvature
        x_P += step * direction_P
        residual_P -= step * along_P
        before, squared = squared, float(residual_P @ residual_P)
        direction_P = residual_P + (squared / before) * direction_P
    return Solution(x_P, squared**0.5 / scale, iterations)


def _norm(b_P: Tensor) -> float:
    return max(float(torch.linalg.vector_norm(b_P)), torch.finfo(torch.float64).tiny)
