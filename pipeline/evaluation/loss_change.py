"""Whether the deleted samples' losses change as retraining would change them.

For each deleted sample i the predicted change is l_i(w^{-U}) - l_i(w_T), the actual one
l_i(w_retrained) - l_i(w_T). Their correlation is Verification I of Qiao et al. (2025).
"""

# m deleted samples

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr

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
