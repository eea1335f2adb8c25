"""`unlearn pilot --search`: which changes of a recipe bring deletions nearer to retraining."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.console import Reporter
from cluster.counted_plan import NO_PRICE, Price
from cluster.pilot_stage import pilot, pilot_lines, with_engine
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, DivergedError, ModelError
from pipeline.evaluation.formats import MISSING, percent
from pipeline.evaluation.pilot import without_choice
from pipeline.evaluation.pilot_design import Budget
from pipeline.evaluation.pilot_figures import shown
from pipeline.evaluation.pilot_page import render
from pipeline.evaluation.pilot_search import (
    ACCEPTED_LOSS,
    FINALISTS,
    HOPELESS_LOSS,
    UNCHANGED,
    Change,
    changes,
    finalists,
    frontier,
    pairs,
    ranked,
)
from pipeline.run.directory import PILOT
from pipeline.run.problem import Problem
from storage.durable_write import write_atomically

# Of a recipe that is one of many: one single unit, a measured set, and the largest size's halves.
SMALL = Budget(retrainings=8, approximators=24)


def search(
    base: RunConfig, out: Path, reporter: Reporter, budget: Budget, price: Price = NO_PRICE
) -> dict[str, Any]:
    """Try changes of a recipe; return the pilot of the configuration, with the search beside it.

    Finished pilots are kept below `out`, so a search that was interrupted continues.

    Args:
        base: The configuration to change.
        out: A directory of the pilot.
        reporter: Shows progress.
        budget: Of the configuration's own pilot, and of the finalists'.
        price: Of a worker-hour.

    Raises:
        ConfigError, DataError, DivergedError: If the configuration itself has no pilot.
    """
    own = pilot(base, out, reporter, budget, price)
    if own["accuracy"] is None:
        raise ConfigError(
            f"--search weighs accuracy against error, and training.loss {base.training.loss} predicts "
            "no classes; change the recipe by hand, a pilot each"
        )
    tried = _Search(base, out / PILOT / "search", reporter, own["accuracy"])
    single = changes(base)
    reporter.say(
        f"search: {len(single)} changes, then pairs of the best, each by a small pilot of up to "
        f"{1 + SMALL.retrainings} trainings; then {FINALISTS} full pilots"
    )
    known = {change.label: change for change in single}
    first = [tried.small(change) for change in single]
    for pair in pairs(single, ranked(first, own["accuracy"])):
        known[pair.label] = pair
        first.append(tried.small(pair))
    best = finalists(first, own["accuracy"])
    final = [_candidate(UNCHANGED, own, is_full=True)]
    final += [tried.full(known[label], budget) for label in best]
    others = [each for each in first if each["label"] not in best]
    return own | _summary(base, out, [*final, *others], ranked(final, own["accuracy"]), own)


class _Search:
    def __init__(self, base: RunConfig, folder: Path, reporter: Reporter, accuracy: float) -> None:
        self._base, self._folder, self._reporter = base, folder, reporter
        self._accuracy = accuracy

    def small(self, change: Change) -> dict[str, Any]:
        """Return what a small pilot finds of a change."""
        return self._tried(change, SMALL, is_full=False)

    def full(self, change: Change, budget: Budget) -> dict[str, Any]:
        """Return what a full pilot finds of a change."""
        return self._tried(change, budget, is_full=True)

    def _tried(self, change: Change, budget: Budget, *, is_full: bool) -> dict[str, Any]:
        """Pilot a change; one that diverges or contradicts itself is a finding, not an end."""
        folder = self._folder / f"{change.slug}{'-full' if is_full else ''}"
        try:
            result = pilot(
                change.of(self._base),
                folder,
                Reporter(quiet=True),
                budget,
                least_accuracy=self._accuracy - HOPELESS_LOSS,
            )
        except (ConfigError, ModelError, DivergedError) as error:
            found = _candidate(change, None, is_full=is_full)
            found["refused"] = " ".join(str(error).split())
        else:
            found = _candidate(change, result, is_full=is_full)
        self._reporter.say(_line(found))
        return found


def _candidate(change: Change, result: dict[str, Any] | None, *, is_full: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "label": change.label,
        "overrides": list(change.overrides),
        "is_full": is_full,
        "accuracy": None,
        "error": None,
        "engine": None,
        "errors": [],
        "refused": None,
    }
    if result is None:
        return found
    found["accuracy"] = result["accuracy"]
    if result["engines"]:
        entries = result["engines"][result["recommended"]]
        errors = [entry["relative_error"] for entry in entries]
        found["engine"], found["errors"] = result["recommended"], entries
        found["error"] = None if None in errors else max(errors)
        found["refused"] = "the approximators diverge" if None in errors else None
    else:
        found["refused"] = "loses too much accuracy"
    return found


def _line(found: dict[str, Any]) -> str:
    if found["error"] is None:
        return f"{found['label']}: {found['refused']}"
    return (
        f"{found['label']}: accuracy {percent(found['accuracy'])}, error {shown(found['error'])} "
        f"with {found['engine']}"
    )


def _summary(
    base: RunConfig,
    out: Path,
    candidates: Sequence[dict[str, Any]],
    best: Sequence[dict[str, Any]],
    own: dict[str, Any],
) -> dict[str, Any]:
    # The configuration itself is among them; where even its approximators diverge, it stays.
    chosen = best[0] if best else candidates[0]
    verdict = (
        f"Chosen: {chosen['label']} with {chosen['engine']}, the smallest error of those that lose at "
        f"most {percent(ACCEPTED_LOSS)} of accuracy."
    )
    summary: dict[str, Any] = {
        "name": base.name,
        "candidates": list(candidates),
        "frontier": list(frontier(candidates)),
        "chosen": chosen["label"],
        "chosen_engine": chosen["engine"],
        "chosen_overrides": chosen["overrides"],
        "verdict": verdict,
        "environment": Problem.of(without_choice(base)).environment(),
    }
    folder = out / PILOT
    content = json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / "search.json", content.encode(), mode=0o600)
    write_atomically(
        folder / "search.html", render(summary, base.model_dump(mode="json")).encode(), mode=0o600
    )
    lines = [*pilot_lines(own), verdict, f"see {folder / 'search.html'}"]
    return {"search": summary, "lines": lines}


def frontier_table(result: dict[str, Any]) -> Table:
    """Return every recipe that was tried, those of the frontier marked."""
    summary = result["search"]
    table = Table(title=f"{summary['name']}: accuracy against error; * no other beats both")
    table.add_column("")
    table.add_column("recipe")
    table.add_column("pilot")
    for name in ("accuracy", "error"):
        table.add_column(name, justify="right")
    table.add_column("engine")
    for each in summary["candidates"]:
        table.add_row(
            "*" if each in summary["frontier"] else "",
            each["label"],
            "full" if each["is_full"] else "small",
            MISSING if each["accuracy"] is None else percent(each["accuracy"]),
            MISSING if each["error"] is None else shown(each["error"]),
            each["engine"] or MISSING,
        )
    return table


def chosen_config(base: RunConfig, result: dict[str, Any]) -> RunConfig:
    """Return the configuration that a search chose."""
    summary = result["search"]
    overrides = tuple(summary["chosen_overrides"])
    changed = Change(summary["chosen"], "chosen", "", overrides).of(base)
    return with_engine(changed, summary["chosen_engine"] or "hvp")
