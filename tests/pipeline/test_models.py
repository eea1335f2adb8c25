"""Networks by name, a user's own, and what cannot be followed."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian

from pipeline import RunConfig
from pipeline.config import ModelConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.models.activations import CurvedReLU, curve_relus, has_relu
from pipeline.models.registry import Shape, build
from pipeline.run.problem import Problem


def network(name: str, shape: tuple[int, ...], num_classes: int = 10, **config: Any) -> nn.Module:
    return build(ModelConfig(name=name, **config), Shape(shape, num_classes), 1)


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "name, shape, config, expected",
    [
        ("logistic", (1, 28, 28), {}, 7_850),
        ("logistic", (64,), {}, 650),
        ("mlp", (1, 8, 8), {"hidden": (64, 32)}, 6_570),
        ("mlp", (13,), {"hidden": ()}, 140),
        ("cnn", (1, 28, 28), {}, 21_840),
        ("lenet", (1, 28, 28), {}, 61_706),
    ],
)
def test_sizes_are_those_of_the_paper(
    name: str, shape: tuple[int, ...], config: Any, expected: int
) -> None:
    module = network(name, shape, **config)
    assert num_parameters(module) == expected
    assert module(torch.randn(3, *shape)).shape == (3, 10)


@pytest.mark.parametrize("side", [4, 5, 8, 15, 16, 17, 28, 32])
def test_the_cnn_takes_images_of_any_size(side: int) -> None:
    assert network("cnn", (3, side, side))(torch.randn(2, 3, side, side)).shape == (2, 10)


@pytest.mark.parametrize("side", [12, 13, 28, 32])
def test_lenet_takes_images_of_any_size(side: int) -> None:
    assert network("lenet", (1, side, side))(torch.randn(2, 1, side, side)).shape == (2, 10)


@pytest.mark.parametrize("name", ["cnn", "lenet"])
@pytest.mark.parametrize("shape", [(64,), (1, 3, 9), (8, 8)])
def test_inputs_too_small_or_flat_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="images"):
        network(name, shape)


def test_logistic_regression_starts_at_zero() -> None:
    assert all(not p.any() for p in network("logistic", (4,)).parameters())


@pytest.mark.parametrize(
    "activation, kind",
    [("relu", nn.ReLU), ("tanh", nn.Tanh), ("silu", nn.SiLU), ("gelu", nn.GELU)],
)
@pytest.mark.parametrize("name", ["mlp", "cnn", "lenet"])
def test_every_network_takes_every_activation(
    name: str, activation: str, kind: type[nn.Module]
) -> None:
    module = network(name, (1, 12, 12), activation=activation)
    assert any(type(child) is kind for child in module.modules())
    assert has_relu(module) is (activation == "relu")


def test_the_seed_fixes_the_weights_and_nothing_else() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, two = network("mlp", (4,)), network("mlp", (4,))
    assert torch.equal(torch.rand(2), expected), "the caller's random numbers are left alone"
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    other = build(ModelConfig(name="mlp"), Shape((4,), 10), 2)
    assert not torch.equal(next(iter(other.parameters())), next(iter(one.parameters())))


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'logistc' is unknown; did you mean 'logistic'"):
        network("logistc", (4,))


OWN = """
import torch
from torch import nn

value = 3


def plain(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], num_classes))


def training(input_shape, num_classes):
    return plain(input_shape, num_classes).train()


def nothing(input_shape, num_classes):
    return "a network"


def wide(input_shape, num_classes):
    return plain(input_shape, num_classes + 1)


def dropping(input_shape, num_classes):
    return nn.Sequential(plain(input_shape, 5), nn.AlphaDropout(0.5), nn.Linear(5, num_classes))


def keeping(input_shape, num_classes):
    return nn.Sequential(plain(input_shape, 5), nn.Dropout(0.0), nn.Linear(5, num_classes))


