"""The leave-one-out engine for one unit is retraining without it."""

from pathlib import Path

import pytest
import torch

from pipeline.training.retraining import retrain
from tests import tolerances
from tests.cases import Case, compute, run_of
from tests.oracles import relative_error, retrained_without, trajectory

CASES = [
    Case("mlp-tanh", "remaining", "left-out", "step", "active", 0.6, False, "user"),
    Case("mlp-tanh", "remaining", "left-out", "step", "none", 0.0, False, "sample"),
    Case("mlp-silu", "batch", "left-out", "sample", "active", 0.6, True, "user"),
    Case("mlp-relu", "batch", "left-out", "step", "active", 0.0, False, "sample"),
    Case("logistic", "remaining", "left-out", "sample", "active", 0.6, True, "user"),
    Case("cnn-tanh", "remaining", "left-out", "step", "active", 0.6, False, "user"),
    # Nine samples leave the last minibatch of a pass empty for one of them.
    Case("mlp-tanh", "remaining", clip="active", momentum=0.6, num_samples=9),
    Case("mlp-tanh", "batch", l2_share="sample", momentum=0.6, num_samples=9),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_engine_is_retraining_of_one_unit(case: Case, tmp_path: Path) -> None:
    run = run_of(case)
    computed = compute(case.but(engine="leave-one-out"), tmp_path)
    trained = computed.trajectory.trained()
    for row, owned_n in zip(computed.rows_NP, case.owned_Nn, strict=True):
        ours = retrain(computed.problem, computed.trajectory.schedule, owned_n)
        assert relative_error(row, ours - trained) < tolerances.LEAVE_ONE_OUT
        independent = retrained_without(run, owned_n, case.convention)
        assert relative_error(row, independent - trajectory(run)[-1]) < tolerances.LEAVE_ONE_OUT


def test_the_engine_differs_from_the_linear_one(tmp_path: Path) -> None:
    # Guards the comparison: were both engines the same, it would say nothing about this one.
    case = Case("mlp-tanh", unit="user")
    exact = compute(case.but(engine="leave-one-out"), tmp_path / "exact")
    linear = compute(case, tmp_path / "linear")
    assert not torch.allclose(exact.rows_NP, linear.rows_NP, rtol=1e-3)
