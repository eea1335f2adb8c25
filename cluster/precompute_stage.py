"""`unlearn precompute`, `repair` and `retrain`: rows from workers in this process or on Ray."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from cluster.console import Reporter
from cluster.ray_choice import NO_RAY, chosen_address
from cluster.session import RaySession
from cluster.worker_pool import WorkerPool, finish, pool_in_process
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.approximators.repair import Repaired, under_repair
from pipeline.approximators.retrain import under_retraining
from pipeline.run.directory import RunDirectory, exclusive
from pipeline.run.measurements import record_measurements
from pipeline.run.problem import Problem


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


def retrain(run: RunDirectory, reporter: Reporter, *, final: bool = False) -> dict[str, Any]:
    """Train without the deleted here and propagate the rows with workers; continue one interrupted.

    Raises:
        WriterConflictError: If another driver is at work on the run; the message names it.
    """
    with ExitStack() as stack:
        with reporter.stage("retraining") as progress:
            retraining = stack.enter_context(under_retraining(run, final=final, progress=progress))
        if retraining.job is not None:
            _compute(run, retraining.job, "retrain", reporter)
    assert retraining.result is not None, "workers that return have computed every block"
    for line in retraining.result.waiting:
        reporter.say(f"warning: {line}")
    return {"run": str(run.path), **asdict(retraining.result)}


def _compute(run: RunDirectory, job: PrecomputeJob, stage: str, reporter: Reporter) -> None:
    num_waiting = len(job.waiting())
    if not num_waiting:
        finish(job, reporter)
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
            "seconds": time.perf_counter() - began - totals.terms_seconds,
            "workers": num_workers,
            "driver_cpu_seconds": time.process_time() - driver_began,
            "hvps": totals.num_products,
            "busy_seconds": totals.busy_seconds,
            "max_drift": totals.max_drift,
            "workers_lost": totals.workers_lost,
            "peak_bytes_per_worker": totals.peak_bytes,
        },
    )
