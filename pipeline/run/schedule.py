"""Which samples each step sees, and at which learning rate."""

# n samples, T steps, B minibatch rows

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.config import TrainingConfig


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
        rates = tuple(
            config.learning_rate * config.learning_rate_decay**t for t in range(len(sample_ids))
        )
        return Schedule(tuple(sample_ids), rates)

    def first_visits(self, unit_of_sample: Tensor, num_units: int) -> Tensor:
        """Return the step at which each unit first occurs (num_units,), T if never."""
        first = torch.full((num_units,), self.num_steps, dtype=torch.int64)
        for step in range(self.num_steps - 1, -1, -1):
            first[unit_of_sample[self.sample_ids[step]]] = step
        return first
