"""Leave-one-out propagation: one gradient at each unit's own weights, and no Hessian.

For one unit this is retraining without it. It is the second engine beside the recursion
(docs/method.md, section 3). Each unit's own weights are carried, and the run's subtracted at the end:
as a difference, a small approximator would be lost where it is added to the weights in float32. Runs
begun with version 0.2.0 carry the difference.
"""

# B minibatch rows, V units, P parameters

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad, vmap

from pipeline.hessian.roperator import Pairs
from pipeline.run.coefficients import add_scaled
from pipeline.training.step import OptimizerState, StepContext, clip_factors

if TYPE_CHECKING:
    from pipeline.config import RetrainingConfig, TrainingConfig


def gradients_without(
    rows_VP: Tensor, context: StepContext, own: Pairs, retraining: RetrainingConfig
) -> Tensor:
    """Return g_{B without u}(w_t + a_u), its L2 term included, for each unit u, (V, P)."""
    return gradients_at(rows_VP + context.parameters_P, context, own, retraining)


def gradients_at(
    at_VP: Tensor, context: StepContext, own: Pairs, retraining: RetrainingConfig
) -> Tensor:
    """Return g_{B without u}(w_u), its L2 term included, for each unit u, (V, P)."""
    network, batch, l2 = context.network, context.batch, context.coefficients.l2
    kept_VB = at_VP.new_ones(len(at_VP), len(batch))
    kept_VB[own.tangents, own.rows] = 0.0
    kept_V = (kept_VB * batch.masses_like(at_VP)).sum(1)
    remaining = retraining.denominator == "remaining"
    divisors_V = (
        torch.where(kept_V > 0, kept_V, 1.0) if remaining else batch.divisor * kept_V.new_ones(1)
    )

    def mean_loss(tensors: dict[str, Tensor], shares_B: Tensor) -> Tensor:
        return torch.dot(shares_B, network.losses(tensors, batch))

    shares_VB = kept_VB / divisors_V[:, None]
    gradients = vmap(grad(mean_loss))(network.parameters(at_VP), shares_VB)
    result_VP = network.flatten(gradients, num_batch=1)
    # Nothing leaves a minibatch that weighs nothing, so its L2 term stays whole.
    if not remaining and retraining.l2_share == "sample" and batch.mass:
        return result_VP.addcmul_(at_VP, l2 * kept_V[:, None] / batch.mass)
    return add_scaled(result_VP, at_VP, l2)


def advance_weights(
    weights_VP: Tensor,
    buffers: Mapping[str, Tensor],
    context: StepContext,
    own: Pairs,
    training: TrainingConfig,
    retraining: RetrainingConfig,
) -> None:
    """Take one step of each unit's own training, in place.

    Args:
        weights_VP: w_u of each unit.
        buffers: What the optimizer keeps for each, by name, (V, P).
        context: The step's shared pass.
        own: Which units own which samples of the minibatch.
        training: The optimizer.
        retraining: What a mean is taken over.
    """
    assert context.before is not None, "a replayed step knows the state before it"
    gradients_VP = gradients_at(weights_VP, context, own, retraining)
    if training.clip_norm is not None:
        gradients_VP.mul_(clip_factors(gradients_VP, training.clip_norm)[:, None])
    state = OptimizerState(weights_VP, buffers, context.before.step)
    after = state.after(gradients_VP, context.learning_rate, training, context.coefficients)
    weights_VP.copy_(after.parameters_P)
    for name, buffer_VP in buffers.items():
        buffer_VP.copy_(after.buffers[name])
