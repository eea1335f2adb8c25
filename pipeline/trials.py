"""Trial deletions: what the stored rows foretell, beside what retraining really gives.

Trials release nothing, write no ledger entry and erase nothing.
"""

# m units, n samples, P parameters

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config import EvaluationConfig
from pipeline.deletion import DeletionState, ParameterArray, apply_deletion, unit_weights
from pipeline.evaluation.trial import (
    Comparison,
    TrialSeconds,
    compare,
    deletion_entry,
    num_units_to_delete,
)
from pipeline.problem import Problem
from pipeline.progress import Progress, silent
from pipeline.retraining import retrain
from pipeline.rundir import RunDirectory
from pipeline.trajectory import Trajectory

SumRows = Callable[[list[str], list[int] | None], tuple[npt.NDArray[np.float64], float]]
"""Sums rows by unit name and weight; returns the sum (P,) and the seconds it took."""


def draw_sets(
    config: EvaluationConfig, candidates: Sequence[int], seed: int
) -> list[list[npt.NDArray[np.int64]]]:
    """Draw random sets of units: `repeats` sets for each entry of `evaluation.deletions`.

    Args:
        config: What to try.
        candidates: Numbers of the units whose rows are there.
        seed: The run's seed.

    Raises:
        ConfigError: If an entry leaves nobody.
    """
    generator = np.random.default_rng([seed, 2])
    sizes = [num_units_to_delete(entry, len(candidates)) for entry in config.deletions]
    return [
        [np.sort(generator.choice(candidates, size, replace=False)) for _ in range(config.repeats)]
        for size in sizes
    ]


def run_trials(
    run: RunDirectory,
    problem: Problem,
    sets: Sequence[Sequence[npt.NDArray[np.int64]]],
    sum_rows: SumRows,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Return one report entry per entry of `evaluation.deletions`, medians over its sets."""
    trajectory = run.trajectory()
    total = sum(len(entry) for entry in sets)
    results, done = [], 0
    for entry in sets:
        comparisons, seconds = [], []
        for units in entry:
            comparison, took = _trial(problem, trajectory, units, sum_rows)
            comparisons.append(comparison)
            seconds.append(took)
            done += 1
            progress(done, total)
        results.append(deletion_entry(len(entry[0]), comparisons, seconds))
    return results


def _trial(
    problem: Problem, trajectory: Trajectory, units: npt.NDArray[np.int64], sum_rows: SumRows
) -> tuple[Comparison, TrialSeconds]:
    trained_P = trajectory.trained()
    began = time.perf_counter()
    vector_P, sum_seconds = unlearn(problem, units, trained_P.numpy(), sum_rows)
    unlearned = time.perf_counter()
    forgotten_n = problem.data.samples_of(torch.from_numpy(units).to(problem.device))
    retrained_P = retrain(problem, trajectory.schedule, forgotten_n)
    seconds = TrialSeconds(sum_seconds, unlearned - began, time.perf_counter() - unlearned)
    unlearned_P = torch.from_numpy(vector_P)
    return compare(problem, trained_P, unlearned_P, retrained_P, forgotten_n), seconds


def unlearn(
    problem: Problem,
    units: npt.NDArray[np.int64],
    trained_P: ParameterArray,
    sum_rows: SumRows,
) -> tuple[ParameterArray, float]:
    """Return the parameters without the units, and the seconds that reading and summing took."""
    data = problem.data
    counts = [data.sample_counts[unit] for unit in units]
    rule = problem.config.deletion_rule(data.num_samples)
    names = [data.units[unit] for unit in units]
    total_P, seconds = sum_rows(names, unit_weights(rule, counts))
    return apply_deletion(rule, trained_P, DeletionState(total_P, sum(counts))), seconds
