"""Approximators of chosen groups: retraining, and a block's rows, are the oracles."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.approximators.block import BlockRecursion
from pipeline.approximators.groups import engines_of, propagate
from pipeline.config import RunConfig
from pipeline.run.problem import Problem
from pipeline.training.retraining import retrain
from pipeline.training.train import record

OPTIMIZERS: list[dict[str, Any]] = [
    {"learning_rate": 0.1, "l2": 0.01, "momentum": 0.5},
    {"learning_rate": 0.01, "optimizer": "adamw"},
]


def problem_of(training: dict[str, Any], **sections: Any) -> Problem:
    values: dict[str, Any] = {
        "data": {"source": "digits", "num_train": 40},
        "model": {"name": "mlp", "hidden": [6], "activation": "tanh"},
        "training": {"epochs": 2, "batch_size": 8, **training},
        "recursion": {"dtype": "float64", "chunk": 3},
    }
    return Problem.of(RunConfig.from_values(values | sections))


# They overlap, and more of them than a chunk holds.
GROUPS = [torch.tensor(group) for group in ([3], [5, 9, 30], [9], [3, 9], [0, 1, 2, 39])]


@pytest.mark.parametrize("training", OPTIMIZERS)
def test_by_leave_one_out_a_group_is_its_retraining(
    tmp_path: Path, training: dict[str, Any]
) -> None:
    problem = problem_of(training)
    trajectory = record(problem, tmp_path)
    found = propagate(problem, trajectory, {"leave-one-out": GROUPS})["leave-one-out"]
    for group, row_P in zip(GROUPS, found.rows_GP, strict=True):
        forgotten_n = torch.zeros(40, dtype=torch.bool)
        forgotten_n[group] = True
        moved_P = retrain(problem, trajectory.schedule, forgotten_n) - trajectory.trained()
        torch.testing.assert_close(row_P, moved_P, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("training", OPTIMIZERS)
def test_by_products_single_units_are_the_rows_of_a_block(
    tmp_path: Path, training: dict[str, Any]
) -> None:
    problem = problem_of(training)
    trajectory = record(problem, tmp_path)
    block = BlockRecursion(problem, trajectory, range(40))
    num_products = block.advance(trajectory.num_steps)
    rows_mP = torch.from_numpy(block.rows()).double()
    groups = [torch.tensor([unit]) for unit in range(39, -1, -1)]
    found = propagate(problem, trajectory, {"hvp": groups})["hvp"]
    # A block hands out float32.
    torch.testing.assert_close(found.rows_GP.flip(0), rows_mP, rtol=1e-5, atol=1e-7)
    # The chunks hold other units together, whose first visits differ: never more than that.
    assert found.num_products > 0
    assert abs(found.num_products - num_products) < 0.2 * num_products


def test_conventions_of_the_linear_recursion_allow_no_other_engine() -> None:
    def engines(**sections: Any) -> tuple[str, ...]:
        values = {"training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1}}
        return engines_of(RunConfig.from_values(values | sections))

    assert engines() == ("hvp", "leave-one-out")
    assert engines(recursion={"own_rows": "included"}) == ("hvp",)
    assert engines(certificate={"kind": "certified", "max_units": 1}) == ("hvp",)
