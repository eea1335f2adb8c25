"""Checks of a model before a long run starts: whether the recursion can follow it.

The recursion differentiates a fixed function of parameters and one sample. So the model may
not draw at random, couple samples of a minibatch, or change between passes.
"""

# B samples, C classes

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pipeline.config_yaml import one_line
from pipeline.errors import ModelError

# Outputs of one sample alone and within a minibatch may differ by rounding, no more.
RELATIVE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}


def refuse_coupling(module: nn.Module) -> None:
    """Refuse parts that, as the module was handed over, are compiled, draw or couple samples.

    Raises:
        ModelError: The message names the part and the remedy.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            where = f"{name} is" if name else "the model is"
            raise ModelError(
                f"{where} compiled by torch.jit, which the recursion cannot differentiate twice nor "
                "copy; return the nn.Module that it was compiled from"
            )
        kind = type(part).__name__
        if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
            raise ModelError(
                f"{name} ({kind}) takes its statistics from the minibatch and so couples samples; "
                "set its running statistics and return the module in eval mode (`module.eval()`), "
                "which freezes them, or use nn.GroupNorm or nn.LayerNorm"
            )
        if isinstance(part, _DropoutNd) and part.training and part.p > 0:
            raise ModelError(
                f"{name} ({kind}, p={part.p}) draws a new network at each pass, so the run could "
                "not be replayed; set p to 0, or return the module in eval mode (`module.eval()`)"
            )


def check_model(module: nn.Module, inputs: Tensor, num_classes: int) -> None:
    """Run a few samples and refuse a model that the recursion cannot follow.

    Args:
        module: In eval mode.
        inputs: Some training samples (B, ...); a handful is enough.
        num_classes: C.

    Raises:
        ModelError: The message says what was expected and what to do.
    """
    _check_parameters(module)
    before = [buffer.clone() for buffer in module.buffers()]
    with torch.no_grad():
        try:
            outputs_BC, again_BC = module(inputs), module(inputs)
            _check_shape(outputs_BC, (len(inputs), num_classes))
            singly_BC = torch.cat([module(row.unsqueeze(0)) for row in inputs])
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"the model fails on samples of shape {tuple(inputs.shape[1:])}: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
    if not torch.equal(outputs_BC, again_BC):
        raise ModelError(
            "the model gives another output when the same samples are passed again; remove what "
            "draws at random (its own noise, functional dropout) or keeps a state"
        )
    _check_buffers(module, before)
    allowed = RELATIVE_TOLERANCE.get(outputs_BC.dtype, 1e-3) * float(outputs_BC.abs().max())
    difference = float((outputs_BC - singly_BC).abs().max())
    if difference > allowed:
        raise ModelError(
            f"a sample's output depends on the others of its minibatch (it moves by {difference:.2g} "
            "when passed alone); remove what couples samples, such as statistics over the minibatch"
        )


def _check_parameters(module: nn.Module) -> None:
    trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    if not trainable:
        raise ModelError("the model has no trainable parameters; at least one is needed")
    for name, parameter in trainable:
        if not parameter.dtype.is_floating_point:
            raise ModelError(
                f"parameter {name!r} has type {parameter.dtype}; parameters must be floating point"
            )


def _check_buffers(module: nn.Module, before: list[Tensor]) -> None:
    for (name, buffer), kept in zip(module.named_buffers(), before, strict=True):
        if not torch.equal(buffer, kept):
            raise ModelError(
                f"buffer {name!r} changes when samples are passed; freeze it in eval mode"
            )


def _check_shape(outputs: object, expected: tuple[int, int]) -> None:
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"the model returns a {type(outputs).__name__}; expected a tensor of scores {expected}"
        )
    if tuple(outputs.shape) != expected:
        raise ModelError(
            f"the model maps {expected[0]} samples to shape {tuple(outputs.shape)}; expected "
            f"{expected}, one score per class of the data"
        )
