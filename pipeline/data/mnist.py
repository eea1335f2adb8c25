"""MNIST and FashionMNIST from their IDX files, plain or gzipped.

IDX: two zero bytes, 0x08 for unsigned bytes, the number of dimensions, each dimension as a big-endian
32-bit number, then the values.
"""

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

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
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{path} ({len(content)} bytes) is no whole gzip file: {error}; it is damaged or "
                "half downloaded, fetch it again"
            ) from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(
            f"{path} is no IDX file of unsigned bytes: it begins with {content[:4].hex(' ')!r}, "
            "expected '00 00 08' and the number of dimensions; fetch it again"
        )
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    expected = start + prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path} holds {len(content)} bytes, but its header promises {expected}; it is damaged "
            "or half downloaded, fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
