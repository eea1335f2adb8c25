"""Checks of a user's training loop: what the recursion can follow.

These checks run before a step is taken. `recorder.py` also compares every step itself, which finds
what these checks cannot see.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import isclose
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import RunConfig, TrainingConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.models.loss_registry import loss_in_words
from pipeline.models.minibatch import divisor
from pipeline.models.parameters import ParameterLayout
from pipeline.run.coefficients import settings_of
from pipeline.run.problem import Problem

Loss = Callable[[Tensor, Tensor], Tensor]
"""The mean over a minibatch, of outputs (B, ...) and targets (B, ...)."""

LOSS_TOLERANCE = 1e-4
# Samples that a loss is tried on.
TRIED = 4
# What functions of tensors raise for shapes that they do not take.
_UNFIT = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError)
# Rates are numbers that a scheduler computed, one multiplication after the other.
RATE_TOLERANCE = 1e-6


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
    mass = TRIED if masses is None else float(masses.sum())
    expected = float(configured.value(outputs, targets).sum()) / divisor(mass)
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


def frozen_tensors(model: nn.Module, problem: Problem) -> dict[str, Tensor]:
    """Return the loop's own frozen tensors; check that the factory makes the same network.

    Raises:
        ModelError: The message names a tensor that is only in one of them.
    """
    assert problem.part is not None
    here, layout = model.state_dict(), problem.network.layout
    names = {*problem.part.frozen, *layout.names}
    if here.keys() != names:
        odd = sorted(here.keys() ^ names)[0]
        raise ModelError(
            f"the model and what {problem.config.model.name} makes differ: tensor {odd!r} is only "
            "in one of them; config.model must name a factory of the network that is trained"
        )
    if ParameterLayout.of(model) != layout.trained:
        raise ModelError(
            "the model trains other tensors, or of other shapes, than the configuration's; set "
            "model.trainable and requires_grad alike"
        )
    return {name: here[name].detach().cpu().clone() for name in problem.part.frozen}


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


@dataclass(frozen=True)
class TrainerSettings:
    """What a trainer of another library was told, as far as it decides a step.

    Attributes:
        accumulated: Minibatches whose gradients make one step.
        devices: Devices and processes that share a minibatch.
        low_precision: The setting that asks for another type than float32; None: there is none.
        clip_norm: Threshold of the gradient's L2 norm; None: no clipping.
        steps_taken: Where the trainer stands.
    """

    accumulated: int
    devices: int
    low_precision: str | None
    clip_norm: float | None
    steps_taken: int


def refuse_trainer(settings: TrainerSettings, config: RunConfig, recorded: int) -> None:
    """Refuse a trainer whose steps cannot be followed; `recorded` steps are recorded so far.

    Raises:
        ConfigError: The message names the setting.
    """
    training = config.training
    if settings.accumulated != 1:
        raise ConfigError(
            f"the trainer accumulates gradients over {settings.accumulated} minibatches, which cannot "
            "be followed; accumulate over 1, and make minibatches larger instead"
        )
    if settings.devices != 1:
        raise ConfigError(
            f"the trainer divides minibatches among {settings.devices} devices, which cannot be "
            "followed; train on one device"
        )
    if settings.low_precision is not None:
        raise ConfigError(
            f"the trainer is set to {settings.low_precision}, whose steps cannot be replayed; train "
            "in float32"
        )
    if settings.clip_norm != training.clip_norm:
        raise ConfigError(
            f"the trainer clips gradients at {_norm(settings.clip_norm)}, the configuration at "
            f"{_norm(training.clip_norm)} (training.clip_norm); make them agree"
        )
    in_gradient = training.l2 or any(group.weight_decay for group in training.groups)
    if training.clip_norm is not None and in_gradient and training.optimizer != "adamw":
        raise ConfigError(
            "the trainer clips gradients without their L2 term, the configuration with it; set "
            "training.l2 to 0, or use adamw, whose decay is never clipped"
        )
    if settings.steps_taken != recorded:
        raise ConfigError(
            f"the trainer stands at step {settings.steps_taken}, the recorder at {recorded}; a "
            "training that is recorded starts at its beginning, not at a checkpoint"
        )


def _norm(clip_norm: float | None) -> str:
    return "no norm" if clip_norm is None else f"norm {clip_norm:g}"


def refuse_optimizer(
    optimizer: torch.optim.Optimizer | None, model: nn.Module, config: RunConfig
) -> None:
    """Refuse an optimizer that is not the configuration's; None is not checked.

    Raises:
        ConfigError: The message names the optimizer, or the setting that differs.
    """
    if optimizer is None:
        return
    _check_parameters(optimizer, model)
    _refuse_used(optimizer)
    training, kind = config.training, type(optimizer)
    expected = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if kind is not expected[training.optimizer]:
        raise ConfigError(
            f"the loop uses {kind.__name__}, the configuration training.optimizer "
            f"{training.optimizer}; make them agree (sgd, adam and adamw can be followed)"
        )
    wanted, names = _expected_settings(training), _names(model)
    for group in optimizer.param_groups:
        for key, value in wanted.items():
            if group.get(key, value) != value:
                raise ConfigError(
                    f"the optimizer has {key} {group[key]}, the configuration {value}; make them agree"
                )
        for name in (names[id(p)] for p in group["params"] if p.requires_grad):
            decay = settings_of(training, name)[0]
            if group["weight_decay"] != decay:
                raise ConfigError(
                    f"the optimizer has weight_decay {group['weight_decay']} for parameter {name!r}, "
                    f"the configuration {decay}; make them agree (weight_decay of sgd and adam is "
                    "training.l2; training.groups gives parameters a decay of their own)"
                )
    _rate(optimizer, names, training, "initial_lr")


def _names(model: nn.Module) -> dict[int, str]:
    """Return the names of the trainable parameters, by the tensor's identity."""
    return {id(p): name for name, p in model.named_parameters() if p.requires_grad}


