"""Runs of every loss: approximators against the oracle, and figures, reports and audits of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, mean_poisson_deviance, mean_squared_error, r2_score
from torch import Tensor, nn

from cluster.console import Reporter
from cluster.whole_run import run_all
from pipeline import RunConfig, delete
from pipeline.approximators.block import BlockRecursion
from pipeline.certificates.declaration import check_settings, declare, group_shares
from pipeline.errors import ConfigError, ModelError
from pipeline.evaluation.accuracy import figures, held_out_quality, training_loss
from pipeline.evaluation.audit import AttackPlan, AuditPlan, run_audit
from pipeline.evaluation.audit_trial import Subject
from pipeline.evaluation.membership import posterior_difference
from pipeline.evaluation.privacy_utility import NoisePlan
from pipeline.evaluation.report import read_report, write_report
from pipeline.evaluation.trials import local_sum
from pipeline.hessian.hvp import Network
from pipeline.models.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Huber,
    Loss,
    OwnLoss,
    Poisson,
    SquaredError,
    TokenCrossEntropy,
)
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from pipeline.training.loop_checks import check_loss
from pipeline.training.train import record
from storage.store import ApproximatorStore
from storage.summation import MAX_WEIGHT
from tests import tolerances
from tests.cases import CLASSES, Case, in_unit_order, problem_of, run_of
from tests.examples.losses import focal
from tests.oracles import Run, cross_entropy, relative_error, weight_derivatives
from tests.pipeline.fake_store import use_key
from tests.pipeline.test_report import parsed

GENERATOR = torch.Generator().manual_seed(2)
N = 11
NUMBERS = torch.randn(N, CLASSES, generator=GENERATOR, dtype=torch.float64)
TRUTH = (NUMBERS > 0).double()
COUNTS = (3 * NUMBERS.abs()).floor()
CLASS_WEIGHTS = (0.4, 1.0, 2.5)


def huber(z: Tensor, y: Tensor) -> Tensor:
    r = (z - y).abs()
    return torch.where(r < 0.6, r**2 / 2, 0.6 * (r - 0.3)).mean(1)


def binary(z: Tensor, y: Tensor) -> Tensor:
    return (torch.log1p(torch.exp(-z.abs())) + z.clamp(min=0) - z * y).mean(1)


# Ours, its definition, the targets.
RUNS: dict[str, tuple[Loss, Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "binary": (BinaryCrossEntropy(), binary, TRUTH),
    "squared error": (SquaredError(), lambda z, y: ((z - y) ** 2).mean(1), NUMBERS),
    "huber": (Huber(0.6), huber, NUMBERS),
    "poisson": (Poisson(), lambda z, y: (torch.exp(z) - y * z).mean(1), COUNTS),
    "own": (OwnLoss(focal), focal, torch.arange(N) % 3),
}


def with_loss(case: Case, loss: Loss, targets: Tensor) -> Problem:
    problem = problem_of(case)
    network = Network.of(problem.network.module, loss, case.config.recursion.hvp)
    data = replace(problem.data, targets=targets, test_targets=targets)
    return replace(problem, data=data, network=network)


def rows_of(problem: Problem, folder: Path) -> Tensor:
    trajectory = record(problem, folder)
    block = BlockRecursion(problem, trajectory, range(len(problem.data.units)))
    block.advance(trajectory.num_steps)
    return in_unit_order(block)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", RUNS)
def test_approximators_are_derivatives_of_training(
    name: str, weighted: bool, tmp_path: Path
) -> None:
    loss, definition, targets = RUNS[name]
    case = Case("mlp-tanh", own_rows="included", clip="none", unit="user", weighted=weighted)
    found = rows_of(with_loss(case, loss, targets), tmp_path)
    run = replace(run_of(case), loss=definition, targets=targets)
    expected = weight_derivatives(run, case.owned_Nn, case.convention)
    assert relative_error(found, expected) < tolerances.JVP


def test_class_weights_are_weights_of_their_samples(tmp_path: Path) -> None:
    # A mean of class-weighted losses is that of samples with their classes' weights, by definition.
    case = Case("mlp-tanh", momentum=0.9)
    plain = problem_of(case)
    weights = torch.tensor(CLASS_WEIGHTS, dtype=torch.float64)[plain.data.targets]
    by_sample = replace(plain, data=replace(plain.data, weights=weights))
    by_class = with_loss(case, CrossEntropy(0.0, CLASS_WEIGHTS), plain.data.targets)
    assert by_class.unit_masses() == by_sample.unit_masses()
    found, expected = rows_of(by_class, tmp_path / "a"), rows_of(by_sample, tmp_path / "b")
    assert relative_error(found, expected) < tolerances.JVP


@pytest.mark.parametrize("num_samples", [11, 100, 100_000])
def test_all_masses_together_are_a_weight_that_the_store_takes(num_samples: int) -> None:
    plain = problem_of(Case())
    weights = torch.rand(num_samples, generator=GENERATOR, dtype=torch.float64)
    rows = torch.arange(num_samples) % N
    data = replace(plain.data, weights=weights, targets=plain.data.targets[rows])
    masses = replace(plain, data=data).sample_masses()
    assert masses is not None and masses.sum() <= MAX_WEIGHT
    shares = masses / masses.sum() - (weights / weights.sum()).numpy()
    assert np.abs(shares).max() < 1 / masses.sum()


def test_tokens_weigh_by_their_number(tmp_path: Path) -> None:
    case = Case("ridge", own_rows="included", hvp="forward-over-reverse")
    plain = problem_of(case)
    inputs = torch.randn(N, 5, 4, generator=GENERATOR, dtype=torch.float64)
    targets = torch.randint(0, CLASSES, (N, 5), generator=GENERATOR)
    targets[torch.rand(N, 5, generator=GENERATOR) < 0.4] = -100
    targets[:, 0] = 1
    counted = (targets != -100).double()

    def mean_of_counted(z: Tensor, y: Tensor) -> Tensor:
        each = cross_entropy(z.flatten(0, 1), y.clamp(min=0).flatten()).reshape(y.shape)
        there = (y != -100).double()
        return (each * there).sum(1) / there.sum(1)

    data = replace(plain.data, inputs=inputs, targets=targets, test_targets=targets)
    network = Network.of(plain.network.module, TokenCrossEntropy(), "forward-over-reverse")
    found = rows_of(replace(plain, data=data, network=network), tmp_path)
    run: Run = replace(
        run_of(case), loss=mean_of_counted, inputs=inputs, targets=targets, weights_n=counted.sum(1)
    )
    expected = weight_derivatives(run, case.owned_Nn, case.convention)
    assert relative_error(found, expected) < tolerances.JVP


def figures_of(loss: Loss, scores: Tensor, targets: Tensor) -> dict[str, float]:
    return figures(Network.of(nn.Linear(2, 2), loss), scores, targets)


def test_figures_agree_with_scikit_learn() -> None:
    scores = torch.randn(N, CLASSES, generator=GENERATOR, dtype=torch.float64)
    z, y = scores.numpy(), NUMBERS.numpy()
    for loss in (SquaredError(), Huber()):
        found = figures_of(loss, scores, NUMBERS)
        assert found["rmse"] == pytest.approx(mean_squared_error(y, z) ** 0.5)
        assert found["r_squared"] == pytest.approx(r2_score(y, z))
    found = figures_of(Poisson(), scores, COUNTS)
    deviance = mean_poisson_deviance(COUNTS.numpy().ravel(), np.exp(z).ravel())
    assert found == {"deviance": pytest.approx(deviance)}
    found = figures_of(BinaryCrossEntropy(), scores, TRUTH)
    assert found["exact_match"] == accuracy_score(TRUTH.numpy(), z > 0)
    assert found["label_accuracy"] == pytest.approx((TRUTH.numpy() == (z > 0)).mean())
    found = figures_of(BinaryCrossEntropy(), scores[:, :1], TRUTH[:, 0])
    assert found == {"accuracy": accuracy_score(TRUTH[:, 0].numpy(), z[:, 0] > 0)}
    assert figures_of(OwnLoss(focal), scores, NUMBERS[:, 0]) == {}


def saved(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "data.npz", **arrays)
    return str(folder / "data.npz")


def token_model(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Predicts the next of seven tokens from each."""
    return nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Linear(4, num_classes))


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """A user's loss of numbers."""
    return (outputs[:, 0] - targets) ** 2


