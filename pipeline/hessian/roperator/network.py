"""The R-operator of a whole network: chains, residual blocks, and the linearisation they give.

Followed: `nn.Sequential` of the layers in `OPERATORS`, and torchvision's ResNets of basic blocks
with frozen batch normalisation. For any other module `operator_for` returns None, and the automatic
differentiation forms of `pipeline/hessian/hvp.py` take over.
"""

# B minibatch rows, K tangents, P parameters, U visited units

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from pipeline.hessian.roperator.convolution import ConvolutionOperator
from pipeline.hessian.roperator.pointwise import (
    ACTIVATIONS,
    LINEAR_MAPS,
    ActivationOperator,
    LinearMapOperator,
)
from pipeline.hessian.roperator.tape import Operator, OperatorFactory, Pairs, Tangents, Tape
from pipeline.hessian.roperator.weighted import FrozenNormOperator, LinearOperator
from pipeline.models.losses import Loss
from pipeline.models.minibatch import Minibatch


class Chain:
    """Layers one after another."""

    def __init__(self, operators: list[Operator]) -> None:
        self.operators = operators
        self.has_parameters = any(op.has_parameters for op in operators)

    def __call__(self, parameters_P: Tensor, inputs: Tensor, upstream: bool) -> "ChainTape":
        """Run the layers."""
        return ChainTape(self.operators, parameters_P, inputs, upstream)


class ChainTape:
    """The tapes of a chain."""

    def __init__(
        self, operators: list[Operator], w_P: Tensor, inputs: Tensor, upstream: bool
    ) -> None:
        self.tapes: list[Tape] = []
        self.output = inputs
        for op in operators:
            self.tapes.append(op(w_P, self.output, upstream))
            self.output = self.tapes[-1].output
            upstream = upstream or op.has_parameters

    def backward(self, delta: Tensor) -> Tensor | None:
        """Pass delta through the layers in reverse; None once no parameters lie upstream."""
        passing: Tensor | None = delta
        for tape in reversed(self.tapes):
            if passing is None:
                break
            passing = tape.backward(passing)
        return passing

    def gradient(self, rows: Tensor | None, out_P: Tensor) -> None:
        """Write every layer's gradient."""
        for tape in self.tapes:
            tape.gradient(rows, out_P)

    def sample_gradients(self, rows: Tensor, out_RP: Tensor) -> None:
        """Write every layer's gradients by sample."""
        for tape in self.tapes:
            tape.sample_gradients(rows, out_RP)

    def tangent_forward(self, tangents: Tangents, input_tangent: Tensor | None) -> Tensor | None:
        """Pass the tangent through the layers."""
        for tape in self.tapes:
            input_tangent = tape.tangent_forward(tangents, input_tangent)
        return input_tangent

    def tangent_backward(
        self, tangents: Tangents, delta_tangent: Tensor, out_KP: Tensor
    ) -> Tensor | None:
        """Pass the tangent of delta through the layers in reverse."""
        passing: Tensor | None = delta_tangent
        for tape in reversed(self.tapes):
            if passing is None:
                break
            passing = tape.tangent_backward(tangents, passing, out_KP)
        return passing


class Residual:
    """body(x) + shortcut(x)."""

    has_parameters = True

    def __init__(self, body: Chain, shortcut: Chain) -> None:
        self.body, self.shortcut = body, shortcut

    def __call__(self, parameters_P: Tensor, inputs: Tensor, upstream: bool) -> "ResidualTape":
        """Run both branches."""
        return ResidualTape(
            self.body(parameters_P, inputs, upstream), self.shortcut(parameters_P, inputs, upstream)
        )


class ResidualTape:
    """The tapes of both branches."""

    def __init__(self, body: ChainTape, shortcut: ChainTape) -> None:
        self.body, self.shortcut = body, shortcut
        self.output = body.output + shortcut.output

    def backward(self, delta: Tensor) -> Tensor | None:
        """Add what both branches return."""
        return _sum(self.body.backward(delta), self.shortcut.backward(delta))

    def gradient(self, rows: Tensor | None, out_P: Tensor) -> None:
        """Write both branches' gradients."""
        self.body.gradient(rows, out_P)
        self.shortcut.gradient(rows, out_P)

    def sample_gradients(self, rows: Tensor, out_RP: Tensor) -> None:
        """Write both branches' gradients by sample."""
        self.body.sample_gradients(rows, out_RP)
        self.shortcut.sample_gradients(rows, out_RP)

    def tangent_forward(self, tangents: Tangents, input_tangent: Tensor | None) -> Tensor | None:
        """Add the branches' tangents."""
        return _sum(
            self.body.tangent_forward(tangents, input_tangent),
            self.shortcut.tangent_forward(tangents, input_tangent),
        )

    def tangent_backward(
        self, tangents: Tangents, delta_tangent: Tensor, out_KP: Tensor
    ) -> Tensor | None:
        """Add what both branches return."""
        return _sum(
            self.body.tangent_backward(tangents, delta_tangent, out_KP),
            self.shortcut.tangent_backward(tangents, delta_tangent, out_KP),
        )


