"""Whom the attacks are aimed at: the deleted samples as members, test samples as others."""

# m deleted samples, o others, C classes, P parameters, t = m + o targets

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.evaluation.accuracy import outputs
from pipeline.problem import Problem


@dataclass(frozen=True)
class Targets:
    """Samples to be attacked, the deleted ones first.

    Attributes:
        inputs: (t, ...).
        labels: Classes (t,), int64.
        num_members: m; the rest were never trained on.
        unit_of_member: Which unit owns each deleted sample, (m,) int64.
    """

    inputs: Tensor
    labels: Tensor
    num_members: int
    unit_of_member: Tensor

    @staticmethod
    def of(problem: Problem, forgotten_ids: Tensor) -> "Targets":
        """Return the deleted samples and all test samples."""
        data = problem.data
        return Targets(
            torch.cat([data.inputs[forgotten_ids], data.test_inputs]),
            torch.cat([data.targets[forgotten_ids], data.test_targets]),
            len(forgotten_ids),
            data.unit_of_sample[forgotten_ids].cpu(),
        )

    @property
    def is_member(self) -> Tensor:
        """Mask (t,) of the deleted samples, on the CPU."""
        return torch.arange(len(self.labels)) < self.num_members

    def log_posteriors(self, problem: Problem, w_P: Tensor) -> Tensor:
        """Return log probabilities of all classes at w, (t, C) float64 on the CPU."""
        with problem.arithmetic():
            scores_tC = outputs(problem.network, w_P.to(problem.initial_P), self.inputs)
        return torch.log_softmax(scores_tC.to("cpu", torch.float64), dim=1)

    def confidences(self, problem: Problem, w_P: Tensor) -> Tensor:
        """Return log(p / (1 - p)) of each target's own class at w, (t,) float64.

        The logit is close to normal over retrainings, which probabilities are not (Carlini et al.
        2022).
        """
        log_p_tC = self.log_posteriors(problem, w_P)
        own_t1 = self.labels.cpu()[:, None]
        others_tC = log_p_tC.scatter(1, own_t1, -torch.inf)
        return log_p_tC.gather(1, own_t1).squeeze(1) - torch.logsumexp(others_tC, dim=1)


def most_exposed(exposure_t: Tensor, targets: Targets, share: float = 0.1) -> Tensor:
    """Return a mask (t,) of the most exposed `share` of units, and of as large a share of the others.

    Args:
        exposure_t: How strongly training on a target shows, (t,), judged *without* the attacked
            model: choosing by the attack's own success would find a worst decile in noise.
        targets: A unit's exposure is the mean over its samples; a test sample stands for itself.
        share: Of the units.
    """
    members = exposure_t[: targets.num_members]
    units, places = torch.unique(targets.unit_of_member, return_inverse=True)
    sums = torch.zeros(len(units), dtype=exposure_t.dtype).index_add_(0, places, members)
    means = sums / torch.bincount(places)
    exposed_units = _largest(means, share)
    others = exposure_t[targets.num_members :]
    return torch.cat([exposed_units[places], _largest(others, share)])


def _largest(values: Tensor, share: float) -> Tensor:
    # Below two an attack cannot be scored.
    count = min(len(values), max(2, round(share * len(values))))
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[torch.topk(values, count).indices] = True
    return mask
