"""Baselines: what a person would do, or what was published before, to delete from a trained model.

Each is a function of a `BaselineTask` that returns parameters (P,). The released code of Qiao et al.
(2025) runs NS and IJ without the L2 term and adds one scalar per tensor; these add the full vector.
"""

from collections.abc import Callable

from torch import Tensor

from pipeline.baselines.methods import (
    BaselineTask,
    fine_tune,
    infinitesimal_jackknife,
    neg_grad,
    newton_step,
    no_update,
    retrain,
)

BASELINES: dict[str, Callable[[BaselineTask], Tensor]] = {
    "no-update": no_update,
    "newton-step": newton_step,
    "infinitesimal-jackknife": infinitesimal_jackknife,
    "fine-tune": fine_tune,
    "neg-grad": neg_grad,
    "retrain": retrain,
}

__all__ = ["BASELINES", "BaselineTask"]
