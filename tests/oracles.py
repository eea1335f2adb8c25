"""What the core is compared with: the definitions of docs/method.md written a second time, slowly.

Nothing here imports `pipeline`. Training is a plain loop over `torch.func.grad`; derivatives come from
differentiating that loop, retraining from running it on the samples that remain, Hessians from
repeated backward passes. Everything is meant for float64 and tiny sizes.
"""

# n samples, B minibatch rows, P parameters, N units, T steps

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

LossFunction = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs_BC: Tensor, targets_B: Tensor) -> Tensor:
    """log sum exp z - z_y, (B,)."""
    picked = outputs_BC.gather(1, targets_B.unsqueeze(1)).squeeze(1)
    return torch.logsumexp(outputs_BC, dim=1) - picked


def smoothed_cross_entropy(share: float) -> LossFunction:
    """-sum_c q_c log softmax_c with q = (1 - share) onehot + share / C."""

    def loss(outputs_BC: Tensor, targets_B: Tensor) -> Tensor:
        logs_BC = outputs_BC - torch.logsumexp(outputs_BC, dim=1, keepdim=True)
        plain = cross_entropy(outputs_BC, targets_B)
        return (1 - share) * plain - share * logs_BC.mean(1)

    return loss


def squared_error(outputs_BC: Tensor, targets_BC: Tensor) -> Tensor:
    """The mean squared difference over a sample's outputs, (B,)."""
    return ((outputs_BC - targets_BC) ** 2).sum(1) / outputs_BC.shape[1]


@dataclass(frozen=True)
class Convention:
    """What leaving samples out does to a minibatch's objective."""

    denominator: str
    l2_share: str


@dataclass(frozen=True)
class Run:
    """A training run, spelled out: docs/method.md, section 2."""

    module: nn.Module
    loss: LossFunction
    inputs: Tensor
    targets: Tensor
    batches: tuple[Tensor, ...]
    rates: tuple[float, ...]
    initial_P: Tensor
    l2: float | Tensor
    clip_norm: float | None = None
    momentum: float = 0.0
    nesterov: bool = False
    optimizer: str = "sgd"
    weight_decay: float | Tensor = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weights_n: Tensor | None = None
    scales_P: Tensor | float = 1.0
    """What each parameter's learning rate is multiplied by."""

    def masses(self, ids: Tensor) -> Tensor:
        """What each of the samples weighs in a mean."""
        if self.weights_n is None:
            return torch.ones(len(ids), dtype=self.initial_P.dtype)
        return self.weights_n[ids]

    def losses(self, w_P: Tensor, ids: Tensor) -> Tensor:
        """The data losses of samples `ids` at w."""
        named, start = {}, 0
        for name, parameter in self.module.named_parameters():
            stop = start + parameter.numel()
            named[name] = w_P[start:stop].reshape(parameter.shape)
            start = stop
        outputs = functional_call(self.module, named, (self.inputs[ids],))
        return self.masses(ids) * self.loss(outputs, self.targets[ids])

    def clip(self, gradient_P: Tensor) -> Tensor:
        """g min(1, C / |g|)."""
        if self.clip_norm is None:
            return gradient_P
        return gradient_P * (self.clip_norm / torch.sqrt((gradient_P**2).sum())).clamp(max=1.0)

    def follow(self, gradient: Callable[[int, Tensor], Tensor]) -> Iterator[Tensor]:
        """w_1, ..., w_T of SGD whose gradient before clipping is gradient(t, w)."""
        if self.optimizer != "sgd":
            yield from self._follow_adam(gradient)
            return
        w_P, b_P = self.initial_P, torch.zeros_like(self.initial_P)
        for step, rate in enumerate(self.rates):
            clipped_P = self.clip(gradient(step, w_P))
            b_P = self.momentum * b_P + clipped_P
            step_P = clipped_P + self.momentum * b_P if self.nesterov else b_P
            w_P = w_P - rate * self.scales_P * step_P
            yield w_P

    def _follow_adam(self, gradient: Callable[[int, Tensor], Tensor]) -> Iterator[Tensor]:
        """w_1, ..., w_T of Adam (Kingma & Ba 2015), with decoupled decay (Loshchilov & Hutter 2019)."""
        w_P = self.initial_P
        m_P, v_P = torch.zeros_like(w_P), torch.zeros_like(w_P)
        beta1, beta2 = self.betas
        for step, rate in enumerate(self.rates):
            g_P = self.clip(gradient(step, w_P))
            m_P = beta1 * m_P + (1 - beta1) * g_P
            v_P = beta2 * v_P + (1 - beta2) * g_P**2
            m_hat_P = m_P / (1 - beta1 ** (step + 1))
            v_hat_P = v_P / (1 - beta2 ** (step + 1))
            # The root has no derivative at 0, where nothing moves either.
            root_P = torch.where(v_hat_P > 0, v_hat_P, torch.ones_like(v_P)).sqrt()
            root_P = torch.where(v_hat_P > 0, root_P, torch.zeros_like(v_P))
            eta = rate * self.scales_P
            w_P = (1 - eta * self.weight_decay) * w_P - eta * m_hat_P / (root_P + self.eps)
            yield w_P

    def objective(self, step: int, w_P: Tensor) -> Tensor:
        """The minibatch objective, L2 term included."""
        ids = self.batches[step]
        mean = self.losses(w_P, ids).sum() / divisor(self.masses(ids))
        return mean + 0.5 * (self.l2 * w_P**2).sum()


