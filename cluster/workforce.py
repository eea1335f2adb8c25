"""Precomputing on Ray, and the actor that sums rows: what needs workers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from cluster.actors import start_deletion_worker, start_recursion_worker
from cluster.console import Reporter
from cluster.driver import Driver, Totals, wait_until_ready
from cluster.errors import ClusterError
from cluster.resources import Placement, place
from cluster.scheduler import Scheduler
from cluster.session import session
from cluster.training_stage import exclusive
from pipeline.approximators import open_store, waiting_blocks
from pipeline.config import ClusterConfig
from pipeline.measurements import record_measurements
from pipeline.problem import Problem
from pipeline.rundir import RunDirectory
from pipeline.trajectory import Trajectory

# Without an explicit `save_every`, a block's trajectory is cut into this many calls: short enough
# for progress and Ctrl-C, long enough that the calls themselves cost nothing.
CALLS_PER_BLOCK = 20
READY_SECONDS = 120.0


@dataclass
class Workforce:
    """Workers on a cluster, started before there is work for them."""

    run: RunDirectory
    config: ClusterConfig
    placement: Placement
    workers: dict[int, ActorHandle[Any]]

    @staticmethod
    def start(
        run: RunDirectory, config: ClusterConfig, num_workers: int, placement: Placement
    ) -> "Workforce":
        """Start the actors; they import while the caller goes on."""
        save_every = None if config.save_every == "auto" else config.save_every
        workers = {
            number: start_recursion_worker(run.path, save_every, placement)
            for number in range(num_workers)
        }
        return Workforce(run, config, placement, workers)

    def wait(self) -> None:
        """Wait until every worker has started.

        Raises:
            ClusterError: If not one has, in two minutes.
        """
        if self.workers and wait_until_ready(self.workers, READY_SECONDS) == 0:
            raise ClusterError(f"no worker started within {READY_SECONDS:.0f} s; see Ray's logs")

    def recollect(self, problem: Problem, reporter: Reporter) -> Totals:
        """Compute and store the rows of every block that waits; merge the manifest."""
        trajectory = self.run.trajectory()
        store = open_store(self.run, problem)
        scheduler = Scheduler(trajectory.num_steps, self._stride(trajectory), waiting_blocks(store))
        total = len(scheduler.waiting) * trajectory.num_steps
        with reporter.stage("precompute") as progress:
            driver = Driver(
                scheduler,
                self._start_one,
                self.workers,
                lambda state, _: progress(state.steps_done, total),
            )
            totals = driver.run()
        store.merge()
        return totals

    def _stride(self, trajectory: Trajectory) -> int:
        if self.config.save_every == "auto":
            return max(1, -(-trajectory.num_steps // CALLS_PER_BLOCK))
        return min(self.config.save_every, max(1, trajectory.num_steps))

    def _start_one(self) -> ActorHandle[Any]:
        save_every = None if self.config.save_every == "auto" else self.config.save_every
        return start_recursion_worker(self.run.path, save_every, self.placement)


@contextmanager
def workforce(run: RunDirectory, config: ClusterConfig, num_blocks: int) -> Iterator[Workforce]:
    """Start or join Ray and start workers for `num_blocks` blocks; end them afterwards."""
    local_cpus = None
    if config.address is None and config.num_workers != "auto":
        # Asking for more workers than cores is allowed on one's own machine: Ray counts, the
        # operating system shares.
        local_cpus = config.num_workers * config.cpus_per_worker
    with session(config.address, local_cpus) as resources:
        num_workers, placement = place(config, resources, num_blocks)
        yield Workforce.start(run, config, min(num_workers, num_blocks), placement)


def precompute(
    run: RunDirectory, problem: Problem, config: ClusterConfig, reporter: Reporter
) -> None:
    """Compute every row that is not stored yet, on Ray; does nothing if all are."""
    num_waiting = len(waiting_blocks(open_store(run, problem)))
    if not num_waiting:
        open_store(run, problem).merge()
        return
    with exclusive(run), workforce(run, config, num_waiting) as force:
        force.wait()
        recollect_with(force, problem, reporter)


def recollect_with(force: Workforce, problem: Problem, reporter: Reporter) -> None:
    """Precompute with workers that are started, and keep the measurements."""
    began = time.perf_counter()
    num_workers = len(force.workers)
    totals = force.recollect(problem, reporter)
    record_measurements(
        force.run,
        "precompute",
        {
            "seconds": time.perf_counter() - began,
            "workers": num_workers,
            "hvps": totals.num_products,
            "busy_seconds": totals.busy_seconds,
            "max_drift": totals.max_drift,
            "workers_lost": totals.workers_lost,
        },
    )


SumRows = Callable[[list[str], list[int] | None], tuple[Any, float]]


def remote_sum(run: RunDirectory) -> SumRows:
    """Return a function that has the deletion actor sum rows; it answers with sum and seconds."""
    actor = start_deletion_worker(run.path, run.config.cluster.cpus_per_worker)

    def sum_rows(units: list[str], weights: list[int] | None) -> tuple[Any, float]:
        reference: Any = actor.sum_rows.remote(units, weights)
        answer: tuple[Any, float] = ray.get(reference)
        return answer

    return sum_rows
