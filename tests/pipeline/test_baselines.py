"""Baselines against closed forms and dense numpy oracles, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from pipeline.baselines import BASELINES, BaselineTask, curvature
from pipeline.baselines.curvature import (
    RegularisedHessian,
    conjugate_gradients,
    dense_hessian,
)
from pipeline.baselines.methods import fine_tune, infinitesimal_jackknife, neg_grad, newton_step
from pipeline.config import RunConfig
from pipeline.errors import DivergedError
from pipeline.hessian.hvp import Network
from pipeline.models.losses import SquaredError
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from pipeline.training.retraining import retrain

TOLERANCE = 1e-8
NUM_SAMPLES = 60
FORGOTTEN = (3, 4, 17, 30, 31, 32, 59)


def problem(model: dict[str, object] | None = None, **sections: dict[str, object]) -> Problem:
    training = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05, "l2": 0.1}
    values = {
        "data": {"source": "wine", "num_train": NUM_SAMPLES},
        "model": model or {"name": "logistic"},
        "recursion": {"dtype": "float64"},
        "training": training | sections.pop("training", {}),
        **sections,
    }
    return Problem.of(RunConfig.from_values(values))


def ridge(**sections: dict[str, object]) -> Problem:
    """Return the same linear model with squared loss on one-hot targets."""
    logistic = problem(**sections)
    targets = torch.nn.functional.one_hot(logistic.data.targets, 3).double()
    network = Network.of(logistic.network.module, SquaredError())
    return replace(logistic, data=replace(logistic.data, targets=targets), network=network)


def task(subject: Problem, trained_P: Tensor) -> BaselineTask:
    forgotten = torch.zeros(subject.data.num_samples, dtype=torch.bool)
    forgotten[list(FORGOTTEN)] = True
    config = subject.config
    schedule = Schedule.draw(config.training, subject.data.num_samples, config.seed)
    return BaselineTask(subject, schedule, trained_P, forgotten, seed=5)


def random_parameters(subject: Problem) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 0.3 * torch.randn(subject.num_parameters, dtype=torch.float64, generator=generator)


def design(subject: Problem) -> np.ndarray:
    """Return inputs with a one for the bias, (n, 14)."""
    x = subject.data.inputs.numpy()
    return np.hstack([x, np.ones((len(x), 1))])


def flat(matrix_CF: np.ndarray) -> np.ndarray:
    """Return weights then biases, as the flat vector lists them."""
    return np.concatenate([matrix_CF[:, :-1].ravel(), matrix_CF[:, -1]])


def ridge_optimum(x_nF: np.ndarray, y_nC: np.ndarray, divisor: float, l2: float) -> np.ndarray:
    # The loss is the mean of the squares over the outputs.
    scale = 2 / (y_nC.shape[1] * divisor)
    gram = scale * x_nF.T @ x_nF + l2 * np.eye(x_nF.shape[1])
    return flat(np.linalg.solve(gram, scale * x_nF.T @ y_nC).T)


@pytest.mark.parametrize("denominator", ["remaining", "batch"])
def test_newton_step_is_exact_on_ridge_regression(denominator: str) -> None:
    subject = ridge(retraining={"denominator": denominator})
    x, y = design(subject), subject.data.targets.numpy()
    kept = np.setdiff1d(np.arange(NUM_SAMPLES), FORGOTTEN)
    divisor = len(kept) if denominator == "remaining" else NUM_SAMPLES
    trained = torch.from_numpy(ridge_optimum(x, y, NUM_SAMPLES, 0.1))
    expected = ridge_optimum(x[kept], y[kept], divisor, 0.1)

    found = newton_step(task(subject, trained)).numpy()
    assert np.linalg.norm(found - expected) < TOLERANCE * np.linalg.norm(expected)
    assert np.linalg.norm(trained.numpy() - expected) > 1e-3


@pytest.mark.parametrize("denominator", ["remaining", "batch"])
def test_infinitesimal_jackknife_is_the_derivative_of_the_ridge_optimum(denominator: str) -> None:
    subject = ridge(retraining={"denominator": denominator})
    x, y = design(subject), subject.data.targets.numpy()

    def optimum(omega: float) -> np.ndarray:
        weights = np.ones(NUM_SAMPLES)
        weights[list(FORGOTTEN)] -= omega
        root = np.sqrt(weights)[:, None]
        divisor = weights.sum() if denominator == "remaining" else NUM_SAMPLES
        return ridge_optimum(root * x, root * y, divisor, 0.1)

    trained = torch.from_numpy(optimum(0.0))
    found = infinitesimal_jackknife(task(subject, trained)).numpy() - optimum(0.0)
    # Fourth-order central difference: its error is far below the tolerance.
    h = 1e-3
    derivative = (8 * (optimum(h) - optimum(-h)) - (optimum(2 * h) - optimum(-2 * h))) / (12 * h)
    assert np.linalg.norm(found - derivative) < TOLERANCE * np.linalg.norm(derivative)


def softmax_hessian_and_gradients(
    subject: Problem, w: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed Hessian and gradient of softmax regression, written out."""
    x, y = design(subject)[ids], subject.data.targets.numpy()[ids]
    weights = np.hstack([w[:39].reshape(3, 13), w[39:, None]])
    scores = x @ weights.T
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    inner = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
    hessian = np.einsum("ncd,nf,ng->cfdg", inner, x, x)
    order = np.array([*(c * 14 + f for c in range(3) for f in range(13)), 13, 27, 41])
    hessian = hessian.reshape(42, 42)[np.ix_(order, order)]
    return hessian, flat((p - np.eye(3)[y]).T @ x)


