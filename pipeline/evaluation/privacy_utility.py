"""Privacy against utility: quality and both membership inference attacks by epsilon.

The noise is drawn from a seed, for this comparison only. A release draws its own from the operating
system's entropy.
"""

# P parameters

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.evaluation.accuracy import held_out_quality
from pipeline.evaluation.membership.attacks import POPULATION, Attacks

# One construction suffices for a curve; all five stand in the table of attacks.
FEATURES = "sorted-difference"


@dataclass(frozen=True)
class NoisePlan:
    """The noise levels to evaluate.

    Attributes:
        epsilons: Ascending.
        sigma: Standard deviation per parameter that a certificate of this run gives at epsilon.
        draws: Models drawn per epsilon.
    """

    epsilons: tuple[float, ...]
    sigma: Callable[[float], float]
    draws: int = 5


def privacy_utility(
    attacks: Attacks,
    unlearned_P: Tensor,
    plan: NoisePlan,
    remember: Callable[[str, Callable[[], dict[str, Any]]], Any] = lambda _, compute: compute(),
) -> list[dict[str, Any]]:
    """Return, for each epsilon, [mean, lowest, highest] over draws of quality and both areas.

    None stands for the accuracy of a run that predicts no classes, and for an attack that has no
    meaning for it.

    Args:
        attacks: Evaluates parameters.
        unlearned_P: The noise-free parameters after deletion.
        plan: The noise levels.
        remember: Stores finished points, so that an interrupted call continues; named by epsilon,
            sigma and draws.
    """
    points = []
    for epsilon in plan.epsilons:
        sigma = plan.sigma(epsilon)
        points.append(
            remember(
                f"{epsilon:g}-{sigma:.6g}-{plan.draws}",
                partial(_at, attacks, unlearned_P, sigma, plan.draws),
            )
            | {"epsilon": epsilon, "sigma": sigma}
        )
    return points


def _at(
    attacks: Attacks, unlearned_P: Tensor, sigma: float, draws: int
) -> dict[str, list[float] | None]:
    generator = torch.Generator(unlearned_P.device).manual_seed(attacks.seed)
    values: dict[str, list[float]] = {
        name: [] for name in ("quality", "test_accuracy", "mia_l_auc", "mia_u_auc")
    }
    for _ in range(draws):
        noise_P = torch.empty_like(unlearned_P).normal_(0.0, 1.0, generator=generator)
        w_P = unlearned_P + sigma * noise_P
        found = held_out_quality(attacks.problem, w_P)
        values["quality"].append(found.value)
        if found.accuracy_if_any is not None:
            values["test_accuracy"].append(found.accuracy_if_any)
        values["mia_l_auc"].append(attacks.likelihood_ratio(w_P)[POPULATION].auc.value)
        if attacks.has_posteriors:
            difference = attacks.posterior_difference(w_P, FEATURES)
            values["mia_u_auc"].append(difference[POPULATION].auc.value)
    return {name: [sum(v) / len(v), min(v), max(v)] if v else None for name, v in values.items()}
