"""Losses and their derivatives, clipping, parameters as one vector."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian

from pipeline.config import Form, TrainingConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.hessian.hvp import Network
from pipeline.hessian.roperator import Pairs
from pipeline.models.loss_registry import check_own_loss, loss_of
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
from pipeline.models.minibatch import Minibatch
from pipeline.models.parameters import ParameterLayout, flat_parameters
from pipeline.training.step import clip_factor
from tests import tolerances
from tests.oracles import cross_entropy, relative_error
from tests.oracles import hessian as dense

GENERATOR = torch.Generator().manual_seed(4)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


CLASS_WEIGHTS = (0.5, 3.0, 0.1)
CLASS_TARGETS = torch.tensor([0, 2, 1, 1, 0])
# The second sample counts one position, the fourth none.
TOKENS = torch.tensor(
    [[0, 2, 1, 1], [-100, 0, -100, -100], [2, 2, 0, -100], [-100] * 4, [1, 0, 2, 2]]
)
COUNTS = torch.tensor([[0.0], [3.0], [1.0], [7.0], [0.0]], dtype=torch.float64)
TRUTH = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 1]], dtype=torch.float64)


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A user's function: Gaussian likelihood, mean and log variance as outputs."""
    mean, log_variance = outputs[:, 0], outputs[:, 1]
    return ((targets - mean) ** 2 * torch.exp(-log_variance) + log_variance) / 2


def mean_own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.gaussian_nll_loss(outputs[:, 0], targets, outputs[:, 1].exp(), eps=0.0)


