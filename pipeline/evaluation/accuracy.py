"""Losses and accuracy of given parameters, and both over the course of training.

Losses are the data terms without the L2 term.
"""

# B minibatch rows, C classes, P parameters, n samples

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import TrajectoryError
from pipeline.hessian.hvp import Network
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory

# Activations of this many samples fit in memory beside a worker's approximators.
SAMPLES_AT_ONCE = 1024


@dataclass(frozen=True)
class Quality:
    """How well parameters predict a set of samples.

    Attributes:
        accuracy: Share of samples whose largest output is their class, 0..1.
        mean_loss: Mean cross-entropy in nats, without L2.
    """

    accuracy: float
    mean_loss: float


def outputs(network: Network, w_P: Tensor, inputs: Tensor) -> Tensor:
    """Return the outputs (n, C) at parameters w, a bounded number of samples at a time."""
    with torch.no_grad():
        parts = [network.outputs(w_P, part) for part in inputs.split(SAMPLES_AT_ONCE)]
    return torch.cat(parts)


def sample_losses(problem: Problem, w_P: Tensor, sample_ids: Tensor) -> Tensor:
    """Return the losses of training samples (m,) at parameters w, float64 on the CPU.

    Args:
        problem: Data and network.
        w_P: Parameters, on the problem's device and in its dtype.
        sample_ids: Positions in the training set (m,), int64.
    """
    batch = problem.minibatch(sample_ids)
    scores_BC = outputs(problem.network, w_P, batch.inputs)
    return problem.network.loss.value(scores_BC, batch.targets).to("cpu", torch.float64)


def held_out_quality(problem: Problem, w_P: Tensor) -> Quality:
    """Return accuracy and mean loss on the test samples."""
    return _quality(problem.network, w_P, (problem.data.test_inputs, problem.data.test_targets))


def training_quality(problem: Problem, w_P: Tensor) -> Quality:
    """Return accuracy and mean loss on the training samples."""
    return _quality(problem.network, w_P, (problem.data.inputs, problem.data.targets))


def _quality(network: Network, w_P: Tensor, samples: tuple[Tensor, Tensor]) -> Quality:
    inputs, targets = samples
    scores_BC = outputs(network, w_P, inputs)
    correct = (scores_BC.argmax(dim=1) == targets).to(torch.float64).mean()
    losses = network.loss.value(scores_BC, targets).to(torch.float64)
    return Quality(float(correct), float(losses.mean()))


def training_curve(problem: Problem, trajectory: Trajectory) -> list[dict[str, float]]:
    """Return the training loss and the test accuracy at every checkpoint of a run.

    Returns:
        One `{step, train_loss, test_accuracy}` per checkpoint, in order of steps; `step` counts the
        steps taken before it.

    Raises:
        TrajectoryError: If a checkpoint holds another number of parameters than the model.
    """
    curve = []
    with problem.arithmetic():
        for step in trajectory.checkpoints:
            w_P = trajectory.parameters_before(step).to(problem.initial_P)
            if w_P.shape != problem.initial_P.shape:
                raise TrajectoryError(
                    f"checkpoint {step} of {trajectory.folder} holds {w_P.numel()} parameters, the "
                    f"model has {problem.num_parameters}; the configuration belongs to another run"
                )
            curve.append(
                {
                    "step": step,
                    "train_loss": training_quality(problem, w_P).mean_loss,
                    "test_accuracy": held_out_quality(problem, w_P).accuracy,
                }
            )
    return curve
