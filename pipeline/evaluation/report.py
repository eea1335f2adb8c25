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

from pipeline.errors import ConfigError
from pipeline.evaluation.advice import advice
from pipeline.evaluation.layout import Headline, Section
from pipeline.evaluation.sections import headline, sections
from storage.files import write_atomically


def write_report(run_dir: str | Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Write `report.json` and `report.html`; return what was written, `advice` included.

    Args:
        run_dir: An existing folder.
        report: All keys of `report.json` but `advice`, which is worked out here, and `audit`, which
            may be missing. Values that are not finite are written as null.
    """
    run_dir = Path(run_dir)
    full: dict[str, Any] = _finite(report)
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
