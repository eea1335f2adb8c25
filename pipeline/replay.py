"""Walking through a recorded run again, step by step, without storing it."""

# P parameters, T steps

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from pipeline.errors import DivergedError
from pipeline.objective import SgdState, clip_factor
from pipeline.problem import Problem
from pipeline.recursion import StepContext, step_context
from pipeline.schedule import Schedule
from pipeline.trajectory import Trajectory


def take_step(
    problem: Problem, state: SgdState, schedule: Schedule, step: int
) -> tuple[StepContext, SgdState, float]:
    """Make the primal pass of one step; return it, the state after it and its clip factor.

    Training and replay both come here, so that they agree to the bit.

    Raises:
        DivergedError: If the gradient is not finite.
    """
    config = problem.config.training
    eta = schedule.learning_rates[step]
    batch = problem.minibatch(schedule.sample_ids[step])
    context = step_context(problem.network, state.parameters_P, batch, eta, config.l2)
    factor = clip_factor(context.gradient_P, config.clip_norm)
    clipped = context.gradient_P if factor == 1.0 else context.gradient_P * factor
    if not bool(torch.isfinite(clipped).all()):
        raise DivergedError(
            f"the gradient of step {step} is not finite (learning rate {eta:.3g}); lower "
            "training.learning_rate or set training.clip_norm"
        )
    return context, state.step(clipped, eta, config), factor


@dataclass
class Replay:
    """A position in a recorded run; `max_drift` is what it found at the checkpoints.

    Attributes:
        problem: The run's data, network and conventions.
        trajectory: What is replayed.
        state: Parameters before step `step`.
        step: Where the replay stands.
        max_drift: Largest relative distance to a checkpoint so far; 0 on the machine that trained.
    """

    problem: Problem
    trajectory: Trajectory
    state: SgdState
    step: int
    max_drift: float = field(default=0.0)

    @staticmethod
    def start(problem: Problem, trajectory: Trajectory, step: int = 0) -> "Replay":
        """Stand before `step`, replayed from the nearest checkpoint."""
        nearest = trajectory.nearest_checkpoint(step)
        replay = Replay(problem, trajectory, _on(problem, trajectory, nearest), nearest)
        for _ in replay.steps(step):
            pass
        return replay

    def steps(self, stop: int) -> Iterator[tuple[int, StepContext]]:
        """Yield each step's number and shared pass, up to `stop`, moving along."""
        while self.step < stop:
            context, after, _ = take_step(
                self.problem, self.state, self.trajectory.schedule, self.step
            )
            yield self.step, context
            self.step += 1
            self.state = self._synchronised(after)

    def _synchronised(self, state: SgdState) -> SgdState:
        """Return the state, or the checkpoint at this step if there is one that differs."""
        if self.step not in self.trajectory.checkpoints:
            return state
        stored = _on(self.problem, self.trajectory, self.step)
        if torch.equal(stored.parameters_P, state.parameters_P):
            return state
        distance = torch.linalg.vector_norm(stored.parameters_P - state.parameters_P)
        relative = distance / torch.linalg.vector_norm(stored.parameters_P)
        self.max_drift = max(self.max_drift, float(relative))
        return stored


def _on(problem: Problem, trajectory: Trajectory, step: int) -> SgdState:
    stored = trajectory.state_before(step)
    to = problem.initial_P
    buffer = None if stored.buffer_P is None else stored.buffer_P.to(to)
    return SgdState(stored.parameters_P.to(to), buffer)
