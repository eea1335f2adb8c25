"""The small networks: logistic regression, multilayer perceptron, the paper's CNN, LeNet-5."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from torch import nn

from pipeline.errors import ModelError
from pipeline.models.activations import ACTIVATIONS, POOLINGS

if TYPE_CHECKING:
    from pipeline.config import Activation, Pooling


def logistic(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return softmax regression started at zero, as its certificate requires."""
    linear = nn.Linear(prod(input_shape), num_classes)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Flatten(), linear)


def mlp(
    input_shape: tuple[int, ...], num_classes: int, hidden: tuple[int, ...], activation: Activation
) -> nn.Module:
    """Return flatten, then linear layers of the widths `hidden` with activations between them."""
    widths = [prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


def require_image(name: str, input_shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    """Return (channels, height, width).

    Raises:
        ModelError: If the inputs are not images of at least `smallest` pixels a side.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ModelError(
            f"model.name {name} needs images (channels, height, width) of at least {smallest}x"
            f"{smallest} pixels, found inputs of shape {input_shape}; choose mlp for plain features"
        )
    channels, height, width = input_shape
    return channels, height, width


def cnn(
    input_shape: tuple[int, ...], num_classes: int, activation: Activation, pooling: Pooling = "max"
) -> nn.Module:
    """Return conv 5x5-10, pool, conv 5x5-20, pool, fc 50, fc C.

    Images smaller than 16 pixels are padded by 2 in both convolutions, so that something is left
    to pool.
    """
    channels, height, width = require_image("cnn", input_shape, 4)
    padding = 2 if min(height, width) < 16 else 0

    def after(side: int) -> int:
        for _ in range(2):
            side = (side + 2 * padding - 4) // 2
        return side

    act, pool = ACTIVATIONS[activation], POOLINGS[pooling]
    return nn.Sequential(
        nn.Conv2d(channels, 10, 5, padding=padding),
        pool(2),
        act(),
        nn.Conv2d(10, 20, 5, padding=padding),
        pool(2),
        act(),
        nn.Flatten(),
        nn.Linear(20 * after(height) * after(width), 50),
        act(),
        nn.Linear(50, num_classes),
    )


def lenet(
    input_shape: tuple[int, ...], num_classes: int, activation: Activation, pooling: Pooling = "max"
) -> nn.Module:
    """Return conv 5x5-6 (padded), pool, conv 5x5-16, pool, fc 120, fc 84, fc C."""
    channels, height, width = require_image("lenet", input_shape, 12)

    def after(side: int) -> int:
        return (side // 2 - 4) // 2

    act, pool = ACTIVATIONS[activation], POOLINGS[pooling]
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        act(),
        pool(2),
        nn.Conv2d(6, 16, 5),
        act(),
        pool(2),
        nn.Flatten(),
        nn.Linear(16 * after(height) * after(width), 120),
        act(),
        nn.Linear(120, 84),
        act(),
        nn.Linear(84, num_classes),
    )
