"""Row encodings: what the bytes of a row mean. `quantization.py` writes them.

Each encoding turns a row into *codes* (a fixed width per value) and, where it has them, *scales*
(one bfloat16 per `scale_block` columns). Every decoded value is a product that float32 holds
exactly, so decoding in float32 or in float64 gives the same number.

Shapes: M rows, P columns, W bytes of codes, S scales.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
ScaleArray = npt.NDArray[np.uint16]
NumberArray = npt.NDArray[np.generic]

# Lloyd-Max levels of rows whose blocks are scaled so that the largest value, sign and all, becomes
# 127: fitted to ResNet-18 rows, and within 3% of the best for Gaussian ones. Against sixteen even
# steps they cut the error from .10 to .086 of the row; choosing among three scales, to .083.
INT4_LEVELS = (-106, -81, -61, -43, -29, -16, -7, 0, 9, 20, 33, 46, 62, 79, 101, 127)


@dataclass(frozen=True)
class Encoding:
    """One way of writing a value, and the width of what it writes.

    Attributes:
        name: as users and the manifest name it.
        zarr_dtype: dtype of the codes array.
        bits: bits per value.
        scale_block: columns that share a scale; 0 for none. Divides 2^18 (layout.SEGMENT).
    """

    name: str
    zarr_dtype: str
    bits: int
    scale_block: int

    def code_bytes(self, num_columns: int) -> int:
        """Bytes of the codes of `num_columns` values."""
        return -(-num_columns * self.bits // 8)

    def code_width(self, num_columns: int) -> int:
        """Elements of the codes array that hold `num_columns` values."""
        return self.code_bytes(num_columns) // np.dtype(self.zarr_dtype).itemsize

    def scale_width(self, num_columns: int) -> int:
        """Scales of `num_columns` values."""
        return -(-num_columns // self.scale_block) if self.scale_block else 0

    def cut(
        self, codes: ByteArray, scales: ScaleArray, columns: slice
    ) -> tuple[ByteArray, ScaleArray]:
        """Codes and scales of some columns of a segment; they start a scale block or stay in one.

        Args:
            codes: uint8 (M, W) of the segment.
            scales: uint16 (M, S) of the segment.
            columns: counted from the segment's first.
        """
        pieces = slice(self.code_bytes(columns.start), self.code_bytes(columns.stop))
        if not self.scale_block:
            return codes[:, pieces], scales
        first, last = columns.start // self.scale_block, -(-columns.stop // self.scale_block)
        return codes[:, pieces], scales[:, first:last]


ENCODINGS = {
    encoding.name: encoding
    for encoding in (
        Encoding("float32", "float32", 32, 0),
        Encoding("float16", "float16", 16, 1 << 18),
        Encoding("bfloat16", "uint16", 16, 0),
        Encoding("int8", "int8", 8, 128),
        Encoding("int4", "uint8", 4, 64),
    )
}
DEFAULT_ERROR_CAPS = {
    "float32": 0.0,
    "float16": 1e-3,
    "bfloat16": 4e-3,
    "int8": 0.02,
    "int4": 0.15,
}
_NEXT = {"int4": "int8", "int8": "float16", "float16": "float32", "bfloat16": "float32"}


def widening_chain(name: str) -> tuple[str, ...]:
    """Encodings that a row goes through until its error is within the cap.

    >>> widening_chain("int8")
    ('int8', 'float16', 'float32')
    """
    chain = [name]
    while chain[-1] in _NEXT:
        chain.append(_NEXT[chain[-1]])
    return tuple(chain)


class Decoder(NamedTuple):
    """Encoded columns of M rows, ready to be decoded in pieces.

    Attributes:
        numbers: (M, columns or one more), the codes as numbers.
        factors: (M, S), scale times weight, or None where there is neither.
        block: columns per factor; 0 for all.
    """

    numbers: NumberArray
    factors: npt.NDArray[np.floating] | None
    block: int

    def write(self, out: npt.NDArray[np.floating], start: int = 0) -> None:
        """Decode columns from `start` into `out`, (M, columns).

        `start` and the number of columns are multiples of `block`, or lie in one block, or reach
        the last column.
        """
        num_rows, num_columns = out.shape
        out[...] = self.numbers[:, start : start + num_columns]
        if self.factors is None:
            return
        block = self.block
        if num_columns <= block or not block:
            first = start // block if block else 0
            out *= self.factors[:, first : first + 1]
            return
        first, whole = start // block, num_columns // block
        head = out[:, : whole * block].reshape(num_rows, whole, block, copy=False)
        head *= self.factors[:, first : first + whole, None]
        if whole * block < num_columns:
            out[:, whole * block :] *= self.factors[:, first + whole : first + whole + 1]


def decoder(
    name: str,
    codes: ByteArray,
    scales: ScaleArray,
    weights: npt.NDArray[np.float64] | None = None,
) -> Decoder:
    """Prepare consecutive columns of M rows for decoding, times a weight per row.

    Args:
        name: the encoding.
        codes: uint8 (M, W), the columns' codes; the first column starts a scale block.
        scales: uint16 (M, S), the columns' scales.
        weights: float64 (M,), integers of at most 2^26 in magnitude (products are then exact in
            float64), or None for one.
    """
    block = ENCODINGS[name].scale_block
    factors: npt.NDArray[np.floating] | None = from_bfloat16(scales) if block else None
    if weights is not None:
        factors = weights[:, None] if factors is None else factors * weights[:, None]
    return Decoder(_numbers(name, codes), factors, block)


def _numbers(name: str, codes: ByteArray) -> NumberArray:
    """The codes as numbers, (M, columns), before scaling."""
    if name == "bfloat16":
        return from_bfloat16(codes.view("<u2"))
    if name == "int4":
        return _LEVEL_PAIRS[codes].view(np.int8)
    return codes.view(np.dtype(ENCODINGS[name].zarr_dtype).newbyteorder("<"))


def _level_pairs() -> npt.NDArray[np.uint16]:
    """The two int8 levels of each byte (low nibble first) in one uint16."""
    levels = np.array(INT4_LEVELS, np.int8)
    byte = np.arange(256)
    pairs = np.stack([levels[byte & 15], levels[byte >> 4]], axis=1)
    return np.ascontiguousarray(pairs).view(np.uint16)[:, 0]


_LEVEL_PAIRS = _level_pairs()


def from_bfloat16(bits: ScaleArray) -> Float32Array:
    """Float32 whose upper halves are `bits`."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
