"""Adam and AdamW: torch's bits in training, approximators against derivatives and retraining."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cluster.inspection import verify_run
from pipeline import RunConfig, delete, precompute, repair, replay_steps, train
from pipeline.approximators.block import BlockRecursion
from pipeline.errors import ConfigError, ModelError
from pipeline.models.check import refuse_zero_gradients
from pipeline.run.schedule import learning_rates
from pipeline.training.retraining import retrain
from pipeline.training.train import record
from tests import tolerances
from tests.cases import CLASSES, Case, compute, in_unit_order, problem_of, run_of, whole_and_resumed
from tests.oracles import relative_error, retrained_without, trajectory, weight_derivatives
from tests.pipeline.fake_store import use_key

ADAM = Case("ridge", optimizer="adam", learning_rate=0.05)
ADAMW = Case("ridge", optimizer="adamw", learning_rate=0.05, l2=0.0, weight_decay=0.1)
BOTH = [ADAM, ADAMW]


def variants(case: Case) -> list[Case]:
    """Both denominators, clipping that fires and none, samples and users, an emptied minibatch."""
    return [
        case,
        case.but(denominator="batch"),
        case.but(clip="active"),
        case.but(unit="user", clip="active"),
        case.but(unit="user", denominator="batch", l2_share="sample"),
        case.but(num_samples=9),
        case.but(eps=1e-3),
    ]


@pytest.mark.parametrize("case", [v for c in BOTH for v in variants(c)], ids=str)
def test_a_unit_left_out_on_ridge_is_retraining(case: Case, tmp_path: Path) -> None:
    run, computed = run_of(case), compute(case, tmp_path)
    trained = trajectory(run)[-1]
    assert relative_error(computed.trajectory.trained(), trained) < tolerances.JVP
    for row, owned_n in zip(computed.rows_NP, case.owned_Nn, strict=True):
        expected = retrained_without(run, owned_n, case.convention) - trained
        assert relative_error(row, expected) < tolerances.ADAM_RIDGE


@pytest.mark.parametrize("network", ["ridge", "mlp-tanh"])
@pytest.mark.parametrize("case", [v for c in BOTH for v in variants(c)], ids=str)
def test_the_leave_one_out_engine_is_retraining(case: Case, network: str, tmp_path: Path) -> None:
    case = case.but(network=network, engine="leave-one-out")
    run, computed = run_of(case), compute(case, tmp_path)
    trained = trajectory(run)[-1]
    for row, owned_n in zip(computed.rows_NP, case.owned_Nn, strict=True):
        expected = retrained_without(run, owned_n, case.convention) - trained
        assert relative_error(row, expected) < tolerances.ADAM_RIDGE


@pytest.mark.parametrize("network", ["logistic", "mlp-tanh"])
@pytest.mark.parametrize("case", [v for c in BOTH for v in variants(c)[:5]], ids=str)
def test_rows_of_the_full_batch_hessian_are_the_derivative_of_training(
    case: Case, network: str, tmp_path: Path
) -> None:
    case = case.but(network=network, own_rows="included", eps=1e-3)
    expected = weight_derivatives(run_of(case), case.owned_Nn, case.convention)
    computed = compute(case, tmp_path)
    assert relative_error(computed.rows_NP, expected) < tolerances.JVP


@pytest.mark.parametrize("case", BOTH, ids=str)
def test_retraining_is_the_definition(case: Case) -> None:
    problem, run = problem_of(case.but(network="mlp-tanh")), run_of(case.but(network="mlp-tanh"))
    from pipeline.run.schedule import Schedule

    schedule = Schedule.draw(problem.config.training, case.num_samples, problem.config.seed)
    mask = torch.arange(case.num_samples) == 2
    expected = retrained_without(run, mask, case.convention)
    assert relative_error(retrain(problem, schedule, mask), expected) < tolerances.JVP


OPTIMIZERS = {
    "adam": (torch.optim.Adam, {"l2": 0.01}, {"weight_decay": 0.01}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.05}, {"weight_decay": 0.05}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_recorded_run_has_the_bits_of_torch(name: str, dtype: str, tmp_path: Path) -> None:
    kind, ours, theirs = OPTIMIZERS[name]
    values: dict[str, Any] = {
        "data": {"source": "digits", "num_train": 50},
        "model": {"name": "mlp", "hidden": [7], "activation": "tanh"},
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "optimizer": name},
        "recursion": {"dtype": dtype},
    }
    values["training"] |= ours
    run = train(RunConfig.from_values(values), tmp_path / "run")
    problem = run.problem()
    vector_P = problem.initial_P.clone().requires_grad_()
    optimizer = kind([vector_P], lr=0.01, foreach=False, **theirs)
    schedule = run.trajectory().schedule
    with problem.arithmetic():
        for step, recorded in enumerate(replay_steps(run)):
            assert torch.equal(vector_P.detach().float(), recorded.parameters)
            ids = schedule.sample_ids[step]
            linearization = problem.network.linearize(vector_P.detach(), problem.minibatch(ids))
            vector_P.grad = linearization.gradient_sum() / len(ids)
            optimizer.step()
    assert torch.equal(vector_P.detach(), run.trajectory().trained())


def test_a_parameter_that_one_unit_alone_touches_is_left_untouched_without_it(
    tmp_path: Path,
) -> None:
    """Its moments without the unit are exactly 0 in float32, and it ends where it began to decay."""
    case = Case("ridge", optimizer="adamw", learning_rate=0.05, l2=0.0, dtype="float32", epochs=6)
    problem = problem_of(case)
    problem.data.inputs[:, 1] = 0.0
    problem.data.inputs[3, 1] = 1.7
    recorded = record(problem, tmp_path)
    block = BlockRecursion(problem, recorded, range(case.num_units))
    block.advance(recorded.num_steps)
    chunk = next(chunk for chunk in block.chunks if 3 in chunk.units.tolist())
    place = chunk.units.tolist().index(3)
    touched = problem.network.layout.unflatten(torch.arange(problem.num_parameters))["weight"][:, 1]
    for moments_KP in chunk.state.buffers:
        assert torch.equal(moments_KP[place, touched], torch.zeros(len(touched)))
    retrained_P = retrain(problem, recorded.schedule, torch.arange(case.num_samples) == 3)
    found_P = recorded.trained() + in_unit_order(block)[3]
    assert relative_error(found_P[touched], retrained_P[touched]) < tolerances.ADAM_FLOAT32


def test_saved_and_resumed_states_have_the_bits_of_one_go(tmp_path: Path) -> None:
    case = ADAMW.but(network="mlp-tanh", checkpoint_every=4)
    whole, resumed = whole_and_resumed(case, tmp_path, 5)
    assert torch.equal(in_unit_order(resumed), in_unit_order(whole))
    assert whole.replay.max_drift == 0.0


def rates_of_torch(kind: str, num_steps: int, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = getattr(torch.optim.lr_scheduler, kind)(optimizer, **settings)
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("training", "kind", "settings"),
    [
        ({"schedule": "cosine"}, "CosineAnnealingLR", {"T_max": 40}),
        (
            {"schedule": "linear"},
            "LinearLR",
            {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 40},
        ),
        (
            {"schedule": "step", "step_size": 7, "gamma": 0.5},
            "StepLR",
            {"step_size": 7, "gamma": 0.5},
        ),
        ({"learning_rate_decay": 0.9}, "ExponentialLR", {"gamma": 0.9}),
        ({"schedule": "one-cycle"}, "OneCycleLR", {"max_lr": 0.1, "total_steps": 40}),
    ],
)
def test_schedules_are_those_of_torch(
    training: dict[str, Any], kind: str, settings: dict[str, Any]
) -> None:
    values = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, **training}
    config = RunConfig.from_values({"training": values}).training
    assert learning_rates(config, 40) == pytest.approx(
        rates_of_torch(kind, 40, **settings), rel=1e-9
    )


def test_a_warmup_rises_to_the_rate_that_the_schedule_then_follows() -> None:
    values = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "schedule": "cosine"}
    config = RunConfig.from_values({"training": {**values, "warmup_steps": 4}}).training
    rates = learning_rates(config, 24)
    assert np.allclose(rates[:5], [0.02, 0.04, 0.06, 0.08, 0.1])
    plain = RunConfig.from_values({"training": values}).training
    assert rates[4:] == learning_rates(plain, 20)
    with pytest.raises(ConfigError, match=r"warmup_steps is 4.*takes 4 steps"):
        learning_rates(config, 4)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"optimizer": "adam", "momentum": 0.9}, "momentum.*adam has betas"),
        ({"optimizer": "adamw", "l2": 0.1}, "training.l2 0.1.*weight_decay"),
        ({"weight_decay": 0.1, "l2": 0.2}, "two names of one term"),
        ({"betas": [0.8, 0.9]}, "betas.*need training.optimizer"),
        ({"schedule": "step"}, "step_size need each other"),
        ({"schedule": "cosine", "learning_rate_decay": 0.9}, "belongs to schedule constant"),
        ({"learning_rates": [0.1], "warmup_steps": 1}, "replaces schedule"),
        ({"amsgrad": True}, "amsgrad is not supported"),
        ({"optimizer": "lion"}, "optimizer"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(training: dict[str, Any], said: str) -> None:
    values = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_values({"training": {**values, **training}})


def test_weight_decay_is_l2_with_sgd_and_has_torchs_default_with_adamw() -> None:
    values = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}
    sgd = RunConfig.from_values({"training": {**values, "weight_decay": 0.1}}).training
    assert (sgd.l2, sgd.weight_decay) == (0.1, None)
    adamw = RunConfig.from_values({"training": {**values, "optimizer": "adamw"}}).training
    assert (adamw.l2, adamw.weight_decay) == (0.0, 0.01)


class KeyBias(nn.Module):
    """Attention over the features' pixels: a bias of the keys shifts all scores of a row alike."""

    def __init__(self, key_bias: bool) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(4, 3), nn.Linear(4, 3, bias=key_bias)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(1).view(len(x), -1, 4)
        scores = self.query(tokens) @ self.key(tokens).transpose(1, 2)
        out: torch.Tensor = self.head((scores.softmax(2) @ tokens).mean(1))
        return out


