"""What is minimised, and one step of it (docs/method.md, section 2).

    g(w) = (1/|B|) sum_{i in B} grad l_i(w) + l2 * w
    c(g) = g * min(1, C/|g|)
    b'   = momentum * b + c(g),   w' = w - eta * b'          (Nesterov: w - eta * (c(g) + momentum b'))

Losses are per sample, with the derivatives that the R-operator needs in closed form.
"""

# B minibatch rows, C classes or outputs, P parameters

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.schema import Section


class TrainingConfig(Section):
    """Plain SGD, the only optimiser the recursion can follow."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor per *step*: eta_t = learning_rate * decay**t."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Factor of |w|^2 / 2."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradient-norm clipping threshold C; null: none."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    shuffle: Literal["each-epoch", "once"] = "each-epoch"

    @model_validator(mode="before")
    @classmethod
    def refuse_what_cannot_be_followed(cls, values: object) -> object:
        """Say why Adam and its like are not there, instead of calling the key unknown."""
        reasons = {
            "optimizer": "the recursion follows plain SGD with momentum; adaptive optimisers such as "
            "Adam divide by running statistics of the gradients, which it does not carry",
            "dropout": "dropout draws a new network at each pass, so the run could not be replayed",
            "augmentation": "augmented samples change from pass to pass, so the run could not be "
            "replayed; augment the data once, beforehand",
        }
        if isinstance(values, dict):
            for key, reason in reasons.items():
                if key in values:
                    raise ValueError(f"training.{key} is not supported: {reason}; remove the key")
        return values


class RetrainingConfig(Section):
    """What retraining without somebody means; the approximators estimate its result."""

    denominator: Literal["remaining", "batch"] = "remaining"
    """Divide a minibatch's sum by the samples that remain, or by the original |B|."""
    l2_share: Literal["step", "sample"] = "step"
    """Keep the L2 term whole, or let each deleted sample take its share 1/|B| with it."""


class Loss(Protocol):
    """A per-sample loss of the network's outputs, with derivatives by the outputs."""

    def value(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (B,)."""
        ...

    def gradient(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return d loss_b / d outputs_b, (B, C)."""
        ...

    def hessian_product(self, outputs_BC: Tensor, tangents_BKC: Tensor) -> Tensor:
        """Return the Hessian of loss_b by outputs_b times each of K tangents, (B, K, C)."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy; targets are class numbers (B,), int64."""

    def value(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (B,)."""
        return torch.nn.functional.cross_entropy(outputs_BC, targets, reduction="none")

    def gradient(self, outputs_BC: Tensor, targets: Tensor) -> Tensor:
        """Return softmax minus the indicator of the target, (B, C)."""
        probabilities = torch.softmax(outputs_BC, dim=1)
        return probabilities - torch.nn.functional.one_hot(targets, outputs_BC.shape[1])

    def hessian_product(self, outputs_BC: Tensor, tangents_BKC: Tensor) -> Tensor:
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

    def hessian_product(self, outputs_BC: Tensor, tangents_BKC: Tensor) -> Tensor:
        """Return the tangents: the Hessian is the identity."""
        return tangents_BKC


def clip_factor(gradient_P: Tensor, clip_norm: float | None) -> float:
    """Return min(1, C/|g|); 1 without clipping."""
    if clip_norm is None:
        return 1.0
    norm = float(torch.linalg.vector_norm(gradient_P))
    return min(1.0, clip_norm / norm) if norm > 0 else 1.0


@dataclass(frozen=True)
class SgdState:
    """Parameters w (P,) and the momentum buffer b (P,), or None without momentum."""

    parameters_P: Tensor
    buffer_P: Tensor | None = None

    @staticmethod
    def start(parameters_P: Tensor, config: TrainingConfig) -> "SgdState":
        """Return the state before the first step."""
        buffer = torch.zeros_like(parameters_P) if config.momentum else None
        return SgdState(parameters_P, buffer)

    def step(self, clipped_P: Tensor, learning_rate: float, config: TrainingConfig) -> "SgdState":
        """Return the state after one step with the clipped gradient c(g)."""
        if self.buffer_P is None:
            return SgdState(self.parameters_P - learning_rate * clipped_P)
        buffer = config.momentum * self.buffer_P + clipped_P
        direction = clipped_P + config.momentum * buffer if config.nesterov else buffer
        return SgdState(self.parameters_P - learning_rate * direction, buffer)


def check_against(config: TrainingConfig, num_train: int) -> None:
    """Raise ConfigError if the training cannot run on `num_train` samples."""
    if config.batch_size > num_train:
        raise ConfigError(
            f"training.batch_size is {config.batch_size}, but there are only {num_train} training "
            f"samples; choose a batch_size of at most {num_train}"
        )
    if config.nesterov and not config.momentum:
        raise ConfigError("training.nesterov needs training.momentum > 0")
