"""Scores of an attack: area under its ROC curve and true positive rates at low false positive rates.

The area is the probability that a member scores above a non-member, ties counting half; its interval
is DeLong's (1988). True positives are counted above the lowest threshold that lets at most the given
share of non-members through; their interval is Clopper and Pearson's, for the threshold as it is.
"""

# N non-members, M members

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm, rankdata

Float64Array = NDArray[np.float64]

FALSE_POSITIVE_RATES = (0.001, 0.01)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class AttackScores:
    """Scores of samples that the attack was not fitted on, higher meaning "member".

    Attributes:
        members_M: Of deleted samples.
        others_N: Of samples that no model was trained on.
    """

    members_M: Float64Array
    others_N: Float64Array

    def __post_init__(self) -> None:
        if len(self.members_M) < 2 or len(self.others_N) < 2:
            raise ValueError(
                f"an attack needs at least two members and two others to be scored, found "
                f"{len(self.members_M)} and {len(self.others_N)}"
            )

    def area(self) -> tuple[float, float]:
        """Return the area under the curve and its variance (DeLong)."""
        num_members, num_others = len(self.members_M), len(self.others_N)
        ranks = rankdata(np.concatenate([self.members_M, self.others_N]))
        member_wins_M = (ranks[:num_members] - rankdata(self.members_M)) / num_others
        other_losses_N = 1 - (ranks[num_members:] - rankdata(self.others_N)) / num_members
        variance = member_wins_M.var(ddof=1) / num_members
        variance += other_losses_N.var(ddof=1) / num_others
        return float(member_wins_M.mean()), float(variance)

    def true_positives(self, false_positive_rate: float) -> int:
        """Return the members above the threshold that at most this share of others passes."""
        allowed = int(np.floor(false_positive_rate * len(self.others_N) + 1e-9))
        threshold = np.sort(self.others_N)[::-1][allowed]
        return int((self.members_M > threshold).sum())


@dataclass(frozen=True)
class AttackResult:
    """The performance of an attack.

    Attributes:
        auc: Area under the curve.
        tpr: True positive rate by false positive rate.
        num_members: Deleted samples scored.
        num_others: Unseen samples scored; a false positive rate below one over this allows none.
    """

    auc: Interval
    tpr: dict[float, Interval]
    num_members: int
    num_others: int

    def as_json(self) -> dict[str, object]:
        """Return the result as plain values: intervals as [value, low, high]."""
        return {
            "auc": _triple(self.auc),
            "tpr": {f"{rate:g}": _triple(found) for rate, found in self.tpr.items()},
            "members": self.num_members,
            "others": self.num_others,
        }


def _triple(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]


def evaluate(folds: Sequence[AttackScores]) -> AttackResult:
    """Return the result over folds whose scores need not be comparable with each other.

    Areas are averaged over the folds, each fold has its own threshold, and true positives are added
    up.
    """
    areas, variances = np.array([fold.area() for fold in folds]).T
    auc, deviation = float(areas.mean()), float(np.sqrt(variances.sum()) / len(folds))
    half = float(norm.ppf((1 + CONFIDENCE) / 2)) * deviation
    num_members = sum(len(fold.members_M) for fold in folds)
    return AttackResult(
        Interval(auc, max(0.0, auc - half), min(1.0, auc + half)),
        {
            rate: proportion(sum(fold.true_positives(rate) for fold in folds), num_members)
            for rate in FALSE_POSITIVE_RATES
        },
        num_members,
        sum(len(fold.others_N) for fold in folds),
    )


def proportion(hits: int, trials: int) -> Interval:
    """Return hits / trials with the Clopper-Pearson interval.

    >>> found = proportion(0, 100)
    >>> found.value, found.low, round(found.high, 4)
    (0.0, 0.0, 0.0362)
    """
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return Interval(hits / trials, low, high)
