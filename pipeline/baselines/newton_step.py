"""NS: one Newton step from the trained model towards the optimum without the forgotten samples.

    w^- = w + H^{-1} g,   H = (1/N) sum_{i in R} hess l_i(w) + lam' I + damping I   (curvature.py)
                          g = (1/N) sum_{i in U} (grad l_i(w) + lam'' w)

Sekhari et al. 2021 (the full gradient vanishes at the optimum, so that of the remaining objective is
-g). N = n - m where retraining averages over what remains, with lam' = lam'' = lam; N = n where it
keeps the denominator, with lam' = lam and lam'' = 0, or lam' = (1 - m/n) lam and lam'' = lam if each
sample carries its own L2. On ridge regression at its optimum the step is exact.
"""

# P parameters

from torch import Tensor

from pipeline.baselines.curvature import RegularisedHessian, gradient_sum
from pipeline.baselines.forgetting import Forgetting


def newton_step(task: Forgetting) -> Tensor:
    """Return the parameters (P,) after the step."""
    num_samples = task.problem.data.num_samples
    num_forgotten = len(task.forgotten_ids)
    l2, retraining = task.problem.config.training.l2, task.problem.config.retraining
    remaining = retraining.denominator == "remaining"
    divisor = num_samples - num_forgotten if remaining else num_samples
    if not remaining and retraining.l2_share == "sample":
        l2 *= 1 - num_forgotten / num_samples
    hessian = RegularisedHessian(task.problem, task.trained_P, task.remaining_ids, 1 / divisor, l2)
    step_P = hessian.solve(removed_gradient(task) / divisor, task.damping).x_P
    return (task.trained_P.double() + step_P).to(task.trained_P)


def removed_gradient(task: Forgetting) -> Tensor:
    """Return sum_{i in U} (grad l_i(w) + lam'' w) (P,), float64: what leaves the summed objective."""
    retraining = task.problem.config.retraining
    total_P = gradient_sum(task.problem, task.trained_P, task.forgotten_ids)
    if retraining.denominator == "remaining" or retraining.l2_share == "sample":
        share = len(task.forgotten_ids) * task.problem.config.training.l2
        total_P += share * task.trained_P.double()
    return total_P
