"""The Hessian of a minibatch as a matrix: for few parameters, large minibatches and many units.

At a step all units need products with the same matrix. P products with the unit vectors form it, and
each tangent then costs one row of a (K, P) by (P, P) product, 2 P^2 operations, where the R-operator
needs about 8 P for each sample. Samples that are left out for a tangent are subtracted, a few at a
time, by products of their own.
"""

# B minibatch rows, K tangents, P parameters

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from pipeline.hessian.linearization import Linearization
from pipeline.hessian.roperator import Pairs
from pipeline.models.minibatch import Minibatch

# Unit vectors at once, and pairs of a tangent with a sample at once: their activations stay small.
COLUMNS_AT_ONCE = 256
PAIRS_AT_ONCE = 64


class ExplicitLinearization:
    """A linearisation that forms its Hessian once, by another form's products."""

    def __init__(
        self, batch: Minibatch, w_P: Tensor, linearize: Callable[[Minibatch], Linearization]
    ) -> None:
        """Take the minibatch, the parameters, and the other form's linearisation of any minibatch."""
        self._batch, self._like_P, self._linearize = batch, w_P, linearize
        self._inner = linearize(batch)

    def gradient_sum(self) -> Tensor:
        """Return sum_b grad l_b, (P,)."""
        return self._inner.gradient_sum()

    def unit_gradients(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the tangents in `pairs` (U,) and their summed gradients (U, P)."""
        return self._inner.unit_gradients(pairs)

    @cached_property
    def hessian_PP(self) -> Tensor:
        """sum_b hess l_b, (P, P)."""
        size = len(self._like_P)
        columns = torch.eye(size, dtype=self._like_P.dtype, device=self._like_P.device)
        parts = [
            self._inner.hessian_products(part, None) for part in columns.split(COLUMNS_AT_ONCE)
        ]
        return torch.cat(parts)

    def hessian_products(self, tangents_KP: Tensor, left_out: Pairs | None) -> Tensor:
        """Return sum_b hess l_b v_k, those of left-out samples subtracted, (K, P)."""
        out_KP = tangents_KP @ self.hessian_PP
        if left_out is not None and len(left_out.rows):
            groups = zip(
                left_out.tangents.split(PAIRS_AT_ONCE),
                left_out.rows.split(PAIRS_AT_ONCE),
                strict=True,
            )
            for tangents, rows in groups:
                own = self._own_products(tangents_KP[tangents], rows)
                out_KP.index_add_(0, tangents, own, alpha=-1.0)
        return out_KP

    def _own_products(self, tangents_MP: Tensor, rows: Tensor) -> Tensor:
        """Return hess l_m v_m of M samples, each with a tangent of its own, (M, P)."""
        num = len(rows)
        others = ~torch.eye(num, dtype=torch.bool, device=rows.device)
        tangents, samples = others.nonzero(as_tuple=True)
        samples_of = self._linearize(self._batch.take(rows))
        return samples_of.hessian_products(tangents_MP, Pairs(tangents, samples))
