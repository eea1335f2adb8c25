"""What a network by name weighs and costs, counted from the shape of its inputs. Needs no torch.

Operations are two for each multiply-add of convolutions and linear layers, one sample, forward: what
torch's own counter gives (tests/pipeline/test_counts.py compares them).
"""

from dataclasses import dataclass
from math import prod

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class NetworkCounts:
    """A network in figures.

    Attributes:
        num_parameters: P, of the trained part.
        forward_flops: Operations of one sample's forward pass.
        widest: Values of the widest activation of one sample.
    """

    num_parameters: int
    forward_flops: int
    widest: int


class _Walk:
    """Counts along a chain of layers."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.num_parameters = self.flops = self.head_parameters = self.head_flops = 0
        self.widest = 1

    def _put(self, shape: tuple[int, ...], num_parameters: int, flops: int) -> None:
        if min(shape) < 1:
            raise ConfigError(
                f"the inputs are too small for this model: nothing of {shape} is left"
            )
        self.shape = shape
        self.num_parameters += num_parameters
        self.flops += flops
        self.widest = max(self.widest, prod(shape))

    def convolution(
        self, channels: int, kernel: int, stride: int = 1, padding: int = 0, *, bias: bool = True
    ) -> None:
        before, height, width = self.shape
        sides = [(side + 2 * padding - kernel) // stride + 1 for side in (height, width)]
        weights = channels * before * kernel * kernel
        shape = (channels, *sides)
        self._put(shape, weights + (channels if bias else 0), 2 * weights * prod(sides))

    def pooling(self, kernel: int, stride: int, padding: int = 0) -> None:
        channels, *before = self.shape
        sides = [(side + 2 * padding - kernel) // stride + 1 for side in before]
        self._put((channels, *sides), 0, 0)

    def normalisation(self, *, learns_statistics: bool) -> None:
        self.num_parameters += (4 if learns_statistics else 2) * self.shape[0]

    def linear(self, width: int) -> None:
        weights = prod(self.shape) * width
        self.head_parameters, self.head_flops = weights + width, 2 * weights
        self._put((width,), weights + width, 2 * weights)


def counts_of(config: ModelConfig, inputs: tuple[int, ...], num_outputs: int) -> NetworkCounts:
    """Count a network by name.

    Args:
        config: Names the network and its trained part.
        inputs: Shape of one input.
        num_outputs: Classes, or numbers that a sample has.

    Raises:
        ConfigError: If the network does not take such inputs, or counts need the model itself.
    """
    if config.name not in _NETWORKS:
        known = ", ".join(_NETWORKS)
        raise ConfigError(f"model.name {config.name!r} is none of those with known counts: {known}")
    if config.name not in ("logistic", "mlp") and len(inputs) != 3:
        raise ConfigError(
            f"model.name {config.name} takes pictures (channels, height, width), found inputs of shape "
            f"{'x'.join(map(str, inputs))}; give --input-shape 3x32x32 or the like"
        )
    walk = _Walk(inputs)
    _NETWORKS[config.name](walk, config, num_outputs)
    if config.trainable == "all":
        return NetworkCounts(walk.num_parameters, walk.flops, walk.widest)
    if config.trainable != "head":
        raise ConfigError(
            f"model.trainable is {config.trainable!r}: without data only all and head are planned"
        )
    return NetworkCounts(walk.head_parameters, walk.head_flops, num_outputs)


def _logistic(walk: _Walk, config: ModelConfig, num_outputs: int) -> None:
    walk.linear(num_outputs)


def _mlp(walk: _Walk, config: ModelConfig, num_outputs: int) -> None:
    for width in (*config.hidden, num_outputs):
        walk.linear(width)


def _cnn(walk: _Walk, config: ModelConfig, num_outputs: int) -> None:
    padding = 2 if min(walk.shape[1:]) < 16 else 0
    for channels in (10, 20):
        walk.convolution(channels, 5, padding=padding)
        walk.pooling(2, 2)
    for width in (50, num_outputs):
        walk.linear(width)


def _lenet(walk: _Walk, config: ModelConfig, num_outputs: int) -> None:
    for channels, padding in ((6, 2), (16, 0)):
        walk.convolution(channels, 5, padding=padding)
        walk.pooling(2, 2)
    for width in (120, 84, num_outputs):
        walk.linear(width)


def _resnet18(walk: _Walk, config: ModelConfig, num_outputs: int) -> None:
    learns = config.normalization == "batch"

    def convolution(channels: int, kernel: int, stride: int) -> None:
        walk.convolution(channels, kernel, stride, kernel // 2, bias=False)
        walk.normalisation(learns_statistics=learns)

    if config.stem == "small":
        convolution(64, 3, 1)
    else:
        convolution(64, 7, 2)
        walk.pooling(3, 2, 1)
    for channels in (64, 128, 256, 512):
        for stride in (1 if channels == 64 else 2, 1):
            before = walk.shape
            convolution(channels, 3, stride)
            convolution(channels, 3, 1)
            if before[0] != channels or stride > 1:
                walk.shape = before
                convolution(channels, 1, stride)
    walk.shape = (512,)
    for width in (*config.head_hidden, num_outputs):
        walk.linear(width)


_NETWORKS = {
    "logistic": _logistic,
    "mlp": _mlp,
    "cnn": _cnn,
    "lenet": _lenet,
    "resnet18": _resnet18,
}
