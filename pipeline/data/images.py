"""Pictures to arrays: decoded, cropped, stacked; all of one size."""

# n images, C channels, H height, W width

import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from pipeline.data.input_files import Allocate, InputFile, in_memory
from pipeline.data.lazy_inputs import OwnInputs, picture_values
from pipeline.errors import DataError

# Formats that Pillow decodes by itself; others (EPS) would start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

# Channel means and deviations of ImageNet, which the paper's face experiments and pretrained
# networks assume.
IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))

# What Pillow's decoders raise for damaged pictures, and for those that would fill the memory.
_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    MemoryError, struct.error, zlib.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip

Prepare = Callable[[Image.Image], Image.Image]


def decode(content: bytes, name: str) -> Image.Image:
    """Return the picture as RGB, or as 8-bit grey if it has one channel.

    Raises:
        DataError: If `content` is cut short, of an unknown format, or deeper than 8 bits per channel;
            `name` says whose.
    """
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(BytesIO(content), formats=FORMATS) as image,
        ):
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{name} is of mode {image.mode}, expected 8 bits per channel")
            return image.convert("L" if image.mode in ("1", "L") else "RGB")
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name} ({len(content)} bytes) is no {'/'.join(FORMATS)} picture; replace it"
        ) from error
    except _UNREADABLE as error:
        raise DataError(
            f"{name} ({len(content)} bytes) is no whole picture: {' '.join(str(error).split())}; "
            "replace it"
        ) from error


def central_square(share: float, side: int) -> Prepare:
    """Return a function that keeps the middle square, `share` of the shorter side, as side x side."""

    def prepare(image: Image.Image) -> Image.Image:
        edge = round(share * min(image.size))
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        square = image.crop((left, top, left + edge, top + edge))
        return square.resize((side, side), Image.Resampling.BILINEAR)

    return prepare


def stack(
    pictures: Iterable[tuple[str, bytes]],
    positions: Sequence[int],
    prepare: Prepare | None = None,
    allocate: Allocate = in_memory,
) -> np.ndarray:
    """Return n named pictures as (n, C, H, W) uint8.

    Args:
        pictures: Names, for messages, and contents. One is held at a time.
        positions: Where each goes in the result: a permutation of 0..n-1.
        prepare: Done to each after decoding.
        allocate: Gives room for the result.

    Raises:
        DataError: If one cannot be decoded, or differs from the first in size or channels.
    """
    stacked = np.empty((0,), np.uint8)
    first, expected = "", ""
    for position, (name, content) in zip(positions, pictures, strict=True):
        image = decode(content, name)
        found = f"{image.width}x{image.height} {'grey' if image.mode == 'L' else 'RGB'}"
        if not first:
            first, expected = name, found
        if found != expected:
            raise DataError(
                f"{name} is {found}, but {first} is {expected}; pictures of one data set must have "
                "one size: resize them first"
            )
        pixels = np.asarray(image if prepare is None else prepare(image))
        pixels_CHW = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if not len(stacked):
            stacked = allocate((len(positions), *pixels_CHW.shape), np.dtype(np.uint8))
        stacked[position] = pixels_CHW
    return stacked


DECODER = f"Pillow {PIL.__version__}"
"""What decides the bytes of a decoded picture beside its file."""


def as_pictures(
    pixels: np.ndarray | InputFile,
    mean: np.ndarray | None = None,
    deviation: np.ndarray | None = None,
) -> OwnInputs:
    """Return (n, C, H, W) uint8 as numbers in 0..1, then less the channels' mean, over their deviation.

    >>> as_pictures(np.zeros((2, 3, 4, 4), np.uint8)).shape
    (2, 3, 4, 4)
    """
    channels = pixels.shape[1] if len(pixels) else 1
    return OwnInputs(pixels, picture_values(mean, deviation, channels))


def normalise(images: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return (n, C, H, W) float32 images less the channels' mean, over their deviation, in place."""
    images -= mean.astype(np.float32)[:, None, None]
    images /= deviation.astype(np.float32)[:, None, None]
    return images
