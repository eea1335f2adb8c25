"""ResNet-18: torchvision's network by another name, its statistics fixed, its taps counted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18
from torchvision.models.resnet import BasicBlock, ResNet

from pipeline.config import Form, ModelConfig
from pipeline.errors import ModelError
from pipeline.hessian.hvp import Network
from pipeline.hessian.roperator import Pairs
from pipeline.hessian.roperator.convolution import used_taps
from pipeline.models.losses import CrossEntropy
from pipeline.models.minibatch import Minibatch
from pipeline.models.parameters import flat_parameters
from pipeline.models.registry import Shape, build
from pipeline.models.resnet import calibrate_statistics, resnet18
from tests.oracles import relative_error

COLOUR = (3, 32, 32)


def test_it_is_torchvisions_network_with_its_names() -> None:
    ours = resnet18(COLOUR, 1000, "relu", "frozen-batch", "imagenet").eval()
    theirs = torchvision_resnet18().eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, *COLOUR)
    torch.testing.assert_close(ours(images), theirs(images))


def test_layers_between_features_and_classes_take_a_file_without_them(tmp_path: Path) -> None:
    theirs = torchvision_resnet18()
    save_file(theirs.state_dict(), tmp_path / "imagenet.safetensors")
    config = {"name": "resnet18", "head_hidden": (256, 32), "activation": "tanh"}
    config["init"] = str(tmp_path / "imagenet.safetensors")
    module = build(ModelConfig.model_validate(config), Shape(COLOUR, 29), 1)
    names = ["hidden.0.weight", "hidden.0.bias", "hidden.2.weight", "hidden.2.bias"]
    assert list(module.state_dict())[-6:] == [*names, "fc.weight", "fc.bias"]
    assert [tuple(module.get_parameter(name).shape) for name in names[::2]] == [
        (256, 512),
        (32, 256),
    ]
    assert torch.equal(module.get_parameter("conv1.weight"), theirs.conv1.weight)
    assert isinstance(module.get_submodule("hidden.1"), nn.Tanh)
    # A file of such a network must hold all of it.
    stored = module.state_dict()
    del stored["hidden.2.bias"]
    save_file(stored, tmp_path / "imagenet.safetensors")
    with pytest.raises(ModelError, match=r"has no tensor 'hidden\.2\.bias'"):
        build(ModelConfig.model_validate(config), Shape(COLOUR, 29), 1)


def test_hessian_products_of_a_deeper_head_agree_with_double_backward() -> None:
    config = ModelConfig.model_validate(
        {"name": "resnet18", "head_hidden": (8,), "activation": "silu"}
    )
    module = build(config, Shape(COLOUR, 3), 1).double()
    batch = Minibatch(torch.randn(2, *COLOUR, dtype=torch.float64), torch.tensor([0, 2]))
    w_P = flat_parameters(module)
    tangents_KP = torch.randn(2, len(w_P), dtype=torch.float64)
    products = []
    forms: tuple[Form, Form] = ("r-operator", "reverse")
    for form in forms:
        network = Network.of(module, CrossEntropy(), form)
        assert network.form == form
        products.append(network.linearize(w_P, batch).hessian_products(tangents_KP, None))
    assert relative_error(*products) < 1e-9


SIZES = {
    ("imagenet", 3): 11_181_642,
    ("imagenet", 1): 11_175_370,
    ("small", 3): 11_173_962,
}


@pytest.mark.parametrize(("stem", "channels"), SIZES)
def test_it_has_as_many_parameters_as_published(stem: str, channels: int) -> None:
    config = ModelConfig.model_validate({"name": "resnet18", "stem": stem})
    module = build(config, Shape((channels, 32, 32), 10), 1)
    assert flat_parameters(module).numel() == SIZES[stem, channels]


@pytest.mark.parametrize("activation", ["tanh", "silu", "gelu"])
def test_every_activation_replaces_every_relu(activation: str) -> None:
    config = ModelConfig.model_validate({"name": "resnet18", "activation": activation})
    module = build(config, Shape(COLOUR, 10), 1)
    assert not any(isinstance(part, nn.ReLU) for part in module.modules())


def test_groups_have_no_statistics() -> None:
    module = resnet18(COLOUR, 10, "silu", "group", "imagenet")
    assert not list(module.buffers())
    images = torch.randn(3, *COLOUR)
    torch.testing.assert_close(module(images)[:1], module(images[:1]), rtol=1e-3, atol=1e-4)


def test_plain_features_are_refused() -> None:
    with pytest.raises(ModelError, match="needs images"):
        resnet18((64,), 10, "relu", "frozen-batch", "imagenet")


def test_statistics_are_those_of_the_images() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
    )
    images = 5 + 3 * torch.randn(48, 1, 8, 8)
    calibrate_statistics(module, images)
    assert not module[1].training and not module[3].training
    with torch.no_grad():
        values = module[1](module[0](images))
    torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.var((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    calibrate_statistics(module, images)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_taps_that_are_left_out_meet_no_pixel(kernel: int, stride: int) -> None:
    for size in range(1, 7):
        for padding in range(kernel // 2 + 1):
            if size + 2 * padding < kernel:
                continue
            taps = used_taps(size, kernel, stride, padding, 1)
            weight = torch.randn(1, 1, kernel, 1, dtype=torch.float64)
            image = torch.randn(1, 1, size, 1, dtype=torch.float64)
            whole = nn.functional.conv2d(image, weight, None, (stride, 1), (padding, 0))
            left = (padding - taps.start, 0)
            part = nn.functional.conv2d(image, weight[:, :, taps], None, (stride, 1), left)
            assert torch.allclose(whole, part)


def _blocks(on_one_pixel: bool) -> nn.Module:
    down = nn.Sequential(nn.Conv2d(2, 3, 1, 2, bias=False), nn.BatchNorm2d(3))
    first = BasicBlock(2, 3, 2, down)
    parts = [first, BasicBlock(3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)]
    stem = nn.Conv2d(1, 2, 3, 2, 1) if on_one_pixel else nn.Conv2d(1, 2, 3, 1, 1)
    return nn.Sequential(stem, *parts)


def _stem() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(2, 4)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "maps of one pixel": lambda: _blocks(True),
    "maps of two pixels": lambda: _blocks(False),
    "imagenet stem": _stem,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_r_operator_on_small_maps_is_double_backward(name: str) -> None:
    torch.manual_seed(2)
    module = NETWORKS[name]().double()
    images, classes = torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    calibrate_statistics(module, images)
    w_P = flat_parameters(module)
    tangents_KP = torch.randn(3, len(w_P), dtype=torch.float64)
    own = Pairs(torch.tensor([0, 2, 2]), torch.tensor([4, 1, 3]))
    results = []
    with torch.no_grad():
        for form in ("r-operator", "reverse"):
            at = Network.of(module, CrossEntropy(), form).linearize(w_P, Minibatch(images, classes))
            gradient_P = at.gradient_sum()
            products = at.hessian_products(tangents_KP, own)
            results.append((gradient_P, products, at.unit_gradients(own)[1]))
    for mine, theirs in zip(*results, strict=True):
        assert relative_error(mine, theirs) < 1e-10


def test_the_r_operator_follows_torchvisions_own_class_too() -> None:
    torch.manual_seed(0)
    network = ResNet(BasicBlock, [1, 1, 1, 1], 3).eval()
    assert Network.of(network, CrossEntropy()).form == "r-operator"