HERE = "tests.pipeline.test_other_losses"
X = np.random.default_rng(1).standard_normal((90, 4))
SUM = X.sum(1)
CHAIN = (np.random.default_rng(2).integers(0, 7, (90, 1)) + 2 * np.arange(6)) % 7
# Loss, inputs, targets, further settings, keys of the figures.
WHOLE: dict[str, tuple[dict[str, Any], Any, dict[str, Any], list[str]]] = {
    "squared-error": ({}, X @ X[:4].T, {}, ["rmse", "r_squared"]),
    "poisson": ({}, np.floor(np.exp(SUM.clip(max=2))), {}, ["deviance"]),
    "binary-cross-entropy": ({}, X > 0, {}, ["label_accuracy", "exact_match"]),
    "token-cross-entropy": (
        {},
        CHAIN[:, 1:],
        {"x": CHAIN[:, :-1]},
        ["perplexity", "token_accuracy"],
    ),
    f"{HERE}:squares": ({}, SUM, {}, ["loss"]),
}


def config_of(loss: str, path: str, **training: Any) -> RunConfig:
    tokens = loss == "token-cross-entropy"
    model = {"name": f"{HERE}:token_model"} if tokens else {"name": "mlp", "hidden": [6]}
    return RunConfig.from_values(
        {
            "name": "other",
            "data": {"source": "arrays", "path": path},
            "model": model if tokens else {**model, "activation": "tanh"},
            "training": {
                "loss": loss,
                "epochs": 6,
                "batch_size": 16,
                "l2": 0.001,
                "learning_rate": 0.5 if tokens else 0.2,
                **training,
            },
            "cluster": {"address": "none"},
            "evaluation": {"deletions": [0.1]},
        }
    )


