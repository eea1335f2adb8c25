"""The baselines, and the task that each is given."""

# n samples, P parameters

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.baselines.curvature import RegularisedHessian, gradient_sum
from pipeline.config import TrainingConfig
from pipeline.run.coefficients import Coefficients, Factor
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule, without_schedule
from pipeline.training import retraining
from pipeline.training.step import OptimizerState, descend

# Where the loss is not convex the Hessian may be indefinite (docs/results.md).
NON_CONVEX_DAMPING = 0.01


@dataclass(frozen=True)
class BaselineTask:
    """A trained model and the forget set.

    Attributes:
        problem: Data, network and conventions.
        schedule: The minibatches it was trained on.
        trained_P: w_T, on the problem's device.
        forgotten_n: Mask (n,) of the forget set; at least one sample, and at least one remains.
        seed: Fixes the order of minibatches where a baseline trains further.
    """

    problem: Problem
    schedule: Schedule
    trained_P: Tensor
    forgotten_n: Tensor
    seed: int = 0

    def __post_init__(self) -> None:
        num_forgotten = int(self.forgotten_n.sum())
        if not 0 < num_forgotten < self.problem.data.num_samples:
            raise ValueError(
                f"expected at least one sample to forget and one to retain, found {num_forgotten} "
                f"to forget of {self.problem.data.num_samples}"
            )

    @cached_property
    def forgotten_ids(self) -> Tensor:
        """Positions of the forgotten samples, ascending, int64."""
        return torch.nonzero(self.forgotten_n).squeeze(1)

    @cached_property
    def remaining_ids(self) -> Tensor:
        """Positions of the remaining samples, ascending, int64."""
        return torch.nonzero(~self.forgotten_n).squeeze(1)

    @cached_property
    def mass(self) -> float:
        """What all samples together weigh: their number, if they weigh alike."""
        return self.problem.mass(torch.arange(self.problem.data.num_samples))

    @cached_property
    def forgotten_mass(self) -> float:
        """What the forgotten samples weigh."""
        return self.problem.mass(self.forgotten_ids)

    @property
    def l2(self) -> Factor:
        """Factor of the L2 term; float64 where parameters differ."""
        l2 = self.problem.coefficients.l2
        return l2.double() if isinstance(l2, Tensor) else l2

    @property
    def damping(self) -> float:
        """The least damping of the Hessian: 0 for softmax regression, else .01."""
        return 0.0 if self.problem.config.model.name == "logistic" else NON_CONVEX_DAMPING


def no_update(task: BaselineTask) -> Tensor:
    """Return the trained parameters (P,) as they are."""
    return task.trained_P.clone()


def retrain(task: BaselineTask) -> Tensor:
    """Return the parameters (P,) that training without the forgotten samples ends at."""
    return retraining.retrain(task.problem, task.schedule, task.forgotten_n.cpu())


def newton_step(task: BaselineTask) -> Tensor:
    """Return the parameters (P,) after the step."""
    retraining, l2 = task.problem.config.retraining, task.l2
    remaining = retraining.denominator == "remaining"
    divisor = task.mass - task.forgotten_mass if remaining else task.mass
    if not remaining and retraining.l2_share == "sample":
        l2 = l2 * (1 - task.forgotten_mass / task.mass)
    hessian = RegularisedHessian(task.problem, task.trained_P, task.remaining_ids, 1 / divisor, l2)
    step_P = hessian.solve(removed_gradient(task) / divisor, task.damping).x_P
    return (task.trained_P.double() + step_P).to(task.trained_P)


def removed_gradient(task: BaselineTask) -> Tensor:
    """Return sum_{i in U} (grad l_i(w) + lam'' w) (P,), float64: what leaves the summed objective."""
    retraining = task.problem.config.retraining
    total_P = gradient_sum(task.problem, task.trained_P, task.forgotten_ids)
    if retraining.denominator == "remaining" or retraining.l2_share == "sample":
        total_P += task.forgotten_mass * task.l2 * task.trained_P.double()
    return total_P


def infinitesimal_jackknife(task: BaselineTask) -> Tensor:
    """Return the parameters (P,) after the step."""
    all_ids = torch.arange(task.problem.data.num_samples, device=task.trained_P.device)
    hessian = RegularisedHessian(task.problem, task.trained_P, all_ids, 1 / task.mass, task.l2)
    step_P = hessian.solve(removed_gradient(task) / task.mass, task.damping).x_P
    return (task.trained_P.double() + step_P).to(task.trained_P)


FINE_TUNE_EPOCHS = 15
NEG_GRAD_EPOCHS = 2
# Ascent at the full learning rate diverges within a step or two.
NEG_GRAD_RATE = 0.1


def fine_tune(task: BaselineTask) -> Tensor:
    """Return the parameters (P,) after 15 epochs on the remaining data at the run's learning rate."""
    training = without_schedule(task.problem.config.training)
    config = training.model_copy(
        update={
            "epochs": FINE_TUNE_EPOCHS,
            "batch_size": min(training.batch_size, len(task.remaining_ids)),
        }
    )
    return _train(task, task.remaining_ids, config, ascend=False)


def neg_grad(task: BaselineTask) -> Tensor:
    """Return the parameters (P,) after 2 epochs of gradient ascent on the forgotten data.

    At a tenth of the run's learning rate, and on the samples' losses alone: the L2 term is kept out,
    since ascent on it would make the parameters diverge.
    """
    training = without_schedule(task.problem.config.training)
    config = training.model_copy(
        update={
            "epochs": NEG_GRAD_EPOCHS,
            "learning_rate": NEG_GRAD_RATE * training.learning_rate,
            "batch_size": min(training.batch_size, len(task.forgotten_ids)),
            "l2": 0.0,
            "groups": (),
        }
    )
    return _train(task, task.forgotten_ids, config, ascend=True)


def _train(task: BaselineTask, ids: Tensor, config: TrainingConfig, *, ascend: bool) -> Tensor:
    problem = task.problem
    schedule = Schedule.draw(config, len(ids), task.seed)
    state = OptimizerState.start(task.trained_P, config)
    steps = zip(schedule.sample_ids, schedule.learning_rates, strict=True)
    coefficients = Coefficients.of(config, problem.network.layout, task.trained_P)
    with problem.arithmetic():
        for step, (positions, learning_rate) in enumerate(steps):
            batch = problem.minibatch(ids[positions.to(ids.device)])
            w_P = state.parameters_P
            total_P = problem.network.linearize(w_P, batch).gradient_sum()
            gradient_P = total_P / batch.divisor + coefficients.l2 * w_P
            where = f"step {step} of a baseline"
            uphill_P = -gradient_P if ascend else gradient_P
            state, _ = descend(state, uphill_P, learning_rate, config, coefficients, where)
    return state.parameters_P
