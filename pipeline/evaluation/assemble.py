"""A run's measurements as one report; the keys are an interface (docs/architecture.md)."""

# K tangents, P parameters

from typing import Any

import torch
from torch import Tensor

from pipeline.approximators.recursion import low_precision
from pipeline.evaluation.accuracy import held_out_quality, training_curve
from pipeline.evaluation.pilot import pilot_of
from pipeline.evaluation.report import advice
from pipeline.hessian.linearization import Linearization
from pipeline.run.directory import RunDirectory
from pipeline.run.error_curve import ErrorCurve, merged
from pipeline.run.measurements import read_measurements
from pipeline.run.problem import Problem
from pipeline.run.trajectory import Trajectory
from pipeline.run.verdict import report_points, report_verdict
from storage.store import ApproximatorStore


def tangent_errors(problem: Problem, w_P: Tensor, rows_KP: Tensor) -> dict[str, float]:
    """Return the relative error of Hessian products in TF32 and bfloat16, on the run's own data.

    Args:
        problem: The run; one minibatch of its first samples is used.
        w_P: Parameters at which the Hessian is taken.
        rows_KP: Approximators to propagate, such as stored ones.

    Returns:
        |H a - H_low a| / |H a| over all approximators. On a processor without TF32 its error is 0.
    """
    size = min(problem.config.training.batch_size, problem.data.num_samples)
    sample_ids = torch.arange(size, device=problem.device)
    with problem.arithmetic():
        linearization = problem.network.linearize(w_P, problem.minibatch(sample_ids))
        exact = linearization.hessian_products(rows_KP, None)
        low = _tf32(linearization, rows_KP)
        with low_precision(rows_KP.device.type, "bfloat16"):
            lower = linearization.hessian_products(rows_KP, None)
    norm = torch.linalg.vector_norm(exact)
    return {
        "tf32": float(torch.linalg.vector_norm(low - exact) / norm),
        "bfloat16": float(torch.linalg.vector_norm(lower.to(exact.dtype) - exact) / norm),
    }


def _tf32(linearization: Linearization, rows_KP: Tensor) -> Tensor:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return linearization.hessian_products(rows_KP, None)
    finally:
        torch.set_float32_matmul_precision(before)


# Approximators whose Hessian products are compared between precisions: a sample, not all.
TANGENTS = 8


def assemble(
    run: RunDirectory, problem: Problem, deletions: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the report of a run whose approximators are all stored. It names no unit."""
    measured = read_measurements(run)
    trained, computed = measured.get("train", {}), measured.get("precompute", {})
    store = ApproximatorStore.open(run.store_url)
    facts = store.facts()
    seconds, hvps = computed.get("seconds"), computed.get("hvps")
    trajectory = run.trajectory()
    report = {
        "name": run.config.name,
        "num_units": len(problem.data.units),
        "num_parameters": problem.num_parameters,
        "num_steps": trajectory.num_steps,
        "engine": run.config.recursion.engine,
        "error_limit": run.config.evaluation.max_error,
        "hvp_form": problem.network.form,
        "train_seconds": trained.get("seconds"),
        "precompute_seconds": seconds,
        "hvps": hvps,
        "hvps_per_second": hvps / seconds if hvps and seconds else None,
        "store_bytes": facts.store_bytes,
        "bytes_per_parameter": facts.bytes_per_parameter,
        "row_error_max": facts.row_error_max,
        "tangent_errors": _tangent_errors(problem, trajectory, store),
        "replay_drift": computed.get("max_drift"),
        "metric": _metric(problem, trajectory),
        "deletions": deletions,
        "training_curve": training_curve(problem, trajectory),
        "config": run.config.model_dump(mode="json"),
        "environment": run.environment(),
    }
    if "one_class" in measured:
        seconds = measured.get("class_terms", {}).get("seconds")
        report["class_terms"] = {"seconds": seconds, **measured["one_class"]}
    found = pilot_of(run)
    if found is not None:
        report["pilot"] = found
    return report | {"verdict": report_verdict(report).text, "advice": advice(report)}


def measured_curve(run: RunDirectory, deletions: list[dict[str, Any]]) -> ErrorCurve | None:
    """Return what trials say of the error by size; None if no trial has a defined error."""
    points = merged(report_points(deletions))
    return ErrorCurve("trials", run.config.recursion.engine, points) if points else None


def _metric(problem: Problem, trajectory: Trajectory) -> str:
    with problem.arithmetic():
        return held_out_quality(problem, trajectory.trained().to(problem.initial_P)).metric


def _tangent_errors(
    problem: Problem, trajectory: Trajectory, store: ApproximatorStore
) -> dict[str, float]:
    written = [row for row, name in enumerate(store.units) if name][:TANGENTS]
    rows_KP = torch.from_numpy(store.read_rows_at(written)).to(problem.initial_P)
    if not written or not bool(rows_KP.any()) or problem.network.form == "reverse":
        return {}
    return tangent_errors(problem, trajectory.trained().to(rows_KP), rows_KP)