@pytest.mark.parametrize("loss", WHOLE)
def test_a_whole_run_reports_what_its_loss_is_judged_by(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_key(monkeypatch, tmp_path)
    training, y, more, keys = WHOLE[loss]
    path = saved(tmp_path, **{"x": X, "y": y, "sample_weight": np.linspace(0, 2, 90), **more})
    report = run_all(config_of(loss, path, **training), tmp_path / "run", Reporter(quiet=True))
    assert report["metric"] == keys[0]
    for entry in report["deletions"]:
        assert list(entry["test_figures"]) == keys
        assert entry["quality"] == entry["test_figures"][keys[0]]
        assert entry["test_accuracy"] == entry["test_figures"].get("accuracy")
        assert entry["relative_error"] < 0.4
    curve = report["training_curve"]
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert parsed(html).loads == []
    assert ("accuracy" in html) == any("accuracy" in key for key in keys)
    assert (", nats" in html) == ("entropy" in loss or loss == "poisson")
    # The model that a deletion leaves is the one that the trial was judged by.
    run = RunDirectory.open(tmp_path / "run")
    delete(run, [run.problem().data.units[5]])


def test_the_training_loss_is_weighted_as_training_weighs(tmp_path: Path) -> None:
    weights = np.linspace(0, 2, 90)
    path = saved(tmp_path, x=X, y=(SUM > 1).astype(int), sample_weight=weights)
    problem = Problem.of(config_of("cross-entropy", path, class_weights=[1, 3]))
    w_P = torch.randn(problem.num_parameters, generator=GENERATOR)
    scores = problem.network.outputs(w_P, problem.data.inputs).double()
    y = problem.data.targets
    assert problem.data.weights is not None
    factors = problem.data.weights * torch.tensor([1.0, 3.0]).double()[y]
    expected = (factors * cross_entropy(scores, y)).sum() / factors.sum()
    assert training_loss(problem, w_P) == pytest.approx(float(expected), rel=1e-5)


def test_an_embedding_model_learns_its_chain(tmp_path: Path) -> None:
    path = saved(tmp_path, x=CHAIN[:, :-1], y=CHAIN[:, 1:])
    config = config_of("token-cross-entropy", path, optimizer="adam", epochs=40, learning_rate=0.05)
    problem = Problem.of(config)
    trained = record(problem, tmp_path / "trajectory").trained()
    found = held_out_quality(problem, trained)
    # Every token has one successor.
    assert found.figures["token_accuracy"] == 1.0
    assert found.figures["perplexity"] == pytest.approx(np.exp(found.mean_loss))
    assert found.figures["perplexity"] < 1.2


@pytest.fixture
def small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posterior_difference, "TREES", 10)


