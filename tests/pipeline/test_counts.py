"""Counts from shapes alone, against the networks themselves and torch's counter of operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError
from pipeline.hessian.chunking import widest_activation
from pipeline.models.counts import counts_of
from pipeline.models.parameters import ParameterLayout
from pipeline.models.registry import Shape, build
from pipeline.models.train_mode import active_parts, training_form
from pipeline.models.trainable import cut

PHOTO = (3, 32, 32)
CASES = [
    ({"name": "logistic"}, (13,), 3),
    ({"name": "logistic"}, (1, 8, 8), 10),
    ({"name": "mlp", "hidden": (64, 32), "activation": "tanh"}, (1, 28, 28), 10),
    ({"name": "mlp", "hidden": ()}, (561,), 12),
    ({"name": "cnn"}, (1, 8, 8), 10),
    ({"name": "cnn", "pooling": "average"}, (3, 33, 28), 7),
    ({"name": "lenet"}, (1, 28, 28), 10),
    ({"name": "resnet18"}, PHOTO, 10),
    ({"name": "resnet18", "stem": "small", "normalization": "group"}, (1, 9, 12), 2),
    ({"name": "resnet18", "normalization": "batch"}, PHOTO, 10),
    ({"name": "resnet18", "head_hidden": (256, 8)}, (3, 40, 24), 29),
    ({"name": "resnet18", "trainable": "head"}, PHOTO, 10),
    ({"name": "resnet18", "trainable": "head", "head_hidden": (16,)}, PHOTO, 10),
]


@pytest.mark.parametrize(("model", "shape", "outputs"), CASES)
def test_counts_are_those_of_the_network(
    model: dict[str, object], shape: tuple[int, ...], outputs: int
) -> None:
    config = ModelConfig.model_validate(model)
    module = build(config, Shape(shape, outputs), seed=0)
    active, sample = active_parts(module), torch.zeros(1, *shape)
    parts = cut(module.eval(), config.trainable, sample)
    with torch.no_grad():
        inputs = sample if parts.backbone is None else parts.backbone(sample)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        parts.trained(inputs)
    found = counts_of(config, shape, outputs)
    form = training_form(parts.trained, active)
    assert found.num_parameters == ParameterLayout.of(form).num_parameters
    assert found.forward_flops == counter.get_total_flops()
    assert found.widest == widest_activation(parts.trained, inputs)


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes pictures"):
        counts_of(ModelConfig(name="cnn"), (784,), 10)
    with pytest.raises(ConfigError, match="too small"):
        counts_of(ModelConfig(name="lenet"), (1, 4, 4), 10)
    with pytest.raises(ConfigError, match="only all and head"):
        counts_of(ModelConfig(name="resnet18", trainable="layer4"), PHOTO, 10)
    with pytest.raises(ConfigError, match="none of those"):
        counts_of(ModelConfig(name="mine"), PHOTO, 10)
