"""Precomputing with workers: in this process, or on Ray where that is sooner or asked for."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from cluster.console import Reporter
from cluster.deletion_worker import DeletionWorker
from cluster.driver import Driver, WorkerGroup, WorkTotals
from cluster.errors import ResourcesError
from cluster.in_process import InProcessGroup
from cluster.progress_file import ProgressFile
from cluster.ray_choice import NO_RAY, chosen_address
from cluster.resources import BASE_BYTES, Resources, check_block_fits
from cluster.scheduler import Scheduler, WorkerId
from cluster.session import RaySession
from cluster.workers import RecursionWorker
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.approximators.repair import Repaired, under_repair
from pipeline.run.directory import RunDirectory, exclusive
from pipeline.run.measurements import record_measurements
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


@dataclass
class WorkerPool:
    """Workers, started before there is work for them.

    Attributes:
        run: What they work on.
        group: The workers.
        start_sums: Starts what sums rows; returns the function that has it do so.
        show: Publishes totals as metrics.
        growth: Tells how many workers there is room for; None where that does not change.
        cleanup: What ends with the pool.
    """

    run: RunDirectory
    group: StartedGroup
    start_sums: "Callable[[], SumRows]"
    show: Callable[[WorkTotals], None] = _show_nothing
    growth: Callable[[], int] | None = None
    cleanup: ExitStack = field(default_factory=ExitStack)

    def compute(self, job: PrecomputeJob, stage: str, reporter: Reporter) -> WorkTotals:
        """Compute and store the rows of every block that waits; merge the manifest."""
        num_steps = job.trajectory.num_steps
        waiting, workers = job.waiting(), self.group.workers
        scheduler = Scheduler(num_steps, waiting, len(workers), set(workers))
        total = len(waiting) * num_steps
        file = ProgressFile(self.run.path, total)
        with reporter.stage(stage) as progress:

            def observe(state: Scheduler, totals: WorkTotals) -> None:
                progress(state.steps_done, total)
                self.show(totals)
                file.show(state, totals)

            try:
                totals = Driver(scheduler, self.group, observe, self.growth).run()
            finally:
                file.remove()
        job.store.merge()
        return totals

    def wait(self) -> None:
        """Wait until the workers have started, or a while: those that have can begin."""
        self.group.wait_until_ready(READY_SECONDS)

    def close(self) -> None:
        """End the workers and what belongs to them."""
        for worker in self.group.workers:
            self.group.end(worker)
        self.cleanup.close()


@contextmanager
def starting_workers(
    run: RunDirectory, problem: Problem, num_blocks: int, session: RaySession, reporter: Reporter
) -> "Iterator[Future[WorkerPool]]":
    """Start workers for `num_blocks` blocks, Ray's while the block goes on; end them after it."""
    address = chosen_address(run.config.cluster, problem, num_blocks)
    if address == NO_RAY:
        if num_blocks and run.config.cluster.address != NO_RAY:
            reporter.say("precomputing in this process: that takes less time than starting Ray")
        starting: Future[WorkerPool] = Future()
        starting.set_result(pool_in_process(run, problem))
    else:
        reporter.say(f"starting Ray's workers (cluster.address: {address})")
        starting = session.submit(lambda: _start_on_ray(session, address, run, problem, num_blocks))
    try:
        yield starting
    finally:
        # Whatever happened here, no actor may stay behind in a session that is kept.
        wait([starting])
        if starting.exception() is None:
            starting.result().close()


def _start_on_ray(
    session: RaySession, address: str, run: RunDirectory, problem: Problem, num_blocks: int
) -> WorkerPool:
    from cluster.ray_pool import start_on_ray  # Ray takes seconds to import

    return start_on_ray(session, address, run, problem, num_blocks)


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


def precompute(run: RunDirectory, problem: Problem, reporter: Reporter) -> None:
    """Compute every row that is not stored yet; does nothing if all are.

    Raises:
        WriterConflictError: If another driver is at work on the run; the message names it.
    """
    with exclusive(run):
        _compute(run, PrecomputeJob.of_training(run, problem), "precompute", reporter)


def repair(
    run: RunDirectory, epochs: int, learning_rate: float | None, reporter: Reporter
) -> dict[str, Any]:
    """Fine-tune here and propagate the rows with workers; an interrupted repair is continued.

    Raises:
        WriterConflictError: If another driver is at work on the run; the message names it.
    """
    with exclusive(run), ExitStack() as stack:
        with reporter.stage("fine-tuning") as progress:
            job = stack.enter_context(under_repair(run, epochs, learning_rate, progress))
        _compute(run, job, "repair", reporter)
    return {"run": str(run.path), **asdict(Repaired.of(job))}


def _compute(run: RunDirectory, job: PrecomputeJob, stage: str, reporter: Reporter) -> None:
    num_waiting = len(job.waiting())
    if not num_waiting:
        job.store.merge()
        return
    with (
        RaySession() as session,
        starting_workers(run, job.problem, num_waiting, session, reporter) as starting,
    ):
        workers = starting.result()
        workers.wait()
        compute_with(workers, job, stage, reporter)


def compute_with(workers: WorkerPool, job: PrecomputeJob, stage: str, reporter: Reporter) -> None:
    """Propagate rows with workers that are started, and keep the measurements."""
    began, driver_began = time.perf_counter(), time.process_time()
    num_workers = len(workers.group.workers)
    totals = workers.compute(job, stage, reporter)
    record_measurements(
        workers.run,
        stage,
        {
            "seconds": time.perf_counter() - began,
            "workers": num_workers,
            "driver_cpu_seconds": time.process_time() - driver_began,
            "hvps": totals.num_products,
            "busy_seconds": totals.busy_seconds,
            "max_drift": totals.max_drift,
            "workers_lost": totals.workers_lost,
            "peak_bytes_per_worker": totals.peak_bytes,
        },
    )
