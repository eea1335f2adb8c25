"""The optimizer step (docs/method.md, section 2).

    g(w) = (1/|B|) sum_{i in B} grad l_i(w) + l2 * w
    c(g) = g * min(1, C/|g|)
    b'   = momentum * b + c(g),   w' = w - eta * b'          (Nesterov: w - eta * (c(g) + momentum b'))

Training, replay, retraining, fine-tuning and the baselines all use it, so that they agree to the bit.
"""

# B minibatch rows, C classes or outputs, P parameters

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import DivergedError
from pipeline.hessian.hvp import Linearization, Network

if TYPE_CHECKING:
    from pipeline.config import TrainingConfig
    from pipeline.run.problem import Problem
    from pipeline.run.schedule import Schedule


def clip_factor(gradient_P: Tensor, clip_norm: float | None) -> float:
    """Return min(1, C/|g|); 1 without clipping."""
    if clip_norm is None:
        return 1.0
    norm = float(torch.linalg.vector_norm(gradient_P))
    return min(1.0, clip_norm / norm) if norm > 0 else 1.0


@dataclass(frozen=True)
class SgdState:
    """Parameters w (P,) and the momentum buffer b (P,), or None without momentum."""

    parameters_P: Tensor
    buffer_P: Tensor | None = None

    @staticmethod
    def start(parameters_P: Tensor, config: TrainingConfig) -> SgdState:
        """Return the state before the first step."""
        buffer = torch.zeros_like(parameters_P) if config.momentum else None
        return SgdState(parameters_P, buffer)

    def step(self, clipped_P: Tensor, learning_rate: float, config: TrainingConfig) -> SgdState:
        """Return the state after one step with the clipped gradient c(g)."""
        if self.buffer_P is None:
            return SgdState(self.parameters_P - learning_rate * clipped_P)
        buffer = config.momentum * self.buffer_P + clipped_P
        direction = clipped_P + config.momentum * buffer if config.nesterov else buffer
        return SgdState(self.parameters_P - learning_rate * direction, buffer)


@dataclass(frozen=True)
class StepContext:
    """What all units share at step t: the linearisation at w_t and the gradient of the whole step.

    Attributes:
        network: The model, its loss and its form of HVPs.
        parameters_P: w_t.
        inputs: Minibatch inputs (B, ...).
        targets: Minibatch targets (B, ...).
        learning_rate: eta_t.
        linearization: The data terms at w_t, made once for all chunks.
        mean_gradient_P: gbar, the mean data gradient.
        gradient_P: g_t(w_t) = gbar + l2 * w_t, before clipping.
    """

    network: Network
    parameters_P: Tensor
    inputs: Tensor
    targets: Tensor
    learning_rate: float
    linearization: Linearization
    mean_gradient_P: Tensor
    gradient_P: Tensor

    @property
    def batch_size(self) -> int:
        """|B_t|."""
        return int(self.inputs.shape[0])


def step_context(
    network: Network, w_P: Tensor, batch: tuple[Tensor, Tensor], eta: float, l2: float
) -> StepContext:
    """Make the primal pass of a step: it serves training, replay and every chunk's HVPs."""
    inputs, targets = batch
    linearization = network.linearize(w_P, inputs, targets)
    mean_P = linearization.gradient_sum() / inputs.shape[0]
    gradient_P = mean_P + l2 * w_P
    return StepContext(network, w_P, inputs, targets, eta, linearization, mean_P, gradient_P)


def take_step(
    problem: Problem, state: SgdState, schedule: Schedule, step: int
) -> tuple[StepContext, SgdState, float]:
    """Make the primal pass of one step; return it, the state after it and its clip factor.

    Raises:
        DivergedError: If the gradient is not finite.
    """
    config = problem.config.training
    eta = schedule.learning_rates[step]
    batch = problem.minibatch(schedule.sample_ids[step])
    context = step_context(problem.network, state.parameters_P, batch, eta, config.l2)
    after, factor = descend(state, context.gradient_P, eta, config, f"step {step}")
    return context, after, factor


def descend(
    state: SgdState, gradient_P: Tensor, eta: float, config: TrainingConfig, where: str
) -> tuple[SgdState, float]:
    """Clip a gradient and take the step; return the state after it and the clip factor.

    Args:
        state: Before the step.
        gradient_P: g, its L2 term included, (P,).
        eta: The learning rate.
        config: Clipping and momentum.
        where: Which step this is, for the message.

    Raises:
        DivergedError: If the gradient is not finite.
    """
    factor = clip_factor(gradient_P, config.clip_norm)
    clipped_P = gradient_P if factor == 1.0 else gradient_P * factor
    if not bool(torch.isfinite(clipped_P).all()):
        raise DivergedError(
            f"the gradient of {where} is not finite (learning rate {eta:.3g}); lower "
            "training.learning_rate or set training.clip_norm"
        )
    return state.step(clipped_P, eta, config), factor
