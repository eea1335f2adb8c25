"""The recursion's workers as the driver sees them, wherever they run."""

from collections.abc import Sequence
from typing import Any, Protocol

from cluster.scheduler import Advance, WorkerId
from cluster.workers import BlockReport, Place

Reference = Any
"""A promise of a worker's answer; hashable."""


class WorkerGoneError(Exception):
    """A worker's process, or its node, will not answer any more."""


class WorkerGroup(Protocol):
    """Starts workers, calls them without waiting, and tells which are gone."""

    def start(self, worker: WorkerId) -> None:
        """Start a worker."""

    def ready(self, worker: WorkerId) -> Reference:
        """Ask a worker to answer as soon as it has started."""

    def advance(self, call: Advance) -> Reference:
        """Ask a worker to advance its block."""

    def wait(self, references: Sequence[Reference], seconds: float) -> Sequence[Reference]:
        """Return the references that have an answer, after at most `seconds`."""

    def answer(self, reference: Reference) -> Place | BlockReport:
        """Return an answer that is there.

        Raises:
            WorkerGoneError: If the worker died.
            WorkerFailedError: If its computation failed.
        """

    def dead(self) -> Sequence[WorkerId]:
        """Return workers whose node has left the cluster, known or not by their calls."""

    def end(self, worker: WorkerId) -> None:
        """Let a worker go; its process ends."""
