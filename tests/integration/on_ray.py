"""Driving the small run on the Ray that is there, with faults on the way."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.actors import ActorGroup, start_recursion_worker
from cluster.driver import Driver, WorkTotals
from cluster.resources import Placement
from cluster.scheduler import Scheduler
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.run.directory import RunDirectory

Observe = Callable[[Scheduler, WorkTotals], None]


def group_of(run: RunDirectory, num_workers: int, cpus: int = 1) -> ActorGroup:
    save_every = run.config.cluster.save_every
    placement = Placement(cpus, 0.0)
    every = None if save_every == "auto" else save_every
    group = ActorGroup(lambda: start_recursion_worker(run.path, every, placement))
    for worker in range(num_workers):
        group.start(worker)
    return group


def drive(run: RunDirectory, group: ActorGroup, observe: Observe | None = None) -> WorkTotals:
    """Compute what waits and merge it."""
    job = PrecomputeJob.of(run)
    workers = group.workers
    scheduler = Scheduler(job.trajectory.num_steps, job.waiting(), len(workers), set(workers))
    totals = Driver(scheduler, group, observe or (lambda state, totals: None)).run()
    job.store.merge()
    return totals


@dataclass
class Killer:
    """SIGKILLs a busy worker once a block stands at one of `at`; each step kills once."""

    group: ActorGroup
    at: list[int]
    killed: list[int] = field(default_factory=list)

    def __call__(self, state: Scheduler, totals: WorkTotals) -> None:
        for worker, block in state.held.items():
            if self.at and state.positions.get(block, 0) >= self.at[0]:
                self.at.pop(0)
                process = self.group.node(worker).process
                os.kill(process, signal.SIGKILL)
                self.killed.append(process)
                return
