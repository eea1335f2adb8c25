"""Approximators from designed group retrainings: the engine `weighing` (docs/method.md, section 13).

On rough networks exact approximators of single units do not add up. Here v units are weighed together,
as in a chemical balance: v retrainings each leave out about half of them, by the rows of an S-matrix S
(v, v) of zeros and ones (Hotelling 1944; Harwit and Sloane 1979). With D_i what retraining i moved, M_i
the mass that it left out, and g(m) the weight of the mass correction, additivity says

    g(M_i) D_i = sum_u S_iu g(n_u) a_u

which is solved in closed form, for units of any size, and the roughness of single retrainings
averages out by about 2 / sqrt(v + 1). Of a last block of v' < v units, with S' the first v' columns and
z = S'^T (g(M_i) D_i):  g(n_u) a_u = 4 / (v + 1) (z_u - sum(z) / (v' + 1)).
"""

# v units weighed together and group retrainings, K of these units that there are, P parameters

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.deletion.weights import DeletionRule, mass_weight
from pipeline.hadamard import s_matrix

# Columns that are turned into approximators together, in float64.
COLUMNS = 1 << 16


def solution(
    v: int, masses_K: NDArray[np.float64], weight: Callable[[float], float]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return the groups (v, K), and the matrix (K, v) that turns what they moved into approximators.

    Args:
        v: Group retrainings.
        masses_K: What each unit weighs, K at most v; 0: it was not trained on, and its row is 0.
        weight: g of the mass correction, of the mass that is left out.
    """
    groups_vK = s_matrix(v)[:, : len(masses_K)]
    left_out_v = np.array([weight(float(mass)) for mass in groups_vK @ masses_K])
    alone_K = np.array([weight(float(mass)) for mass in masses_K])
    # Inverse (K = v) or pseudoinverse: S'^T S' = (v + 1)/4 (I + J).
    inverse_Kv = 4 / (v + 1) * (groups_vK.T - groups_vK.sum(1) / (len(masses_K) + 1))
    inverse_Kv *= left_out_v[None, :] / alone_K[:, None]
    inverse_Kv[masses_K == 0] = 0.0
    return groups_vK, inverse_Kv


@dataclass(frozen=True)
class Design:
    """Which units of a chunk are left out together, and how approximators follow from it.

    Attributes:
        groups_vK: Which of K units each of v groups leaves out, bool.
        inverse_Kv: Turns what the groups moved into approximators, float64.
        forward_vK: Turns approximators into what the groups move, float64.
    """

    groups_vK: Tensor
    inverse_Kv: Tensor
    forward_vK: Tensor

    @staticmethod
    def of(v: int, masses_K: NDArray[np.float64], rule: DeletionRule, like: Tensor) -> Design:
        """Return the design of v groups for units of these masses, on the device of `like`."""

        def weight(mass: float) -> float:
            return mass_weight(rule, mass)

        groups_vK, inverse_Kv = solution(v, masses_K, weight)
        left_out_v = np.array([weight(float(mass)) for mass in groups_vK @ masses_K])
        alone_K = np.array([weight(float(mass)) for mass in masses_K])
        forward_vK = groups_vK * alone_K[None, :] / left_out_v[:, None]
        return Design(
            torch.from_numpy(groups_vK).to(like.device),
            torch.from_numpy(inverse_Kv).to(like.device),
            torch.from_numpy(forward_vK).to(like.device),
        )

    def moved(self, rows_KP: Tensor) -> Tensor:
        """Return what leaving out each group moves (v, P), if approximators add up."""
        return (self.forward_vK @ rows_KP.double()).to(rows_KP)

    def approximators(self, weights_vP: Tensor, trained_P: Tensor) -> Tensor:
        """Return the approximators (K, P) from the weights that each group retraining ended at."""
        out_KP = weights_vP.new_empty(len(self.inverse_Kv), weights_vP.shape[1])
        for start in range(0, weights_vP.shape[1], COLUMNS):
            part = slice(start, start + COLUMNS)
            moved_vC = weights_vP[:, part].double() - trained_P[part].double()
            out_KP[:, part] = (self.inverse_Kv @ moved_vC).to(out_KP)
        return out_KP
