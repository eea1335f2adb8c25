"""Real data that ship inside scikit-learn: handwritten digits and wine."""

# n samples

import numpy as np
from sklearn.datasets import load_digits, load_wine

from pipeline.data.dataset import DataConfig, Dataset, Samples, assemble, split
from pipeline.errors import DataError


def digits(config: DataConfig, seed: int) -> Dataset:
    """1,797 images of 8x8 pixels, scaled x/16, as (n, 1, 8, 8); 10 classes."""
    _refuse_path(config)
    bunch = load_digits()
    samples = Samples((bunch.images / 16.0).astype(np.float32)[:, None], bunch.target)
    train, test = split(samples, config, seed)
    return assemble(train, test, config, 10)


def wine(config: DataConfig, seed: int) -> Dataset:
    """178 rows of 13 features, standardised by the training part's mean and deviation; 3 classes."""
    _refuse_path(config)
    bunch = load_wine()
    train, test = split(Samples(bunch.data, bunch.target), config, seed)
    mean, deviation = train.inputs.mean(axis=0), train.inputs.std(axis=0)

    def standardised(samples: Samples) -> Samples:
        return Samples((samples.inputs - mean) / deviation, samples.targets, samples.owners)

    return assemble(standardised(train), standardised(test), config, 3)


def _refuse_path(config: DataConfig) -> None:
    if config.path is not None:
        raise DataError(
            f"data.path is given, but source {config.source!r} ships with the program; remove "
            "data.path, or choose another source"
        )
