"""The recursion for one chunk of units (docs/method.md, section 3).

    a' = a - eta * J (Hv(a) - s)          with momentum: b' = mu b + J(Hv(a) - s), a' = a - eta b'

This is unrolled differentiation of training: `a`, the approximator, estimates for each unit how far its
absence would have moved the parameters: its influence on them. The released code of Qiao et al. (2025)
injects the gradient before it propagates and is off at O(eta^2); here the old `a` is
propagated first.

A chunk is the set of units computed together, always the same units in the same order, for any
blocking, number of workers or crashes. Therefore stored approximators agree to the bit.
"""

# B minibatch rows, K units of the chunk, V of them visited so far, P parameters, U visited in a step

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.approximators.adam import advance_derivative, advance_difference
from pipeline.approximators.coupled import coupled_change, statistics_shift
from pipeline.approximators.leave_one_out import advance_weights, gradients_without
from pipeline.hessian.roperator import Pairs
from pipeline.models.minibatch import Minibatch
from pipeline.run.coefficients import add_outer, add_scaled
from pipeline.training.step import (
    FIRST,
    SECOND,
    StepContext,
    buffer_names,
    clip_factor,
    clip_factors,
    factors_of,
)

if TYPE_CHECKING:
    from pipeline.config import RecursionConfig, RetrainingConfig, RunConfig, TrainingConfig

# Values of the sums whose norms clipping needs: few enough to stay in cache.
_NORM_VALUES = 1 << 18
# Group retrainings that take a step together: their gradients' activations stay small.
TOGETHER = 16
# Of a minibatch's mass: less than this is none.
_NOTHING = 1e-12


@dataclass(frozen=True)
class Conventions:
    """The settings that determine which recursion is computed."""

    training: TrainingConfig
    retraining: RetrainingConfig
    recursion: RecursionConfig

    @staticmethod
    def of(config: RunConfig) -> Conventions:
        """Return those of a run."""
        return Conventions(config.training, config.retraining, config.recursion)

    @property
    def exact(self) -> bool:
        """Whether gradients are taken at each unit's own weights, and not linear in its row."""
        return self.recursion.engine in ("leave-one-out", "weighing")

    @property
    def carries_weights(self) -> bool:
        """Whether a chunk's rows are each unit's own weights, until they are complete."""
        if self.recursion.engine == "weighing":
            return True
        return self.exact and self.recursion.leave_one_out == "weights"

    @property
    def left_out(self) -> bool:
        """Whether Hessians leave the unit's own samples out."""
        return self.recursion.own_rows == "left-out"


@dataclass(frozen=True)
class ChunkState:
    """Approximators a (K, P) of a chunk before step `step`, and what the optimizer needs beside them.

    With `Conventions.carries_weights` the rows are w + a, each unit's own weights.
    `buffers` holds tensors (K, P): none for plain SGD, b for momentum, M and V for Adam (`adam.py`).

    Units stand in the order of their first visit, so those visited so far are a prefix: those
    beyond `num_visited` are zero and cost nothing.
    """

    step: int
    rows_KP: Tensor
    buffers: tuple[Tensor, ...] = ()
    num_visited: int = 0

    @staticmethod
    def start(num: int, like_P: Tensor, num_buffers: int) -> ChunkState:
        """Return zero approximators before step 0, in the dtype and on the device of `like_P`."""
        rows = like_P.new_zeros(num, like_P.shape[0])
        return ChunkState(0, rows, tuple(torch.zeros_like(rows) for _ in range(num_buffers)))

    @staticmethod
    def continued(rows_KP: Tensor, num_buffers: int) -> ChunkState:
        """Return the state that propagates stored approximators further: a_0 is not zero."""
        buffers = tuple(torch.zeros_like(rows_KP) for _ in range(num_buffers))
        return ChunkState(0, rows_KP, buffers, rows_KP.shape[0])


