"""Precomputing on Ray, and the actor that sums rows: what needs workers."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from cluster.actor_group import ActorGroup
from cluster.actors import start_deletion_worker, start_recursion_worker
from cluster.console import Reporter
from cluster.driver import Driver, Totals
from cluster.errors import WorkersLostError
from cluster.growth import Growth, ask_for_room, release_room, wait_until_grown
from cluster.memory import worker_bytes
from cluster.progress_file import ProgressFile
from cluster.resources import Placement, check_block_fits, place
from cluster.scheduler import Scheduler
from cluster.session import resources_now, session
from cluster.training_stage import exclusive
from cluster.watching import Gauges
from pipeline.config import ClusterConfig
from pipeline.measurements import record_measurements
from pipeline.passage import Passage
from pipeline.problem import Problem
from pipeline.repairing import Repaired, under_repair
from pipeline.rundir import RunDirectory
from storage.errors import StorageError

# Measurements leave the workers' imports out; a worker that takes longer joins later.
READY_SECONDS = 60.0


@dataclass
class Workforce:
    """Workers on a cluster, started before there is work for them."""

    run: RunDirectory
    config: ClusterConfig
    group: ActorGroup

    @staticmethod
    def start(
        run: RunDirectory, config: ClusterConfig, num_workers: int, placement: Placement
    ) -> "Workforce":
        """Start the actors; they import while the caller goes on."""
        save_every = None if config.save_every == "auto" else config.save_every
        group = ActorGroup(lambda: start_recursion_worker(run.path, save_every, placement))
        for number in range(num_workers):
            group.start(number)
        return Workforce(run, config, group)

    def carry(self, passage: Passage, stage: str, reporter: Reporter) -> Totals:
        """Compute and store the rows of every block that waits; merge the manifest."""
        num_steps = passage.trajectory.num_steps
        waiting, workers = passage.waiting(), self.group.workers
        scheduler = Scheduler(num_steps, waiting, len(workers), set(workers))
        total = len(waiting) * num_steps
        gauges, file = Gauges(), ProgressFile(self.run.path, total)
        with reporter.stage(stage) as progress:

            def observe(state: Scheduler, totals: Totals) -> None:
                progress(state.steps_done, total)
                gauges.show(totals)
                file.show(state, totals)

            try:
                totals = Driver(scheduler, self.group, observe, self._growth(passage.problem)).run()
            finally:
                file.remove()
        passage.store.merge()
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
def workforce(run: RunDirectory, problem: Problem, num_blocks: int) -> Iterator[Workforce]:
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
        yield Workforce.start(run, config, num_workers, placement)


def precompute(run: RunDirectory, problem: Problem, reporter: Reporter) -> None:
    """Compute every row that is not stored yet, on Ray; does nothing if all are.

    Raises:
        WriterConflictError: If another driver is at work on the run; the message names it.
    """
    with exclusive(run):
        _carry(run, Passage.of_training(run, problem), "precompute", reporter)


def repair(
    run: RunDirectory, epochs: int, learning_rate: float | None, reporter: Reporter
) -> dict[str, Any]:
    """Fine-tune here and carry the rows along on Ray; an interrupted repair is continued.

    Raises:
        WriterConflictError: If another driver is at work on the run; the message names it.
    """
    with exclusive(run), ExitStack() as stack:
        with reporter.stage("fine-tuning") as progress:
            passage = stack.enter_context(under_repair(run, epochs, learning_rate, progress))
        _carry(run, passage, "repair", reporter)
    return {"run": str(run.path), **asdict(Repaired.of(passage))}


def _carry(run: RunDirectory, passage: Passage, stage: str, reporter: Reporter) -> None:
    num_waiting = len(passage.waiting())
    if not num_waiting:
        passage.store.merge()
        return
    with workforce(run, passage.problem, num_waiting) as force:
        force.wait()
        carry_with(force, passage, stage, reporter)


def carry_with(force: Workforce, passage: Passage, stage: str, reporter: Reporter) -> None:
    """Carry rows with workers that are started, and keep the measurements."""
    began, driver_began = time.perf_counter(), time.process_time()
    num_workers = len(force.group.workers)
    totals = force.carry(passage, stage, reporter)
    record_measurements(
        force.run,
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
