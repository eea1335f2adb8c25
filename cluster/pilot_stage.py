"""`unlearn pilot`: the error of deletions, and the cost of the run, before any approximator is stored.

Also settles `recursion.engine: auto` at `unlearn train` and `unlearn run`, by a smaller pilot.
"""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.console import Reporter
from cluster.counted_plan import NO_PRICE, Price
from cluster.plan_text import money
from cluster.planner import (
    STATED_WRITE_BYTES,
    Plan,
    Rates,
)
from cluster.work_counts import (
    fitting_workers,
)
from cluster.workload import workload_of
from pipeline.approximators.groups import engines_of
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.evaluation.formats import MISSING, duration, percent, size
from pipeline.evaluation.pilot import (
    Pilot,
    curve_of,
    is_of,
    read_result,
    result_path,
    settings_digest,
    without_choice,
)
from pipeline.evaluation.pilot_design import STANDARD, Budget
from pipeline.evaluation.pilot_figures import shown
from pipeline.run.directory import RunDirectory
from pipeline.run.error_curve import ErrorCurve
from pipeline.run.problem import Problem
from storage.durable_write import write_atomically
from storage.run_lock import RunLock

# Of a pilot that nobody asked for, where recursion.engine is auto.
CHOICE = Budget(retrainings=14, approximators=40)
# A plan's times came out 14 to 29% too short (docs/benchmarks.md); a loaded machine is slower still.
HOURS_SPREAD = (0.8, 1.5)


def pilot(
    config: RunConfig,
    out: Path,
    reporter: Reporter,
    budget: Budget = STANDARD,
    price: Price = NO_PRICE,
    least_accuracy: float = 0.0,
) -> dict[str, Any]:
    """Carry out a pilot, or find it finished; return its figures with the costs of the full run.

    Args:
        config: Of the run to come.
        out: A run directory, or a folder that may become one.
        reporter: Shows progress.
        budget: At most this.
        price: Of a worker-hour.
        least_accuracy: A model below it is not measured: `engines` of the result is empty.

    Raises:
        ConfigError: If there are too few units, or `out` is a run with deletions.
        DataError: If there is one class alone.
        DivergedError: If a training is not finite.
    """
    _refuse_deletions(out)
    began = time.perf_counter()
    made = Pilot.of(config, out, budget)
    load_seconds = time.perf_counter() - began
    known = made.known()
    if known is not None:
        reporter.say(f"nothing left to do; see {result_path(out)}")
        return known | {"full_run": _with_price(known["full_run"], price)}
    design = made.design
    reporter.say(
        f"pilot: 1 training, {design.num_retrainings} retrainings and {design.num_approximators} "
        f"approximators by {' and '.join(made.engines)}; "
        f"about {duration(made.expected_seconds())}"
    )
    made.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with RunLock(made.folder / "driver.lock"):
        with reporter.stage("training") as progress:
            trajectory = made.train(progress)
        accuracy = made.quality(trajectory).accuracy_if_any
        if accuracy is not None and accuracy < least_accuracy:
            return {"engines": {}, "accuracy": accuracy}
        with reporter.stage("pilot") as progress:
            found = made.measure(trajectory, progress)
        result = made.result(trajectory, found)
        result |= _costs(made.problem, result, load_seconds)
        result["seconds"] = time.perf_counter() - began
        content = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
        write_atomically(result_path(out), content.encode(), mode=0o600)
        # They describe people, and the figures do not need them any more.
        shutil.rmtree(made.folder / "parts")
    if (out / "config.yaml").is_file():
        adopt(RunDirectory.open(out))
    return result | {"full_run": _with_price(result["full_run"], price)}


def _refuse_deletions(out: Path) -> None:
    if (out / "ledger.sqlite").exists():
        raise ConfigError(
            f"{out} is a run with deletions, and a pilot would train on what they erased; choose "
            "another --out"
        )


def _with_price(full_run: dict[str, Any], price: Price) -> dict[str, Any]:
    hours, amount = full_run["worker_hours"], price.amount
    return {
        **full_run,
        "price": None if amount is None else amount * hours,
        "currency": price.currency,
    }


def _costs(problem: Problem, result: dict[str, Any], load_seconds: float) -> dict[str, Any]:
    """Return the costs of the full run: of each engine, and of the recommended one."""
    work = workload_of(problem)
    workers = fitting_workers(problem.config.cluster, None, work)
    costs: dict[str, dict[str, Any]] = {}
    steps = result["num_steps"]
    for engine, product_seconds in result["product_seconds"].items():
        rates = Rates(
            primal_seconds=result["retrain_seconds"] / steps,
            product_seconds=product_seconds,
            write_seconds=work.row_bytes / STATED_WRITE_BYTES,
            load_seconds=load_seconds,
            checkpoint_seconds=work.checkpoint_bytes / STATED_WRITE_BYTES,
            arithmetic_bytes=0.0,
            idle_bytes=0.0,
            memory_bytes=math.inf,
            measured=True,
            device=problem.device.type,
        )
        plan = Plan(work, rates, workers)
        hours = (plan.precompute_seconds + plan.train_seconds) / 3600
        requests = plan.break_even_requests(result["retrain_seconds"])
        costs[engine] = {
            "hours": hours,
            "range": [factor * hours for factor in HOURS_SPREAD],
            "how": "estimated",
            "worker_hours": hours * workers,
            "workers": workers,
            "bytes": work.store_bytes + work.trajectory_bytes,
            "product_seconds": product_seconds,
            "break_even_requests": math.ceil(requests),
            "break_even_range": [math.ceil(factor * requests) for factor in HOURS_SPREAD],
        }
    chosen = costs[result["recommended"]]
    return {
        "costs": costs,
        "full_run": {
            key: chosen[key] for key in ("hours", "range", "how", "worker_hours", "bytes")
        },
        "break_even_requests": chosen["break_even_requests"],
        "break_even_range": chosen["break_even_range"],
    }


