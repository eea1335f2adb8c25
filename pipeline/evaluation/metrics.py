"""What a run's models are judged by on the test samples, by its loss: names, words and formats.

Nothing here computes: `accuracy.py` does, and a report is rendered from its numbers alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.formats import MISSING, number, percent


@dataclass(frozen=True)
class Metric:
    """A figure of a model on the test samples.

    Attributes:
        key: In `report.json`.
        name: In tables and on axes.
        meaning: A sentence for the report.
        is_share: Whether it is shown as a percentage, 1 the best.
    """

    key: str
    name: str
    meaning: str
    is_share: bool = False

    def text(self, value: float | None, digits: int = 1) -> str:
        """Return a value as text, or a dash for none; `digits` are a percentage's decimals."""
        if value is None:
            return MISSING
        return percent(value, digits) if self.is_share else number(value, 3 + digits)


ACCURACY = Metric(
    "accuracy",
    "accuracy",
    "Accuracy on the test samples, which no model was trained on.",
    is_share=True,
)
METRICS = {
    metric.key: metric
    for metric in (
        ACCURACY,
        Metric(
            "label_accuracy",
            "label accuracy",
            "Share of the test samples' labels that are right, each decided at probability one half.",
            is_share=True,
        ),
        Metric(
            "exact_match",
            "exact match",
            "Exact match is the share of samples all of whose labels are right.",
            is_share=True,
        ),
        Metric(
            "rmse",
            "RMSE",
            "Root of the mean squared error on the test samples, in the unit of the targets.",
        ),
        Metric(
            "r_squared",
            "R²",
            "R² is the share of the test targets' variance that is explained, the mean over outputs.",
        ),
        Metric(
            "deviance",
            "mean deviance",
            "Mean Poisson deviance of the test samples, 2 (y log(y / rate) - y + rate): 0 is a perfect "
            "rate for each.",
        ),
        Metric(
            "perplexity",
            "perplexity",
            "Perplexity on the test samples: the exponential of the mean loss of a position, without "
            "smoothing or class weights.",
        ),
        Metric(
            "token_accuracy",
            "token accuracy",
            "Token accuracy is the share of positions whose largest score is their class.",
            is_share=True,
        ),
        Metric("loss", "loss", "Mean loss of the test samples."),
    )
}
_MODELS = ("trained", "unlearned", "retrained")
# Losses that are negative log likelihoods, but for a constant.
_IN_NATS = ("cross-entropy", "binary-cross-entropy", "token-cross-entropy", "poisson")


def metric_of(report: Mapping[str, Any]) -> Metric:
    """Return what `quality` means in a report, or in an entry of a sweep."""
    return METRICS[report.get("metric") or ACCURACY.key]


def quality_of(entry: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the quality of the trained, unlearned and retrained models of a report's deletion.

    Reports of earlier versions have `test_accuracy` alone.
    """
    found: dict[str, float | None] = entry.get("quality") or entry["test_accuracy"]
    return found


def quality_at(point: Mapping[str, Any]) -> float | None:
    """Return the quality at a point of a training curve."""
    found: float | None = point.get("quality", point["test_accuracy"])
    return found


def figures_of(report: Mapping[str, Any]) -> list[Metric]:
    """Return all figures that a report's deletions hold, the `metric` first."""
    for entry in report["deletions"]:
        return [METRICS[key] for key in entry.get("test_figures", {metric_of(report).key: None})]
    return [metric_of(report)]


def figure_of(entry: Mapping[str, Any], metric: Metric) -> list[float | None]:
    """Return a figure of the trained, the unlearned and the retrained model."""
    values = entry.get("test_figures", {}).get(metric.key) or quality_of(entry)
    return [values[model] for model in _MODELS]


def loss_unit(report: Mapping[str, Any]) -> str:
    """Return ", nats" for a report whose losses are log likelihoods, else nothing."""
    loss = report.get("config", {}).get("training", {}).get("loss", "cross-entropy")
    return ", nats" if loss in _IN_NATS else ""


def or_nan(value: float | None) -> float:
    """Return a value for a plot."""
    return float("nan") if value is None else value
