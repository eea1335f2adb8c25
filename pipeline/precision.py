"""What lower precision would cost this run: the error of its own Hessian products."""

# K tangents, P parameters

import torch
from torch import Tensor

from pipeline.hvp import Linearization
from pipeline.problem import Problem
from pipeline.recursion import low_precision


def tangent_errors(problem: Problem, w_P: Tensor, rows_KP: Tensor) -> dict[str, float]:
    """Return the relative error of Hessian products in TF32 and bfloat16, on the run's own data.

    Args:
        problem: The run; one minibatch of its first samples is used.
        w_P: Parameters at which the Hessian is taken.
        rows_KP: Rows to propagate, such as stored ones.

    Returns:
        |H a - H_low a| / |H a| over all rows. On a processor without TF32 its error is 0.
    """
    size = min(problem.config.training.batch_size, problem.data.num_samples)
    sample_ids = torch.arange(size, device=problem.device)
    with problem.arithmetic():
        linearization = problem.network.linearize(w_P, *problem.minibatch(sample_ids))
        exact = linearization.hessian_products(rows_KP, None)
        low = _tf32(linearization, rows_KP)
        with low_precision(rows_KP.device.type, "bfloat16"):
            lower = linearization.hessian_products(rows_KP, None)
    norm = torch.linalg.vector_norm(exact)
    return {
        "tf32": float(torch.linalg.vector_norm(low - exact) / norm),
        "bfloat16": float(torch.linalg.vector_norm(lower.to(exact.dtype) - exact) / norm),
    }


def _tf32(linearization: Linearization, rows_KP: Tensor) -> Tensor:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return linearization.hessian_products(rows_KP, None)
    finally:
        torch.set_float32_matmul_precision(before)
