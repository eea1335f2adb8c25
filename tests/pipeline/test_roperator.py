"""The R-operator, layer by layer, and the other forms, against dense Hessians."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from pipeline.config import Form, RunConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.hessian.hvp import Network
from pipeline.hessian.roperator import Pairs
from pipeline.models.activations import CurvedReLU
from pipeline.models.losses import CrossEntropy
from pipeline.models.minibatch import Minibatch
from pipeline.models.parameters import flat_parameters
from pipeline.run.problem import Problem
from tests import tolerances
from tests.oracles import cross_entropy, hessian, relative_error
from tests.pipeline.layers import CLASSES, FORMS, LAYERS, UNUSUAL, Example, mlp


@pytest.mark.parametrize("layer", LAYERS)
def test_the_r_operator_agrees_with_dense_hessians(layer: str) -> None:
    Example(*LAYERS[layer]).check("r-operator")


@pytest.mark.parametrize("form", ["reverse", "forward-over-reverse"])
@pytest.mark.parametrize("layer", ["linear", "tanh", "relu", "frozen normalisation", "pooling"])
def test_the_other_forms_agree_with_dense_hessians(layer: str, form: Form) -> None:
    Example(*LAYERS[layer]).check(form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", ["linear", "silu", "two convolutions"])
def test_squared_error_has_its_own_derivatives(layer: str, form: Form) -> None:
    Example(*LAYERS[layer], squared=True).check(form)


@pytest.mark.parametrize("layer", sorted(set(UNUSUAL) - {"rows of features"}))
def test_auto_is_right_for_any_network(layer: str) -> None:
    # Whatever the R-operator does not know, another form must take over.
    example = Example(*UNUSUAL[layer])
    example.check(Network.of(example.module, example.loss, "auto").form)


@pytest.mark.parametrize("layer", LAYERS)
def test_auto_takes_the_r_operator_where_it_knows_every_layer(layer: str) -> None:
    assert Network.of(LAYERS[layer][0](), CrossEntropy(), "auto").form == "r-operator"


def test_rows_of_features_are_refused_with_the_way_out() -> None:
    # Whether a linear layer meets (samples, features) shows when it meets them.
    example = Example(*UNUSUAL["rows of features"])
    network = Network.of(example.module, example.loss, "auto")
    with pytest.raises(ModelError, match=r"recursion\.hvp.*reverse"):
        network.linearize(example.w_P, Minibatch(example.inputs, example.targets))
    example.check("reverse")


def test_a_layer_that_cannot_be_followed_is_refused_by_name() -> None:
    module = UNUSUAL["layer norm"][0]()
    with pytest.raises(ConfigError, match=r"recursion\.hvp.*reverse"):
        Network.of(module, CrossEntropy(), "r-operator")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_do_not_change_a_bit_of_the_gradient(form: Form, dtype: torch.dtype) -> None:
    # Training makes the gradient without products, a replay with them: they must agree.
    example = Example(*LAYERS["two convolutions"])
    inputs, w_P = example.inputs.to(dtype), example.w_P.to(dtype)
    network = Network.of(example.module.to(dtype), example.loss, form)
    fresh = network.linearize(w_P, Minibatch(inputs, example.targets)).gradient_sum()
    used = network.linearize(w_P, Minibatch(inputs, example.targets))
    used.hessian_products(example.tangents_KP.to(dtype), example.pairs)
    used.unit_gradients(example.pairs)
    assert torch.equal(used.gradient_sum(), fresh)
    again = used.hessian_products(example.tangents_KP.to(dtype), example.pairs)
    other = network.linearize(w_P, Minibatch(inputs, example.targets))
    assert torch.equal(again, other.hessian_products(example.tangents_KP.to(dtype), example.pairs))


@pytest.mark.parametrize("form", FORMS)
def test_arguments_are_left_as_they_were(form: Form) -> None:
    example = Example(*LAYERS["frozen normalisation"])
    w_P, tangents_KP = example.w_P.clone(), example.tangents_KP.clone()
    buffers = {name: value.clone() for name, value in example.module.named_buffers()}
    linear = Network.of(example.module, example.loss, form).linearize(
        w_P, Minibatch(example.inputs, example.targets)
    )
    linear.hessian_products(tangents_KP, example.pairs)
    linear.unit_gradients(example.pairs)
    assert torch.equal(w_P, example.w_P)
    assert torch.equal(tangents_KP, example.tangents_KP)
    for name, value in example.module.named_buffers():
        assert torch.equal(value, buffers[name])


@pytest.mark.parametrize("form", FORMS)
def test_curved_relu_adds_softplus_curvature_at_every_kink(form: Form) -> None:
    """H = H of ReLU + sum over hidden z of delta_a c(z) (dz/dw)(dz/dw)^T, c softplus's curvature."""
    beta = 7.0
    curved = Example(lambda: mlp(lambda: CurvedReLU(beta)), (4,))
    plain = Example(lambda: mlp(nn.ReLU), (4,))
    assert torch.equal(curved.w_P, plain.w_P)
    rows = torch.arange(5)
    expected = hessian(plain.losses, plain.w_P, rows)
    layers = list(plain.module.children())
    for kink in (2, 4):

        def before(w_P: Tensor, kink: int = kink) -> Tensor:
            return _run(nn.Sequential(*layers[:kink]), w_P, plain.inputs)

        def after(z: Tensor, kink: int = kink) -> Tensor:
            outputs = nn.Sequential(*layers[kink + 1 :])(z)
            return cross_entropy(outputs, plain.targets).sum()

        z = before(plain.w_P).detach()
        delta = grad(after)(torch.relu(z))
        s = torch.sigmoid(beta * z)
        weights = (delta.detach() * beta * s * (1 - s)).flatten()
        jacobian = torch.func.jacrev(before)(plain.w_P).flatten(0, 1)
        expected = expected + jacobian.T @ (weights[:, None] * jacobian)
    network = Network.of(curved.module, curved.loss, form)
    linear = network.linearize(curved.w_P, Minibatch(curved.inputs, curved.targets))
    found = linear.hessian_products(curved.tangents_KP, None)
    assert relative_error(found, curved.tangents_KP @ expected) < tolerances.HVP
    gradient_P = grad(plain.losses)(plain.w_P, rows)
    assert relative_error(linear.gradient_sum(), gradient_P) < tolerances.HVP
    bare = plain.tangents_KP @ hessian(plain.losses, plain.w_P, rows)
    assert relative_error(found, bare) > 0.01, "the kinks count on these weights"


