"""The report's plots: each a pure function of the numbers that stand in the table beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from pipeline.evaluation.figures import (
    GRID,
    MARKERS,
    MUTED,
    PAPER,
    SERIES,
    Plot,
    draw,
    legend,
    log_axis,
    loggable,
    plain,
)
from pipeline.evaluation.formats import duration, percent
from pipeline.evaluation.metrics import ACCURACY, Metric, or_nan, quality_at, quality_of
from pipeline.run.verdict import counted

# One entry of the report's `deletions`.
Deletion = Mapping[str, Any]


def _root(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return square roots; matplotlib also asks for values below zero."""
    return np.asarray(np.sqrt(np.maximum(values, 0.0)))


def units_axis(axes: Axes, units: Sequence[int], num_units: int) -> Sequence[int]:
    """Label the x axis by deleted units and their share; return the units."""
    axes.set_xlim(*_around(units))
    # Without unlearning the distance grows about as the square root of the number of units: a
    # straight line on this axis, on which neither one unit nor 30% of them are crowded.
    axes.set_xscale("function", functions=(_root, np.square))
    axes.set_xticks(units, [f"{m:,}\n{percent(m / num_units)}" for m in units])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("units deleted together, and their share (square-root axis)")
    return units


def _around(units: Sequence[int]) -> tuple[float, float]:
    """Return limits of a square-root axis with a margin on both sides."""
    low, high = np.sqrt(min(units)), np.sqrt(max(units))
    margin = 0.06 * (high - low) or 0.5
    return max(0.0, low - margin) ** 2, (high + margin) ** 2


def _line(axes: Axes, xs: Sequence[float], ys: ArrayLike, number: int, label: str) -> None:
    axes.plot(
        xs,
        ys,
        color=SERIES[number],
        marker=MARKERS[number],
        label=label,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        clip_on=False,
        zorder=3 + number,
    )


def distance(entries: Sequence[Deletion], num_units: int) -> Plot:
    """Plot the distance to the retrained model by deletion rate, beside no unlearning."""

    def paint(axes: Axes) -> None:
        units = units_axis(axes, [e["units"] for e in entries], num_units)
        unlearned = loggable([e["distance"] for e in entries])
        no_update = loggable([e["no_update_distance"] for e in entries])
        _line(axes, units, unlearned, 0, "unlearned")
        _line(axes, units, no_update, 1, "no unlearning")
        axes.fill_between(
            units,
            unlearned,
            no_update,
            color=GRID,
            alpha=0.45,
            linewidth=0,
        )
        log_axis(axes, "y")
        axes.set_ylabel("L2 distance to the retrained model")
        legend(axes)

    words = "; ".join(
        f"{e['units']} units: unlearned {e['distance']:.3g}, no unlearning "
        f"{e['no_update_distance']:.3g}"
        for e in entries
    )
    return draw("Distance to retraining", f"Distance to the retrained model. {words}.", paint)


