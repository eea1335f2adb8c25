"""Hadamard matrices and S-matrices: which of v units each of v groups leaves out."""

# v units weighed together, and as many groups

from functools import cache

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.int8]

FEWEST_WEIGHED, MOST_WEIGHED = 7, 127
# The share of all units that a group leaves out, at most: near the sets that will be asked for.
LARGEST_SHARE = 0.2


def num_weighed(num_units: int, asked: int | None = None) -> int:
    """Return v: as many units as are asked for, or as the groups' share allows, of a known order.

    >>> num_weighed(600), num_weighed(100), num_weighed(600, asked=64)
    (127, 39, 63)
    """
    most = int(2 * LARGEST_SHARE * num_units) if asked is None else asked
    most = max(3, min(MOST_WEIGHED, most))
    return next(v for v in range(most, 2, -1) if (v + 1) % 4 == 0 and hadamard(v + 1) is not None)


@cache
def hadamard(order: int) -> Matrix | None:
    """Return a Hadamard matrix of this order, or None where neither construction gives one.

    By Paley's two constructions over primes (Paley 1933), and by doubling (Sylvester 1867).
    """
    if order in (1, 2):
        return np.array([[1, 1], [1, -1]], np.int8)[:order, :order]
    if order % 4:
        return None
    if _is_prime(order - 1):
        # Paley I: order - 1 = 3 mod 4.
        skew = np.zeros((order, order), np.int8)
        skew[0, 1:], skew[1:, 0] = 1, -1
        skew[1:, 1:] = _residues(order - 1)
        return skew + np.eye(order, dtype=np.int8)
    half = order // 2
    if half % 2 == 0:
        smaller = hadamard(half)
        if smaller is not None:
            return np.kron(np.array([[1, 1], [1, -1]], np.int8), smaller)
    prime = half - 1
    if prime % 4 == 1 and _is_prime(prime):
        # Paley II.
        symmetric = np.zeros((half, half), np.int8)
        symmetric[0, 1:], symmetric[1:, 0] = 1, 1
        symmetric[1:, 1:] = _residues(prime)
        one, other = np.array([[1, 1], [1, -1]], np.int8), np.array([[1, -1], [-1, -1]], np.int8)
        return np.kron(symmetric, one) + np.kron(np.eye(half, dtype=np.int8), other)
    return None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))


def _residues(prime: int) -> Matrix:
    """Return the matrix of quadratic residues: 1 where column - row is a square, else -1; 0 at 0."""
    squares = {x * x % prime for x in range(1, prime)}
    signs = np.array([0, *(1 if x in squares else -1 for x in range(1, prime))], np.int8)
    places = np.arange(prime)
    residues: Matrix = signs[(places[None, :] - places[:, None]) % prime]
    return residues


@cache
def s_matrix(v: int) -> NDArray[np.bool_]:
    """Return which of v units each of v groups leaves out, (v, v): (v + 1) / 2 in each row.

    >>> s_matrix(3).astype(int).tolist()
    [[1, 1, 0], [0, 1, 1], [1, 0, 1]]
    """
    matrix = hadamard(v + 1)
    if matrix is None:
        raise ValueError(f"expected v with a known Hadamard matrix of order v + 1, found {v}")
    # Normalised: ones in the first row and column, which are then left away.
    matrix = matrix * matrix[:1] * matrix[:, :1] * matrix[0, 0]
    return np.asarray(matrix[1:, 1:] < 0)
