"""Checks of a model before a long run starts: whether the recursion can follow it.

The recursion differentiates a fixed function of parameters and samples. Dropout and batch
normalisation are replaced by forms that can be followed (`train_mode.py`). Beyond these the model may
not draw at random, couple samples of a minibatch, or change between passes.
"""

# B samples, C classes

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from pipeline.config_yaml import one_line
from pipeline.errors import ModelError
from pipeline.models.train_mode import training_form

# Outputs of one sample alone and within a minibatch may differ by rounding, no more.
ZERO_TRIALS, ZERO_SHARE = 3, 1e-10
"""Random parameters that a gradient is taken at, and the share of the largest that counts as zero."""
RELATIVE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}


def check_model(module: nn.Module, inputs: Tensor, output_shape: tuple[int, ...] | None) -> None:
    """Run a few samples and refuse a model that the recursion cannot follow.

    Args:
        module: In eval mode.
        inputs: Some training samples (B, ...); a handful is enough.
        output_shape: Of one sample's output, (C,) or (T, C); None: any.

    Raises:
        ModelError: The message says what was expected and what to do.
    """
    _check_parameters(module)
    before = [buffer.clone() for buffer in module.buffers()]
    with torch.no_grad():
        try:
            outputs_BC, again_BC = module(inputs), module(inputs)
            _check_shape(outputs_BC, len(inputs), output_shape)
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


def check_training_form(
    module: nn.Module, active: frozenset[str], modes: Mapping[str, bool], inputs: Tensor
) -> None:
    """Refuse a model that training would see otherwise than `training_form` does.

    Args:
        module: In eval mode.
        active: Its parts that `training_form` replaces.
        modes: For each of its parts whether it was handed over in train mode.
        inputs: Some training samples (B, ...), at least two.

    Raises:
        ModelError: If a part that was handed over in train mode still acts otherwise than in eval mode.
    """
    if not any(modes.values()):
        return
    followed = training_form(module, active)
    acting = deepcopy(followed)
    for name, part in acting.named_modules():
        part.training = modes.get(name, False)
    with torch.no_grad():
        outputs_BC, expected_BC = acting(inputs), followed(inputs)
    allowed = RELATIVE_TOLERANCE.get(outputs_BC.dtype, 1e-3) * float(expected_BC.abs().max())
    if float((outputs_BC - expected_BC).abs().max()) > allowed:
        raise ModelError(
            "in train mode the model draws at random or couples samples by other means than nn.Dropout "
            "and nn.BatchNorm (functional dropout, the dropout of nn.MultiheadAttention), which cannot "
            "be replayed; take modules for it, set its share to 0, or return the model in eval mode "
            "(`module.eval()`)"
        )


def refuse_zero_gradients(module: nn.Module, inputs: Tensor) -> None:
    """Refuse parameters whose gradient is zero for every w, which Adam would move by rounding noise.

    Such are a bias before a normalisation that subtracts the mean, and the key bias of attention:
    what reaches their moments is rounding alone, and Adam divides it by its own size.

    Args:
        module: The trained part.
        inputs: Some samples (B, ...).

    Raises:
        ModelError: The message names the tensors.
    """
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    largest = dict.fromkeys(names, 0.0)
    for trial in range(ZERO_TRIALS):
        for name, norm in _gradient_norms(module, inputs, trial).items():
            largest[name] = max(largest[name], norm)
    bound = ZERO_SHARE * max(largest.values())
    zero = [name for name, norm in largest.items() if norm <= bound]
    if zero:
        raise ModelError(
            f"the gradient of {', '.join(zero)} is zero whatever the parameters are, and Adam divides "
            "its rounding errors by their own size; freeze it (requires_grad False), leave it out of "
            "the model (bias=False), or train with sgd"
        )


def _gradient_norms(module: nn.Module, inputs: Tensor, seed: int) -> dict[str, float]:
    """Return the norm of each tensor's gradient in float64, at parameters moved at random.

    Moved, because a gradient may be zero at the start alone, behind a scale that starts at zero.
    """
    copy = deepcopy(module).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise.to(parameter.device), alpha=0.1)
    outputs_BC = copy(inputs.double() if inputs.is_floating_point() else inputs)
    weights_BC = torch.randn(outputs_BC.shape, generator=generator, dtype=torch.float64)
    # A curved function of the scores: a sum of them would not see a shift of all classes.
    (torch.tanh(outputs_BC) * weights_BC.to(outputs_BC.device)).sum().backward()
    return {
        name: 0.0 if p.grad is None else float(p.grad.norm())
        for name, p in copy.named_parameters()
        if p.requires_grad
    }


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


def _check_shape(outputs: object, rows: int, expected: tuple[int, ...] | None) -> None:
    whole = (rows, *(expected or ("...",)))
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"the model returns a {type(outputs).__name__}; expected a tensor of scores {whole}"
        )
    found = tuple(outputs.shape)
    if expected is None:
        fits = len(found) > 1 and found[0] == rows
    else:
        # A vocabulary may hold more tokens than the data.
        fits = found == whole or (
            len(expected) == 2 and found[:-1] == whole[:-1] and found[-1] > expected[-1]
        )
    if not fits:
        each = "one score per class of the data, or one per number of a target"
        each = each if expected is None or len(expected) == 1 else "a score per position and class"
        raise ModelError(
            f"the model maps {rows} samples to shape {found}; expected {whole}, {each}"
        )