def advance(
    state: ChunkState, context: StepContext, own: Pairs, conventions: Conventions
) -> ChunkState:
    """Return the state after one step; `state`'s tensors are reused for it.

    Args:
        state: Before the step.
        context: The step's shared pass.
        own: Which units of the chunk own which samples of the minibatch, sorted by unit.
        conventions: Which recursion.
    """
    visited = state.num_visited
    if len(own.tangents):
        visited = max(visited, int(own.tangents[-1]) + 1)
    if visited == 0:
        return ChunkState(state.step + 1, state.rows_KP, state.buffers)
    if conventions.carries_weights:
        _advance_weights(state, context, own, conventions, visited)
        return ChunkState(state.step + 1, state.rows_KP, state.buffers, visited)
    rows_VP, network = state.rows_KP[:visited], context.network
    # Before the rows advance: the statistics of this step belong to the parameters before it.
    shift_VS = (
        statistics_shift(rows_VP, context, own, conventions.exact) if network.couples else None
    )
    if conventions.training.optimizer == "sgd":
        _advance_sgd(state, context, own, conventions, visited)
    else:
        _advance_adam(state, context, own, conventions, visited)
    if shift_VS is not None:
        rows_VP[:, -shift_VS.shape[1] :].lerp_(shift_VS, network.momenta.to(shift_VS))
    return ChunkState(state.step + 1, state.rows_KP, state.buffers, visited)


def advance_in_parts(
    state: ChunkState, context: StepContext, own: Pairs, conventions: Conventions
) -> ChunkState:
    """As `advance` where the rows are trainings under way, a fixed number of them at a time."""
    for start in range(0, len(state.rows_KP), TOGETHER):
        part = slice(start, start + TOGETHER)
        here = (own.tangents >= start) & (own.tangents < start + TOGETHER)
        pairs = Pairs(own.tangents[here] - start, own.rows[here])
        rows_KP = state.rows_KP[part]
        buffers = tuple(buffer_KP[part] for buffer_KP in state.buffers)
        advance(ChunkState(state.step, rows_KP, buffers, len(rows_KP)), context, pairs, conventions)
    return ChunkState(state.step + 1, state.rows_KP, state.buffers, state.num_visited)


def _advance_weights(
    state: ChunkState, context: StepContext, own: Pairs, conventions: Conventions, visited: int
) -> None:
    before, names = context.before, buffer_names(conventions.training)
    assert before is not None, "a replayed step knows the state before it"
    buffers = dict(zip(names, (kept_KP[:visited] for kept_KP in state.buffers), strict=True))
    # Up to its first visit, a unit's training is the run's own.
    state.rows_KP[state.num_visited : visited] = before.parameters_P
    for name, buffer_VP in buffers.items():
        buffer_VP[state.num_visited :] = before.buffers[name]
    training, retraining = conventions.training, conventions.retraining
    advance_weights(state.rows_KP[:visited], buffers, context, own, training, retraining)


def _advance_sgd(
    state: ChunkState, context: StepContext, own: Pairs, conventions: Conventions, visited: int
) -> None:
    rows_VP, training = state.rows_KP[:visited], conventions.training
    if conventions.exact and not context.network.couples:
        change_VP = _without_own(rows_VP, context, own, conventions)
    else:
        change_VP = _linear_change(rows_VP, context, own, conventions)
    eta, rate = context.learning_rate, context.coefficients.rate
    if not state.buffers:
        add_scaled(rows_VP, change_VP, rate, -eta)
        return
    buffers_VP = state.buffers[0][:visited]
    buffers_VP.mul_(training.momentum).add_(change_VP)
    if training.nesterov:
        add_scaled(rows_VP, change_VP, rate, -eta)
        add_scaled(rows_VP, buffers_VP, rate, -eta * training.momentum)
    else:
        add_scaled(rows_VP, buffers_VP, rate, -eta)


def _advance_adam(
    state: ChunkState, context: StepContext, own: Pairs, conventions: Conventions, visited: int
) -> None:
    rows_VP, training = state.rows_KP[:visited], conventions.training
    buffers = tuple(buffer_KP[:visited] for buffer_KP in state.buffers)
    if not conventions.exact and not conventions.left_out:
        change_VP = _linear_change(rows_VP, context, own, conventions)
        advance_derivative(rows_VP, buffers, change_VP, context, training)
        return
    assert context.before is not None, "a replayed step knows the state before it"
    for name, buffer_VP in zip((FIRST, SECOND), buffers, strict=True):
        # Up to its first visit, a unit changes nothing: the run's moments are its own.
        buffer_VP[state.num_visited :] = context.before.buffers[name]
    gradients_VP = _gradients_without(rows_VP, context, own, conventions)
    if training.clip_norm is not None:
        gradients_VP.mul_(clip_factors(gradients_VP, training.clip_norm)[:, None])
    advance_difference(rows_VP, buffers, gradients_VP, context, training)


