"""Networks around single layers, and what their derivatives are: dense Hessians."""

# B minibatch rows, K tangents, P parameters, U units

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from pipeline.config import Form
from pipeline.hessian.hvp import Network
from pipeline.hessian.linearization import Linearization
from pipeline.hessian.roperator import Pairs
from pipeline.models.losses import CrossEntropy, Loss, SquaredError
from pipeline.models.minibatch import Minibatch
from pipeline.models.parameters import flat_parameters
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
