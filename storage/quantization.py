"""Encoding rows: choosing codes and scales, and measuring exactly what that costs.

Shapes: P columns of a row, W bytes of codes, S scales.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.encoding import (
    ENCODINGS,
    INT4_LEVELS,
    ByteArray,
    Float32Array,
    ScaleArray,
    decoder,
    from_bfloat16,
)

_INT4_SHRINKS = (1.0, 0.93, 0.86)
_LEVELS = np.array(INT4_LEVELS, np.float32)
# Level nearest to each integer of -127..127.
_NEAREST_LEVEL = np.abs(np.arange(-127, 128)[:, None] - _LEVELS).argmin(axis=1).astype(np.uint8)
# Smallest scale: products with integers stay normal in float32, hence exact.
_SMALLEST_SCALE = np.float32(2.0**-126)
_LARGEST = float(np.finfo(np.float32).max)
# Values worked on at once; codes, scaled values and errors of a piece fit the second-level cache.
_PIECE = 1 << 15


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


def sum_of_squares(values: npt.NDArray[np.float64]) -> float:
    """Sum of squares in float64; overwrites `values`.

    By numpy's pairwise sum, not by BLAS: its threads would fight those of other writers.
    """
    return float(np.square(values, out=values).sum())


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
        decoder(name, codes[None, piece], scales[None, blocks]).write(decoded)
        peak = max(peak, float(np.abs(decoded).max()))
        decoded -= values
        squares += sum_of_squares(decoded)
    # Codes are rounded: a value near the end of float32 may decode past it; such a row is widened.
    error = math.sqrt(squares) if peak <= _LARGEST else math.inf
    return EncodedRow(name, codes, scales, error, peak)


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
    factors = from_bfloat16(scales)[:, None]
    return np.divide(blocks, factors, out=np.zeros_like(blocks), where=factors != 0)


def _encode_float32(values: Float32Array) -> tuple[ByteArray, ScaleArray]:
    return values.astype("<f4").view(np.uint8), np.empty(0, np.uint16)


def _encode_bfloat16(values: Float32Array) -> tuple[ByteArray, ScaleArray]:
    return _to_bfloat16(values).astype("<u2").view(np.uint8), np.empty(0, np.uint16)


def _encode_float16(values: Float32Array) -> tuple[ByteArray, ScaleArray]:
    """Scale by a power of two to a peak in [2^14, 2^15]: tiny rows keep all their bits."""
    exponent = int(np.frexp(np.abs(values).max())[1]) - 15
    scale = np.float32(2.0 ** min(max(exponent, -125), 113))
    codes = (values / scale).astype("<f2")
    return codes.view(np.uint8), _to_bfloat16(np.array([scale]))


def _encode_int8(values: Float32Array) -> tuple[ByteArray, ScaleArray]:
    blocks = _in_blocks(values, ENCODINGS["int8"].scale_block)
    scales = _scale_above(np.abs(blocks).max(axis=1) / np.float32(127))
    codes = np.rint(_divided(blocks, scales)).clip(-127, 127).astype(np.int8)
    return codes.reshape(-1)[: values.size].view(np.uint8), scales


def _encode_int4(values: Float32Array) -> tuple[ByteArray, ScaleArray]:
    """The largest value of a block takes the top level, sign and all; of three scales, the best."""
    blocks = _in_blocks(values, ENCODINGS["int4"].scale_block)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)[:, 0]
    sign_bits = np.where(largest < 0, np.uint16(0x8000), np.uint16(0))
    least = np.full(len(blocks), np.inf, np.float32)
    codes, scales = np.zeros(blocks.shape, np.uint8), np.zeros(len(blocks), np.uint16)
    for shrink in _INT4_SHRINKS:
        tried = _scale_above(np.abs(largest) * np.float32(shrink / INT4_LEVELS[-1])) | sign_bits
        steps = np.rint(_divided(blocks, tried)).clip(-127, 127).astype(np.int16)
        found = _NEAREST_LEVEL[steps + 127]
        misses = _LEVELS[found] * from_bfloat16(tried)[:, None] - blocks
        squares = np.einsum("ij,ij->i", misses, misses)
        better = squares < least
        least[better], scales[better], codes[better] = squares[better], tried[better], found[better]
    nibbles = codes.reshape(-1)
    packed = np.bitwise_or(nibbles[0::2], np.left_shift(nibbles[1::2], 4), dtype=np.uint8)
    return packed[: ENCODINGS["int4"].code_bytes(values.size)], scales


_ENCODERS: dict[str, Callable[[Float32Array], tuple[ByteArray, ScaleArray]]] = {
    "float32": _encode_float32,
    "float16": _encode_float16,
    "bfloat16": _encode_bfloat16,
    "int8": _encode_int8,
    "int4": _encode_int4,
}