def divisor(masses: Tensor) -> Tensor:
    """What a sum is divided by for a mean; the mean of samples that all weigh 0 is 0, as the sum."""
    whole = masses.sum()
    return whole if whole > 0 else torch.ones_like(whole)


def _last(states: Iterator[Tensor]) -> Tensor:
    *_, w_P = states
    return w_P


def trajectory(run: Run) -> list[Tensor]:
    """w_0, ..., w_T of the full training."""
    return [run.initial_P, *run.follow(lambda t, w: grad(run.objective, argnums=1)(t, w))]


def gradient_norms(run: Run) -> list[float]:
    """|g_t(w_t)| before clipping, t = 0..T-1."""
    states = trajectory(run)
    gradients = (grad(run.objective, argnums=1)(t, w) for t, w in enumerate(states[:-1]))
    return [float(g.norm()) for g in gradients]


def retrained_without(run: Run, forgotten_n: Tensor, convention: Convention) -> Tensor:
    """w_T of training in which the forgotten samples are dropped from every minibatch."""

    def gradient(step: int, w_P: Tensor) -> Tensor:
        ids = run.batches[step]
        kept = ids[~forgotten_n[ids]]
        batch = convention.denominator == "batch"
        whole, left = divisor(run.masses(ids)), divisor(run.masses(kept))
        # What left, not what is kept: nothing leaves a minibatch that weighs nothing.
        gone = run.masses(ids[forgotten_n[ids]]).sum() / whole
        share = 1 - gone if batch and convention.l2_share == "sample" else 1.0

        def objective(at_P: Tensor) -> Tensor:
            norm = 0.5 * share * (run.l2 * at_P**2).sum()
            if len(kept) == 0:
                return norm
            return run.losses(at_P, kept).sum() / (whole if batch else left) + norm

        return grad(objective)(w_P)

    return _last(run.follow(gradient))


