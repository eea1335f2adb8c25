"""What a frozen backbone makes of every sample, computed once.

With `model.trainable: head`, the recursion runs on the head alone, whose Hessian products are matrix
products on these features.
"""

# n samples, B minibatch rows

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.data import Dataset
from pipeline.errors import ModelError
from pipeline.models.trainable import scaled

# Samples passed through the backbone together.
BATCH = 256


def featurise(data: Dataset, backbone: Callable[[Tensor], Tensor], norm: float | None) -> Dataset:
    """Return the data set with features for inputs.

    Args:
        data: With the inputs that the whole model takes.
        backbone: Maps inputs (B, ...) to features (B, ...).
        norm: If given, each sample's features are scaled to this L2 norm.

    Raises:
        ModelError: If the backbone gives other features when the same samples are passed again, or
            values that are not finite.
    """
    with torch.no_grad():
        first = data.inputs[:BATCH]
        if not torch.equal(backbone(first), backbone(first)):
            raise ModelError(
                "the frozen part of the model changes between passes: the same samples give other "
                "features; remove what draws at random or keeps a state"
            )
        inputs = _features(data.inputs, backbone, norm)
        test_inputs = _features(data.test_inputs, backbone, norm)
    if not bool(torch.isfinite(inputs).all()):
        raise ModelError(
            "the frozen part of the model gives features that are not finite; check model.init"
        )
    return replace(data, inputs=inputs, test_inputs=test_inputs)


def _features(inputs: Tensor, backbone: Callable[[Tensor], Tensor], norm: float | None) -> Tensor:
    features = torch.cat([backbone(part) for part in inputs.split(BATCH)])
    return features if norm is None else scaled(features.flatten(1), norm)
