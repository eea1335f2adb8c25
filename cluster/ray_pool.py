"""Workers on Ray: started or joined, counted for Prometheus, and the actor that sums rows."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.metrics import Counter, Gauge

from cluster.actors import ActorGroup, start_deletion_worker, start_recursion_worker
from cluster.driver import WorkTotals
from cluster.errors import WorkersLostError
from cluster.ray_choice import LOCAL
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
from cluster.session import RaySession, resources_now
from cluster.worker_pool import WorkerPool
from pipeline.run.directory import RunDirectory
from pipeline.run.problem import Problem
from storage.errors import StorageError

if TYPE_CHECKING:
    from pipeline.deletion.weights import SumRows


def start_on_ray(
    session: RaySession, address: str, run: RunDirectory, problem: Problem, num_blocks: int
) -> WorkerPool:
    """Start or join Ray and start workers for `num_blocks` blocks; closing the pool ends them.

    Raises:
        UnreachableError, ResourcesError: If there is no Ray, or too little room.
    """
    config, local_cpus = run.config.cluster, None
    if address == LOCAL and config.num_workers != "auto":
        # Asking for more workers than cores is allowed on one's own machine: Ray counts, the
        # operating system shares.
        local_cpus = config.num_workers * config.cpus_per_worker
    needed = worker_bytes(problem, run.config.storage.units_per_block)
    session.connect(address, local_cpus)
    with ExitStack() as stack:
        if config.grow_seconds and address != LOCAL:
            ask_for_room(config, num_blocks)
            stack.callback(release_room)
            wait_until_grown(config, resources_now, num_blocks)
        check_block_fits(problem, resources_now())
        num_workers, placement = place(config, resources_now(), num_blocks, needed)
        growth = None
        if address != LOCAL and config.num_workers == "auto":
            # A cluster of our own has one size; another may gain and lose machines.
            total = -(-len(problem.data.units) // run.config.storage.units_per_block)
            growth = Growth(config, resources_now, total, needed)
        asked = bool(config.grow_seconds) and address != LOCAL
        pool = pool_of_actors(run, num_workers, placement, growth, stack.pop_all())
        # An actor that is lost from then on asks for its place itself.
        return replace(pool, want_no_more=release_room) if asked else pool


def pool_of_actors(
    run: RunDirectory,
    num_workers: int,
    placement: Placement,
    growth: Growth | None = None,
    cleanup: ExitStack | None = None,
) -> WorkerPool:
    """Start actors on the Ray that is connected; they import while the caller goes on."""
    cleanup = cleanup or ExitStack()
    every = run.config.cluster.save_every
    save_every = None if every == "auto" else every
    group = ActorGroup(lambda: start_recursion_worker(run.path, save_every, placement))
    gauges = Gauges()
    pool = WorkerPool(
        run=run,
        group=group,
        start_sums=lambda: cleanup.enter_context(remote_sum(run)),
        show=gauges.show,
        growth=growth,
        cleanup=cleanup,
    )
    for number in range(num_workers):
        group.start(number)
    return pool


@contextmanager
def remote_sum(run: RunDirectory, num_readers: int = 1) -> "Iterator[SumRows]":
    """Start the deletion actor; yields a function that has it sum rows, with sum and seconds."""
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

    try:
        yield sum_rows
    finally:
        ray.kill(actor)


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
        self._shown = WorkTotals()

    def show(self, totals: WorkTotals) -> None:
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
        self._shown = WorkTotals(**vars(totals))