def _check_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that updates other tensors than the model's trainable ones."""
    names = _names(model)
    updated = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    foreign = next((p for p in updated if id(p) not in names), None)
    if foreign is not None:
        raise ConfigError(
            f"the optimizer updates a tensor of shape {tuple(foreign.shape)} that is no trainable "
            "parameter of the recorder's model; hand the Recorder the whole network that is trained"
        )
    left = names.keys() - {id(p) for p in updated}
    if left:
        first = next(name for key, name in names.items() if key in left)
        raise ConfigError(
            f"the optimizer does not update parameter {first!r} of the recorder's model; set its "
            "requires_grad to False before both are made, or hand it to the optimizer"
        )


def _refuse_used(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose moments are those of steps that are not recorded."""
    kept = [value for state in optimizer.state.values() for value in state.values()]
    if any(isinstance(value, Tensor) and bool(value.any()) for value in kept):
        raise ConfigError(
            "the optimizer has taken steps already, of which it keeps moments; make the Recorder "
            "before the first step, and for a training that begins anew an optimizer of its own"
        )


def learning_rate_of(
    optimizer: torch.optim.Optimizer, model: nn.Module, training: TrainingConfig
) -> float:
    """Return the rate of the optimizer's next step, or of its last if no scheduler has stepped.

    With groups it is the rate of parameters that no group of the configuration holds.

    Raises:
        ConfigError: If the rates of two groups are not in the configuration's proportion.
    """
    return _rate(optimizer, _names(model), training, "lr")


def _rate(
    optimizer: torch.optim.Optimizer, names: dict[int, str], training: TrainingConfig, key: str
) -> float:
    """Return the rate that each group's own implies; `initial_lr` is there once a scheduler is."""
    implied: dict[str, tuple[float, float]] = {}
    for group in optimizer.param_groups:
        rate = float(group.get(key, group["lr"]))
        for name in (names[id(p)] for p in group["params"] if p.requires_grad):
            # A quotient of equal numbers is 1, so that a rate without groups keeps its bits.
            share = settings_of(training, name)[1] / training.learning_rate
            implied[name] = (rate, rate / share)
    first, (its_rate, expected) = next(iter(implied.items()))
    for name, (rate, found) in implied.items():
        if not isclose(found, expected, rel_tol=RATE_TOLERANCE):
            mine, theirs = settings_of(training, first)[1], settings_of(training, name)[1]
            raise ConfigError(
                f"the optimizer has learning rate {rate:.6g} for parameter {name!r} and "
                f"{its_rate:.6g} for {first!r}, the configuration {theirs:.6g} and {mine:.6g}; make "
                "their proportion agree (training.groups gives parameters a rate of their own)"
            )
    return expected


def _expected_settings(training: TrainingConfig) -> dict[str, Any]:
    """Return what an optimizer's parameter groups must hold."""
    if training.optimizer == "sgd":
        return {
            "momentum": training.momentum,
            "nesterov": training.nesterov,
            "dampening": 0,
            "maximize": False,
        }
    return {
        "betas": training.betas,
        "eps": training.eps,
        "amsgrad": False,
        "maximize": False,
    }
