"""What a network does in training alone: dropout drawn by key, and statistics of the minibatch.

torch draws dropout by the place of a sample in the minibatch, so that removing one sample gives all
others another network. Here a sample's draws are a function of its key, and its key one of the run's
seed, the step and the sample's id. Draws are SplitMix64 (Steele, Lea and Flood 2014) of the key and
the place of the value, in integers: the same bits on every device.

`batch normalisation` couples the samples of a minibatch. `MinibatchNorm` is torch's in train mode
without its side effect: running statistics are followed by the optimizer's step instead.
"""

# B minibatch rows, S running statistics

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from itertools import chain
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from pipeline.errors import ModelError

FOLLOWED_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
FOLLOWED_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_GAMMA, _MIX1, _MIX2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_BITS = 53


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros: torch's shift fills with the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mixed(values: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of each value, int64."""
    values = (values ^ _shifted(values, 30)) * _MIX1
    values = (values ^ _shifted(values, 27)) * _MIX2
    return values ^ _shifted(values, 31)


def sample_keys(seed: int, step: int, sample_ids: Tensor) -> Tensor:
    """Return the keys of samples in a step (B,), int64, from which their dropout is drawn."""
    key = mixed(torch.tensor(seed) + _GAMMA)
    key = mixed(key + (step + 1) * torch.tensor(_GAMMA))
    return mixed(key.to(sample_ids.device) + (sample_ids + 1) * _GAMMA)


class KeyedDropout(nn.Module):
    """Dropout whose draws are a function of each sample's key; without keys nothing is dropped.

    Attributes:
        keys: (B,) int64, or empty. A buffer, so that `functional_call` can pass it.
    """

    keys: Tensor

    def __init__(self, p: float, number: int, by_channel: bool) -> None:
        """Make it.

        Args:
            p: Share of the values that become zero.
            number: Of this layer in its network: each layer draws for itself.
            by_channel: Drop whole channels.
        """
        super().__init__()
        self.p, self.number, self.by_channel = p, number, by_channel
        self.register_buffer("keys", no_keys(), persistent=False)

    def scale(self, like: Tensor) -> Tensor | None:
        """Return what each value is multiplied by, 0 or 1 / (1 - p); None where nothing is dropped."""
        if not self.keys.numel():
            return None
        shape = tuple(like.shape[1:])
        if self.by_channel:
            shape = (*shape[:1], *[1] * (len(shape) - 1))
        places = torch.arange(1, prod(shape) + 1, device=like.device).view(shape)
        own = self.keys + torch.tensor(self.number) * _MIX1
        keys = mixed(own).view(-1, *[1] * len(shape))
        draws = _shifted(mixed(keys + places * _GAMMA), 64 - _BITS)
        kept: Tensor = draws >= round(self.p * 2**_BITS)
        return kept.to(like.dtype) / (1 - self.p)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs (B, ...), some values zero and the others scaled up."""
        scale = self.scale(inputs)
        return inputs if scale is None else inputs * scale


class MinibatchNorm(nn.Module):
    """Batch normalisation by the minibatch's own mean and variance.

    Attributes:
        present: 1 for samples that count in mean and variance, 0 for those left out (B,); empty: all
            count. A buffer, so that `functional_call` can pass it.
        seen: Mean and unbiased variance of the last pass, as torch adds them to its running ones.
    """

    running_mean: Tensor
    running_var: Tensor
    present: Tensor
    seen: tuple[Tensor, Tensor]

    def __init__(self, norm: _BatchNorm) -> None:
        """Take parameters and statistics of `norm`."""
        super().__init__()
        assert norm.momentum is not None, "others are refused"
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("present", torch.empty(0), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs (B, C, ...), each channel centred and scaled over the minibatch."""
        others = [axis for axis in range(inputs.dim()) if axis != 1]
        present = torch.ones(len(inputs)).to(inputs)
        if self.present.numel():
            present = self.present.to(inputs)
        count = present.sum() * prod(inputs.shape[2:])
        shares = present.view(-1, *[1] * (inputs.dim() - 1)) / count
        mean = (inputs * shares).sum(others, keepdim=True)
        centred = inputs - mean
        variance = (centred.square() * shares).sum(others, keepdim=True)
        # One value alone has no variance; torch would divide by zero here.
        self.seen = mean.flatten(), variance.flatten() * (count / (count - 1).clamp(min=1))
        # rsqrt has no forward derivative of its own in torch 2.15, and its substitute is slow.
        outputs = centred / torch.sqrt(variance + self.eps)
        if self.weight is None:
            return outputs
        shape = [1, -1, *[1] * (inputs.dim() - 2)]
        return outputs * self.weight.view(shape) + self.bias.view(shape)


