"""A small perceptron, written in the usual way."""

from math import prod

from torch import nn


def perceptron(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The factory that a configuration names."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(prod(input_shape), 8), nn.Tanh(), nn.Linear(8, num_classes)
    )


def normalised(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Batch normalisation by the minibatch, and dropout."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(input_shape), 12, bias=False),
        nn.BatchNorm1d(12),
        nn.Tanh(),
        nn.Dropout(0.1),
        nn.Linear(12, num_classes),
    )
