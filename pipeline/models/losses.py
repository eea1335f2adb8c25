"""Losses per sample, with the derivatives that the R-operator needs in closed form."""

# B minibatch rows, C classes or outputs, K tangents

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Loss(Protocol):
    """A per-sample loss of the network's outputs, with derivatives by the outputs."""

    def value(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (B,)."""
        ...

    def gradient(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return d loss_b / d outputs_b, (B, C)."""
        ...

    def hessian_product(self, outputs_BC: Tensor, targets: Tensor, tangents_BKC: Tensor) -> Tensor:
        """Return the Hessian of loss_b by outputs_b times each of K tangents, (B, K, C)."""
        ...

    def masses(self, targets: Tensor) -> Tensor | None:
        """Return what each sample adds to the divisor of a mean (B,); None: 1 each."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy; targets are class numbers (B,), int64.

    Attributes:
        label_smoothing: Share s of the target that is spread evenly over all classes, as in torch.
    """

    label_smoothing: float = 0.0

    def value(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (B,)."""
        return torch.nn.functional.cross_entropy(
            outputs_BC, targets, reduction="none", label_smoothing=self.label_smoothing
        )

    def gradient(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return softmax minus the target distribution, (B, C)."""
        probabilities = torch.softmax(outputs_BC, dim=1)
        classes = outputs_BC.shape[1]
        expected = torch.nn.functional.one_hot(targets, classes)
        if self.label_smoothing:
            smoothed = expected.to(outputs_BC) * (1 - self.label_smoothing)
            return probabilities - smoothed.add_(self.label_smoothing / classes)
        return probabilities - expected

    def masses(self, targets: Tensor) -> Tensor | None:
        """Return None: every sample counts as one."""
        return None

    def hessian_product(self, outputs_BC: Tensor, targets: Tensor, tangents_BKC: Tensor) -> Tensor:
        """Return (diag p - p p^T) r for each tangent r, (B, K, C)."""
        probabilities = torch.softmax(outputs_BC, dim=1).unsqueeze(1)
        weighted = probabilities * tangents_BKC
        return weighted - probabilities * weighted.sum(dim=2, keepdim=True)


@dataclass(frozen=True)
class SquaredError:
    """Half the squared distance to targets (B, C): ridge regression when the model is linear."""

    def value(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (B,)."""
        return 0.5 * (outputs_BC - targets).square().sum(dim=1)

    def gradient(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return the residuals, (B, C)."""
        return outputs_BC - targets

    def masses(self, targets: Tensor) -> Tensor | None:
        """Return None: every sample counts as one."""
        return None

    def hessian_product(self, outputs_BC: Tensor, targets: Tensor, tangents_BKC: Tensor) -> Tensor:
        """Return the tangents: the Hessian is the identity."""
        return tangents_BKC
