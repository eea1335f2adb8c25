"""A plan as text for people."""

from typing import Any

from rich.table import Table

from pipeline.evaluation.formats import duration, size


def plan_table(summary: dict[str, Any]) -> Table:
    """Return a plan as a table for people, the other choices beside it."""
    table = Table(title=f"{summary['basis']}: {summary['device']}")
    table.add_column("choice")
    for name in ("precompute", "worker-hours", "approximators", "trajectory"):
        table.add_column(name, justify="right")
    for row in [{"choice": "as configured", **summary}, *summary["savings"]]:
        table.add_row(
            row["choice"],
            duration(row["precompute_seconds"]),
            f"{row['worker_hours']:.3g}",
            size(row["store_bytes"]),
            size(row["trajectory_bytes"]),
        )
    return table


def plan_lines(summary: dict[str, Any]) -> list[str]:
    """Return what the table leaves out, one fact per line."""
    lines = [
        f"{summary['num_units']:,} units of {summary['num_parameters']:,} parameters, "
        f"{summary['num_steps']:,} steps, {summary['hvps']:,} HVPs",
        f"{summary['blocks']:,} blocks of {summary['block']:,} units on {summary['workers']} workers: "
        f"{summary['passes']} passes; training {duration(summary['train_seconds'])}",
        f"peak memory of a worker {size(summary['peak_bytes_per_worker'])}, saved states "
        f"{size(summary['state_bytes'])}",
    ]
    if summary["largest_block"] < summary["block"]:
        lines.append(
            f"this block does not fit: set storage.block to at most {summary['largest_block']}"
        )
    lines.append(
        f"pays from request {summary['break_even_requests']:,} on, each against one retraining of "
        f"{duration(summary['retrain_seconds'])}"
    )
    if summary["money"] is not None:
        lines.append(f"money: {money(summary['money'], summary['currency'])}")
    return lines


def money(amount: float, currency: str | None) -> str:
    """Return what so many worker-hours cost, and in what.

    >>> money(1234.5, "EUR"), money(0.1, None)
    ('1,234.50 EUR at the price given per worker-hour', '0.10 at the price given per worker-hour')
    """
    unit = "" if currency is None else f" {currency}"
    return f"{amount:,.2f}{unit} at the price given per worker-hour"
