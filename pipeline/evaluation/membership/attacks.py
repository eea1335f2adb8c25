"""Both membership inference attacks on one deletion, for any parameters."""

# t targets, C classes, P parameters

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from pipeline.evaluation.membership import posterior_difference
from pipeline.evaluation.membership.lira import exposure, likelihood_ratios, split
from pipeline.evaluation.membership.posterior_difference import FEATURES, halves
from pipeline.evaluation.membership.scores import AttackResult, evaluate
from pipeline.evaluation.membership.shadow import Shadows, Targets, has_posteriors, most_exposed
from pipeline.run.problem import Problem

AttackResults = dict[str, AttackResult]

POPULATION = "population"
WORST_DECILE = "worst-decile"


@dataclass(frozen=True)
class Attacks:
    """What attackers know before they see the attacked model.

    Attributes:
        problem: Data and network.
        targets: The deleted samples and the test samples.
        shadows: Trained with the run's own configuration.
        trained_P: w_T, which the MIA-U attacker holds as well.
        seed: Fixes the halves and the random forests.
    """

    problem: Problem
    targets: Targets
    shadows: Shadows
    trained_P: Tensor
    seed: int = 0

    @cached_property
    def _exposed_t(self) -> Tensor:
        return most_exposed(exposure(self.shadows), self.targets)

    @cached_property
    def _before_tC(self) -> Tensor:
        return self.targets.log_posteriors(self.problem, self.trained_P).exp()

    def likelihood_ratio(self, w_P: Tensor) -> AttackResults:
        """Return the result of MIA-L at w, on all targets and on the most exposed tenth of units."""
        confidences_t = self.targets.confidences(self.problem, w_P)
        scores_t = likelihood_ratios(self.shadows, confidences_t)
        members_t, exposed_t = self.targets.is_member, self._exposed_t
        return {
            POPULATION: evaluate([split(scores_t, members_t)]),
            WORST_DECILE: evaluate([split(scores_t[exposed_t], members_t[exposed_t])]),
        }

    def posterior_difference(self, w_P: Tensor, features: str) -> AttackResults:
        """Return the result of MIA-U between w_T and w with the named features.

        The worst decile is missing where its halves are too small to be scored.
        """
        after_tC = self.targets.log_posteriors(self.problem, w_P).exp()
        features_tF = FEATURES[features](self._before_tC.numpy(), after_tC.numpy())
        members_t = self.targets.is_member
        scored = posterior_difference.attack(features_tF, members_t, self.seed)
        worst = halves(scored, members_t, self._exposed_t)
        found = {POPULATION: evaluate(halves(scored, members_t))}
        return found | ({WORST_DECILE: evaluate(worst)} if worst else {})

    @property
    def has_posteriors(self) -> bool:
        """Whether MIA-U has a meaning: it compares probabilities of classes."""
        return has_posteriors(self.problem)

    def evaluate_all(self, w_P: Tensor) -> dict[str, Any]:
        """Return all attacks on w that have a meaning as plain values, for the report."""
        features = FEATURES if self.has_posteriors else ()
        return {
            "likelihood-ratio": _as_json(self.likelihood_ratio(w_P)),
            "posterior-difference": {
                name: _as_json(self.posterior_difference(w_P, name)) for name in features
            },
        }


def _as_json(results: AttackResults) -> dict[str, Any]:
    return {name: result.as_json() for name, result in results.items()}
