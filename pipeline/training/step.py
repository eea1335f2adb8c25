"""The optimizer step (docs/method.md, section 2).

    g(w) = (1/|B|) sum_{i in B} grad l_i(w) + l2 * w
    c(g) = g * min(1, C/|g|)
    SGD:   b' = momentum * b + c(g),   w' = w - eta * b'     (Nesterov: w - eta * (c(g) + momentum b'))
    Adam:  m' = beta1 m + (1 - beta1) c(g),   v' = beta2 v + (1 - beta2) c(g)^2,
           w' = (1 - eta * decay) w - (eta / bc1) m' / (sqrt(v' / bc2) + eps),  bc = 1 - beta^(t+1)

Training, replay, retraining, fine-tuning and the baselines all use it, so that they agree to the bit.
"""

# B minibatch rows, C classes or outputs, P parameters

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import DivergedError
from pipeline.hessian.hvp import Network
from pipeline.hessian.linearization import Linearization
from pipeline.models.minibatch import Minibatch
from pipeline.run.coefficients import Coefficients, Factor

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


def clip_factors(gradients_VP: Tensor, clip_norm: float) -> Tensor:
    """Return min(1, C/|g|) of each gradient, (V,)."""
    return factors_of(torch.linalg.vector_norm(gradients_VP, dim=1), clip_norm)


def factors_of(norms_V: Tensor, clip_norm: float) -> Tensor:
    """Return min(1, C/|g|) from the norms (V,)."""
    return (clip_norm / norms_V.clamp(min=torch.finfo(norms_V.dtype).tiny)).clamp(max=1.0)


# What an optimizer keeps beside the parameters, by torch's names.
MOMENTUM, FIRST, SECOND = "momentum_buffer", "exp_avg", "exp_avg_sq"


def buffer_names(config: TrainingConfig) -> tuple[str, ...]:
    """Return the names of what the optimizer keeps: vectors as long as the parameters."""
    if config.optimizer == "sgd":
        return (MOMENTUM,) if config.momentum else ()
    return (FIRST, SECOND)


@dataclass(frozen=True)
class OptimizerState:
    """Parameters w_t (P,) and what the optimizer keeps, before step t.

    Attributes:
        parameters_P: w_t.
        buffers: Vectors (P,) by name, see `buffer_names`.
        step: t, counted from the start of this training.
    """

    parameters_P: Tensor
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    step: int = 0

    @staticmethod
    def start(parameters_P: Tensor, config: TrainingConfig) -> OptimizerState:
        """Return the state before the first step."""
        zero = {name: torch.zeros_like(parameters_P) for name in buffer_names(config)}
        return OptimizerState(parameters_P, zero)

    def after(
        self,
        clipped_P: Tensor,
        learning_rate: float,
        config: TrainingConfig,
        coefficients: Coefficients,
    ) -> OptimizerState:
        """Return the state after one step with the clipped gradient c(g).

        Also of many trainings at once, whose vectors have an axis in front of P.
        """
        if config.optimizer == "sgd":
            return self._after_sgd(clipped_P, learning_rate * coefficients.rate, config)
        return self._after_adam(clipped_P, learning_rate, config, coefficients)

    def _after_sgd(self, clipped_P: Tensor, eta: Factor, config: TrainingConfig) -> OptimizerState:
        if MOMENTUM not in self.buffers:
            return OptimizerState(self.parameters_P - eta * clipped_P, {}, self.step + 1)
        buffer = config.momentum * self.buffers[MOMENTUM] + clipped_P
        direction = clipped_P + config.momentum * buffer if config.nesterov else buffer
        parameters_P = self.parameters_P - eta * direction
        return OptimizerState(parameters_P, {MOMENTUM: buffer}, self.step + 1)

    def _after_adam(
        self, clipped_P: Tensor, eta: float, config: TrainingConfig, coefficients: Coefficients
    ) -> OptimizerState:
        """Take torch's step, operation by operation, so that the bits are torch's."""
        beta1, beta2 = config.betas
        first_P = torch.lerp(self.buffers[FIRST], clipped_P, 1 - beta1)
        second_P = (self.buffers[SECOND] * beta2).addcmul_(clipped_P, clipped_P, value=1 - beta2)
        bias1, bias2 = bias_corrections(config, self.step)
        denominator_P = (second_P.sqrt() / bias2**0.5).add_(config.eps)
        parameters_P = self.parameters_P.clone()
        for share in coefficients.shares:
            part, rate = (..., share.part), eta * share.rate
            if share.decay:
                parameters_P[part].mul_(1 - rate * share.decay)
            parameters_P[part].addcdiv_(first_P[part], denominator_P[part], value=-(rate / bias1))
        return OptimizerState(parameters_P, {FIRST: first_P, SECOND: second_P}, self.step + 1)


def bias_corrections(config: TrainingConfig, step: int) -> tuple[float, float]:
    """Return 1 - beta**(t + 1) of both moments of Adam at step t."""
    beta1, beta2 = config.betas
    return 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)


