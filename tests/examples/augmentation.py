"""A user's own augmentations, good and bad."""

import torch
from torch import Tensor

calls: list[int] = []
NOT_CALLABLE = 1


def faded(x: Tensor, generator: torch.Generator) -> Tensor:
    """The sample times a random factor; changed in place, which must not reach the data."""
    return x.mul_(torch.rand((), generator=generator, dtype=torch.float64).to(x))


def larger(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.cat([x, x], dim=-1)


def doubled(x: Tensor, generator: torch.Generator) -> Tensor:
    return x.double() if x.dtype == torch.float32 else x.float()


def listed(x: Tensor, generator: torch.Generator) -> list[float]:
    return [1.0]


def endless(x: Tensor, generator: torch.Generator) -> Tensor:
    return x / 0


def failing(x: Tensor, generator: torch.Generator) -> Tensor:
    raise RuntimeError("no\nluck")


def unseeded(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + torch.rand(())


def counting(x: Tensor, generator: torch.Generator) -> Tensor:
    calls.append(1)
    return x + len(calls)