def frozen(input_shape, num_classes):
    return plain(input_shape, num_classes).requires_grad_(False)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's module on the path."""
    (tmp_path / "own_networks.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)


def problem(source: str = "wine", **model: Any) -> Problem:
    training = {"epochs": 1, "batch_size": 32, "learning_rate": 0.1}
    return Problem.of(
        RunConfig.from_values({"data": {"source": source}, "model": model, "training": training})
    )


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("factory", ["plain", "training", "keeping"])
def test_a_users_own_network_is_built(factory: str) -> None:
    found = problem(name=f"own_networks:{factory}")
    assert found.network.outputs(found.initial_P, found.data.inputs[:2]).shape == (2, 3)
    assert not found.network.module.training


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    "name, reason",
    [
        ("own_networks:missing", "no callable 'missing'"),
        ("own_networks:value", "no callable 'value'"),
        ("own_netwroks:plain", "cannot be imported"),
        ("own_networks:", "no callable ''"),
        (":plain", "cannot be imported"),
    ],
)
def test_a_factory_that_does_not_exist_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        problem(name=name)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    "factory, reason",
    [
        ("nothing", "str; expected a torch.nn.Module"),
        ("wide", r"\(\d, 4\); expected \(\d, 3\)"),
        ("dropping", "AlphaDropout.*replay"),
        ("frozen", "no trainable parameters"),
    ],
)
def test_a_network_that_cannot_be_followed_is_refused(factory: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        problem(name=f"own_networks:{factory}")
    assert "\n" not in str(caught.value)


def test_relu_networks_without_convolutions_are_curved_unless_asked_otherwise() -> None:
    assert problem(name="mlp").config.recursion.relu_curvature == "softplus"
    assert problem("digits", name="cnn").config.recursion.relu_curvature == "none"
    assert problem(name="mlp", activation="tanh").config.recursion.relu_curvature == "none"
    assert problem(name="logistic").config.recursion.relu_curvature == "none"


def test_curving_replaces_every_relu_even_one_used_twice() -> None:
    act = nn.ReLU()
    module = curve_relus(
        nn.Sequential(nn.Linear(2, 2), act, nn.Sequential(nn.Linear(2, 2), act), act), 5.0
    )
    kinds = [type(child) for _, child in module.named_modules(remove_duplicate=False)]
    assert nn.ReLU not in kinds
    assert kinds.count(CurvedReLU) == 3


def test_curving_a_relu_gives_a_curved_one() -> None:
    assert isinstance(curve_relus(nn.ReLU(), 5.0), CurvedReLU)


def test_a_curved_relu_has_softplus_curvature_alone() -> None:
    z = torch.linspace(-2, 2, 41, dtype=torch.float64)
    curved, beta = CurvedReLU(6.0), 6.0
    assert torch.equal(curved(z), torch.relu(z))
    slope = grad(lambda v: curved(v).sum())(z)
    assert torch.equal(slope, (z > 0).double())
    curvature = torch.diagonal(hessian(lambda v: curved(v).sum())(z))
    softplus = hessian(lambda v: nn.functional.softplus(v, beta=beta, threshold=1e9).sum())(z)
    assert torch.allclose(curvature, torch.diagonal(softplus), rtol=1e-12, atol=0)


def test_curving_changes_no_output_and_no_gradient() -> None:
    plain = network("mlp", (4,), activation="relu").double()
    curved = curve_relus(network("mlp", (4,), activation="relu").double(), 20.0)
    x = torch.randn(5, 4, dtype=torch.float64)
    named = dict(plain.named_parameters())

    def loss(tensors: dict[str, torch.Tensor], module: nn.Module) -> torch.Tensor:
        return functional_call(module, tensors, (x,)).square().sum()  # type: ignore[no-any-return]

    ours, theirs = grad(loss)(named, curved), grad(loss)(named, plain)
    for name in named:
        assert torch.equal(ours[name], theirs[name])
