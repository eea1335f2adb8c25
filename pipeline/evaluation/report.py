"""The report of a run: `report.json` for programs, `report.html` for people.

Keys of `report.json`: see docs/architecture.md. The page is self-contained: no scripts, no fonts or
pictures from elsewhere. Rendering needs the numbers alone, never the model or the data.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table

from pipeline.errors import ConfigError
from pipeline.evaluation.figures import Headline, Section
from pipeline.evaluation.formats import MISSING, correlation, duration, number, percent
from pipeline.evaluation.metrics import metric_of, quality_of
from pipeline.evaluation.sections import headline, sections
from pipeline.run.verdict import (
    NOTABLE,
    Level,
    counted,
    level_of,
    report_limit,
    report_points,
    report_verdict,
)
from storage.durable_write import write_atomically

_COLOURS: Mapping[Level, str] = {
    "good": "green",
    "notable": "yellow",
    "bad": "red",
    "unknown": "default",
}
_RELU_MODELS = ("mlp", "cnn", "lenet")


def advice(report: Mapping[str, Any]) -> list[str]:
    """Return recommendations; none where no figure stands out.

    Args:
        report: With `deletions`, `config`, `row_error_max`.
    """
    lines = []
    limit = report_limit(report)
    errors = [(point.figure, point.units) for point in report_points(report["deletions"])]
    failing = [(error, units) for error, units in errors if level_of(error, limit) == "bad"]
    useless = [(error, units) for error, units in failing if error >= 1]
    if useless:
        lines.append(
            f"Deleting {_sizes(useless)} ends no nearer to retraining than no unlearning does: retrain "
            "instead of deleting that many from this run."
        )
    above = [each for each in failing if each not in useless]
    if above and limit is not None:
        lines.append(
            f"Deleting {_sizes(above)} leaves more than evaluation.max_error, {percent(limit)}, and is "
            "refused: repair the run before, or retrain."
        )
    worst, units = max(errors, default=(0.0, 0))
    if worst > NOTABLE and _has_relu(report["config"]):
        lines.append(
            f"The relative error of {units} units is {percent(worst)}. ReLU networks lose this much "
            "because their Hessian does not see the kinks; train with a smooth activation "
            "(model.activation: tanh, silu or gelu), and judge ReLU runs by sets rather than by "
            "single units."
        )
    if report["row_error_max"] > min((error for error, _ in errors if error > 0), default=1.0):
        lines.append(
            "Approximators are stored with a relative error of up to "
            f"{percent(report['row_error_max'])}, more than the smallest "
            "error of the method itself: choose a wider storage.encoding."
        )
    return lines


def _sizes(errors: Sequence[tuple[float, int]]) -> str:
    """Return "20 units (relative error 120%), 287 units (310%)" or the like."""
    told = [f"{counted(units, 'unit')} ({percent(error)})" for error, units in errors]
    first, error = told[0], percent(errors[0][0])
    told[0] = first.replace(f"({error})", f"(relative error {error})")
    return ", ".join(told)


def _has_relu(config: Mapping[str, Any]) -> bool:
    """Whether the network has ReLUs, as far as its configuration tells."""
    model = config["model"]
    if config["recursion"].get("relu_curvature") == "softplus":
        return True
    return model["name"] in _RELU_MODELS and model["activation"] == "relu"


def deletion_table(report: Mapping[str, Any]) -> Table:
    """Return one row per entry of the report's `deletions`."""
    found, limit = report_verdict(report), report_limit(report)
    table = Table(
        title=f"{report['name']}: unlearned against retrained",
        caption=(
            "error = distance / no unlearning; 0% is retraining, 100% is no unlearning\n"
            f"[bold {_COLOURS[found.level]}]{report.get('verdict') or found.text}[/]"
        ),
    )
    for header in ("deleted", "share", "sum", "distance", "no unlearning", "error", "Pearson"):
        table.add_column(header, justify="right")
    metric = metric_of(report)
    for model in ("trained", "unlearned", "retrained"):
        table.add_column(f"{metric.name}\n{model}", justify="right")
    for entry in report["deletions"]:
        error = entry["relative_error"]
        level = "unknown" if error is None else level_of(error, limit)
        table.add_row(
            f"{entry['units']:,}",
            percent(entry["units"] / report["num_units"]),
            duration(entry["sum_seconds"]),
            number(entry["distance"]),
            number(entry["no_update_distance"]),
            MISSING if error is None else f"[bold {_COLOURS[level]}]{percent(error, 2)}[/]",
            correlation(entry["loss_change_pearson"]),
            *(metric.text(value) for value in quality_of(entry).values()),
        )
    return table


def write_report(run_dir: str | Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Write `report.json` and `report.html`; return what was written, `advice` included.

    Args:
        run_dir: An existing folder.
        report: All keys of `report.json` but `verdict` and `advice`, which are computed here, and
            `audit`, which may be missing. Values that are not finite are written as null.
    """
    run_dir = Path(run_dir)
    full: dict[str, Any] = _finite(report)
    full.setdefault("engine", full["config"]["recursion"].get("engine", "hvp"))
    full["error_limit"] = report_limit(full)
    full["verdict"] = report_verdict(full).text
    full["advice"] = advice(full)
    content = json.dumps(full, indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(run_dir / "report.json", content.encode())
    write_atomically(run_dir / "report.html", render(full).encode())
    return full


def read_report(run_dir: str | Path) -> dict[str, Any]:
    """Return a run's `report.json`.

    Raises:
        ConfigError: If there is none yet, or it is damaged.
    """
    path = Path(run_dir) / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; `unlearn run` makes it") from error
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); `unlearn run` makes it anew") from error
    if not isinstance(report, dict):
        raise ConfigError(f"{path} is damaged: it holds no report; `unlearn run` makes it anew")
    return report


def render(report: Mapping[str, Any]) -> str:
    """Return the report as one HTML page."""
    return page(
        report["name"],
        headline(report),
        report["advice"],
        sections(report),
        report["config"],
        report["environment"],
    )


def page(
    name: str,
    headline: Headline,
    advice: Sequence[str],
    sections: Sequence[Section],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> str:
    """Return one self-contained HTML page."""
    templates = Environment(
        loader=PackageLoader("pipeline.evaluation", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return templates.get_template("report.html.j2").render(
        name=name,
        headline=headline,
        advice=advice,
        sections=sections,
        settings=_flat(config),
        environment=_flat(environment),
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as pairs of a dotted key and text."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", json.dumps(value, ensure_ascii=False).strip('"')))
    return pairs


def _finite(value: Any) -> Any:
    """Return the value with numbers that JSON cannot hold replaced by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