def _gradients_without(
    rows_VP: Tensor, context: StepContext, own: Pairs, conventions: Conventions
) -> Tensor:
    """Return g_{B without u}(w + a) of each unit u, before clipping, (V, P); linear in a with HVPs."""
    if context.network.couples:
        return coupled_change(rows_VP, context, own, conventions.exact).add_(context.gradient_P)
    if conventions.exact:
        return gradients_without(rows_VP, context, own, conventions.retraining)
    gradients_VP = _products(rows_VP, context, own, conventions)
    _scale_and_regularise(gradients_VP, rows_VP, own, context, conventions)
    owners_U = own.tangents.unique()
    others_V = torch.ones(len(rows_VP), dtype=torch.bool, device=rows_VP.device)
    others_V[owners_U] = False
    gradients_VP.addcmul_(others_V[:, None].to(rows_VP.dtype), context.gradient_P)
    if len(owners_U):
        without_UP = _gradients_of_others(owners_U, context, own, conventions)
        gradients_VP.index_add_(0, owners_U, without_UP)
    return gradients_VP


def _gradients_of_others(
    owners_U: Tensor, context: StepContext, own: Pairs, conventions: Conventions
) -> Tensor:
    """Return g_{B without u}(w), its L2 term included, of each unit with samples in B, (U, P).

    Summed over the samples that remain, not as a difference: a difference would leave rounding errors
    where only the unit has a gradient, and Adam divides by their size.
    """
    batch, l2 = context.batch, context.coefficients.l2
    kept_UB = torch.ones(len(owners_U), len(batch), dtype=torch.bool, device=owners_U.device)
    kept_UB[torch.searchsorted(owners_U, own.tangents), own.rows] = False
    units, rows = kept_UB.nonzero(as_tuple=True)
    result_UP = context.parameters_P.new_zeros(len(owners_U), len(context.parameters_P))
    if len(rows):
        found, sums_FP = context.linearization.unit_gradients(Pairs(units, rows))
        result_UP[found] = sums_FP
    kept_U = (kept_UB * batch.masses_like(result_UP)).sum(1)
    if conventions.retraining.denominator == "remaining":
        result_UP /= torch.where(kept_U > 0, kept_U, 1.0)[:, None]
        return add_scaled(result_UP, context.parameters_P.expand_as(result_UP), l2)
    result_UP /= batch.divisor
    # Nothing leaves a minibatch that weighs nothing, so its L2 term stays whole.
    by_sample = _per_sample_l2(conventions) and batch.mass
    share_U = kept_U / batch.mass if by_sample else torch.ones_like(kept_U)
    return add_outer(result_UP, share_U, context.parameters_P, l2)


def _linear_change(
    rows_VP: Tensor, context: StepContext, own: Pairs, conventions: Conventions
) -> Tensor:
    """Return J(Hv(a) - s), or for the leave-one-out Hessian the clipped difference it approximates."""
    left_out = conventions.left_out
    if context.network.couples:
        change_VP = coupled_change(rows_VP, context, own, conventions.exact)
    else:
        change_VP = _products(rows_VP, context, own if left_out else None, conventions)
        _scale_and_regularise(change_VP, rows_VP, own, context, conventions)
        if len(own.rows):
            _inject(change_VP, own, context, conventions)
    clip_norm = conventions.training.clip_norm
    if clip_norm is None:
        return change_VP
    return (_clipped_difference if left_out else _clip_derivative)(
        change_VP, context.gradient_P, clip_norm
    )


def _products(
    rows_VP: Tensor, context: StepContext, left_out: Pairs | None, conventions: Conventions
) -> Tensor:
    """Return the sums of Hessian products in the arithmetic that the configuration asks for."""
    with low_precision(rows_VP.device.type, conventions.recursion.dtype):
        return context.linearization.hessian_products(rows_VP, left_out)


def low_precision(device_type: str, dtype: str) -> AbstractContextManager[object]:
    """Return a context in which products of tangents run in bfloat16, if that is asked for."""
    return torch.autocast(device_type, torch.bfloat16, enabled=dtype == "bfloat16")


