"""MIA-L: the likelihood ratio attack (Carlini et al. 2022) on deleted samples.

For each target the shadow models trained on it and those trained without it give two normal
distributions of its confidence; the score is the log ratio of their densities at the attacked model's
confidence. The normals are fitted to shadow models alone, never to the attacked one.
"""

# S shadow models, t targets

import torch
from torch import Tensor

from pipeline.evaluation.membership.scores import AttackScores
from pipeline.evaluation.membership.shadow import Shadows

# Carlini et al. 2022, section VI.C: below this many models one variance for all targets does better
# than a variance for each.
MODELS_FOR_OWN_VARIANCE = 64


def likelihood_ratios(shadows: Shadows, confidences_t: Tensor) -> Tensor:
    """Return log N(phi; in) - log N(phi; out) for each target, (t,) float64.

    Args:
        shadows: Each target at least once in and once out.
        confidences_t: phi, the attacked model's log(p / (1 - p)), float64.
    """
    inside, outside = (
        _moments(shadows, shadows.trained_on_St),
        _moments(shadows, ~shadows.trained_on_St),
    )
    return _log_normal(confidences_t, *inside) - _log_normal(confidences_t, *outside)


def exposure(shadows: Shadows) -> Tensor:
    """Return |mean in - mean out| / deviation for each target (t,): how much training on it shows."""
    mean_in, deviation_in = _moments(shadows, shadows.trained_on_St)
    mean_out, deviation_out = _moments(shadows, ~shadows.trained_on_St)
    return (mean_in - mean_out).abs() / ((deviation_in**2 + deviation_out**2) / 2).sqrt()


def split(scores_t: Tensor, is_member_t: Tensor) -> AttackScores:
    """Return scores of members and others apart."""
    return AttackScores(scores_t[is_member_t].numpy(), scores_t[~is_member_t].numpy())


def _moments(shadows: Shadows, chosen_St: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the chosen models' confidences, (t,) each."""
    weights = chosen_St.to(torch.float64)
    counts = weights.sum(0)
    if bool((counts == 0).any()):
        raise ValueError(
            "every target must be in at least one shadow model and out of at least one; train an "
            "even number of them"
        )
    mean_t = (weights * shadows.confidences_St).sum(0) / counts
    squares_t = (weights * (shadows.confidences_St - mean_t).square()).sum(0)
    if shadows.num_models < MODELS_FOR_OWN_VARIANCE:
        variance_t = (squares_t.sum() / (counts - 1).sum().clamp(min=1)).expand_as(mean_t)
    else:
        variance_t = squares_t / (counts - 1)
    return mean_t, variance_t.clamp(min=1e-12).sqrt()


def _log_normal(values_t: Tensor, mean_t: Tensor, deviation_t: Tensor) -> Tensor:
    """Return the log density, without the constant that both distributions share."""
    return -((values_t - mean_t) / deviation_t).square() / 2 - deviation_t.log()
