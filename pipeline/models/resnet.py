"""ResNet-18 (He et al. 2016) as a chain of torchvision's stages.

The chain has torchvision's names (`conv1.weight` ... `fc.bias`), so a file of ImageNet weights
fits it, and it can be cut before any stage: what lies before the cut is then a frozen backbone.

Stems: `imagenet` is the 7x7 convolution of stride 2 and the pooling; `small` is a 3x3 convolution of
stride 1 without pooling, for small images, and costs about 15 times as much per sample.

Normalisation: `frozen-batch` fixes the statistics before training and keeps them in training, in the
recursion and in retraining, so that samples are not coupled; `group` (32 groups) has no statistics.

The last scale of every block starts at zero (Goyal et al. 2017): a fresh network then starts as a
shallow one and learns steadily. Started at one, two epochs on digits were so rough that no linear
estimate of leaving a user out was accurate.
"""

# B images, D channels, H and W pixels

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from pipeline.models.activations import ACTIVATIONS
from pipeline.models.networks import require_image

if TYPE_CHECKING:
    from pipeline.config import Activation, Normalization, Stem

GROUPS = 32
# Images that the statistics are taken over, and how many are passed together.
CALIBRATION_IMAGES, CALIBRATION_BATCH = 512, 64


def resnet18(
    input_shape: tuple[int, ...],
    num_classes: int,
    activation: Activation,
    normalization: Normalization,
    stem: Stem,
    head_hidden: tuple[int, ...] = (),
) -> nn.Sequential:
    """Return ResNet-18 for images of any number of channels; 11.2 million parameters.

    With `head_hidden`, linear layers of these widths, each with the activation behind it, stand as
    `hidden` between the 512 features and `fc`.

    Raises:
        ModelError: If the inputs are not images of at least 8x8 pixels.
    """
    channels, _, _ = require_image("resnet18", input_shape, 8)
    norm = partial(nn.GroupNorm, GROUPS) if normalization == "group" else nn.BatchNorm2d
    network = ResNet(
        BasicBlock, [2, 2, 2, 2], num_classes, zero_init_residual=True, norm_layer=norm
    )
    if stem == "small":
        network.conv1 = _stem_convolution(nn.Conv2d(channels, 64, 3, 1, 1, bias=False))
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = _stem_convolution(nn.Conv2d(channels, 64, 7, 2, 3, bias=False))
    chain = as_chain(network)
    if head_hidden:
        _insert_hidden(chain, head_hidden, num_classes)
    if activation != "relu":
        _replace_relus(chain, activation)
    return chain.train(normalization == "batch")


def as_chain(network: ResNet) -> nn.Sequential:
    """Return the stages of a torchvision ResNet as an `nn.Sequential` with the same names."""
    stages = OrderedDict(network.named_children())
    head = stages.pop("fc")
    return nn.Sequential(OrderedDict(**stages, flatten=nn.Flatten(), fc=head))


def _stem_convolution(convolution: nn.Conv2d) -> nn.Conv2d:
    # As torchvision starts every convolution of a ResNet.
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _insert_hidden(chain: nn.Sequential, widths: tuple[int, ...], num_classes: int) -> None:
    head = chain.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    *inputs, last = [head.in_features, *widths]
    layers: list[nn.Module] = []
    for width, following in zip(inputs, widths, strict=True):
        layers += [nn.Linear(width, following), nn.ReLU()]
    del chain.fc
    chain.add_module("hidden", nn.Sequential(*layers))
    chain.add_module("fc", nn.Linear(last, num_classes))


def _replace_relus(module: nn.Module, activation: Activation) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, ACTIVATIONS[activation]())
        else:
            _replace_relus(child, activation)


def calibrate_statistics(module: nn.Module, inputs: Tensor) -> None:
    """Set the statistics of every `nn.BatchNorm2d` to averages over the first inputs, in place.

    At mean 0 and variance 1, where torch starts them, a fresh ResNet's activations would grow from
    block to block. Deterministic; the module is left in eval mode.

    Args:
        module: With `frozen-batch` normalisation; nothing happens without.
        inputs: Training images (n, D, H, W); at most `CALIBRATION_IMAGES` are used.
    """
    norms = [child for child in module.modules() if isinstance(child, nn.BatchNorm2d)]
    module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for start in range(0, min(len(inputs), CALIBRATION_IMAGES), CALIBRATION_BATCH):
            images = inputs[start : min(start + CALIBRATION_BATCH, CALIBRATION_IMAGES)]
            if norms and len(images) > 1:
                module(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
