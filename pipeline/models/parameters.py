"""Named tensors as one flat vector and back.

The flat vector lists `module.named_parameters()` in order, each tensor row-major. That order is what
the trajectory, the approximators and the releases share. Running statistics of batch normalisation
that training changes stand behind the parameters.
"""

# P parameters

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from pipeline.models.train_mode import minibatch_norms


@dataclass(frozen=True)
class ParameterLayout:
    """Names and shapes of the tensors that training changes, in the order of the flat vector.

    The last `num_statistics` tensors are running statistics.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_statistics: int = 0

    @staticmethod
    def of(module: nn.Module) -> "ParameterLayout":
        """Return the layout of a module in its training form."""
        tensors = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        statistics: list[tuple[str, Tensor]] = []
        for name, norm in minibatch_norms(module).items():
            statistics.append((f"{name}.running_mean", norm.running_mean))
            statistics.append((f"{name}.running_var", norm.running_var))
        return ParameterLayout(
            tuple(name for name, _ in tensors + statistics),
            tuple(tuple(tensor.shape) for _, tensor in tensors + statistics),
            len(statistics),
        )

    @property
    def trained(self) -> "ParameterLayout":
        """The layout of the parameters alone, which come first."""
        if not self.num_statistics:
            return self
        stop = len(self.names) - self.num_statistics
        return ParameterLayout(self.names[:stop], self.shapes[:stop])

    def read(self, module: nn.Module) -> Tensor:
        """Return a detached copy (P,) of a module's tensors."""
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names])

    @property
    def num_parameters(self) -> int:
        """P, the length of the flat vector, running statistics included."""
        return sum(prod(shape) for shape in self.shapes)

    @property
    def statistics_size(self) -> int:
        """S, how many values at the end are running statistics."""
        return self.num_parameters - self.trained.num_parameters

    def variances(self) -> list[slice]:
        """Return where running variances lie, which must not become negative."""
        statistics = self.names[len(self.names) - self.num_statistics :]
        return [
            part
            for name, part, _ in self.slices()
            if name in statistics and name.endswith(".running_var")
        ]

    def slices(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """Yield each tensor's name, its slice of the flat vector and its shape."""
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            stop = start + prod(shape)
            yield name, slice(start, stop), shape
            start = stop

    def unflatten(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return views of `vectors` (..., P) by name, each of shape (..., *shape).

        The vectors may go on behind: what lies there is not read.
        """
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
