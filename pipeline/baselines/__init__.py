"""Baselines: what a person would do, or what was published before, to delete from a trained model.

Each is a function of a `Forgetting` that returns parameters (P,). The released code of Qiao et al.
(2025) runs NS and IJ without the L2 term and adds one scalar per tensor; these add the full vector.
"""

from collections.abc import Callable

from torch import Tensor

from pipeline.baselines.forgetting import Forgetting
from pipeline.baselines.further_training import fine_tune, neg_grad
from pipeline.baselines.infinitesimal_jackknife import infinitesimal_jackknife
from pipeline.baselines.newton_step import newton_step
from pipeline.baselines.no_update import no_update
from pipeline.baselines.retrain import retrain

BASELINES: dict[str, Callable[[Forgetting], Tensor]] = {
    "no-update": no_update,
    "newton-step": newton_step,
    "infinitesimal-jackknife": infinitesimal_jackknife,
    "fine-tune": fine_tune,
    "neg-grad": neg_grad,
    "retrain": retrain,
}

__all__ = ["BASELINES", "Forgetting"]