@pytest.mark.parametrize("denominator", ["remaining", "batch"])
@pytest.mark.parametrize("l2_share", ["step", "sample"])
def test_both_steps_agree_with_dense_softmax_regression(denominator: str, l2_share: str) -> None:
    subject = problem(retraining={"denominator": denominator, "l2_share": l2_share})
    w = random_parameters(subject)
    all_ids = np.arange(NUM_SAMPLES)
    kept = np.setdiff1d(all_ids, FORGOTTEN)
    m, lam = len(FORGOTTEN), 0.1
    _, removed = softmax_hessian_and_gradients(subject, w.numpy(), np.array(FORGOTTEN))
    if denominator == "remaining" or l2_share == "sample":
        removed = removed + m * lam * w.numpy()
    divisor = NUM_SAMPLES - m if denominator == "remaining" else NUM_SAMPLES
    share = lam * (1 - m / NUM_SAMPLES) if (denominator, l2_share) == ("batch", "sample") else lam
    for method, ids, count, shift in (
        (newton_step, kept, divisor, share),
        (infinitesimal_jackknife, all_ids, NUM_SAMPLES, lam),
    ):
        hessian, _ = softmax_hessian_and_gradients(subject, w.numpy(), ids)
        step = np.linalg.solve(hessian / count + shift * np.eye(42), removed / count)
        found = method(task(subject, w)).numpy() - w.numpy()
        assert np.linalg.norm(found - step) < TOLERANCE * np.linalg.norm(step)


def test_newton_step_ends_near_the_true_optimum_of_softmax_regression() -> None:
    """An end, not a formula: from one optimum to the other, found by an optimiser of scipy."""
    subject = problem()

    def optimum(ids: np.ndarray) -> np.ndarray:
        x, y = design(subject)[ids], subject.data.targets.numpy()[ids]

        def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
            weights = np.hstack([w[:39].reshape(3, 13), w[39:, None]])
            scores = x @ weights.T
            scores -= scores.max(axis=1, keepdims=True)
            log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
            loss = -log_p[np.arange(len(y)), y].mean() + 0.05 * w @ w
            return loss, flat((np.exp(log_p) - np.eye(3)[y]).T @ x) / len(y) + 0.1 * w

        return minimize(objective, np.zeros(42), jac=True, method="BFGS", tol=1e-9).x

    before = optimum(np.arange(NUM_SAMPLES))
    after = optimum(np.setdiff1d(np.arange(NUM_SAMPLES), FORGOTTEN))
    asked = task(subject, torch.from_numpy(before))
    moved = np.linalg.norm(after - before)
    newton = np.linalg.norm(newton_step(asked).numpy() - after)
    jackknife = np.linalg.norm(infinitesimal_jackknife(asked).numpy() - after)
    assert newton < 0.02 * moved
    assert newton < jackknife < 0.5 * moved


