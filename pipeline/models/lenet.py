"""LeNet-5 (61,706 parameters at 28x28)."""

from torch import nn

from pipeline.models.activations import ACTIVATIONS, POOLINGS, Activation, Pooling
from pipeline.models.cnn import require_image


def lenet(
    input_shape: tuple[int, ...], num_classes: int, activation: Activation, pooling: Pooling = "max"
) -> nn.Module:
    """Return conv 5x5-6 (padded), pool, conv 5x5-16, pool, fc 120, fc 84, fc C."""
    channels, height, width = require_image("lenet", input_shape, 12)

    def after(side: int) -> int:
        return (side // 2 - 4) // 2

    act, pool = ACTIVATIONS[activation], POOLINGS[pooling]
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        act(),
        pool(2),
        nn.Conv2d(6, 16, 5),
        act(),
        pool(2),
        nn.Flatten(),
        nn.Linear(16 * after(height) * after(width), 120),
        act(),
        nn.Linear(120, 84),
        act(),
        nn.Linear(84, num_classes),
    )
