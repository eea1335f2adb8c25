"""The report's sections: text, plots and the table of each plot's numbers.

The report is a mapping of plain values, as `report.json` holds it; nothing here touches a model.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.evaluation import plots
from pipeline.evaluation.audit_sections import audit_sections
from pipeline.evaluation.figures import Headline, Section, Table
from pipeline.evaluation.formats import MISSING, correlation, duration, number, percent, size
from pipeline.evaluation.metrics import figure_of, figures_of, loss_unit, metric_of, quality_at
from pipeline.evaluation.pilot_figures import shown
from pipeline.run.verdict import level_of, report_limit, report_points, report_verdict

Report = Mapping[str, Any]


def unit_name(report: Report, count: int) -> str:
    """Return "1 sample", "287 users" or the like."""
    name = report["config"]["data"]["unit"]
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def headline(report: Report) -> Headline:
    """Return the title: what was deleted, how near to retraining, what it cost."""
    found = report_verdict(report)
    largest = max(report["deletions"], key=lambda entry: entry["units"], default=None)
    name = report["name"]
    parameters = ("parameters", f"{report['num_parameters']:,}")
    if largest is None:
        return Headline(
            f"{name}: no trial deletions",
            "Set evaluation.deletions to compare deletions with retraining.",
            [(parameters[1], parameters[0])],
            found.text,
            found.level,
        )
    share = percent(largest["units"] / report["num_units"], 0)
    what = unit_name(report, largest["units"])
    error = largest["relative_error"]
    distance = (
        "Retraining without them gives the trained model, so the relative error is not defined."
        if error is None
        else f"The distance to a model retrained without them is {percent(error)} of the distance "
        "without unlearning."
    )
    deleted = (
        f"In trials, {what} of {report['num_units']:,} ({share}) were deleted without access to the "
        "training data."
    )
    took = duration(largest["sum_seconds"])
    title = f"{what} unlearned in {took}" if found.level != "bad" else _failing_title(report, took)
    return Headline(
        title, f"{deleted} {distance}", _key_figures(report, largest), found.text, found.level
    )


def _failing_title(report: Report, took: str) -> str:
    """Return the title of a run that should not be deleted from at every size that was tried."""
    limit = report_limit(report)
    bad = [p for p in report_points(report["deletions"]) if level_of(p.figure, limit) == "bad"]
    first = min(bad, key=lambda point: point.units)
    why = "worse than not deleting" if first.figure >= 1 else "too much is left"
    return f"Not fit for deleting {unit_name(report, first.units)}: {why}"


def _key_figures(report: Report, largest: Mapping[str, Any]) -> list[tuple[str, str]]:
    figures = []
    if largest["relative_error"] is not None:
        figures.append((percent(largest["relative_error"]), "relative error"))
    if "retrain_seconds" in largest:
        figures.append((duration(largest["retrain_seconds"]), "for retraining"))
    return [
        *figures,
        (duration(report["precompute_seconds"]), "precompute, once for all units"),
        (
            size(report["store_bytes"]),
            f"of approximators, {number(report['bytes_per_parameter'])} B a value",
        ),
        (f"{report['num_parameters']:,}", "parameters"),
    ]


def sections(report: Report) -> list[Section]:
    """Return the sections for which the report holds numbers."""
    found: list[Section] = []
    if report["deletions"]:
        found += [_distances(report), _loss_changes(report), _qualities(report)]
    if "class_terms" in report:
        found.append(_class_terms(report))
    if "audit" in report:
        found += audit_sections(report["audit"], metric_of(report))
    if "pilot" in report:
        found.append(_pilot(report))
    found.append(_cost(report))
    if report.get("training_curve"):
        found.append(_training(report))
    return found


def _label(report: Report, entry: Mapping[str, Any]) -> str:
    return f"{entry['units']:,} ({percent(entry['units'] / report['num_units'])})"


def _distances(report: Report) -> Section:
    entries, total = report["deletions"], report["num_units"]
    repeats = sorted({entry["repeats"] for entry in entries})
    drawn = (
        "one random set per entry"
        if repeats == [1]
        else (
            f"medians over {repeats[0] if len(repeats) == 1 else f'{repeats[0]} to {repeats[-1]}'} "
            "random sets; the pale bars span all of them"
        )
    )
    plotted = [plots.distance(entries, total)]
    if any(entry["relative_error"] is not None for entry in entries):
        plotted.append(plots.relative_error(entries, total))
    return Section(
        "Distance to retraining",
        [
            "Each trial deletes a random set of units and retrains without them: same start, "
            "same order, same learning rates. The relative error is the distance to the retrained "
            "model, as a share of the distance without unlearning: 0% is retraining, 100% is no "
            f"unlearning. Shown: {drawn}."
        ],
        plotted,
        Table(
            ["deleted units", "distance", "no unlearning", "relative error", "range"],
            [
                [
                    _label(report, e),
                    number(e["distance"]),
                    number(e["no_update_distance"]),
                    MISSING if e["relative_error"] is None else percent(e["relative_error"], 2),
                    _range(e),
                ]
                for e in entries
            ],
        ),
    )


def _pilot(report: Report) -> Section:
    pilot, chosen = report["pilot"], report["config"]["recursion"]["engine"]
    rows = [
        [
            _label(report, entry) + (f", {pilot['alike']}" if alike else ""),
            engine,
            shown(entry["relative_error"]),
            " to ".join(shown(value) for value in entry["range"]),
            entry["how"],
        ]
        for alike, by_engine in ((False, pilot["engines"]), (True, pilot["clustered"]))
        for engine, entries in by_engine.items()
        for entry in entries
    ]
    return Section(
        "Pilot",
        [
            f"Before the precompute, {pilot['retrainings']} retrainings without a few units were "
            f"compared with {pilot['approximators']} approximators of each engine. "
            f"Recommended: {pilot['recommended']}; this run has {chosen}. "
            f"Of the recommended: {pilot['verdict']}."
        ],
        (),
        Table(["deleted units", "engine", "relative error", "range", "how"], rows),
    )


def _class_terms(report: Report) -> Section:
    entry = report["class_terms"]
    deleted = f"{_label(report, entry)}, one class"
    return Section(
        "Deletions from one class",
        [
            f"Relative error of {entry['sets']} deletions from one class each (median), by the sum of "
            "approximators alone, and with this run's class terms, as it deletes."
        ],
        (),
        Table(
            ["deleted units", "sum alone", "with class terms", "range"],
            [
                [
                    deleted,
                    percent(entry["without_terms"], 2),
                    percent(entry["relative_error"], 2),
                    " to ".join(percent(value, 2) for value in entry["relative_error_range"]),
                ]
            ],
        ),
    )


def _range(entry: Mapping[str, Any]) -> str:
    values = entry["relative_error_range"]
    if None in values or entry["repeats"] == 1:
        return MISSING
    return f"{percent(values[0], 2)} to {percent(values[1], 2)}"


def _loss_changes(report: Report) -> Section:
    entries, total = report["deletions"], report["num_units"]
    drawable = [e for e in entries if len(e.get("loss_change_points", ())) > 2]
    return Section(
        "Change of the deleted samples' losses",
        [
            "For every deleted sample, the change of its loss by unlearning against the change by "
            "retraining. On the dashed line the two agree."
        ],
        [plots.loss_change(entry, total, loss_unit(report)) for entry in drawable[-3:]],
        Table(
            ["deleted units", "Pearson", "Spearman"],
            [
                [
                    _label(report, e),
                    correlation(e["loss_change_pearson"]),
                    correlation(e["loss_change_spearman"]),
                ]
                for e in entries
            ],
        ),
    )


def _qualities(report: Report) -> Section:
    entries, total = report["deletions"], report["num_units"]
    models = ("trained", "unlearned", "retrained")
    metric, figures = metric_of(report), figures_of(report)
    several = len(figures) > 1
    headers = [f"{m}: {f.name}" if several else m for f in figures for m in models]
    return Section(
        f"Test {metric.name}",
        [" ".join(figure.meaning for figure in figures)],
        [plots.quality(entries, total, metric)],
        Table(
            ["deleted units", *headers],
            [
                [_label(report, e), *(f.text(v, 2) for f in figures for v in figure_of(e, f))]
                for e in entries
            ],
        ),
    )


def _cost(report: Report) -> Section:
    rows = [
        ("training", report["train_seconds"]),
        ("approximators of all units, once", report["precompute_seconds"]),
    ]
    if report.get("class_terms", {}).get("seconds"):
        rows.append(("class terms, once", report["class_terms"]["seconds"]))
    for entry in report["deletions"][-1:]:
        deleted = unit_name(report, entry["units"])
        if "retrain_seconds" in entry:
            rows.append((f"retraining without {deleted}", entry["retrain_seconds"]))
        rows.append((f"deleting {deleted}", entry["total_seconds"]))
        rows.append(("of it: sum of approximators", entry["sum_seconds"]))
    rows = [(label, seconds) for label, seconds in rows if seconds > 0]
    facts = [
        ["steps", f"{report['num_steps']:,}"],
        ["Hessian-vector products", f"{report['hvps']:,} ({report['hvp_form']})"],
        ["products per second", number(report["hvps_per_second"])],
        ["bytes stored", size(report["store_bytes"])],
        ["bytes per parameter and unit", number(report["bytes_per_parameter"])],
        ["largest relative error of a stored approximator", number(report["row_error_max"])],
    ]
    return Section(
        "Cost",
        [],
        [plots.durations(rows)] if rows else [],
        Table(["", ""], [[label, duration(seconds)] for label, seconds in rows] + facts),
    )


def _training(report: Report) -> Section:
    curve, metric = report["training_curve"], metric_of(report)
    return Section(
        "Training",
        [
            "Mean loss of the training samples, without the L2 term, and "
            f"{metric.name} on the test samples."
        ],
        plots.training_curve(curve, metric, loss_unit(report)),
        Table(
            ["step", "training loss", f"test {metric.name}"],
            [
                [
                    f"{point['step']:,}",
                    number(point["train_loss"], 4),
                    metric.text(quality_at(point), 2),
                ]
                for point in curve
            ],
        ),
    )
