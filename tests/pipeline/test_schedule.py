"""Minibatches and learning rates."""

from typing import Any

import pytest
import torch

from pipeline.config import TrainingConfig
from pipeline.run.schedule import Schedule


def draw(num_samples: int = 10, seed: int = 1, **changes: Any) -> Schedule:
    values = {"epochs": 3, "batch_size": 4, "learning_rate": 0.5, "learning_rate_decay": 0.9}
    return Schedule.draw(TrainingConfig(**{**values, **changes}), num_samples, seed)


def passes(schedule: Schedule, per_pass: int) -> list[list[int]]:
    ids = schedule.sample_ids
    return [torch.cat(ids[t : t + per_pass]).tolist() for t in range(0, len(ids), per_pass)]


def test_every_pass_visits_every_sample_once() -> None:
    schedule = draw()
    assert [len(batch) for batch in schedule.sample_ids] == [4, 4, 2] * 3
    assert schedule.num_steps == 9
    for order in passes(schedule, 3):
        assert sorted(order) == list(range(10))


def test_learning_rates_decay_per_step() -> None:
    assert draw().learning_rates == pytest.approx([0.5 * 0.9**t for t in range(9)], rel=1e-15)


def test_orders_are_drawn_anew_each_epoch_or_once() -> None:
    first, second, third = passes(draw(), 3)
    assert first != second != third
    first, second, third = passes(draw(shuffle="once"), 3)
    assert first == second == third
    assert first != list(range(10))


def test_the_seed_fixes_everything() -> None:
    one, two = draw(seed=5), draw(seed=5)
    assert all(torch.equal(a, b) for a, b in zip(one.sample_ids, two.sample_ids, strict=True))
    assert passes(one, 3) != passes(draw(seed=6), 3)


def test_minibatches_do_not_depend_on_torch_random_state() -> None:
    torch.manual_seed(0)
    one = draw()
    torch.manual_seed(1)
    assert passes(one, 3) == passes(draw(), 3)


def test_a_batch_as_large_as_the_data_is_one_step() -> None:
    assert [len(batch) for batch in draw(batch_size=10).sample_ids] == [10] * 3


def test_first_visits_by_hand() -> None:
    batches = (torch.tensor([0, 3]), torch.tensor([1, 0]), torch.tensor([3, 2]))
    schedule = Schedule(batches, (0.1, 0.1, 0.1))
    # Samples 0 and 2 belong to unit 1, 1 to unit 0, 3 to unit 2; unit 3 owns none.
    owners = torch.tensor([1, 0, 1, 2])
    assert schedule.first_visits(owners, 4).tolist() == [1, 0, 0, 3]
