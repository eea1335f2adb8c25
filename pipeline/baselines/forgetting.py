"""What every baseline is given."""

# n samples, P parameters

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.problem import Problem
from pipeline.schedule import Schedule

# Where the loss is not convex the Hessian may be indefinite (docs/method.md, section 8).
NON_CONVEX_DAMPING = 0.01


@dataclass(frozen=True)
class Forgetting:
    """A trained model and the samples it is to forget.

    Attributes:
        problem: Data, network and conventions.
        schedule: The minibatches it was trained on.
        trained_P: w_T, on the problem's device.
        forgotten_n: Mask (n,) of the samples to forget; at least one, at least one remains.
        seed: Fixes the order of minibatches where a baseline trains further.
    """

    problem: Problem
    schedule: Schedule
    trained_P: Tensor
    forgotten_n: Tensor
    seed: int = 0

    def __post_init__(self) -> None:
        num_forgotten = int(self.forgotten_n.sum())
        if not 0 < num_forgotten < self.problem.data.num_samples:
            raise ValueError(
                f"expected at least one sample to forget and one to keep, found {num_forgotten} to "
                f"forget of {self.problem.data.num_samples}"
            )

    @cached_property
    def forgotten_ids(self) -> Tensor:
        """Positions of the forgotten samples, ascending, int64."""
        return torch.nonzero(self.forgotten_n).squeeze(1)

    @cached_property
    def remaining_ids(self) -> Tensor:
        """Positions of the remaining samples, ascending, int64."""
        return torch.nonzero(~self.forgotten_n).squeeze(1)

    @property
    def damping(self) -> float:
        """What the Hessian's diagonal is raised by at least: 0 for softmax regression, else .01."""
        return 0.0 if self.problem.config.model.name == "logistic" else NON_CONVEX_DAMPING
