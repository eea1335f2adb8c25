"""Worker pools: workers on Ray (`ray_pool`) or in this process."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import psutil

from cluster.console import Reporter
from cluster.deletion_worker import DeletionWorker
from cluster.driver import Driver, WorkerGroup, WorkTotals
from cluster.errors import ResourcesError
from cluster.in_process import InProcessGroup
from cluster.progress_file import ProgressFile
from cluster.resources import BASE_BYTES, Resources, check_block_fits
from cluster.scheduler import Scheduler, WorkerId
from cluster.workers import RecursionWorker
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem

if TYPE_CHECKING:
    from pipeline.deletion.weights import SumRows

# Measurements leave the workers' imports out; a worker that takes longer joins later.
READY_SECONDS = 60.0


class StartedGroup(WorkerGroup, Protocol):
    """Workers of which some are started before the driver runs."""

    @property
    def workers(self) -> set[WorkerId]:
        """The workers that were started and not ended."""

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until every worker's imports are done, at most `seconds`."""


def _show_nothing(totals: WorkTotals) -> None:
    """Publish no metrics: there is no exporter."""


def _want_the_same() -> None:
    """Nobody was asked for machines."""


@dataclass
class WorkerPool:
    """Workers, started before there is work for them.

    Attributes:
        run: What they work on.
        group: The workers.
        start_sums: Starts what sums rows; returns the function that has it do so.
        show: Publishes totals as metrics.
        growth: Tells how many workers there is room for; None where that does not change.
        want_no_more: Called once no block waits: machines that are idle from then on may go.
        cleanup: What ends with the pool.
    """

    run: RunDirectory
    group: StartedGroup
    start_sums: "Callable[[], SumRows]"
    show: Callable[[WorkTotals], None] = _show_nothing
    growth: Callable[[], int] | None = None
    want_no_more: Callable[[], None] = _want_the_same
    cleanup: ExitStack = field(default_factory=ExitStack)

    def compute(self, job: PrecomputeJob, stage: str, reporter: Reporter) -> WorkTotals:
        """Compute and store the rows of every block that waits; finish the job."""
        num_steps = job.trajectory.num_steps
        waiting, workers = job.waiting(), self.group.workers
        scheduler = Scheduler(num_steps, waiting, len(workers), set(workers))
        total = len(waiting) * num_steps
        file, wants_more = ProgressFile(self.run.path, total), True
        with reporter.stage(stage) as progress:

            def observe(state: Scheduler, totals: WorkTotals) -> None:
                nonlocal wants_more
                if wants_more and not state.waiting:
                    wants_more = False
                    self.want_no_more()
                progress(state.steps_done, total)
                self.show(totals)
                file.show(state, totals)

            try:
                totals = Driver(scheduler, self.group, observe, self.growth).run()
            finally:
                file.remove()
        totals.terms_seconds = finish(job, reporter)
        return totals

    def wait(self) -> None:
        """Wait until the workers have started, or a while: those that have can begin."""
        self.group.wait_until_ready(READY_SECONDS)

    def close(self) -> None:
        """End the workers and what belongs to them."""
        for worker in self.group.workers:
            self.group.end(worker)
        self.cleanup.close()


def finish(job: PrecomputeJob, reporter: Reporter) -> float:
    """Compute the class terms, if any, in this process, and merge; return the terms' seconds."""
    if job.run is None:
        return job.finish()
    with reporter.stage("class terms") as progress:
        return job.finish(progress)


def pool_in_process(run: RunDirectory, problem: Problem) -> WorkerPool:
    """Return one worker in this process, on the device that the run was trained on.

    Raises:
        ResourcesError: If a block does not fit into the memory that is free, or a GPU was asked for
            and there is none.
    """
    config = run.config.cluster
    on_gpu = problem.device.type == "cuda"
    if config.gpus_per_worker != "auto" and config.gpus_per_worker > on_gpu:
        raise ResourcesError(
            f"cluster.gpus_per_worker is {config.gpus_per_worker:g}, but with cluster.address: none "
            f"the one worker is this process, which has {int(on_gpu)} GPUs; lower it, or set "
            "cluster.address to local"
        )
    # What this process holds already is not needed once more.
    free = psutil.virtual_memory().available + BASE_BYTES
    check_block_fits(problem, Resources(os.cpu_count() or 1, float(on_gpu), (free,)))
    every = config.save_every
    save_every = None if every == "auto" else every
    group = InProcessGroup(lambda: RecursionWorker(run.path, save_every, problem=problem))
    group.start(0)
    return WorkerPool(
        run, group, start_sums=lambda: DeletionWorker(run.path, config.cpus_per_worker).sum_rows
    )