def relative_error(entries: Sequence[Deletion], num_units: int) -> Plot:
    """Plot the distance to retraining as a share of the distance without unlearning."""
    finite = [entry for entry in entries if entry["relative_error"] is not None]

    def paint(axes: Axes) -> None:
        units = units_axis(axes, [e["units"] for e in finite], num_units)
        errors = [e["relative_error"] for e in finite]
        highest = max([*errors, *(e["relative_error_range"][1] or 0.0 for e in finite)])
        _line(axes, units, errors, 0, "unlearned")
        for e in finite:
            low, high = e["relative_error_range"]
            if high is not None and high > low:
                axes.vlines(e["units"], low, high, color=SERIES[0], linewidth=4, alpha=0.3)
            axes.annotate(
                percent(e["relative_error"]),
                (e["units"], e["relative_error"]),
                xytext=(-5, 7) if e is finite[0] else (-7, 5),
                textcoords="offset points",
                ha="left" if e is finite[0] else "right",
                fontweight="bold",
            )
        axes.set_ylim(0, highest * 1.12 or 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel("relative error (no unlearning: 100%)")

    words = "; ".join(f"{e['units']} units: {percent(e['relative_error'])}" for e in finite)
    return draw("Relative error", f"Relative error. {words}.", paint)


def loss_change(entry: Deletion, num_units: int, unit: str = ", nats") -> Plot:
    """Plot predicted against actual loss changes of the deleted samples of one entry."""
    actual, predicted = np.array(entry["loss_change_points"]).T

    def paint(axes: Axes) -> None:
        low, high = min(actual.min(), predicted.min()), max(actual.max(), predicted.max())
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.scatter(actual, predicted, s=13, color=SERIES[0], alpha=0.55, linewidths=0)
        axes.set_xlabel(f"actual change of loss (retrained){unit}")
        axes.set_ylabel(f"predicted (unlearned){unit}")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_aspect("equal", adjustable="datalim")

    units, pearson = entry["units"], entry["loss_change_pearson"]
    found = "no correlation defined" if pearson is None else f"Pearson {pearson:.4f}"
    title = f"{counted(units, 'unit')} ({percent(units / num_units)}): {found}"
    return draw(title, f"Predicted against actual change of loss, {title}.", paint, (3.6, 3.3))


def quality(entries: Sequence[Deletion], num_units: int, metric: Metric = ACCURACY) -> Plot:
    """Plot the quality of the trained, unlearned and retrained models on the test samples."""
    offsets = (-0.16, 0.0, 0.16)

    def paint(axes: Axes) -> None:
        positions = np.arange(len(entries))
        for number, model in enumerate(("trained", "unlearned", "retrained")):
            values = [or_nan(quality_of(entry)[model]) for entry in entries]
            axes.plot(
                positions + offsets[number],
                values,
                linestyle="none",
                color=SERIES[(2, 0, 1)[number]],
                marker=MARKERS[(2, 0, 1)[number]],
                markersize=7,
                label=model,
            )
        labels = [f"{e['units']:,}\n{percent(e['units'] / num_units)}" for e in entries]
        axes.set_xticks(positions, labels)
        axes.set_xlim(-0.6, len(entries) - 0.4)
        low, high = axes.get_ylim()
        if metric.is_share:
            axes.set_ylim(max(0.0, low - 0.005), min(1.002, high + 0.005))
        _quality_axis(axes, metric)
        axes.set_xlabel("units deleted together, and their share")
        legend(axes)

    words = "; ".join(
        f"{e['units']} units: "
        + ", ".join(f"{name} {metric.text(value)}" for name, value in quality_of(e).items())
        for e in entries
    )
    title = f"Test {metric.name}"
    return draw(title, f"{title} by deletion rate. {words}.", paint)


def _quality_axis(axes: Axes, metric: Metric) -> None:
    if metric.is_share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylabel(f"test {metric.name}")


def training_curve(
    curve: Sequence[Mapping[str, Any]], metric: Metric = ACCURACY, unit: str = ", nats"
) -> tuple[Plot, Plot]:
    """Plot training loss and test quality by step."""
    steps = [point["step"] for point in curve]

    losses = [or_nan(point["train_loss"]) for point in curve]
    qualities = [or_nan(quality_at(point)) for point in curve]

    def paint(axes: Axes, values: Sequence[float], number: int) -> None:
        axes.plot(steps, values, color=SERIES[number], marker=MARKERS[number], markersize=4)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5))

    def paint_loss(axes: Axes) -> None:
        paint(axes, losses, 0)
        axes.set_ylabel(f"mean loss{unit}")
        # Losses of counts and of a user's own function may be negative.
        if min(losses) >= 0:
            axes.set_ylim(bottom=0)

    def paint_quality(axes: Axes) -> None:
        paint(axes, qualities, 2)
        _quality_axis(axes, metric)

    return (
        draw(
            "Training loss",
            f"Mean training loss from {losses[0]:.3g} to {losses[-1]:.3g}.",
            paint_loss,
        ),
        draw(
            f"Test {metric.name} while training",
            f"Test {metric.name} from {metric.text(quality_at(curve[0]))} to "
            f"{metric.text(quality_at(curve[-1]))}.",
            paint_quality,
        ),
    )


def durations(rows: Sequence[tuple[str, float]]) -> Plot:
    """Plot how long each part took, in seconds, on one logarithmic axis."""

    def paint(axes: Axes) -> None:
        seconds = [value for _, value in rows]
        positions = np.arange(len(rows))[::-1]
        left = min(seconds) / 3
        axes.hlines(positions, left, seconds, color=SERIES[0], linewidth=6, alpha=0.25)
        axes.plot(seconds, positions, linestyle="none", marker="o", color=SERIES[0], markersize=7)
        axes.set_xlim(left, max(seconds) * 6)
        log_axis(axes, "x")
        axes.set_yticks(positions, [label for label, _ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds (logarithmic)")
        for value, position in zip(seconds, positions, strict=True):
            axes.annotate(
                duration(value),
                (value, position),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontweight="bold",
            )

    words = "; ".join(f"{label} {duration(value)}" for label, value in rows)
    return draw("Time", f"Seconds by part. {words}.", paint, (5.2, 0.6 + 0.42 * len(rows)))
