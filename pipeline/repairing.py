"""Repair: fine-tune on what remains, and keep the run deletable (docs/method.md, section 9).

After a large deletion the model v = w_T + f(M) S is trained on for some epochs on the remaining data,
with the same step. The row of every remaining unit is carried through these steps, starting from
what deleting that unit as well would do to v:

    batch:                 a'_u = a_u
    remaining, left out:   a'_u = ((n - n_u) a_u + (n_u / n') S) / (n' - n_u)
    remaining, included:   a'_u = (n - 1) / (n' - 1) (a_u + (n_u / n') S)

with n' = n - M samples left. Sums of these start where sums of the old rows stood, so deletions before
and after the repair add up as if made together.

The fine-tuning is a trajectory of its own, `trajectory-<generation>`; the rows are a new generation
of the store, which takes the old one's place only when it is whole. Until then the old one serves.
"""

# n samples, m units of a block, P parameters

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pipeline.deletion import DeletionRule, DeletionState, Float32Array, apply_deletion
from pipeline.errors import ConfigError
from pipeline.forgetting import opened, run_facts
from pipeline.problem import Problem
from pipeline.progress import Progress, silent
from pipeline.recollection import BlockRecursion
from pipeline.rundir import RunDirectory
from pipeline.schedule import Schedule
from pipeline.training import record
from pipeline.trajectory import Trajectory
from storage.store import ApproximatorStore


@dataclass(frozen=True)
class Repaired:
    """What a repair did.

    Attributes:
        generation: Number of the repaired model; deletions now start from it.
        num_samples: n', the samples it was fine-tuned on.
        num_steps: Steps taken.
    """

    generation: int
    num_samples: int
    num_steps: int


def repair(
    run: RunDirectory,
    epochs: int,
    learning_rate: float | None = None,
    progress: Progress = silent,
) -> Repaired:
    """Fine-tune on the remaining data and carry all remaining rows along; repeat to continue.

    Args:
        run: A run whose rows are all stored, whatever was deleted of it.
        epochs: Passes over the remaining data.
        learning_rate: Of the first step, decaying as in training; None takes training's.
        progress: Called after each block of units.

    Raises:
        ConfigError: If rows are still missing.
        DivergedError: If the fine-tuning or a row diverges; the old generation is whole.
    """
    store = _complete_store(run)
    facts = run_facts(run, store)
    with opened(run, store) as releases:
        state = releases.state()
        start_P = torch.from_numpy(apply_deletion(facts.rule, facts.trained_P, state))
        problem = run.problem()
        problem = replace(problem, initial_P=start_P.to(problem.initial_P), part=None)
        trajectory = _fine_tuned(run, problem, store, (epochs, learning_rate))
        store.begin_generation()
        waiting = sorted(set(range(store.num_blocks)) - store.finished_blocks())
        for done, block in enumerate(waiting):
            rows_mP = _carried(problem, trajectory, store, block, (facts.rule, state))
            store.write_rows(block, rows_mP)
            progress(done + 1, len(waiting))
        store.merge()
    return Repaired(store.generation, trajectory.schedule.num_samples, trajectory.num_steps)


def _complete_store(run: RunDirectory) -> ApproximatorStore:
    if run.is_pruned():
        raise ConfigError(f"{run.path} was pruned: what a repair starts from is gone; train again")
    if not run.manifest_exists() and run.config.storage.url is None:
        raise ConfigError(f"{run.path} has no approximators yet; run `unlearn precompute` first")
    store = ApproximatorStore.open(run.store_url, mode="r+")
    if any(store.state(name) == "absent" for name in store.units if name):
        raise ConfigError(f"rows of {run.path} are still missing; run `unlearn precompute` first")
    return store


def _fine_tuned(
    run: RunDirectory,
    problem: Problem,
    store: ApproximatorStore,
    asked: tuple[int, float | None],
) -> Trajectory:
    """Train on from `problem.initial_P`; keep what an interrupted repair of the same kind left."""
    schedule = _schedule(problem, store, asked)
    folder = run.trajectory_folder_of(store.generation + 1)
    if _is_of_this_repair(folder, problem, schedule):
        return Trajectory.open(folder)
    # Rows of another start, or trained on people deleted since, must not be continued.
    store.abandon_generation()
    if folder.exists():
        shutil.rmtree(folder)
    return record(problem, folder, schedule=schedule)


def _schedule(
    problem: Problem, store: ApproximatorStore, asked: tuple[int, float | None]
) -> Schedule:
    epochs, learning_rate = asked
    live = torch.tensor([bool(name) for name in store.units])
    remaining = torch.nonzero(live[problem.data.unit_of_sample.cpu()]).squeeze(1)
    training = problem.config.training
    training = training.model_copy(
        update={"epochs": epochs, "learning_rate": learning_rate or training.learning_rate}
    )
    # Another order than the training's, and than that of an earlier repair.
    seed = problem.config.seed + store.generation + 1
    drawn = Schedule.draw(training, len(remaining), seed)
    return replace(drawn, sample_ids=tuple(remaining[places] for places in drawn.sample_ids))


def _is_of_this_repair(folder: Path, problem: Problem, schedule: Schedule) -> bool:
    if not (folder / "digest").is_file():
        return False
    found = Trajectory.open(folder)
    start_P = found.state_before(0).parameters_P.to(problem.initial_P)
    return (
        torch.equal(start_P, problem.initial_P)
        and found.schedule.learning_rates == schedule.learning_rates
        and all(
            torch.equal(mine, theirs)
            for mine, theirs in zip(found.schedule.sample_ids, schedule.sample_ids, strict=True)
        )
    )


def _carried(
    problem: Problem,
    trajectory: Trajectory,
    store: ApproximatorStore,
    block: int,
    deleted: tuple[DeletionRule, DeletionState],
) -> Float32Array:
    """Return the rows of a block at the end of the fine-tuning; those of erased units are zero."""
    units = store.block_units(block)
    names, counts = store.units, store.samples_per_unit()
    rows_mP = np.zeros((len(units), problem.num_parameters), np.float32)
    for place, unit in enumerate(units):
        if names[unit]:
            row_P = store.read_rows([unit])[0]
            rows_mP[place] = continued_row(row_P, counts[names[unit]], *deleted)
    recursion = BlockRecursion(problem, trajectory, units, rows_mP)
    recursion.advance(trajectory.num_steps)
    carried_mP = recursion.rows()
    carried_mP[[not names[unit] for unit in units]] = 0.0
    return carried_mP


def continued_row(
    row_P: Float32Array, num_owned: int, rule: DeletionRule, state: DeletionState
) -> Float32Array:
    """Return a'_u, what deleting unit u as well does to the model that is repaired.

    Args:
        row_P: a_u, float32 (P,).
        num_owned: n_u, the unit's samples.
        rule: Of the old generation.
        state: S and M of the old generation.
    """
    if rule.denominator == "batch":
        return row_P
    left = rule.num_samples - state.num_deleted_samples
    shared_P = state.weighted_sum_P * (num_owned / left)
    if rule.own_rows == "left-out":
        moved_P = ((rule.num_samples - num_owned) * row_P.astype(np.float64) + shared_P) / (
            left - num_owned
        )
    else:
        moved_P = (rule.num_samples - 1) / (left - 1) * (row_P + shared_P)
    return np.asarray(moved_P, dtype=np.float32)
