"""Real data that ship inside scikit-learn: handwritten digits, wine and diabetes."""

# n samples

from dataclasses import replace

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits, load_wine

from pipeline.config import DataConfig
from pipeline.data.dataset import Dataset, assemble
from pipeline.data.samples import Samples, split, subsample
from pipeline.errors import DataError

# The file of digits names no writers. `writer` stands in for them: so many neighbouring samples of
# the file are one made-up user.
SAMPLES_PER_WRITER = 20


def digits(config: DataConfig, seed: int) -> Dataset:
    """1,797 images of 8x8 pixels, scaled x/16, as (n, 1, 8, 8); 10 classes.

    With `image_size` they are enlarged bilinearly. With `user_column: writer`, 89 made-up users own
    20 neighbouring samples of the file each, whole users are split off for testing, and the last 17
    samples belong to no user and are left out.
    """
    _refuse_path(config)
    bunch = load_digits()
    images = (bunch.images / 16.0).astype(np.float32)[:, None]
    if config.image_size is not None:
        images = _enlarged(images, config.image_size)
    samples = Samples(images, bunch.target).numbered()
    if config.unit == "user":
        return assemble(*_split_by_writer(samples, config, seed), config, 10)
    train, test = split(samples, config, seed)
    return assemble(train, test, config, 10)


def _enlarged(images: np.ndarray, side: int) -> np.ndarray:
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(images), size=(side, side), mode="bilinear", align_corners=False
    )
    return resized.numpy()


def _split_by_writer(samples: Samples, config: DataConfig, seed: int) -> tuple[Samples, Samples]:
    """Split whole made-up users, in an order drawn by `seed`; `num_train` keeps the first ones."""
    if config.user_column != "writer":
        raise DataError(
            f"source 'digits' has one user column, writer (found {config.user_column!r}); set "
            "data.user_column: writer, or choose data.unit: sample"
        )
    num_writers = len(samples) // SAMPLES_PER_WRITER
    writers = np.arange(num_writers * SAMPLES_PER_WRITER) // SAMPLES_PER_WRITER
    order = np.random.default_rng([seed, 0]).permutation(num_writers)
    num_train = int(np.floor((1 - config.test_fraction) * len(order) + 1e-9))
    names = tuple(f"writer-{writer:02d}" for writer in writers)
    owned = replace(samples.take(np.arange(len(writers))), owners=names)
    positions = [np.flatnonzero(writers == writer) for writer in order]
    train, test = np.concatenate(positions[:num_train]), np.concatenate(positions[num_train:])
    return owned.take(subsample(train, config)), samples.take(test)


def wine(config: DataConfig, seed: int) -> Dataset:
    """178 rows of 13 features, standardised by the training part's mean and deviation; 3 classes."""
    _refuse_path(config)
    _refuse_image_size(config)
    bunch = load_wine()
    train, test = split(Samples(bunch.data, bunch.target).numbered(), config, seed)
    mean, deviation = train.numbers.mean(axis=0), train.numbers.std(axis=0)

    def standardised(samples: Samples) -> Samples:
        return replace(samples, inputs=(samples.inputs - mean) / deviation)

    return assemble(standardised(train), standardised(test), config, 3)


# Mean and deviation of the progression, rounded: fixed, so that no deleted sample moves them.
PROGRESSION_MEAN, PROGRESSION_DEVIATION = 150.0, 75.0


def diabetes(config: DataConfig, seed: int) -> Dataset:
    """442 patients of 10 features, and the disease's progression after a year, a number.

    The progression, 25 to 346, is scaled to (y - 150) / 75. The features are scikit-learn's, which
    are centred over all 442 patients, times the root of 442: each has mean 0 and deviation 1.
    """
    _refuse_path(config)
    _refuse_image_size(config)
    bunch = load_diabetes()
    features = bunch.data * np.sqrt(len(bunch.data))
    progression = (bunch.target - PROGRESSION_MEAN) / PROGRESSION_DEVIATION
    samples = Samples(features, progression.astype(np.float32)).numbered()
    return assemble(*split(samples, config, seed), config, 1)


def _refuse_path(config: DataConfig) -> None:
    if config.path is not None:
        raise DataError(
            f"data.path is given, but source {config.source!r} ships with the program; remove "
            "data.path, or choose another source"
        )


def _refuse_image_size(config: DataConfig) -> None:
    if config.image_size is not None:
        raise DataError(
            f"data.image_size is given, but source {config.source!r} holds no images; remove it"
        )