def test_conjugate_gradients_agree_with_the_factored_hessian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = problem()
    asked = task(subject, random_parameters(subject))
    dense = [method(asked) for method in (newton_step, infinitesimal_jackknife)]
    monkeypatch.setattr(curvature, "DENSE_BYTES", 0)
    for method, expected in zip((newton_step, infinitesimal_jackknife), dense, strict=True):
        torch.testing.assert_close(method(asked), expected, rtol=1e-4, atol=1e-6)


def test_conjugate_gradients_reach_the_tolerance() -> None:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(30, 30, dtype=torch.float64, generator=generator)
    matrix, b = factor @ factor.T + torch.eye(30), torch.ones(30, dtype=torch.float64)
    found = conjugate_gradients(lambda v: matrix @ v, b, tolerance=1e-10)
    assert found is not None
    x, residual = found
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-7, atol=1e-9)
    assert residual <= 1e-10


@pytest.mark.parametrize("diagonal", [(2.0, -1.0), (-1.0, -1.0), (float("nan"), 1.0)])
def test_conjugate_gradients_refuse_a_matrix_that_is_not_positive_definite(
    diagonal: tuple[float, float],
) -> None:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    assert conjugate_gradients(lambda v: matrix @ v, torch.ones(2, dtype=torch.float64)) is None


@pytest.mark.parametrize("dense_bytes", [curvature.DENSE_BYTES, 0])
def test_damping_rises_until_the_hessian_is_positive_definite(
    dense_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curvature, "DENSE_BYTES", dense_bytes)
    # Classes far from where the network puts them: strongly indefinite.
    net = problem({"name": "mlp", "hidden": [3], "activation": "tanh"}, training={"l2": 0.0})
    w, all_ids = 4 * random_parameters(net), torch.arange(NUM_SAMPLES)
    hessian = dense_hessian(net, w, all_ids) / NUM_SAMPLES
    smallest = float(torch.linalg.eigvalsh(hessian)[0])
    assert smallest < -0.01
    b = torch.ones(len(w), dtype=torch.float64)
    found = RegularisedHessian(net, w, all_ids, 1 / NUM_SAMPLES, 0.0).solve(b, 0.01)
    assert found.damping > -smallest
    assert found.damping / 10 < -smallest or found.damping == 0.1
    damped = hessian + found.damping * torch.eye(len(w), dtype=torch.float64)
    torch.testing.assert_close(found.x_P, torch.linalg.solve(damped, b), rtol=1e-4, atol=1e-5)
    assert found.residual < 1e-5


def test_hessian_that_is_not_finite_is_named() -> None:
    subject = problem()
    w = torch.full((subject.num_parameters,), float("nan"), dtype=torch.float64)
    with pytest.raises(DivergedError, match="not finite"):
        newton_step(task(subject, w))


