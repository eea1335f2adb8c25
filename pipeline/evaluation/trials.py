"""Trial deletions: an unlearned model against the retrained one, and the report's figures on both.

Trials release nothing, write no ledger entry and erase nothing.
"""

# n samples, P parameters, m deleted samples, m units

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import EvaluationConfig
from pipeline.deletion.class_terms import ClassTerms, class_terms_of
from pipeline.deletion.weights import (
    DeletionState,
    Float64Array,
    ParameterArray,
    SumRows,
    apply_deletion,
    deletion_rule,
    unit_weights,
)
from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import (
    Comparison,
    LossChange,
    compare,
    median_correlations,
    pooled,
)
from pipeline.progress import Progress, silent
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory
from pipeline.training.retraining import retrain
from storage.store import ApproximatorStore

# Enough to show a line; 10,000 points would overlap.
MOST_POINTS = 300


@dataclass(frozen=True)
class TrialSeconds:
    """Durations of one trial.

    Attributes:
        sum: Reading and summing the approximators.
        total: The same, with calling the reader and forming the new parameters.
        retraining: The retraining that the trial was compared with.
    """

    sum: float
    total: float
    retraining: float


def num_units_to_delete(entry: int | float, num_units: int) -> int:
    """Return the units that an entry of `evaluation.deletions` stands for.

    Raises:
        ConfigError: If it leaves no unit to train on.

    >>> num_units_to_delete(0.2, 1437)
    287
    """
    count = entry if isinstance(entry, int) else max(1, round(entry * num_units))
    if count >= num_units:
        raise ConfigError(
            f"evaluation.deletions holds {entry}, but the run has only {num_units} units and at "
            "least one must remain; choose fewer"
        )
    return count


def draw_forget_set(num_units: int, count: int, seed: Sequence[int]) -> Tensor:
    """Return `count` distinct unit numbers, ascending, drawn at random by `seed`."""
    generator = np.random.default_rng(list(seed))
    chosen = generator.choice(num_units, size=count, replace=False)
    return torch.from_numpy(np.sort(chosen))


def deletion_entry(
    num_units: int,
    comparisons: Sequence[Comparison],
    seconds: Sequence[TrialSeconds],
    samples: Sequence[int] = (),
) -> dict[str, Any]:
    """Return one entry of the report's `deletions`: medians over the repeats.

    Args:
        num_units: Units deleted together in each trial.
        comparisons: One per repeat, at least one.
        seconds: What each of them took.
        samples: Of each set of units, or what they weigh.
    """

    def median(values: Sequence[float]) -> float:
        return float(np.median(values))

    pearson, spearman = median_correlations([c.loss_change for c in comparisons])
    return {
        "units": num_units,
        "samples": int(median(samples)) if samples else 0,
        "repeats": len(comparisons),
        "sum_seconds": median([s.sum for s in seconds]),
        "total_seconds": median([s.total for s in seconds]),
        "retrain_seconds": median([s.retraining for s in seconds]),
        "distance": median([c.distances.unlearned for c in comparisons]),
        "no_update_distance": median([c.distances.no_update for c in comparisons]),
        "relative_error": median([c.distances.relative_error for c in comparisons]),
        "relative_error_range": _range([c.distances.relative_error for c in comparisons]),
        "loss_change_pearson": pearson,
        "loss_change_spearman": spearman,
        "loss_change_points": loss_change_points([c.loss_change for c in comparisons]),
        **_qualities(comparisons),
    }


def _qualities(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return `quality`, `test_accuracy` and all `test_figures`, medians over the repeats."""
    models = {
        "trained": [c.trained for c in comparisons],
        "unlearned": [c.unlearned for c in comparisons],
        "retrained": [c.retrained for c in comparisons],
    }
    found = {
        key: {
            model: float(np.median([quality.figures[key] for quality in qualities]))
            for model, qualities in models.items()
        }
        for key in comparisons[0].trained.figures
    }
    return {
        "quality": found[comparisons[0].trained.metric],
        "test_accuracy": found.get("accuracy"),
        "test_figures": found,
    }


def _range(values: Sequence[float]) -> list[float]:
    return [float(min(values)), float(max(values))]


def loss_change_points(changes: Sequence[LossChange]) -> list[list[float]]:
    """Return at most `MOST_POINTS` pairs (actual, predicted) for a plot, ascending.

    Sorted by value and thinned evenly: their order does not tell which samples they are.
    """
    together = pooled(changes)
    pairs = np.stack([together.actual_m, together.predicted_m], axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    if len(pairs) > MOST_POINTS:
        pairs = pairs[np.linspace(0, len(pairs) - 1, MOST_POINTS).round().astype(int)]
    return [[float(f"{value:.4g}") for value in pair] for pair in pairs.tolist()]


def local_sum(store: ApproximatorStore) -> SumRows:
    """Return a function that sums the approximators of a store in this process."""

    def sum_rows(units: list[str], weights: list[int] | None) -> tuple[Float64Array, float]:
        began = time.perf_counter()
        return store.sum_rows(units, weights), time.perf_counter() - began

    return sum_rows


def draw_sets(
    config: EvaluationConfig, candidates: Sequence[int], seed: int
) -> list[list[npt.NDArray[np.int64]]]:
    """Draw random sets of units: `repeats` sets for each entry of `evaluation.deletions`.

    Args:
        config: What to try.
        candidates: Numbers of the units whose approximators are stored.
        seed: The run's seed.

    Raises:
        ConfigError: If an entry leaves no unit.
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
    trajectory, masses, terms = run.trajectory(), problem.unit_masses(), class_terms_of(run)
    total = sum(len(entry) for entry in sets)
    results, done = [], 0
    for entry in sets:
        comparisons, seconds = [], []
        samples = [sum(masses[unit] for unit in units) for units in entry]
        for units in entry:
            comparison, took = _trial(problem, trajectory, units, sum_rows, terms)
            comparisons.append(comparison)
            seconds.append(took)
            done += 1
            progress(done, total)
        results.append(deletion_entry(len(entry[0]), comparisons, seconds, samples))
    return results


def _trial(
    problem: Problem,
    trajectory: Trajectory,
    units: npt.NDArray[np.int64],
    sum_rows: SumRows,
    terms: ClassTerms | None,
) -> tuple[Comparison, TrialSeconds]:
    trained_P = trajectory.trained()
    began = time.perf_counter()
    vector_P, sum_seconds = unlearn(problem, units, trained_P.numpy(), sum_rows, terms)
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
    terms: ClassTerms | None = None,
) -> tuple[ParameterArray, float]:
    """Return the parameters without the units, and the seconds that reading and summing took."""
    data = problem.data
    masses = problem.unit_masses()
    counts = [masses[unit] for unit in units]
    rule = deletion_rule(problem.config, sum(masses))
    names = [data.units[unit] for unit in units]
    total_P, seconds = sum_rows(names, unit_weights(rule, counts))
    masses_C = None if terms is None else terms.masses_of(units.tolist())
    state = DeletionState(total_P, sum(counts), masses_C=masses_C)
    variances = problem.network.layout.variances()
    return apply_deletion(rule, trained_P, state, variances, terms), seconds
