"""Baselines of machine unlearning: retraining, fine-tuning, influence functions and others.

Each is a function of a `BaselineTask` that returns parameters (P,). `newton-step` (Guo et al. 2020) and
`infinitesimal-jackknife` are influence estimates at the trained parameters. The released code of Qiao
et al. (2025) runs both without the L2 term and adds one scalar per tensor; these add the full vector.
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
