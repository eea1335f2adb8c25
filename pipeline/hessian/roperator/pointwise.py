"""Layers without weights: activations, pooling, flattening."""

# B minibatch rows, K tangents

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import pi, sqrt
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.hessian.roperator.tape import Tangents, fold
from pipeline.models.activations import CurvedReLU, kink_curvature
from pipeline.models.train_mode import KeyedDropout


class Weightless:
    """The part of a tape that all layers without parameters share."""

    output: Tensor

    def gradient(self, rows: Tensor | None, out_P: Tensor) -> None:
        """Write nothing: there are no parameters."""

    def sample_gradients(self, rows: Tensor, out_RP: Tensor) -> None:
        """Write nothing: there are no parameters."""


@dataclass(frozen=True)
class Derivatives:
    """Value, slope and curvature of an activation at its inputs; no curvature means zero."""

    value: Tensor
    slope: Tensor
    curvature: Tensor | None


def _tanh(z: Tensor, module: nn.Module) -> Derivatives:
    value = torch.tanh(z)
    slope = 1 - value.square()
    return Derivatives(value, slope, -2 * value * slope)


def _relu(z: Tensor, module: nn.Module) -> Derivatives:
    curvature = kink_curvature(z, module.beta) if isinstance(module, CurvedReLU) else None
    return Derivatives(torch.relu(z), (z > 0).to(z.dtype), curvature)


def _silu(z: Tensor, module: nn.Module) -> Derivatives:
    s = torch.sigmoid(z)
    return Derivatives(
        nn.functional.silu(z), s * (1 + z * (1 - s)), s * (1 - s) * (2 + z * (1 - 2 * s))
    )


def _gelu(z: Tensor, module: nn.Module) -> Derivatives:
    density = torch.exp(-0.5 * z.square()) / sqrt(2 * pi)
    slope = 0.5 * (1 + torch.erf(z / sqrt(2))) + z * density
    return Derivatives(nn.functional.gelu(z), slope, density * (2 - z.square()))


def _dropout(z: Tensor, module: nn.Module) -> Derivatives:
    scale = cast(KeyedDropout, module).scale(z)
    scale = torch.ones_like(z) if scale is None else scale.expand_as(z)
    return Derivatives(z * scale, scale, None)


ACTIVATIONS: dict[type[nn.Module], Callable[[Tensor, nn.Module], Derivatives]] = {
    nn.Tanh: _tanh,
    nn.ReLU: _relu,
    CurvedReLU: _relu,
    nn.SiLU: _silu,
    nn.GELU: _gelu,
    KeyedDropout: _dropout,
}


class ActivationOperator:
    """An element-wise activation."""

    has_parameters = False

    def __init__(self, module: nn.Module, slices: Mapping[str, slice], prefix: str) -> None:
        self.module, self.function = module, ACTIVATIONS[type(module)]

    def __call__(self, parameters_P: Tensor, inputs: Tensor, upstream: bool) -> "ActivationTape":
        """Run the layer."""
        return ActivationTape(self.function(inputs, self.module))


class ActivationTape(Weightless):
    """a = phi(z)."""

    def __init__(self, at: Derivatives) -> None:
        self.at, self.output = at, at.value

    def backward(self, delta: Tensor) -> Tensor:
        """Return delta phi'(z)."""
        self.delta = delta
        return delta * self.at.slope

    def tangent_forward(self, tangents: Tangents, input_tangent: Tensor | None) -> Tensor | None:
        """Return Rz phi'(z)."""
        self.input_tangent = input_tangent
        return None if input_tangent is None else input_tangent * self.at.slope.unsqueeze(1)

    def tangent_backward(
        self, tangents: Tangents, delta_tangent: Tensor, out_KP: Tensor
    ) -> Tensor | None:
        """Return Rdelta phi'(z) + delta phi''(z) Rz."""
        if self.input_tangent is None:
            return None
        result = delta_tangent * self.at.slope.unsqueeze(1)
        if self.at.curvature is not None:
            result.addcmul_(self.input_tangent, (self.delta * self.at.curvature).unsqueeze(1))
        return result


class LinearMapOperator:
    """A parameter-free layer that is linear in its input once the input is fixed."""

    has_parameters = False

    def __init__(self, module: nn.Module, slices: Mapping[str, slice], prefix: str) -> None:
        self.map = LINEAR_MAPS[type(module)](module)

    def __call__(self, parameters_P: Tensor, inputs: Tensor, upstream: bool) -> "LinearMapTape":
        """Run the layer."""
        return LinearMapTape(*self.map(inputs))


