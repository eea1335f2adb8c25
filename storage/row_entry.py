"""The line of one unit in a manifest."""

from typing import NamedTuple


class RowEntry(NamedTuple):
    """One unit of the store.

    Attributes:
        unit: its name.
        state: absent or written.
        row: its position.
        samples: training samples it owns.
        generation: generation of its row; None while absent, like all that follows.
        encoding: the encoding its row is in.
        digest: 32 bytes over the stored row, bound to store, unit and generation.
        norm: |a| (L2) of the row as it was handed in.
        error: |decoded - a| (L2), absolute.
        peak: largest magnitude of a decoded value.
        bytes: bytes of codes and scales before any codec.
    """

    unit: str
    state: str
    row: int
    samples: int
    generation: int | None = None
    encoding: str | None = None
    digest: bytes | None = None
    norm: float | None = None
    error: float | None = None
    peak: float | None = None
    bytes: int | None = None


def relative_error(entry: RowEntry) -> float:
    """|decoded - a| / |a|, 0 for a row of zeros."""
    return (entry.error or 0.0) / entry.norm if entry.norm else 0.0
