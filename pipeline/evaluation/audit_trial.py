"""One forget set of a run: unlearned by each method, and compared with retraining."""

# P parameters, m units, n samples

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.baselines import BASELINES, BaselineTask
from pipeline.deletion.class_terms import ClassTerms
from pipeline.deletion.weights import SumRows
from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.trials import draw_forget_set, unlearn
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory

HESSIAN_FREE = "hessian-free"
METHODS = (HESSIAN_FREE, *BASELINES)


@dataclass(frozen=True)
class Subject:
    """A trained run with all its approximators.

    Attributes:
        problem: Data, network and conventions.
        trajectory: The recorded training.
        sum_rows: Reads and sums approximators.
        terms: Class terms of the run, if it has any.
    """

    problem: Problem
    trajectory: Trajectory
    sum_rows: SumRows
    terms: ClassTerms | None = None

    @cached_property
    def trained_P(self) -> Tensor:
        """w_T, on the problem's device."""
        return self.trajectory.trained().to(self.problem.initial_P)


@dataclass(frozen=True)
class Trial:
    """One forget set of a subject.

    Attributes:
        subject: The run.
        units: Numbers of the units to forget (m,), ascending.
        seed: Fixes the order of minibatches where a baseline trains further.
    """

    subject: Subject
    units: Tensor
    seed: int

    @cached_property
    def task(self) -> BaselineTask:
        """The trial as baselines see it."""
        subject = self.subject
        forgotten = subject.problem.data.samples_of(self.units.to(subject.problem.device))
        return BaselineTask(
            subject.problem, subject.trajectory.schedule, subject.trained_P, forgotten, self.seed
        )

    @cached_property
    def retrained(self) -> tuple[Tensor, float]:
        """Parameters (P,) of retraining, and the seconds it took."""
        start = time.perf_counter()
        return BASELINES["retrain"](self.task), time.perf_counter() - start

    def unlearn(self, method: str) -> tuple[Tensor, float]:
        """Return a method's parameters (P,), and the seconds it took."""
        if method == "retrain":
            return self.retrained
        start = time.perf_counter()
        w_P = self._hessian_free() if method == HESSIAN_FREE else BASELINES[method](self.task)
        return w_P, time.perf_counter() - start

    def _hessian_free(self) -> Tensor:
        subject = self.subject
        trained_P = subject.trained_P
        w_P, _ = unlearn(
            subject.problem,
            self.units.numpy(),
            trained_P.cpu().numpy(),
            subject.sum_rows,
            subject.terms,
        )
        return torch.from_numpy(w_P).to(trained_P)

    def verify(self, method: str) -> dict[str, Any]:
        """Return a method's figures against retraining, as plain values."""
        w_P, seconds = self.unlearn(method)
        found = compare(
            self.subject.problem,
            self.subject.trained_P,
            w_P,
            self.retrained[0],
            self.task.forgotten_n,
        )
        pearson, spearman = found.loss_change.correlations() or (None, None)
        apart = found.distances
        return {
            "distance": apart.unlearned,
            "relative_error": apart.relative_error if np.isfinite(apart.relative_error) else None,
            "actual_norm": apart.no_update,
            "estimated_norm": apart.update,
            "pearson": pearson,
            "spearman": spearman,
            "quality": found.unlearned.value,
            "test_accuracy": found.unlearned.accuracy_if_any,
            "seconds": seconds,
        }


def draw_trial(subject: Subject, count: int, seed: int) -> Trial:
    """Return the trial of `count` units drawn by `seed`.

    Raises:
        ConfigError: If a class of the training data would lose its last sample.
    """
    units = draw_forget_set(len(subject.problem.data.units), count, (seed, count))
    trial = Trial(subject, units, seed)
    _require_all_classes(subject.problem, trial.task)
    return trial


def _require_all_classes(problem: Problem, task: BaselineTask) -> None:
    """Raise ConfigError if a class of the training data loses its last sample."""
    if not problem.data.has_classes:
        return
    targets, classes = problem.data.targets, problem.data.num_classes
    before = torch.bincount(targets, minlength=classes)
    after = torch.bincount(targets[task.remaining_ids], minlength=classes)
    emptied = torch.nonzero((before > 0) & (after == 0)).squeeze(1).tolist()
    if emptied:
        raise ConfigError(
            f"deleting {len(task.forgotten_ids)} of {problem.data.num_samples} samples leaves "
            f"none of class {', '.join(map(problem.data.class_name, emptied))}; choose a smaller "
            "deletion or another seed"
        )
