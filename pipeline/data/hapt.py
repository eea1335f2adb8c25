"""HAPT of the UCI repository: activities and postural transitions from a phone's sensors."""

# n windows, F features

import warnings
from pathlib import Path

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.dataset import Dataset, assemble
from pipeline.data.files import require_files, source_folder
from pipeline.data.samples import Samples, owner_names, require_every_class, training_positions
from pipeline.data.tables import standardise
from pipeline.errors import DataError

FILES = tuple(
    f"{part}/{name}_{part.lower()}.txt"
    for part in ("Train", "Test")
    for name in ("X", "y", "subject_id")
)

CLASSES = (
    "walking",
    "walking upstairs",
    "walking downstairs",
    "sitting",
    "standing",
    "laying",
    "stand to sit",
    "sit to stand",
    "sit to lie",
    "lie to sit",
    "stand to lie",
    "lie to stand",
)


def hapt(config: DataConfig, seed: int) -> Dataset:
    """10,929 windows of 561 features in the published split (7,767 train); 12 classes.

    With `unit: user`, a unit is one of the 30 people who carried the phone. Features are
    standardised by the training part.
    """
    folder = source_folder(config, ("HAPT", "HAPT Data Set"), "Train")
    require_files(config.source, folder, FILES)
    train, test = (_samples(folder, part) for part in ("Train", "Test"))
    if train.inputs.shape[1] != test.inputs.shape[1]:
        raise DataError(
            f"{folder / FILES[0]} has {train.inputs.shape[1]} features, {folder / FILES[3]} "
            f"{test.inputs.shape[1]}; they must agree"
        )
    train = train.numbered().take(training_positions(len(train), config, seed))
    require_every_class(train, test, CLASSES)
    return assemble(*standardise(train, test), config, len(CLASSES))


def _samples(folder: Path, part: str) -> Samples:
    features, classes, subjects = (
        _numbers(folder / name) for name in FILES if name.startswith(part)
    )
    if not len(features) == len(classes) == len(subjects):
        raise DataError(
            f"{folder / part} holds {len(features)} windows, {len(classes)} classes and "
            f"{len(subjects)} subjects; they must agree: a file is cut short, fetch it again"
        )
    for name, numbers in (("class", classes), ("subject", subjects)):
        strange = numbers[(numbers != np.floor(numbers)) | (np.abs(numbers) > 1e6)]
        if len(strange):
            raise DataError(
                f"{folder / part} holds {name} {strange[0]:g}, expected whole numbers from 1; a file "
                "is damaged, fetch it again"
            )
    owners = owner_names(subjects[:, 0].astype(np.int64), "subject_id")
    return Samples(features, classes[:, 0].astype(np.int64) - 1, owners)


def _numbers(path: Path) -> np.ndarray:
    """Return the numbers of a text table as (rows, columns), float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty file is an error below
        try:
            numbers = np.loadtxt(path, ndmin=2, comments=None)
        except ValueError as error:
            raise DataError(
                f"{path} ({path.stat().st_size} bytes) is no table of numbers: {error}; it is "
                "damaged or half downloaded, fetch it again"
            ) from error
    if numbers.size == 0:
        raise DataError(f"{path} is empty; fetch it again")
    return numbers
