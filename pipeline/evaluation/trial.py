"""Trial deletions: an unlearned model beside the retrained one, and the figures that a report takes.

A trial compares; it releases nothing, erases nothing and writes no ledger entry.
"""

# n samples, P parameters, m deleted samples

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.evaluation.accuracy import Quality, held_out_quality, sample_losses
from pipeline.evaluation.distance import Distances, distances
from pipeline.evaluation.loss_change import LossChange, median_correlations, pooled
from pipeline.problem import Problem

# Enough to see a line; a report of 10,000 dots is a black square.
MOST_POINTS = 300


@dataclass(frozen=True)
class Comparison:
    """One trial: trained, unlearned and retrained parameters against each other.

    Attributes:
        distances: To the retrained parameters.
        loss_change: On the deleted samples.
        trained: Quality on the test samples.
        unlearned: Quality on the test samples.
        retrained: Quality on the test samples.
    """

    distances: Distances
    loss_change: LossChange
    trained: Quality
    unlearned: Quality
    retrained: Quality


@dataclass(frozen=True)
class TrialSeconds:
    """What one trial took.

    Attributes:
        sum: Reading and summing the rows and forming the new parameters.
        total: The same with everything a request pays, such as verifying stored bytes.
        retraining: The real retraining that the trial was compared with.
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


def compare(
    problem: Problem,
    trained_P: Tensor,
    unlearned_P: Tensor,
    retrained_P: Tensor,
    forgotten_n: Tensor,
) -> Comparison:
    """Compare unlearned with retrained parameters.

    Args:
        problem: Data and network.
        trained_P: w_T.
        unlearned_P: Parameters after deletion, without noise.
        retrained_P: Parameters of a real retraining without the forgotten samples.
        forgotten_n: Mask (n,) of the forgotten training samples.
    """
    models = [w_P.to(problem.initial_P) for w_P in (trained_P, unlearned_P, retrained_P)]
    sample_ids = torch.nonzero(forgotten_n).squeeze(1).to(problem.device)
    with problem.arithmetic():
        before_m, predicted_m, actual_m = (sample_losses(problem, w, sample_ids) for w in models)
        trained, unlearned, retrained = (held_out_quality(problem, w) for w in models)
    change = LossChange((predicted_m - before_m).numpy(), (actual_m - before_m).numpy())
    apart = distances(trained_P.cpu(), unlearned_P.cpu(), retrained_P.cpu())
    return Comparison(apart, change, trained, unlearned, retrained)


def deletion_entry(
    num_units: int, comparisons: Sequence[Comparison], seconds: Sequence[TrialSeconds]
) -> dict[str, Any]:
    """Return one entry of the report's `deletions`: medians over the repeats.

    Args:
        num_units: Units deleted together in each trial.
        comparisons: One per repeat, at least one.
        seconds: What each of them took.
    """

    def median(values: Sequence[float]) -> float:
        return float(np.median(values))

    pearson, spearman = median_correlations([c.loss_change for c in comparisons])
    return {
        "units": num_units,
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
        "test_accuracy": {
            "trained": median([c.trained.accuracy for c in comparisons]),
            "unlearned": median([c.unlearned.accuracy for c in comparisons]),
            "retrained": median([c.retrained.accuracy for c in comparisons]),
        },
    }


def _range(values: Sequence[float]) -> list[float]:
    return [float(min(values)), float(max(values))]


def loss_change_points(changes: Sequence[LossChange]) -> list[list[float]]:
    """Return at most `MOST_POINTS` pairs (actual, predicted) for a plot, ascending.

    Sorted by value and thinned evenly: their order says nothing about who they are.
    """
    together = pooled(changes)
    pairs = np.stack([together.actual_m, together.predicted_m], axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    if len(pairs) > MOST_POINTS:
        pairs = pairs[np.linspace(0, len(pairs) - 1, MOST_POINTS).round().astype(int)]
    return [[float(f"{value:.4g}") for value in pair] for pair in pairs.tolist()]