def _scale_and_regularise(
    change_VP: Tensor,
    rows_VP: Tensor,
    own: Pairs,
    context: StepContext,
    conventions: Conventions,
) -> None:
    """Turn sums of Hessian products into Hv(a), in place (the table in docs/method.md)."""
    divisor, l2 = context.batch.divisor, context.coefficients.l2
    owned_V, kept_V = _masses(own, context.batch, change_VP)
    remaining = conventions.retraining.denominator == "remaining"
    if remaining and conventions.left_out:
        # An emptied minibatch has only its L2 term; its sum of products is zero already.
        scale = 1 / torch.where(kept_V > 0, kept_V, 1.0)
    else:
        scale = torch.full_like(kept_V, 1 / divisor)
    if not remaining:
        scale *= 1 - conventions.recursion.expected_fraction
    change_VP.mul_(scale[:, None])
    if conventions.left_out and not remaining and _per_sample_l2(conventions):
        change_VP.addcmul_(rows_VP, l2 * (1 - owned_V / divisor)[:, None])
    else:
        add_scaled(change_VP, rows_VP, l2)


def _masses(own: Pairs, batch: Minibatch, like_VP: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mass that each unit owns of a minibatch, and what remains without it, (V,) each."""
    masses_B = batch.masses_like(like_VP.new_empty(0, dtype=torch.float64))
    owned_V = masses_B.new_zeros(len(like_VP)).index_add_(0, own.tangents, masses_B[own.rows])
    kept_V = masses_B.sum() - owned_V
    # Where nothing remains, a sum of weights in another order would leave its rounding error.
    kept_V[kept_V < _NOTHING * masses_B.sum()] = 0.0
    return owned_V.to(like_VP.dtype), kept_V.to(like_VP.dtype)


def _per_sample_l2(conventions: Conventions) -> bool:
    return conventions.retraining.l2_share == "sample"


def _inject(change_VP: Tensor, own: Pairs, context: StepContext, conventions: Conventions) -> None:
    """Subtract the source s of every unit that owns samples of this minibatch, in place."""
    divisor = context.batch.divisor
    units, source_UP = context.linearization.unit_gradients(own)
    owned_U, kept_U = (masses_V[units] for masses_V in _masses(own, context.batch, change_VP))
    if conventions.retraining.denominator == "batch":
        source_UP /= divisor
        if _per_sample_l2(conventions):
            l2 = context.coefficients.l2
            add_outer(source_UP, owned_U / divisor, context.parameters_P, l2)
    else:
        source_UP.addr_(owned_U, context.mean_gradient_P, alpha=-1.0)
        divisor_U = kept_U if conventions.left_out else torch.full_like(owned_U, divisor)
        source_UP /= torch.where(divisor_U > 0, divisor_U, 1.0)[:, None]
        source_UP[divisor_U == 0] = context.mean_gradient_P
    change_VP.index_add_(0, units, source_UP, alpha=-1.0)


def _clip_derivative(change_VP: Tensor, gradient_P: Tensor, clip_norm: float) -> Tensor:
    """Return J d, J the derivative of clipping at g: only for the full-batch Hessian."""
    factor = clip_factor(gradient_P, clip_norm)
    if factor == 1.0:
        return change_VP
    direction = gradient_P / torch.linalg.vector_norm(gradient_P)
    along_V = change_VP @ direction
    return change_VP.addr_(along_V, direction, alpha=-1.0).mul_(factor)


def _clipped_difference(change_VP: Tensor, gradient_P: Tensor, clip_norm: float) -> Tensor:
    """Return c(g + d) - c(g), without cancellation: f_d d + (f_d - f) g."""
    factor = clip_factor(gradient_P, clip_norm)
    at_once = max(1, _NORM_VALUES // change_VP.shape[1])
    norms_V = torch.cat(
        [torch.linalg.vector_norm(rows + gradient_P, dim=1) for rows in change_VP.split(at_once)]
    )
    factors_V = factors_of(norms_V, clip_norm)
    if factor == 1.0 and bool((factors_V == 1.0).all()):
        return change_VP
    return change_VP.mul_(factors_V[:, None]).addr_(factors_V - factor, gradient_P)


def _without_own(
    rows_VP: Tensor, context: StepContext, own: Pairs, conventions: Conventions
) -> Tensor:
    """Return c(g_{B without u}(w + a)) - c(g_B(w)): retraining without u, step by step."""
    gradients_VP = gradients_without(rows_VP, context, own, conventions.retraining)
    clip_norm = conventions.training.clip_norm
    change_VP = gradients_VP - context.gradient_P
    if clip_norm is None:
        return change_VP
    return _clipped_difference(change_VP, context.gradient_P, clip_norm)
