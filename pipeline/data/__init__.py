"""Data sources by name, each in a module of its own."""

from collections.abc import Callable

from pipeline.config import DataConfig
from pipeline.data.adult import adult
from pipeline.data.arrays import arrays
from pipeline.data.bundled import diabetes, digits, wine
from pipeline.data.celeba import celeba
from pipeline.data.cifar10 import cifar10
from pipeline.data.dataset import Dataset
from pipeline.data.hapt import hapt
from pipeline.data.input_files import IN_MEMORY, InputFiles
from pipeline.data.lfw import lfw
from pipeline.data.mnist import fashion_mnist, mnist
from pipeline.data.obesity import obesity
from pipeline.data.parquet import parquet
from pipeline.data.targets import fitted
from pipeline.errors import ConfigError
from pipeline.suggestions import nearest

SOURCES: dict[str, Callable[[DataConfig, int], Dataset]] = {
    "adult": adult,
    "arrays": arrays,
    "celeba": celeba,
    "cifar10": cifar10,
    "diabetes": diabetes,
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "hapt": hapt,
    "lfw": lfw,
    "mnist": mnist,
    "obesity": obesity,
    "parquet": parquet,
    "wine": wine,
}


# The sources whose targets a user writes, as the loss takes them.
_BY_LOSS: dict[str, Callable[[DataConfig, int, str], Dataset]] = {
    "arrays": arrays,
    "parquet": parquet,
}


# The sources of pictures that may not fit in memory.
_KEPT: dict[str, Callable[..., Dataset]] = {"celeba": celeba, "cifar10": cifar10, "lfw": lfw}


def load(
    config: DataConfig, seed: int, loss: str = "cross-entropy", files: InputFiles = IN_MEMORY
) -> Dataset:
    """Return the data set that the configuration names, with the targets that a loss takes.

    Args:
        config: The source.
        seed: Of the split.
        loss: `training.loss`.
        files: Where large inputs are kept; by default in memory.

    Raises:
        ConfigError: If no such source exists, or it has no weights.
        DataError: If its files are missing or not what they should be, or the loss takes others.
    """
    if config.source not in SOURCES:
        raise ConfigError(f"data.source {config.source!r} {nearest(config.source, SOURCES)}")
    if config.source == "parquet":
        return parquet(config, seed, loss, files)
    if config.source in _BY_LOSS:
        return _BY_LOSS[config.source](config, seed, loss)
    if config.weight_column is not None:
        raise ConfigError(
            f"data.weight_column is for the sources {' and '.join(_BY_LOSS)}; source "
            f"{config.source!r} holds no weights; remove the key"
        )
    if config.source in _KEPT:
        return fitted(_KEPT[config.source](config, seed, files=files), config.source, loss)
    return fitted(SOURCES[config.source](config, seed), config.source, loss)


__all__ = ["SOURCES", "DataConfig", "Dataset", "load"]
