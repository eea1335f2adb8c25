"""One step of Adam or AdamW for a chunk of units (docs/method.md, section 3).

The state of a unit is its approximator a and the moments M = m + p and V = v + q that the run would
have without it. Sums are kept, not the differences p and q: where a parameter is touched by one unit
alone, a difference loses in float32 what the division by the root of V then magnifies.

    M' = beta1 M + (1 - beta1) g_u,   V' = beta2 V + (1 - beta2) g_u^2
    a' = (1 - eta decay) a - (eta / bc1) [ M' / D(V') - m' / D(v') ],   D(x) = sqrt(x / bc2) + eps

g_u is the clipped gradient that the run would see without the unit; m' and v' are the run's own
moments after the step. The difference of squares is taken as it is: linearised, the error on the
perceptron of docs/results.md is several times as large.

With the full-batch Hessian (`own_rows: included`) the step is linearised, which makes a the derivative
of training by the weight of the unit; the buffers are then p and q.
"""

# V units visited so far, P parameters

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.run.coefficients import add_scaled
from pipeline.training.step import (
    FIRST,
    SECOND,
    OptimizerState,
    StepContext,
    bias_corrections,
    clip_factor,
)

if TYPE_CHECKING:
    from pipeline.config import TrainingConfig


def advance_difference(
    rows_VP: Tensor,
    moments: tuple[Tensor, ...],
    gradients_VP: Tensor,
    context: StepContext,
    training: TrainingConfig,
) -> None:
    """Advance approximators and moments by one step, in place.

    Args:
        rows_VP: a of each unit.
        moments: M and V of each unit.
        gradients_VP: g_u of each unit; its memory is used.
        context: The step's shared pass.
        training: The optimizer.
    """
    (beta1, beta2), (first_VP, second_VP) = training.betas, moments
    after, eta = _after(context), context.learning_rate
    bias1, bias2 = bias_corrections(training, after.step - 1)
    first_VP.lerp_(gradients_VP, 1 - beta1)
    second_VP.mul_(beta2).addcmul_(gradients_VP, gradients_VP, value=1 - beta2)
    _decay(rows_VP, context)
    root_VP = torch.sqrt(second_VP, out=gradients_VP).div_(bias2**0.5).add_(training.eps)
    step_VP = torch.div(first_VP, root_VP, out=root_VP)
    step_VP.sub_(after.buffers[FIRST] / _root(after, bias2, training))
    add_scaled(rows_VP, step_VP, context.coefficients.rate, -eta / bias1)


def advance_derivative(
    rows_VP: Tensor,
    differences: tuple[Tensor, ...],
    change_VP: Tensor,
    context: StepContext,
    training: TrainingConfig,
) -> None:
    """Advance approximators and the moments' derivatives by one linearised step, in place.

    Args:
        rows_VP: a of each unit.
        differences: p and q of each unit.
        change_VP: J (Hv(a) - s) of each unit.
        context: The step's shared pass.
        training: The optimizer.
    """
    (beta1, beta2), (first_VP, second_VP) = training.betas, differences
    after, eta = _after(context), context.learning_rate
    bias1, bias2 = bias_corrections(training, after.step - 1)
    clipped_P = _clipped(context, training)
    first_VP.mul_(beta1).add_(change_VP, alpha=1 - beta1)
    second_VP.mul_(beta2).addcmul_(change_VP, clipped_P, value=2 * (1 - beta2))
    _decay(rows_VP, context)
    root_P = _root(after, bias2, training)
    slope_P = 2 * root_P.square() * bias2 * (after.buffers[SECOND] / bias2).sqrt()
    # A parameter without gradient so far has no moments to change.
    slope_P = torch.where(slope_P > 0, after.buffers[FIRST] / slope_P, 0.0)
    step_VP = first_VP / root_P - second_VP * slope_P
    add_scaled(rows_VP, step_VP, context.coefficients.rate, -eta / bias1)


def _decay(rows_VP: Tensor, context: StepContext) -> None:
    """Take the decoupled weight decay of a step, in place."""
    decay, rate = context.coefficients.decay, context.coefficients.rate
    if isinstance(decay, Tensor) or decay:
        rows_VP.mul_(1 - context.learning_rate * rate * decay)


def _root(after: OptimizerState, bias2: float, training: TrainingConfig) -> Tensor:
    """Return D(v') of the run itself, computed as in the optimizer's own step."""
    root_P: Tensor = (after.buffers[SECOND].sqrt() / bias2**0.5).add_(training.eps)
    return root_P


def _after(context: StepContext) -> OptimizerState:
    assert context.after is not None, "a replayed step knows the state after it"
    return context.after


def _clipped(context: StepContext, training: TrainingConfig) -> Tensor:
    return context.gradient_P * clip_factor(context.gradient_P, training.clip_norm)
