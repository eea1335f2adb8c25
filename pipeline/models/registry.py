"""Models by name, or a user's own by "module:factory"."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.bounds import MAX_PARAMETERS
from pipeline.config import ModelConfig
from pipeline.config_yaml import one_line
from pipeline.errors import ConfigError, ModelError
from pipeline.models.networks import cnn, lenet, logistic, mlp
from pipeline.models.resnet import resnet18
from pipeline.models.train_mode import refuse_unfollowed
from pipeline.models.weights import load_weights
from pipeline.suggestions import nearest
from pipeline.user_code import user_function


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
    "resnet18": lambda shape, config: resnet18(
        shape.inputs,
        shape.num_classes,
        config.activation,
        config.normalization,
        config.stem,
        config.head_hidden,
    ),
}


def build(config: ModelConfig, shape: Shape, seed: int) -> nn.Module:
    """Return the network, its weights read from `init` or drawn from `seed`.

    Parts in train mode act in training as they do in torch (`pipeline.models.train_mode`). A user's
    factory is called as `factory(input_shape, num_classes)`.

    Raises:
        ConfigError: If the name, the factory or the file of weights does not exist.
        ModelError: If the module cannot be followed, is too large, or the weights are of another
            network.
    """
    if config.name in MODELS:
        _refuse_huge(config, shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ":" in config.name:
            module = _made_by_user(config.name, shape)
        elif config.name in MODELS:
            module = MODELS[config.name](shape, config)
        else:
            raise ConfigError(
                f"model.name {config.name!r} {nearest(config.name, MODELS)} "
                '(or name your own as "module:factory")'
            )
    if config.init is not None:
        # ImageNet's file knows no layers between the features and its classes.
        load_weights(module, config.init, may_lack="hidden." if config.head_hidden else None)
    return module


def _refuse_huge(config: ModelConfig, shape: Shape) -> None:
    """Count the weights without making them: the data decide how many there are."""
    with torch.device("meta"):
        module = MODELS[config.name](shape, config)
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    if num_parameters > MAX_PARAMETERS:
        raise ModelError(
            f"model.name {config.name} has {num_parameters:,} weights for inputs of shape "
            f"{shape.inputs} and {shape.num_classes:,} classes; expected at most "
            f"{MAX_PARAMETERS:,}, since every unit's approximator holds as many values; choose smaller "
            "layers or inputs"
        )


def _made_by_user(name: str, shape: Shape) -> nn.Module:
    factory = user_function("model.name", name)
    try:
        module = factory(shape.inputs, shape.num_classes)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{name}({shape.inputs}, {shape.num_classes}) fails: {type(error).__name__}: "
            f"{one_line(error)}; it is called with the shape of one input and the number of classes"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name} returned a {type(module).__name__}; expected a torch.nn.Module")
    refuse_unfollowed(module)
    return module
