"""Shadow models, and the samples that membership inference targets."""

# m deleted samples, o others, C classes, P parameters, t = m + o targets, S shadow models, n samples

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pipeline.data import Dataset
from pipeline.evaluation.accuracy import losses, outputs
from pipeline.models.losses import BinaryCrossEntropy, CrossEntropy
from pipeline.models.registry import Shape, build
from pipeline.run.problem import Problem
from pipeline.run.schedule import Schedule
from pipeline.training.retraining import retrain


@dataclass(frozen=True)
class Targets:
    """Samples to be attacked, the deleted ones first.

    Attributes:
        inputs: (t, ...).
        labels: Targets (t, ...).
        num_members: m; the rest were never trained on.
        unit_of_member: Which unit owns each deleted sample, (m,) int64.
        weights: What each sample's loss is multiplied by (t,), 1 for test samples; None: all 1.
    """

    inputs: Tensor
    labels: Tensor
    num_members: int
    unit_of_member: Tensor
    weights: Tensor | None = None

    @staticmethod
    def of(problem: Problem, forgotten_ids: Tensor) -> "Targets":
        """Return the deleted samples and all test samples."""
        data = problem.data
        return Targets(
            torch.cat([data.inputs[forgotten_ids], data.test_inputs]),
            torch.cat([data.targets[forgotten_ids], data.test_targets]),
            len(forgotten_ids),
            data.unit_of_sample[forgotten_ids].cpu(),
            None
            if data.weights is None
            else torch.cat(
                [data.weights[forgotten_ids], data.weights.new_ones(len(data.test_targets))]
            ),
        )

    @property
    def is_member(self) -> Tensor:
        """Mask (t,) of the deleted samples, on the CPU."""
        return torch.arange(len(self.labels)) < self.num_members

    def log_posteriors(self, problem: Problem, w_P: Tensor) -> Tensor:
        """Return log probabilities of all classes at w, (t, C) float64 on the CPU.

        A single score, of binary cross-entropy, is that of the second of two classes.
        """
        with problem.arithmetic():
            scores_tC = outputs(problem.network, w_P.to(problem.initial_P), self.inputs)
        scores_tC = scores_tC.to("cpu", torch.float64)
        if isinstance(problem.network.loss, BinaryCrossEntropy):
            scores_tC = torch.cat([torch.zeros_like(scores_tC), scores_tC], dim=1)
        return torch.log_softmax(scores_tC, dim=1)

    def confidences(self, problem: Problem, w_P: Tensor) -> Tensor:
        """Return each target's score at w, (t,) float64, larger the better it is predicted.

        With cross-entropy log(p / (1 - p)) of the target's own class: the logit is close to normal
        over retrainings, which probabilities are not (Carlini et al. 2022). Otherwise minus the loss.
        """
        if not isinstance(problem.network.loss, CrossEntropy):
            with problem.arithmetic():
                w_P = w_P.to(problem.initial_P)
                return -losses(problem.network, w_P, self.inputs, self.labels).cpu()
        log_p_tC = self.log_posteriors(problem, w_P)
        own_t1 = self.labels.cpu()[:, None]
        others_tC = log_p_tC.scatter(1, own_t1, -torch.inf)
        return log_p_tC.gather(1, own_t1).squeeze(1) - torch.logsumexp(others_tC, dim=1)


def has_posteriors(problem: Problem) -> bool:
    """Whether the model's outputs are scores of classes of which each sample has one."""
    loss = problem.network.loss
    if isinstance(loss, BinaryCrossEntropy):
        return problem.data.num_classes == 1
    return isinstance(loss, CrossEntropy)


def most_exposed(exposure_t: Tensor, targets: Targets, share: float = 0.1) -> Tensor:
    """Return a mask (t,) of the most exposed `share` of units, and of as large a share of the others.

    Args:
        exposure_t: How strongly training on a target shows, (t,), estimated *without* the
            attacked model: selecting by the attack's own success would find a worst decile in noise.
        targets: A unit's exposure is the mean over its samples; each test sample counts by itself.
        share: Of the units.
    """
    members = exposure_t[: targets.num_members]
    units, positions = torch.unique(targets.unit_of_member, return_inverse=True)
    sums = torch.zeros(len(units), dtype=exposure_t.dtype).index_add_(0, positions, members)
    means = sums / torch.bincount(positions)
    exposed_units = _largest(means, share)
    others = exposure_t[targets.num_members :]
    return torch.cat([exposed_units[positions], _largest(others, share)])


def _largest(values: Tensor, share: float) -> Tensor:
    # Below two an attack cannot be scored.
    count = min(len(values), max(2, round(share * len(values))))
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[torch.topk(values, count).indices] = True
    return mask


