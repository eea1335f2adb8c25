"""The number of tangents propagated together: large enough for throughput, small enough for cache."""

# K tangents, B minibatch rows, P parameters

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipeline.hessian.hvp import Network

# A chunk's tangents, of parameters and of the widest activation, should stay in a core's cache.
CACHE_BYTES = 2 << 20
# On a GPU a chunk should fill the device.
GPU_BYTES = 1 << 30
MOST_TANGENTS = 256
# Of the explicit form, which has no activations.
MOST_ROWS = 4096
FEWEST_TANGENTS = 8


def tangents_per_chunk(network: Network, one_input: Tensor, batch_size: int, limit: int) -> int:
    """Return K, a power of two where `limit` allows.

    Args:
        network: The model.
        one_input: A single sample (1, ...), on the device of the run.
        batch_size: |B|.
        limit: Most units that may share a chunk.
    """
    explicit = network.form == "explicit"
    widest = 0 if explicit else _widest_activation(network.module, one_input)
    # Both the tangents of the widest activation and the tangents themselves should fit.
    largest = max(1, widest * batch_size, network.layout.num_parameters)
    most = MOST_ROWS if explicit else MOST_TANGENTS
    per_tangent = largest * one_input.element_size()
    budget = GPU_BYTES if one_input.is_cuda else CACHE_BYTES
    fitting = max(FEWEST_TANGENTS, min(most, budget // per_tangent))
    return int(max(2, min(limit, 1 << (fitting.bit_length() - 1))))


def _num_values(output: object) -> int:
    """Return the values of a tensor, or of all tensors of a recurrent layer's tuple."""
    leaves = tree_leaves(output)
    return sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))


def _widest_activation(module: nn.Module, one_input: Tensor) -> int:
    """Return the largest number of values that a leaf module gives for one sample."""
    sizes = [1]
    hooks = [
        child.register_forward_hook(lambda _m, _i, output: sizes.append(_num_values(output)))
        for child in module.modules()
        if not list(child.children()) and not isinstance(child, nn.Flatten)
    ]
    with torch.no_grad():
        module(one_input)
    for hook in hooks:
        hook.remove()
    return max(sizes)