def _run(module: nn.Module, w_P: Tensor, inputs: Tensor) -> Tensor:
    named, start = {}, 0
    for name, parameter in module.named_parameters():
        named[name] = w_P[start : start + parameter.numel()].reshape(parameter.shape)
        start += parameter.numel()
    return functional_call(module, named, (inputs,))


def residual_network(width: int) -> nn.Module:
    """torchvision's ResNet-18 with `width` channels in place of 64, every statistic random."""
    block = torchvision.models.resnet.BasicBlock
    module = torchvision.models.ResNet(block, [2, 2, 2, 2], num_classes=CLASSES)
    if width != 64:
        module.inplanes = width
        module.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        module.bn1 = nn.BatchNorm2d(width)
        module.layer1 = module._make_layer(block, width, 2)
        module.layer2 = module._make_layer(block, 2 * width, 2, stride=2)
        module.layer3 = module._make_layer(block, 2 * width, 2, stride=2)
        module.layer4 = module._make_layer(block, 3 * width, 2, stride=2)
        module.fc = nn.Linear(3 * width, CLASSES)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            assert child.running_mean is not None
            assert child.running_var is not None
            child.running_mean.normal_(std=0.2)
            child.running_var.uniform_(0.5, 2.0)
            child.weight.data.normal_(1, 0.2)
            child.bias.data.normal_(std=0.2)
    return module


@pytest.mark.parametrize("width", [3, pytest.param(64, marks=pytest.mark.torture)])
@pytest.mark.parametrize("form", FORMS[:3])  # it has too many parameters for a matrix
def test_resnet18_agrees_with_forward_over_reverse_by_hand(form: Form, width: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = residual_network(width).double().eval()
        inputs = torch.randn(3, 3, 32, 32, dtype=torch.float64)
        w_P = flat_parameters(module)
        tangents_KP = torch.randn(2, len(w_P), dtype=torch.float64)
    targets, pairs = torch.tensor([0, 2, 1]), Pairs(torch.tensor([1]), torch.tensor([2]))

    def losses(at_P: Tensor, rows: Tensor) -> Tensor:
        return cross_entropy(_run(module, at_P, inputs[rows]), targets[rows]).sum()

    def product(rows: list[int], tangent_P: Tensor) -> Tensor:
        chosen = torch.tensor(rows)
        return jvp(lambda at: grad(losses)(at, chosen), (w_P,), (tangent_P,))[1]

    network = Network.of(module, CrossEntropy(), form)
    linear = network.linearize(w_P, Minibatch(inputs, targets))
    found = linear.hessian_products(tangents_KP, pairs)
    expected = torch.stack([product([0, 1, 2], tangents_KP[0]), product([0, 1], tangents_KP[1])])
    assert relative_error(found, expected) < tolerances.HVP
    gradient_P = grad(losses)(w_P, torch.arange(3))
    assert relative_error(linear.gradient_sum(), gradient_P) < tolerances.HVP
    _, sums_UP = linear.unit_gradients(pairs)
    assert relative_error(sums_UP[0], grad(losses)(w_P, torch.tensor([2]))) < tolerances.HVP


def test_auto_follows_resnet18_with_the_r_operator() -> None:
    assert Network.of(residual_network(3), CrossEntropy(), "r-operator").operator is not None


@pytest.mark.parametrize("layer", ["tanh", "two convolutions", "frozen normalisation", "average"])
def test_the_forms_agree_in_float32(layer: str) -> None:
    example = Example(*LAYERS[layer])
    module, inputs = example.module.float(), example.inputs.float()
    found = [
        Network.of(module, example.loss, form)
        .linearize(example.w_P.float(), Minibatch(inputs, example.targets))
        .hessian_products(example.tangents_KP.float(), example.pairs)[:3]
        for form in FORMS
    ]
    for other in found[1:]:
        assert relative_error(other, found[0]) < tolerances.HVP_FLOAT32


def test_few_parameters_take_the_explicit_form() -> None:
    values: dict[str, Any] = {
        "data": {"source": "wine", "num_train": 120},
        "model": {"name": "logistic"},
        "training": {"epochs": 1, "batch_size": 100, "learning_rate": 0.1},
        "storage": {"block": 120},
    }
    # 42 parameters, 100 samples a minibatch, 120 units a block.
    assert Problem.of(RunConfig.from_values(values)).network.form == "explicit"
    for changed in (
        {"training": {**values["training"], "batch_size": 83}},
        {"storage": {"block": 83}},
    ):
        other = Problem.of(RunConfig.from_values({**values, **changed}))
        assert other.network.form == "r-operator"


def test_a_matrix_of_too_many_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at most 8,192 .* found 10,010 parameters; choose auto"):
        Network.of(nn.Linear(1000, 10), CrossEntropy(), "explicit")
