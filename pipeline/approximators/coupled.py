"""The recursion where a minibatch's statistics couple its samples (docs/method.md, section 3).

Batch normalisation in train mode makes a minibatch's loss one function of all its samples. A unit
leaves the statistics as well: for a unit with samples in the minibatch, gradient, Hessian products and
statistics are those of the samples that remain, normalised among themselves. So each such unit costs
a pass of its own. All other units share the pass of the whole minibatch.

Running statistics stand behind the parameters in a row, and follow

    r' = r + momentum (stat_{B without u}(w + a) - stat_B(w) - r)
"""

# B minibatch rows, V units visited so far, U units with samples in B, P parameters, S statistics

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from pipeline.models.minibatch import Minibatch
from pipeline.run.coefficients import add_scaled
from pipeline.training.step import StepContext

if TYPE_CHECKING:
    from pipeline.hessian.roperator import Pairs

# Units with samples in the minibatch that are passed together: each holds its own activations.
_AT_ONCE = 16
# What is left of a step's statistics in the last running ones, below which it is nothing.
_FORGOTTEN = 2.0**-53

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class _Split:
    """Units by what the minibatch is without them.

    Attributes:
        others: Units without samples in it.
        owners: Units that leave something of it.
        present_UB: Which samples remain without each owner, 1 or 0.
        emptied: Units that own all of it.
    """

    others: Tensor
    owners: Tensor
    present_UB: Tensor
    emptied: Tensor

    @staticmethod
    def of(own: Pairs, batch: Minibatch, rows_VP: Tensor) -> _Split:
        units_U = own.tangents.unique()
        present_UB = rows_VP.new_ones(len(units_U), len(batch))
        present_UB[torch.searchsorted(units_U, own.tangents), own.rows] = 0.0
        leaves = present_UB.sum(1) > 0
        is_other = torch.ones(len(rows_VP), dtype=torch.bool, device=rows_VP.device)
        is_other[units_U] = False
        others = is_other.nonzero().squeeze(1)
        return _Split(others, units_U[leaves], present_UB[leaves], units_U[~leaves])


def coupled_change(rows_VP: Tensor, context: StepContext, own: Pairs, exact: bool) -> Tensor:
    """Return g_{B without u}(w + a) - g_B(w), L2 terms included, before clipping, (V, P).

    Exact as the leave-one-out engine takes it, else linear in a by Hessian products.
    """
    split, l2 = _Split.of(own, context.batch, rows_VP), context.coefficients.l2
    change_VP = torch.zeros_like(rows_VP)
    if len(split.others):
        change_VP[split.others] = _of_others(rows_VP[split.others], context, exact)
    for units, batches in _passes(split, context.batch):
        change_VP[units] = _mean_gradients(rows_VP[units], context, batches, exact)
    alone = torch.cat([split.owners, split.emptied])
    at_AP = rows_VP[alone] + context.parameters_P
    change_VP[alone] = add_scaled(change_VP[alone], at_AP, l2).sub_(context.gradient_P)
    return change_VP


def _passes(split: _Split, batch: Minibatch) -> list[tuple[Tensor, Minibatch]]:
    """Return the owners, some at a time, each with the minibatch whose `present` is (U, B)."""
    if not len(split.owners):
        return []
    parts = zip(split.owners.split(_AT_ONCE), split.present_UB.split(_AT_ONCE), strict=True)
    return [(units, replace(batch, present=present_UB)) for units, present_UB in parts]


def _left_in(batch: Minibatch, present_B: Tensor) -> Minibatch:
    """Return the minibatch in which the samples left out weigh nothing."""
    weights_B = present_B if batch.weights is None else batch.weights * present_B
    return replace(batch, weights=weights_B, present=present_B)


def _of_others(rows_OP: Tensor, context: StepContext, exact: bool) -> Tensor:
    divisor, l2 = context.batch.divisor, context.coefficients.l2
    if not exact:
        change_OP = context.linearization.hessian_products(rows_OP, None).div_(divisor)
        return add_scaled(change_OP, rows_OP, l2)
    network, batch = context.network, context.batch
    at_OP = rows_OP + context.parameters_P
    gradients = vmap(grad(lambda at: network.loss_sum(at, batch)))(network.parameters(at_OP))
    change_OP = network.flatten(gradients, num_batch=1).div_(divisor)
    return add_scaled(change_OP, at_OP, l2).sub_(context.gradient_P)


