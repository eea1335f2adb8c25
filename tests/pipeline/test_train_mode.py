"""Dropout by key and batch normalisation by the minibatch: against plain torch, and retraining."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cluster.inspection import verify_run
from pipeline import (
    RunConfig,
    RunDirectory,
    delete,
    load_release,
    precompute,
    repair,
    replay_steps,
    train,
)
from pipeline.certificates.privacy import plan_release
from pipeline.deletion.context import TensorShape
from pipeline.deletion.staging import released_chunks
from pipeline.deletion.weights import DeletionState
from pipeline.errors import ConfigError, ModelError
from pipeline.hessian.hvp import Network
from pipeline.models.check import check_training_form, refuse_zero_gradients
from pipeline.models.losses import CrossEntropy
from pipeline.models.minibatch import Minibatch
from pipeline.models.train_mode import (
    KeyedDropout,
    active_parts,
    modes,
    refuse_unfollowed,
    sample_keys,
    training_form,
)
from pipeline.training.retraining import retrain
from tests import tolerances
from tests.cases import Case, Computed, compute, data_of, module_of, problem_of
from tests.oracles import relative_error
from tests.pipeline.fake_store import make_facts, use_key

WORD = 1 << 64


def mix(z: int) -> int:
    """SplitMix64's finaliser, in Python's own integers (Steele, Lea and Flood 2014)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


GAMMA, NUMBER = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9


def key_of(seed: int, step: int, sample: int) -> int:
    key = mix((seed + GAMMA) % WORD)
    key = mix((key + (step + 1) * GAMMA) % WORD)
    return mix((key + (sample + 1) * GAMMA) % WORD)


def scales(key: int, layer: int, size: int, p: float) -> list[float]:
    own = mix((key + layer * NUMBER) % WORD)
    draws = (mix((own + place * GAMMA) % WORD) >> 11 for place in range(1, size + 1))
    return [0.0 if draw / 2**53 < p else 1 / (1 - p) for draw in draws]


class TableDropout(nn.Module):
    """Dropout that multiplies by what the oracle wrote down for the samples of this pass."""

    def __init__(self, layer: int, p: float, by_channel: bool) -> None:
        super().__init__()
        self.layer, self.p, self.by_channel, self.keys = layer, p, by_channel, [0]

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[1:2] if self.by_channel else x.shape[1:]
        rows = [scales(key, self.layer, shape.numel(), self.p) for key in self.keys]
        table = torch.tensor(rows, dtype=x.dtype).view(len(x), *shape)
        return x * table.view(*table.shape, *[1] * (x.dim() - table.dim()))


def by_hand(case: Case, computed: Computed, without: int | None) -> Tensor:
    """Parameters and running statistics of a plain torch loop, one unit left out."""
    module = module_of(case).train()
    numbers = sorted(active_parts(module))
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Dropout | nn.Dropout2d):
            number = numbers.index(name)
            by_channel = isinstance(part, nn.Dropout2d)
            module.set_submodule(name, TableDropout(number, part.p, by_channel))
    settings: dict[str, Any] = {"lr": 0.1}
    if case.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            module.parameters(), weight_decay=0.1, eps=case.eps, **settings
        )
    else:
        optimizer = torch.optim.SGD(module.parameters(), weight_decay=case.l2, **settings)
    inputs, targets = data_of(case)
    schedule = computed.trajectory.schedule
    for step, ids in enumerate(schedule.sample_ids):
        kept = ids if without is None else ids[case.owners_n[ids] != without]
        optimizer.param_groups[0]["lr"] = schedule.learning_rates[step]
        for part in module.modules():
            if isinstance(part, TableDropout):
                part.keys = [key_of(7, step, sample) for sample in kept.tolist()]
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs[kept]), targets[kept]).backward()
        optimizer.step()
    return computed.problem.network.layout.read(module)


