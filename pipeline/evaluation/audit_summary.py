"""From single trials to the report's figures: means over seeds with the span of all of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What is averaged; each becomes [mean, lowest, highest].
FIGURES = (
    "distance",
    "relative_error",
    "pearson",
    "spearman",
    "test_accuracy",
    "seconds",
    "actual_norm",
    "estimated_norm",
)


def summarise(figures: Sequence[Mapping[str, Any]], num_units: int) -> dict[str, Any]:
    """Return the report's `audit`: by deletion and method, and norm against norm of every trial.

    Args:
        figures: One mapping per trial and method, with `units`, `seed`, `method` and `FIGURES`;
            a figure may be None where it has no meaning.
        num_units: Units trained on.
    """
    methods = list(dict.fromkeys(figure["method"] for figure in figures))
    deletions = []
    for units in sorted({figure["units"] for figure in figures}):
        here = [figure for figure in figures if figure["units"] == units]
        deletions.append(
            {
                "units": units,
                "seeds": len({figure["seed"] for figure in here}),
                "methods": {
                    method: {
                        key: _span(f[key] for f in here if f["method"] == method) for key in FIGURES
                    }
                    for method in methods
                },
            }
        )
    norms = {
        method: [
            [f["units"], f["actual_norm"], f["estimated_norm"]]
            for f in figures
            if f["method"] == method
        ]
        for method in methods
        if method not in {"no-update", "retrain"}
    }
    return {"num_units": num_units, "methods": methods, "deletions": deletions, "norms": norms}


def _span(values: Iterable[float | None]) -> list[float] | None:
    """Return [mean, lowest, highest] of the values there are, or None."""
    present = [value for value in values if value is not None]
    return [sum(present) / len(present), min(present), max(present)] if present else None