def token_mean(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """torch takes (B, C, T)."""
    return lambda z, y: nn.CrossEntropyLoss(**options)(z.transpose(1, 2), y)


WEIGHT = torch.tensor(CLASS_WEIGHTS, dtype=torch.float64)
# Ours, torch's with reduction mean, outputs and targets.
LOSSES: dict[str, tuple[Loss, Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = {
    "cross-entropy": (CrossEntropy(), nn.CrossEntropyLoss(), random(5, 3), CLASS_TARGETS),
    "smoothed": (
        CrossEntropy(0.2),
        nn.CrossEntropyLoss(label_smoothing=0.2),
        random(5, 3),
        CLASS_TARGETS,
    ),
    "class weights": (
        CrossEntropy(0.0, CLASS_WEIGHTS),
        nn.CrossEntropyLoss(WEIGHT),
        random(5, 3),
        CLASS_TARGETS,
    ),
    "class weights, smoothed": (
        CrossEntropy(0.2, CLASS_WEIGHTS),
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2),
        random(5, 3),
        CLASS_TARGETS,
    ),
    "binary": (BinaryCrossEntropy(), nn.BCEWithLogitsLoss(), random(5, 1), TRUTH[:, 2]),
    "labels": (BinaryCrossEntropy(), nn.BCEWithLogitsLoss(), random(5, 3), TRUTH),
    "squared error": (SquaredError(), nn.MSELoss(), random(5, 1), random(5)),
    "squared error of three": (SquaredError(), nn.MSELoss(), random(5, 3), random(5, 3)),
    "huber": (Huber(0.7), nn.HuberLoss(delta=0.7), random(5, 3), random(5, 3)),
    "poisson": (Poisson(), nn.PoissonNLLLoss(), random(5, 1), COUNTS),
    "poisson of three": (Poisson(), nn.PoissonNLLLoss(), random(5, 3), COUNTS.expand(5, 3)),
    "tokens": (TokenCrossEntropy(), token_mean(), random(5, 4, 3), TOKENS),
    "tokens, smoothed": (
        TokenCrossEntropy(0.1),
        token_mean(label_smoothing=0.1),
        random(5, 4, 3),
        TOKENS,
    ),
    "tokens, weighted": (
        TokenCrossEntropy(0.1, CLASS_WEIGHTS),
        token_mean(weight=WEIGHT, label_smoothing=0.1),
        random(5, 4, 3),
        TOKENS,
    ),
    "own": (OwnLoss(own_loss), mean_own_loss, random(5, 2), random(5)),
}


def value_of_torch(name: str, outputs: Tensor) -> Tensor:
    """torch's mean. Its modules have no axis for labels of (B, 1) outputs, and want equal shapes."""
    loss, mean, _, targets = LOSSES[name]
    elementwise = not isinstance(loss, CrossEntropy | TokenCrossEntropy | OwnLoss)
    return mean(outputs, targets.reshape(outputs.shape) if elementwise else targets)


@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_of_a_minibatch_is_torchs(name: str) -> None:
    loss, _, outputs, targets = LOSSES[name]
    values, masses = loss.value(outputs, targets), loss.masses(targets)
    assert values.shape == (5,)
    divisor = torch.tensor(5.0) if masses is None else masses.sum()
    expected = value_of_torch(name, outputs)
    assert relative_error((values.sum() / divisor)[None], expected[None]) < tolerances.HVP
    assert (masses is not None) == ("weight" in name or "token" in name)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_have_their_derivatives(name: str) -> None:
    loss, _, outputs, targets = LOSSES[name]
    masses = loss.masses(targets)
    divisor = 5.0 if masses is None else float(masses.sum())

    def total(z: Tensor) -> Tensor:
        return value_of_torch(name, z) * divisor

    slopes = grad(total)(outputs)
    found = loss.gradient(outputs, targets)
    assert found.shape == outputs.shape
    assert relative_error(found.flatten(1), slopes.flatten(1)) < tolerances.HVP
    size = outputs[0].numel()
    curvature = hessian(total)(outputs).reshape(5, size, 5, size)
    tangents = random(5, 2, *outputs.shape[1:])
    products = loss.hessian_product(outputs, targets, tangents)
    assert products.shape == tangents.shape
    for b in range(5):
        expected = tangents[b].flatten(1) @ curvature[b, :, b, :]
        assert relative_error(products[b].flatten(1), expected) < tolerances.HVP


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_no_samples_are_empty(name: str) -> None:
    # Retraining may empty a minibatch.
    loss, _, outputs, targets = LOSSES[name]
    assert loss.value(outputs[:0], targets[:0]).shape == (0,)
    assert loss.gradient(outputs[:0], targets[:0]).shape == (0, *outputs.shape[1:])


FORMS: tuple[Form, ...] = ("r-operator", "reverse", "forward-over-reverse", "explicit")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [name for name in LOSSES if "token" not in name])
def test_every_form_of_products_takes_every_loss(name: str, form: Form) -> None:
    loss, _, outputs, targets = LOSSES[name]
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs.shape[1])).double()
    network = Network.of(module, loss, form)
    w_P = flat_parameters(module)
    w_P = 0.3 * random(len(w_P))
    batch = Minibatch(random(5, 4), targets, weights=random(5).abs())
    tangents_KP = random(2, len(w_P))
    # The second tangent's unit owns two of the samples.
    pairs = Pairs(torch.tensor([1, 1]), torch.tensor([0, 3]))
    with torch.no_grad():
        linear = network.linearize(w_P, batch)
        gradient_P = linear.gradient_sum()
        found_KP = linear.hessian_products(tangents_KP, pairs)

    def total(at_P: Tensor, rows: Tensor) -> Tensor:
        named = network.layout.unflatten(at_P)
        assert batch.weights is not None
        values = loss.value(functional_call(module, named, (batch.inputs[rows],)), targets[rows])
        return (values * batch.weights[rows]).sum()

    every, left = torch.arange(5), torch.tensor([1, 2, 4])
    assert relative_error(gradient_P, grad(total)(w_P, every)) < tolerances.HVP
    for k, rows in enumerate((every, left)):
        expected = dense(lambda at, rows=rows: total(at, rows), w_P) @ tangents_KP[k]
        assert relative_error(found_KP[k], expected) < tolerances.HVP


