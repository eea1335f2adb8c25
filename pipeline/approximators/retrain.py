"""Retraining: train again without the deleted, as a generation of its own (docs/method.md, section 9).

The schedule is the first training's without the samples of everyone deleted, those of waiting requests
included; minibatches left empty are passed over. Start, order and rates are the same, so the model is
that of a training that never saw them. Its approximators start at zero.

While it trains, the run's ledger is not locked: the old model serves, and requests wait. The deletions
of the batch are committed once, when the new generation is whole, and the deleted are erased then.
"""

# n samples, P parameters

import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch

from pipeline.approximators.precompute import PrecomputeJob
from pipeline.approximators.repair import is_recorded_as
from pipeline.approximators.retraining_mark import is_retraining, mark_retraining
from pipeline.deletion.delete import accept_for_retraining, delete, open_run, refuse_without_rows
from pipeline.deletion.requests import DeletionRequest, Receipt
from pipeline.errors import ConfigError, DivergedError, ErrorLimitError, GivenUpError
from pipeline.progress import Progress, silent
from pipeline.run.directory import RunDirectory, exclusive
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from pipeline.run.trajectory import Trajectory
from pipeline.training.train import record
from storage.errors import WriterConflictError
from storage.ledger_records import RETRAINED, Retraining
from storage.store import ApproximatorStore

GIVEN_UP = "requests that arrived meanwhile wait: the approximators were given up"


@dataclass(frozen=True)
class Retrained:
    """The result of a retraining.

    Attributes:
        generation: Number of the retrained model, from which deletions now start.
        release: The release that it is.
        num_samples: n', the samples it was trained on.
        num_steps: Steps taken.
        waiting: One line for each batch of requests that arrived meanwhile and cannot be released.
    """

    generation: int
    release: int
    num_samples: int
    num_steps: int
    waiting: tuple[str, ...] = ()


@dataclass
class RetrainingJob:
    """A retraining whose model is trained.

    Attributes:
        run: The run.
        job: Its approximators; None where they are given up, or the retraining was only completed.
        result: Set once it is committed.
    """

    run: RunDirectory
    job: PrecomputeJob | None
    result: Retrained | None = None


def retrain(run: RunDirectory, *, final: bool = False, progress: Progress = silent) -> Retrained:
    """Train without the deleted and compute new approximators, in this process.

    Repeat an interrupted call to continue it.

    Args:
        run: A trained run whose store is laid out.
        final: Give the approximators up instead: nothing more can be deleted from the run until
            `unlearn precompute` computes those of the retrained model.
        progress: Called after each block of units.

    Raises:
        ConfigError: If the run has no store yet.
        RequestError: If there is nothing to retrain without.
        DivergedError: If the training or an approximator diverges; the old model stays in use.
        WriterConflictError: If another driver is at work on the run.
    """
    with under_retraining(run, final=final) as retraining:
        if retraining.job is not None:
            retraining.job.compute(progress)
    assert retraining.result is not None
    return retraining.result


@contextmanager
def under_retraining(
    run: RunDirectory, *, final: bool = False, progress: Progress = silent
) -> Iterator[RetrainingJob]:
    """Train, let the caller compute the job of the returned context, and commit at its end.

    Args:
        run: As `retrain`.
        final: As `retrain`.
        progress: Called at each checkpoint of the training.

    Raises:
        As `retrain`. Nothing is committed if the caller raises, or leaves blocks uncomputed.
    """
    with exclusive(run):
        run.refuse_pruned()
        refuse_without_rows(run)
        store = ApproximatorStore.open(run.store_url, mode="r+")
        begun = _begin(run, store, final=final)
        if isinstance(begun, Retrained):
            yield RetrainingJob(run, None, begun)
            return
        retraining, names = begun
        problem = run.problem()
        try:
            trajectory = _trained(run, problem, store, retraining, names, progress)
        except DivergedError as error:
            raise DivergedError(
                f"{error}; `unlearn retrain {run.path} --abandon` gives the retraining up"
            ) from error
        store.begin_generation()
        under_way = RetrainingJob(run, None if final else PrecomputeJob.of(run, problem))
        yield under_way
        if final:
            store.give_up_rows()
        if store.building is None:
            under_way.result = _commit(run, retraining, trajectory)


def _begin(
    run: RunDirectory, store: ApproximatorStore, *, final: bool
) -> Retrained | tuple[Retraining, Collection[str]]:
    """Accept the retraining, or go on with it; one that only lacked its commit is completed."""
    with open_run(run, store) as releases:
        if releases.completed:
            done = releases.last_release()
            if done is not None and done.kind == RETRAINED:
                trajectory = run.trajectory(store.generation)
                return _result(trajectory, store.generation, done.release)
        retraining, names = releases.begin_retraining(final=final)
    return retraining, names.values()


