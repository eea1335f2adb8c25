"""Data sources by name, each in a module of its own."""

from collections.abc import Callable

from pipeline.config import DataConfig
from pipeline.data.adult import adult
from pipeline.data.arrays import arrays
from pipeline.data.bundled import digits, wine
from pipeline.data.celeba import celeba
from pipeline.data.cifar10 import cifar10
from pipeline.data.dataset import Dataset
from pipeline.data.hapt import hapt
from pipeline.data.lfw import lfw
from pipeline.data.mnist import fashion_mnist, mnist
from pipeline.data.obesity import obesity
from pipeline.data.parquet import parquet
from pipeline.errors import ConfigError
from pipeline.suggestions import nearest

SOURCES: dict[str, Callable[[DataConfig, int], Dataset]] = {
    "adult": adult,
    "arrays": arrays,
    "celeba": celeba,
    "cifar10": cifar10,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "hapt": hapt,
    "lfw": lfw,
    "mnist": mnist,
    "obesity": obesity,
    "parquet": parquet,
    "wine": wine,
}


def load(config: DataConfig, seed: int) -> Dataset:
    """Return the data set that the configuration names.

    Raises:
        ConfigError: If no such source exists.
        DataError: If its files are missing or not what they should be.
    """
    if config.source not in SOURCES:
        raise ConfigError(f"data.source {config.source!r} {nearest(config.source, SOURCES)}")
    return SOURCES[config.source](config, seed)


__all__ = ["SOURCES", "DataConfig", "Dataset", "load"]
