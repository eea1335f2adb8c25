"""Training with a recorded trajectory."""

# P parameters, T steps

import json
from pathlib import Path

from blake3 import blake3

from pipeline.config import RunConfig
from pipeline.errors import TrajectoryError
from pipeline.progress import Progress, silent
from pipeline.run.checkpoints import checkpoint_path, finish
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.run.sample_record import write_samples
from pipeline.run.schedule import Schedule
from pipeline.run.settings import write_settings
from pipeline.run.trained_part import write_start
from pipeline.run.trajectory import Trajectory, write_schedule
from pipeline.sizes import checkpoint_steps
from pipeline.training.replay import read_state, write_state
from pipeline.training.step import OptimizerState, take_step


def train(config: RunConfig, out: str | Path, progress: Progress = silent) -> RunDirectory:
    """Train into a run directory; a finished training is kept, an interrupted one continued.

    Raises:
        ConfigError: If `out` belongs to another configuration.
        DivergedError: If a gradient is not finite.
    """
    run, problem = RunDirectory.prepare(out, config)
    if not run.is_trained():
        record(problem, run.trajectory_folder, progress)
    return run


def record(
    problem: Problem,
    folder: Path,
    progress: Progress = silent,
    schedule: Schedule | None = None,
) -> Trajectory:
    """Train and leave a trajectory in `folder`; an interrupted call is continued by the next.

    Args:
        problem: Where training starts, on what, and how.
        folder: Made if it is not there.
        progress: Called at each checkpoint.
        schedule: Minibatches and learning rates; None draws those of the configuration.

    Raises:
        DivergedError: If a gradient is not finite; the message names the step.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = problem.config
    schedule = schedule or Schedule.draw(config.training, problem.data.num_samples, config.seed)
    every = checkpoint_interval(problem, schedule)
    with problem.arithmetic():
        state, step = _resumed(problem, folder, schedule, every)
        factors = [1.0] * schedule.num_steps
        # Clip factors of the steps before an interruption are not stored: train again from step 0.
        if step and config.training.clip_norm is not None:
            state, step = OptimizerState.start(problem.initial_P, config.training), 0
        if step == 0:
            if problem.part is not None:
                write_start(folder, problem.part)
            write_state(folder, 0, state, problem.network.layout)
        while step < schedule.num_steps:
            _, state, factors[step] = take_step(problem, state, schedule, step)
            step += 1
            if step % every == 0 or step == schedule.num_steps:
                write_state(folder, step, state, problem.network.layout)
                progress(step, schedule.num_steps)
    write_schedule(folder, schedule, factors)
    write_samples(folder, problem.data, problem.sample_masses())
    write_settings(folder, config, problem.data_digest)
    finish(folder, numerics(problem))
    return Trajectory.open(folder)


def numerics(problem: Problem) -> str:
    """Return what determines approximators beyond schedule and parameters, as one word."""
    recursion = problem.config.recursion
    form = f"{recursion.hvp}/{recursion.dtype}/K={problem.chunk}/threads={problem.num_threads}"
    return f"{form}/rows={_conventions_digest(problem)}"


def _conventions_digest(problem: Problem) -> str:
    """Return a digest of the conventions and of the units."""
    config = problem.config
    sections = [config.training, config.retraining, config.recursion]
    conventions = [section.model_dump(mode="json") for section in sections]
    hasher = blake3(json.dumps([conventions, problem.data.units], sort_keys=True).encode("ascii"))
    hasher.update(problem.data.unit_of_sample.cpu().numpy().tobytes())
    return hasher.hexdigest(length=16)


def checkpoint_interval(problem: Problem, schedule: Schedule) -> int:
    """Return the steps between checkpoints."""
    return checkpoint_steps(problem.config, schedule.num_steps)


def _resumed(
    problem: Problem, folder: Path, schedule: Schedule, every: int
) -> tuple[OptimizerState, int]:
    """Return the newest readable state of an interrupted training, or its beginning."""
    for step in range(schedule.num_steps // every * every, 0, -every):
        if checkpoint_path(folder, step).is_file():
            try:
                return read_state(folder, step, problem.initial_P), step
            except TrajectoryError:
                continue
    return OptimizerState.start(problem.initial_P, problem.config.training), 0
