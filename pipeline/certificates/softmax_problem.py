"""Softmax regression as its bounds see it: constants that are known before the data."""

import math
from dataclasses import dataclass

FLOAT32_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class SoftmaxProblem:
    """Constants of a softmax regression that are known before its data.

    Attributes:
        feature_norm: R, the largest norm of a sample's features, the bias feature included.
        l2: lam, above 0.
        num_features: Features of a sample, the bias feature included.
        num_classes: Classes.
        initial_norm: |w_0|.
        roundoff: Unit roundoff of training and rows.
    """

    feature_norm: float
    l2: float
    num_features: int
    num_classes: int
    initial_norm: float = 0.0
    roundoff: float = FLOAT32_ROUNDOFF

    def __post_init__(self) -> None:
        if not (0 < self.feature_norm < math.inf and 0 < self.l2 < math.inf):
            raise ValueError(
                f"expected a feature norm and an L2 strength above 0, found {self.feature_norm} "
                f"and {self.l2}; without L2 nothing contracts and no bound holds"
            )

    @property
    def gradient(self) -> float:
        """G, bound on the norm of one sample's gradient."""
        return math.sqrt(2) * self.feature_norm

    @property
    def smoothness(self) -> float:
        """L, bound on the largest eigenvalue of one sample's Hessian."""
        return self.feature_norm**2 / 2

    @property
    def hessian_lipschitz(self) -> float:
        """M, Lipschitz constant of one sample's Hessian."""
        return math.sqrt(6) / 9 * self.feature_norm**3
