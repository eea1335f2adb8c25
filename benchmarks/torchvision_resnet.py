"""torchvision's ResNet of basic blocks, for machines with torch alone.

`pipeline.models.resnet` and the R-operator know torchvision's two classes by name. Where torchvision
is not installed, `install` puts these in their place: same names, shapes and forward pass.
"""

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        norm_layer: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(inplanes, planes, stride), norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _conv3x3(planes, planes, 1), norm_layer(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(body(x) + shortcut(x))."""
        body = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(body + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stem, four stages of basic blocks, average, linear layer."""

    def __init__(
        self,
        block: type[BasicBlock],
        layers: list[int],
        num_classes: int,
        zero_init_residual: bool,
        norm_layer: Norm,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1, self.relu = norm_layer(64), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for stage, (num, outputs) in enumerate(zip(layers, (64, 128, 256, 512), strict=True), 1):
            blocks = []
            for place in range(num):
                stride = 2 if stage > 1 and place == 0 else 1
                down = None
                if stride != 1 or inputs != outputs:
                    projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                    down = nn.Sequential(projection, norm_layer(outputs))
                blocks.append(block(inputs, outputs, stride, down, norm_layer=norm_layer))
                inputs = outputs
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, block) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores (B, C)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(self.avgpool(x).flatten(1))


def install() -> bool:
    """Stand in for torchvision if it is missing; return whether that was needed."""
    try:
        if importlib.util.find_spec("torchvision") is not None:
            return False
    except ImportError:
        pass
    modules = [
        ModuleType(name)
        for name in ("torchvision", "torchvision.models", "torchvision.models.resnet")
    ]
    modules[2].BasicBlock, modules[2].ResNet = BasicBlock, ResNet
    sys.modules.update({module.__name__: module for module in modules})
    return True
