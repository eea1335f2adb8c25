"""The interface of every form of Hessian-vector products: one w on one minibatch."""

# K tangents, P parameters, U visited units

from typing import Protocol

from torch import Tensor

from pipeline.hessian.roperator import Pairs


class Linearization(Protocol):
    """The objective's data terms at one w on one minibatch; sums over samples, without L2."""

    def gradient_sum(self) -> Tensor:
        """Return sum_b grad l_b, (P,)."""
        ...

    def hessian_products(self, tangents_KP: Tensor, left_out: Pairs | None) -> Tensor:
        """Return sum_b hess l_b v_k, for each k over the samples not paired with it, (K, P)."""
        ...

    def unit_gradients(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the tangents in `pairs` (U,) and the summed gradients of each (U, P)."""
        ...
