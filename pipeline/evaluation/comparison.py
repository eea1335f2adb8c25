"""Unlearned against retrained models: distance of parameters, change of the deleted samples' losses."""

# P parameters, m deleted samples

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from pipeline.evaluation.accuracy import Quality, held_out_quality, sample_losses
from pipeline.run.problem import Problem


@dataclass(frozen=True)
class Distances:
    """L2 distances to the retrained parameters.

    Attributes:
        unlearned: |w^{-U} - w_retrained|.
        no_update: |w_T - w_retrained|: the distance without unlearning.
        update: |w^{-U} - w_T|: the length of the update.
    """

    unlearned: float
    no_update: float
    update: float

    @property
    def relative_error(self) -> float:
        """`unlearned / no_update`; 0 if both vanish, infinite if only `no_update` does."""
        if self.no_update == 0.0:
            return 0.0 if self.unlearned == 0.0 else float("inf")
        return self.unlearned / self.no_update


def l2_distance(left_P: Tensor, right_P: Tensor) -> float:
    """Return |left - right|_2, the difference taken in float64.

    >>> l2_distance(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0]))
    5.0
    """
    return float(torch.linalg.vector_norm(left_P.double() - right_P.double()))


def distances(trained_P: Tensor, unlearned_P: Tensor, retrained_P: Tensor) -> Distances:
    """Return the distances of unlearned and trained parameters to the retrained ones."""
    return Distances(
        l2_distance(unlearned_P, retrained_P),
        l2_distance(trained_P, retrained_P),
        l2_distance(unlearned_P, trained_P),
    )


# Two points always lie on a line.
FEWEST_SAMPLES = 3


@dataclass(frozen=True)
class LossChange:
    """Changes of the deleted samples' losses.

    Attributes:
        predicted_m: By the unlearned parameters, (m,) float64.
        actual_m: By the retrained parameters, (m,) float64.
    """

    predicted_m: NDArray[np.float64]
    actual_m: NDArray[np.float64]

    @property
    def num_samples(self) -> int:
        """Return m."""
        return len(self.actual_m)

    def correlations(self) -> tuple[float, float] | None:
        """Return Pearson's and Spearman's coefficients.

        None where they have no meaning: fewer than three samples, or one side that doesn't vary.
        """
        if self.num_samples < FEWEST_SAMPLES:
            return None
        if np.ptp(self.predicted_m) == 0.0 or np.ptp(self.actual_m) == 0.0:
            return None
        return (
            float(pearsonr(self.predicted_m, self.actual_m).statistic),
            float(spearmanr(self.predicted_m, self.actual_m).statistic),
        )


def pooled(changes: Sequence[LossChange]) -> LossChange:
    """Return all samples of several trials as one."""
    return LossChange(
        np.concatenate([change.predicted_m for change in changes]),
        np.concatenate([change.actual_m for change in changes]),
    )


def median_correlations(changes: Sequence[LossChange]) -> tuple[float, float] | tuple[None, None]:
    """Return the medians over trials of both coefficients.

    Trials too small to have any (one deleted sample each, say) are pooled into one; where that is
    too small as well, or nothing varies, the answer is (None, None).
    """
    found = [pair for change in changes if (pair := change.correlations()) is not None]
    if not found:
        pair = pooled(changes).correlations()
        return (None, None) if pair is None else pair
    pearson, spearman = np.median(np.array(found), axis=0)
    return float(pearson), float(spearman)


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
        retrained_P: Parameters retrained without the forgotten samples.
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
