"""Replaying a recorded run step by step, without storing its parameters."""

# P parameters, T steps

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pipeline.models.parameters import ParameterLayout
from pipeline.run.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory
from pipeline.training.step import FIRST, MOMENTUM, SECOND, OptimizerState, StepContext, take_step

# Version 0.1.0 named the momentum buffer so in checkpoints, and so it is named still.
_STORED = {MOMENTUM: "momentum"}


def read_state(folder: Path, step: int, like_P: Tensor) -> OptimizerState:
    """Return the state at a checkpoint, in the dtype and on the device of `like_P`.

    Raises:
        TrajectoryError: If there is no checkpoint before `step`, or it is damaged.
    """
    stored = read_checkpoint(folder, step)
    known = {_STORED.get(name, name): name for name in (MOMENTUM, FIRST, SECOND)}
    buffers = {
        known[name]: torch.from_numpy(values).to(like_P)
        for name, values in stored.buffers.items()
        if name in known
    }
    return OptimizerState(torch.from_numpy(stored.parameters_P).to(like_P), buffers, step)


def write_state(folder: Path, step: int, state: OptimizerState, layout: ParameterLayout) -> None:
    """Keep the state before `step` as a checkpoint."""
    buffers = {_STORED.get(k, k): value.cpu().numpy() for k, value in state.buffers.items()}
    parameters_P = state.parameters_P.cpu().numpy()
    checkpoint = Checkpoint(layout.names, layout.shapes, parameters_P, buffers)
    write_checkpoint(folder, step, checkpoint)


@dataclass
class Replay:
    """A position in a recorded run that advances step by step.

    Attributes:
        problem: The run's data, network and conventions.
        trajectory: What is replayed.
        state: Parameters before step `step`.
        step: The next step.
        max_drift: Largest relative distance to a checkpoint so far; 0 on the machine that trained.
        shift_P: What the last step's parameters were moved by to agree with a checkpoint, if at all.
    """

    problem: Problem
    trajectory: Trajectory
    state: OptimizerState
    step: int
    max_drift: float = field(default=0.0)
    shift_P: Tensor | None = None

    @staticmethod
    def start(problem: Problem, trajectory: Trajectory, step: int = 0) -> "Replay":
        """Return a replay before `step`, advanced from the nearest checkpoint."""
        nearest = trajectory.nearest_checkpoint(step)
        replay = Replay(
            problem, trajectory, read_state(trajectory.folder, nearest, problem.initial_P), nearest
        )
        for _ in replay.steps(step):
            pass
        return replay

    def steps(self, stop: int) -> Iterator[tuple[int, StepContext]]:
        """Yield the number and the shared pass of each step up to `stop`, and advance."""
        while self.step < stop:
            context, after, _ = take_step(
                self.problem, self.state, self.trajectory.schedule, self.step
            )
            yield self.step, context
            self.step += 1
            self.state = self._synchronised(after)

    def _synchronised(self, state: OptimizerState) -> OptimizerState:
        """Return the state, or the checkpoint at this step if there is one that differs."""
        self.shift_P = None
        if self.step not in self.trajectory.checkpoints:
            return state
        stored = read_state(self.trajectory.folder, self.step, self.problem.initial_P)
        if torch.equal(stored.parameters_P, state.parameters_P):
            return state
        distance = torch.linalg.vector_norm(stored.parameters_P - state.parameters_P)
        relative = distance / torch.linalg.vector_norm(stored.parameters_P)
        self.max_drift = max(self.max_drift, float(relative))
        self.shift_P = stored.parameters_P - state.parameters_P
        return stored


@dataclass(frozen=True)
class RecordedStep:
    """One step as it was taken.

    Attributes:
        step: t.
        sample_ids: Ids of the minibatch's samples (B,), int64: their rows in the source, or their
            positions in the training set where the run has that rule (`data.sample_ids`).
        learning_rate: eta_t.
        parameters: w_t (P,), float32, detached, *before* the step, in `named_parameters()` order,
            each tensor row-major.
    """

    step: int
    sample_ids: Tensor
    learning_rate: float
    parameters: Tensor


def replay_steps(run: str | Path | RunDirectory) -> Iterator[RecordedStep]:
    """Replay a run's training from its beginning and yield every step, parameters before it.

    Args:
        run: A trained run, or its folder.

    Raises:
        TrajectoryError: If it is not trained, or damaged.
    """
    opened = run if isinstance(run, RunDirectory) else RunDirectory.open(run)
    problem, trajectory = opened.problem(), opened.trajectory()
    schedule, ids = trajectory.schedule, problem.data.sample_ids
    with problem.arithmetic():
        for step, context in Replay.start(problem, trajectory).steps(trajectory.num_steps):
            parameters_P = context.parameters_P[: problem.network.layout.trained.num_parameters]
            parameters = parameters_P.detach().to("cpu", torch.float32).clone()
            yield RecordedStep(
                step, ids[schedule.sample_ids[step]], schedule.learning_rates[step], parameters
            )
