"""Hessian-vector products of K tangents at one w_t, behind one interface.

Four forms compute the same numbers, to rounding:

- `r-operator`: our own R-operator (`pipeline/hessian/roperator`). All K tangents share one primal
  pass; every product is one large matrix product or convolution. Networks it cannot follow use one
  of the others.
- `reverse`: double backward. The graph is built once, then one `autograd.grad` per tangent.
- `forward-over-reverse`: `vmap(jvp(grad))`, compiled on a GPU; torch repeats the primal pass per call.
- `explicit`: the minibatch's Hessian as a matrix, by products of the fastest of these (`explicit.py`).

The last bits differ between forms, between numbers of tangents per call and between thread counts, so
all of this is chosen once per run and kept (docs/architecture.md).
"""

# B minibatch rows, K tangents, P parameters, U visited units

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from pipeline.errors import ConfigError
from pipeline.hessian.explicit import ExplicitLinearization
from pipeline.hessian.linearization import Linearization
from pipeline.hessian.roperator import Operator, Pairs, RLinearization, operator_for
from pipeline.models.losses import Loss
from pipeline.models.minibatch import Minibatch
from pipeline.models.parameters import ParameterLayout
from pipeline.models.train_mode import (
    KeyedDropout,
    MinibatchNorm,
    keyed_dropouts,
    minibatch_norms,
    no_keys,
    set_keys,
    training_form,
)

if TYPE_CHECKING:
    from pipeline.config import Form

# Parameters whose Hessian may be held as a matrix: 256 MiB of float32.
MOST_EXPLICIT = 8192
# Products of the left-out samples are computed this many at a time, to bound their memory.
PAIRS_AT_ONCE = 16


