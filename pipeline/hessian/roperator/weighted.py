"""Layers with weights: linear, and normalisation with frozen statistics."""

# B minibatch rows, K tangents, P parameters, R chosen rows, O outputs, D inputs

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError
from pipeline.hessian.roperator.tape import Tangents, add_product, add_products, chosen, fold


class LinearOperator:
    """`nn.Linear` on (B, D)."""

    has_parameters = True

    def __init__(self, module: nn.Linear, slices: Mapping[str, slice], prefix: str) -> None:
        self.shape = (module.out_features, module.in_features)
        self.weight = slices[f"{prefix}weight"]
        self.bias = slices.get(f"{prefix}bias")

    def __call__(self, parameters_P: Tensor, inputs: Tensor, upstream: bool) -> "LinearTape":
        """Run the layer.

        Raises:
            ModelError: If the inputs have more dimensions than (samples, features).
        """
        if inputs.dim() != 2:
            raise ModelError(
                f"a linear layer meets inputs of shape {tuple(inputs.shape)}; the R-operator follows "
                "(samples, features) alone: set recursion.hvp to reverse or forward-over-reverse"
            )
        return LinearTape(self, parameters_P, inputs, upstream)


class LinearTape:
    """y = x W^T + b."""

    def __init__(self, op: LinearOperator, w_P: Tensor, inputs: Tensor, upstream: bool) -> None:
        self.op, self.inputs, self.upstream = op, inputs, upstream
        self.weight = w_P[op.weight].view(op.shape)
        bias = None if op.bias is None else w_P[op.bias]
        self.output = nn.functional.linear(inputs, self.weight, bias)

    def backward(self, delta: Tensor) -> Tensor | None:
        """Keep delta (B, O); return delta W."""
        self.delta = delta
        return delta @ self.weight if self.upstream else None

    def gradient(self, rows: Tensor | None, out_P: Tensor) -> None:
        """Write delta^T x and the sum of delta."""
        delta, inputs = chosen(self.delta, rows), chosen(self.inputs, rows)
        out_P[self.op.weight] = (delta.T @ inputs).view(-1)
        if self.op.bias is not None:
            out_P[self.op.bias] = delta.sum(0)

    def sample_gradients(self, rows: Tensor, out_RP: Tensor) -> None:
        """Write the outer products delta_r x_r^T."""
        delta, inputs = self.delta[rows], self.inputs[rows]
        out_RP[:, self.op.weight] = (delta[:, :, None] * inputs[:, None, :]).flatten(1)
        if self.op.bias is not None:
            out_RP[:, self.op.bias] = delta

    def tangent_forward(self, tangents: Tangents, input_tangent: Tensor | None) -> Tensor:
        """Return x dW^T + db + Rx W^T."""
        self.input_tangent = input_tangent
        outputs, features = self.op.shape
        weights = tangents.vectors_KP[:, self.op.weight].reshape(-1, features)
        result = (self.inputs @ weights.T).view(-1, tangents.num, outputs)
        if input_tangent is not None:
            add_product(fold(result), fold(input_tangent), self.weight.T)
        if self.op.bias is not None:
            # A contiguous addend: with rows P apart the sum takes half as long again.
            result += tangents.vectors_KP[:, self.op.bias].contiguous()
        tangents.drop(result)
        return result

    def tangent_backward(
        self, tangents: Tangents, delta_tangent: Tensor, out_KP: Tensor
    ) -> Tensor | None:
        """Write Rdelta^T x + delta^T Rx; return Rdelta W + delta dW.

        The products with one matrix for each tangent are batched: they take the matrices where
        they lie, while one wide product would need them copied into another order.
        """
        num, (outputs, features) = tangents.num, self.op.shape
        products = delta_tangent.reshape(-1, num * outputs).T @ self.inputs
        products = products.view(num, outputs, features)
        if self.input_tangent is not None:
            deltas = self.delta.T.expand(num, outputs, -1)
            add_products(products, deltas, self.input_tangent.transpose(0, 1))
        out_KP[:, self.op.weight] = products.view(num, -1)
        if self.op.bias is not None:
            out_KP[:, self.op.bias] = delta_tangent.sum(0)
        if not self.upstream:
            return None
        weights = tangents.vectors_KP[:, self.op.weight].unflatten(1, self.op.shape)
        result = (fold(delta_tangent) @ self.weight).view(-1, num, features)
        result += torch.matmul(self.delta, weights).transpose(0, 1)
        tangents.drop(result)
        return result


