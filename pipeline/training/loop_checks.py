"""Checks of a user's training loop: what the recursion can follow.

These checks run before a step is taken. `recorder.py` also compares every step itself, which finds
what these checks cannot see.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import RunConfig, TrainingConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.models.loss_registry import loss_in_words
from pipeline.run.problem import Problem

Loss = Callable[[Tensor, Tensor], Tensor]
"""The mean over a minibatch, of outputs (B, ...) and targets (B, ...)."""

LOSS_TOLERANCE = 1e-4
# Samples that a loss is tried on.
TRIED = 4
# What functions of tensors raise for shapes that they do not take.
_UNFIT = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError)


def check_loss(loss: Loss, problem: Problem) -> None:
    """Refuse a loss that differs from the configured one on trial outputs.

    Raises:
        ModelError: The message gives both values.
    """
    data = problem.data
    targets = data.targets[torch.arange(TRIED, device=data.targets.device) % data.num_samples]
    outputs = _trial_outputs(problem)
    configured = problem.network.loss
    masses = configured.masses(targets)
    divisor = TRIED if masses is None else float(masses.sum())
    expected = float(configured.value(outputs, targets).sum()) / (divisor or 1)
    found = _values(loss, outputs, targets)
    if any(abs(value - expected) <= LOSS_TOLERANCE * abs(expected) for value in found.values()):
        return
    gives = next(iter(found.values()), None)
    what = "cannot be called" if gives is None else f"gives {gives:.6g}"
    raise ModelError(
        f"the loss {what} on trial outputs {tuple(outputs.shape)} with targets "
        f"{tuple(targets.shape)}, the mean of {loss_in_words(problem.config.training)} is "
        f"{expected:.6g}; state the loss and its settings in the configuration"
    )


def _trial_outputs(problem: Problem) -> Tensor:
    """Return random outputs (4, ...) of the model's shape."""
    data, w_P = problem.data, problem.initial_P
    with problem.arithmetic():
        shape = problem.network.outputs(w_P, data.inputs[:1]).shape[1:]
    outputs = torch.randn(TRIED, *shape, generator=torch.Generator().manual_seed(0))
    return outputs.to(w_P)


def _values(loss: Loss, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return what the loss gives for outputs and targets in the shapes that loops pass them in.

    torch's modules take numbers shaped as the outputs, and positions as samples or as a last axis.
    """
    ways = {"as they are": (outputs, targets)}
    if targets.is_floating_point() and targets.numel() == outputs.numel():
        # First: torch would broadcast (B, 1) with (B,), and warn.
        ways = {"alike": (outputs, targets.reshape_as(outputs))} | ways
    if outputs.dim() == 3 and targets.dim() == 2:
        ways["positions"] = (outputs.flatten(0, 1), targets.flatten())
        ways["last axis"] = (outputs.transpose(1, 2), targets)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (shaped, aims) in ways.items():
            try:
                found[name] = float(loss(shaped, aims))
            except _UNFIT:
                continue
    return found


def refuse_precision(model: nn.Module) -> None:
    """Refuse mixed precision and low precision.

    Raises:
        ModelError: The message names what was found.
    """
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise ModelError(
            "the loop trains in mixed precision (autocast), whose steps cannot be replayed to the "
            "bit; train in float32, and call the recorder outside autocast"
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ModelError(
                f"parameter {name!r} has type {parameter.dtype}; train in float32 or float64"
            )


def refuse_optimizer(optimizer: torch.optim.Optimizer | None, config: RunConfig) -> None:
    """Refuse an optimizer that is not the configuration's; None is not checked.

    Raises:
        ConfigError: The message names the optimizer, or the setting that differs.
    """
    if optimizer is None:
        return
    training, kind = config.training, type(optimizer)
    expected = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if kind is not expected[training.optimizer]:
        raise ConfigError(
            f"the loop uses {kind.__name__}, the configuration training.optimizer "
            f"{training.optimizer}; make them agree (sgd, adam and adamw can be followed)"
        )
    wanted = _expected_settings(training)
    for group in optimizer.param_groups:
        for key, value in wanted.items():
            if group.get(key, value) != value:
                raise ConfigError(
                    f"the optimizer has {key} {group[key]}, the configuration {value}; make them agree "
                    "(weight_decay of sgd and adam is training.l2)"
                )


def _expected_settings(training: TrainingConfig) -> dict[str, Any]:
    """Return what an optimizer's parameter groups must hold."""
    if training.optimizer == "sgd":
        return {
            "weight_decay": training.l2,
            "momentum": training.momentum,
            "nesterov": training.nesterov,
            "dampening": 0,
            "maximize": False,
        }
    decoupled = training.optimizer == "adamw"
    return {
        "weight_decay": training.weight_decay if decoupled else training.l2,
        "betas": training.betas,
        "eps": training.eps,
        "amsgrad": False,
        "maximize": False,
    }
