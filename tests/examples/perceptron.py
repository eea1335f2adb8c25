"""A small perceptron, written in the usual way."""

from math import prod

from torch import nn


def perceptron(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The factory that a configuration names."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(prod(input_shape), 8), nn.Tanh(), nn.Linear(8, num_classes)
    )
