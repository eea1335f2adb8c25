"""How long work reports where it stands: the caller passes a function, or nothing."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


def silent(done: int, total: int) -> None:
    """Report nothing."""