# The choice of the engine


def settled(config: RunConfig, out: Path, reporter: Reporter) -> RunConfig:
    """Return the configuration with its engine settled, if it is auto: as begun, or by a pilot.

    A run that exists keeps its engine; else a pilot of the same configuration in `out` decides, and
    where there is none a small one is carried out.

    Raises:
        ConfigError, DataError, DivergedError: As `pilot`.
    """
    if config.recursion.engine != "auto":
        return config
    if (out / "config.yaml").is_file():
        return with_engine(config, RunDirectory.open(out).config.recursion.engine)
    allowed = engines_of(config)
    if len(allowed) == 1:
        reporter.say(
            f"recursion.engine: auto takes {allowed[0]}, the only one for these conventions"
        )
        return with_engine(config, allowed[0])
    result = read_result(out)
    if result is None or not _is_of(result, config):
        reporter.say("recursion.engine: auto is settled by a pilot")
        result = pilot(config, out, reporter, CHOICE)
    reporter.say(f"recursion.engine: {result['recommended']} ({result['verdict']})")
    return with_engine(config, result["recommended"])


def _is_of(result: dict[str, Any], config: RunConfig) -> bool:
    problem = Problem.of(without_choice(config))
    return bool(result["settings_digest"] == settings_digest(problem.config, problem.data_digest))


def with_engine(config: RunConfig, engine: str) -> RunConfig:
    """Return the configuration with this engine."""
    recursion = config.recursion.model_copy(update={"engine": engine})
    return config.model_copy(update={"recursion": recursion})


def adopt(run: RunDirectory) -> None:
    """Give a trained run the error curve of its pilot, if it has one and nothing better."""
    if run.is_pruned() or not run.is_trained() or run.ledger_path.exists():
        # After deletions it would speak of a model that is not served any more.
        return
    parts = result_path(run.path).parent / "parts"
    if parts.is_dir():
        # Of a pilot that was interrupted: approximators that no deletion would erase.
        shutil.rmtree(parts)
    result = read_result(run.path)
    if result is None or not is_of(result, run):
        return
    curve = curve_of(result, run.config.recursion.engine)
    if curve is not None and ErrorCurve.read(run) is None:
        curve.write(run)


# For people


def pilot_table(result: dict[str, Any]) -> Table:
    """Return the errors by size, both engines side by side."""
    table = Table(title=f"{result['name']}: error of deletions, before the precompute")
    table.add_column("deleted", justify="right")
    table.add_column("engine")
    table.add_column("error", justify="right")
    table.add_column("range", justify="right")
    table.add_column("how")
    table.add_column("linear", justify="right")
    table.add_column("additive", justify="right")
    for kind, by_engine in (("", result["engines"]), (result["alike"], result["clustered"])):
        for entries in zip(*by_engine.values(), strict=True):
            for number, (engine, entry) in enumerate(zip(by_engine, entries, strict=True)):
                deleted = f"{entry['units']:,} ({kind})" if kind else f"{entry['units']:,}"
                table.add_row(
                    deleted if number == 0 else "",
                    engine,
                    shown(entry["relative_error"]),
                    " to ".join(shown(value) for value in entry["range"]),
                    entry["how"],
                    _known(entry["linearisation"]),
                    _known(entry["non_additivity"]),
                    end_section=number + 1 == len(entries),
                )
    return table


def _known(error: float | None) -> str:
    return MISSING if error is None else shown(error)


def _quality_words(result: dict[str, Any]) -> str:
    if result["accuracy"] is None:
        figures = result["test_figures"].items()
        return "on the test samples: " + ", ".join(f"{name} {value:.3g}" for name, value in figures)
    low, high = result["accuracy_range"]
    return f"accuracy {percent(result['accuracy'])} ({percent(low)} to {percent(high)})"


def pilot_lines(result: dict[str, Any]) -> list[str]:
    """Return what the table leaves out, one fact per line, and the verdict."""
    lines = [
        "error: distance to retraining / no unlearning; 0% is retraining, 100% is no unlearning",
        "of it: linear, what the set as one unit would err by; additive, what its halves miss",
        _quality_words(result),
    ]
    if result["roughness"] is not None:
        lines[-1] += f"; a perturbed start grows {result['roughness']:.3g}-fold in training"
    for engine, cost in result["costs"].items():
        least, most = (duration(3600 * hours) for hours in cost["range"])
        low, high = cost["break_even_range"]
        lines.append(
            f"{engine}: full run about {duration(3600 * cost['hours'])} ({least} to {most}), "
            f"{size(cost['bytes'])}; {1e3 * cost['product_seconds']:.3g} ms per unit and step"
        )
        lines.append(
            f"{' ' * len(engine)}  pays from request {cost['break_even_requests']:,} on "
            f"({low:,} to {high:,}), each against one retraining"
        )
    if result["full_run"]["price"] is not None:
        run = result["full_run"]
        lines.append(f"money: {money(run['price'], run['currency'])}")
    lines += result["notes"]
    return [*lines, f"recommended: {result['recommended']}", f"verdict: {result['verdict']}"]