@dataclass(frozen=True)
class StepContext:
    """What all units share at step t: the linearisation at w_t and the gradient of the whole step.

    Attributes:
        network: The model, its loss and its form of HVPs.
        parameters_P: w_t.
        batch: The minibatch's samples.
        learning_rate: eta_t.
        linearization: The data terms at w_t, made once for all chunks.
        mean_gradient_P: gbar, the mean data gradient.
        gradient_P: g_t(w_t) = gbar + l2 * w_t, before clipping.
        coefficients: L2, decay and learning rate of each parameter.
        before: The optimizer's state before the step.
        after: Its state after it.
        steps_left: Steps of the run behind this one.
    """

    network: Network
    parameters_P: Tensor
    batch: Minibatch
    learning_rate: float
    linearization: Linearization
    mean_gradient_P: Tensor
    gradient_P: Tensor
    coefficients: Coefficients
    before: OptimizerState | None = None
    after: OptimizerState | None = None
    steps_left: int = 0

    @property
    def batch_size(self) -> int:
        """|B_t|."""
        return len(self.batch)


def step_context(
    network: Network,
    w_P: Tensor,
    batch: Minibatch,
    eta: float,
    coefficients: Coefficients,
    *,
    fused: bool = False,
) -> StepContext:
    """Make the primal pass of a step: it serves training, replay and every chunk's HVPs."""
    linearization = network.linearize(w_P, batch)
    mean_P = linearization.gradient_sum() / batch.divisor
    gradient_P = with_l2(mean_P, w_P, coefficients, fused=fused)
    return StepContext(network, w_P, batch, eta, linearization, mean_P, gradient_P, coefficients)


def with_l2(mean_P: Tensor, w_P: Tensor, coefficients: Coefficients, *, fused: bool) -> Tensor:
    """Return the gradient with its L2 term; `fused` rounds once, as torch's Adam does."""
    if not fused:
        return mean_P + coefficients.l2 * w_P
    gradient_P = mean_P.clone()
    for share in coefficients.shares:
        gradient_P[share.part].add_(w_P[share.part], alpha=share.l2)
    return gradient_P


def take_step(
    problem: Problem, state: OptimizerState, schedule: Schedule, step: int
) -> tuple[StepContext, OptimizerState, float]:
    """Make the primal pass of one step; return it, the state after it and its clip factor.

    Args:
        problem: Data, network and conventions.
        state: Before the step; its number t is what the step's augmentation is drawn from.
        schedule: Minibatches and learning rates.
        step: Which of the schedule's is taken.

    Raises:
        DivergedError: If the gradient is not finite.
    """
    config = problem.config.training
    eta = schedule.learning_rates[step]
    batch = problem.minibatch(schedule.sample_ids[step], state.step)
    fused, coefficients = config.optimizer != "sgd", problem.coefficients
    w_P = state.parameters_P
    context = step_context(problem.network, w_P, batch, eta, coefficients, fused=fused)
    where = f"step {state.step}"
    after, factor = descend(state, context.gradient_P, eta, config, coefficients, where)
    after = with_statistics(problem.network, state, after, batch)
    left = schedule.num_steps - 1 - step
    return replace(context, before=state, after=after, steps_left=left), after, factor


def with_statistics(
    network: Network, before: OptimizerState, after: OptimizerState, batch: Minibatch
) -> OptimizerState:
    """Return the state with running statistics moved towards the minibatch's, as torch does.

    Without batch normalisation in train mode, or without samples, it is returned as it is.
    """
    if not network.couples or not len(batch):
        return after
    parameters_P, seen = after.parameters_P.clone(), network.statistics(before.parameters_P, batch)
    parameters_P[-len(seen) :].lerp_(seen, network.momenta.to(seen))
    return replace(after, parameters_P=parameters_P)


def descend(
    state: OptimizerState,
    gradient_P: Tensor,
    eta: float,
    config: TrainingConfig,
    coefficients: Coefficients,
    where: str,
) -> tuple[OptimizerState, float]:
    """Clip a gradient and take the step; return the state after it and the clip factor.

    Args:
        state: Before the step.
        gradient_P: g, its L2 term included, (P,).
        eta: The learning rate.
        config: Clipping, momentum, moments.
        coefficients: Decay and learning rate of each parameter.
        where: Which step this is, for the message.

    Raises:
        DivergedError: If the gradient is not finite.
    """
    factor = clip_factor(gradient_P, config.clip_norm)
    clipped_P = gradient_P if factor == 1.0 else gradient_P * factor
    # A finite sum has finite terms, at a quarter of the price; a sum may overflow, terms may not.
    if not (bool(torch.isfinite(clipped_P.sum())) or bool(torch.isfinite(clipped_P).all())):
        raise DivergedError(
            f"the gradient of {where} is not finite (learning rate {eta:.3g}); lower "
            "training.learning_rate or set training.clip_norm"
        )
    return state.after(clipped_P, eta, config, coefficients), factor
