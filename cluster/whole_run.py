"""`unlearn run`: everything from a configuration to a report, overlapping Ray's start with training."""

import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.console import Reporter
from cluster.worker_pool import compute_with, remote_sum, worker_pool
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.certificates.declaration import check_settings, declare
from pipeline.config import RunConfig
from pipeline.evaluation.assemble import assemble
from pipeline.evaluation.report import read_report, write_report
from pipeline.evaluation.trials import draw_sets, run_trials, unlearn
from pipeline.run.directory import RunDirectory, exclusive
from pipeline.run.measurements import record_measurements
from pipeline.run.problem import Problem
from pipeline.run.store import check_store, refuse_repaired, store_spec
from pipeline.run.trajectory import Trajectory
from pipeline.training.train import record
from storage.store import ApproximatorStore


def train(config: RunConfig, out: Path, reporter: Reporter) -> tuple[RunDirectory, Problem]:
    """Train and record the trajectory, unless that is done."""
    run, problem = RunDirectory.prepare(out, config)
    if not run.is_trained():
        check_store(run)
        with exclusive(run):
            train_into(run, problem, reporter)
    return run, problem


def train_into(run: RunDirectory, problem: Problem, reporter: Reporter) -> Trajectory:
    """Record the trajectory of a run that has none yet."""
    began = time.perf_counter()
    with reporter.stage("training") as progress:
        trajectory = record(problem, run.trajectory_folder, progress)
    record_measurements(
        run, "train", {"seconds": time.perf_counter() - began, "num_steps": trajectory.num_steps}
    )
    return trajectory


def run_all(config: RunConfig, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Train, precompute, try deletions and report; return the report.

    Raises:
        ConfigError: If `out` belongs to another configuration.
    """
    began = time.perf_counter()
    check_settings(config)
    run, problem = RunDirectory.prepare(out, config)
    finished = finished_report(run)
    if finished is not None:
        reporter.say(f"nothing left to do; see {run.path / 'report.html'}")
        return finished
    if not run.is_trained():
        check_store(run)
    with exclusive(run), ExitStack() as stack:
        workers = _trained_with_workers(run, problem, stack, reporter)
        job = PrecomputeJob.of_training(run, problem)
        store = job.store
        refuse_repaired(run, store)
        if job.waiting():
            compute_with(workers, job, "precompute", reporter)
        store.merge()
        candidates = written_units(store)
        sets = draw_sets(config.evaluation, candidates, config.seed)
        sum_rows = remote_sum(run)
        with reporter.stage("trials", "sets") as progress:
            deletions = run_trials(run, problem, sets, sum_rows, progress)
        with reporter.stage("calibration", "sets") as progress:
            trained_P = run.trajectory().trained().numpy()
            declare(
                run,
                problem,
                lambda units: unlearn(problem, units, trained_P, sum_rows)[0],
                progress,
            )
    report = assemble(run, problem, deletions)
    write_report(run.path, report)
    reporter.say(f"finished in {time.perf_counter() - began:.0f} s; see {run.path / 'report.html'}")
    return report


def _trained_with_workers(
    run: RunDirectory, problem: Problem, stack: ExitStack, reporter: Reporter
) -> Any:
    """Train while Ray and its workers start; return the workers."""
    block = store_spec(problem.config.storage, problem.num_parameters).block
    num_blocks = -(-len(problem.data.units) // block)
    # Ray's processes end with the thread that started them, so that thread stays until the end.
    pool = stack.enter_context(ThreadPoolExecutor(max_workers=1))
    starting = pool.submit(stack.enter_context, worker_pool(run, problem, num_blocks))
    try:
        if not run.is_trained():
            train_into(run, problem, reporter)
    finally:
        # Whatever happened here, the other thread must not enter the stack while it closes.
        wait([starting])
    reporter.say("waiting for Ray's workers to start")
    workers = starting.result()
    workers.wait()
    return workers


def finished_report(run: RunDirectory) -> dict[str, Any] | None:
    """Return the report of an earlier, equal call, if it was the last thing that happened here."""
    path = run.path / "report.json"
    declared = run.config.certificate.kind == "none" or run.declaration_path.exists()
    if not path.is_file() or not declared:
        return None
    report: dict[str, Any] = read_report(run.path)
    settled = run.config.model_dump(mode="json")
    return report if report.get("config") == settled else None


def written_units(store: ApproximatorStore) -> list[int]:
    """Return the numbers of the units whose rows are there: trials forget nobody twice."""
    return [row for row, name in enumerate(store.units) if name]
