"""Row encodings: how one row of float32 values becomes bytes, and the exact error of doing so.

Each encoding turns a row into *codes* (a fixed width per value) and, where it has them, *scales*
(one bfloat16 per `scale_block` columns). Every decoded value is a product that float32 holds
exactly, so decoding in float32 or in float64 gives the same number.

Shapes: M rows, P columns, W bytes of codes, S scales.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
ScaleArray = npt.NDArray[np.uint16]
NumberArray = npt.NDArray[np.generic]

INT4_LEVELS = (-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7)
# Smallest scale: products with integers stay normal in float32, hence exact.
_SMALLEST_SCALE = np.float32(2.0**-126)
# Values worked on at once; codes, scaled values and errors of a piece fit the second-level cache.
_PIECE = 1 << 15


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


@dataclass(frozen=True)
class EncodedRow:
    """One row as it is stored.

    Attributes:
        encoding: name of the encoding.
        codes: uint8 (W,), little-endian bytes of the codes.
        scales: uint16 (S,), bfloat16 bits.
        error: |decoded - row| in L2, summed in float64.
        peak: largest magnitude of a decoded value.
    """

    encoding: str
    codes: ByteArray
    scales: ScaleArray
    error: float
    peak: float


def encode_within(row: Float32Array, norm: float, chain: tuple[str, ...], cap: float) -> EncodedRow:
    """Encode `row` in the first encoding of `chain` whose relative error is at most `cap`.

    Args:
        row: float32 (P,), finite.
        norm: |row| in L2.
        chain: from `widening_chain`; the last one is taken whatever its error.
        cap: largest |decoded - row| / |row|.
    """
    for name in chain:
        encoded = encode(row, name)
        if encoded.error <= cap * norm:
            break
    return encoded


def encode(row: Float32Array, name: str) -> EncodedRow:
    """Encode `row` (float32 (P,), finite) and measure the error against the decoded row."""
    encoding = ENCODINGS[name]
    codes = np.empty(encoding.code_bytes(row.size), np.uint8)
    scales = np.empty(encoding.scale_width(row.size), np.uint16)
    squares, peak = 0.0, 0.0
    step = max(_PIECE, encoding.scale_block)
    for start in range(0, row.size, step):
        values = row[start : start + step]
        piece = slice(encoding.code_bytes(start), encoding.code_bytes(start + values.size))
        blocks = slice(encoding.scale_width(start), encoding.scale_width(start + values.size))
        codes[piece], scales[blocks] = _ENCODERS[name](values)
        decoded = np.empty((1, values.size))
        decode_into(name, codes[None, piece], scales[None, blocks], decoded)
        peak = max(peak, float(np.abs(decoded).max()))
        decoded -= values
        squares += float(np.vdot(decoded, decoded))
    return EncodedRow(name, codes, scales, math.sqrt(squares), peak)


def decode_into(
    name: str,
    codes: ByteArray,
    scales: ScaleArray,
    out: npt.NDArray[np.floating],
    weights: npt.NDArray[np.float64] | None = None,
) -> None:
    """Decode consecutive columns of M rows, times a weight per row.

    Args:
        name: the encoding.
        codes: uint8 (M, W), the columns' codes; the first column starts a scale block.
        scales: uint16 (M, S), the columns' scales.
        out: float32 or float64 (M, columns), overwritten. Weighted values are exact in float64 for
            integer weights up to 2^26.
        weights: float64 (M,) or None for one.
    """
    num_columns = out.shape[1]
    out[...] = _numbers(name, codes)[:, :num_columns]
    block = ENCODINGS[name].scale_block
    if not block:
        if weights is not None:
            out *= weights[:, None]
        return
    factors = _from_bfloat16(scales).astype(out.dtype, copy=False)
    if weights is not None:
        factors = factors * weights[:, None]
    whole = num_columns // block
    head = out[:, : whole * block].reshape(len(out), whole, block, copy=False)
    head *= factors[:, :whole, None]
    if whole * block < num_columns:
        out[:, whole * block :] *= factors[:, whole:]


def _numbers(name: str, codes: ByteArray) -> NumberArray:
    """The codes as numbers, (M, columns), before scaling."""
    if name == "bfloat16":
        return _from_bfloat16(codes.view("<u2"))
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


def _from_bfloat16(bits: ScaleArray) -> Float32Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(values: Float32Array) -> ScaleArray:
    """Bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _scale_above(bounds: Float32Array) -> ScaleArray:
    """Bits of the smallest bfloat16 not below each bound (>= 0); zero stays zero."""
    bits = np.where(bounds > 0, np.maximum(bounds, _SMALLEST_SCALE), np.float32(0)).view(np.uint32)
    return ((bits.astype(np.uint64) + 0xFFFF) >> 16).astype(np.uint16)


def _in_blocks(values: Float32Array, block: int) -> Float32Array:
    """(blocks, block), the last one padded with zeros."""
    whole = -(-values.size // block)
    if values.size == whole * block:
        return values.reshape(whole, block)
    padded = np.zeros(whole * block, np.float32)
    padded[: values.size] = values
    return padded.reshape(whole, block)


def _divided(blocks: Float32Array, scales: ScaleArray) -> Float32Array:
    """Blocks / scale, zero where the scale is."""
    factors = _from_bfloat16(scales)[:, None]
    return np.divide(blocks, factors, out=np.zeros_like(blocks), where=factors != 0)


def _encode_float32(values: Float32Array) -> tuple[ByteArray, ScaleArray]:
    return values.astype("<f4").view(np.uint8), np.empty(0, np.uint16)


def _encode_bfloat16(values: Float32Array) -> tuple[ByteArray, ScaleArray]:
    return _to_bfloat16(values).astype("<u2").view(np.uint8), np.empty(0, np.uint16)


def _encode_float16(values: Float32Array) -> tuple[ByteArray, ScaleArray]:
    """Scale by a power of two to a peak in [2^14, 2^15): tiny rows keep all their bits."""
    exponent = int(np.frexp(np.abs(values).max())[1]) - 15
    scale = np.float32(2.0 ** min(max(exponent, -126), 113))
    codes = (values / scale).astype("<f2")
    return codes.view(np.uint8), _to_bfloat16(np.array([scale]))


def _encode_int8(values: Float32Array) -> tuple[ByteArray, ScaleArray]:
    blocks = _in_blocks(values, ENCODINGS["int8"].scale_block)
    scales = _scale_above(np.abs(blocks).max(axis=1) / np.float32(127))
    codes = np.rint(_divided(blocks, scales)).clip(-127, 127).astype(np.int8)
    return codes.reshape(-1)[: values.size].view(np.uint8), scales


def _encode_int4(values: Float32Array) -> tuple[ByteArray, ScaleArray]:
    blocks = _in_blocks(values, ENCODINGS["int4"].scale_block)
    scales = _scale_above(np.abs(blocks).max(axis=1) / np.float32(7))
    nibbles = (np.rint(_divided(blocks, scales)).clip(-8, 7) + 8).astype(np.uint8).reshape(-1)
    packed = np.bitwise_or(nibbles[0::2], np.left_shift(nibbles[1::2], 4), dtype=np.uint8)
    return packed[: ENCODINGS["int4"].code_bytes(values.size)], scales


_ENCODERS: dict[str, Callable[[Float32Array], tuple[ByteArray, ScaleArray]]] = {
    "float32": _encode_float32,
    "float16": _encode_float16,
    "bfloat16": _encode_bfloat16,
    "int8": _encode_int8,
    "int4": _encode_int4,
}
