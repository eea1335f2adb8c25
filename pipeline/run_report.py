"""Assembling what a run measured into one report; the keys are an interface (docs/architecture.md)."""

from typing import Any

from pipeline.evaluation.training_curve import training_curve
from pipeline.measurements import read_measurements
from pipeline.models.activations import has_relu
from pipeline.problem import Problem
from pipeline.rundir import RunDirectory
from storage.store import ApproximatorStore

# Above this relative error a ReLU network's kinks are the likely reason.
LARGE_ERROR = 0.3


def assemble(
    run: RunDirectory, problem: Problem, deletions: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the report of a run whose rows are all stored. No id of a person stands in it."""
    measured = read_measurements(run)
    trained, computed = measured.get("train", {}), measured.get("precompute", {})
    facts = ApproximatorStore.open(run.store_url).facts()
    seconds, hvps = computed.get("seconds"), computed.get("hvps")
    trajectory = run.trajectory()
    return {
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
        "advice": advice(problem, deletions),
        "config": run.config.model_dump(mode="json"),
        "environment": run.environment(),
    }


def advice(problem: Problem, deletions: list[dict[str, Any]]) -> list[str]:
    """Return what a reader should know of the measured errors, one line each."""
    errors = [entry["relative_error"] for entry in deletions]
    if not errors or max(errors) < LARGE_ERROR:
        return []
    worst = max(errors)
    if has_relu(problem.network.module):
        return [
            f"The measured relative error reaches {worst:.0%}. This network uses ReLU, whose kinks no "
            "Hessian sees; activation tanh, silu or gelu keeps the error at a few percent. Judge "
            "ReLU networks by sets of units, not by single ones."
        ]
    return [
        f"The measured relative error reaches {worst:.0%}: many units were deleted for this model and "
        "step size. A smaller learning rate, more L2 or repair after the deletion lowers it."
    ]
