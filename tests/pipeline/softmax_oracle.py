"""Softmax regression small enough to retrain hundreds of times, in numpy.

Everything is written from METHOD section 2 and 3 and shares no code with the package: training,
retraining without units (`denominator: batch`), and the recursion with leave-one-out Hessians.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# n samples, D features, C classes, N units


@dataclass(frozen=True)
class SoftmaxTask:
    """A regression problem with its schedule; `features_nD` has norms of at most `feature_norm`."""

    features_nD: Array
    labels_n: NDArray[np.integer]
    units_n: NDArray[np.integer]
    num_classes: int
    l2: float
    schedule: list[tuple[float, NDArray[np.integer]]] = field(repr=False)

    @property
    def num_units(self) -> int:
        return int(self.units_n.max()) + 1


def random_task(generator: np.random.Generator) -> tuple[SoftmaxTask, float]:
    """A random problem that satisfies the proof's conditions, and its feature norm cap R."""
    num_samples, num_features = int(generator.integers(6, 40)), int(generator.integers(2, 7))
    num_classes = int(generator.integers(2, 6))
    feature_norm = float(np.exp(generator.uniform(np.log(0.2), np.log(5.0))))
    l2 = float(np.exp(generator.uniform(np.log(1e-3), np.log(2.0))))
    features = generator.standard_normal((num_samples, num_features))
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    shares = generator.uniform(0.5, 1.0, (num_samples, 1)) if generator.random() < 0.5 else 1.0
    features = features / lengths * feature_norm * shares * (1 - 1e-12)
    labels = generator.integers(0, num_classes, num_samples)
    num_units = num_samples if generator.random() < 0.5 else int(generator.integers(3, 7))
    units = np.concatenate(
        [np.arange(num_units), generator.integers(0, num_units, num_samples - num_units)]
    )
    largest_rate = 2.0 / (feature_norm**2 / 2 + 2 * l2)
    rate = largest_rate * float(generator.uniform(0.05, 1.0))
    decay, epochs = float(generator.uniform(0.97, 1.0)), int(generator.integers(1, 8))
    batch_size = int(generator.integers(1, num_samples + 1))
    schedule: list[tuple[float, NDArray[np.integer]]] = []
    for _ in range(epochs):
        order = generator.permutation(num_samples)
        for start in range(0, num_samples, batch_size):
            schedule.append((rate * decay ** len(schedule), order[start : start + batch_size]))
    return SoftmaxTask(features, labels, units, num_classes, l2, schedule), feature_norm


def probabilities(task: SoftmaxTask, weights_CD: Array, batch: NDArray[np.integer]) -> Array:
    logits = task.features_nD[batch] @ weights_CD.T
    logits = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def gradient_sum(task: SoftmaxTask, weights_CD: Array, batch: NDArray[np.integer]) -> Array:
    """Sum of the samples' gradients, without L2."""
    residuals = probabilities(task, weights_CD, batch)
    residuals[np.arange(batch.size), task.labels_n[batch]] -= 1.0
    return residuals.T @ task.features_nD[batch]


def hvp_sum(
    task: SoftmaxTask, weights_CD: Array, vector_CD: Array, batch: NDArray[np.integer]
) -> Array:
    """Sum of the samples' Hessians times a vector, without L2."""
    shares = probabilities(task, weights_CD, batch)
    moved = task.features_nD[batch] @ vector_CD.T
    curved = shares * (moved - (shares * moved).sum(axis=1, keepdims=True))
    return curved.T @ task.features_nD[batch]


def trajectory(
    task: SoftmaxTask, removed: frozenset[int] = frozenset(), dtype: type = np.float64
) -> Iterator[tuple[Array, float, NDArray[np.integer]]]:
    """Yield the parameters before each step, then, with an empty batch, the final ones."""
    weights = np.zeros((task.num_classes, task.features_nD.shape[1]), dtype)
    task = SoftmaxTask(
        task.features_nD.astype(dtype),
        task.labels_n,
        task.units_n,
        task.num_classes,
        task.l2,
        task.schedule,
    )
    gone = np.isin(task.units_n, list(removed))
    for rate, batch in task.schedule:
        yield weights, rate, batch
        kept = batch[~gone[batch]]
        gradient = gradient_sum(task, weights, kept) / dtype(batch.size) + dtype(task.l2) * weights
        weights = weights - dtype(rate) * gradient
    yield weights, 0.0, np.empty(0, np.int64)


def trained(
    task: SoftmaxTask, removed: frozenset[int] = frozenset(), dtype: type = np.float64
) -> Array:
    return list(trajectory(task, removed, dtype))[-1][0]


def approximators(task: SoftmaxTask) -> Array:
    """Rows of all units, leave-one-out Hessians, shape (N, C, D)."""
    rows = np.zeros((task.num_units, task.num_classes, task.features_nD.shape[1]))
    for weights, rate, batch in trajectory(task):
        if batch.size == 0:
            break
        for unit in range(task.num_units):
            own = task.units_n[batch] == unit
            curved = hvp_sum(task, weights, rows[unit], batch[~own]) / batch.size
            source = gradient_sum(task, weights, batch[own]) / batch.size
            rows[unit] = rows[unit] - rate * (curved + task.l2 * rows[unit] - source)
    return rows
