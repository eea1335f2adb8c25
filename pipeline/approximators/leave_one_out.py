"""Leave-one-out propagation: one gradient at each unit's own weights, and no Hessian.

For one unit this is retraining without it. It is the second engine beside the recursion
(docs/method.md, section 3).
"""

# B minibatch rows, V units, P parameters

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad, vmap

from pipeline.hessian.roperator import Pairs
from pipeline.run.coefficients import add_scaled
from pipeline.training.step import StepContext

if TYPE_CHECKING:
    from pipeline.config import RetrainingConfig


def gradients_without(
    rows_VP: Tensor, context: StepContext, own: Pairs, retraining: RetrainingConfig
) -> Tensor:
    """Return g_{B without u}(w_t + a_u), its L2 term included, for each unit u, (V, P)."""
    network, batch, l2 = context.network, context.batch, context.coefficients.l2
    kept_VB = rows_VP.new_ones(len(rows_VP), len(batch))
    kept_VB[own.tangents, own.rows] = 0.0
    kept_V = (kept_VB * batch.masses_like(rows_VP)).sum(1)
    remaining = retraining.denominator == "remaining"
    divisors_V = (
        torch.where(kept_V > 0, kept_V, 1.0) if remaining else batch.mass * kept_V.new_ones(1)
    )

    def mean_loss(tensors: dict[str, Tensor], shares_B: Tensor) -> Tensor:
        return torch.dot(shares_B, network.losses(tensors, batch))

    at_VP = rows_VP + context.parameters_P
    shares_VB = kept_VB / divisors_V[:, None]
    gradients = vmap(grad(mean_loss))(network.parameters(at_VP), shares_VB)
    result_VP = network.flatten(gradients, num_batch=1)
    if not remaining and retraining.l2_share == "sample":
        return result_VP.addcmul_(at_VP, l2 * kept_V[:, None] / batch.mass)
    return add_scaled(result_VP, at_VP, l2)
