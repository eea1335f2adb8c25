"""The small convolutional network of the paper's MNIST experiments (21,840 parameters at 28x28)."""

from torch import nn

from pipeline.errors import ModelError
from pipeline.models.activations import ACTIVATIONS, POOLINGS, Activation, Pooling


def require_image(name: str, input_shape: tuple[int, ...], smallest: int) -> tuple[int, int, int]:
    """Return (channels, height, width).

    Raises:
        ModelError: If the inputs are not images of at least `smallest` pixels a side.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ModelError(
            f"model.name {name} needs images (channels, height, width) of at least {smallest}x"
            f"{smallest} pixels, found inputs of shape {input_shape}; choose mlp for plain features"
        )
    channels, height, width = input_shape
    return channels, height, width


def cnn(
    input_shape: tuple[int, ...], num_classes: int, activation: Activation, pooling: Pooling = "max"
) -> nn.Module:
    """Return conv 5x5-10, pool, conv 5x5-20, pool, fc 50, fc C.

    Images smaller than 16 pixels are padded by 2 in both convolutions, so that something is left
    to pool.
    """
    channels, height, width = require_image("cnn", input_shape, 4)
    padding = 2 if min(height, width) < 16 else 0

    def after(side: int) -> int:
        for _ in range(2):
            side = (side + 2 * padding - 4) // 2
        return side

    act, pool = ACTIVATIONS[activation], POOLINGS[pooling]
    return nn.Sequential(
        nn.Conv2d(channels, 10, 5, padding=padding),
        pool(2),
        act(),
        nn.Conv2d(10, 20, 5, padding=padding),
        pool(2),
        act(),
        nn.Flatten(),
        nn.Linear(20 * after(height) * after(width), 50),
        act(),
        nn.Linear(50, num_classes),
    )
