"""The Wine task of the paper's rebuttal: mean distance to retraining over six seeds, by convention.

    python benchmarks/wine.py

Every distance is to a retraining with the mean over what remains, whatever convention the rows
were computed for: that is what deletions are compared with.
"""

import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import torch

from pipeline.deletion.weights import deletion_rule

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.approximators.block import BlockRecursion
from pipeline.config import RunConfig
from pipeline.deletion.weights import DeletionState, apply_deletion, unit_weights
from pipeline.run.problem import Problem
from pipeline.training.retraining import retrain
from pipeline.training.train import record

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (42, 124, 3407, 114514, 5, 1)
SIZES = (7, 14)
HESSIANS = {"left-out": "leave-one-out", "included": "full-batch"}


def distances(overrides: list[str]) -> dict[int, tuple[float, float]]:
    """Return (ours, no unlearning) by number of deleted samples, for one seed."""
    problem = Problem.of(RunConfig.load(ROOT / "configs" / "wine.yaml", overrides))
    seed = problem.config.seed
    remaining = ["retraining.denominator=remaining", f"seed={seed}"]
    goal = Problem.of(RunConfig.load(ROOT / "configs" / "wine.yaml", remaining))
    num_samples = problem.data.num_samples
    rule = deletion_rule(problem.config, num_samples)
    with tempfile.TemporaryDirectory() as folder:
        trajectory = record(problem, Path(folder))
        block = BlockRecursion(problem, trajectory, range(num_samples))
        block.advance(trajectory.num_steps)
        rows_NP, trained_P = block.rows().astype(np.float64), trajectory.trained()
    result = {}
    for size in SIZES:
        units = np.random.default_rng([seed, 2]).choice(num_samples, size, replace=False)
        weights_m = np.array(unit_weights(rule, [1] * size) or [1] * size, dtype=np.float64)
        state = DeletionState(weights_m @ rows_NP[units], size)
        unlearned_P = torch.from_numpy(apply_deletion(rule, trained_P.numpy(), state))
        forgotten_n = problem.data.samples_of(torch.from_numpy(units))
        retrained_P = retrain(goal, trajectory.schedule, forgotten_n)
        result[size] = (
            float(torch.linalg.vector_norm(unlearned_P - retrained_P)),
            float(torch.linalg.vector_norm(trained_P - retrained_P)),
        )
    return result


def main() -> None:
    """Print one row per convention."""
    print("| denominator | Hessian | curvature | 7 samples (5%) | 14 samples (10%) |")
    print("|---|---|---|---|---|")
    no_update: dict[int, float] = {}
    kinds = product(("remaining", "batch"), HESSIANS, ("softplus", "none"))
    for denominator, own_rows, curvature in kinds:
        overrides = [
            f"retraining.denominator={denominator}",
            f"recursion.own_rows={own_rows}",
            f"recursion.relu_curvature={curvature}",
        ]
        runs = [distances([*overrides, f"seed={seed}"]) for seed in SEEDS]
        ours = [np.mean([run[size][0] for run in runs]) for size in SIZES]
        no_update = {size: float(np.mean([run[size][1] for run in runs])) for size in SIZES}
        print(
            f"| {denominator} | {HESSIANS[own_rows]} | {curvature} | {ours[0]:.5f} | {ours[1]:.5f} |"
        )
    print(f"| no unlearning | | | {no_update[7]:.4f} | {no_update[14]:.4f} |")


if __name__ == "__main__":
    main()
