"""Deletions from one class: how far sums are from retraining, without and with class terms.

    python benchmarks/clusters.py [--recipes sgd,adamw] [--engine hvp]

Rows of units of one class do not add up: their effects on each other are alike. Each run is trained and
precomputed with `recursion.class_terms` (docs/method.md, section 4), and sets are deleted from it as
trials do, with the terms and without. Sets are drawn apart from the halves that the terms come from.
"""

import argparse
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.recipes import RECIPES
from pipeline import precompute
from pipeline.config import RunConfig
from pipeline.deletion.class_terms import class_terms_of
from pipeline.evaluation.comparison import distances
from pipeline.evaluation.trials import local_sum, unlearn
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.training.retraining import retrain
from pipeline.training.train import record

CLASSES_TRIED, RANDOM_SETS = (0, 3, 6, 8), 4


class Run:
    """A run whose rows and class terms are stored; each unit is a sample."""

    def __init__(self, name: str, engine: str, folder: Path) -> None:
        sections, training, _ = RECIPES[name]
        recursion = {"engine": engine, "class_terms": True}
        # Terms and trials are to show the method alone, and no rounding of rows.
        stored = {"encoding": "float32"}
        values = {**sections, "training": training, "recursion": recursion, "storage": stored}
        self.problem = Problem.of(RunConfig.from_values(values))
        run = RunDirectory.create(folder, self.problem)
        record(self.problem, run.trajectory_folder)
        self.sum_rows = local_sum(precompute(run))
        self.trajectory, self.terms = run.trajectory(), class_terms_of(run)
        self.classes_n = self.problem.data.targets.numpy()
        self.size = len(self.classes_n)

    def errors(self, chosen: NDArray[np.int64]) -> tuple[float, float]:
        """Return the relative error of the sum, and of the sum with class terms."""
        chosen = np.sort(chosen)
        trained_P = self.trajectory.trained()
        mask_n = self.problem.data.samples_of(torch.from_numpy(chosen).to(self.problem.device))
        retrained_P = retrain(self.problem, self.trajectory.schedule, mask_n).cpu()
        found = []
        for terms in (None, self.terms):
            unlearned_P, _ = unlearn(self.problem, chosen, trained_P.numpy(), self.sum_rows, terms)
            apart = distances(trained_P, torch.from_numpy(unlearned_P), retrained_P)
            found.append(apart.relative_error)
        return found[0], found[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", default="sgd,adamw,cnn-sgd")
    parser.add_argument("--engine", default="hvp")
    asked = parser.parse_args()
    print("| recipe | deleted | sum | with a term per class |\n|---|---|---|---|")
    for name in asked.recipes.split(","):
        with TemporaryDirectory() as folder:
            measure(name, Run(name, asked.engine, Path(folder) / "run"))


def measure(name: str, run: Run) -> None:
    """Print the lines of one recipe."""
    generator = np.random.default_rng(0)
    for share in (60, 20, 12):
        found = []
        for c in CLASSES_TRIED:
            members = np.flatnonzero(run.classes_n == c)
            size = min(run.size // share, len(members))
            found.append(run.errors(generator.choice(members, size, replace=False)))
        _print(name, f"{run.size // share} of one class", found)
    for share in (20, 5):
        sets = (
            generator.choice(run.size, run.size // share, replace=False) for _ in range(RANDOM_SETS)
        )
        found = [run.errors(chosen) for chosen in sets]
        _print(name, f"{run.size // share} at random", found)


def _print(name: str, deleted: str, found: list[tuple[float, float]]) -> None:
    plain, with_terms = (median(values) for values in zip(*found, strict=True))
    print(f"| {name} | {deleted} | {plain:.3f} | {with_terms:.3f} |", flush=True)


if __name__ == "__main__":
    main()
