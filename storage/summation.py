"""Sums that have the same bits in any order, any grouping and on any number of machines.

Floating-point addition is exact among multiples of one power of two ("grid") that stay below 2^53
of them. So each weighted value is first rounded to such a multiple by adding and subtracting
M = 1.5 * 2^52 * grid, after which every addition is exact and therefore associative. (The idea of
pre-rounding is Rump's and Demmel & Nguyen's "reproducible summation"; one grid fixed beforehand is
enough here, because rows have declared sizes.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.errors import SumOverflowError

MAX_WEIGHT = 1 << 26
GRID_BITS = 42
_PIECE = 1 << 15

Float64Array = npt.NDArray[np.float64]


def grid_exponent(num_samples: int) -> int:
    """Exponent of the grid of weighted sums: ceil(log2(max(num_samples, 1))) - 42.

    >>> grid_exponent(1), grid_exponent(1437), grid_exponent(2048)
    (-42, -31, -31)
    """
    return (max(num_samples, 1) - 1).bit_length() - GRID_BITS


@dataclass(frozen=True)
class SumGrid:
    """The multiples to which the terms of a sum are rounded.

    Attributes:
        step: the grid, a power of two.
    """

    step: float

    @classmethod
    def for_weights(cls, num_samples: int) -> "SumGrid":
        """Grid of sums whose weights reach the number of samples."""
        return cls(2.0 ** grid_exponent(num_samples))

    @classmethod
    def plain(cls) -> "SumGrid":
        """Grid of sums without weights."""
        return cls(2.0**-GRID_BITS)

    @property
    def limit(self) -> float:
        """Sums below this in magnitude are exact."""
        return self.step * 2.0**52

    @property
    def magic(self) -> float:
        """M: x + M is x rounded to the grid, plus M; 1.5 * 2^52 grid steps."""
        return self.step * 1.5 * 2.0**52

    def snap(self, values: Float64Array) -> Float64Array:
        """Round `values` to multiples of the grid, in place; they must stay below `limit` / 2."""
        values += self.magic
        values -= self.magic
        return values

    def add(self, total: Float64Array, partial: Float64Array) -> Float64Array:
        """Add `partial` to `total` in place, exactly; both are sums on this grid.

        Raises:
            SumOverflowError: the result has left the range in which additions are exact; `total`
                is of no use then.
        """
        # In pieces, so that the check finds what was just added in the cache.
        for start in range(0, total.size, _PIECE):
            piece = total[start : start + _PIECE]
            piece += partial[start : start + _PIECE]
            if not max(-float(piece.min()), float(piece.max())) < self.limit:
                raise SumOverflowError(
                    f"a sum of rows reached {float(np.abs(piece).max()):.3g}, past "
                    f"{self.limit:.3g} up to which it is exact; the rows are far too large, or too "
                    "many: retrain"
                )
        return total

    def check_bound(self, peaks: Sequence[float], weights: Sequence[int]) -> None:
        """Refuse a sum whose terms may leave the exact range, before it is computed.

        Args:
            peaks: largest magnitude of each row's values.
            weights: integer weight of each row.

        Raises:
            SumOverflowError: half the limit could be passed.
        """
        bound = sum(peak * abs(w) for peak, w in zip(peaks, weights, strict=True))
        if not bound < self.limit / 2:
            raise SumOverflowError(
                f"this sum could reach {bound:.3g}, past {self.limit / 2:.3g} up to which it is "
                "exact; sum fewer rows or use smaller weights"
            )