Apply = Callable[[Tensor], Tensor]
"""A linear map of a batch of any length that is a multiple of B, rows of one sample adjacent."""


class LinearMapTape(Weightless):
    """y = A x: pooling (A fixed by the primal pass) and flattening."""

    def __init__(self, output: Tensor, forward: Apply, transpose: Apply) -> None:
        self.output, self.forward, self.transpose = output, forward, transpose

    def backward(self, delta: Tensor) -> Tensor:
        """Return A^T delta."""
        return self.transpose(delta)

    def tangent_forward(self, tangents: Tangents, input_tangent: Tensor | None) -> Tensor | None:
        """Return A Rx."""
        self.upstream = input_tangent is not None
        return None if input_tangent is None else _folded(self.forward, input_tangent)

    def tangent_backward(
        self, tangents: Tangents, delta_tangent: Tensor, out_KP: Tensor
    ) -> Tensor | None:
        """Return A^T Rdelta."""
        return _folded(self.transpose, delta_tangent) if self.upstream else None


def _folded(apply: Apply, values_BK: Tensor) -> Tensor:
    result = apply(fold(values_BK))
    return result.view(*values_BK.shape[:2], *result.shape[1:])


def _flatten(module: nn.Module) -> Callable[[Tensor], tuple[Tensor, Apply, Apply]]:
    def run(x: Tensor) -> tuple[Tensor, Apply, Apply]:
        shape = x.shape[1:]
        return x.flatten(1), lambda v: v.flatten(1), lambda v: v.reshape(-1, *shape)

    return run


def _max_pool(module: nn.Module) -> Callable[[Tensor], tuple[Tensor, Apply, Apply]]:
    pool = cast(nn.MaxPool2d, module)

    def run(x: Tensor) -> tuple[Tensor, Apply, Apply]:
        output, indices = nn.functional.max_pool2d(
            x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode,
            return_indices=True,
        )  # fmt: skip
        image, small = x.shape[2:], output.shape[2:]
        flat = indices.flatten(2)

        def per_sample(v: Tensor) -> Tensor:
            return flat.repeat_interleave(v.shape[0] // x.shape[0], dim=0)

        def forward(v: Tensor) -> Tensor:
            return v.flatten(2).gather(2, per_sample(v)).view(*v.shape[:2], *small)

        def transpose(v: Tensor) -> Tensor:
            # Windows may overlap (ResNet's stem), so contributions add up.
            zeros = v.new_zeros(*v.shape[:2], image[0] * image[1])
            return zeros.scatter_add_(2, per_sample(v), v.flatten(2)).view(*v.shape[:2], *image)

        return output, forward, transpose

    return run


def _average_pool(module: nn.Module) -> Callable[[Tensor], tuple[Tensor, Apply, Apply]]:
    pool = cast(nn.AvgPool2d, module)
    window = (
        pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, pool.count_include_pad,
        pool.divisor_override,
    )  # fmt: skip

    def run(x: Tensor) -> tuple[Tensor, Apply, Apply]:
        image = x.shape[1:]

        def forward(v: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(v, *window)

        def transpose(v: Tensor) -> Tensor:
            like = v.new_empty(1).expand(v.shape[0], *image)
            sizes = [_pair(size) for size in window[:3]]
            result = torch.ops.aten.avg_pool2d_backward(v, like, *sizes, *window[3:])
            return cast(Tensor, result)

        return forward(x), forward, transpose

    return run


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _global_average(module: nn.Module) -> Callable[[Tensor], tuple[Tensor, Apply, Apply]]:
    def run(x: Tensor) -> tuple[Tensor, Apply, Apply]:
        height, width = x.shape[2:]

        def forward(v: Tensor) -> Tensor:
            return v.mean((2, 3), keepdim=True)

        def transpose(v: Tensor) -> Tensor:
            return (v / (height * width)).expand(*v.shape[:2], height, width).contiguous()

        return forward(x), forward, transpose

    return run


LINEAR_MAPS: dict[
    type[nn.Module], Callable[[nn.Module], Callable[[Tensor], tuple[Tensor, Apply, Apply]]]
] = {
    nn.Flatten: _flatten,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _global_average,
}
