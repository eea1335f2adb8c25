"""Data sources by name, each in a module of its own."""

from collections.abc import Callable

from pipeline.data.arrays import arrays
from pipeline.data.bundled import digits, wine
from pipeline.data.dataset import DataConfig, Dataset
from pipeline.errors import ConfigError
from pipeline.suggestions import nearest

SOURCES: dict[str, Callable[[DataConfig, int], Dataset]] = {
    "arrays": arrays,
    "digits": digits,
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