def _mean_gradients(
    rows_UP: Tensor, context: StepContext, batches: Minibatch, exact: bool
) -> Tensor:
    """Return the mean data gradient of what remains without each unit, at w + a, (U, P)."""
    network, w_P, batch = context.network, context.parameters_P, context.batch
    assert batches.present is not None, "made by _passes"
    masses_U = batches.present @ batch.masses_like(rows_UP)
    if network.form == "reverse" and not exact:
        # Double backward takes one tangent at a time: a pass over the samples that remain.
        sums = []
        for row_P, present_B in zip(rows_UP, batches.present, strict=True):
            at = network.linearize(w_P, batch.take(present_B.nonzero().squeeze(1)))
            sums.append(at.gradient_sum() + at.hessian_products(row_P[None], None)[0])
        sums_UP = torch.stack(sums)
    else:

        def gradient(at: Tensors, present_B: Tensor) -> Tensors:
            found: Tensors = grad(lambda t: network.loss_sum(t, _left_in(batch, present_B)))(at)
            return found

        def linear(tangents: Tensors, present_B: Tensor) -> Tensors:
            here = network.parameters(w_P)
            both = jvp(lambda at: gradient(at, present_B), (here,), (tangents,))
            return {name: both[0][name] + both[1][name] for name in here}

        if exact:
            moved = vmap(gradient)(network.parameters(rows_UP + w_P), batches.present)
        else:
            moved = vmap(linear)(network.parameters(rows_UP), batches.present)
        sums_UP = network.flatten(moved, num_batch=1)
    return sums_UP.div_(torch.where(masses_U > 0, masses_U, 1.0)[:, None])


def statistics_shift(rows_VP: Tensor, context: StepContext, own: Pairs, exact: bool) -> Tensor:
    """Return what running statistics of each unit's absence move towards, as differences, (V, S).

    Zero at steps so long before the end that the running statistics forget them.
    """
    network, w_P, batch = context.network, context.parameters_P, context.batch
    if float((1 - network.momenta).max()) ** context.steps_left < _FORGOTTEN:
        return rows_VP.new_zeros(len(rows_VP), network.layout.statistics_size)
    seen_S, split = network.statistics(w_P, batch), _Split.of(own, batch, rows_VP)
    shift_VS = rows_VP.new_zeros(len(rows_VP), len(seen_S))
    if len(split.others):
        moved = _moved(network.parameters(rows_VP[split.others]), context, None, exact)
        # Linear in a, the difference is the derivative.
        shift_VS[split.others] = moved - seen_S if exact else moved
    for units, batches in _passes(split, batch):
        moved = _moved(network.parameters(rows_VP[units]), context, batches.present, exact)
        shift_VS[units] = moved - seen_S
    if len(split.emptied):
        # Without samples the running statistics stay; the run's own do not.
        kept_S = w_P[-len(seen_S) :] - seen_S
        shift_VS[split.emptied] = rows_VP[split.emptied, -len(seen_S) :] + kept_S
    return shift_VS


def _moved(rows: Tensors, context: StepContext, present_UB: Tensor | None, exact: bool) -> Tensor:
    """Return each unit's statistics at w + a, linear in a unless `exact`, (U, S).

    For units without samples in the minibatch (no `present_UB`) and linear: the derivative alone.
    """
    network, batch = context.network, context.batch
    here = network.parameters(context.parameters_P)

    def statistics(at: Tensors, present_B: Tensor | None) -> Tensor:
        passed = batch if present_B is None else replace(batch, present=present_B)
        return network.statistics_of(at, passed)

    def of_unit(row: Tensors, present_B: Tensor | None) -> Tensor:
        if exact:
            return statistics({name: here[name] + row[name] for name in row}, present_B)
        both = jvp(lambda at: statistics(at, present_B), (here,), (row,))
        found: Tensor = both[1] if present_B is None else both[0] + both[1]
        return found

    if present_UB is None:
        return vmap(lambda row: of_unit(row, None))(rows)
    return vmap(of_unit)(rows, present_UB)