@pytest.mark.parametrize("form", ["reverse", "forward-over-reverse"])
def test_token_losses_pass_an_embedding(form: Form) -> None:
    loss, _, _, targets = LOSSES["tokens, weighted"]
    module = nn.Sequential(nn.Embedding(6, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    network = Network.of(module, loss, form)
    w_P = random(len(flat_parameters(module)))
    inputs = torch.randint(0, 6, (5, 4), generator=GENERATOR)
    tangents_KP = random(2, len(w_P))
    pairs = Pairs(torch.tensor([1, 1]), torch.tensor([0, 3]))
    with torch.no_grad():
        linear = network.linearize(w_P, Minibatch(inputs, targets))
        found_KP = linear.hessian_products(tangents_KP, pairs)
    weight = WEIGHT

    def total(at_P: Tensor, rows: Tensor) -> Tensor:
        scores = network.outputs(at_P, inputs[rows]).transpose(1, 2)
        return nn.functional.cross_entropy(
            scores, targets[rows], weight, reduction="sum", label_smoothing=0.1
        )

    for k, rows in enumerate((torch.arange(5), torch.tensor([1, 2, 4]))):
        expected = dense(lambda at, rows=rows: total(at, rows), w_P) @ tangents_KP[k]
        assert relative_error(found_KP[k], expected) < tolerances.HVP


def test_plain_cross_entropy_agrees_with_its_definition() -> None:
    loss, _, outputs, targets = LOSSES["cross-entropy"]
    expected = cross_entropy(outputs, targets)
    assert relative_error(loss.value(outputs, targets), expected) < tolerances.HVP


def training(**settings: Any) -> TrainingConfig:
    return TrainingConfig(epochs=1, batch_size=8, learning_rate=0.1, **settings)


def test_a_configuration_names_its_loss() -> None:
    found = {
        name: loss_of(training(loss=name), 3)
        for name in ("binary-cross-entropy", "squared-error", "poisson")
    }
    assert [type(loss) for loss in found.values()] == [BinaryCrossEntropy, SquaredError, Poisson]
    assert loss_of(training(label_smoothing=0.1), 3) == CrossEntropy(0.1)
    weighted = training(loss="token-cross-entropy", class_weights=(1.0, 2.0, 0.5))
    assert loss_of(weighted, 3) == TokenCrossEntropy(0.0, (1.0, 2.0, 0.5))
    assert loss_of(training(loss="huber", huber_delta=2.0), 1) == Huber(2.0)
    with pytest.raises(ConfigError, match="class_weights holds 3 numbers, and the data have 10"):
        loss_of(training(class_weights=(1.0, 2.0, 0.5)), 10)


def test_a_users_loss_is_found_and_tried() -> None:

    def own(name: str) -> OwnLoss:
        loss = loss_of(training(loss=f"tests.examples.losses:{name}"), 3)
        assert isinstance(loss, OwnLoss)
        return loss

    outputs, targets = random(4, 3), torch.tensor([0, 2, 1, 1])
    loss = own("focal")
    check_own_loss(loss, outputs, targets)
    p = torch.softmax(outputs, 1)[torch.arange(4), targets]
    assert relative_error(loss.value(outputs, targets), -((1 - p) ** 2) * p.log()) < tolerances.HVP
    for name, message in {
        "mean": r"losses:mean returns \(\) .* shape \(4,\): reduce over the outputs, not over",
        "coupled": "losses:coupled couples the samples",
        "detached": "losses:detached fails .* differentiated twice by torch.func",
    }.items():
        with pytest.raises(ModelError, match=message):
            check_own_loss(own(name), outputs, targets)
    with pytest.raises(ConfigError, match=r"training\.loss is .* has no callable 'nothing'"):
        own("nothing")


def test_cross_entropy_stays_finite_for_certain_outputs() -> None:
    outputs = torch.tensor([[1e4, -1e4, 0.0]])
    loss, targets = CrossEntropy(), torch.tensor([1])
    assert float(loss.value(outputs, targets)[0]) == 2e4
    assert torch.isfinite(loss.gradient(outputs, targets)).all()
    assert torch.isfinite(loss.hessian_product(outputs, targets, torch.ones(1, 2, 3))).all()


@given(norm=st.floats(1e-3, 1e3), bound=st.floats(1e-3, 1e3))
def test_clipping_shortens_to_the_bound(norm: float, bound: float) -> None:
    gradient = torch.tensor([0.6, -0.8], dtype=torch.float64) * norm
    factor = clip_factor(gradient, bound)
    assert factor <= 1.0
    assert float((factor * gradient).norm()) == pytest.approx(min(norm, bound), rel=1e-12)


def test_without_a_bound_or_a_gradient_nothing_is_clipped() -> None:
    assert clip_factor(torch.tensor([3.0]), None) == 1.0
    assert clip_factor(torch.zeros(3), 0.5) == 1.0


def test_the_flat_vector_lists_parameters_in_their_order_row_major() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    module[0].bias.requires_grad_(False)
    layout = ParameterLayout.of(module)
    assert layout.names == ("0.weight", "2.weight", "2.bias")
    assert layout.num_parameters == 10
    flat_P = flat_parameters(module)
    assert flat_P[1] == module[0].weight[0, 1]
    assert flat_P[6] == module[2].weight[0, 0]
    named = layout.unflatten(flat_P)
    assert torch.equal(named["0.weight"], module[0].weight)
    assert torch.equal(layout.flatten(named), flat_P)
    vectors = torch.arange(20.0).reshape(2, 10)
    assert torch.equal(layout.unflatten(vectors)["2.bias"], torch.tensor([[9.0], [19.0]]))
    flat_P.zero_()
    assert module[0].weight.any(), "the flat vector is a copy"
