"""The report's sections on an audit: baselines, membership inference, and the cost of noise."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation import audit_plots, plots
from pipeline.evaluation.audit_plots import LABELS
from pipeline.evaluation.figures import Section, Table
from pipeline.evaluation.formats import MISSING, correlation, duration, number, percent
from pipeline.evaluation.metrics import ACCURACY, Metric

Audit = Mapping[str, Any]


def audit_sections(audit: Audit, metric: Metric = ACCURACY) -> list[Section]:
    """Return the sections for which the audit holds numbers; `metric` is what quality means."""
    found = [_distances(audit), _correlations(audit), _times(audit)]
    if "attacks" in audit:
        found.append(_likelihood_ratio(audit["attacks"]))
        if _has_posterior_difference(audit["attacks"]):
            found.append(_posterior_difference(audit["attacks"]))
    if audit.get("privacy_utility"):
        found.append(_privacy_utility(audit["privacy_utility"], metric))
    return found


def _by_deletion(audit: Audit, figure: str, text: Any) -> Table:
    """Return means of a figure, a row per method, a column per deletion rate."""
    total = audit["num_units"]
    headers = [f"{d['units']:,} ({percent(d['units'] / total)})" for d in audit["deletions"]]
    return Table(
        ["method", *headers],
        [
            [
                LABELS[method],
                *(
                    MISSING if span is None else text(span[0])
                    for span in (d["methods"][method][figure] for d in audit["deletions"])
                ),
            ]
            for method in audit["methods"]
        ],
    )


def _distances(audit: Audit) -> Section:
    seeds = max(deletion["seeds"] for deletion in audit["deletions"])
    return Section(
        "Comparison with baselines",
        [
            "L2 distance to retraining, by method: means over "
            f"{seeds} random forget set{'s' if seeds > 1 else ''} per rate; the bands span all of "
            "them. Newton step and infinitesimal jackknife include the L2 term and are applied as full "
            "vectors; both presume a model trained to its optimum. Fine-tuning takes 15 epochs on "
            "the remaining data, gradient ascent 2 on the deleted."
        ],
        [
            audit_plots.by_deletion(
                audit, "distance", "Distance to retraining", "L2 distance", log=True
            ),
            audit_plots.norms(audit),
        ],
        _by_deletion(audit, "distance", number),
    )


def _correlations(audit: Audit) -> Section:
    return Section(
        "Change of loss, by method",
        [
            "Pearson's coefficient between predicted and actual change of the deleted samples' losses."
        ],
        [
            audit_plots.by_deletion(
                audit, "pearson", "Correlation of loss changes", "Pearson", log=False
            )
        ],
        _by_deletion(audit, "pearson", correlation),
    )


def _times(audit: Audit) -> Section:
    largest = audit["deletions"][-1]
    rows = [
        (LABELS[method], figures["seconds"][0])
        for method, figures in largest["methods"].items()
        if method != "no-update"
    ]
    rows.sort(key=lambda row: row[1])
    return Section(
        "Time by method",
        [
            f"Seconds for one request of {largest['units']:,} units. This method reads approximators "
            "that were precomputed once for all requests; the others do all their work at the request."
        ],
        [plots.durations(rows)],
        Table(["method", "time"], [[label, duration(seconds)] for label, seconds in rows]),
    )


def _interval(triple: Sequence[float]) -> str:
    value, low, high = triple
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _share(triple: Sequence[float]) -> str:
    value, low, high = triple
    return f"{100 * value:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def _likelihood_ratio(attacks: Audit) -> Section:
    evaluated = {method: found["likelihood-ratio"] for method, found in attacks["methods"].items()}
    any_result = next(iter(evaluated.values()))["population"]
    return Section(
        "Membership inference on the unlearned model (MIA-L)",
        [
            f"MIA-L: a likelihood-ratio attack with {attacks['num_shadows']} shadow models of the "
            f"run's own recipe, on {any_result['members']:,} deleted samples against "
            f"{any_result['others']:,} test samples. Dashed: one half, a random guess. "
            "Shaded: the interval of the retrained model, which is the goal. The worst decile are "
            "the units most exposed by training in the shadow models.",
            "Intervals are 95%: DeLong's for areas, Clopper and Pearson's for rates. With "
            f"{any_result['others']:,} unseen samples, {_resolution(any_result['others'])}.",
            *_words_on_scores(attacks),
        ],
        [
            audit_plots.likelihood_ratio(attacks, "population", "All deleted samples (MIA-L)"),
            audit_plots.likelihood_ratio(attacks, "worst-decile", "Worst decile of units (MIA-L)"),
        ],
        Table(
            ["model", "area", "true positives at 0.1%", "at 1%", "worst decile: area", "at 1%"],
            [
                [
                    LABELS[method],
                    _interval(scopes["population"]["auc"]),
                    _share(scopes["population"]["tpr"]["0.001"]),
                    _share(scopes["population"]["tpr"]["0.01"]),
                    _interval(scopes["worst-decile"]["auc"]),
                    _share(scopes["worst-decile"]["tpr"]["0.01"]),
                ]
                for method, scopes in evaluated.items()
            ],
        ),
    )


def _has_posterior_difference(attacks: Audit) -> bool:
    return any(found["posterior-difference"] for found in attacks["methods"].values())


def _words_on_scores(attacks: Audit) -> list[str]:
    """Return what differs from runs of cross-entropy, if anything does."""
    words = []
    if attacks.get("score") == "loss":
        words.append("The attack's score of a sample is minus its loss.")
    if not _has_posterior_difference(attacks):
        words.append(
            "The attack with both models (MIA-U) is left out: it compares probabilities of classes, "
            "which this model's outputs are not."
        )
    return words


def _resolution(others: int) -> str:
    """Return what a false positive rate of .1% allows with this many samples."""
    allowed = int(0.001 * others)
    if allowed == 0:
        return "a false positive rate of 0.1% allows none"
    return f"a false positive rate of 0.1% allows {allowed}"


def _posterior_difference(attacks: Audit) -> Section:
    methods = attacks["methods"]
    names = list(next(iter(methods.values()))["posterior-difference"])
    return Section(
        "Membership inference with both models (MIA-U)",
        [
            "MIA-U: an attacker who holds the models before and after the deletion looks for samples "
            "whose posteriors changed, by five constructions of features; fitted on one half "
            "of the samples and scored on the other. No certificate covers this attacker, and "
            "retraining does not defeat it either."
        ],
        [audit_plots.posterior_difference(attacks)],
        Table(
            ["area by model", *(name.replace("-", " ") for name in names)],
            [
                [
                    LABELS[method],
                    *(
                        f"{found['posterior-difference'][name]['population']['auc'][0]:.3f}"
                        for name in names
                    ),
                ]
                for method, found in methods.items()
            ],
        ),
    )


def _privacy_utility(points: Sequence[Mapping[str, Any]], metric: Metric) -> Section:
    return Section(
        "Privacy and utility",
        [
            "Gaussian noise with the certificate's standard deviation at each epsilon, added to the "
            "unlearned parameters; means over draws, bands from lowest to highest."
        ],
        audit_plots.privacy_utility(points, metric),
        Table(
            ["epsilon", "sigma", f"test {metric.name}", "MIA-L area", "MIA-U area"],
            [
                [
                    number(point["epsilon"]),
                    number(point["sigma"]),
                    metric.text(point.get("quality", point["test_accuracy"])[0]),
                    f"{point['mia_l_auc'][0]:.3f}",
                    MISSING if point["mia_u_auc"] is None else f"{point['mia_u_auc'][0]:.3f}",
                ]
                for point in points
            ],
        ),
    )
