"""Named tensors as one flat vector and back.

The flat vector lists `module.named_parameters()` in order, each tensor row-major. That order is what
the trajectory, the approximators and the releases share.
"""

# P parameters

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of the trainable tensors, in the order of the flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(module: nn.Module) -> "ParameterLayout":
        """Return the layout of a module's trainable parameters."""
        trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        return ParameterLayout(
            tuple(name for name, _ in trainable), tuple(tuple(p.shape) for _, p in trainable)
        )

    @property
    def num_parameters(self) -> int:
        """P, the length of the flat vector."""
        return sum(prod(shape) for shape in self.shapes)

    def slices(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """Yield each tensor's name, its slice of the flat vector and its shape."""
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            stop = start + prod(shape)
            yield name, slice(start, stop), shape
            start = stop

    def unflatten(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return views of `vectors` (..., P) by name, each of shape (..., *shape)."""
        batch = vectors.shape[:-1]
        return {
            name: vectors[..., part].reshape((*batch, *shape))
            for name, part, shape in self.slices()
        }

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """Return the flat vector (P,) of named tensors."""
        return torch.cat([tensors[name].reshape(-1) for name in self.names])


def flat_parameters(module: nn.Module) -> Tensor:
    """Return a detached copy (P,) of a module's trainable parameters."""
    return torch.cat([p.detach().reshape(-1) for p in module.parameters() if p.requires_grad])