def weighted_training(run: Run, weights_n: Tensor, convention: Convention) -> Tensor:
    """w_T when sample i weighs `weights_n[i]`; differentiable by the weights."""

    def gradient(step: int, w_P: Tensor) -> Tensor:
        ids = run.batches[step]
        om_B, masses_B = weights_n[ids], run.masses(ids)

        def objective(at_P: Tensor) -> Tensor:
            losses_B, norm = run.losses(at_P, ids), 0.5 * (run.l2 * at_P**2).sum()
            if convention.denominator == "remaining":
                return (om_B * losses_B).sum() / (om_B * masses_B).sum() + norm
            if convention.l2_share == "sample":
                l2 = (
                    norm if masses_B.sum() == 0 else (om_B * masses_B).sum() / masses_B.sum() * norm
                )
                return (om_B * losses_B).sum() / divisor(masses_B) + l2
            return (om_B * losses_B).sum() / divisor(masses_B) + norm

        return grad(objective)(w_P)

    return _last(run.follow(gradient))


def weight_derivatives(run: Run, owned_Nn: Tensor, convention: Convention) -> Tensor:
    """d w_T / d omega at 0 when a unit's samples weigh 1 - omega, for each unit, (N, P)."""
    ones = torch.ones(len(run.inputs), dtype=torch.float64)

    def derivative(owned_n: Tensor) -> Tensor:
        return jvp(lambda om: weighted_training(run, om, convention), (ones,), (-owned_n,))[1]

    return vmap(derivative)(owned_Nn.to(torch.float64))


def hessian(function: Callable[..., Tensor], w_P: Tensor, *others: Tensor) -> Tensor:
    """The Hessian of a scalar function by its first argument, (P, P), one column after another.

    `torch.func.hessian` is not used: its batched layer normalisation gives wrong second derivatives
    (torch 2.15: 10% off finite differences, not symmetric).
    """

    def of_first(at_P: Tensor) -> Tensor:
        return function(at_P, *others)

    return torch.autograd.functional.hessian(of_first, w_P)  # type: ignore[no-any-return]


def dense_hessian(run: Run, w_P: Tensor, ids: Tensor) -> Tensor:
    """The Hessian of the summed data losses of `ids`, (P, P)."""
    return hessian(lambda at: run.losses(at, ids).sum(), w_P)


def clip_derivative(run: Run, gradient_P: Tensor) -> Tensor:
    """The matrix of d clip / d g, (P, P), in closed form."""
    identity = torch.eye(len(gradient_P), dtype=torch.float64)
    norm = gradient_P.norm()
    if run.clip_norm is None or norm <= run.clip_norm:
        return identity
    direction = gradient_P / norm
    return (run.clip_norm / norm) * (identity - torch.outer(direction, direction))


def dense_product(run: Run, owned_n: Tensor, share: float = 1.0) -> Tensor:
    """sum_t prod_{s>t} (I - eta_s J_s H_s) eta_t J_t (m/|B|) gbar_u: full-batch Hessian, `batch`.

    Plain SGD; the matrices are formed and multiplied. Of each Hessian of the data, `share` counts.
    """
    states = trajectory(run)
    identity = torch.eye(len(run.initial_P), dtype=torch.float64)
    result = torch.zeros_like(run.initial_P)
    propagated = identity
    for step in reversed(range(len(run.batches))):
        ids, w_P, rate = run.batches[step], states[step], run.rates[step]
        jacobian = clip_derivative(run, grad(run.objective, argnums=1)(step, w_P))
        own = ids[owned_n[ids]]
        if len(own):
            injected = grad(lambda at, own=own: run.losses(at, own).sum())(w_P) / len(ids)
            result = result + propagated @ (rate * jacobian @ injected)
        curvature = share * dense_hessian(run, w_P, ids) / len(ids) + run.l2 * identity
        propagated = propagated @ (identity - rate * jacobian @ curvature)
    return result


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest |found - expected| / |expected| over the rows (a zero row must be met exactly)."""
    found, expected = torch.atleast_2d(found), torch.atleast_2d(expected)
    distance, norm = (found - expected).norm(dim=1), expected.norm(dim=1)
    if bool((distance[norm == 0] > 0).any()):
        return float("inf")
    return float((distance / norm.clamp(min=torch.finfo(norm.dtype).tiny)).max())
