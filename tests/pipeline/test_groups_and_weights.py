"""Groups of parameters with settings of their own, and samples that weigh differently."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import RunConfig, replay_steps, train
from pipeline.approximators.coupled import coupled_change
from pipeline.errors import ConfigError
from pipeline.hessian.roperator import Pairs
from pipeline.training.retraining import retrain
from pipeline.training.step import step_context
from tests import tolerances
from tests.cases import Case, compute, problem_of, run_of
from tests.oracles import relative_error, retrained_without, trajectory, weight_derivatives

BOTH = Case(weighted=True, grouped=True)
ADAMW = {"optimizer": "adamw", "learning_rate": 0.05, "l2": 0.0, "weight_decay": 0.1}
ADAM = {"optimizer": "adam", "learning_rate": 0.05}
# Each sample is a minibatch of its own, so one minibatch weighs nothing, and each unit owns some whole.
ALONE = Case(weighted=True, batch_size=1, epochs=2)
BY_SAMPLE = ALONE.but(denominator="batch", l2_share="sample")
LEFT_OUT = [
    BOTH.but(momentum=0.6),
    BOTH.but(denominator="batch", l2_share="sample", unit="user"),
    BOTH.but(unit="user", clip="active", momentum=0.6, nesterov=True),
    BOTH.but(num_samples=9, clip="active"),
    BOTH.but(**ADAMW, unit="user"),
    BOTH.but(**ADAMW, clip="active", num_samples=9),
    BOTH.but(**ADAM, denominator="batch", l2_share="sample", unit="user"),
    BOTH.but(**ADAM, weighted=False),
    BOTH.but(**ADAMW, grouped=False),
]
INCLUDED = [
    BOTH.but(own_rows="included", clip="active", momentum=0.6),
    BOTH.but(own_rows="included", denominator="batch", unit="user"),
    BOTH.but(own_rows="included", denominator="batch", l2_share="sample"),
    BOTH.but(own_rows="included", **ADAMW, eps=1e-3),
    BOTH.but(own_rows="included", **ADAM, eps=1e-3, unit="user"),
    BY_SAMPLE.but(own_rows="included", unit="user"),
    BY_SAMPLE.but(own_rows="included", **ADAM, eps=1e-3),
]


def check_retraining(case: Case, folder: Path, tolerance: float) -> None:
    run, computed = run_of(case), compute(case, folder)
    trained = trajectory(run)[-1]
    assert relative_error(computed.trajectory.trained(), trained) < tolerances.JVP
    for row, owned_n in zip(computed.rows_NP, case.owned_Nn, strict=True):
        expected = retrained_without(run, owned_n, case.convention)
        ours = retrain(computed.problem, computed.trajectory.schedule, owned_n)
        assert relative_error(ours, expected) < tolerances.JVP
        if float(run.masses(owned_n.nonzero().squeeze(1)).sum()) == 0:
            # Nobody misses a sample without weight.
            assert float(row.norm()) < tolerance
            continue
        assert relative_error(row, expected - trained) < tolerance


@pytest.mark.parametrize("case", LEFT_OUT, ids=str)
def test_a_unit_left_out_on_ridge_is_retraining(case: Case, tmp_path: Path) -> None:
    check_retraining(case.but(network="ridge"), tmp_path, tolerances.ADAM_RIDGE)


@pytest.mark.parametrize("case", LEFT_OUT, ids=str)
def test_the_leave_one_out_engine_is_retraining(case: Case, tmp_path: Path) -> None:
    case = case.but(network="mlp-tanh", engine="leave-one-out")
    check_retraining(case, tmp_path, tolerances.ADAM_RIDGE)


@pytest.mark.parametrize("form", ["r-operator", "reverse", "forward-over-reverse"])
@pytest.mark.parametrize("case", INCLUDED, ids=str)
def test_rows_are_the_derivative_of_training(case: Case, form: str, tmp_path: Path) -> None:
    case = case.but(network="mlp-tanh", hvp=form)
    expected = weight_derivatives(run_of(case), case.owned_Nn, case.convention)
    # Sample 4 weighs nothing: its derivative is 0, up to rounding.
    found, weighs = compute(case, tmp_path).rows_NP, expected.norm(dim=1) > 1e-12
    assert relative_error(found[weighs], expected[weighs]) < tolerances.JVP
    assert float(found[~weighs].norm()) < tolerances.JVP


WEIGHTLESS = [
    ALONE.but(momentum=0.6),
    ALONE.but(unit="user", clip="active"),
    ALONE.but(denominator="batch", clip="active"),
    BY_SAMPLE.but(momentum=0.6),
    BY_SAMPLE.but(unit="user"),
    BY_SAMPLE.but(**ADAM),
    ALONE.but(**ADAMW),
    ALONE.but(**ADAMW, denominator="batch", unit="user"),
]


@pytest.mark.parametrize("engine", ["hvp", "leave-one-out"])
@pytest.mark.parametrize("case", WEIGHTLESS, ids=str)
def test_a_minibatch_that_weighs_nothing_takes_its_l2_term(
    case: Case, engine: str, tmp_path: Path
) -> None:
    case = case.but(network="ridge", engine=engine)
    check_retraining(case, tmp_path, tolerances.ADAM_RIDGE)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "linear"])
def test_statistics_of_a_minibatch_that_weighs_nothing_leave_only_the_l2_term(exact: bool) -> None:
    problem = problem_of(Case("mlp-norm", weighted=True, hvp="reverse"))
    batch = replace(
        problem.minibatch(torch.arange(4)), weights=torch.zeros(4), masses=torch.zeros(4)
    )
    w_P, coefficients = problem.initial_P, problem.coefficients
    context = step_context(problem.network, w_P, batch, 0.3, coefficients)
    rows_VP = torch.randn(2, len(w_P), dtype=w_P.dtype, generator=torch.Generator().manual_seed(0))
    nobody = Pairs(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    change_VP = coupled_change(rows_VP, context, nobody, exact)
    assert relative_error(change_VP, coefficients.l2 * rows_VP) < tolerances.JVP


OPTIMIZERS: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_recorded_run_with_groups_has_the_bits_of_torch(name: str, tmp_path: Path) -> None:
    groups = [
        {"parameters": "*.bias", "weight_decay": 0.0},
        {"parameters": "3.*", "learning_rate": 0.002},
    ]
    values: dict[str, Any] = {
        "data": {"source": "digits", "num_train": 50},
        "model": {"name": "mlp", "hidden": [7], "activation": "tanh"},
        "training": {
            "epochs": 3,
            "batch_size": 16,
            "learning_rate": 0.01,
            "optimizer": name,
            "weight_decay": 0.05,
            "groups": groups,
        },
    }
    run = train(RunConfig.from_values(values), tmp_path / "run")
    problem = run.problem()
    names = problem.network.layout.names
    tensors = {
        n: nn.Parameter(value.clone())
        for n, value in problem.network.layout.unflatten(problem.initial_P).items()
    }
    assert names == ("1.weight", "1.bias", "3.weight", "3.bias")
    settings = [
        {"params": [tensors["1.weight"]], "weight_decay": 0.05, "lr": 0.01},
        {"params": [tensors["1.bias"], tensors["3.bias"]], "weight_decay": 0.0, "lr": 0.01},
        {"params": [tensors["3.weight"]], "weight_decay": 0.05, "lr": 0.002},
    ]
    optimizer = OPTIMIZERS[name](settings, foreach=False)
    with problem.arithmetic():
        for step, recorded in enumerate(replay_steps(run)):
            flat_P = problem.network.layout.flatten({n: t.detach() for n, t in tensors.items()})
            assert torch.equal(flat_P, recorded.parameters)
            ids = run.trajectory().schedule.sample_ids[step]
            linearization = problem.network.linearize(flat_P, problem.minibatch(ids))
            mean_P = linearization.gradient_sum() / len(ids)
            for n, value in problem.network.layout.unflatten(mean_P).items():
                tensors[n].grad = value.clone()
            optimizer.step()


def config(**training: Any) -> RunConfig:
    values: dict[str, Any] = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1}
    return RunConfig.from_values({"data": {"num_train": 20}, "training": {**values, **training}})


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (
            [{"parameters": "head.*", "weight_decay": 0.0}],
            r"groups\[0\].*'head\.\*' fits no .*weight",
        ),
        ([{"parameters": "*"}, {"parameters": "*bias"}], r"groups\[1\].*an earlier group leaves"),
        ([{"parameters": "*", "decay": 1.0}], r"groups\.0\.decay|groups\[0\]\.decay"),
        ([{"parameters": "*", "learning_rate": -1.0}], r"learning_rate"),
    ],
)
def test_groups_that_cannot_be_meant_are_refused(
    groups: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        train(config(groups=groups), tmp_path / "run")


def test_a_group_that_says_what_holds_for_all_changes_nothing(tmp_path: Path) -> None:
    # L2 as a vector takes the same two roundings as the number; only Adam's clones may differ.
    alike = config(l2=0.1, groups=[{"parameters": "*.weight", "weight_decay": 0.1}])
    first = train(config(l2=0.1), tmp_path / "plain").trajectory().trained()
    assert torch.equal(train(alike, tmp_path / "grouped").trajectory().trained(), first)
