"""Models by name, or a user's own by "module:factory"."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from pipeline.errors import ConfigError, ModelError
from pipeline.models.activations import Activation, Pooling
from pipeline.models.cnn import cnn
from pipeline.models.lenet import lenet
from pipeline.models.logistic import logistic
from pipeline.models.mlp import mlp
from pipeline.schema import Section
from pipeline.suggestions import nearest


class ModelConfig(Section):
    """Which network, and how it starts."""

    name: str = "logistic"
    """logistic, mlp, cnn, lenet, or "module:factory" for a user's own."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64,)
    """Widths of the hidden layers (mlp)."""
    activation: Activation = "relu"
    pooling: Pooling = "max"
    """cnn and lenet: max, as published, or average, which is smooth."""


@dataclass(frozen=True)
class Shape:
    """What a model is built for: the shape of one input and the number of classes."""

    inputs: tuple[int, ...]
    num_classes: int


Factory = Callable[[Shape, ModelConfig], nn.Module]

MODELS: dict[str, Factory] = {
    "logistic": lambda shape, config: logistic(shape.inputs, shape.num_classes),
    "mlp": lambda shape, config: mlp(
        shape.inputs, shape.num_classes, config.hidden, config.activation
    ),
    "cnn": lambda shape, config: cnn(
        shape.inputs, shape.num_classes, config.activation, config.pooling
    ),
    "lenet": lambda shape, config: lenet(
        shape.inputs, shape.num_classes, config.activation, config.pooling
    ),
}


def build(config: ModelConfig, shape: Shape, seed: int) -> nn.Module:
    """Return the network in eval mode, its weights drawn from `seed`.

    A user's factory is called as `factory(input_shape, num_classes)`.

    Raises:
        ConfigError: If the name or the factory does not exist.
        ModelError: If the network does not map inputs of `shape` to its classes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ":" in config.name:
            module = _users_own(config.name)(shape.inputs, shape.num_classes)
        elif config.name in MODELS:
            module = MODELS[config.name](shape, config)
        else:
            raise ConfigError(
                f"model.name {config.name!r} {nearest(config.name, MODELS)} "
                '(or name your own as "module:factory")'
            )
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{config.name} returned a {type(module).__name__}; expected a torch.nn.Module"
        )
    return module.eval()


def _users_own(name: str) -> Callable[[tuple[int, ...], int], nn.Module]:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"model.name is {name!r}, but module {module_name!r} cannot be imported: {error}; "
            "install it or put its folder on PYTHONPATH"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ConfigError(
            f"model.name is {name!r}, but {module_name!r} has no callable {attribute!r}"
        )
    return factory  # type: ignore[no-any-return]
