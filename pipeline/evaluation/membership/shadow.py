"""Shadow models: retrainings on random draws of the same size, by the run's own recipe.

Half of the targets are in each draw, the rest of it are other training samples, so that a shadow
model sees as many samples as the attacked one did.
"""

# S shadow models, t targets, n samples, P parameters

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pipeline.data import Dataset
from pipeline.evaluation.membership.targets import Targets
from pipeline.models.registry import Shape, build
from pipeline.parameters import flat_parameters
from pipeline.problem import Problem
from pipeline.retraining import retrain
from pipeline.schedule import Schedule


@dataclass(frozen=True)
class Shadows:
    """What the shadow models say of each target.

    Attributes:
        confidences_St: log(p / (1 - p)) of the target's class, float64.
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
                "give it a chance"
            )


Remember = Callable[[int, Callable[[], list[float]]], list[float]]
"""Returns what an earlier call stored for a model's number, or calls the function and stores that."""


def train_shadows(
    problem: Problem,
    forgotten_ids: Tensor,
    plan: ShadowPlan,
    remember: Remember = lambda _, compute: compute(),
) -> Shadows:
    """Train shadow models and return what they say of the targets.

    Args:
        problem: The attacked run's data, network and recipe.
        forgotten_ids: The deleted samples; the targets are these and all test samples.
        plan: How many, and by which seed.
        remember: Keeps the confidences of finished models through an interruption.
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
        yield (
            replace(
                data,
                inputs=torch.cat([targets.inputs[chosen], data.inputs[filler]]),
                targets=torch.cat([targets.labels[chosen], data.targets[filler]]),
            ),
            trained_on,
        )


def _random_half(targets: Targets, generator: np.random.Generator) -> Tensor:
    """Return a mask (t,) that holds half of the members and half of the others."""
    mask = torch.zeros(len(targets.labels), dtype=torch.bool)
    for part in (targets.is_member, ~targets.is_member):
        places = generator.permutation(torch.nonzero(part).squeeze(1).numpy())
        mask[torch.from_numpy(places[: len(places) // 2])] = True
    return mask


def train_on(problem: Problem, dataset: Dataset, seed: int) -> Tensor:
    """Return parameters (P,) trained by the run's recipe on other data, from a start of its own."""
    shape = Shape(tuple(dataset.inputs.shape[1:]), dataset.num_classes)
    start = build(problem.config.model, shape, seed)
    other = replace(problem, data=dataset, initial_P=flat_parameters(start).to(problem.initial_P))
    num_samples = len(dataset.targets)
    training = problem.config.training
    config = training.model_copy(update={"batch_size": min(training.batch_size, num_samples)})
    schedule = Schedule.draw(config, num_samples, seed)
    return retrain(other, schedule, torch.zeros(num_samples, dtype=torch.bool))


def _combined(seed: int, number: int) -> int:
    """Return a seed of its own for each model."""
    return int(np.random.SeedSequence([seed, number, 3]).generate_state(1)[0])
