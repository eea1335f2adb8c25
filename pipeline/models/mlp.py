"""Multilayer perceptron of any widths."""

from itertools import pairwise
from math import prod

from torch import nn

from pipeline.models.activations import ACTIVATIONS, Activation


def mlp(
    input_shape: tuple[int, ...], num_classes: int, hidden: tuple[int, ...], activation: Activation
) -> nn.Module:
    """Return flatten, then linear layers of the widths `hidden` with activations between them."""
    widths = [prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
