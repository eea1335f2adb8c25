"""The R-operator, layer by layer, and the other forms, against dense Hessians."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from pipeline.config import Form, RunConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.hessian.hvp import Linearization, Network
from pipeline.hessian.roperator import Pairs
from pipeline.models.activations import CurvedReLU
from pipeline.models.losses import CrossEntropy, Loss, SquaredError
from pipeline.models.minibatch import Minibatch
from pipeline.models.parameters import flat_parameters
from pipeline.run.problem import Problem
from tests import tolerances
from tests.oracles import cross_entropy, hessian, relative_error, squared_error

FORMS: tuple[Form, ...] = ("r-operator", "reverse", "forward-over-reverse", "explicit")
CLASSES = 3
Shape = tuple[int, ...]


def conv_net(
    shape: Shape, conv: nn.Conv2d, *middle: nn.Module, before: tuple[nn.Module, ...] = ()
) -> nn.Module:
    """A network around the layers under test, with an activation on either side."""
    layers = [*before, conv, nn.Tanh(), *middle]
    width = nn.Sequential(*layers, nn.Flatten()).eval()(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, CLASSES))


def random_norm(channels: int) -> nn.BatchNorm2d:
    """A BatchNorm2d whose every tensor counts."""
    norm = nn.BatchNorm2d(channels)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
        tensor.normal_()
    norm.running_var.uniform_(0.3, 3.0)
    return norm


def mlp(activation: Callable[[], nn.Module], bias: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, 5, bias=bias),
        activation(),
        nn.Linear(5, 4, bias=bias),
        activation(),
        nn.Linear(4, CLASSES, bias=bias),
    )


def shared_activation() -> nn.Module:
    # The same activation object twice: torch lists it once among the children.
    act = nn.Tanh()
    return nn.Sequential(nn.Linear(4, 5), act, nn.Linear(5, 4), act, nn.Linear(4, CLASSES))


IMAGE = (2, 6, 6)
first = nn.Conv2d  # the layer under test stands behind this one, so that it has an input tangent

LAYERS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "linear": (lambda: nn.Linear(4, CLASSES), (4,)),
    "linear without bias": (lambda: nn.Linear(4, CLASSES, bias=False), (4,)),
    "tanh": (lambda: mlp(nn.Tanh), (4,)),
    "tanh without bias": (lambda: mlp(nn.Tanh, bias=False), (4,)),
    "relu": (lambda: mlp(nn.ReLU), (4,)),
    "silu": (lambda: mlp(nn.SiLU), (4,)),
    "gelu": (lambda: mlp(nn.GELU), (4,)),
    "an activation used twice": (shared_activation, (4,)),
    "a chain in a chain": (
        lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Linear(3, CLASSES)),
        (4,),
    ),
    "an identity": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Identity(), nn.Tanh(), nn.Linear(3, CLASSES)),
        (4,),
    ),
    "activation first": (lambda: nn.Sequential(nn.Tanh(), mlp(nn.Tanh)), (4,)),
    "convolution": (lambda: conv_net(IMAGE, first(2, 3, 3)), IMAGE),
    "two convolutions": (
        lambda: conv_net(IMAGE, first(2, 3, 3), nn.Conv2d(3, 2, 2), nn.SiLU()),
        IMAGE,
    ),
    "convolutions without bias": (
        lambda: conv_net(
            IMAGE, first(2, 3, 3, bias=False), nn.Conv2d(3, 2, 2, bias=False), nn.SiLU()
        ),
        IMAGE,
    ),
    "stride": (
        lambda: conv_net(IMAGE, first(2, 3, 3, stride=2), nn.Conv2d(3, 2, 1, stride=2), nn.Tanh()),
        IMAGE,
    ),
    "stride that leaves pixels over": (
        lambda: conv_net(IMAGE, first(2, 2, 2), nn.Conv2d(2, 2, 2, stride=2), nn.Tanh()),
        IMAGE,
    ),
    "padding": (
        lambda: conv_net(
            IMAGE, first(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=2), nn.Tanh()
        ),
        IMAGE,
    ),
    "dilation": (
        lambda: conv_net(
            IMAGE, first(2, 2, 2, dilation=2), nn.Conv2d(2, 2, 2, dilation=3), nn.Tanh()
        ),
        IMAGE,
    ),
    "everything, unequal sides": (
        lambda: conv_net(
            (2, 7, 6),
            first(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
            nn.Conv2d(3, 2, (2, 3), stride=(1, 2), padding=(1, 1)),
            nn.Tanh(),
        ),
        (2, 7, 6),
    ),
    "frozen normalisation": (
        lambda: conv_net(IMAGE, first(2, 3, 3), random_norm(3), nn.SiLU()),
        IMAGE,
    ),
    "normalisation at the input": (
        lambda: conv_net(IMAGE, first(2, 3, 3), before=(random_norm(2),)),
        IMAGE,
    ),
    "pooling": (lambda: conv_net(IMAGE, first(2, 3, 3), nn.MaxPool2d(2)), IMAGE),
    "overlapping pooling": (
        lambda: conv_net(IMAGE, first(2, 3, 3), nn.MaxPool2d(3, stride=1, padding=1)),
        IMAGE,
    ),
    "pooling at the input": (
        lambda: conv_net(IMAGE, first(2, 3, 2), before=(nn.MaxPool2d(2),)),
        IMAGE,
    ),
    "pooling with dilation": (
        lambda: conv_net(IMAGE, first(2, 3, 3), nn.MaxPool2d(2, stride=1, dilation=2)),
        IMAGE,
    ),
    "pooling that leaves pixels over": (
        lambda: conv_net(IMAGE, first(2, 3, 2), nn.MaxPool2d(2)),
        IMAGE,
    ),
    "average pooling": (lambda: conv_net(IMAGE, first(2, 3, 3), nn.AvgPool2d(2)), IMAGE),
    "overlapping average pooling": (
        lambda: conv_net(IMAGE, first(2, 3, 3), nn.AvgPool2d((3, 2), stride=1, padding=(1, 0))),
        IMAGE,
    ),
    "average pooling over what is there": (
        lambda: conv_net(
            IMAGE,
            first(2, 3, 2),
            nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
        ),
        IMAGE,
    ),
    "average pooling with a divisor": (
        lambda: conv_net(IMAGE, first(2, 3, 3), nn.AvgPool2d(2, divisor_override=3)),
        IMAGE,
    ),
    "average": (lambda: conv_net(IMAGE, first(2, 3, 3), nn.AdaptiveAvgPool2d(1)), IMAGE),
}

# Layers that the R-operator need not know; what it does not know it must leave to the other forms.
UNUSUAL: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "pooling rounded up": (
        lambda: conv_net(IMAGE, first(2, 3, 2), nn.MaxPool2d(2, ceil_mode=True)),
        IMAGE,
    ),
    "groups": (
        lambda: conv_net(IMAGE, first(2, 4, 3), nn.Conv2d(4, 4, 2, groups=2), nn.Tanh()),
        IMAGE,
    ),
    "padding by name": (lambda: conv_net(IMAGE, first(2, 3, 3, padding="same")), IMAGE),
    "reflected padding": (
        lambda: conv_net(IMAGE, first(2, 3, 3, padding=1, padding_mode="reflect")),
        IMAGE,
    ),
    "average of parts": (lambda: conv_net(IMAGE, first(2, 3, 3), nn.AdaptiveAvgPool2d(2)), IMAGE),
    "gelu by tanh": (lambda: mlp(lambda: nn.GELU(approximate="tanh")), (4,)),
    "softplus": (lambda: mlp(nn.Softplus), (4,)),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, CLASSES)),
        (4,),
    ),
    "rows of features": (
        lambda: nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, CLASSES)),
        (3, 4),
    ),
    "tied weights": (lambda: _tied(), (4,)),
    "a chain that does more": (lambda: _Doubled(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "frozen weights": (lambda: _partly_frozen(), (4,)),
    "a hook": (lambda: _hooked(), (4,)),
    "a hook on nothing": (lambda: _hooked_on_identity(), (4,)),
    "a call that does more": (lambda: _Tripled(nn.Linear(4, CLASSES)), (4,)),
    "a forward of its own": (lambda: _with_forward(), (4,)),
    "a container's own weights": (lambda: _with_own_parameter(), (4,)),
}


class _Doubled(nn.Sequential):
    """A subclass with a forward pass of its own."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)  # type: ignore[no-any-return]


