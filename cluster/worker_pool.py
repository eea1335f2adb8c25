"""Precomputing on Ray, and the actor that sums rows: what needs workers."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.metrics import Counter, Gauge

from cluster.actors import ActorGroup, start_deletion_worker, start_recursion_worker
from cluster.console import Reporter
from cluster.driver import Driver, Totals
from cluster.errors import WorkersLostError
from cluster.progress_file import ProgressFile
from cluster.resources import (
    Growth,
    Placement,
    ask_for_room,
    check_block_fits,
    place,
    release_room,
    wait_until_grown,
    worker_bytes,
)
from cluster.scheduler import Scheduler
from cluster.session import resources_now, session
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.approximators.repair import Repaired, under_repair
from pipeline.config import ClusterConfig
from pipeline.run.directory import RunDirectory, exclusive
from pipeline.run.measurements import record_measurements
from pipeline.run.problem import Problem
from storage.errors import StorageError

# Measurements leave the workers' imports out; a worker that takes longer joins later.
READY_SECONDS = 60.0


@dataclass
class WorkerPool:
    """Workers on a cluster, started before there is work for them."""

    run: RunDirectory
    config: ClusterConfig
    group: ActorGroup

    @staticmethod
    def start(
        run: RunDirectory, config: ClusterConfig, num_workers: int, placement: Placement
    ) -> "WorkerPool":
        """Start the actors; they import while the caller goes on."""
        save_every = None if config.save_every == "auto" else config.save_every
        group = ActorGroup(lambda: start_recursion_worker(run.path, save_every, placement))
        for number in range(num_workers):
            group.start(number)
        return WorkerPool(run, config, group)

    def compute(self, job: PrecomputeJob, stage: str, reporter: Reporter) -> Totals:
        """Compute and store the rows of every block that waits; merge the manifest."""
        num_steps = job.trajectory.num_steps
        waiting, workers = job.waiting(), self.group.workers
        scheduler = Scheduler(num_steps, waiting, len(workers), set(workers))
        total = len(waiting) * num_steps
        gauges, file = Gauges(), ProgressFile(self.run.path, total)
        with reporter.stage(stage) as progress:

            def observe(state: Scheduler, totals: Totals) -> None:
                progress(state.steps_done, total)
                gauges.show(totals)
                file.show(state, totals)

            try:
                totals = Driver(scheduler, self.group, observe, self._growth(job.problem)).run()
            finally:
                file.remove()
        job.store.merge()
        return totals

    def _growth(self, problem: Problem) -> Growth | None:
        """Return what watches the cluster's size; a cluster of our own has one size."""
        if self.config.address is None or self.config.num_workers != "auto":
            return None
        num_blocks = -(-len(problem.data.units) // self.run.config.storage.units_per_block)
        needed = worker_bytes(problem, self.run.config.storage.units_per_block)
        return Growth(self.config, resources_now, num_blocks, needed)

    def wait(self) -> None:
        """Wait until the workers have started, or a while: those that have can begin."""
        self.group.wait_until_ready(READY_SECONDS)


@contextmanager
def worker_pool(run: RunDirectory, problem: Problem, num_blocks: int) -> Iterator[WorkerPool]:
    """Start or join Ray and start workers for `num_blocks` blocks; end them afterwards."""
    config = run.config.cluster
    local_cpus = None
    if config.address is None and config.num_workers != "auto":
        # Asking for more workers than cores is allowed on one's own machine: Ray counts, the
        # operating system shares.
        local_cpus = config.num_workers * config.cpus_per_worker
    needed = worker_bytes(problem, run.config.storage.units_per_block)
    with session(config.address, local_cpus), ExitStack() as stack:
        if config.grow_seconds and config.address is not None:
            ask_for_room(config, num_blocks)
            stack.callback(release_room)
            wait_until_grown(config, resources_now, num_blocks)
        check_block_fits(problem, resources_now())
        num_workers, placement = place(config, resources_now(), num_blocks, needed)
        yield WorkerPool.start(run, config, num_workers, placement)


def precompute(run: RunDirectory, problem: Problem, reporter: Reporter) -> None:
    """Compute every row that is not stored yet, on Ray; does nothing if all are.

    Raises:
        WriterConflictError: If another driver is at work on the run; the message names it.
    """
    with exclusive(run):
        _compute(run, PrecomputeJob.of_training(run, problem), "precompute", reporter)


def repair(
    run: RunDirectory, epochs: int, learning_rate: float | None, reporter: Reporter
) -> dict[str, Any]:
    """Fine-tune here and carry the rows along on Ray; an interrupted repair is continued.

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
    with worker_pool(run, job.problem, num_waiting) as workers:
        workers.wait()
        compute_with(workers, job, stage, reporter)


def compute_with(workers: WorkerPool, job: PrecomputeJob, stage: str, reporter: Reporter) -> None:
    """Carry rows with workers that are started, and keep the measurements."""
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


SumRows = Callable[[list[str], list[int] | None], tuple[Any, float]]


def remote_sum(run: RunDirectory, num_readers: int = 1) -> SumRows:
    """Return a function that has the deletion actor sum rows; it answers with sum and seconds."""
    actor = start_deletion_worker(run.path, run.config.cluster.cpus_per_worker, num_readers)

    def sum_rows(units: list[str], weights: list[int] | None) -> tuple[Any, float]:
        reference: Any = actor.sum_rows.remote(units, weights)
        try:
            answer: tuple[Any, float] = ray.get(reference)
        except RayTaskError as error:
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, StorageError) else error) from error
        except RayActorError as error:
            raise WorkersLostError(
                f"the deletion actor died: {error}; repeat the command"
            ) from error
        return answer

    return sum_rows


class Gauges:
    """The driver's totals as Prometheus metrics, through Ray's own exporter.

    They name no unit, block or row: what is scraped is kept by others.
    """

    def __init__(self) -> None:
        """Register the metrics with Ray, which must be running."""
        self._steps = Counter("unlearn_steps", "Steps of the recursion, all blocks together.")
        self._hvps = Counter("unlearn_hvps", "Hessian-vector products computed.")
        self._bytes = Counter("unlearn_stored_bytes", "Bytes of approximators written.")
        self._lost = Counter("unlearn_workers_lost", "Workers that died and were replaced.")
        self._rate = Gauge("unlearn_hvps_per_busy_second", "HVPs per second of one worker.")
        self._shown = Totals()

    def show(self, totals: Totals) -> None:
        """Add what has happened since the last call."""
        last = self._shown
        for counter, now, before in (
            (self._steps, totals.num_steps, last.num_steps),
            (self._hvps, totals.num_products, last.num_products),
            (self._bytes, totals.stored_bytes, last.stored_bytes),
            (self._lost, totals.workers_lost, last.workers_lost),
        ):
            if now > before:
                counter.inc(now - before)
        if totals.busy_seconds > last.busy_seconds:
            self._rate.set(
                (totals.num_products - last.num_products)
                / (totals.busy_seconds - last.busy_seconds)
            )
        self._shown = Totals(**vars(totals))
