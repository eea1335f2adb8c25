"""Retraining: the goal itself, and the cost that every method saves."""

from torch import Tensor

from pipeline import retraining
from pipeline.baselines.forgetting import Forgetting


def retrain(task: Forgetting) -> Tensor:
    """Return the parameters (P,) that training without the forgotten samples ends at."""
    return retraining.retrain(task.problem, task.schedule, task.forgotten_n.cpu())
