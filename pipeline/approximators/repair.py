"""Repair: fine-tune on the remaining data and update the approximators (docs/method.md, section 9).

After a large deletion the model v = w_T + f(M) S is trained on for some epochs on the remaining data,
with the same step. The approximator of every remaining unit is propagated through these steps,
starting at the effect of deleting that unit as well on v (`continuation.py`).

The fine-tuning is a trajectory of its own, `trajectory-<generation>`; the approximators are a new
generation of the store, which replaces the old one only when it is complete; until then deletions
use the old one.
"""

# n samples, P parameters

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pipeline.approximators.continuation import Continuation
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.deletion.delete import deletion_context, open_run, refuse_without_rows
from pipeline.deletion.weights import apply_deletion
from pipeline.errors import ConfigError, TrajectoryError
from pipeline.progress import Progress, silent
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule, without_schedule
from pipeline.run.trajectory import Trajectory
from pipeline.training.train import record
from storage.store import ApproximatorStore


@dataclass(frozen=True)
class Repaired:
    """The result of a repair.

    Attributes:
        generation: Number of the repaired model, from which deletions now start.
        num_samples: n', the samples it was fine-tuned on.
        num_steps: Steps taken.
    """

    generation: int
    num_samples: int
    num_steps: int

    @staticmethod
    def of(job: PrecomputeJob) -> "Repaired":
        """Return the result of a finished repair job."""
        schedule = job.trajectory.schedule
        return Repaired(job.store.generation, schedule.num_samples, schedule.num_steps)


def repair(
    run: RunDirectory,
    epochs: int,
    learning_rate: float | None = None,
    progress: Progress = silent,
) -> Repaired:
    """Fine-tune on the remaining data and propagate all remaining approximators, in this process.

    Repeat an interrupted call to continue it.

    Args:
        run: A run whose approximators are all stored or erased.
        epochs: Passes over the remaining data.
        learning_rate: Of the first step, decaying as in training; None takes training's.
        progress: Called after each block of units.

    Raises:
        ConfigError: If approximators are still missing.
        WaitingError: If an accepted deletion cannot be executed.
        DivergedError: If the fine-tuning or an approximator diverges; the old generation stays in use.
    """
    with under_repair(run, epochs, learning_rate) as job:
        job.compute(progress)
    return Repaired.of(job)


@contextmanager
def under_repair(
    run: RunDirectory,
    epochs: int,
    learning_rate: float | None = None,
    progress: Progress = silent,
) -> Iterator[PrecomputeJob]:
    """Fine-tune, and block the run's deletions while the job of the returned context is computed.

    A unit deleted meanwhile would have been trained on, and would affect all new approximators.

    Args:
        run: As `repair`.
        epochs: As `repair`.
        learning_rate: As `repair`.
        progress: Called after each step of the fine-tuning.
    """
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        raise ConfigError(f"expected a learning rate above 0, found {learning_rate}")
    store = _complete_store(run)
    facts = deletion_context(run, store)
    with open_run(run, store) as releases:
        # A repair trains on all units that have an approximator, and declares no sensitivity.
        releases.settle()
        state = releases.state()
        start_P = torch.from_numpy(
            apply_deletion(facts.rule, facts.trained_P, state, facts.variances, facts.terms)
        )
        problem = run.problem()
        moved = replace(problem, initial_P=start_P.to(problem.initial_P), part=None)
        trajectory = _fine_tuned(run, moved, store, (epochs, learning_rate), progress)
        # Before the generation: a worker that sees one under way reads the continuation.
        Continuation(facts.rule, state).write(run.continuation_path, trajectory)
        store.begin_generation()
        yield PrecomputeJob.of(run, problem)
        if store.building is None:
            run.continuation_path.unlink(missing_ok=True)


def _complete_store(run: RunDirectory) -> ApproximatorStore:
    if run.is_pruned():
        raise ConfigError(
            f"{run.path} was pruned: the files that a repair starts from are removed; train again"
        )
    refuse_without_rows(run)
    store = ApproximatorStore.open(run.store_url, mode="r+")
    if "absent" in store.states:
        raise ConfigError(
            f"approximators of {run.path} are still missing; run `unlearn precompute` first"
        )
    return store


def _fine_tuned(
    run: RunDirectory,
    problem: Problem,
    store: ApproximatorStore,
    asked: tuple[int, float | None],
    progress: Progress,
) -> Trajectory:
    """Train on from `problem.initial_P`; reuse the trajectory of an interrupted repair."""
    schedule = _schedule(problem, store, asked)
    folder = run.trajectory_folder_of(store.generation + 1)
    if is_recorded_as(folder, problem, schedule):
        return Trajectory.open(folder)
    # Approximators of another start, or of units deleted since, must not be continued.
    store.abandon_generation()
    # The digest first: a folder without one belongs to no repair, whatever files it still has.
    (folder / "digest").unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    return record(problem, folder, progress, schedule)


def _schedule(
    problem: Problem, store: ApproximatorStore, asked: tuple[int, float | None]
) -> Schedule:
    epochs, learning_rate = asked
    live = torch.tensor([bool(name) for name in store.units])
    remaining = torch.nonzero(live[problem.data.unit_of_sample.cpu()]).squeeze(1)
    training = without_schedule(problem.config.training)
    training = training.model_copy(
        update={"epochs": epochs, "learning_rate": learning_rate or training.learning_rate}
    )
    # Another order than the training's, and than that of an earlier repair.
    seed = problem.config.seed + store.generation + 1
    drawn = Schedule.draw(training, len(remaining), seed)
    return replace(drawn, sample_ids=tuple(remaining[positions] for positions in drawn.sample_ids))


def is_recorded_as(folder: Path, problem: Problem, schedule: Schedule) -> bool:
    """Whether a folder holds a finished trajectory from this start through this schedule."""
    if not (folder / "digest").is_file():
        return False
    try:
        found = Trajectory.open(folder)
    except TrajectoryError:
        return False  # damaged; fine-tuning is repeated
    start_P = found.parameters_before(0).to(problem.initial_P)
    return (
        torch.equal(start_P, problem.initial_P)
        and found.schedule.learning_rates == schedule.learning_rates
        and all(
            torch.equal(mine, theirs)
            for mine, theirs in zip(found.schedule.sample_ids, schedule.sample_ids, strict=True)
        )
    )
