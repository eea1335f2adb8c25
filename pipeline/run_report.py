"""Assembling what a run measured into one report; the keys are an interface (docs/architecture.md)."""

from typing import Any

from pipeline.evaluation.accuracy import training_curve
from pipeline.evaluation.advice import advice
from pipeline.measurements import read_measurements
from pipeline.problem import Problem
from pipeline.rundir import RunDirectory
from storage.store import ApproximatorStore


def assemble(
    run: RunDirectory, problem: Problem, deletions: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the report of a run whose rows are all stored. No id of a person stands in it."""
    measured = read_measurements(run)
    trained, computed = measured.get("train", {}), measured.get("precompute", {})
    facts = ApproximatorStore.open(run.store_url).facts()
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
        "replay_drift": computed.get("max_drift"),
        "deletions": deletions,
        "training_curve": training_curve(problem, trajectory),
        "config": run.config.model_dump(mode="json"),
        "environment": run.environment(),
    }
    return report | {"advice": advice(report)}