class FrozenNormOperator:
    """`nn.BatchNorm2d` in eval mode: a scale and a shift per channel, statistics fixed."""

    has_parameters = True

    def __init__(self, module: nn.BatchNorm2d, slices: Mapping[str, slice], prefix: str) -> None:
        mean, variance = cast(Tensor, module.running_mean), cast(Tensor, module.running_var)
        self.mean = mean.view(-1, 1, 1)
        self.inverse = torch.rsqrt(variance + module.eps).view(-1, 1, 1)
        self.weight, self.bias = slices[f"{prefix}weight"], slices[f"{prefix}bias"]

    def __call__(self, parameters_P: Tensor, inputs: Tensor, upstream: bool) -> "FrozenNormTape":
        """Run the layer."""
        return FrozenNormTape(self, parameters_P, inputs, upstream)


class FrozenNormTape:
    """y = xhat * scale + shift with xhat = (x - mean) / deviation."""

    def __init__(self, op: FrozenNormOperator, w_P: Tensor, inputs: Tensor, upstream: bool) -> None:
        self.op, self.upstream = op, upstream
        self.normalised = (inputs - op.mean) * op.inverse
        self.factor = w_P[op.weight].view(-1, 1, 1) * op.inverse
        self.output = self.normalised * w_P[op.weight].view(-1, 1, 1)
        self.output += w_P[op.bias].view(-1, 1, 1)

    def backward(self, delta: Tensor) -> Tensor | None:
        """Keep delta; return it scaled."""
        self.delta = delta
        return delta * self.factor if self.upstream else None

    def gradient(self, rows: Tensor | None, out_P: Tensor) -> None:
        """Write the sums of delta * xhat and of delta."""
        delta, normalised = chosen(self.delta, rows), chosen(self.normalised, rows)
        out_P[self.op.weight] = (delta * normalised).sum((0, 2, 3))
        out_P[self.op.bias] = delta.sum((0, 2, 3))

    def sample_gradients(self, rows: Tensor, out_RP: Tensor) -> None:
        """Write each row's sums."""
        delta = self.delta[rows]
        out_RP[:, self.op.weight] = (delta * self.normalised[rows]).sum((2, 3))
        out_RP[:, self.op.bias] = delta.sum((2, 3))

    def tangent_forward(self, tangents: Tangents, input_tangent: Tensor | None) -> Tensor:
        """Return xhat dscale + dshift + Rx scale / deviation."""
        self.input_tangent = input_tangent
        result = self.normalised.unsqueeze(1) * tangents.vectors_KP[:, self.op.weight, None, None]
        result += tangents.vectors_KP[:, self.op.bias, None, None]
        if input_tangent is not None:
            result.addcmul_(input_tangent, self.factor)
        tangents.drop(result)
        return result

    def tangent_backward(
        self, tangents: Tangents, delta_tangent: Tensor, out_KP: Tensor
    ) -> Tensor | None:
        """Write sum(Rdelta xhat + delta Rx / deviation); return the input's share."""
        scale = torch.einsum("bkchw,bchw->kc", delta_tangent, self.normalised)
        if self.input_tangent is not None:
            scaled = self.delta * self.op.inverse
            scale += torch.einsum("bchw,bkchw->kc", scaled, self.input_tangent)
        out_KP[:, self.op.weight] = scale
        out_KP[:, self.op.bias] = delta_tangent.sum((0, 3, 4))
        if not self.upstream:
            return None
        result = delta_tangent * self.factor
        scale_tangents = tangents.vectors_KP[:, self.op.weight, None, None] * self.op.inverse
        result.addcmul_(self.delta.unsqueeze(1), scale_tangents)
        tangents.drop(result)
        return result
