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
