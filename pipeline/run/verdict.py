"""The verdict on a run's error, in words: one text for terminal, report, status, receipt, certificate.

What is left of the deleted units is the relative error: 0% is retraining, 100% is no unlearning.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.formats import percent
from pipeline.run.error_curve import LARGEST, ErrorPoint

# With smooth activations the error of a set is a few percent; a larger one is worth a look.
NOTABLE = 0.25
# The default of `evaluation.max_error`, for reports that were written before there was a limit.
DEFAULT_LIMIT = 0.5
NOT_MEASURED = "error not measured"

Level = Literal["good", "notable", "bad", "unknown"]
_ORDER: tuple[Level, ...] = ("unknown", "good", "notable", "bad")


@dataclass(frozen=True)
class Verdict:
    """What a measured error means for deletions.

    Attributes:
        level: `good` below a quarter; `notable` from there to the limit; `bad` above the limit, or
            where no unlearning is as near to retraining; `unknown` where nothing was measured.
        text: One line.
    """

    level: Level
    text: str


def counted(num_units: int, unit: str) -> str:
    """Return "1 user", "1,200 samples" or the like."""
    return f"{num_units:,} {unit}" if num_units == 1 else f"{num_units:,} {unit}s"


def level_of(error: float, limit: float | None) -> Level:
    """Return how good an error is."""
    if error >= 1 or (limit is not None and error > limit):
        return "bad"
    return "notable" if error >= NOTABLE else "good"


def size_verdict(num_units: int, unit: str, error: float, limit: float | None) -> Verdict:
    """Return the verdict on deletions of one size.

    >>> size_verdict(5, "user", 0.03, 0.5).text
    '5 users: 3% left'
    >>> size_verdict(30, "user", 9.51, 0.5).text
    '30 users: worse than not deleting: retrain'
    """
    level, what = level_of(error, limit), counted(num_units, unit)
    if error >= 1:
        return Verdict(level, f"{what}: worse than not deleting: retrain")
    left = f"{what}: {percent(error)} left"
    if level == "bad":
        assert limit is not None
        return Verdict(level, f"{left}, above the limit of {percent(limit)}: retrain")
    return Verdict(level, f"{left}, much" if level == "notable" else left)


def verdict(points: Iterable[ErrorPoint], unit: str, limit: float | None) -> Verdict:
    """Return the verdict on every size that was measured or estimated, the worst level of them."""
    found = [size_verdict(point.units, unit, point.figure, limit) for point in points]
    if not found:
        return Verdict("unknown", NOT_MEASURED)
    return Verdict(
        max((each.level for each in found), key=_ORDER.index),
        ". ".join(each.text for each in found),
    )


def report_points(deletions: Iterable[Mapping[str, Any]]) -> list[ErrorPoint]:
    """Return the points of a report's `deletions`.

    An entry whose retraining gives the trained model has none, since its error is not defined. One of
    which anything is not finite has the largest there is.
    """
    return [_point(entry) for entry in deletions if entry["no_update_distance"] != 0]


def _point(entry: Mapping[str, Any]) -> ErrorPoint:
    ends = entry.get("relative_error_range", ())
    low, high = (_finite(end) for end in ends or (entry["relative_error"],) * 2)
    median = _finite(entry["relative_error"])
    return ErrorPoint(
        int(entry["units"]),
        int(entry.get("samples", 0)),
        median,
        min(low, median),
        max(high, median),
        int(entry.get("repeats", 1)),
        "measured",
    )


def _finite(error: float | None) -> float:
    """Return an error as a number; JSON holds none for one that is not finite."""
    return float(error) if error is not None and 0 <= error <= LARGEST else LARGEST


def report_verdict(report: Mapping[str, Any]) -> Verdict:
    """Return the verdict on a report, also of one that an earlier version wrote."""
    config = report["config"]
    unit = config.get("data", {}).get("unit", "sample")
    return verdict(report_points(report["deletions"]), unit, report_limit(report))


def report_limit(report: Mapping[str, Any]) -> float | None:
    """Return `evaluation.max_error` of a report."""
    limit = report["config"].get("evaluation", {}).get("max_error", DEFAULT_LIMIT)
    return None if limit is None else float(limit)


def statement(stated: Mapping[str, Any]) -> str:
    """Return what a certificate says of the error, from what its release recorded.

    Args:
        stated: As `pipeline.deletion.gate.Decision.stated` gives it.
    """
    limit, accepted = stated["limit"], stated["accepted"]
    parts = [_error_statement(stated)]
    if limit is None:
        parts.append("no limit: evaluation.max_error is null")
    else:
        parts.append(f"limit {percent(limit)}")
    if accepted is not None:
        parts.append(f"accepted by the operator up to {percent(accepted)}")
    return "; ".join(parts)


def _error_statement(stated: Mapping[str, Any]) -> str:
    if stated["error"] is None:
        return stated["note"] or NOT_MEASURED
    note = f" ({stated['note']})" if stated["note"] else ""
    error, low, high = (_shown(stated[key]) for key in ("error", "low", "high"))
    if stated["how"] == "estimated":
        return (
            f"estimated error at this size{note}: at most {error}, range {low} to {high}; "
            "not measured, not a proof"
        )
    how = "" if stated["how"] == "measured" else f", {stated['how']}"
    trials = f"{stated['trials']} trials" if stated["trials"] != 1 else "1 trial"
    return (
        f"measured error at this size{how}{note}: median {error}, range {low} to {high}, {trials}; "
        "not a proof"
    )


def _shown(error: float) -> str:
    return "beyond all bounds" if error >= LARGEST else percent(error)
