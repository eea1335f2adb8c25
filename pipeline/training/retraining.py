"""Retraining without some samples: the same start, order and learning rates."""

# n samples, P parameters

from torch import Tensor

from pipeline.progress import Progress, silent
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from pipeline.training.step import OptimizerState, descend


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
            gradient = _gradient(problem, state, kept, len(sample_ids))
            eta, where = schedule.learning_rates[step], f"retraining's step {step}"
            state, _ = descend(state, gradient, eta, config, where)
            progress(step + 1, schedule.num_steps)
    return state.parameters_P


def _gradient(problem: Problem, state: OptimizerState, kept: Tensor, size: int) -> Tensor:
    """Return the gradient over what remains of a minibatch of `size` (docs/method.md, section 2)."""
    w_P = state.parameters_P
    l2, retraining = problem.config.training.l2, problem.config.retraining
    remaining = retraining.denominator == "remaining"
    if retraining.l2_share == "sample" and not remaining:
        l2 *= len(kept) / size
    if len(kept) == 0:
        return l2 * w_P
    batch = problem.minibatch(kept, state.step)
    total = problem.network.linearize(w_P, batch).gradient_sum()
    return total / (len(kept) if remaining else size) + l2 * w_P
