"""Losses per sample, as torch defines them, with the derivatives that the R-operator needs.

With reduction "mean" torch's value of a minibatch is the sum of the values here divided by the sum of
the masses. All derivatives are in closed form, but for a user's own function.
"""

# B minibatch rows, C classes or outputs, K tangents, T positions

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    one_hot,
    poisson_nll_loss,
)

IGNORED = -100
"""The target of a position that does not count, torch's `ignore_index`."""


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
        class_weights: Factor of each class's log probability, C numbers; None: all 1. A sample's
            mass is then its class's weight.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def value(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (B,)."""
        return cross_entropy(
            outputs_BC,
            targets,
            _like(self.class_weights, outputs_BC),
            reduction="none",
            label_smoothing=self.label_smoothing,
        )

    def gradient(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return softmax minus the target distribution, (B, C); with class weights |q| p - q."""
        probabilities = torch.softmax(outputs_BC, dim=1)
        if self.class_weights is not None:
            q_BC = self._weighted_targets(outputs_BC, targets)
            return probabilities * q_BC.sum(1, keepdim=True) - q_BC
        classes = outputs_BC.shape[1]
        expected = one_hot(targets, classes)
        if self.label_smoothing:
            smoothed = expected.to(outputs_BC) * (1 - self.label_smoothing)
            return probabilities - smoothed.add_(self.label_smoothing / classes)
        return probabilities - expected

    def hessian_product(self, outputs_BC: Tensor, targets: Tensor, tangents_BKC: Tensor) -> Tensor:
        """Return (diag p - p p^T) r for each tangent r, (B, K, C); with class weights |q| times it."""
        probabilities = torch.softmax(outputs_BC, dim=1).unsqueeze(1)
        weighted = probabilities * tangents_BKC
        product = weighted - probabilities * weighted.sum(dim=2, keepdim=True)
        if self.class_weights is None:
            return product
        return product * self._weighted_targets(outputs_BC, targets).sum(1)[:, None, None]

    def masses(self, targets: Tensor) -> Tensor | None:
        """Return the weight of each sample's class (B,), float64; None without class weights."""
        if self.class_weights is None:
            return None
        weights_C = torch.tensor(self.class_weights, dtype=torch.float64, device=targets.device)
        return weights_C[targets]

    def _weighted_targets(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return q with loss = sum_c q_c (log sum exp z - z_c), (B, C)."""
        weights_C = _like(self.class_weights, outputs_BC)
        assert weights_C is not None, "asked with class weights alone"
        expected = one_hot(targets, outputs_BC.shape[1]).to(outputs_BC)
        smoothing = self.label_smoothing
        return weights_C * (expected * (1 - smoothing) + smoothing / outputs_BC.shape[1])


def _like(numbers: tuple[float, ...] | None, tensor: Tensor) -> Tensor | None:
    if numbers is None:
        return None
    return torch.tensor(numbers, dtype=tensor.dtype, device=tensor.device)


@dataclass(frozen=True)
class TokenCrossEntropy:
    """Cross-entropy at each position of a sequence, summed over the positions that count.

    Outputs are (B, T, C), tangents (B, K, T, C) and targets (B, T) int64; a target of -100 does not
    count. A sample's mass is the number of its positions that count, or the sum of the weights of
    their classes: the mean is over all positions of a minibatch, as torch's and Hugging Face's.

    Attributes:
        label_smoothing: As in `CrossEntropy`.
        class_weights: As in `CrossEntropy`.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    @property
    def _single(self) -> CrossEntropy:
        return CrossEntropy(self.label_smoothing, self.class_weights)

    def value(self, outputs_BTC: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the sums over each sample's positions (B,)."""
        # One row per position: torch has no deterministic loss of (B, C, T) on a GPU.
        losses = cross_entropy(
            outputs_BTC.flatten(0, 1),
            targets_BT.flatten(),
            _like(self.class_weights, outputs_BTC),
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return losses.reshape(targets_BT.shape).sum(1)

    def gradient(self, outputs_BTC: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the gradients (B, T, C), zero where a position does not count."""
        targets = targets_BT.flatten().clamp(min=0)
        slopes = self._single.gradient(outputs_BTC.flatten(0, 1), targets)
        return slopes.reshape(outputs_BTC.shape) * (targets_BT != IGNORED)[..., None]

    def hessian_product(
        self, outputs_BTC: Tensor, targets_BT: Tensor, tangents_BKTC: Tensor
    ) -> Tensor:
        """Return the products (B, K, T, C), zero where a position does not count."""
        tangents = tangents_BKTC.transpose(1, 2)
        curved = self._single.hessian_product(
            outputs_BTC.flatten(0, 1), targets_BT.flatten().clamp(min=0), tangents.flatten(0, 1)
        )
        curved = curved.reshape(tangents.shape) * (targets_BT != IGNORED)[..., None, None]
        return curved.transpose(1, 2)

    def masses(self, targets_BT: Tensor) -> Tensor | None:
        """Return what each sample's positions add to the divisor (B,), float64."""
        counted_BT = (targets_BT != IGNORED).double()
        weights_BT = self._single.masses(targets_BT.clamp(min=0))
        return (counted_BT if weights_BT is None else counted_BT * weights_BT).sum(1)


class _Elementwise(ABC):
    """A loss of each output by itself; a sample's loss is the mean over its outputs.

    Outputs are (B, C), targets as many numbers: (B, C), or (B,) where C is 1.
    """

    def value(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (B,)."""
        return self._losses(outputs_BC, targets.reshape_as(outputs_BC)).flatten(1).mean(1)

    def gradient(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return the gradients (B, C)."""
        slopes = self._slopes(outputs_BC, targets.reshape_as(outputs_BC))
        return slopes / outputs_BC.shape[1:].numel()

    def hessian_product(self, outputs_BC: Tensor, targets: Tensor, tangents_BKC: Tensor) -> Tensor:
        """Return the products (B, K, C): the Hessian is diagonal."""
        curvatures = self._curvatures(outputs_BC, targets.reshape_as(outputs_BC))
        return (curvatures / outputs_BC.shape[1:].numel()).unsqueeze(1) * tangents_BKC

    def masses(self, targets: Tensor) -> Tensor | None:
        """Return None: every sample counts as one."""
        return None

    @abstractmethod
    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each output's loss."""

    @abstractmethod
    def _slopes(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return its first derivative."""

    @abstractmethod
    def _curvatures(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return its second derivative."""


@dataclass(frozen=True)
class BinaryCrossEntropy(_Elementwise):
    """Cross-entropy of the sigmoid of each score, one for each label; targets from 0 to 1."""

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(outputs, targets, reduction="none")

    def _slopes(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.sigmoid(outputs) - targets

    def _curvatures(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # s (1 - s) as a product of two sigmoids keeps its digits where s is nearly 1.
        return torch.sigmoid(outputs) * torch.sigmoid(-outputs)


@dataclass(frozen=True)
class SquaredError(_Elementwise):
    """The squared difference, torch's MSELoss: ridge regression when the model is linear."""

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square()

    def _slopes(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 2 * (outputs - targets)

    def _curvatures(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.full_like(outputs, 2.0)


@dataclass(frozen=True)
class Huber(_Elementwise):
    """Half the squared difference up to `delta`, linear beyond: torch's HuberLoss."""

    delta: float = 1.0

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # Written out: torch's huber_loss has no forward derivative of its gradient.
        difference = outputs - targets
        clamped = difference.clamp(-self.delta, self.delta)
        return clamped * (difference - clamped / 2)

    def _slopes(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).clamp(-self.delta, self.delta)

    def _curvatures(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() < self.delta).to(outputs)


@dataclass(frozen=True)
class Poisson(_Elementwise):
    """exp(z) - y z, the negative log likelihood of a count y without log y!; z is the log rate."""

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return poisson_nll_loss(outputs, targets, reduction="none")

    def _slopes(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.exp() - targets

    def _curvatures(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.exp()


@dataclass(frozen=True)
class OwnLoss:
    """A user's function of outputs (B, ...) and targets (B, ...) that returns the losses (B,).

    Derivatives are torch.func's: the function is made of torch operations, and each loss depends on
    its own sample alone.

    Attributes:
        function: f(outputs, targets).
        name: "module:function", for messages.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    name: str = ""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (B,)."""
        return self.function(outputs, targets)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradients, shaped as the outputs."""
        return cast(Tensor, grad(lambda at: self.function(at, targets).sum())(outputs))

    def hessian_product(self, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        """Return the products, shaped as the tangents (B, K, ...)."""
        # Backward twice, since the Hessian is symmetric: more functions have it than forward over
        # backward.
        product = vjp(lambda at: self.gradient(at, targets), outputs)[1]
        return cast(Tensor, vmap(product, in_dims=1, out_dims=1)(tangents)[0])

    def masses(self, targets: Tensor) -> Tensor | None:
        """Return None: every sample counts as one."""
        return None
