"""Trial deletions from one class, of a run with class terms: their error with the terms and without."""

# m units

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.deletion.class_terms import ClassTerms
from pipeline.deletion.weights import SumRows
from pipeline.evaluation.comparison import distances
from pipeline.evaluation.trials import unlearn
from pipeline.progress import Progress, silent
from pipeline.run.class_masses import MassTable
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory
from pipeline.training.retraining import retrain

NUM_SETS = 3
# Of all units, in one set: where sums of one class were measured to be twice as far off.
SHARE = 0.05


def draw_class_sets(
    problem: Problem, terms: ClassTerms, candidates: Sequence[int]
) -> list[npt.NDArray[np.int64]]:
    """Draw sets of equal size, each from the units that count to one class.

    Args:
        problem: The run.
        terms: Their classes are drawn from.
        candidates: Numbers of the units whose approximators are stored.
    """
    generator = np.random.default_rng([problem.config.seed, 13])
    members = MassTable.of(problem.data, problem.sample_masses()).members()
    stored = {n: np.intersect1d(members[n], candidates) for n in terms.numbers if n in members}
    # Half of the class's units at most: retraining knows the class.
    wanted = max(2, round(SHARE * len(problem.data.units)))
    sizes = {n: min(wanted, len(units) // 2) for n, units in stored.items()}
    fitting = [n for n, size in sizes.items() if size >= 1]
    chosen = generator.permutation(np.array(fitting, np.int64))[:NUM_SETS].tolist()
    size = min((sizes[n] for n in chosen), default=0)
    return [np.sort(generator.choice(stored[n], size, replace=False)) for n in chosen]


def run_class_trials(
    problem: Problem,
    trajectory: Trajectory,
    terms: ClassTerms,
    candidates: Sequence[int],
    sum_rows: SumRows,
    progress: Progress = silent,
) -> dict[str, Any] | None:
    """Return the medians over sets of one class each; None where no set can be drawn."""
    sets = draw_class_sets(problem, terms, candidates)
    trained_P = trajectory.trained()
    errors: dict[str, list[float]] = {"with": [], "without": []}
    for done, units in enumerate(sets):
        mask_n = problem.data.samples_of(torch.from_numpy(units).to(problem.device))
        retrained_P = retrain(problem, trajectory.schedule, mask_n)
        for name, used in (("with", terms), ("without", None)):
            found_P, _ = unlearn(problem, units, trained_P.numpy(), sum_rows, used)
            apart = distances(trained_P, torch.from_numpy(found_P), retrained_P.cpu())
            errors[name].append(apart.relative_error)
        progress(done + 1, len(sets))
    found = errors["with"]
    if not found or not np.isfinite([*found, *errors["without"]]).all():
        return None
    return {
        "units": len(sets[0]),
        "sets": len(sets),
        "relative_error": median(found),
        "relative_error_range": [min(found), max(found)],
        "without_terms": median(errors["without"]),
    }
