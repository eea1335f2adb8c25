"""`unlearn sweep`: a whole run for each value of each setting, and one page that compares them."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster.console import Reporter
from cluster.errors import WorkerFailedError
from cluster.session import RaySession
from cluster.whole_run import run_all
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, DivergedError
from pipeline.evaluation.sweep import SETTINGS, Variant, point
from pipeline.evaluation.sweep_page import render
from storage.durable_write import write_atomically

Run = Callable[[RunConfig, Path], dict[str, Any]]
"""Makes a run in a folder, or finds it there, and returns its report."""


def sweep(base: RunConfig, names: Sequence[str], out: Path, reporter: Reporter) -> dict[str, Any]:
    """Run every variant, write `sweep.json` and `sweep.html`, and return the figures.

    Each variant is a run directory below `out`, so a sweep that was interrupted continues. Variants
    that need Ray share one session.

    Args:
        base: The configuration to vary.
        names: Keys of `SETTINGS`.
        out: A folder of the sweep's own.
        reporter: Shows progress.

    Raises:
        ConfigError: If a setting is unknown.
    """
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        raise ConfigError(f"no setting {unknown[0]!r} to sweep; there are {', '.join(SETTINGS)}")
    plain = Variant("as-configured", ()).of(base)
    with RaySession() as session:
        run = partial(run_all, reporter=reporter, session=session)
        configured = run(plain, out / "as-configured")
        entries = [_varied(name, base, out, run, reporter) for name in names]
    figures = {
        "name": base.name,
        "num_units": configured["num_units"],
        "settings": entries,
        "config": plain.model_dump(mode="json"),
        "environment": configured["environment"],
    }
    content = json.dumps(figures, indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(out / "sweep.json", content.encode())
    write_atomically(out / "sweep.html", render(figures).encode())
    return figures


def _varied(name: str, base: RunConfig, out: Path, run: Run, reporter: Reporter) -> dict[str, Any]:
    """Run every value of a setting."""
    setting, points = SETTINGS[name], []
    variants = setting.variants(base)
    for number, variant in enumerate(variants, 1):
        reporter.say(f"{name}: {variant.label} ({number} of {len(variants)})")
        points.append(_tried(variant, base, out / f"{name}-{variant.label}", run, reporter))
    title, is_ordered = setting.title, setting.is_ordered
    return {"setting": name, "title": title, "is_ordered": is_ordered, "points": points}


def _tried(
    variant: Variant, base: RunConfig, folder: Path, run: Run, reporter: Reporter
) -> dict[str, Any]:
    """Run a variant; one that diverges or contradicts itself is a finding, not an end."""
    report, refused, is_configured = None, None, False
    try:
        config = variant.of(base)
        is_configured = config == Variant("as-configured", ()).of(base)
        report = run(config, folder.parent / "as-configured" if is_configured else folder)
    except (ConfigError, DivergedError, WorkerFailedError) as error:
        refused = " ".join(str(error).split())
        reporter.say(f"refused: {refused}")
    return {**point(variant, report, refused), "is_configured": is_configured}
