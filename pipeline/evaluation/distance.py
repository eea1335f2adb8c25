"""How far one set of parameters is from another: the first measure of unlearning.

    distance        |w^{-U} - w_retrained|
    doing nothing   |w_T - w_retrained|
    relative error  distance / doing nothing                     (docs/method.md, sections 4 and 5)

A relative error of 0 is retraining, 1 is as far as having done nothing.
"""

# P parameters

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distances:
    """L2 distances to the retrained parameters.

    Attributes:
        unlearned: |w^{-U} - w_retrained|.
        no_update: |w_T - w_retrained|: what doing nothing leaves.
        update: |w^{-U} - w_T|: the length of the step that unlearning took.
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
