"""`unlearn plan`: times a few steps and predicts the cost of a run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields, replace
from statistics import fmean
from typing import Any

import psutil

from cluster.bench_stage import kind_of_module
from cluster.counted_plan import NO_PRICE, Hardware, Price, planned, rates_of_gpus
from cluster.errors import ClusterError
from cluster.planner import (
    OwnSeconds,
    Plan,
    Rates,
    fitting_block,
    savings,
)
from cluster.rates_file import bench_file, stored
from cluster.step_timing import MEASUREMENTS, PROGRESS, StepTimes
from cluster.work_counts import (
    Workload,
    fitting_workers,
)
from cluster.workload import fitting_chunk, workload_of
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.progress import Progress, silent
from pipeline.run.problem import Problem
from pipeline.sizes import chunk_and_block

# What `--tune` tries beside the configuration's own choice.
FORMS = ("r-operator", "reverse", "forward-over-reverse")
CHUNK_FACTORS = (0.25, 0.5, 1, 2, 4)
# Workers that share a core while they are measured.
MAX_SHARING = 4
_PROGRESS = re.compile(PROGRESS.format(r"(\d+)", MEASUREMENTS))


def plan(
    config: RunConfig, hardware: Hardware, price: Price = NO_PRICE, report: Progress = silent
) -> dict[str, Any]:
    """Return the plan's summary and what other choices would save.

    Args:
        config: The run.
        hardware: Where.
        price: Of a worker-hour.
        report: Called with the measurements done and those there are.

    Raises:
        ConfigError: If this machine cannot hold that many workers.
        ClusterError: If the measurement fails, for example for lack of memory.
    """
    asked = planned(config)
    problem = Problem.of(asked)
    work, on_gpu = workload_of(problem), hardware.gpus is not None
    fitting = fitting_chunk(problem, on_gpu=on_gpu or problem.device.type == "cuda")
    if hardware.gpus is not None:
        # Chunks as on a GPU, whatever this machine has.
        chunk, block = chunk_and_block(asked, work.num_units, work.num_parameters, fitting)
        work = replace(work, chunk=chunk, block=min(block, work.num_units))
        bench = stored(bench_file()) if hardware.tflops is None else None
        kind = kind_of_module(problem.network.module, work.num_parameters)
        rates = rates_of_gpus(work, hardware, bench, kind, asked.recursion.dtype)
        made = fitting_block(Plan(work, rates, hardware.gpus))
    else:
        workers = _workers(config, hardware, work)
        times = measure_apart(problem.config, _copies(problem, workers), report)
        made = Plan(work, measured_rates(times, workers), workers)
    return made.summary(price.amount, price.currency) | {"savings": savings(made, asked, fitting)}


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
        chunk_seconds=times.chunk_seconds,
        own=OwnSeconds(
            times.first_own_seconds, times.further_own_seconds, times.repeated_own_seconds
        ),
        write_seconds=times.write_seconds,
        load_seconds=times.load_seconds,
        checkpoint_seconds=times.checkpoint_seconds,
        arithmetic_bytes=times.device_bytes if on_gpu else times.arithmetic_bytes,
        idle_bytes=0.0 if on_gpu else times.idle_bytes,
        memory_bytes=times.device_memory if on_gpu else psutil.virtual_memory().available / workers,
        measured=True,
        device=times.device_name,
    )


def measure_apart(config: RunConfig, copies: int, report: Progress = silent) -> StepTimes:
    """Time steps side by side as the run's workers will be, since they share memory and caches.

    Args:
        config: The run.
        copies: How many run at once.
        report: Called with the measurements done, of the process that is behind, and those there are.

    Returns:
        Their mean times and largest weights.

    Raises:
        ClusterError: If one fails; the message is its last line.
    """
    timers = [_Timer(config) for _ in range(copies)]

    def advanced() -> None:
        report(min(timer.done for timer in timers), MEASUREMENTS)

    try:
        with ThreadPoolExecutor(max_workers=copies) as pool:
            try:
                waiting = [pool.submit(timer.read, advanced) for timer in timers]
                measured = [each.result() for each in waiting]
            except BaseException:
                # An interrupt, or another's failure: nobody waits for what is left.
                for timer in timers:
                    timer.kill()
                raise
    finally:
        for timer in timers:
            timer.close()
    combined: dict[str, Any] = {}
    for field in fields(StepTimes):
        values = [getattr(times, field.name) for times in measured]
        combined[field.name] = fmean(values) if field.name.endswith("_seconds") else max(values)
    return StepTimes(**combined)


class _Timer:
    """A process that times steps with the threads of a worker."""

    def __init__(self, config: RunConfig) -> None:
        self._text, self.done = config.to_yaml(), 0
        threads = str(config.cluster.cpus_per_worker)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.step_timing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )

    def read(self, advanced: Callable[[], None]) -> StepTimes:
        """Wait for its result; `advanced` is called whenever it has measured something."""
        process = self._process
        assert process.stdin and process.stdout and process.stderr, "all three are pipes"
        # One that failed while it began reads nothing; its last line says why.
        with suppress(BrokenPipeError):
            process.stdin.write(self._text)
            process.stdin.close()
        last = ""
        for line in process.stderr:
            found = _PROGRESS.fullmatch(line.strip())
            if found is not None:
                self.done = int(found[1])
                advanced()
            elif line.strip():
                last = line.strip()
        printed = process.stdout.read()
        if process.wait():
            reason = last or f"ended with status {process.returncode}"
            raise ClusterError(f"the measurement failed: {reason}")
        return StepTimes(**json.loads(printed.splitlines()[-1]))

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()

    def close(self) -> None:
        """Let go of its pipes, once it has ended."""
        with self._process:
            pass


def tune(config: RunConfig, report: Progress = silent) -> list[dict[str, Any]]:
    """Measure the forms of HVPs and chunk sizes; return them, fastest first.

    `report` is called with those measured and those there are.

    Form and chunk change the last bits of approximators, so they are chosen before training.
    """
    problem = Problem.of(planned(config))
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
    for done, (form, chunk) in enumerate(dict.fromkeys(tried)):
        report(done, len(set(tried)))
        recursion = chosen.recursion.model_copy(update={"hvp": form, "chunk": chunk})
        try:
            tried_config = config.model_copy(update={"recursion": recursion})
            times = measure_apart(tried_config, copies)
        except (ClusterError, ConfigError) as error:
            results.append({"hvp": form, "chunk": chunk, "refused": str(error)})
            continue
        results.append({"hvp": form, "chunk": chunk, "hvp_seconds": times.product_seconds})
    report(len(results), len(results))
    return sorted(results, key=lambda row: row.get("hvp_seconds", float("inf")))
