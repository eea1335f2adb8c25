"""`unlearn run`: everything from a configuration to a report; Ray, if needed, starts meanwhile."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.console import Reporter
from cluster.pilot_stage import adopt, settled
from cluster.precompute_stage import compute_with, starting_workers
from cluster.session import RaySession
from cluster.worker_pool import WorkerPool, finish
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.certificates.declaration import check_settings, declare
from pipeline.config import RunConfig
from pipeline.deletion.class_terms import class_terms_of
from pipeline.deletion.delete import refuse_without_rows
from pipeline.deletion.weights import SumRows
from pipeline.errors import ConfigError
from pipeline.evaluation.assemble import assemble, measured_curve
from pipeline.evaluation.class_trials import run_class_trials
from pipeline.evaluation.report import read_report, write_report
from pipeline.evaluation.trials import draw_sets, local_sum, run_trials, unlearn
from pipeline.run.directory import RunDirectory, exclusive
from pipeline.run.measurements import read_measurements, record_measurements
from pipeline.run.problem import Problem
from pipeline.run.store import check_store, refuse_repaired, store_spec
from pipeline.run.trajectory import Trajectory
from pipeline.run.verdict import report_points, verdict
from pipeline.training.train import record
from storage.store import ApproximatorStore


def train(config: RunConfig, out: Path, reporter: Reporter) -> tuple[RunDirectory, Problem]:
    """Train and record the trajectory, unless that is done."""
    config = settled(config, out, reporter)
    run, problem = RunDirectory.prepare(out, config)
    if not run.is_trained():
        check_store(run)
        with exclusive(run):
            train_into(run, problem, reporter)
    adopt(run)
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


def run_all(
    config: RunConfig, out: Path, reporter: Reporter, session: RaySession | None = None
) -> dict[str, Any]:
    """Train, precompute, try deletions and report; return the report.

    Args:
        config: The run.
        out: Run directory.
        reporter: Shows progress.
        session: The Ray of a command with several runs; without one, this run has its own, if any.

    Raises:
        ConfigError: If `out` belongs to another configuration.
    """
    began = time.perf_counter()
    check_settings(config)
    config = settled(config, out, reporter)
    run, problem = RunDirectory.prepare(out, config)
    finished = finished_report(run)
    if finished is not None:
        reporter.say(f"nothing left to do; see {run.path / 'report.html'}")
        return finished
    if not run.is_trained():
        check_store(run)
    with exclusive(run), ExitStack() as stack:
        session = session or stack.enter_context(RaySession())
        blocks = _waiting_blocks(run, problem)
        starting = stack.enter_context(starting_workers(run, problem, blocks, session, reporter))
        if not run.is_trained():
            train_into(run, problem, reporter)
        adopt(run)
        workers = starting.result()
        workers.wait()
        deletions = _computed_and_tried(workers, run, problem, reporter)
        keep_measured(run, deletions)
    report = assemble(run, problem, deletions)
    write_report(run.path, report)
    reporter.say(f"finished in {time.perf_counter() - began:.0f} s; see {run.path / 'report.html'}")
    return report


def keep_measured(run: RunDirectory, deletions: list[dict[str, Any]]) -> None:
    """Keep what the trials say of the error by size: deletions are refused by it."""
    curve = measured_curve(run, deletions)
    if curve is not None:
        curve.write(run)


def measure(run: RunDirectory, reporter: Reporter) -> dict[str, Any]:
    """Try deletions on a run whose approximators are stored; keep the error, report what there is.

    A run that was recorded, or precomputed by itself, has no error until this. The report is written
    where training and precompute were timed, which the commands do.

    Raises:
        ConfigError: If approximators are missing, or the run was repaired.
        WriterConflictError: If another driver is at work on the run.
    """
    refuse_without_rows(run)
    problem = run.problem()
    store = ApproximatorStore.open(run.store_url)
    refuse_repaired(run, store)
    if "absent" in store.states:
        raise ConfigError(
            f"approximators of {run.path} are still missing; run `unlearn precompute` first"
        )
    sets = draw_sets(problem.config.evaluation, written_units(store), problem.config.seed)
    if not sets:
        raise ConfigError(
            "evaluation.deletions names no size; set one, as in `unlearn configure DIR "
            "evaluation.deletions=[1,20,0.2]`"
        )
    with exclusive(run):
        with reporter.stage("trials", "sets") as progress:
            deletions = run_trials(run, problem, sets, local_sum(store), progress)
            keep_measured(run, deletions)
        one_class = try_classes(run, problem, store, local_sum(store), reporter)
    measured = read_measurements(run)
    if {"train", "precompute"} <= measured.keys():
        write_report(run.path, assemble(run, problem, deletions))
    limit = run.config.evaluation.max_error
    found = verdict(report_points(deletions), run.config.data.unit, limit)
    shown = ("units", "samples", "repeats", "relative_error", "relative_error_range")
    return {
        "run": str(run.path),
        "engine": run.config.recursion.engine,
        "error_limit": limit,
        "verdict": found.text,
        "deletions": [{key: entry[key] for key in shown} for entry in deletions],
        **({} if one_class is None else {"one_class": one_class}),
    }


def try_classes(
    run: RunDirectory,
    problem: Problem,
    store: ApproximatorStore,
    sum_rows: SumRows,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """Try deletions from one class on a run with class terms; keep the errors for the report."""
    terms = class_terms_of(run)
    if terms is None:
        return None
    with reporter.stage("trials of one class", "sets") as progress:
        found = run_class_trials(
            problem, run.trajectory(), terms, written_units(store), sum_rows, progress
        )
    if found is not None:
        record_measurements(run, "one_class", found)
    return found


def _waiting_blocks(run: RunDirectory, problem: Problem) -> int:
    """Return how many blocks are to be computed: all of them before the run is trained."""
    if run.is_trained():
        return len(PrecomputeJob.of_training(run, problem).waiting())
    block = store_spec(problem.config.storage, problem.num_parameters).block
    return -(-len(problem.data.units) // block)


def _computed_and_tried(
    workers: WorkerPool, run: RunDirectory, problem: Problem, reporter: Reporter
) -> list[dict[str, Any]]:
    """Compute what waits, try deletions and declare; return the report's entries of the trials."""
    job = PrecomputeJob.of_training(run, problem)
    store = job.store
    refuse_repaired(run, store)
    if job.waiting():
        compute_with(workers, job, "precompute", reporter)
    else:
        finish(job, reporter)
    sets = draw_sets(problem.config.evaluation, written_units(store), problem.config.seed)
    sum_rows = workers.start_sums()
    with reporter.stage("trials", "sets") as progress:
        deletions = run_trials(run, problem, sets, sum_rows, progress)
    try_classes(run, problem, store, sum_rows, reporter)
    with reporter.stage("calibration", "sets") as progress:
        trained_P, terms = run.trajectory().trained().numpy(), class_terms_of(run)
        declare(
            run,
            problem,
            lambda units: unlearn(problem, units, trained_P, sum_rows, terms)[0],
            progress,
        )
    return deletions


def finished_report(run: RunDirectory) -> dict[str, Any] | None:
    """Return the report of an earlier, equal call, if it was the last thing that happened here."""
    path = run.path / "report.json"
    declared = run.config.certificate.kind == "none" or run.declaration_path.exists()
    if not path.is_file() or not declared:
        return None
    report: dict[str, Any] = read_report(run.path)
    try:
        # Read as a configuration: an older version wrote some values in other words.
        reported = RunConfig.from_values(report.get("config", {}))
    except ConfigError:
        return None
    return report if reported == run.config else None


def written_units(store: ApproximatorStore) -> list[int]:
    """Return the numbers of the units whose rows are stored: trials delete no unit twice."""
    return [row for row, name in enumerate(store.units) if name]
