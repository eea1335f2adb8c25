"""Activations by name, and a ReLU with the second derivative of softplus.

A ReLU network's Hessian does not see the kinks, although crossing them curves the loss on average.
`CurvedReLU` keeps ReLU's values and slopes and takes softplus's second derivative,
beta s (1 - s) with s = sigmoid(beta x) (docs/method.md, section 11).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pipeline.config import Activation, Pooling


ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


POOLINGS: dict[Pooling, type[nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


def kink_curvature(z: Tensor, beta: float) -> Tensor:
    """Return beta s (1 - s), s = sigmoid(beta z): the second derivative of softplus."""
    s = torch.sigmoid(beta * z)
    return beta * s * (1 - s)


class _OfInputAndSharpness(torch.autograd.Function):
    """A function of z and beta that keeps both for its derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        z, beta = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)
        ctx.beta = beta


class _Slope(_OfInputAndSharpness):
    """The step function, with softplus's second derivative as its derivative."""

    @staticmethod
    def forward(z: Tensor, beta: float) -> Tensor:
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return grad * kink_curvature(z, ctx.beta), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (z,) = ctx.saved_tensors
        return tangent * kink_curvature(z, ctx.beta)


class _CurvedReLU(_OfInputAndSharpness):
    @staticmethod
    def forward(z: Tensor, beta: float) -> Tensor:
        return torch.relu(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return grad * _Slope.apply(z, ctx.beta), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (z,) = ctx.saved_tensors
        return cast(Tensor, tangent * _Slope.apply(z, ctx.beta))


class CurvedReLU(nn.Module):
    """ReLU in value and slope, softplus of sharpness `beta` in its second derivative."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, z: Tensor) -> Tensor:
        """Return max(z, 0)."""
        return cast(Tensor, _CurvedReLU.apply(z, self.beta))


def curve_relus(module: nn.Module, beta: float) -> nn.Module:
    """Replace every `nn.ReLU` below `module` by a `CurvedReLU`, in place, and return the module."""
    if isinstance(module, nn.ReLU):
        return CurvedReLU(beta)
    # One object may occur several times, and `named_children` lists it once.
    for name, child in list(module._modules.items()):
        if child is not None:
            setattr(module, name, curve_relus(child, beta))
    return module


def has_relu(module: nn.Module) -> bool:
    """Whether the module contains a ReLU."""
    return any(isinstance(child, nn.ReLU | CurvedReLU) for child in module.modules())
