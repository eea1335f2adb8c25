"""Convolutions in the R-operator.

On maps smaller than the kernel's reach, some taps meet only padding: a padded 3x3 kernel on
1x1 maps, ResNet-18's last stage at 32x32 pixels, uses one tap of nine. Those weights have no
gradient and no curvature, so the tape works on the kernel without them.
"""

# B minibatch rows, K tangents, P parameters, R chosen rows, O outputs, D input channels

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.hessian.roperator.tape import Tangents, chosen, fold


@dataclass(frozen=True)
class Correlation:
    """Correlation of maps with a kernel, zero padding, one group, and its two transposes."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def forward(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the convolution without bias."""
        return nn.functional.conv2d(inputs, weight, None, self.stride, self.padding, self.dilation)

    def input_gradient(self, delta: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the transposed convolution of `delta`; only the shape of `inputs` counts."""
        return self._backward(delta, inputs, weight, [True, False, False])

    def weight_gradient(self, delta: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        """Return the correlation of `delta` with `inputs`; only the shape of `weight` counts."""
        return self._backward(delta, inputs, weight, [False, True, False])

    def patches(self, inputs: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """Return what each output position sees, (B, D kh kw, positions)."""
        return nn.functional.unfold(inputs, kernel, self.dilation, self.padding, self.stride)

    def _backward(self, delta: Tensor, inputs: Tensor, weight: Tensor, mask: list[bool]) -> Tensor:
        device = delta.device.type
        if torch.is_autocast_enabled(device):
            # Autocast knows the forward convolution, but not this, its derivative.
            low = torch.get_autocast_dtype(device)
            delta, inputs, weight = delta.to(low), inputs.to(low), weight.to(low)
        results = torch.ops.aten.convolution_backward(
            delta, inputs, weight, None, self.stride, self.padding, self.dilation,
            False, [0, 0], 1, mask,
        )  # fmt: skip
        return cast(Tensor, results[mask.index(True)])


def used_taps(size: int, kernel: int, stride: int, padding: int, dilation: int) -> slice:
    """Return the taps of one axis that meet a pixel, or all if the rest cannot be cut away.

    >>> used_taps(1, 3, 1, 1, 1), used_taps(2, 3, 2, 1, 1), used_taps(8, 3, 1, 1, 1)
    (slice(1, 2, None), slice(1, 3, None), slice(0, 3, None))
    """
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    met = [
        tap
        for tap in range(kernel)
        if any(0 <= o * stride - padding + tap * dilation < size for o in range(outputs))
    ]
    first, last = met[0], met[-1]
    # The padding is one number for both sides, so what is left must give as many outputs.
    left = padding - first * dilation
    span = dilation * (last - first)
    if left < 0 or (size + 2 * left - span - 1) // stride + 1 != outputs:
        return slice(0, kernel)
    return slice(first, last + 1)


class ConvolutionOperator:
    """`nn.Conv2d` on (B, D, H, W), zero padding, one group."""

    has_parameters = True

    def __init__(self, module: nn.Conv2d, slices: Mapping[str, slice], prefix: str) -> None:
        self.shape = tuple(module.weight.shape)
        self.weight = slices[f"{prefix}weight"]
        self.bias = slices.get(f"{prefix}bias")
        padding = cast(tuple[int, ...], module.padding)
        self.correlation = Correlation(module.stride, padding, module.dilation)

    def __call__(self, parameters_P: Tensor, inputs: Tensor, upstream: bool) -> "ConvolutionTape":
        """Run the layer."""
        return ConvolutionTape(self, parameters_P, inputs, upstream)

    def taps(self, image: torch.Size) -> tuple[slice, slice]:
        """Return the rows and columns of the kernel that meet pixels of an image."""
        on = self.correlation
        rows, columns = (
            used_taps(size, self.shape[2 + i], on.stride[i], on.padding[i], on.dilation[i])
            for i, size in enumerate(image)
        )
        return rows, columns

    def without(self, taps: tuple[slice, slice]) -> Correlation:
        """Return the correlation of the kernel that is left."""
        on = self.correlation
        padding = (p - t.start * d for p, t, d in zip(on.padding, taps, on.dilation, strict=True))
        return replace(on, padding=tuple(padding))


class ConvolutionTape:
    """y = x * W + b."""

    def __init__(self, op: ConvolutionOperator, w_P: Tensor, inputs: Tensor, upstream: bool):
        self.op, self.inputs, self.upstream = op, inputs, upstream
        self.taps = op.taps(inputs.shape[2:])
        self.on = op.without(self.taps)
        self.weight = self._kernels(w_P[None])[0]
        self.whole = self.weight.shape == op.shape
        self.output = self.on.forward(inputs, self.weight)
        if op.bias is not None:
            self.output += w_P[op.bias].view(-1, 1, 1)

    def _kernels(self, vectors_KP: Tensor) -> Tensor:
        """Return the used part of K kernels, (K, O, D, kh, kw), contiguous."""
        kernels: Tensor = vectors_KP[:, self.op.weight].unflatten(1, self.op.shape)
        return kernels[..., self.taps[0], self.taps[1]].contiguous()

    def _write(self, kernels_K: Tensor, out_KP: Tensor) -> None:
        """Write K kernels of the used part; the other weights get zero."""
        target = out_KP[:, self.op.weight]
        if self.whole:
            target.copy_(kernels_K.flatten(1))
            return
        target.zero_()
        target.unflatten(1, self.op.shape)[..., self.taps[0], self.taps[1]] = kernels_K

    def backward(self, delta: Tensor) -> Tensor | None:
        """Keep delta (B, O, H', W'); return its transposed convolution."""
        self.delta = delta
        if not self.upstream:
            return None
        return self.on.input_gradient(delta, self.inputs, self.weight)

    def gradient(self, rows: Tensor | None, out_P: Tensor) -> None:
        """Write the correlation of delta with x, and the sum of delta."""
        delta, inputs = chosen(self.delta, rows), chosen(self.inputs, rows)
        self._write(self.on.weight_gradient(delta, inputs, self.weight)[None], out_P[None])
        if self.op.bias is not None:
            out_P[self.op.bias] = delta.sum((0, 2, 3))

    def sample_gradients(self, rows: Tensor, out_RP: Tensor) -> None:
        """Write each row's correlation as a product of its patches with its delta."""
        patches = self.on.patches(self.inputs[rows], tuple(self.weight.shape[2:]))
        delta = self.delta[rows].flatten(2)
        products = torch.bmm(delta, patches.transpose(1, 2))
        self._write(products.unflatten(2, self.weight.shape[1:]), out_RP)
        if self.op.bias is not None:
            out_RP[:, self.op.bias] = delta.sum(2)

    def tangent_forward(self, tangents: Tangents, input_tangent: Tensor | None) -> Tensor:
        """Return x * dW + db + Rx * W; the first is one convolution with K*O output channels."""
        self.input_tangent = input_tangent
        self.weight_tangents = self._kernels(tangents.vectors_KP)
        result = self.on.forward(self.inputs, fold(self.weight_tangents))
        result = result.view(-1, tangents.num, self.op.shape[0], *result.shape[2:])
        if input_tangent is not None:
            result += self.on.forward(fold(input_tangent), self.weight).view(result.shape)
        if self.op.bias is not None:
            result += tangents.vectors_KP[:, self.op.bias, None, None]
        tangents.drop(result)
        return result

    def tangent_backward(
        self, tangents: Tangents, delta_tangent: Tensor, out_KP: Tensor
    ) -> Tensor | None:
        """Write corr(Rdelta, x) + corr(delta, Rx); return Rdelta *^T W + delta *^T dW."""
        num, (outputs, channels, *kernel) = tangents.num, self.weight.shape
        delta_wide = delta_tangent.flatten(1, 2)
        weights = self.weight_tangents
        products = self.on.weight_gradient(delta_wide, self.inputs, fold(weights))
        products = products.view(num, outputs, channels, *kernel)
        across = weights.transpose(0, 1).reshape(outputs, num * channels, *kernel)
        if self.input_tangent is not None:
            inputs_wide = self.input_tangent.flatten(1, 2)
            shared = self.on.weight_gradient(self.delta, inputs_wide, across)
            products += shared.view(outputs, num, channels, *kernel).transpose(0, 1)
        self._write(products, out_KP)
        if self.op.bias is not None:
            out_KP[:, self.op.bias] = delta_tangent.sum((0, 3, 4))
        if not self.upstream:
            return None
        batch, _, *image = self.inputs.shape
        wide = self.inputs.new_empty(1).expand(batch, num * channels, *image)
        result = self.on.input_gradient(self.delta, wide, across)
        result = result.view(batch, num, channels, *image)
        folded = self.inputs.new_empty(1).expand(batch * num, channels, *image)
        result += self.on.input_gradient(fold(delta_tangent), folded, self.weight).view(
            result.shape
        )
        tangents.drop(result)
        return result
