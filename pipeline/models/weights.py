"""Pretrained weights from a safetensors file."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline.errors import ConfigError, ModelError


def load_weights(module: nn.Module, path: str, may_lack: str | None = None) -> None:
    """Copy the tensors of a file into a module, by name, in place.

    The last linear layer keeps its random start if the file was made for another number of classes:
    a pretrained backbone rarely has the same classes.

    Args:
        module: Built.
        path: A safetensors file.
        may_lack: Tensors whose names begin so keep their random start if the file has none of them.

    Raises:
        ConfigError: If the file does not exist or is no safetensors file.
        ModelError: If a tensor is missing, left over, of another shape or type, or not finite.
    """
    stored = _read(path)
    expected = module.state_dict()
    for name in _head_names(module) & stored.keys():
        if stored[name].shape != expected[name].shape:
            stored[name] = expected[name]
    if may_lack and not any(name.startswith(may_lack) for name in stored):
        stored |= {name: t for name, t in expected.items() if name.startswith(may_lack)}
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            stored.setdefault(name, tensor)
        if name not in stored:
            raise ModelError(f"model.init {path} has no tensor {name!r}; is it of another network?")
        if stored[name].shape != tensor.shape:
            raise ModelError(
                f"model.init {path}: tensor {name!r} has shape {tuple(stored[name].shape)}, the "
                f"model needs {tuple(tensor.shape)}; use weights of this network"
                + _channels_hint(name, stored[name], tensor)
            )
        _check_values(path, name, stored[name], tensor)
    left_over = sorted(stored.keys() - expected.keys())
    if left_over:
        raise ModelError(
            f"model.init {path} holds {left_over[0]!r}, which the model has not; is it of another "
            "network?"
        )
    module.load_state_dict(stored)


def _check_values(path: str, name: str, stored: Tensor, expected: Tensor) -> None:
    if stored.is_floating_point() != expected.is_floating_point() or stored.is_complex():
        raise ModelError(
            f"model.init {path}: tensor {name!r} is of type {stored.dtype}, the model needs "
            f"{expected.dtype}; use weights of this network"
        )
    if not bool(torch.isfinite(stored.to(expected.dtype)).all()):
        raise ModelError(
            f"model.init {path}: tensor {name!r} holds NaN or infinite values; nothing could be "
            "trained from it: take weights of a training that did not diverge"
        )


def _channels_hint(name: str, stored: Tensor, expected: Tensor) -> str:
    if stored.dim() == 4 and stored.shape[1] == 3 and expected.shape[1] == 1:
        return " (it was made for colour images; repeat the grey channel three times in the data)"
    return ""


def _read(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise ConfigError(f"model.init {path} does not exist; it must name a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model.init {path} is no safetensors file ({error}); docs/own-models.md says how to "
            "convert torchvision's"
        ) from error


def _head_names(module: nn.Module) -> set[str]:
    linear = [name for name, child in module.named_modules() if isinstance(child, nn.Linear)]
    return {f"{linear[-1]}.weight", f"{linear[-1]}.bias"} if linear else set()


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return detached copies of all parameters and buffers, by name, on the CPU."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in module.state_dict().items()
    }


def set_tensors(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into the parameters and buffers of the same names, in place."""
    state = module.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name not in state or state[name].shape != tensor.shape:
                raise ModelError(
                    f"the recorded run has a tensor {name!r} of shape {tuple(tensor.shape)}, which "
                    "the model has not; the model was changed since: restore it, or train again"
                )
            state[name].copy_(tensor)
