"""Retraining without some samples: the same start, order and learning rates."""

# n samples, P parameters

from torch import Tensor

from pipeline.models.minibatch import Minibatch, divisor
from pipeline.progress import Progress, silent
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from pipeline.training.step import OptimizerState, descend, with_statistics


def retrain(
    problem: Problem, schedule: Schedule, forgotten_n: Tensor, progress: Progress = silent
) -> Tensor:
    """Return the parameters (P,) that training without the forgotten samples ends at.

    Args:
        problem: Data, network and conventions.
        schedule: The original run's minibatches, from which forgotten samples are dropped.
        forgotten_n: Mask (n,) of the samples to leave out.
        progress: Called after each step.

    Raises:
        DivergedError: If a gradient is not finite.
    """
    config = problem.config.training
    state = OptimizerState.start(problem.initial_P, config)
    with problem.arithmetic():
        for step, sample_ids in enumerate(schedule.sample_ids):
            kept = sample_ids[~forgotten_n[sample_ids].cpu()]
            batch, whole = problem.minibatch(kept, step), problem.mass(sample_ids)
            gradient = _gradient(problem, state.parameters_P, batch, whole)
            eta, where = schedule.learning_rates[step], f"retraining's step {step}"
            after, _ = descend(state, gradient, eta, config, problem.coefficients, where)
            state = with_statistics(problem.network, state, after, batch)
            progress(step + 1, schedule.num_steps)
    return state.parameters_P


def _gradient(problem: Problem, w_P: Tensor, kept: Minibatch, whole: float) -> Tensor:
    """Return the gradient over what remains of a minibatch of mass `whole` (docs/method.md)."""
    retraining, l2 = problem.config.retraining, problem.coefficients.l2
    remaining = retraining.denominator == "remaining"
    # Nothing leaves a minibatch that weighs nothing, so its L2 term stays whole.
    if retraining.l2_share == "sample" and not remaining and whole:
        l2 = l2 * (kept.mass / whole)
    if len(kept) == 0:
        return l2 * w_P
    total = problem.network.linearize(w_P, kept).gradient_sum()
    return total / divisor(kept.mass if remaining else whole) + l2 * w_P
