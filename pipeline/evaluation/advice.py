"""What the figures of a run suggest doing, in lines a person can act on."""

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.formatting import percent

# Smooth activations keep a single unit's error at percents; above this a kink is at work.
LARGE_ERROR = 0.25
_RELU_MODELS = ("mlp", "cnn", "lenet")


def advice(report: Mapping[str, Any]) -> list[str]:
    """Return what to change, or nothing where nothing stands out.

    Args:
        report: With `deletions`, `config`, `row_error_max`.
    """
    lines = []
    errors = [
        (entry["relative_error"], entry["units"])
        for entry in report["deletions"]
        if entry["relative_error"] is not None
    ]
    worst, units = max(errors, default=(0.0, 0))
    if worst >= 1:
        lines.append(
            f"Deleting {units} units lands no nearer to retraining than doing nothing (relative "
            f"error {percent(worst)}): retrain instead of deleting that many from this run."
        )
    if worst > LARGE_ERROR and _has_relu(report["config"]):
        lines.append(
            f"The relative error of {units} units is {percent(worst)}. ReLU networks lose this much "
            "because their second derivatives are blind to kinks; train with a smooth activation "
            "(model.activation: tanh, silu or gelu), and judge ReLU runs by sets rather than by "
            "single units."
        )
    if report["row_error_max"] > min((error for error, _ in errors if error > 0), default=1.0):
        lines.append(
            f"Rows are stored with a relative error of up to {percent(report['row_error_max'])}, "
            "more than the smallest error of the method itself: choose a wider storage.encoding."
        )
    return lines


def _has_relu(config: Mapping[str, Any]) -> bool:
    """Whether kinks are in the network, as far as its configuration tells."""
    model = config["model"]
    if config["recursion"].get("relu_curvature") == "softplus":
        return True
    return model["name"] in _RELU_MODELS and model["activation"] == "relu"
