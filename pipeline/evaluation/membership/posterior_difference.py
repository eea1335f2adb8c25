"""MIA-U: membership from the posteriors before and after (Chen et al. 2021).

An attacker who holds both models may see that a sample's posterior changed. Five constructions of
features from the posterior p before and q after:

- `direct-difference`      p - q
- `sorted-difference`      both sorted by p, descending, then p - q
- `direct-concatenation`   (p, q)
- `sorted-concatenation`   (p, q), both sorted by p
- `euclidean`              |p - q|

The attacker is fitted on one half of the targets and scored on the other, and vice versa.
"""

# C classes, t targets, F features

from collections.abc import Callable

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from pipeline.evaluation.membership.scores import AttackScores, Float64Array

Features = Callable[[Float64Array, Float64Array], Float64Array]


def _sorted(p_tC: Float64Array, q_tC: Float64Array) -> tuple[Float64Array, Float64Array]:
    order = np.argsort(-p_tC, axis=1, kind="stable")
    return np.take_along_axis(p_tC, order, axis=1), np.take_along_axis(q_tC, order, axis=1)


def direct_difference(p_tC: Float64Array, q_tC: Float64Array) -> Float64Array:
    """Return p - q, (t, C)."""
    return p_tC - q_tC


def sorted_difference(p_tC: Float64Array, q_tC: Float64Array) -> Float64Array:
    """Return p - q, both sorted by p, (t, C)."""
    p_sorted, q_sorted = _sorted(p_tC, q_tC)
    return p_sorted - q_sorted


def direct_concatenation(p_tC: Float64Array, q_tC: Float64Array) -> Float64Array:
    """Return p and q side by side, (t, 2C)."""
    return np.concatenate([p_tC, q_tC], axis=1)


def sorted_concatenation(p_tC: Float64Array, q_tC: Float64Array) -> Float64Array:
    """Return p and q side by side, both sorted by p, (t, 2C)."""
    return np.concatenate(_sorted(p_tC, q_tC), axis=1)


def euclidean(p_tC: Float64Array, q_tC: Float64Array) -> Float64Array:
    """Return |p - q|, (t, 1)."""
    distances_t1: Float64Array = np.linalg.norm(p_tC - q_tC, axis=1, keepdims=True)
    return distances_t1


FEATURES: dict[str, Features] = {
    "direct-difference": direct_difference,
    "sorted-difference": sorted_difference,
    "direct-concatenation": direct_concatenation,
    "sorted-concatenation": sorted_concatenation,
    "euclidean": euclidean,
}

_HALVES = 2
TREES = 50


def attack(features_tF: Float64Array, is_member_t: Tensor, seed: int) -> Float64Array:
    """Return a score for each target by attackers that were not fitted on it, (t, 2) float64.

    Column 0 is the score, column 1 the number of the half that it belongs to: scores of different
    halves come from different attackers and must not be compared.
    """
    labels = is_member_t.numpy()
    out = np.zeros((len(labels), 2))
    folds = StratifiedKFold(_HALVES, shuffle=True, random_state=seed)
    for number, (fitted, scored) in enumerate(folds.split(features_tF, labels)):
        # Leaves of five samples keep a forest on a few hundred samples from overfitting; the
        # balanced weights make scores comparable for any share of members.
        forest = RandomForestClassifier(
            TREES, min_samples_leaf=5, class_weight="balanced", random_state=seed
        )
        forest.fit(features_tF[fitted], labels[fitted])
        out[scored, 0] = forest.predict_proba(features_tF[scored])[:, 1]
        out[scored, 1] = number
    return out


def halves(
    scored_t2: Float64Array, is_member_t: Tensor, among_t: Tensor | None = None
) -> list[AttackScores]:
    """Return the scores of each half, members and others apart, among the given targets only.

    A half with fewer than two members or two others is left out: it cannot be scored.
    """
    chosen = np.ones(len(scored_t2), dtype=bool) if among_t is None else among_t.numpy()
    members = is_member_t.numpy()
    found = []
    for number in range(_HALVES):
        here = chosen & (scored_t2[:, 1] == number)
        if min((here & members).sum(), (here & ~members).sum()) >= 2:
            scores = scored_t2[:, 0]
            found.append(AttackScores(scores[here & members], scores[here & ~members]))
    return found
