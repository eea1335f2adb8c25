"""What scales each parameter's step: L2, decay and learning rate, alike for all or by group."""

# P parameters

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.parameters import ParameterLayout
from pipeline.suggestions import listed

if TYPE_CHECKING:
    from pipeline.config import TrainingConfig

Factor = float | Tensor
"""One number for all parameters, or a vector (P,)."""


@dataclass(frozen=True)
class Share:
    """What holds for one slice of the parameters."""

    part: slice
    l2: float
    decay: float
    rate: float


@dataclass(frozen=True)
class Coefficients:
    """Factors of a step for all parameters.

    Attributes:
        l2: Of |w|^2 / 2 in the objective.
        decay: Of adamw's decoupled weight decay.
        rate: Of the learning rate.
        shares: The same as numbers, slice by slice: torch's own arithmetic takes numbers.
    """

    l2: Factor
    decay: Factor
    rate: Factor
    shares: tuple[Share, ...]

    @staticmethod
    def alike(l2: float = 0.0, decay: float = 0.0) -> Coefficients:
        """Return the same for all parameters."""
        return Coefficients(l2, decay, 1.0, (Share(slice(None), l2, decay, 1.0),))

    @staticmethod
    def of(config: TrainingConfig, layout: ParameterLayout, like_P: Tensor) -> Coefficients:
        """Return those of a configuration, vectors in the dtype and on the device of `like_P`.

        Raises:
            ConfigError: If a group's pattern fits no parameter.
        """
        decay = config.weight_decay or 0.0
        if not config.groups and not layout.num_statistics:
            return Coefficients.alike(config.l2, decay)
        refuse_unmatched(config, layout)
        shares = tuple(_merged(_shares(config, layout)))

        def vector(name: str) -> Tensor:
            out_P = torch.empty_like(like_P)
            for share in shares:
                out_P[share.part] = getattr(share, name)
            return out_P

        return Coefficients(vector("l2"), vector("decay"), vector("rate"), shares)


def group_of(config: TrainingConfig, name: str) -> int | None:
    """Return the number of the first group whose pattern fits a parameter's name, None if none does."""
    fitting = (n for n, group in enumerate(config.groups) if fnmatchcase(name, group.parameters))
    return next(fitting, None)


def settings_of(config: TrainingConfig, name: str) -> tuple[float, float]:
    """Return the weight decay (L2, except with adamw) and the first learning rate of a parameter."""
    decay = (config.weight_decay or 0.0) if config.optimizer == "adamw" else config.l2
    number = group_of(config, name)
    if number is None:
        return decay, config.learning_rate
    group = config.groups[number]
    return (
        decay if group.weight_decay is None else group.weight_decay,
        config.learning_rate if group.learning_rate is None else group.learning_rate,
    )


def refuse_unmatched(config: TrainingConfig, layout: ParameterLayout) -> None:
    """Refuse a group that would silently hold nothing.

    Raises:
        ConfigError: The message names the pattern and the parameters.
    """
    used = {group_of(config, name) for name in layout.trained.names}
    for number, group in enumerate(config.groups):
        if number not in used:
            raise ConfigError(
                f"training.groups[{number}].parameters {group.parameters!r} fits no trained parameter "
                f"that an earlier group leaves (they are: {listed(layout.trained.names)}); mend the "
                "pattern or remove the group"
            )


def _shares(config: TrainingConfig, layout: ParameterLayout) -> Iterator[Share]:
    decoupled = config.optimizer == "adamw"
    for name, part, _ in layout.trained.slices():
        decay, rate = settings_of(config, name)
        l2, decay = (0.0, decay) if decoupled else (decay, 0.0)
        yield Share(part, l2, decay, rate / config.learning_rate)
    if layout.num_statistics:
        # No gradient moves running statistics, and nothing shrinks them.
        yield Share(slice(layout.trained.num_parameters, layout.num_parameters), 0.0, 0.0, 0.0)


def _merged(shares: Iterator[Share]) -> Iterator[Share]:
    """Join neighbours that hold the same."""
    last: Share | None = None
    for share in shares:
        if last is not None and (last.l2, last.decay, last.rate) == (
            share.l2,
            share.decay,
            share.rate,
        ):
            last = Share(slice(last.part.start, share.part.stop), last.l2, last.decay, last.rate)
            continue
        if last is not None:
            yield last
        last = share
    if last is not None:
        yield last


def add_outer(values_VP: Tensor, shares_V: Tensor, vector_P: Tensor, factor: Factor) -> Tensor:
    """Add shares_V outer (factor * vector_P) to `values_VP`, in place."""
    if isinstance(factor, Tensor):
        return values_VP.addr_(shares_V, vector_P * factor)
    return values_VP.addr_(shares_V, vector_P, alpha=factor)


def add_scaled(values: Tensor, addends: Tensor, factor: Factor, scale: float = 1.0) -> Tensor:
    """Add scale * factor * addends to `values` (..., P), in place."""
    if isinstance(factor, Tensor):
        return values.addcmul_(addends, factor, value=scale)
    return values.add_(addends, alpha=scale * factor)