class _Tripled(nn.Sequential):
    """A subclass that changes how it is called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return 3 * super().__call__(*args, **kwargs)


def _with_forward() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, CLASSES))
    module.forward = lambda x: 3 * nn.Sequential.forward(module, x)  # type: ignore[method-assign]
    return module


def _with_own_parameter() -> nn.Module:
    module = mlp(nn.Tanh)
    module.register_parameter("unused", nn.Parameter(torch.ones(3)))
    return module


def _hooked_on_identity() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, CLASSES), nn.Identity())
    module[1].register_forward_hook(lambda _m, _i, output: 3 * output)
    return module


def _tied() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, CLASSES))


def _hooked() -> nn.Module:
    module = mlp(nn.Tanh)
    module[1].register_forward_hook(lambda _m, _i, output: 2 * output)  # type: ignore[index]
    return module


def _partly_frozen() -> nn.Module:
    module = mlp(nn.Tanh)
    for parameter in list(module.parameters())[:2]:
        parameter.requires_grad_(False)
    return module


class Example:
    """A module at random weights on five random samples, with tangents and pairs to leave out."""

    # K = 4 tangents; 0 leaves out nothing, 1 one sample, 2 three, 3 all five.
    pairs = Pairs(
        torch.tensor([1, 2, 2, 2, 3, 3, 3, 3, 3]), torch.tensor([4, 0, 2, 3, 0, 1, 2, 3, 4])
    )

    def __init__(self, make: Callable[[], nn.Module], shape: Shape, squared: bool = False) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            self.module = make().double().eval()
            self.inputs = torch.randn(5, *shape, dtype=torch.float64)
            self.w_P = flat_parameters(self.module)
            self.tangents_KP = torch.randn(4, len(self.w_P), dtype=torch.float64)
            targets = torch.randn(5, CLASSES, dtype=torch.float64)
        self.targets = targets if squared else torch.tensor([0, 2, 1, 1, 0])
        self.loss: Loss = SquaredError() if squared else CrossEntropy()
        self.oracle_loss = squared_error if squared else cross_entropy

    def losses(self, w_P: Tensor, rows: Tensor) -> Tensor:
        """The oracle's summed loss of some rows."""
        named, start = {}, 0
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                named[name] = w_P[start : start + parameter.numel()].reshape(parameter.shape)
                start += parameter.numel()
        outputs = functional_call(self.module, named, (self.inputs[rows],))
        return self.oracle_loss(outputs, self.targets[rows]).sum()

    def rows_left_to(self, tangent: int) -> Tensor:
        gone = self.pairs.rows[self.pairs.tangents == tangent]
        return torch.tensor([b for b in range(5) if b not in gone], dtype=torch.int64)

    def products(self, hessians_BPP: Tensor) -> Tensor:
        """The samples' dense Hessians, summed over what is left, times the tangents."""
        return torch.stack(
            [
                hessians_BPP[self.rows_left_to(k)].sum(0) @ tangent_P
                for k, tangent_P in enumerate(self.tangents_KP)
            ]
        )

    def check(self, form: Form) -> None:
        """Compare gradients, products and unit gradients with the dense ones."""
        linear = Network.of(self.module, self.loss, form).linearize(
            self.w_P, Minibatch(self.inputs, self.targets)
        )
        gradient_P = linear.gradient_sum()
        self._check_gradient(gradient_P, torch.arange(5))
        hessians_BPP = torch.stack(
            [hessian(self.losses, self.w_P, torch.tensor([b])) for b in range(5)]
        )
        whole = self.tangents_KP @ hessians_BPP.sum(0)
        found = linear.hessian_products(self.tangents_KP, None)
        assert relative_error(found, whole) < tolerances.HVP
        found = linear.hessian_products(self.tangents_KP, self.pairs)
        assert relative_error(found[:3], self.products(hessians_BPP)[:3]) < tolerances.HVP
        # Forms that subtract left-out samples meet the zero of an emptied minibatch to rounding.
        assert float(found[3].norm()) < tolerances.HVP * float(whole[3].norm())
        self._check_unit_gradients(linear)
        assert torch.equal(linear.gradient_sum(), gradient_P)

    def _check_gradient(self, found: Tensor, rows: Tensor) -> None:
        expected = grad(self.losses)(self.w_P, rows)
        assert relative_error(found, expected) < tolerances.HVP

    def _check_unit_gradients(self, linear: Linearization) -> None:
        # One row to each unit takes a path of its own; a row may also belong to no unit.
        for pairs in (self.pairs, Pairs(torch.tensor([0, 2]), torch.tensor([3, 1]))):
            units, sums_UP = linear.unit_gradients(pairs)
            assert units.tolist() == sorted(set(pairs.tangents.tolist()))
            for unit, sum_P in zip(units, sums_UP, strict=True):
                self._check_gradient(sum_P, pairs.rows[pairs.tangents == unit])


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
@pytest.mark.parametrize("form", FORMS)
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
