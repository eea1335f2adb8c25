"""The trained part of a model, and the frozen part whose outputs are computed once."""

# n samples, D features

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from pipeline.errors import ConfigError, ModelError
from pipeline.models.resnet import as_chain


@dataclass(frozen=True)
class Parts:
    """A model cut in two.

    Attributes:
        backbone: What maps inputs to the trained part's inputs, or None where they are the same.
        trained: Its trainable parameters bear the names that they have in the whole model.
    """

    backbone: Callable[[Tensor], Tensor] | None
    trained: nn.Module


class NormalisedLinear(nn.Linear):
    """A linear layer whose inputs are scaled to L2 norm `norm` first."""

    norm: float

    def forward(self, input: Tensor) -> Tensor:
        """Return W (norm x / |x|) + b."""
        return super().forward(scaled(input, self.norm))


def scaled(features_nD: Tensor, norm: float) -> Tensor:
    """Return each row scaled to L2 norm `norm`; rows of zeros stay."""
    return norm * nn.functional.normalize(features_nD, dim=-1)


def cut(module: nn.Module, trainable: str, sample: Tensor) -> Parts:
    """Freeze everything before the trainable part, and cut there if the model's form allows it.

    Args:
        module: The whole model in eval mode; its frozen parameters lose `requires_grad`.
        trainable: `all`, `head`, or the name of a part.
        sample: One or more inputs, to find the head with.

    Raises:
        ConfigError: If there is no such part.
        ModelError: If the model does not end in a linear layer and the head is asked for.
    """
    if trainable == "all":
        return Parts(None, module)
    if trainable == "head":
        name = head_of(module, sample)
        head = module.get_submodule(name)
        _freeze_before(module, name)
        return Parts(lambda inputs: _input_of(module, head, inputs), _nested(name, head))
    return _cut_before(module, trainable)


def _cut_before(module: nn.Module, part: str) -> Parts:
    names = [name for name, _ in module.named_modules() if name]
    if part not in names:
        known = ", ".join(name for name, _ in module.named_children())
        raise ConfigError(
            f"model.trainable is {part!r}, but the model has no such part (it has: {known}); "
            "choose all, head, or one of them"
        )
    _freeze_before(module, part)
    chain = as_chain(module) if type(module) is ResNet else module
    children = list(chain.named_children())
    top = [name for name, _ in children]
    if not isinstance(chain, nn.Sequential) or part not in top:
        # Any part of any model can be trained alone; only a chain lets the rest be computed once.
        return Parts(None, module)
    at = top.index(part)
    return Parts(
        _sequential(children[:at]) if at else None,
        _sequential(children[at:]),
    )


def _freeze_before(module: nn.Module, part: str) -> None:
    first = next((n for n, _ in module.named_parameters() if n.startswith(f"{part}.")), None)
    if first is None:
        raise ConfigError(
            f"model.trainable is {part!r}, a part without parameters; name one that has some"
        )
    for name, parameter in module.named_parameters():
        if name == first:
            return
        parameter.requires_grad_(False)


def _nested(name: str, leaf: nn.Module) -> nn.Module:
    """Return `leaf` as the only part of a module, under its dotted name."""
    for step in reversed(name.split(".")):
        leaf = _sequential([(step, leaf)])
    return leaf


def _sequential(parts: Sequence[tuple[str, nn.Module]]) -> nn.Sequential:
    named: OrderedDict[str, nn.Module] = OrderedDict(parts)
    return nn.Sequential(named)


def head_of(module: nn.Module, sample: Tensor) -> str:
    """Return the name of the linear layer whose output is the model's."""
    if isinstance(module, nn.Linear):
        raise ModelError("the model is one linear layer; model.trainable head is all of it")
    seen: list[tuple[str, Tensor]] = []
    hooks = [
        part.register_forward_hook(lambda _m, _i, out, name=name: seen.append((name, out)))
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    ]
    with torch.no_grad():
        output = module(sample)
    for hook in hooks:
        hook.remove()
    for name, value in seen:
        if value is output:
            return name
    raise ModelError(
        "model.trainable is head, but the model's output is not that of a linear layer; name a "
        "part instead, or end the model with nn.Linear"
    )


def _input_of(module: nn.Module, layer: nn.Module, inputs: Tensor) -> Tensor:
    captured: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _m, args: captured.append(args[0]))
    try:
        module(inputs)
    finally:
        hook.remove()
    return captured[-1]


def normalise_head(module: nn.Module, head: str, norm: float) -> None:
    """Make the head of a whole model scale its inputs, as the head that was trained saw them."""
    linear = module.get_submodule(head)
    if not isinstance(linear, nn.Linear):
        raise ModelError(f"{head} is a {type(linear).__name__}; expected a linear layer")
    normalised = NormalisedLinear(linear.in_features, linear.out_features, linear.bias is not None)
    normalised.norm = norm
    module.set_submodule(head, normalised)
