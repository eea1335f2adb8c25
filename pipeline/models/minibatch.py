"""A minibatch as the network sees it: inputs, targets, and what each sample weighs."""

# B minibatch rows

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


def divisor(mass: float) -> float:
    """Return what a sum over samples of this mass is divided by for their mean.

    Samples that all weigh 0 have a mean of 0, as their sum: divided by their mass it would be NaN.
    """
    return mass or 1


@dataclass(frozen=True)
class Minibatch:
    """Some samples that are passed together.

    A step's data gradient is the sum of `weights * grad loss` divided by the sum of `masses`. The two
    differ where a loss weighs a sample by its target: by its class, or by its number of tokens.

    Attributes:
        inputs: (B, ...), augmented where the run augments.
        targets: (B, ...).
        weights: Factors of the samples' losses (B,); None: all 1.
        masses: What each sample adds to the divisor of a mean (B,); None: all 1.
        keys: What each sample's dropout is drawn from (B,), int64; None: nothing is dropped.
        present: 1 for samples that are there, 0 for those that are left out (B,); None: all are. They
            are left out of the minibatch's statistics, of weights and of masses.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None
    masses: Tensor | None = None
    keys: Tensor | None = None
    present: Tensor | None = None

    def __len__(self) -> int:
        return int(self.inputs.shape[0])

    def take(self, rows: Tensor) -> Minibatch:
        """Return the samples at `rows` alone."""
        return Minibatch(**{name: value[rows] for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the attributes that are there, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def mass(self) -> float:
        """The number of samples, or the sum of their masses; 0 where all of them weigh nothing."""
        return len(self) if self.masses is None else float(self.masses.sum())

    @property
    def divisor(self) -> float:
        """What sums over the samples are divided by: the mass, but never 0 (`divisor`)."""
        return divisor(self.mass)

    def weighted(self, values_B: Tensor) -> Tensor:
        """Return values (B, ...) times their samples' weights."""
        if self.weights is None:
            return values_B
        return values_B * self.weights.view(-1, *[1] * (values_B.dim() - 1))

    def masses_like(self, values: Tensor) -> Tensor:
        """Return the masses (B,) in the dtype and on the device of `values`."""
        if self.masses is None:
            return torch.ones(len(self), dtype=values.dtype, device=values.device)
        return self.masses.to(values)
