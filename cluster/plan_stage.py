"""`unlearn plan`: times a few steps and predicts the cost of a run."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

import psutil
from rich.table import Table

from cluster.bench_stage import bench_file, stored
from cluster.errors import ClusterError
from cluster.planner import (
    GIB,
    Plan,
    Rates,
    Workload,
    fitting_block,
    fitting_workers,
    savings,
    stated_rates,
    workload_of,
)
from cluster.step_timing import StepTimes
from pipeline.bounds import MAX_WORKERS
from pipeline.config import RunConfig
from pipeline.config_yaml import short
from pipeline.errors import ConfigError
from pipeline.evaluation.formats import duration, size
from pipeline.run.problem import Problem

# What `--tune` tries beside the configuration's own choice.
FORMS = ("r-operator", "reverse", "forward-over-reverse")
CHUNK_FACTORS = (0.25, 0.5, 1, 2, 4)
# The largest machines that a plan is made for; beyond them a plan is a slip of the hand.
MAX_GPUS = 100_000
# Of a GPU that nobody has measured or described.
ASSUMED_TFLOPS, ASSUMED_GPU_MEMORY_GIB = 100.0, 80.0
MAX_TFLOPS = 1e6
MAX_GPU_MEMORY_GIB = 1e5
MAX_PRICE = 1e9
# Workers that share a core while they are measured.
MAX_SHARING = 4


@dataclass(frozen=True)
class Hardware:
    """Machines that a plan is made for.

    Attributes:
        gpus: Number of GPUs at stated rates; None plans for this machine, measured.
        tflops: Sustained speed of one GPU; None: as `unlearn bench` measured here, or as assumed.
        gpu_memory_gib: Memory of one GPU, likewise.
        workers: Workers on this machine; None takes what the configuration says.
    """

    gpus: int | None = None
    tflops: float | None = None
    gpu_memory_gib: float | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        _require("--gpus", self.gpus, 1, MAX_GPUS)
        _require("--tflops", self.tflops, 1e-3, MAX_TFLOPS)
        _require("--gpu-memory", self.gpu_memory_gib, 0.1, MAX_GPU_MEMORY_GIB)
        _require("--workers", self.workers, 1, MAX_WORKERS)


def _require(option: str, value: float | None, least: float, most: float) -> None:
    # Written so that a NaN, which is neither below nor above, is refused as well.
    if value is not None and not least <= value <= most:
        raise ConfigError(f"{option} is {short(value)}; expected {least:,} to {most:,}")


def plan(config: RunConfig, hardware: Hardware, price: float | None) -> dict[str, Any]:
    """Return the plan's summary and what other choices would save.

    Raises:
        ConfigError: If the price is none, or this machine cannot hold that many workers.
        ClusterError: If the measurement fails, for example for lack of memory.
    """
    _require("--price", price, 0, MAX_PRICE)
    problem = Problem.of(_planned(config))
    work = workload_of(problem)
    if hardware.gpus is not None:
        rates = _rates_of_gpus(problem, work, hardware)
        made = fitting_block(Plan(work, rates, hardware.gpus))
    else:
        workers = _workers(config, hardware, work)
        rates = measured_rates(measure_apart(problem.config, _copies(problem, workers)), workers)
        made = Plan(work, rates, workers)
    return made.summary(price) | {"savings": savings(made)}


def _planned(config: RunConfig) -> RunConfig:
    """Return the configuration with an engine: where a pilot will choose, the faster one is planned."""
    if config.recursion.engine != "auto":
        return config
    recursion = config.recursion.model_copy(update={"engine": "hvp"})
    return config.model_copy(update={"recursion": recursion})


def _rates_of_gpus(problem: Problem, work: Workload, hardware: Hardware) -> Rates:
    """Return the rates of a GPU as stated, else as measured here by `unlearn bench`, else assumed."""
    tflops, memory = hardware.tflops, hardware.gpu_memory_gib
    source = "as assumed" if tflops is None and memory is None else "as stated"
    bench = stored(bench_file()) if tflops is None else None
    if bench is not None and bench.device_type == "cuda":
        dtype = problem.config.recursion.dtype
        found = bench.nearest(problem.network.module, work.num_parameters, dtype)
        if found is not None:
            tflops, source = found.sustained / 1e12, f"as `unlearn bench` measured {bench.device}"
            memory = memory or bench.memory_bytes / GIB
    rates = stated_rates(work, tflops or ASSUMED_TFLOPS, memory or ASSUMED_GPU_MEMORY_GIB)
    return replace(rates, device=rates.device.replace("as stated", source))


def _workers(config: RunConfig, hardware: Hardware, work: Workload) -> int:
    workers = fitting_workers(config.cluster, hardware.workers, work)
    cores = os.cpu_count() or 1
    # Each is measured by a process of its own: more than the machine holds would measure its end.
    if workers > MAX_SHARING * cores:
        raise ConfigError(
            f"{workers:,} workers cannot be measured on this machine of {cores} cores; ask for at most "
            f"{MAX_SHARING * cores} with --workers, or state other machines with --gpus"
        )
    return workers


def _copies(problem: Problem, workers: int) -> int:
    """Return how many measurements stand for the run's workers: a GPU is measured by one."""
    return workers if problem.device.type == "cpu" else 1