def test_a_parameter_without_gradient_is_refused_by_name() -> None:
    inputs = torch.randn(16, 1, 4, 4)
    refuse_zero_gradients(KeyBias(key_bias=False), inputs)
    with pytest.raises(ModelError, match=r"gradient of key\.bias is zero"):
        refuse_zero_gradients(KeyBias(key_bias=True), inputs)
    # Zero at the start is not zero for good.
    late = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    nn.init.zeros_(late[3].weight)
    refuse_zero_gradients(late, inputs)


def test_repair_and_deletion_follow_adam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole life of a run: trained, precomputed, deleted from, repaired, deleted from again."""
    use_key(monkeypatch, tmp_path)
    values = {
        "data": {"source": "digits", "num_train": 60},
        "model": {"name": "mlp", "hidden": [12], "activation": "tanh"},
        "training": {
            "epochs": 12,
            "batch_size": 16,
            "learning_rate": 0.01,
            "optimizer": "adamw",
            "schedule": "cosine",
            "warmup_steps": 4,
            "clip_norm": 1.0,
        },
    }
    run = train(RunConfig.from_values(values), tmp_path / "run")
    units = precompute(run).units
    trained_P, problem = run.trajectory().trained(), run.problem()

    def left(release: int, deleted: list[str]) -> float:
        model = load_file(run.path / "releases" / str(release) / "model.safetensors")
        names = problem.network.layout.names
        released_P = torch.cat([model[name].flatten() for name in names])
        mask = torch.tensor([name in deleted for name in problem.data.units])
        retrained_P = retrain(problem, run.trajectory().schedule, mask)
        return float((released_P - retrained_P).norm() / (trained_P - retrained_P).norm())

    assert left(delete(run, units[:1]).release or 0, list(units[:1])) < 0.1
    assert left(delete(run, units[1:4]).release or 0, list(units[:4])) < 0.3
    assert verify_run(run).damage == []
    assert repair(run, epochs=1).num_samples == 56
    assert delete(run, units[5:6]).units_deleted == 1
    assert verify_run(run).damage == []
