"""The wait loop: answers of workers in, calls out.

No row passes through here or through Ray's object store: workers write rows themselves and answer
with small facts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from cluster.errors import WorkerFailedError, WorkersLostError
from cluster.scheduler import (
    Action,
    Advance,
    BlockAdvanced,
    Event,
    Retire,
    Scheduler,
    WorkerLost,
    WorkerReady,
)
from cluster.workers import BlockReport

# A worker that Ray could not bring back is replaced this often per run before we give up.
MAX_REPLACEMENTS = 10
WAIT_SECONDS = 1.0

StartWorker = Callable[[], ActorHandle[Any]]


@dataclass
class Totals:
    """What a run has done so far, for progress and reports."""

    num_products: int = 0
    busy_seconds: float = 0.0
    stored_bytes: int = 0
    max_drift: float = 0.0
    workers_lost: int = 0

    def add(self, report: BlockReport) -> None:
        """Count a worker's answer."""
        self.num_products += report.num_products
        self.busy_seconds += report.seconds
        self.stored_bytes += report.stored_bytes
        self.max_drift = max(self.max_drift, report.drift)


Observe = Callable[[Scheduler, Totals], None]


@dataclass
class Driver:
    """Carries out a scheduler's actions on actors until every block is finished.

    Attributes:
        scheduler: Decides.
        start_worker: Starts one more actor.
        workers: The actors, by the scheduler's numbers.
        observe: Called after every answer.
    """

    scheduler: Scheduler
    start_worker: StartWorker
    workers: dict[int, ActorHandle[Any]]
    observe: Observe
    totals: Totals = field(default_factory=Totals)
    _pending: dict[Any, Advance] = field(default_factory=dict)

    def run(self) -> Totals:
        """Compute every waiting block; return what it took.

        Raises:
            WorkerFailedError: If a worker's computation raises; finished blocks and saved states
                are kept.
            WorkersLostError: If workers keep dying.
        """
        for worker in list(self.workers):
            self._carry_out(WorkerReady(worker))
        while not self.scheduler.done:
            pending: list[Any] = list(self._pending)
            answers: Any = ray.wait(pending, num_returns=1, timeout=WAIT_SECONDS)
            for reference in answers[0]:
                self._answer(reference)
            self.observe(self.scheduler, self.totals)
        return self.totals

    def _carry_out(self, event: Event) -> None:
        for action in self.scheduler.handle(event):
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case Advance(worker, block, start, stop):
                reference: Any = self.workers[worker].advance.remote(block, start, stop)
                self._pending[reference] = action
            case Retire(worker):
                # The actor keeps its share of the machine only while somebody holds it.
                del self.workers[worker]

    def _answer(self, reference: Any) -> None:
        call = self._pending.pop(reference)
        try:
            report: BlockReport = ray.get(reference)
        except RayTaskError as error:
            cause = error.cause if error.cause is not None else error
            raise WorkerFailedError(f"block {call.block}: {cause}") from error
        except RayActorError as error:
            self._replace(call.worker, error)
            return
        self.totals.add(report)
        self._carry_out(BlockAdvanced(call.worker, report.block, report.step))

    def _replace(self, worker: int, error: RayActorError) -> None:
        self.totals.workers_lost += 1
        del self.workers[worker]
        self._carry_out(WorkerLost(worker))
        if self.totals.workers_lost > MAX_REPLACEMENTS:
            raise WorkersLostError(
                f"{self.totals.workers_lost} workers were lost, the last one with: "
                f"{' '.join(str(error).split())[:300]}; saved states are kept: repeat the command"
            ) from error
        if len(self.workers) < self.scheduler.useful_workers:
            number = max([worker, *self.workers]) + 1
            self.workers[number] = self.start_worker()
            self._carry_out(WorkerReady(number))


def wait_until_ready(workers: dict[int, ActorHandle[Any]], timeout_seconds: float) -> int:
    """Wait until every actor's imports are done; return how many are ready at the end."""
    deadline = time.monotonic() + timeout_seconds
    references: list[Any] = [worker.ready.remote() for worker in workers.values()]
    ready, _ = ray.wait(
        references, num_returns=len(references), timeout=max(0.0, deadline - time.monotonic())
    )
    return len(ready)
