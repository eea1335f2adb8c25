"""The page of a sweep: a figure and a table for each setting."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from pipeline.evaluation.figures import (
    MARKERS,
    MUTED,
    PAPER,
    SERIES,
    Headline,
    Plot,
    Section,
    Table,
    draw,
    legend,
    log_axis,
    loggable,
)
from pipeline.evaluation.formats import correlation, number, percent
from pipeline.evaluation.metrics import metric_of, or_nan, quality_of
from pipeline.evaluation.report import page

Sweep = Mapping[str, Any]
Point = Mapping[str, Any]


def render(sweep: Sweep) -> str:
    """Return a sweep as one HTML page."""
    shown = [entry for entry in sweep["settings"] if entry["points"]]
    left_out = [entry["title"] for entry in sweep["settings"] if not entry["points"]]
    words = (
        "One setting varied at a time, all others as configured. The error is the distance to the "
        "retrained model as a share of the distance without unlearning: medians over the sets, the "
        "range as a bar."
    )
    if left_out:
        words += f" Not applicable to this model: {', '.join(left_out)}."
    runs = sum(len(entry["points"]) for entry in shown)
    headline = Headline(
        "How the error depends on the settings",
        words,
        [(str(len(shown)), "settings"), (str(runs), "values tried")],
    )
    sections = [_section(entry, sweep) for entry in shown]
    return page(sweep["name"], headline, (), sections, sweep["config"], sweep["environment"])


def error_plot(entry: Mapping[str, Any], num_units: int) -> Plot:
    """Plot the relative error by value, a line for each number of deleted units."""
    points = [point for point in entry["points"] if point["deletions"]]
    positions = np.arange(len(points), dtype=float)
    counts = [trial["units"] for trial in points[0]["deletions"]] if points else []
    line = "-" if entry["is_ordered"] else "none"

    def paint(axes: Axes) -> None:
        axes.axhline(1.0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for series, units in enumerate(counts):
            trials = [point["deletions"][series] for point in points]
            # Side by side, so that ranges do not cover each other.
            xs = positions + 0.08 * (series - (len(counts) - 1) / 2)
            axes.plot(
                xs,
                loggable([or_nan(trial["relative_error"]) for trial in trials]),
                color=SERIES[series % len(SERIES)],
                marker=MARKERS[series % len(MARKERS)],
                markeredgecolor=PAPER,
                linestyle=line,
                label=f"{units:,} ({percent(units / num_units)})",
                zorder=4,
            )
            spans = np.array(
                [[or_nan(end) for end in trial["relative_error_range"]] for trial in trials]
            )
            lows, highs = loggable(spans).T
            axes.vlines(xs, lows, highs, color=SERIES[series % len(SERIES)], linewidth=4, alpha=0.3)
        log_axis(axes, "y", percent)
        axes.set_xticks(positions, [_tick(point) for point in points])
        axes.set_xlim(-0.5, len(points) - 0.5)
        axes.set_xlabel(entry["title"].lower())
        axes.set_ylabel("relative error (no unlearning: 100%)")
        legend(axes, columns=4)

    return draw(
        entry["title"], f"Relative error by {entry['title'].lower()}; numbers in the table.", paint
    )


def _section(entry: Mapping[str, Any], sweep: Sweep) -> Section:
    has_figure = any(point["deletions"] for point in entry["points"])
    plots = (error_plot(entry, sweep["num_units"]),) if has_figure else ()
    rows = [cells for point in entry["points"] for cells in _rows(point)]
    found: Point = next((point for point in entry["points"] if point.get("metric")), {})
    headers = ["value", "deleted", "distance", "no unlearning", "error", "Pearson"]
    headers.append(metric_of(found).name)
    refused = [
        f"{point['label']}: {point['refused']}" for point in entry["points"] if point["refused"]
    ]
    return Section(entry["title"], refused, plots, Table(headers, rows))


def _rows(point: Point) -> Sequence[Sequence[str]]:
    name = _tick(point).replace("\n", ", ")
    if not point["deletions"]:
        return [[name, *["-"] * 6]]
    return [
        [
            name,
            f"{trial['units']:,}",
            number(trial["distance"]),
            number(trial["no_update_distance"]),
            "-" if trial["relative_error"] is None else percent(trial["relative_error"]),
            correlation(trial["loss_change_pearson"]),
            metric_of(point).text(quality_of(trial)["retrained"]),
        ]
        for trial in point["deletions"]
    ]


def _tick(point: Point) -> str:
    return f"{point['label']}\nas configured" if point["is_configured"] else str(point["label"])
