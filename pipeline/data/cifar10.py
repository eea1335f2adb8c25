"""CIFAR-10 from its published batches.

The batches are pickles, the one place where this program reads any. Two guards stand before them: the
file's MD5 digest must be the published one, and the unpickler rebuilds NumPy arrays and plain
containers alone, whatever the file asks for.
"""

import hashlib
import pickle
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.dataset import Dataset, assemble
from pipeline.data.files import require_files, source_folder
from pipeline.data.images import as_pictures
from pipeline.data.input_files import IN_MEMORY, Allocate, InputFiles
from pipeline.data.samples import Samples, require_every_class, training_positions
from pipeline.errors import DataError

FOLDER = "cifar-10-batches-py"

DIGESTS: Mapping[str, str] = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""MD5 of each batch as published with the data set (and carried by torchvision)."""

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Channel means and deviations of the paper's experiments.
_MEAN, _DEVIATION = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])

# What the published batches ask for; they were written under Python 2, hence numpy.core.
_REBUILDERS: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def cifar10(
    config: DataConfig,
    seed: int,
    digests: Mapping[str, str] = DIGESTS,
    files: InputFiles = IN_MEMORY,
) -> Dataset:
    """60,000 small colour pictures as (n, 3, 32, 32), normalised by channel; 10 classes.

    Args:
        config: `path` names the folder of the batches, or the one above it.
        seed: Draws `num_train` of the training pictures.
        digests: MD5 digest of each batch, in reading order; those named test* are the test part.
        files: Where pictures are kept.
    """
    folder = source_folder(config, (FOLDER,), "test_batch")
    require_files(config.source, folder, tuple(digests))
    training, testing = (
        {name: digest for name, digest in digests.items() if name.startswith("test") == is_test}
        for is_test in (False, True)
    )
    labels, test_labels = _labels(folder, training), _labels(folder, testing)
    rows = training_positions(len(labels), config, seed)
    pictures, test_pictures = (
        as_pictures(
            files.kept(
                ("cifar10", *part.values(), config.num_train, seed),
                partial(_pixels, folder, part, chosen),
            ),
            _MEAN,
            _DEVIATION,
        )
        for part, chosen in ((training, rows), (testing, np.arange(len(test_labels))))
    )
    train = Samples(pictures, labels[rows], rows=rows, num_rows=len(labels))
    test = Samples(test_pictures, test_labels)
    dataset = assemble(train, test, config, len(CLASSES))
    require_every_class(train, test, CLASSES)
    return dataset


class PlainUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays and plain containers; every other name is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return one of the three functions and types that an array needs."""
        try:
            return _REBUILDERS[module_name, global_name]
        except KeyError as error:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}") from error


def _batch(path: Path, digest: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (n, 3, 32, 32) uint8 and labels (n,) int64 of one batch."""
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != digest:
        raise DataError(
            f"{path} ({len(content)} bytes) has MD5 {found}, but the published file has {digest}; "
            "it is damaged, half downloaded or another file: fetch it again"
        )
    try:
        entry = PlainUnpickler(BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise DataError(f"{path} is no batch of plain arrays: {error}; it was not read") from error
    pixels = entry.get("data") if isinstance(entry, dict) else None
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape[1:] != (3072,)
        or not isinstance(entry.get("labels"), list)
        or len(entry["labels"]) != len(pixels)
    ):
        raise DataError(
            f"{path} is no CIFAR-10 batch: expected a dictionary with data, (n, 3072) bytes, and n "
            "labels; fetch it again"
        )
    return pixels.reshape(-1, 3, 32, 32), np.asarray(entry["labels"], dtype=np.int64)


def _labels(folder: Path, digests: Mapping[str, str]) -> np.ndarray:
    return np.concatenate([_batch(folder / name, digest)[1] for name, digest in digests.items()])


def _pixels(
    folder: Path, digests: Mapping[str, str], rows: np.ndarray, allocate: Allocate
) -> np.ndarray:
    """Return the pictures of these rows (n, 3, 32, 32) uint8, one batch in memory at a time."""
    filled, first = allocate((len(rows), 3, 32, 32), np.dtype(np.uint8)), 0
    for name, digest in digests.items():
        pixels, _ = _batch(folder / name, digest)
        here = np.flatnonzero((rows >= first) & (rows < first + len(pixels)))
        filled[here] = pixels[rows[here] - first]
        first += len(pixels)
    return filled
