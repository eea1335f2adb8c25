"""The driver's wait loop: sends calls to workers and handles their answers.

No row passes through here or through Ray's object store: workers write rows themselves and answer
with small facts. What the driver holds does not grow with the number of blocks it has finished,
beyond their numbers, and an answer takes it as long with many workers as with few.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.errors import WorkerFailedError, WorkersLostError
from cluster.logs import log
from cluster.scheduler import (
    Action,
    Advance,
    BlockAdvanced,
    CapacityChanged,
    Event,
    GiveUp,
    Retire,
    Scheduler,
    Start,
    WorkerId,
    WorkerLost,
    WorkerReady,
)
from cluster.workers import BlockReport, WorkerNode

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

    def wait(self, references: Collection[Reference], seconds: float) -> Sequence[Reference]:
        """Return all references that have an answer as soon as one has, after at most `seconds`.

        Args:
            references: Those without an answer so far, oldest first; not to be kept.
            seconds: How long to wait where none has an answer.
        """

    def answer(self, reference: Reference) -> WorkerNode | BlockReport:
        """Return an answer that is there.

        Raises:
            WorkerGoneError: If the worker died.
            WorkerFailedError: If its computation failed.
        """

    def dead(self) -> Sequence[WorkerId]:
        """Return workers whose node has left the cluster, known or not by their calls."""

    def end(self, worker: WorkerId) -> None:
        """End a worker, and its process."""


WAIT_SECONDS = 1.0
# How often a group looks for nodes that are gone: it costs the head little, but not nothing.
NODES_SECONDS = 5.0
# A worker imports for a quarter of a minute, on a slow shared disk for more.
READY_SECONDS = 180.0


@dataclass
class WorkTotals:
    """What a run has done so far, for progress and reports."""

    num_steps: int = 0
    num_products: int = 0
    busy_seconds: float = 0.0
    stored_bytes: int = 0
    max_drift: float = 0.0
    workers_lost: int = 0
    peak_bytes: int = 0
    terms_seconds: float = 0.0

    def add(self, report: BlockReport) -> None:
        """Count a worker's answer."""
        self.num_steps += report.steps_taken
        self.num_products += report.num_products
        self.busy_seconds += report.seconds
        self.stored_bytes += report.stored_bytes
        self.max_drift = max(self.max_drift, report.drift)
        self.peak_bytes = max(self.peak_bytes, report.peak_bytes)


Observe = Callable[[Scheduler, WorkTotals], None]


@dataclass
class Driver:
    """Carries out a scheduler's actions on workers until every block is finished.

    Attributes:
        scheduler: Decides.
        group: The workers; those that `scheduler` knows as starting are started already.
        observe: Called after every wait.
        capacity: Tells how many workers the cluster has room for now; asked between waits.
        clock: Seconds; tests put their own.
    """

    scheduler: Scheduler
    group: WorkerGroup
    observe: Observe
    capacity: Callable[[], int] | None = None
    clock: Callable[[], float] = time.monotonic
    totals: WorkTotals = field(default_factory=WorkTotals)
    _pending: dict[Reference, WorkerId] = field(default_factory=dict)
    _call_of: dict[WorkerId, Reference] = field(default_factory=dict)
    _last_reason: str = ""

    def run(self) -> WorkTotals:
        """Compute every waiting block; return what it took.

        Raises:
            WorkerFailedError: If a worker's computation raises, or no worker starts; finished
                blocks and saved states are kept.
            WorkersLostError: If workers keep dying.
        """
        for worker in sorted(self.scheduler.starting):
            self._expect(worker, self.group.ready(worker))
        lately = self.clock()
        while not self.scheduler.done:
            for reference in self.group.wait(self._pending.keys(), WAIT_SECONDS):
                self._take(reference)
            for worker in self.group.dead():
                self._lose(worker, "its node left the cluster")
            if self.capacity is not None and self.capacity() != self.scheduler.capacity:
                self._carry_out(CapacityChanged(self.capacity()))
            lately = self.clock() if self.scheduler.held else lately
            if self.clock() - lately > READY_SECONDS:
                raise WorkerFailedError(
                    f"no worker has started for {READY_SECONDS:.0f} s, {len(self.scheduler.waiting)} "
                    "blocks wait; see the log files of Ray's session, or whether the cluster's "
                    "processors are taken by another job"
                )
            self.observe(self.scheduler, self.totals)
        return self.totals

    def _expect(self, worker: WorkerId, reference: Reference) -> None:
        """Remember a worker's call; it has one at a time."""
        self._pending[reference] = worker
        self._call_of[worker] = reference

    def _carry_out(self, event: Event) -> None:
        for action in self.scheduler.handle(event):
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case Start(worker):
                self.group.start(worker)
                self._expect(worker, self.group.ready(worker))
            case Advance(worker):
                self._expect(worker, self.group.advance(action))
            case Retire(worker):
                # A worker keeps its share of the machine only while there is a block for it.
                self.group.end(worker)
            case GiveUp(block):
                what = "start" if block is None else f"compute block {block}"
                raise WorkersLostError(
                    f"workers keep dying before they {what}, the last one with: "
                    f"{self._last_reason}; a smaller storage.block or fewer workers per machine need "
                    "less memory. Saved states are kept: repeat the command to continue"
                )

    def _take(self, reference: Reference) -> None:
        worker = self._pending.pop(reference)
        del self._call_of[worker]
        try:
            answer = self.group.answer(reference)
        except WorkerGoneError as error:
            self._lose(worker, str(error))
            return
        if not isinstance(answer, BlockReport):
            log().info("worker ready", worker=worker, node=answer.node, process=answer.process)
            self._carry_out(WorkerReady(worker))
            return
        self.totals.add(answer)
        log().info("block advanced", worker=worker, block=answer.block, step=answer.step)
        self._carry_out(
            BlockAdvanced(worker, answer.block, answer.step, answer.steps_taken, answer.seconds)
        )

    def _lose(self, worker: WorkerId, reason: str) -> None:
        # The call of a lost worker, if one is under way, says nothing new.
        if worker in self._call_of:
            del self._pending[self._call_of.pop(worker)]
        self.totals.workers_lost += 1
        self._last_reason = reason
        log().warning("worker lost", worker=worker, reason=reason)
        self.group.end(worker)
        self._carry_out(WorkerLost(worker))
