"""Which samples each step sees, and at which learning rate."""

# n samples, T steps, B minibatch rows

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.config import TrainingConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """The minibatches and learning rates of a run.

    Attributes:
        sample_ids: For each step, positions in the training set (B_t,), int64.
        learning_rates: eta_t, length T.
    """

    sample_ids: tuple[Tensor, ...]
    learning_rates: tuple[float, ...]

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.sample_ids)

    @property
    def num_samples(self) -> int:
        """How many samples occur: n, since whole passes are made; after deletions, those left."""
        return len(torch.cat(self.sample_ids).unique())

    @staticmethod
    def draw(config: TrainingConfig, num_samples: int, seed: int) -> "Schedule":
        """Draw minibatches: whole passes in shuffled order, the last of a pass may be smaller."""
        generator = np.random.default_rng([seed, 1])
        order = generator.permutation(num_samples)
        sample_ids: list[Tensor] = []
        for epoch in range(config.epochs):
            if epoch and config.shuffle == "each-epoch":
                order = generator.permutation(num_samples)
            sample_ids.extend(torch.from_numpy(order.copy()).split(config.batch_size))
        return Schedule(tuple(sample_ids), learning_rates(config, len(sample_ids)))

    def first_visits(self, unit_of_sample: Tensor, num_units: int) -> Tensor:
        """Return the step at which each unit first occurs (num_units,), T if never."""
        first = torch.full((num_units,), self.num_steps, dtype=torch.int64)
        for step in range(self.num_steps - 1, -1, -1):
            first[unit_of_sample[self.sample_ids[step]]] = step
        return first


def without_schedule(config: TrainingConfig) -> TrainingConfig:
    """Return the settings for training further: the rate stays, or decays per step as it did."""
    constant = {
        "schedule": "constant",
        "warmup_steps": 0,
        "step_size": None,
        "learning_rates": None,
    }
    return config.model_copy(update=constant)


# Of torch's OneCycleLR: the share of rising steps, and what the rate starts and ends below its peak.
_RISING, _START, _END = 0.3, 25.0, 1e4


def learning_rates(config: TrainingConfig, num_steps: int) -> tuple[float, ...]:
    """Return eta_t for t = 0..T-1.

    Args:
        config: The schedule.
        num_steps: T.

    Raises:
        ConfigError: If the schedule is longer than the run, or a list of rates is of another length.
    """
    if config.learning_rates is not None:
        if len(config.learning_rates) != num_steps:
            raise ConfigError(
                f"training.learning_rates lists {len(config.learning_rates)} rates, and the run takes "
                f"{num_steps} steps; give one for each"
            )
        return config.learning_rates
    warmup = config.warmup_steps
    if warmup >= num_steps:
        raise ConfigError(
            f"training.warmup_steps is {warmup}, and the run takes {num_steps} steps in all; shorten "
            "the warmup, or train longer"
        )
    rising = [config.learning_rate * (t + 1) / (warmup + 1) for t in range(warmup)]
    factor = _FACTORS[config.schedule]
    after = num_steps - warmup
    return (*rising, *(config.learning_rate * factor(config, t, after) for t in range(after)))


def _step_factor(config: TrainingConfig, step: int, num_steps: int) -> float:
    assert config.step_size is not None, "checked with the configuration"
    return float(config.gamma ** (step // config.step_size))


def _one_cycle_factor(config: TrainingConfig, step: int, num_steps: int) -> float:
    """Return the factor of torch's OneCycleLR with its defaults: cosines up, then down."""
    top, last = _RISING * num_steps - 1, num_steps - 1
    if step <= top:
        return _cosine(1 / _START, 1.0, step / top if top > 0 else 1.0)
    return _cosine(1.0, 1 / (_START * _END), (step - top) / (last - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


_FACTORS: dict[str, Callable[[TrainingConfig, int, int], float]] = {
    "constant": lambda config, step, num_steps: config.learning_rate_decay**step,
    "step": _step_factor,
    "cosine": lambda config, step, num_steps: _cosine(1.0, 0.0, step / num_steps),
    "linear": lambda config, step, num_steps: 1 - step / num_steps,
    "one-cycle": _one_cycle_factor,
}
