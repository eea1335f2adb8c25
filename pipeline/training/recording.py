"""The files of a training that a user's loop takes: its start, checkpoints, and its schedule."""

# B minibatch rows, P parameters

from dataclasses import replace

from torch import Tensor, nn

from pipeline.errors import TrajectoryError
from pipeline.run.checkpoints import checkpoint_path, finish
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.run.sample_record import write_samples
from pipeline.run.schedule import Schedule
from pipeline.run.settings import write_settings
from pipeline.run.trained_part import write_frozen, write_start
from pipeline.run.trajectory import write_schedule
from pipeline.sizes import CHECKPOINTS
from pipeline.training.replay import write_state
from pipeline.training.step import OptimizerState
from pipeline.training.train import numerics


class Recording:
    """A trajectory that grows step by step.

    Args:
        run: Whose trajectory it is.
        problem: As `begun` returned it.
    """

    def __init__(self, run: RunDirectory, problem: Problem) -> None:
        self._run, self._problem = run, problem
        self._positions: list[Tensor] = []
        self._rates: list[float] = []
        self._factors: list[float] = []
        self._checkpoints: list[int] = []
        every = problem.config.recursion.checkpoint_every
        self._every, self._thins_out = (1, True) if every == "auto" else (every, False)

    @property
    def num_steps(self) -> int:
        """T so far."""
        return len(self._positions)

    def add(self, positions: Tensor, rate: float, factor: float, after: OptimizerState) -> None:
        """Add a step: positions of its minibatch (B,), rate and clip factor, and the state after."""
        self._positions.append(positions)
        self._rates.append(rate)
        self._factors.append(factor)
        if self.num_steps % self._every == 0:
            self._keep(after)

    def _keep(self, state: OptimizerState) -> None:
        """Write a checkpoint; when there are too many, remove every other one."""
        folder = self._run.trajectory_folder
        write_state(folder, self.num_steps, state, self._problem.network.layout)
        self._checkpoints.append(self.num_steps)
        if self._thins_out and len(self._checkpoints) == 2 * CHECKPOINTS:
            for step in self._checkpoints[::2]:
                checkpoint_path(folder, step).unlink()
            self._checkpoints = self._checkpoints[1::2]
            self._every *= 2

    def finish(self, state: OptimizerState) -> None:
        """Write what makes the trajectory complete.

        Raises:
            TrajectoryError: If no step was added.
        """
        if not self._positions:
            raise TrajectoryError("no step was recorded; call recorder.step after each step")
        folder, problem = self._run.trajectory_folder, self._problem
        write_state(folder, self.num_steps, state, problem.network.layout)
        write_schedule(folder, Schedule(tuple(self._positions), tuple(self._rates)), self._factors)
        write_samples(folder, problem.data, problem.sample_masses())
        write_settings(folder, problem.config, problem.data_digest)
        finish(folder, numerics(problem))


def begun(run: RunDirectory, model: nn.Module, frozen: dict[str, Tensor]) -> Problem:
    """Write where the loop starts; return the problem that starts there."""
    folder = run.trajectory_folder
    folder.mkdir(mode=0o700, exist_ok=True)
    for left_over in folder.iterdir():
        left_over.unlink()
    write_frozen(folder, frozen)
    problem = run.problem()
    assert problem.part is not None
    write_start(folder, problem.part)
    start_P = problem.network.layout.read(model).to(problem.initial_P)
    state = OptimizerState.start(start_P, run.config.training)
    write_state(folder, 0, state, problem.network.layout)
    return replace(problem, initial_P=state.parameters_P)
