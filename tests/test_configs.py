"""Every configuration loads, and holds the settings of the experiment it is named after."""

from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.data import SOURCES, load
from pipeline.data.fetch import RECIPES
from pipeline.data.files import default_folder
from pipeline.data.samples import split_positions
from pipeline.models.registry import Shape, build

CONFIGS = Path(__file__).parent.parent / "configs"

# data source, model, samples, epochs, batch, learning rate, decay, l2, clip norm
# (Qiao et al. 2025, Section 5 and rebuttal); samples: None where a share of all trains.
PUBLISHED = {
    "mnist-logistic": ("mnist", "logistic", 1_000, 15, 32, 0.05, 0.995, 0.5, 5),
    "mnist-cnn": ("mnist", "cnn", 1_000, 20, 64, 0.05, 0.995, 1e-6, 10),
    "fmnist-cnn": ("fashion-mnist", "cnn", 4_000, 30, 256, 0.5, 0.995, 1e-6, 0.5),
    "fmnist-lenet": ("fashion-mnist", "lenet", 4_000, 30, 256, 0.5, 0.995, 1e-6, 0.5),
    "cifar10-resnet18": ("cifar10", "resnet18", 50_000, 40, 256, 0.001, 0.99995, 1e-2, 10),
    "celeba-resnet18": ("celeba", "resnet18", 10_000, 5, 64, 0.01, 0.9995, 1e-2, 10),
    "lfw-resnet18": ("lfw", "resnet18", 984, 50, 40, 0.004, 0.9995, 1e-2, 5.5),
    "wine": ("wine", "mlp", None, 40, 64, 0.01, 0.9995, 0.005, 10),
    "obesity": ("obesity", "mlp", None, 100, 64, 0.05, 0.9995, 0.001, 10),
    "adult": ("adult", "mlp", 10_000, 80, 5_000, 0.05, 0.9995, 0.05, 10),
    "hapt": ("hapt", "mlp", 7_767, 15, 64, 0.01, 0.9995, 0.01, 10),
}


def read(name: str) -> RunConfig:
    return RunConfig.load(CONFIGS / f"{name}.yaml")


def test_every_configuration_loads() -> None:
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    assert len(names) > 10
    for name in names:
        config = read(name)
        assert config.name == name
        assert config.data.source in SOURCES, name
        if config.data.source in RECIPES:
            assert config.data.path == str(default_folder(config.data.source).absolute()), name
        assert RunConfig.from_text(config.to_yaml(), "as written") == config, name


def settings(config: RunConfig) -> tuple[object, ...]:
    training = config.training
    return (
        config.data.source,
        config.model.name,
        config.data.num_train,
        training.epochs,
        training.batch_size,
        training.learning_rate,
        training.learning_rate_decay,
        training.l2,
        training.clip_norm,
    )


def test_published_experiments_keep_their_settings() -> None:
    assert {name: settings(read(name)) for name in PUBLISHED} == PUBLISHED
    assert {read(name).seed for name in PUBLISHED} == {42}


def test_shares_that_train_are_the_published_counts() -> None:
    for name, rows, trained in (
        ("wine", 178, 142),
        ("obesity", 2_111, 1_477),
        ("lfw-resnet18", 1_230, 984),
    ):
        train, test = split_positions(rows, read(name).data, 42)
        assert (len(train), len(test)) == (trained, rows - trained)


@pytest.mark.parametrize("name", ["digits", "digits-mlp", "digits-cnn"])
def test_digits_networks_are_built_for_their_data(name: str) -> None:
    config = read(name)
    data = load(config.data, config.seed)
    module = build(config.model, Shape(tuple(data.inputs.shape[1:]), data.num_classes), config.seed)
    assert module(data.inputs[:3]).shape == (3, 10)
    # The bounds on how near deletion comes to retraining hold for smooth activations alone.
    assert name == "digits" or config.model.activation != "relu"