def active_parts(module: nn.Module) -> frozenset[str]:
    """Return the names of the parts that draw or couple samples, as the module was handed over."""
    return frozenset(
        name
        for name, part in module.named_modules()
        if part.training and (isinstance(part, _BatchNorm) or _drops(part))
    )


def _drops(part: nn.Module) -> bool:
    return isinstance(part, _DropoutNd) and part.p > 0


def modes(module: nn.Module) -> dict[str, bool]:
    """Return for each part whether it is in train mode."""
    return {name: part.training for name, part in module.named_modules()}


def refuse_unfollowed(module: nn.Module) -> None:
    """Refuse compiled parts, and active ones of kinds that cannot be replaced.

    Raises:
        ModelError: The message names the part and the remedy.
    """
    active = active_parts(module)
    for name, part in module.named_modules():
        kind = type(part).__name__
        if isinstance(part, torch.jit.ScriptModule):
            where = f"{name} is" if name else "the model is"
            raise ModelError(
                f"{where} compiled by torch.jit, which the recursion cannot differentiate twice nor "
                "copy; return the nn.Module that it was compiled from"
            )
        if isinstance(part, _BatchNorm) and part.running_mean is None:
            raise ModelError(
                f"{name} ({kind}) keeps no running statistics and so couples samples even when the "
                "model is used; track them, or use nn.GroupNorm or nn.LayerNorm"
            )
        if name not in active:
            continue
        if isinstance(part, _BatchNorm):
            if type(part) not in FOLLOWED_NORMS or not part.momentum:
                raise ModelError(
                    f"{name} ({kind}) normalises by the minibatch in a way that cannot be followed; "
                    "take nn.BatchNorm1d, 2d or 3d with a momentum, or freeze "
                    "it (`module.eval()`)"
                )
        elif type(part) not in FOLLOWED_DROPOUT or getattr(part, "p", 0) >= 1:
            raise ModelError(
                f"{name} ({kind}) draws at random in a way that cannot be replayed; take nn.Dropout, "
                "set p to 0, or freeze it (`module.eval()`)"
            )


def training_form(module: nn.Module, active: Iterable[str]) -> nn.Module:
    """Return the network as training sees it: a copy with the active parts replaced.

    It shares all tensors with `module`. Without active parts it is `module` itself.

    Args:
        module: In eval mode.
        active: From `active_parts`, before it was put into eval mode.
    """
    here = [name for name, _ in module.named_modules() if name in set(active)]
    if not here:
        return module
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    copy = deepcopy(module, shared)
    for number, name in enumerate(here):
        copy.set_submodule(name, _replacement(copy.get_submodule(name), number))
    return copy.eval()


def _replacement(part: nn.Module, number: int) -> nn.Module:
    if isinstance(part, _BatchNorm):
        return MinibatchNorm(part)
    assert isinstance(part, _DropoutNd)
    return KeyedDropout(part.p, number, by_channel=type(part) is not nn.Dropout)


def minibatch_norms(module: nn.Module) -> dict[str, MinibatchNorm]:
    """Return the layers that normalise by the minibatch, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, MinibatchNorm)}


def keyed_dropouts(module: nn.Module) -> dict[str, KeyedDropout]:
    """Return the layers that drop by the samples' keys, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, KeyedDropout)}


def set_keys(layers: Iterable[KeyedDropout], keys: Tensor | None) -> None:
    """Give dropout layers the keys of the samples that are passed next; None: they drop nothing."""
    for layer in layers:
        layer.keys = no_keys() if keys is None else keys


def no_keys() -> Tensor:
    """Return the keys (0,) with which nothing is dropped."""
    return torch.empty(0, dtype=torch.int64)