ADAMW = {"optimizer": "adamw", "learning_rate": 0.05, "l2": 0.0, "weight_decay": 0.1, "eps": 1e-6}
CASES = [
    # torch refuses to normalise a single row: no minibatch may lose all but one.
    Case(network, unit=unit, batch_size=4 if unit == "sample" else 11, **extra)
    for network in ("mlp-norm", "cnn-norm", "mlp-dropout")
    for unit, extra in (("sample", {}), ("user", {}), ("user", ADAMW))
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_and_the_leave_one_out_engine_are_torchs_own(case: Case, tmp_path: Path) -> None:
    hvp = "r-operator" if case.network == "mlp-dropout" else "reverse"
    computed = compute(case.but(engine="leave-one-out", hvp=hvp), tmp_path)
    trained_P = computed.trajectory.trained()
    assert relative_error(trained_P, by_hand(case, computed, None)) < tolerances.BY_HAND
    for unit, row_P in enumerate(computed.rows_NP):
        expected_P = by_hand(case, computed, unit)
        ours_P = retrain(computed.problem, computed.trajectory.schedule, case.owners_n == unit)
        assert relative_error(ours_P, expected_P) < tolerances.BY_HAND
        assert relative_error(trained_P + row_P, expected_P) < tolerances.BY_HAND


@pytest.mark.parametrize("extra", [{}, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("form", ["reverse", "forward-over-reverse"])
@pytest.mark.parametrize("network", ["mlp-norm", "cnn-norm", "mlp-dropout"])
def test_rows_by_hessian_products_are_near(
    network: str, form: str, extra: dict[str, Any], tmp_path: Path
) -> None:
    case = Case(network, hvp=form, epochs=1, num_samples=10, **extra).but(learning_rate=0.002)
    computed = compute(case, tmp_path)
    exact = compute(case.but(engine="leave-one-out"), tmp_path / "exact").rows_NP
    moves = computed.problem.network.layout.trained.num_parameters
    for part in (slice(None, moves), slice(moves, None)):
        if exact[:, part].numel():
            # Second order in the rate of the training, which is small here.
            assert relative_error(computed.rows_NP[:, part], exact[:, part]) < 0.02


@pytest.mark.parametrize("engine", ["hvp", "leave-one-out"])
def test_an_emptied_minibatch_moves_no_statistics(engine: str, tmp_path: Path) -> None:
    # The last minibatch of a pass over 9 samples holds one, whose unit leaves it empty.
    case = Case("mlp-norm", num_samples=9, engine=engine, epochs=6, learning_rate=0.02)
    computed = compute(case.but(hvp="reverse"), tmp_path)
    schedule, trained_P = computed.trajectory.schedule, computed.trajectory.trained()
    alone = {int(ids[0]) for ids in schedule.sample_ids if len(ids) == 1}
    assert alone
    for unit in alone:
        moved_P = retrain(computed.problem, schedule, case.owners_n == unit) - trained_P
        found_P = computed.rows_NP[unit]
        for part in (slice(-10), slice(-10, None)):
            error = relative_error(found_P[part], moved_P[part])
            assert error < (tolerances.BY_HAND if engine == "leave-one-out" else 0.2)


def test_steps_that_running_statistics_forget_cost_nothing(tmp_path: Path) -> None:
    size = {"num_samples": 8, "epochs": 52, "unit": "user"}
    case = Case("cnn-norm", hvp="reverse", engine="leave-one-out", learning_rate=0.01, **size)
    computed = compute(case, tmp_path)
    assert 0.7**computed.trajectory.num_steps < 2.0**-53 < 0.7
    schedule, trained_P = computed.trajectory.schedule, computed.trajectory.trained()
    for unit in (0, 3):
        retrained_P = retrain(computed.problem, schedule, case.owners_n == unit)
        found_P = trained_P + computed.rows_NP[unit]
        assert relative_error(found_P, retrained_P) < tolerances.BY_HAND


def test_forms_agree_with_the_r_operator_under_dropout(tmp_path: Path) -> None:
    rows = [
        compute(Case("mlp-dropout", hvp=form, unit="user"), tmp_path / form).rows_NP
        for form in ("r-operator", "reverse", "forward-over-reverse")
    ]
    assert relative_error(rows[1], rows[0]) < tolerances.JVP
    assert relative_error(rows[2], rows[0]) < tolerances.JVP


def test_the_objective_is_compiled_in_one_piece() -> None:
    """On a GPU it is compiled inside `vmap` and `jvp`, where torch fails if it must be broken up."""
    problem = problem_of(Case("mlp-dropout", hvp="forward-over-reverse"))
    network, batch = problem.network, problem.minibatch(torch.arange(4), 3)
    assert batch.keys is not None
    tensors = network.parameters(problem.initial_P)
    compiled = torch.compile(network.loss_sum, dynamic=False, backend="eager", fullgraph=True)
    # Before the network is called otherwise: what it keeps on first use would be there already.
    found = compiled(tensors, batch)
    assert relative_error(found, network.loss_sum(tensors, batch)) < tolerances.HVP


def test_a_samples_draws_are_its_own() -> None:
    layer = KeyedDropout(0.25, 3, by_channel=False)
    keys = sample_keys(42, 7, torch.arange(1000))
    layer.keys = keys
    inputs = torch.ones(1000, 40)
    outputs = layer(inputs)
    assert set(outputs.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert float((outputs == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    layer.keys = keys[[400, 3]]
    assert torch.equal(layer(inputs[:2]), outputs[[400, 3]])
    layer.keys = sample_keys(42, 8, torch.arange(1000))
    assert not torch.equal(layer(inputs), outputs)
    layer.keys = torch.empty(0, dtype=torch.int64)
    assert layer(inputs) is inputs


def test_evaluation_drops_nothing_and_takes_running_statistics() -> None:
    problem = problem_of(Case("cnn-norm", hvp="reverse"))
    inputs, _ = data_of(Case("cnn-norm"))
    plain = module_of(Case("cnn-norm")).eval()
    found = problem.network.outputs(problem.initial_P, inputs)
    torch.testing.assert_close(found, plain(inputs))
    assert problem.minibatch(torch.arange(3)).keys is None


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (nn.AlphaDropout(0.1), "AlphaDropout.*draws at random"),
        (nn.BatchNorm1d(4, track_running_stats=False), "keeps no running statistics"),
        (nn.BatchNorm1d(4, momentum=None), "take nn.BatchNorm1d.*momentum"),
        (nn.SyncBatchNorm(4), "SyncBatchNorm.*cannot be followed"),
        (nn.Dropout(1.0), "Dropout.*draws at random"),
    ],
)
def test_parts_that_cannot_be_followed_are_refused(part: nn.Module, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        refuse_unfollowed(nn.Sequential(nn.Linear(4, 4), part))


class Functional(nn.Module):
    """Dropout that no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.linear(x), 0.5, self.training)
        out: Tensor = self.drop(x)
        return out


def test_functional_dropout_is_refused() -> None:
    for module, refused in ((Functional(), True), (nn.Sequential(nn.Dropout(0.5)), False)):
        active, as_made = active_parts(module), modes(module)
        module.eval()
        if not refused:
            check_training_form(module, active, as_made, torch.ones(8, 4))
            continue
        with pytest.raises(ModelError, match="by other means than"):
            check_training_form(module, active, as_made, torch.ones(8, 4))


def test_minibatch_statistics_need_conventions_of_what_remains(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "data": {"num_train": 20, "source": "digits", "image_size": 8},
        "model": {"name": "resnet18", "normalization": "batch", "stem": "small"},
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
        "retraining": {"denominator": "batch"},
    }
    with pytest.raises(ConfigError, match=r"needs retraining\.denominator remaining"):
        train(RunConfig.from_values(values), tmp_path / "run")


def test_a_bias_before_minibatch_statistics_is_refused_with_adam() -> None:
    layers = nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)
    module = nn.Sequential(*layers)
    active = active_parts(module)
    module.eval()
    inputs = torch.randn(16, 4)
    refuse_zero_gradients(module, inputs)
    with pytest.raises(ModelError, match=r"gradient of 1\.bias is zero"):
        refuse_zero_gradients(training_form(module, active), inputs)


def test_the_training_form_shares_its_tensors() -> None:
    module = module_of(Case("cnn-norm"))
    active = active_parts(module)
    form = training_form(module.eval(), active)
    shared = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    assert all(id(parameter) in shared for parameter in form.parameters())
    network = Network.of(module, CrossEntropy(), "reverse", active)
    assert network.layout.names[-2:] == ("1.running_mean", "1.running_var")
    size = network.layout.num_parameters
    assert network.layout.variances() == [slice(size - 2, size)]
    inputs, targets = data_of(Case("cnn-norm"))
    assert network.couples
    w_P = network.layout.read(network.training)
    gradient_P = network.linearize(w_P, Minibatch(inputs, targets)).gradient_sum()
    assert not gradient_P[-4:].any()


def normalised_run(folder: Path, **training: Any) -> RunDirectory:
    values: dict[str, Any] = {
        "data": {"source": "digits", "num_train": 40},
        "model": {"name": "tests.examples.perceptron:normalised"},
        "training": {"epochs": 6, "batch_size": 16, "learning_rate": 0.05, **training},
    }
    return train(RunConfig.from_values(values), folder)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_life_of_a_run_with_batch_normalisation(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, tmp_path)
    rate = 0.05 if optimizer == "sgd" else 0.005
    run = normalised_run(tmp_path / "run", optimizer=optimizer, learning_rate=rate)
    units, problem, trajectory = precompute(run).units, run.problem(), run.trajectory()
    trained_P = trajectory.trained()
    first, *_, last = replay_steps(run)
    assert len(first.parameters) == len(last.parameters) == problem.num_parameters - 24
    delete(run, units[:1])
    released = load_release(run.path)
    found_P = problem.network.layout.read(released)
    gone = torch.tensor([name == units[0] for name in problem.data.units])
    retrained_P = retrain(problem, trajectory.schedule, gone)
    size = problem.network.layout.trained.num_parameters
    for part in (slice(size), slice(size, None)):
        left = (found_P - retrained_P)[part].norm() / (trained_P - retrained_P)[part].norm()
        assert float(left) < 0.35
    assert verify_run(run).damage == []
    certificate = json.loads((run.path / "releases/1/certificate.json").read_text())
    assert "running variances" in certificate["post_processing"]
    repair(run, epochs=1)
    delete(run, units[5:7])
    assert verify_run(run).damage == []


def test_running_variances_are_clamped_after_sum_and_noise() -> None:
    tensors = (TensorShape("w", (3,)), TensorShape("norm.running_var", (2,)))
    trained_P = np.array([1, 1, 1, 0.5, 0.5], np.float32)
    facts = make_facts(trained_P=trained_P, tensors=tensors)
    assert facts.variances == (slice(3, 5),)
    state = DeletionState(np.array([-2.0, 0, 0, -2.0, 1.0]))
    mechanism = replace(plan_release(facts.declared, 1, None, None), sigma=1.0)
    (chunk_P,) = released_chunks(facts, state, mechanism, lambda size: np.full(size, -1.0))
    assert chunk_P[3] == 0.0
    assert chunk_P[0] < 0
