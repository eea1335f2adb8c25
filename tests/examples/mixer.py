"""A small MLP-Mixer (Tolstikhin et al. 2021) with LayerNorm, for single-channel images.

Nothing in it comes from this project: `model.name: "tests.examples.mixer:mixer"` is all it takes.
"""

# B images, S patches, D channels

from typing import Any

import torch
from torch import Tensor, nn


class MixerBlock(nn.Module):
    """Mixes patches, then channels, each with a residual connection."""

    def __init__(self, num_patches: int, width: int) -> None:
        super().__init__()
        self.norm_patches, self.norm_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.patches = _mlp(num_patches, 2 * num_patches)
        self.channels = _mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, D) to (B, S, D)."""
        x = x + self.patches(self.norm_patches(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm_channels(x))


class Mixer(nn.Module):
    """Patches of 2x2 pixels, one block, the mean over patches, a linear head."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 16) -> None:
        super().__init__()
        channels, height, width_pixels = input_shape
        self.embed = nn.Conv2d(channels, width, 2, 2)
        self.block = MixerBlock((height // 2) * (width_pixels // 2), width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, channels, H, W) to scores (B, C)."""
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.block(tokens)).mean(1))


def _mlp(size: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))


def mixer(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The factory that a configuration names."""
    return Mixer(input_shape, num_classes)


def noisy(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Draws at random without a dropout module."""

    class Noisy(Mixer):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + 0.1 * torch.randn_like(images))

    return Noisy(input_shape, num_classes)


def coupled(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Normalises by the minibatch without a normalisation module."""

    class Coupled(Mixer):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images - images.mean(0, keepdim=True))

    return Coupled(input_shape, num_classes)


def counting(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Counts its passes in a buffer."""

    class Counting(Mixer):
        def __init__(self) -> None:
            super().__init__(input_shape, num_classes)
            self.register_buffer("passes", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            self.passes += 1
            return super().forward(images)

    return Counting()


def with_batch_norm(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Batch normalisation by the minibatch, as torch builds it."""
    channels = input_shape[0]
    return nn.Sequential(nn.BatchNorm2d(channels), Mixer(input_shape, num_classes))


def with_dropout(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Dropout in train mode."""
    return nn.Sequential(nn.Dropout(0.3), Mixer(input_shape, num_classes))


def too_few_classes(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """One class fewer than the data have."""
    return Mixer(input_shape, num_classes - 1)


def no_module(input_shape: tuple[int, ...], num_classes: int) -> object:
    """Returns no module."""
    return {"input_shape": input_shape}


NOT_CALLABLE = 3


def tuples(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Scores in a tuple, as recurrent layers return them."""

    class Tuples(Mixer):
        def forward(self, images: Tensor) -> Any:
            return (super().forward(images),)

    return Tuples(input_shape, num_classes)


def failing(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Layers that do not fit together."""
    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))


def unfinished(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A factory with a mistake of its own."""
    raise KeyError("width")


def attention(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A transformer's layer over the rows of an image, with a learnable temperature."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = input_shape[-1]
            self.layer = nn.TransformerEncoderLayer(
                width, 2, 16, dropout=0.0, activation="gelu", batch_first=True
            )
            self.head = nn.Linear(width, num_classes)
            self.temperature = nn.Parameter(torch.tensor(1.0))

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.head(self.layer(images[:, 0]).mean(1)) * self.temperature
            return scores

    return Attention()