def _sum(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right


def _plain_convolution(module: nn.Conv2d) -> bool:
    numeric = isinstance(module.padding, tuple)
    return module.groups == 1 and module.padding_mode == "zeros" and numeric


def _frozen(module: nn.BatchNorm2d) -> bool:
    return not module.training and module.affine and module.running_mean is not None


def _pooled_to_one(module: nn.AdaptiveAvgPool2d) -> bool:
    return module.output_size in (1, (1, 1))


def _leaf(module: nn.Module) -> OperatorFactory | None:
    """Return the factory for one layer, or None if the R-operator cannot follow it."""
    kind = type(module)
    if isinstance(module, nn.Linear) and kind is nn.Linear:
        return LinearOperator  # type: ignore[return-value]
    if isinstance(module, nn.Conv2d) and kind is nn.Conv2d and _plain_convolution(module):
        return ConvolutionOperator  # type: ignore[return-value]
    if isinstance(module, nn.BatchNorm2d) and kind is nn.BatchNorm2d and _frozen(module):
        return FrozenNormOperator  # type: ignore[return-value]
    if kind in ACTIVATIONS and getattr(module, "approximate", "none") == "none":
        return ActivationOperator
    if isinstance(module, nn.AdaptiveAvgPool2d) and not _pooled_to_one(module):
        return None
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        return None
    return LinearMapOperator if kind in LINEAR_MAPS else None


def operator_for(
    module: nn.Module, slices: Mapping[str, slice], prefix: str = ""
) -> Operator | None:
    """Return the R-operator of a module, or None if some part of it cannot be followed.

    Args:
        module: In eval mode; its parameters are taken from the flat vector at `slices`.
        slices: Each trainable parameter's slice of the flat vector, by full name.
        prefix: Where `module` stands in the network, with a trailing dot.
    """
    own = [name for name, _ in module.named_parameters()]
    if _does_more(module) or any(f"{prefix}{name}" not in slices for name in own):
        return None
    if next(module.children(), None) is not None and module._parameters:
        return None  # a container with parameters of its own
    if type(module).forward is nn.Sequential.forward:
        return _chain(_links(module), slices, prefix)
    if type(module) is BasicBlock:
        return _basic_block(module, slices, prefix)
    if type(module) is ResNet:
        names = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4",
                 "avgpool"]  # fmt: skip
        parts: list[tuple[str, nn.Module]] = [
            (f"{name}.", module.get_submodule(name)) for name in names
        ]
        parts += [("", nn.Flatten()), ("fc.", module.get_submodule("fc"))]
        return _chain(parts, slices, prefix)
    factory = _leaf(module)
    return None if factory is None else factory(module, slices, prefix)


def _does_more(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class's forward."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
        *(parameter._backward_hooks for parameter in module.parameters(recurse=False)),
    )
    overridden = "forward" in vars(module) or type(module).__call__ is not nn.Module.__call__
    return overridden or any(hooks)


def _links(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the direct children of a chain, those that occur twice twice."""
    named = module.named_modules(remove_duplicate=False)
    return [(f"{name}.", child) for name, child in named if name and "." not in name]


def _chain(
    parts: list[tuple[str, nn.Module]], slices: Mapping[str, slice], prefix: str
) -> Chain | None:
    operators = []
    for name, child in parts:
        if type(child) is nn.Identity and not _does_more(child):
            continue
        operator = operator_for(child, slices, f"{prefix}{name}")
        if operator is None:
            return None
        operators.append(operator)
    return Chain(operators)


def _basic_block(block: BasicBlock, slices: Mapping[str, slice], prefix: str) -> Chain | None:
    names = ["conv1", "bn1", "relu", "conv2", "bn2"]
    body = _chain([(f"{name}.", getattr(block, name)) for name in names], slices, prefix)
    shortcut_parts = [] if block.downsample is None else [("downsample.", block.downsample)]
    shortcut = _chain(shortcut_parts, slices, prefix)
    last = operator_for(block.relu, slices, prefix)
    if body is None or shortcut is None or last is None:
        return None
    return Chain([Residual(body, shortcut), last])


class RLinearization:
    """A network at parameters w on one minibatch, ready for gradients and Hessian products."""

    def __init__(self, operator: Operator, loss: Loss, w_P: Tensor, batch: Minibatch) -> None:
        self.loss, self.w_P, self.batch = loss, w_P, batch
        self.tape = operator(w_P, batch.inputs, False)
        self.tape.backward(batch.weighted(loss.gradient(self.tape.output, batch.targets)))

    def gradient_sum(self) -> Tensor:
        """Return sum_b grad l_b (P,)."""
        out_P = torch.empty_like(self.w_P)
        self.tape.gradient(None, out_P)
        return out_P

    def hessian_products(self, tangents_KP: Tensor, left_out: Pairs | None) -> Tensor:
        """Return sum_b hess l_b v_k over the rows not left out for tangent k, (K, P)."""
        tangents = Tangents(tangents_KP, left_out)
        out_KP = torch.empty_like(tangents_KP)
        outputs = self.tape.tangent_forward(tangents, None)
        assert outputs is not None, "a network has parameters"
        curved = self.loss.hessian_product(self.tape.output, self.batch.targets, outputs)
        self.tape.tangent_backward(tangents, self.batch.weighted(curved), out_KP)
        return out_KP

    def unit_gradients(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the tangents in `pairs` (U,) and the summed gradients of each (U, P)."""
        units, counts = torch.unique_consecutive(pairs.tangents, return_counts=True)
        out_UP = self.w_P.new_empty(len(units), self.w_P.shape[0])
        if len(units) == len(pairs.rows):
            self.tape.sample_gradients(pairs.rows, out_UP)
        else:
            for out_P, rows in zip(out_UP, pairs.rows.split(counts.tolist()), strict=True):
                self.tape.gradient(rows, out_P)
        return units, out_UP