@pytest.mark.parametrize("loss", ["squared-error", "binary-cross-entropy"])
@pytest.mark.usefixtures("small_forests")
def test_an_audit_attacks_by_the_loss_and_says_what_it_leaves_out(
    loss: str, tmp_path: Path
) -> None:
    truth = loss == "binary-cross-entropy"
    path = saved(tmp_path, x=X, y=SUM > 0 if truth else SUM, sample_weight=np.linspace(0, 2, 90))
    config = config_of(loss, path, epochs=2)
    report = run_all(config, tmp_path / "run", Reporter(quiet=True))
    run = RunDirectory.open(tmp_path / "run")
    store = ApproximatorStore.open(run.store_url)
    subject = Subject(run.problem(), run.trajectory(), local_sum(store))
    noise = NoisePlan((1.0,), lambda _: 0.01, draws=2)
    plan = AuditPlan((0.2,), (0,), ("hessian-free",), AttackPlan(0.2, 2, noise))
    audit = run_audit(subject, plan, tmp_path / "audit")
    assert audit["attacks"]["score"] == "loss"
    figures = audit["deletions"][0]["methods"]["hessian-free"]
    assert (figures["test_accuracy"] is None) != truth and figures["quality"] is not None
    for found in audit["attacks"]["methods"].values():
        assert bool(found["posterior-difference"]) == truth
    assert (audit["privacy_utility"][0]["mia_u_auc"] is not None) == truth
    write_report(tmp_path / "run", {**report, "audit": audit})
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "score of a sample is minus its loss" in html
    assert ("MIA-U) is left out" in html) != truth
    assert json.loads(json.dumps(read_report(tmp_path / "run")))["metric"] == report["metric"]


def test_certificates_of_other_losses_are_calibrated_alone(tmp_path: Path) -> None:
    def config(kind: str, loss: str = "squared-error", **training: Any) -> RunConfig:
        path = saved(tmp_path, x=X, y=SUM > 0 if loss == "cross-entropy" else SUM)
        values = config_of(loss, path, **training).model_dump(mode="json")
        certificate = {"kind": kind, "max_units": 3, "audit_sets": 2, "feature_norm_cap": 1.0}
        return RunConfig.from_values({**values, "certificate": certificate})

    for kind in ("certified", "published"):
        with pytest.raises(ConfigError, match=r"plain cross-entropy, found training\.loss squared"):
            check_settings(config(kind))
        with pytest.raises(ConfigError, match=r"found training\.class_weights; choose calibrated"):
            check_settings(config(kind, "cross-entropy", class_weights=[1, 2]))
    report = run_all(config("calibrated"), tmp_path / "run", Reporter(quiet=True))
    assert report["deletions"]
    run = RunDirectory.open(tmp_path / "run")
    problem = run.problem()
    declared = declare(run, problem, lambda _: np.zeros(1))
    assert declared.kind == "calibrated" and set(declared.evidence["audits"]) == {
        "random",
        "clustered",
    }
    # Quarters of the samples by their number, in its order.
    shares, targets = group_shares(problem), problem.data.targets
    assert shares.shape == (72, 4) and shares.sum(0).tolist() == [18, 18, 18, 18]
    assert float(targets[shares[:, 0] > 0].max()) <= float(targets[shares[:, 1] > 0].min())


def mean_over_positions(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


# What a training loop passes, and what is not the configured loss.
LOOPS: dict[str, tuple[Any, Any, Any]] = {
    "squared-error": (SUM, nn.MSELoss(), nn.L1Loss()),
    "huber": (SUM, nn.HuberLoss(), nn.HuberLoss(delta=0.5)),
    "poisson": (np.floor(np.exp(SUM.clip(max=2))), nn.PoissonNLLLoss(), nn.MSELoss()),
    "binary-cross-entropy": (X > 0, nn.BCEWithLogitsLoss(), nn.MSELoss()),
    "token-cross-entropy": (
        CHAIN[:, 1:],
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(ignore_index=3),
    ),
    f"{HERE}:squares": (SUM, lambda z, y: ((z[:, 0] - y) ** 2).mean(), nn.L1Loss()),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loops_loss_is_compared_with_the_configured_one(name: str, tmp_path: Path) -> None:
    y, loss, other = LOOPS[name]
    tokens = name == "token-cross-entropy"
    problem = Problem.of(config_of(name, saved(tmp_path, x=CHAIN[:, :-1] if tokens else X, y=y)))
    check_loss(loss, problem)
    if tokens:
        check_loss(mean_over_positions, problem)
    with pytest.raises(ModelError, match=f"the mean of {name}.* is .* state the loss"):
        check_loss(other, problem)
    with pytest.raises(ModelError, match="the loss cannot be called on trial outputs"):
        check_loss(nn.TripletMarginLoss(), problem)
