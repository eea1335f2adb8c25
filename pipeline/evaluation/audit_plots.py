"""The audit's plots: methods by deletion rate, membership inference, and the cost of noise."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.evaluation.figures import (
    INK,
    MARKERS,
    MUTED,
    PAPER,
    SERIES,
    Plot,
    draw,
    legend,
    log_axis,
    loggable,
)
from pipeline.evaluation.formats import percent
from pipeline.evaluation.metrics import ACCURACY, Metric
from pipeline.evaluation.plots import units_axis

LABELS: Final = {
    "hessian-free": "this method",
    "newton-step": "Newton step",
    "infinitesimal-jackknife": "inf. jackknife",
    "fine-tune": "fine-tuning",
    "neg-grad": "gradient ascent",
    "no-update": "no unlearning",
    "retrain": "retraining",
}
# One color and one shape per method, the same in every plot.
_STYLES: Final = {method: number for number, method in enumerate(LABELS)}

Audit = Mapping[str, Any]


def _style(method: str) -> dict[str, Any]:
    number = _STYLES[method]
    return {"color": SERIES[number], "marker": MARKERS[number], "label": LABELS[method]}


def by_deletion(audit: Audit, figure: str, title: str, label: str, *, log: bool) -> Plot:
    """Plot a figure of every method by deletion rate: means, with the span over seeds as a band."""

    def paint(axes: Axes) -> None:
        units = units_axis(axes, [d["units"] for d in audit["deletions"]], audit["num_units"])
        for method in audit["methods"]:
            spans = [d["methods"][method][figure] for d in audit["deletions"]]
            there = [(m, *span) for m, span in zip(units, spans, strict=True) if span is not None]
            if not there:
                continue
            xs, means, lows, highs = loggable(there).T if log else np.array(there).T
            if np.isnan(means).all():
                continue
            order = 9 if method == "hessian-free" else 3
            axes.plot(
                xs, means, **_style(method), markersize=5, markeredgecolor=PAPER, zorder=order
            )
            axes.fill_between(
                xs, lows, highs, color=SERIES[_STYLES[method]], alpha=0.16, linewidth=0
            )
        axes.set_ylabel(label)
        if log:
            log_axis(axes, "y")
        legend(axes)

    return draw(title, f"{title}, by deletion rate and method; numbers in the table.", paint)


def norms(audit: Audit) -> Plot:
    """Plot the norm of each estimated change against that of the actual one."""

    def paint(axes: Axes) -> None:
        for method, trials in audit["norms"].items():
            if not trials:
                continue
            _, actual, estimated = np.array(trials).T
            axes.scatter(loggable(actual), loggable(estimated), s=16, alpha=0.7, **_style(method))
        log_axis(axes, "y")
        log_axis(axes, "x")
        ends = [trial[1] for trials in audit["norms"].values() for trial in trials if trial[1] > 0]
        ends = [min(ends), max(ends)] if ends else []
        axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlabel("norm of the actual change (retrained)")
        axes.set_ylabel("norm of the estimated change")
        legend(axes)

    return draw(
        "Norm of the change",
        "Estimated against actual norm of the parameters' change, one point per trial.",
        paint,
    )


def likelihood_ratio(attacks: Audit, scope: str, title: str) -> Plot:
    """Plot the area of MIA-L with its interval for every method, beside one half and retraining."""
    found = {
        method: evaluated["likelihood-ratio"][scope]["auc"]
        for method, evaluated in attacks["methods"].items()
    }

    def paint(axes: Axes) -> None:
        positions = np.arange(len(found))[::-1]
        axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        if "retrain" in found:
            _, low, high = found["retrain"]
            axes.axvspan(low, high, color=SERIES[_STYLES["retrain"]], alpha=0.14, linewidth=0)
        for position, (method, (value, low, high)) in zip(positions, found.items(), strict=True):
            style = _style(method)
            axes.hlines(position, low, high, color=style["color"], linewidth=2.2)
            axes.plot([value], [position], **style, markersize=7, markeredgecolor=PAPER)
        _method_rows(axes, positions, list(found))
        axes.set_xlabel("area under the curve, 95% interval (0.5: a random guess)")

    words = "; ".join(f"{LABELS[m]} {value[0]:.3f}" for m, value in found.items())
    return draw(title, f"{title}. {words}.", paint, (5.2, 0.7 + 0.36 * len(found)))


def posterior_difference(attacks: Audit) -> Plot:
    """Plot the area of MIA-U for every method and construction of features."""
    methods = attacks["methods"]
    names = list(next(iter(methods.values()))["posterior-difference"])

    def paint(axes: Axes) -> None:
        positions = np.arange(len(methods))[::-1]
        axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for number, name in enumerate(names):
            values = [
                evaluated["posterior-difference"][name]["population"]["auc"][0]
                for evaluated in methods.values()
            ]
            axes.plot(
                values,
                positions + 0.13 * (2 - number),
                linestyle="none",
                marker=MARKERS[number],
                color=SERIES[number],
                markersize=5.5,
                label=name.replace("-", " "),
            )
        _method_rows(axes, positions, list(methods))
        axes.set_xlabel("area under the curve (0.5: a random guess)")
        legend(axes, 2)

    return draw(
        "Attack with both models (MIA-U)",
        "Area under the curve by method and construction of features; numbers in the table.",
        paint,
        (5.2, 1.3 + 0.42 * len(methods)),
    )


def _method_rows(axes: Axes, positions: Any, methods: Sequence[str]) -> None:
    axes.set_yticks(positions, [LABELS[method] for method in methods])
    for tick, method in zip(axes.get_yticklabels(), methods, strict=True):
        if method == "hessian-free":
            tick.set_color(INK)
            tick.set_fontweight("bold")
    axes.set_ylim(-0.6, len(methods) - 0.4)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")


def privacy_utility(
    points: Sequence[Mapping[str, Any]], metric: Metric = ACCURACY
) -> tuple[Plot, Plot]:
    """Plot the quality and the areas of the attacks against epsilon."""
    points = [{"quality": point["test_accuracy"], **point} for point in points]
    epsilons = [point["epsilon"] for point in points]

    def band(axes: Axes, key: str, number: int, label: str) -> None:
        means, lows, highs = np.array([point[key] for point in points]).T
        axes.plot(epsilons, means, color=SERIES[number], marker=MARKERS[number], label=label)
        axes.fill_between(epsilons, lows, highs, color=SERIES[number], alpha=0.16, linewidth=0)
        axes.set_xscale("log")
        log_axis(axes, "x")
        axes.set_xlabel("epsilon (larger: less noise)")

    def quality(axes: Axes) -> None:
        band(axes, "quality", 0, f"test {metric.name}")
        if metric.is_share:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel(f"test {metric.name}")

    def areas(axes: Axes) -> None:
        axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        band(axes, "mia_l_auc", 1, "MIA-L")
        if points[0]["mia_u_auc"] is not None:
            band(axes, "mia_u_auc", 2, "MIA-U, sorted difference")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel("area under the curve")
        legend(axes)

    words = "numbers in the table"
    return (
        draw(
            f"{metric.name[0].upper()}{metric.name[1:]} with noise",
            f"Test {metric.name} by epsilon; {words}.",
            quality,
        ),
        draw("Attacks with noise", f"Areas of the attacks by epsilon; {words}.", areas),
    )
