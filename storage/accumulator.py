"""Adding weighted rows on a grid, a tile at a time."""

import threading

import numpy as np
import numpy.typing as npt

from storage.encoding import ByteArray, Decoder, ScaleArray, decoder
from storage.layout import SEGMENT
from storage.summation import SumGrid

# Values decoded at once: a float64 tile and its columns of the total fill a 1 MiB L2 cache; with
# less, the interpreter's share grows faster than the cache's misses shrink.
_TILE_VALUES = 1 << 16


class Accumulator:
    """The sum of weighted rows on a grid.

    Snapping to the grid is (x + M) - M. For the rows of a large model one pass is saved: M is added
    and taken away with alternate rows, so that the total holds S + M after every odd one. Both are
    multiples of the grid below 2^53 of them, so every addition stays exact.
    """

    def __init__(
        self, num_parameters: int, weights: npt.NDArray[np.float64], grid: SumGrid
    ) -> None:
        self._total = np.zeros(num_parameters)
        self._weights, self._grid = weights, grid
        self._of_thread = threading.local()
        # Per segment, whether its columns of the total hold M on top.
        self._raised = [False] * -(-num_parameters // SEGMENT)

    def add(
        self,
        encoding: str,
        positions: list[int],
        columns: slice,
        codes: ByteArray,
        scales: ScaleArray,
    ) -> None:
        """Add rows in one segment; different segments may be added by different threads.

        Args:
            encoding: of the rows.
            positions: where each row's weight stands.
            columns: the segment.
            codes: uint8 (M, W).
            scales: uint16 (M, S).
        """
        weights = self._weights[positions]
        target = self._total[columns]
        if len(codes) == 1:
            values = decoder(encoding, codes, scales, weights)
            self._add_one(values, target, columns.start // SEGMENT)
            return
        height = max(1, _TILE_VALUES // target.size)
        for first in range(0, len(codes), height):
            rows = slice(first, first + height)
            tile = self._scratch(len(codes[rows]), target.size)
            decoder(encoding, codes[rows], scales[rows], weights[rows]).write(tile)
            target += self._grid.snap(tile).sum(axis=0)

    def _add_one(self, values: Decoder, target: npt.NDArray[np.float64], segment: int) -> None:
        magic = -self._grid.magic if self._raised[segment] else self._grid.magic
        for start in range(0, target.size, _TILE_VALUES):
            piece = target[start : start + _TILE_VALUES]
            tile = self._scratch(1, piece.size)
            values.write(tile, start)
            tile += magic
            piece += tile[0]
        self._raised[segment] = not self._raised[segment]

    def _scratch(self, num_rows: int, num_columns: int) -> npt.NDArray[np.float64]:
        """Memory of this thread for a tile: fresh memory would cost more than the arithmetic."""
        if not hasattr(self._of_thread, "tile"):
            self._of_thread.tile = np.empty(max(_TILE_VALUES, min(SEGMENT, self._total.size)))
        tile: npt.NDArray[np.float64] = self._of_thread.tile[: num_rows * num_columns]
        return tile.reshape(num_rows, num_columns)

    def finish(self) -> npt.NDArray[np.float64]:
        """The sum, float64 (P,)."""
        for segment, raised in enumerate(self._raised):
            if raised:
                self._total[segment * SEGMENT : (segment + 1) * SEGMENT] -= self._grid.magic
        return self._total