def _trained(
    run: RunDirectory,
    problem: Problem,
    store: ApproximatorStore,
    retraining: Retraining,
    names: Collection[str],
    progress: Progress,
) -> Trajectory:
    """Train without the deleted; go on with what an interrupted call has trained."""
    schedule = remaining_schedule(problem, run.trajectory().schedule, store, names)
    generation = retraining.generation
    folder = run.trajectory_folder_of(generation)
    if not is_retraining(run, generation, schedule):
        # What lies there is a repair's that was not finished, or another retraining's.
        store.abandon_generation()
        run.continuation_path.unlink(missing_ok=True)
        (folder / "digest").unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        mark_retraining(run, generation, schedule)
    # What no step changes is recorded with the first training.
    whole = replace(problem, part=None)
    if is_recorded_as(folder, whole, schedule):
        return Trajectory.open(folder)
    (folder / "digest").unlink(missing_ok=True)
    store.abandon_generation()
    return record(whole, folder, progress, schedule)


def remaining_schedule(
    problem: Problem, schedule: Schedule, store: ApproximatorStore, names: Collection[str]
) -> Schedule:
    """Return the first training's schedule without the samples of deleted units.

    Args:
        problem: The run.
        schedule: Of the first training.
        store: It holds the names of the units that are not deleted.
        names: Of those, the units that the retraining deletes.

    Raises:
        ConfigError: If no sample remains.
    """
    deleted = set(names)
    live = torch.tensor([bool(name) and name not in deleted for name in store.units])
    kept_n = live[problem.data.unit_of_sample.cpu()]
    steps = [positions[kept_n[positions]] for positions in schedule.sample_ids]
    taken = [step for step, positions in enumerate(steps) if len(positions)]
    if not taken:
        raise ConfigError("no training sample remains: discard the model, or train on other data")
    return Schedule(
        tuple(steps[step] for step in taken),
        tuple(schedule.learning_rates[step] for step in taken),
    )


def _commit(run: RunDirectory, retraining: Retraining, trajectory: Trajectory) -> Retrained:
    """Commit the retrained model's release; carry out what waited for it."""
    # Opened anew: the store has another generation now, and opening completes the batch.
    store = ApproximatorStore.open(run.store_url, mode="r+")
    with open_run(run, store) as releases:
        waiting = (GIVEN_UP,) if retraining.final else tuple(releases.process_waiting())
        waiting = waiting if releases.num_waiting() else ()
    return replace(_result(trajectory, retraining.generation, retraining.release), waiting=waiting)


def _result(trajectory: Trajectory, generation: int, release: int) -> Retrained:
    schedule = trajectory.schedule
    return Retrained(generation, release, schedule.num_samples, schedule.num_steps)


def abandon_retraining(run: RunDirectory) -> bool:
    """Give up a retraining; its requests wait again. Return whether one was under way.

    Raises:
        WriterConflictError: If a driver is at work on it.
    """
    with exclusive(run):
        store = ApproximatorStore.open(run.store_url, mode="r+")
        with open_run(run, store) as releases:
            retraining = releases.retraining()
            if retraining is None:
                return False
            store.abandon_generation()
            folder = run.trajectory_folder_of(retraining.generation)
            (folder / "digest").unlink(missing_ok=True)
            if folder.exists():
                shutil.rmtree(folder)
            run.retraining_path.unlink(missing_ok=True)
            releases.abandon_retraining()
    return True


def delete_or_retrain(
    run: RunDirectory,
    request: DeletionRequest,
    retrain_run: Callable[[RunDirectory], object] = retrain,
) -> Receipt:
    """Delete units; where the measured error is above the limit, retrain without them.

    Args:
        run: As for `delete`.
        request: What is asked for; an id is drawn if it has none.
        retrain_run: Carries out a retraining of the run.

    Raises:
        As `delete` and `retrain`. An interrupted call with an id is continued by repeating it.
    """
    asked = replace(request, request_id=request.request_id or uuid.uuid4().hex)
    try:
        receipt = delete(run, asked)
    except (ErrorLimitError, GivenUpError):
        if asked.dry_run:
            raise
        accept_for_retraining(run, asked)
        retrain_run(run)
        # The batch is carried out; asked once more, only to hear how it went.
        return replace(delete(run, asked), repeated=False)
    if receipt.release is not None or asked.dry_run or not receipt.units_deleted:
        return receipt
    # A retraining is under way: it is continued, unless another process is at it.
    with suppress(WriterConflictError):
        retrain_run(run)
        return delete(run, asked)
    return receipt