def measured_rates(times: StepTimes, workers: int) -> Rates:
    """Return the rates of each of several workers on this machine from a few steps that were timed."""
    on_gpu = times.device_bytes > 0
    return Rates(
        primal_seconds=times.primal_seconds,
        product_seconds=times.product_seconds,
        write_seconds=times.write_seconds,
        load_seconds=times.load_seconds,
        checkpoint_seconds=times.checkpoint_seconds,
        arithmetic_bytes=times.device_bytes if on_gpu else times.arithmetic_bytes,
        idle_bytes=0.0 if on_gpu else times.idle_bytes,
        memory_bytes=times.device_memory if on_gpu else psutil.virtual_memory().available / workers,
        measured=True,
        device=times.device_name,
    )


def measure_apart(config: RunConfig, copies: int) -> StepTimes:
    """Time steps side by side as the run's workers will be, since they share memory and caches.

    Args:
        config: The run.
        copies: How many run at once.

    Returns:
        Their mean times and largest weights.

    Raises:
        ClusterError: If one fails; the message is its last line.
    """
    with ThreadPoolExecutor(max_workers=copies) as pool:
        measured = list(pool.map(_time_steps, [config] * copies))
    combined: dict[str, Any] = {}
    for field in fields(StepTimes):
        values = [getattr(times, field.name) for times in measured]
        combined[field.name] = fmean(values) if field.name.endswith("_seconds") else max(values)
    return StepTimes(**combined)


def _time_steps(config: RunConfig) -> StepTimes:
    """Time steps in a process of its own, with the threads of a worker."""
    threads = str(config.cluster.cpus_per_worker)
    done = subprocess.run(
        [sys.executable, "-m", "cluster.step_timing"],
        input=config.to_yaml(),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": threads},
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise ClusterError(f"the measurement failed: {lines[-1]}")
    return StepTimes(**json.loads(done.stdout.splitlines()[-1]))


def tune(config: RunConfig) -> list[dict[str, Any]]:
    """Measure the forms of HVPs and chunk sizes; return them, fastest first.

    Form and chunk change the last bits of approximators, so they are chosen before training.
    """
    problem = Problem.of(_planned(config))
    chosen = problem.config
    copies = _copies(problem, _workers(config, Hardware(), workload_of(problem)))
    assert isinstance(chosen.recursion.chunk, int)
    tried = [(form, chosen.recursion.chunk) for form in FORMS]
    tried += [
        (chosen.recursion.hvp, max(2, int(chosen.recursion.chunk * factor)))
        for factor in CHUNK_FACTORS
        if factor != 1
    ]
    results = []
    for form, chunk in dict.fromkeys(tried):
        recursion = chosen.recursion.model_copy(update={"hvp": form, "chunk": chunk})
        try:
            tried_config = config.model_copy(update={"recursion": recursion})
            times = measure_apart(tried_config, copies)
        except (ClusterError, ConfigError) as error:
            results.append({"hvp": form, "chunk": chunk, "refused": str(error)})
            continue
        results.append({"hvp": form, "chunk": chunk, "hvp_seconds": times.product_seconds})
    return sorted(results, key=lambda row: row.get("hvp_seconds", float("inf")))


def plan_table(summary: dict[str, Any]) -> Table:
    """Return a plan as a table for people, the other choices beside it."""
    table = Table(title=f"{summary['basis']}: {summary['device']}")
    table.add_column("choice")
    for name in ("precompute", "worker-hours", "approximators", "trajectory"):
        table.add_column(name, justify="right")
    for row in [{"choice": "as configured", **summary}, *summary["savings"]]:
        table.add_row(
            row["choice"],
            duration(row["precompute_seconds"]),
            f"{row['worker_hours']:.3g}",
            size(row["store_bytes"]),
            size(row["trajectory_bytes"]),
        )
    return table


def plan_lines(summary: dict[str, Any]) -> list[str]:
    """Return what the table leaves out, one fact per line."""
    lines = [
        f"{summary['num_units']:,} units of {summary['num_parameters']:,} parameters, "
        f"{summary['num_steps']:,} steps, {summary['hvps']:,} HVPs",
        f"{summary['blocks']:,} blocks of {summary['block']:,} units on {summary['workers']} workers: "
        f"{summary['passes']} passes; training {duration(summary['train_seconds'])}",
        f"peak memory of a worker {size(summary['peak_bytes_per_worker'])}, saved states "
        f"{size(summary['state_bytes'])}",
    ]
    if summary["largest_block"] < summary["block"]:
        lines.append(
            f"this block does not fit: set storage.block to at most {summary['largest_block']}"
        )
    if summary["money"] is not None:
        lines.append(f"money: {summary['money']:,.2f} at the price given per worker-hour")
    return lines
