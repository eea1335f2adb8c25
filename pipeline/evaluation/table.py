"""The trial deletions as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from pipeline.evaluation.formatting import MISSING, correlation, duration, number, percent


def deletion_table(report: Mapping[str, Any]) -> Table:
    """Return one row per entry of the report's `deletions`."""
    table = Table(
        title=f"{report['name']}: deleted, against really retrained",
        caption="error = distance / doing nothing; 0% is retraining, 100% is doing nothing",
    )
    for header in ("deleted", "share", "sum", "distance", "doing nothing", "error", "Pearson"):
        table.add_column(header, justify="right")
    for model in ("trained", "unlearned", "retrained"):
        table.add_column(f"accuracy\n{model}", justify="right")
    for entry in report["deletions"]:
        error = entry["relative_error"]
        table.add_row(
            f"{entry['units']:,}",
            percent(entry["units"] / report["num_units"]),
            duration(entry["sum_seconds"]),
            number(entry["distance"]),
            number(entry["no_update_distance"]),
            MISSING if error is None else f"[bold]{percent(error, 2)}[/]",
            correlation(entry["loss_change_pearson"]),
            *(percent(value) for value in entry["test_accuracy"].values()),
        )
    return table
