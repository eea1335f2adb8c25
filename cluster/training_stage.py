"""Training as a stage of a run: done once, kept, held by one driver at a time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.console import Reporter
from pipeline.approximators import check_place
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.measurements import record_measurements
from pipeline.problem import Problem
from pipeline.rundir import RunDirectory
from pipeline.training import record
from pipeline.trajectory import Trajectory
from storage.run_lock import RunLock
from storage.store import ApproximatorStore


@contextmanager
def exclusive(run: RunDirectory) -> Iterator[None]:
    """Hold the run for one driver at a time; the refusal names who holds it."""
    with RunLock(run.path / "driver.lock"):
        yield


def train(config: RunConfig, out: Path, reporter: Reporter) -> tuple[RunDirectory, Problem]:
    """Train and record the trajectory, unless that is done."""
    run, problem = RunDirectory.prepare(out, config)
    if not run.is_trained():
        check_place(run)
        with exclusive(run):
            train_into(run, problem, reporter)
    return run, problem


def train_into(run: RunDirectory, problem: Problem, reporter: Reporter) -> Trajectory:
    """Record the trajectory of a run that has none yet."""
    began = time.perf_counter()
    with reporter.stage("training") as progress:
        trajectory = record(problem, run.trajectory_folder, progress)
    record_measurements(
        run, "train", {"seconds": time.perf_counter() - began, "num_steps": trajectory.num_steps}
    )
    return trajectory


def refuse_repaired(run: RunDirectory, store: ApproximatorStore) -> None:
    """Raise ConfigError if the rows are no longer those of the training."""
    if store.generation:
        raise ConfigError(
            f"{run.path} was repaired: its rows belong to the repaired model, and trials and audits "
            "compare with the trained one; use a fresh run of the same configuration"
        )
