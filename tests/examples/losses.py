"""Losses that a configuration names by "module:function", and some that cannot be followed."""

import torch
from torch import Tensor


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017) with gamma 2, for classes."""
    log_p = torch.log_softmax(outputs, dim=1).gather(1, targets[:, None]).squeeze(1)
    return -((1 - log_p.exp()) ** 2) * log_p


def mean(outputs: Tensor, targets: Tensor) -> Tensor:
    """Reduces the minibatch."""
    return focal(outputs, targets).mean()


def coupled(outputs: Tensor, targets: Tensor) -> Tensor:
    """Each loss depends on the other samples."""
    return focal(outputs - outputs.mean(0), targets)


def detached(outputs: Tensor, targets: Tensor) -> Tensor:
    """Leaves torch."""
    return torch.tensor(focal(outputs, targets).numpy())
