"""Progress of long computations, reported to a function that the caller passes."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


def silent(done: int, total: int) -> None:
    """Report nothing."""
