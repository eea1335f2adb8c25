"""MNIST and FashionMNIST from their IDX files, plain or gzipped.

IDX: two zero bytes, 0x08 for unsigned bytes, the number of dimensions, each dimension as a big-endian
32-bit number, then the values.
"""

import gzip
import struct
import zlib
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import IO, cast

import numpy as np

from pipeline.config import DataConfig
from pipeline.data.dataset import Dataset, assemble
from pipeline.data.files import require_files, source_folder
from pipeline.data.images import normalise
from pipeline.data.samples import Samples, require_every_class, training_positions
from pipeline.errors import DataError

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

# Images and their labels; a file of 65 dimensions is none that NumPy could hold.
_DIMENSIONS = (1, 3)
# Five times MNIST. A few kilobytes of gzip can promise, and unpack to, any size.
_LARGEST_BYTES = 1 << 28

_FASHION = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def mnist(config: DataConfig, seed: int) -> Dataset:
    """Handwritten digits as (n, 1, 28, 28), (x/255 - .1307) / .3081; 10 classes."""
    return _load(config, seed, tuple("0123456789"), (0.1307, 0.3081))


def fashion_mnist(config: DataConfig, seed: int) -> Dataset:
    """Pictures of clothes as (n, 1, 28, 28), (x/255 - .5) / .5; 10 classes."""
    return _load(config, seed, _FASHION, (0.5, 0.5))


def _load(
    config: DataConfig, seed: int, classes: tuple[str, ...], scale: tuple[float, float]
) -> Dataset:
    """Return the published split; mean and deviation are those of the paper's experiments."""
    images, labels, test_images, test_labels = (_read(path) for path in _paths(config))
    for name, pictures, numbers in (
        ("train", images, labels),
        ("t10k", test_images, test_labels),
    ):
        if pictures.ndim != 3 or numbers.ndim != 1 or len(pictures) != len(numbers):
            raise DataError(
                f"the {name} files hold images of shape {pictures.shape} and labels of shape "
                f"{numbers.shape}; expected (n, height, width) and (n,): fetch them again"
            )
    if images.shape[1:] != test_images.shape[1:] or 0 in images.shape[1:]:
        raise DataError(
            f"the train files hold images of shape {images.shape[1:]}, the t10k files of "
            f"{test_images.shape[1:]}; expected one size of at least one pixel: fetch them again"
        )
    rows = training_positions(len(labels), config, seed)
    classes_of_rows = labels[rows].astype(np.int64)
    train = Samples(_scaled(images[rows], scale), classes_of_rows, rows=rows, num_rows=len(labels))
    test = Samples(_scaled(test_images, scale), test_labels.astype(np.int64))
    dataset = assemble(train, test, config, len(classes))
    require_every_class(train, test, classes)
    return dataset


def _scaled(images: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    mean, deviation = (np.array([value]) for value in scale)
    return normalise(images[:, None].astype(np.float32) / np.float32(255), mean, deviation)


def _paths(config: DataConfig) -> list[Path]:
    below = ("MNIST/raw",) if config.source == "mnist" else ("FashionMNIST/raw",)
    folder = source_folder(config, below, FILES[0])
    if not (folder / FILES[0]).exists():
        folder = source_folder(config, below, f"{FILES[0]}.gz")
    names = [name if (folder / name).exists() else f"{name}.gz" for name in FILES]
    require_files(config.source, folder, names)
    return [folder / name for name in names]


def _read(path: Path) -> np.ndarray:
    """Return the array of an IDX file of unsigned bytes."""
    try:
        with ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(path.open("rb"))
            if path.suffix == ".gz":
                file = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file)))
            return _read_idx(path, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} ({path.stat().st_size} bytes) is no whole gzip file: {error}; it is damaged or "
            "half downloaded, fetch it again"
        ) from error


def _read_idx(path: Path, file: IO[bytes]) -> np.ndarray:
    begin = file.read(4)
    if len(begin) < 4 or begin[:3] != b"\0\0\x08" or begin[3] not in _DIMENSIONS:
        raise DataError(
            f"{path} is no IDX file of unsigned bytes: it begins with {begin.hex(' ')!r}, expected "
            "'00 00 08' and the number of dimensions, 1 or 3; fetch it again"
        )
    sizes = file.read(4 * begin[3])
    shape = struct.unpack(f">{begin[3]}I", sizes) if len(sizes) == 4 * begin[3] else (0,)
    expected = prod(shape)
    if expected > _LARGEST_BYTES:
        raise DataError(
            f"{path} promises {expected} values, of which at most {_LARGEST_BYTES} are read; it is "
            "damaged or of another data set, fetch it again"
        )
    content = file.read(expected + 1)
    if len(content) != expected or len(sizes) < 4 * begin[3]:
        found = "more" if len(content) > expected else "less"
        raise DataError(
            f"{path} ({path.stat().st_size} bytes) holds {found} than the {expected} values that its "
            "header promises; it is damaged or half downloaded, fetch it again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)
