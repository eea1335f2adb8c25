"""Factories of models that cannot be used, each in its own way."""

import sys
import warnings

import torch
from torch import nn

a_constant = 3


def compiled(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather not have it used
        return torch.jit.trace(module, torch.zeros(2, *input_shape))  # type: ignore[no-any-return]


def partly_compiled(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(compiled(input_shape, num_classes), nn.Identity())


def without_arguments() -> nn.Module:
    return nn.Linear(2, 2)


def nothing(input_shape: tuple[int, ...], num_classes: int) -> None:
    return None


def leaving(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    sys.exit(7)
