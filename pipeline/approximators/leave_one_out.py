"""Leave-one-out propagation: one gradient at each unit's own weights, and no Hessian.

For one unit this is retraining without it. It is the second engine beside the recursion
(docs/method.md, section 3).
"""

# B minibatch rows, V units, P parameters

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from pipeline.hessian.roperator import Pairs
from pipeline.training.step import StepContext

if TYPE_CHECKING:
    from pipeline.config import RetrainingConfig, TrainingConfig


def gradients_without(
    rows_VP: Tensor,
    context: StepContext,
    own: Pairs,
    training: TrainingConfig,
    retraining: RetrainingConfig,
) -> Tensor:
    """Return g_{B without u}(w_t + a_u), its L2 term included, for each unit u, (V, P)."""
    network, size = context.network, context.batch_size
    weights_VB = rows_VP.new_ones(len(rows_VP), size)
    weights_VB[own.tangents, own.rows] = 0.0
    kept_V = weights_VB.sum(1)
    remaining = retraining.denominator == "remaining"
    weights_VB /= kept_V.clamp(min=1)[:, None] if remaining else size

    def weighted_loss(tensors: dict[str, Tensor], weights_B: Tensor) -> Tensor:
        outputs = functional_call(network.module, tensors, (context.batch.inputs,))
        return torch.dot(weights_B, network.loss.value(outputs, context.batch.targets))

    at_VP = rows_VP + context.parameters_P
    gradients = vmap(grad(weighted_loss))(network.layout.unflatten(at_VP), weights_VB)
    result_VP = torch.cat([gradients[name].flatten(1) for name in network.layout.names], dim=1)
    l2 = training.l2
    if l2 and not remaining and retraining.l2_share == "sample":
        return result_VP.addcmul_(at_VP, (l2 * kept_V / size)[:, None])
    return result_VP.add_(at_VP, alpha=l2)
