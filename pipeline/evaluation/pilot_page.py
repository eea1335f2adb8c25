"""The page of a pilot's search: accuracy against error, and the numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.evaluation.figures import (
    INK,
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
)
from pipeline.evaluation.formats import MISSING, percent
from pipeline.evaluation.pilot_figures import shown
from pipeline.evaluation.pilot_search import Candidate, frontier
from pipeline.evaluation.report import page


def render(search: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return a search as one HTML page."""
    candidates = search["candidates"]
    headline = Headline(
        "Accuracy against the error of deletions",
        f"Recipes near {search['name']}, each measured by a pilot. The error is the largest of all "
        "sizes asked for: distance to retraining as a share of the distance without unlearning. "
        f"{search['verdict']}",
        [(str(len(candidates)), "recipes tried"), (search["chosen"], "chosen")],
    )
    section = Section("Recipes", (), (frontier_plot(candidates),), _table(candidates))
    return page(search["name"], headline, (), [section], config, search["environment"])


def frontier_plot(candidates: Sequence[Candidate]) -> Plot:
    """Plot every recipe, and a line through those that no other beats."""
    known = [each for each in candidates if each["error"] is not None]
    best = frontier(known)

    def paint(axes: Axes) -> None:
        groups = (("small pilot", False, 1), ("full pilot", True, 0))
        for label, is_full, series in groups:
            chosen = [each for each in known if each["is_full"] == is_full]
            axes.plot(
                [each["accuracy"] for each in chosen],
                [each["error"] for each in chosen],
                linestyle="none",
                marker=MARKERS[series],
                markeredgecolor=PAPER,
                color=SERIES[series],
                label=label,
                zorder=4,
            )
        axes.plot(
            [each["accuracy"] for each in best],
            [each["error"] for each in best],
            color=MUTED,
            linewidth=1,
            linestyle=(0, (4, 3)),
            label="not beaten in both",
        )
        for each in known:
            if each["label"] == "as configured" and each["is_full"]:
                axes.annotate(
                    each["label"],
                    (each["accuracy"], each["error"]),
                    xytext=(5, 5),
                    textcoords="offset points",
                    color=INK,
                )
        log_axis(axes, "y", percent)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("test accuracy")
        axes.set_ylabel("largest relative error")
        legend(axes)

    words = "; ".join(
        f"{each['label']}: {percent(each['accuracy'])} accuracy, {percent(each['error'])} error"
        for each in best
    )
    return draw("Accuracy and error", f"Recipes that no other beats. {words}.", paint)


def _table(candidates: Sequence[Candidate]) -> Table:
    rows = []
    best = frontier(candidates)
    for each in candidates:
        error = MISSING if each["error"] is None else shown(each["error"])
        accuracy = MISSING if each["accuracy"] is None else percent(each["accuracy"])
        kind = "full" if each["is_full"] else "small"
        note = each["refused"] or ("on the frontier" if each in best else "")
        rows.append([each["label"], kind, accuracy, error, each["engine"] or MISSING, note])
    return Table(["recipe", "pilot", "accuracy", "error", "engine", ""], rows)
