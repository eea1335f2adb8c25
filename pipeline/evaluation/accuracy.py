"""Losses of given parameters and their quality on the test samples, and both over training.

Losses are the data terms without the L2 term. Quality is what practitioners judge a model of the
run's loss by (`metrics.py`).
"""

# B minibatch rows, C classes or outputs, P parameters, T positions, n samples

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import exp
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.errors import TrajectoryError
from pipeline.hessian.hvp import Network
from pipeline.models.losses import (
    IGNORED,
    BinaryCrossEntropy,
    Huber,
    Poisson,
    SquaredError,
    TokenCrossEntropy,
)
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory

# Activations of this many samples fit in memory beside a worker's approximators.
SAMPLES_AT_ONCE = 1024
LARGEST_LOG = 80.0


@dataclass(frozen=True)
class Quality:
    """How well parameters predict a set of samples.

    Attributes:
        figures: By key (`metrics.METRICS`), the one that the run is judged by first.
        mean_loss: The sum of the losses divided by the sum of the masses, without L2.
    """

    figures: Mapping[str, float]
    mean_loss: float

    @property
    def metric(self) -> str:
        """Key of the figure that the run is judged by."""
        return next(iter(self.figures))

    @property
    def value(self) -> float:
        """The figure that the run is judged by."""
        return self.figures[self.metric]

    @property
    def accuracy(self) -> float:
        """Share of samples whose largest output is their class, 0..1; of runs that predict classes."""
        return self.figures["accuracy"]

    @property
    def accuracy_if_any(self) -> float | None:
        """The accuracy; None for runs that predict no classes."""
        return self.figures.get("accuracy")


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
    data = problem.data
    samples = (data.inputs[sample_ids], data.targets[sample_ids])
    return losses(problem.network, w_P, *samples).to("cpu")


def losses(network: Network, w_P: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the losses (n,) of samples at parameters w, float64, a bounded number at a time."""
    found = [
        network.loss.value(scores, part) for scores, part in _parts(network, w_P, inputs, targets)
    ]
    return torch.cat(found).to(torch.float64)


def _parts(
    network: Network, w_P: Tensor, inputs: Tensor, targets: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield outputs and targets; those of whole sequences of tokens would fill the memory."""
    positions = targets.shape[1] if isinstance(network.loss, TokenCrossEntropy) else 1
    rows = max(1, SAMPLES_AT_ONCE // positions)
    with torch.no_grad():
        for part, aims in zip(inputs.split(rows), targets.split(rows), strict=True):
            yield network.outputs(w_P, part), aims


def held_out_quality(problem: Problem, w_P: Tensor) -> Quality:
    """Return the quality and the mean loss on the test samples."""
    data, network = problem.data, problem.network
    samples = (data.test_inputs, data.test_targets)
    loss = _mean_loss(network, losses(network, w_P, *samples), data.test_targets, None)
    if isinstance(network.loss, TokenCrossEntropy):
        return Quality(_of_positions(_parts(network, w_P, *samples)), loss)
    found = figures(network, outputs(network, w_P, data.test_inputs), data.test_targets)
    return Quality(found or {"loss": loss}, loss)


def training_loss(problem: Problem, w_P: Tensor) -> float:
    """Return the mean loss of the training samples, weighted as training weighs them."""
    data, network = problem.data, problem.network
    losses_n = losses(network, w_P, data.inputs, data.targets)
    return _mean_loss(network, losses_n, data.targets, data.weights)


def _mean_loss(
    network: Network, losses_n: Tensor, targets: Tensor, weights_n: Tensor | None
) -> float:
    masses_n = network.loss.masses(targets)
    if masses_n is None and weights_n is None:
        return float(losses_n.mean())
    masses_n = torch.ones_like(losses_n) if masses_n is None else masses_n.to(torch.float64)
    if weights_n is not None:
        losses_n, masses_n = losses_n * weights_n, masses_n * weights_n
    return float(losses_n.sum() / masses_n.sum())


def figures(network: Network, scores_BC: Tensor, targets: Tensor) -> dict[str, float]:
    """Return what outputs (n, C) are judged by, most of all the first.

    Nothing for a user's own loss of numbers, which is its own measure.
    """
    scores, loss = scores_BC.to(torch.float64), network.loss
    if isinstance(loss, BinaryCrossEntropy):
        return _of_labels(scores, targets)
    if isinstance(loss, SquaredError | Huber):
        return _of_numbers(scores, targets)
    if isinstance(loss, Poisson):
        return _of_counts(scores, targets)
    if targets.is_floating_point() or targets.dim() != 1 or scores.dim() != 2:
        return {}
    return {"accuracy": float((scores_BC.argmax(dim=1) == targets).to(torch.float64).mean())}


def _of_labels(scores: Tensor, targets: Tensor) -> dict[str, float]:
    right = (scores > 0) == (targets.reshape_as(scores) > 0.5)
    if scores.shape[1] == 1:
        return {"accuracy": float(right.double().mean())}
    return {
        "label_accuracy": float(right.double().mean()),
        "exact_match": float(right.all(dim=1).double().mean()),
    }


def _of_numbers(scores: Tensor, targets: Tensor) -> dict[str, float]:
    aims = targets.reshape_as(scores).double()
    squares_C = (scores - aims).square().mean(0)
    explained = 1 - squares_C / aims.var(0, correction=0)
    return {"rmse": float(squares_C.mean().sqrt()), "r_squared": float(explained.mean())}


def _of_counts(scores: Tensor, targets: Tensor) -> dict[str, float]:
    counts, rates = targets.reshape_as(scores).double(), scores.exp()
    # log(y / rate) with y log y = 0 at 0; a rate of 0 has the logarithm that it was made of.
    terms = torch.xlogy(counts, counts) - counts * scores - counts + rates
    return {"deviance": float(2 * terms.mean())}


def _of_positions(parts: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    total, right, count = 0.0, 0, 0
    for scores_BTC, targets_BT in parts:
        flat = scores_BTC.flatten(0, 1).to(torch.float64)
        total += float(cross_entropy(flat, targets_BT.flatten(), reduction="sum"))
        counted_BT = targets_BT != IGNORED
        right += int((scores_BTC.argmax(dim=2) == targets_BT)[counted_BT].sum())
        count += int(counted_BT.sum())
    # Larger ones say nothing more, and would not be finite.
    mean = min(total / max(count, 1), LARGEST_LOG)
    return {"perplexity": exp(mean), "token_accuracy": right / max(count, 1)}


def training_curve(problem: Problem, trajectory: Trajectory) -> list[dict[str, Any]]:
    """Return the training loss and the quality on the test samples at every checkpoint of a run.

    Returns:
        One `{step, train_loss, quality, test_accuracy}` per checkpoint, in order of steps; `step`
        counts the steps taken before it, and the accuracy is None where no classes are predicted.

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
            found = held_out_quality(problem, w_P)
            curve.append(
                {
                    "step": step,
                    "train_loss": training_loss(problem, w_P),
                    "quality": found.value,
                    "test_accuracy": found.accuracy_if_any,
                }
            )
    return curve
