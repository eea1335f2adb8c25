"""A small perceptron, written in the usual way."""

from math import prod

from torch import nn


def perceptron(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The factory that a configuration names."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(prod(input_shape), 8), nn.Tanh(), nn.Linear(8, num_classes)
    )


def dropping(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The same with dropout."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(input_shape), 8),
        nn.Tanh(),
        nn.Dropout(0.3),
        nn.Linear(8, num_classes),
    )


def dropping_in_eval(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The same, handed over in eval mode: nothing is dropped."""
    return dropping(input_shape, num_classes).eval()


def normalising(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The same with batch normalisation."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(input_shape), 8, bias=False),
        nn.BatchNorm1d(8),
        nn.Tanh(),
        nn.Linear(8, num_classes),
    )
