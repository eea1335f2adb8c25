"""Deletions from one class: how far sums are from retraining, and what a term per class would give.

    python benchmarks/clusters.py [--recipes sgd,adamw] [--engine hvp]

Rows of units of one class do not add up: their effects on each other are alike. For each class c one
retraining without a random half h_c of it gives r_c = what retraining moved less what the sum says. A
deletion that takes the share f_c of such a half from each class, f on average, is then estimated as

    sum + sum_c (f_c - f)^2 r_c

A measurement of what could be had; the product does not do this. Sets are drawn apart from the halves.
"""

import argparse
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.recipes import RECIPES
from pipeline.approximators.block import BlockRecursion
from pipeline.config import RunConfig
from pipeline.deletion.weights import DeletionState, apply_deletion, deletion_rule, unit_weights
from pipeline.run.problem import Problem
from pipeline.training.retraining import retrain
from pipeline.training.train import record

Vector = NDArray[np.float64]
CLASSES_TRIED, RANDOM_SETS = (0, 3, 6, 8), 4


class Run:
    """A trained run with the rows of all its units, each a sample."""

    def __init__(self, name: str, engine: str) -> None:
        sections, training, _ = RECIPES[name]
        values = {**sections, "training": training, "recursion": {"engine": engine}}
        self.problem = Problem.of(RunConfig.from_values(values))
        self.classes_n = self.problem.data.targets.numpy()
        self.size = len(self.classes_n)
        with TemporaryDirectory() as folder:
            trajectory = record(self.problem, Path(folder))
            block = BlockRecursion(self.problem, trajectory, range(self.size))
            block.advance(trajectory.num_steps)
            self.rows_NP = block.rows().astype(np.float64)
            self.trained_P = trajectory.trained().numpy()
            self.schedule = trajectory.schedule
        self.rule = deletion_rule(self.problem.config, self.size)

    def moved(self, chosen: NDArray[np.int64]) -> Vector:
        """Return what retraining without the chosen samples moves."""
        mask_n = torch.zeros(self.size, dtype=torch.bool)
        mask_n[chosen] = True
        retrained_P = retrain(self.problem, self.schedule, mask_n).numpy()
        return (retrained_P - self.trained_P).astype(np.float64)

    def summed(self, chosen: NDArray[np.int64]) -> Vector:
        """Return what the corrected sum of their rows says."""
        weights = np.array(unit_weights(self.rule, [1] * len(chosen)) or [1] * len(chosen))
        state = DeletionState(weights @ self.rows_NP[chosen], len(chosen))
        unlearned_P = apply_deletion(self.rule, self.trained_P, state)
        return (unlearned_P - self.trained_P).astype(np.float64)


def errors(
    run: Run, chosen: NDArray[np.int64], halves: dict[int, tuple[int, Vector]]
) -> tuple[float, float]:
    """Return the relative error of the sum, and of the sum with the classes' terms."""
    moved_P, summed_P = run.moved(chosen), run.summed(chosen)
    shares = {c: np.sum(run.classes_n[chosen] == c) / size for c, (size, _) in halves.items()}
    mean = np.mean(list(shares.values()))
    with_terms_P = summed_P + sum((shares[c] - mean) ** 2 * halves[c][1] for c in halves)
    norm = np.linalg.norm(moved_P)
    return (
        float(np.linalg.norm(summed_P - moved_P) / norm),
        float(np.linalg.norm(with_terms_P - moved_P) / norm),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", default="sgd,adamw,cnn-sgd")
    parser.add_argument("--engine", default="hvp")
    asked = parser.parse_args()
    print("| recipe | deleted | sum | with a term per class |\n|---|---|---|---|")
    for name in asked.recipes.split(","):
        run, generator = Run(name, asked.engine), np.random.default_rng(0)
        halves = {}
        for c in range(run.problem.data.num_classes):
            members = np.flatnonzero(run.classes_n == c)
            half = generator.choice(members, len(members) // 2, replace=False)
            halves[c] = len(half), run.moved(half) - run.summed(half)
        for share in (60, 20, 12):
            found = []
            for c in CLASSES_TRIED:
                members = np.flatnonzero(run.classes_n == c)
                size = min(run.size // share, len(members))
                found.append(errors(run, generator.choice(members, size, replace=False), halves))
            _print(name, f"{run.size // share} of one class", found)
        for share in (20, 5):
            sets = (
                generator.choice(run.size, run.size // share, replace=False)
                for _ in range(RANDOM_SETS)
            )
            found = [errors(run, chosen, halves) for chosen in sets]
            _print(name, f"{run.size // share} at random", found)


def _print(name: str, deleted: str, found: list[tuple[float, float]]) -> None:
    plain, with_terms = (median(values) for values in zip(*found, strict=True))
    print(f"| {name} | {deleted} | {plain:.3f} | {with_terms:.3f} |", flush=True)


if __name__ == "__main__":
    main()