@dataclass(frozen=True)
class Network:
    """A model as a function of its flat parameters, with its loss and its form of HVPs.

    Attributes:
        module: In eval mode; frozen parameters and buffers are taken from it.
        loss: Per-sample loss.
        layout: Its trainable tensors.
        form: Which form computes HVPs.
        operator: The R-operator of the training form, where there is one.
        training: The training form of the module: with dropout, and statistics of the minibatch.
        dropouts: Its layers that drop by key, by name. Like `norms` they are found once: nothing
            replaces parts after `of`, and a search on first use is what torch.compile cannot follow.
        norms: Its layers that normalise by the minibatch, by name.

    The Hessian of a small network as its products with the unit vectors, against torch's own:

    >>> import torch
    >>> from torch import nn
    >>> from pipeline.models.losses import CrossEntropy
    >>> from pipeline.models.minibatch import Minibatch
    >>> module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> network = Network.of(module, CrossEntropy())
    >>> network.form, network.layout.num_parameters
    ('r-operator', 23)
    >>> w_P = torch.linspace(-1, 1, 23)
    >>> inputs, targets = torch.eye(4), torch.tensor([0, 1, 1, 0])
    >>> at_w = network.linearize(w_P, Minibatch(inputs, targets))
    >>> at_w.gradient_sum().shape
    torch.Size([23])
    >>> hessian_PP = at_w.hessian_products(torch.eye(23), left_out=None)
    >>> def loss_sum(w_P):
    ...     scores = network.outputs(w_P, inputs)
    ...     return nn.functional.cross_entropy(scores, targets, reduction="sum")
    >>> torch.allclose(hessian_PP, torch.func.hessian(loss_sum)(w_P), atol=1e-5)
    True
    """

    module: nn.Module
    loss: Loss
    layout: ParameterLayout
    form: Form
    operator: Operator | None
    training: nn.Module
    dropouts: Mapping[str, KeyedDropout] = field(repr=False, compare=False)
    norms: Mapping[str, MinibatchNorm] = field(repr=False, compare=False)

    @staticmethod
    def of(
        module: nn.Module,
        loss: Loss,
        form: Form | Literal["auto"] = "auto",
        active: frozenset[str] = frozenset(),
    ) -> Network:
        """Return the network, with the form that is fastest where `form` is "auto".

        `active` names the parts that training replaces (`pipeline.models.train_mode`).

        Raises:
            ConfigError: If `form` is "r-operator" and the module has a layer that it cannot follow, or
                "explicit" and the module has too many parameters.
        """
        module = module.eval()
        training = training_form(module, active)
        layout = ParameterLayout.of(training)
        slices = {name: part for name, part, _ in layout.slices()}
        operator = operator_for(training, slices)
        if form == "auto":
            form = _fastest(module, operator)
        if form == "r-operator" and operator is None:
            raise ConfigError(
                "recursion.hvp is r-operator, but the model has a layer that it cannot follow; "
                "choose auto, reverse or forward-over-reverse"
            )
        if form == "explicit" and (layout.num_statistics or layout.num_parameters > MOST_EXPLICIT):
            raise ConfigError(
                f"recursion.hvp explicit holds a matrix of all pairs of parameters: expected at most "
                f"{MOST_EXPLICIT:,} and no statistics of minibatches, found {layout.num_parameters:,} "
                "parameters; choose auto"
            )
        dropouts, norms = keyed_dropouts(training), minibatch_norms(training)
        return Network(module, loss, layout, form, operator, training, dropouts, norms)

    @property
    def couples(self) -> bool:
        """Whether the samples of a minibatch are coupled, by its statistics."""
        return self.layout.num_statistics > 0

    @property
    def drops(self) -> bool:
        """Whether training drops values at random."""
        return bool(self.dropouts)

    def outputs(self, w_P: Tensor, inputs: Tensor) -> Tensor:
        """Return the network's outputs (B, C) at parameters w."""
        return cast(Tensor, functional_call(self.module, self.layout.unflatten(w_P), (inputs,)))

    def linearize(self, w_P: Tensor, batch: Minibatch) -> Linearization:
        """Return the linearisation at w on one minibatch, as training sees it."""
        if self.form == "explicit":
            other = replace(self, form=_fastest(self.module, self.operator))
            return ExplicitLinearization(batch, w_P, partial(other.linearize, w_P))
        if self.form == "r-operator" and self.operator is not None:
            set_keys(self.dropouts.values(), batch.keys)
            return RLinearization(self.operator, self.loss, w_P, batch)
        if self.form == "reverse":
            return ReverseLinearization(self, w_P, batch)
        return ForwardOverReverse(self, w_P, batch)

    def losses(self, tensors: dict[str, Tensor], batch: Minibatch) -> Tensor:
        """Return each sample's loss times its weight (B,) in training, at named parameters."""
        tensors = {**tensors, **self._passed(batch)}
        outputs = functional_call(self.training, tensors, (batch.inputs,))
        return batch.weighted(self.loss.value(outputs, batch.targets))

    def _passed(self, batch: Minibatch) -> dict[str, Tensor]:
        """Return the buffers by which a minibatch reaches dropout and normalisation."""
        keys = no_keys() if batch.keys is None else batch.keys
        passed = {f"{name}.keys": keys for name in self.dropouts}
        if batch.present is not None:
            passed |= {f"{name}.present": batch.present for name in self.norms}
        return passed

    def loss_sum(self, tensors: dict[str, Tensor], batch: Minibatch) -> Tensor:
        """Return the sum of the weighted losses at named parameters."""
        return self.losses(tensors, batch).sum()

    def parameters(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return views of the parameters alone in `vectors` (..., P), by name."""
        return self.layout.trained.unflatten(vectors)

    def flatten(self, tensors: dict[str, Tensor], num_batch: int = 0) -> Tensor:
        """Return derivatives by the parameters as vectors (..., P): 0 for running statistics.

        Args:
            tensors: By name, each with `num_batch` axes before those of its parameter.
            num_batch: 0 or 1.
        """
        parts = [tensors[name].flatten(num_batch) for name in self.layout.trained.names]
        if self.couples:
            shape = *parts[0].shape[:num_batch], self.layout.statistics_size
            parts.append(parts[0].new_zeros(shape))
        return torch.cat(parts, dim=-1)

    def statistics(self, w_P: Tensor, batch: Minibatch) -> Tensor:
        """Return the minibatch's statistics (S,) at w: what the running ones move towards."""
        return self.statistics_of(self.parameters(w_P), batch)

    def statistics_of(self, tensors: dict[str, Tensor], batch: Minibatch) -> Tensor:
        """As `statistics`, at named parameters."""
        functional_call(self.training, {**tensors, **self._passed(batch)}, (batch.inputs,))
        return torch.cat([value for norm in self.norms.values() for value in norm.seen])

    @cached_property
    def momenta(self) -> Tensor:
        """By which share each running statistic (S,) moves towards the minibatch's, float64."""
        parts = [
            torch.full((2 * norm.running_mean.numel(),), norm.momentum, dtype=torch.float64)
            for norm in self.norms.values()
        ]
        return torch.cat(parts)


def _fastest(module: nn.Module, operator: Operator | None) -> Form:
    """Choose by the measurements in docs/benchmarks.md: the R-operator wherever it applies."""
    if operator is not None:
        return "r-operator"
    convolutional = any(isinstance(child, nn.Conv2d) for child in module.modules())
    on_gpu = any(p.is_cuda for p in module.parameters())
    return "reverse" if convolutional and not on_gpu else "forward-over-reverse"


class _AutogradLinearization:
    """The shared part of both automatic differentiation forms."""

    def __init__(self, network: Network, w_P: Tensor, batch: Minibatch) -> None:
        self.network, self.w_P, self.batch = network, w_P, batch

    def unit_gradients(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the tangents that occur in `pairs` (U,) and their summed gradients (U, P)."""
        units, counts = torch.unique_consecutive(pairs.tangents, return_counts=True)
        sums = [
            self.network.linearize(self.w_P, self.batch.take(rows)).gradient_sum()
            for rows in pairs.rows.split(counts.tolist())
        ]
        return units, torch.stack(sums)


class ReverseLinearization(_AutogradLinearization):
    """Double backward: the graph once, one `autograd.grad` per tangent."""

    _graph: tuple[list[Tensor], list[Tensor]] | None = None

    def _gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        if self._graph is None:
            views = self.network.parameters(self.w_P).items()
            leaves = {name: view.detach().requires_grad_() for name, view in views}
            with torch.enable_grad():
                total = self.network.loss_sum(leaves, self.batch)
                gradients = torch.autograd.grad(total, list(leaves.values()), create_graph=True)
            self._graph = list(leaves.values()), list(gradients)
        return self._graph

    def gradient_sum(self) -> Tensor:
        """Return sum_b grad l_b, (P,)."""
        _, gradients = self._gradients()
        names = self.network.layout.trained.names
        detached = (gradient.detach() for gradient in gradients)
        return self.network.flatten(dict(zip(names, detached, strict=True)))

    def hessian_products(self, tangents_KP: Tensor, left_out: Pairs | None) -> Tensor:
        """Return sum_b hess l_b v_k, those of left-out samples subtracted, (K, P)."""
        leaves, gradients = self._gradients()
        width = self.network.layout.trained.num_parameters
        out_KP = torch.zeros_like(tangents_KP)
        for out_P, tangent_P in zip(out_KP[:, :width], tangents_KP, strict=True):
            directions = list(self.network.parameters(tangent_P).values())
            # A linear layer's second derivative may be absent from the graph: it is zero.
            products = torch.autograd.grad(
                gradients, leaves, directions, retain_graph=True, materialize_grads=True
            )
            torch.cat([p.reshape(-1) for p in products], out=out_P)
        if left_out is not None and len(left_out.rows):
            self._subtract_own(out_KP, tangents_KP, left_out)
        return out_KP

    def _subtract_own(self, out_KP: Tensor, tangents_KP: Tensor, left_out: Pairs) -> None:
        units, counts = torch.unique_consecutive(left_out.tangents, return_counts=True)
        groups = zip(units.tolist(), left_out.rows.split(counts.tolist()), strict=True)
        for k, rows in groups:
            own = ReverseLinearization(self.network, self.w_P, self.batch.take(rows))
            out_KP[k] -= own.hessian_products(tangents_KP[k : k + 1], None)[0]


class ForwardOverReverse(_AutogradLinearization):
    """`vmap(jvp(grad))`: one vectorised call for all tangents."""

    def gradient_sum(self) -> Tensor:
        """Return sum_b grad l_b, (P,)."""
        tensors = self.network.parameters(self.w_P)
        return self.network.flatten(grad(self.network.loss_sum)(tensors, self.batch))

    def hessian_products(self, tangents_KP: Tensor, left_out: Pairs | None) -> Tensor:
        """Return sum_b hess l_b v_k, those of left-out samples subtracted, (K, P)."""
        network = self.network
        function = _vectorised(network, self.w_P.is_cuda)
        out_KP = function(
            network.parameters(self.w_P), network.parameters(tangents_KP), self.batch.tensors()
        )
        if left_out is not None and len(left_out.rows):
            self._subtract_own(out_KP, tangents_KP, left_out)
        return out_KP

    def _subtract_own(self, out_KP: Tensor, tangents_KP: Tensor, left_out: Pairs) -> None:
        network = self.network
        paired = vmap(_hvp(self.network), in_dims=(None, 0, 0))
        groups = zip(
            left_out.tangents.split(PAIRS_AT_ONCE), left_out.rows.split(PAIRS_AT_ONCE), strict=True
        )
        for tangents, rows in groups:
            samples = self.batch.take(rows).tensors()
            own = paired(
                network.parameters(self.w_P),
                network.parameters(tangents_KP[tangents]),
                {name: value.unsqueeze(1) for name, value in samples.items()},
            )
            out_KP.index_add_(0, tangents, own, alpha=-1.0)


Tensors = dict[str, Tensor]
HvpFunction = Callable[[Tensors, Tensors, Tensors], Tensor]


def _hvp(network: Network) -> HvpFunction:
    def product(tensors: Tensors, tangent: Tensors, samples: Tensors) -> Tensor:
        batch = Minibatch(**samples)

        def gradient(at: Tensors) -> Tensors:
            return cast(Tensors, grad(network.loss_sum)(at, batch))

        products = jvp(gradient, (tensors,), (tangent,))[1]
        return network.flatten(products)

    return product


def _vectorised(network: Network, compiled: bool) -> HvpFunction:
    function = vmap(_hvp(network), in_dims=(None, 0, None))
    # Compiling pays on a GPU, where an eager pass is bound by kernel launches; on a CPU it costs
    # minutes and gains nothing.
    return cast(HvpFunction, torch.compile(function, dynamic=False)) if compiled else function
