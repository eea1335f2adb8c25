"""Losses by name, or a user's own by "module:function"."""

# B minibatch rows, C classes or outputs

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.config_yaml import one_line
from pipeline.errors import ConfigError, ModelError
from pipeline.models.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Huber,
    Loss,
    OwnLoss,
    Poisson,
    SquaredError,
    TokenCrossEntropy,
)
from pipeline.user_code import user_function

if TYPE_CHECKING:
    from pipeline.config import TrainingConfig

# A sample's loss alone and within a minibatch may differ by rounding, no more.
_TOLERANCE = 1e-4


def loss_of(config: TrainingConfig, num_classes: int) -> Loss:
    """Return the configured loss.

    Args:
        config: With `loss` and its settings.
        num_classes: C of the data.

    Raises:
        ConfigError: If a user's function does not exist, or there are not as many class weights as
            classes.
    """
    weights = config.class_weights
    if weights is not None and len(weights) != num_classes:
        raise ConfigError(
            f"training.class_weights holds {len(weights)} numbers, and the data have {num_classes} "
            "classes; give one for each class, in their order"
        )
    if ":" in config.loss:
        return OwnLoss(user_function("training.loss", config.loss), config.loss)
    known: dict[str, Loss] = {
        "cross-entropy": CrossEntropy(config.label_smoothing, weights),
        "token-cross-entropy": TokenCrossEntropy(config.label_smoothing, weights),
        "binary-cross-entropy": BinaryCrossEntropy(),
        "squared-error": SquaredError(),
        "huber": Huber(config.huber_delta),
        "poisson": Poisson(),
    }
    return known[config.loss]


def loss_in_words(config: TrainingConfig) -> str:
    """Return the loss and its settings, for messages.

    >>> from pipeline.config import TrainingConfig
    >>> loss_in_words(TrainingConfig(epochs=1, batch_size=8, learning_rate=0.1))
    'cross-entropy with training.label_smoothing 0'
    >>> loss_in_words(TrainingConfig(epochs=1, batch_size=8, learning_rate=0.1, loss="poisson"))
    'poisson'
    """
    settings = []
    if config.loss in ("cross-entropy", "token-cross-entropy"):
        settings.append(f"training.label_smoothing {config.label_smoothing:g}")
    if config.class_weights is not None:
        settings.append(f"training.class_weights {list(config.class_weights)}"[:120])
    if config.loss == "huber":
        settings.append(f"training.huber_delta {config.huber_delta:g}")
    return config.loss + (f" with {' and '.join(settings)}" if settings else "")


def check_own_loss(loss: OwnLoss, outputs: Tensor, targets: Tensor) -> None:
    """Try a user's function on a few samples.

    Args:
        loss: The loss.
        outputs: Of a model (B, ...).
        targets: The samples' targets (B, ...).

    Raises:
        ModelError: If it fails, returns no loss for each sample, couples samples, or cannot be
            differentiated twice.
    """
    where = f"training.loss {loss.name}"
    shapes = f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
    try:
        values = loss.value(outputs, targets)
        if not isinstance(values, Tensor) or values.shape != (len(outputs),):
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ModelError(
                f"{where} returns {found} for {shapes}; expected a loss for each sample, shape "
                f"({len(outputs)},): reduce over the outputs, not over the minibatch"
            )
        alone = loss.value(outputs[:1], targets[:1])
        loss.hessian_product(outputs, targets, torch.ones_like(outputs).unsqueeze(1))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{where} fails for {shapes}: {type(error).__name__}: {one_line(error)}; it is called as "
            "f(outputs, targets) and differentiated twice by torch.func"
        ) from error
    difference = float((alone - values[:1]).abs())
    if difference > _TOLERANCE * float(values.abs().max()):
        raise ModelError(
            f"{where} couples the samples of a minibatch (a loss moves by {difference:.2g} when its "
            "sample is passed alone); each loss must depend on its own sample"
        )
