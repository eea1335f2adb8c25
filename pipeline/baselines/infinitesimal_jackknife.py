"""IJ: first-order change of the optimum when the forgotten samples' weights go to zero.

    w^- = w + H^{-1} g,   H = (1/n) sum_{all i} hess l_i(w) + lam I + damping I   (curvature.py)
                          g = (1/n) sum_{i in U} (grad l_i(w) + lam'' w)

Suriyakumar and Wilson 2022; lam'' as in the Newton step. The Hessian is the same for every request.
"""

# P parameters

import torch
from torch import Tensor

from pipeline.baselines.curvature import RegularisedHessian
from pipeline.baselines.forgetting import Forgetting
from pipeline.baselines.newton_step import removed_gradient


def infinitesimal_jackknife(task: Forgetting) -> Tensor:
    """Return the parameters (P,) after the step."""
    num_samples = task.problem.data.num_samples
    everyone = torch.arange(num_samples, device=task.trained_P.device)
    l2 = task.problem.config.training.l2
    hessian = RegularisedHessian(task.problem, task.trained_P, everyone, 1 / num_samples, l2)
    step_P = hessian.solve(removed_gradient(task) / num_samples, task.damping).x_P
    return (task.trained_P.double() + step_P).to(task.trained_P)