def test_damping_applies_to_networks_and_not_to_softmax_regression() -> None:
    # So much L2 that the Hessian is positive definite, and nothing needs more damping than .01.
    net = problem({"name": "mlp", "hidden": [3], "activation": "tanh"}, training={"l2": 2.0})
    w = random_parameters(net)
    asked = task(net, w)
    all_ids = torch.arange(NUM_SAMPLES)

    def loss(v: Tensor) -> Tensor:
        return net.network.loss.value(
            net.network.outputs(v, net.data.inputs), net.data.targets
        ).sum()

    hessian = torch.autograd.functional.hessian(loss, w)
    torch.testing.assert_close(dense_hessian(net, w, all_ids), hessian, rtol=1e-9, atol=1e-10)
    ids = torch.tensor(FORGOTTEN)

    def removed(v: Tensor) -> Tensor:
        outputs = net.network.outputs(v, net.data.inputs[ids])
        return net.network.loss.value(outputs, net.data.targets[ids]).sum()

    leaf = w.clone().requires_grad_()
    gradient = torch.autograd.grad(removed(leaf), leaf)[0] + len(FORGOTTEN) * 2.0 * w
    matrix = hessian / NUM_SAMPLES + (2.0 + 0.01) * torch.eye(len(w), dtype=torch.float64)
    expected = w + torch.linalg.solve(matrix, gradient / NUM_SAMPLES)
    torch.testing.assert_close(infinitesimal_jackknife(asked), expected, rtol=1e-8, atol=1e-10)


def autograd_sgd(
    subject: Problem, w: Tensor, ids: Tensor, plan: tuple[int, float, float]
) -> Tensor:
    """Return parameters after plain SGD written with autograd; plan: epochs, rate (signed), L2."""
    epochs, rate, l2 = plan
    size = min(16, len(ids))
    config = subject.config.training.model_copy(update={"epochs": epochs, "batch_size": size})
    for step, places in enumerate(Schedule.draw(config, len(ids), 5).sample_ids):
        batch = subject.minibatch(ids[places])
        leaf = w.clone().requires_grad_()
        loss = subject.network.loss.value(
            subject.network.outputs(leaf, batch.inputs), batch.targets
        ).mean()
        gradient = torch.autograd.grad(loss, leaf)[0] + l2 * w
        gradient = gradient * min(1.0, 0.5 / float(gradient.norm()))
        w = w - rate * 0.99**step * gradient
    return w


def test_fine_tuning_and_ascent_agree_with_sgd_written_out() -> None:
    subject = problem(training={"clip_norm": 0.5, "learning_rate_decay": 0.99})
    w = random_parameters(subject)
    asked = task(subject, w)
    tuned = autograd_sgd(subject, w, asked.remaining_ids, (15, 0.05, 0.1))
    torch.testing.assert_close(fine_tune(asked), tuned, rtol=1e-10, atol=1e-12)
    ascended = autograd_sgd(subject, w, torch.tensor(FORGOTTEN), (2, -0.005, 0.0))
    torch.testing.assert_close(neg_grad(asked), ascended, rtol=1e-10, atol=1e-12)


def test_ascent_raises_the_forgotten_loss_and_fine_tuning_lowers_the_remaining() -> None:
    subject = problem(training={"l2": 0.0})
    w = random_parameters(subject)
    asked = task(subject, w)

    def loss(at: Tensor, ids: Tensor) -> float:
        batch = subject.minibatch(ids)
        return float(
            subject.network.loss.value(
                subject.network.outputs(at, batch.inputs), batch.targets
            ).mean()
        )

    assert loss(neg_grad(asked), asked.forgotten_ids) > loss(w, asked.forgotten_ids)
    assert loss(fine_tune(asked), asked.remaining_ids) < loss(w, asked.remaining_ids)


def test_no_update_and_retraining_are_what_they_say() -> None:
    subject = problem()
    w = random_parameters(subject)
    asked = task(subject, w)
    assert torch.equal(BASELINES["no-update"](asked), w)
    expected = retrain(subject, asked.schedule, asked.forgotten_n)
    assert torch.equal(BASELINES["retrain"](asked), expected)


@pytest.mark.parametrize("count", [0, NUM_SAMPLES])
def test_nothing_to_forget_or_nothing_left_is_refused(count: int) -> None:
    subject = problem()
    forgotten = torch.arange(NUM_SAMPLES) < count
    schedule = Schedule.draw(subject.config.training, NUM_SAMPLES, 1)
    with pytest.raises(ValueError, match="at least one sample"):
        BaselineTask(subject, schedule, random_parameters(subject), forgotten)