@dataclass(frozen=True)
class Shadows:
    """The shadow models' confidences on each target.

    Attributes:
        confidences_St: See `Targets.confidences`, float64.
        trained_on_St: Whether the shadow model was trained on the target.
    """

    confidences_St: Tensor
    trained_on_St: Tensor

    @property
    def num_models(self) -> int:
        """Return S."""
        return len(self.confidences_St)


@dataclass(frozen=True)
class ShadowPlan:
    """Which shadow models.

    Attributes:
        num_models: S, at least 2; models 2k and 2k+1 see opposite halves, so every target is in at
            least one and out of at least one.
        seed: Fixes draws, starting weights and orders.
    """

    num_models: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_models < 2:
            raise ValueError(
                f"the attack needs at least 2 shadow models, found {self.num_models}; 32 or more "
                "are recommended"
            )


Remember = Callable[[int, Callable[[], list[float]]], list[float]]
"""Returns what an earlier call stored for a model's number, or calls the function and stores that."""


def train_shadows(
    problem: Problem,
    forgotten_ids: Tensor,
    plan: ShadowPlan,
    remember: Remember = lambda _, compute: compute(),
) -> Shadows:
    """Train shadow models and return their confidences on the targets.

    Args:
        problem: The attacked run's data, network and configuration.
        forgotten_ids: The deleted samples; the targets are these and all test samples.
        plan: How many, and by which seed.
        remember: Stores the confidences of finished models, so that an interrupted call continues.
    """
    targets = Targets.of(problem, forgotten_ids)
    confidences, memberships = [], []
    for number, (dataset, trained_on_t) in enumerate(draws(problem, targets, forgotten_ids, plan)):

        def compute(dataset: Dataset = dataset, number: int = number) -> list[float]:
            w_P = train_on(problem, dataset, seed=_combined(plan.seed, number))
            return cast(list[float], targets.confidences(problem, w_P).tolist())

        confidences.append(torch.tensor(remember(number, compute), dtype=torch.float64))
        memberships.append(trained_on_t)
    return Shadows(torch.stack(confidences), torch.stack(memberships))


def draws(
    problem: Problem, targets: Targets, forgotten_ids: Tensor, plan: ShadowPlan
) -> Iterator[tuple[Dataset, Tensor]]:
    """Yield the data of each shadow model and which targets (t,) are in it.

    A draw has n samples; fewer only where targets and fillers together do not reach n. The units
    of the returned data are the original's and mean nothing there.
    """
    data = problem.data
    generator = np.random.default_rng([plan.seed, 2])
    fillers = np.setdiff1d(np.arange(data.num_samples), forgotten_ids.cpu().numpy())
    for number in range(plan.num_models):
        if number % 2 == 0:
            half = _random_half(targets, generator)
        trained_on = half if number % 2 == 0 else ~half
        wanted = data.num_samples - int(trained_on.sum())
        filler = torch.from_numpy(generator.permutation(fillers)[: max(0, wanted)])
        chosen, filler = trained_on.to(problem.device), filler.to(problem.device)
        weights = None
        if data.weights is not None and targets.weights is not None:
            weights = torch.cat([targets.weights[chosen], data.weights[filler]])
        yield (
            replace(
                data,
                inputs=torch.cat([targets.inputs[chosen], data.inputs[filler]]),
                targets=torch.cat([targets.labels[chosen], data.targets[filler]]),
                weights=weights,
            ),
            trained_on,
        )


def _random_half(targets: Targets, generator: np.random.Generator) -> Tensor:
    """Return a mask (t,) that holds half of the members and half of the others."""
    mask = torch.zeros(len(targets.labels), dtype=torch.bool)
    for part in (targets.is_member, ~targets.is_member):
        positions = generator.permutation(torch.nonzero(part).squeeze(1).numpy())
        mask[torch.from_numpy(positions[: len(positions) // 2])] = True
    return mask


def train_on(problem: Problem, dataset: Dataset, seed: int) -> Tensor:
    """Return parameters (P,) trained as the run was, on other data and from other starting weights."""
    shape = Shape(tuple(dataset.inputs.shape[1:]), dataset.num_classes)
    start = build(problem.config.model, shape, seed)
    # Of a part that is trained alone, the rest is frozen in the run's own network.
    start_P = problem.network.layout.read(start)
    other = replace(
        problem,
        # Draws are new for each model, and by position: the rows are another data set's.
        config=problem.config.model_copy(update={"seed": seed}),
        data=replace(dataset, rows=None),
        initial_P=start_P.to(problem.initial_P),
    )
    num_samples = len(dataset.targets)
    training = problem.config.training
    config = training.model_copy(update={"batch_size": min(training.batch_size, num_samples)})
    schedule = Schedule.draw(config, num_samples, seed)
    return retrain(other, schedule, torch.zeros(num_samples, dtype=torch.bool))


def _combined(seed: int, number: int) -> int:
    """Return a seed of its own for each model."""
    return int(np.random.SeedSequence([seed, number, 3]).generate_state(1)[0])
