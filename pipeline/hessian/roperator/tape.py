"""The interface of a layer in the R-operator: once for a minibatch, then for K tangents.

The R-operator (Pearlmutter 1994) differentiates forward and backward pass along a tangent. An
*operator* belongs to a module and knows the slices of its parameters in the flat vector; applied to a
minibatch at given parameters it returns a *tape*, which keeps what the later passes need.

Tangents of activations have shape (B, K, ...): that memory is at once a batch of B*K rows, for
products with the shared weights, and B rows with K times the channels, for products of the shared
activations with K weight tangents. So K tangents cost a few large products and no copies.
"""

# B minibatch rows, K tangents, P parameters, R chosen rows

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pairs:
    """Some (tangent, row) pairs of a block: tangent `tangents[i]` and minibatch row `rows[i]`.

    Both are int64 tensors of one length, sorted by tangent.
    """

    tangents: Tensor
    rows: Tensor

    def zero(self, values_BK: Tensor) -> None:
        """Set the entries of these pairs to zero, in place."""
        values_BK[self.rows, self.tangents] = 0.0


@dataclass(frozen=True)
class Tangents:
    """K directions in parameter space (K, P), and the pairs whose samples are left out of each."""

    vectors_KP: Tensor
    left_out: Pairs | None

    @property
    def num(self) -> int:
        """K."""
        return self.vectors_KP.shape[0]

    def drop(self, values_BK: Tensor) -> None:
        """Zero the left-out samples' entries, which the weights' tangents would otherwise change."""
        if self.left_out is not None:
            self.left_out.zero(values_BK)


class Tape(Protocol):
    """One layer, at one set of parameters, on one minibatch."""

    output: Tensor

    def backward(self, delta: Tensor) -> Tensor | None:
        """Take the per-sample d loss / d output, return d loss / d input (None at the input)."""
        ...

    def gradient(self, rows: Tensor | None, out_P: Tensor) -> None:
        """Write this layer's parameter gradient, summed over `rows` (None: all), into `out_P`."""
        ...

    def sample_gradients(self, rows: Tensor, out_RP: Tensor) -> None:
        """Write the gradient of each chosen row's loss into `out_RP`."""
        ...

    def tangent_forward(self, tangents: Tangents, input_tangent: Tensor | None) -> Tensor | None:
        """Take the input's tangent (B, K, ...; None: zero), return the output's."""
        ...

    def tangent_backward(
        self, tangents: Tangents, delta_tangent: Tensor, out_KP: Tensor
    ) -> Tensor | None:
        """Take the tangent of `delta`, write the Hessian products, return the input's share."""
        ...


class Operator(Protocol):
    """A module that the R-operator can follow."""

    has_parameters: bool

    def __call__(self, parameters_P: Tensor, inputs: Tensor, upstream: bool) -> Tape:
        """Run the layer; `upstream` says that earlier layers have parameters."""
        ...


class OperatorFactory(Protocol):
    """Builds an operator from a module and the slices of the parameters below `prefix`."""

    def __call__(self, module: nn.Module, slices: Mapping[str, slice], prefix: str) -> Operator:
        """Build the operator."""
        ...


def add_product(result: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `result` (rows, columns), in place; in low precision under autocast."""
    if torch.is_autocast_enabled(result.device.type):
        result += left @ right
    else:
        result.addmm_(left, right)


def add_products(result_K: Tensor, left_K: Tensor, right_K: Tensor) -> None:
    """Add K products to `result` (K, rows, columns), in place; in low precision under autocast."""
    if torch.is_autocast_enabled(result_K.device.type):
        result_K += left_K @ right_K
    else:
        result_K.baddbmm_(left_K, right_K)


def fold(values_BK: Tensor) -> Tensor:
    """View (B, K, ...) as a batch of B*K rows."""
    return values_BK.reshape(values_BK.shape[0] * values_BK.shape[1], *values_BK.shape[2:])


def chosen(values_B: Tensor, rows: Tensor | None) -> Tensor:
    """Return the chosen rows, or all of them."""
    return values_B if rows is None else values_B[rows]
