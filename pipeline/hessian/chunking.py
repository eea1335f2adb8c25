"""The number of tangents propagated together: large enough for throughput, small enough for cache."""

# K tangents, B minibatch rows, P parameters

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipeline.hessian.hvp import Network
from pipeline.sizes import MOST_ROWS, MOST_TANGENTS, fitting_tangents


def tangents_per_chunk(
    network: Network, one_input: Tensor, batch_size: int, limit: int = MOST_TANGENTS
) -> int:
    """Return K, a power of two where `limit` allows.

    Args:
        network: The model.
        one_input: A single sample (1, ...), on the device of the run.
        batch_size: |B|.
        limit: Most units that may share a chunk.
    """
    explicit = network.form == "explicit"
    fitting = fitting_tangents(
        0 if explicit else widest_activation(network.module, one_input),
        batch_size,
        network.layout.num_parameters,
        one_input.element_size(),
        on_gpu=one_input.is_cuda,
        most=MOST_ROWS if explicit else MOST_TANGENTS,
    )
    return max(2, min(limit, fitting))


def _num_values(output: object) -> int:
    """Return the values of a tensor, or of all tensors of a recurrent layer's tuple."""
    leaves = tree_leaves(output)
    return sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))


def widest_activation(module: nn.Module, one_input: Tensor) -> int:
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
