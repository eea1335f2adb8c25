"""Assembling what a run measured into one report; the keys are an interface (docs/architecture.md)."""

from typing import Any

import torch

from pipeline.evaluation.accuracy import training_curve
from pipeline.evaluation.advice import advice
from pipeline.measurements import read_measurements
from pipeline.precision import tangent_errors
from pipeline.problem import Problem
from pipeline.rundir import RunDirectory
from pipeline.trajectory import Trajectory
from storage.store import ApproximatorStore

# Rows whose Hessian products are compared between precisions: a sample, not all.
TANGENTS = 8


def assemble(
    run: RunDirectory, problem: Problem, deletions: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the report of a run whose rows are all stored. No id of a person stands in it."""
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
        "deletions": deletions,
        "training_curve": training_curve(problem, trajectory),
        "config": run.config.model_dump(mode="json"),
        "environment": run.environment(),
    }
    return report | {"advice": advice(report)}


def _tangent_errors(
    problem: Problem, trajectory: Trajectory, store: ApproximatorStore
) -> dict[str, float]:
    written = [row for row, name in enumerate(store.units) if name][:TANGENTS]
    rows_KP = torch.from_numpy(store.read_rows(written)).to(problem.initial_P)
    if not written or not bool(rows_KP.any()) or problem.network.form == "reverse":
        return {}
    return tangent_errors(problem, trajectory.trained().to(rows_KP), rows_KP)
