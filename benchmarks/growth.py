"""How costs grow with the number of units: precomputation, opening, deletions, status.

    python benchmarks/growth.py --units 1000,10000,100000 [--steps 50] [--json]
    python benchmarks/growth.py --units 1000,1000000 --rows made-up [--json]

A softmax model of 63 parameters on made-up arrays, one unit per sample, precomputed by one worker in
the driver's process. With `--rows made-up` the recursion is left out: the driver, the worker's calls
and the store are the real ones, and each block's rows are random, so that a million units take
minutes. Each number of units has a process of its own, so that its peak memory is its own too.

For each number of units:

    first_rate, last_rate     steps of blocks per second in the first and the last tenth of the work
                              (made-up rows: blocks per second)
    open_seconds              opening the store for writing
    delete_seconds            one unit, `total_seconds` of the receipt, in this process
    delete_process_seconds    one unit, `unlearn delete` as a process, from its start to its end
    batch_seconds             10,000 units at random (a tenth of all, if that is fewer) as one request
    status_seconds, units_seconds, verify_seconds
                              `unlearn status`, `unlearn units --out`, and `unlearn verify`
    peak_mib                  memory of the process that precomputed, the driver and its worker

Medians: of nine for opening and for one unit, of five for `unlearn delete`.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cluster.console import Reporter
from cluster.in_process import InProcessGroup
from cluster.worker_pool import WorkerPool, pool_in_process
from cluster.workers import RecursionWorker
from pipeline import RunConfig, delete, train
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.progress import Progress
from pipeline.run.directory import RunDirectory
from storage.store import ApproximatorStore

ROOT = Path(__file__).resolve().parent.parent
FEATURES, CLASSES = 20, 3
NUM_PARAMETERS = (FEATURES + 1) * CLASSES
BATCH_UNITS = 10_000


class Recorder(Reporter):
    """Remembers when which part of the work was done, and shows nothing."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.points: list[tuple[float, int]] = []

    @contextmanager
    def stage(self, name: str, unit: str = "steps") -> Iterator[Progress]:
        """Yield the function that remembers the progress."""
        self.points = [(time.perf_counter(), 0)]
        yield lambda done, total: self.points.append((time.perf_counter(), done))

    def rate(self, start: float, stop: float) -> float:
        """Steps per second between two shares of the work."""
        times, done = np.array(self.points).T
        first, last = np.interp([start * done[-1], stop * done[-1]], done, times)
        return float((stop - start) * done[-1] / (last - first))


class MadeUpRecursion:
    """Stands for a block's recursion: done at once, with random rows."""

    step = 0

    def __init__(self, block: int, num_units: int, num_steps: int) -> None:
        self.replay = self
        self.max_drift = 0.0
        self._seed, self._num_units, self._num_steps = block, num_units, num_steps

    def advance(self, stop: int) -> int:
        """Count the products that a recursion would have computed."""
        products = (stop - self.step) * self._num_units
        self.step = stop
        return products

    def rows(self, *, release: bool = False) -> Any:
        """Random rows, float32 (m, P)."""
        generator = np.random.default_rng(self._seed)
        return generator.standard_normal((self._num_units, NUM_PARAMETERS), np.float32) * 1e-4


class MadeUpWorker(RecursionWorker):
    """The worker, without a recursion."""

    def _taken_up(self, block: int) -> Any:
        if self._recursion is None or self._block != block:
            num_units = len(self._store.block_units(block))
            self._recursion = MadeUpRecursion(block, num_units, self._num_steps)  # type: ignore[assignment]
            self._block = block
        return self._recursion

    def _save_if_due(self, recursion: Any, block: int) -> None:
        """Save nothing: there is no state."""


def make_run(folder: Path, num_units: int, num_steps: int, block: str) -> RunDirectory:
    """Train on made-up arrays in `num_steps` steps, one pass over all samples."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((num_units + 100, FEATURES), np.float32)
    y = (x @ generator.standard_normal((FEATURES, CLASSES), np.float32)).argmax(1)
    n = num_units
    np.savez(folder / "data.npz", x=x[:n], y=y[:n], x_test=x[n:], y_test=y[n:])
    config = RunConfig.from_values(
        {
            "name": "growth",
            "data": {"source": "arrays", "path": str(folder / "data.npz")},
            "training": {
                "epochs": 1,
                "batch_size": -(-num_units // num_steps),
                "learning_rate": 0.1,
                "l2": 0.01,
            },
            "storage": {"block": block if block == "auto" else int(block)},
            "cluster": {"address": "none"},
        }
    )
    return train(config, folder / "run")


def precomputed(run: RunDirectory, made_up: bool) -> dict[str, float]:
    """Fill the run's store through the driver; return its rates and its peak of memory."""
    problem = run.problem()
    job, recorder = PrecomputeJob.of_training(run, problem), Recorder()
    pool = pool_in_process(run, problem)
    if made_up:
        group = InProcessGroup(lambda: MadeUpWorker(run.path, problem=problem))
        group.start(0)
        pool = WorkerPool(run, group, pool.start_sums)
    began = time.perf_counter()
    pool.compute(job, "precompute", recorder)
    seconds = time.perf_counter() - began
    pool.close()
    unit = job.trajectory.num_steps if made_up else 1
    return {
        "first_rate": recorder.rate(0, 0.1) / unit,
        "last_rate": recorder.rate(0.9, 1) / unit,
        "precompute_seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _median(repeats: int, call: Callable[[], float]) -> float:
    return statistics.median(call() for _ in range(repeats))


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _command(*words: str) -> float:
    process = [sys.executable, "-m", "cluster", *words]
    return _timed(lambda: subprocess.run(process, check=True, capture_output=True, cwd=ROOT))


def deleted(run: RunDirectory, num_units: int) -> dict[str, float]:
    """Time what is done with a run that is precomputed."""
    path = str(run.path)
    order = np.random.default_rng(1).permutation(num_units).tolist()
    units = iter(order)
    batch = [next(units) for _ in range(min(BATCH_UNITS, num_units // 10))]
    delete(run.path, [next(units)])  # the first creates what the others find
    times = {
        "open_seconds": _median(
            9, lambda: _timed(lambda: ApproximatorStore.open(run.store_url, "r+").generation)
        ),
        "delete_seconds": _median(9, lambda: delete(run.path, [next(units)]).total_seconds),
        "status_seconds": _median(3, lambda: _command("status", path, "--json")),
        "delete_process_seconds": _median(
            5, lambda: _command("delete", path, "--ids", str(next(units)), "--json")
        ),
        "batch_seconds": delete(run.path, batch).total_seconds,
        "verify_seconds": _command("verify", path),
    }
    out = str(run.path.parent / "units.json")
    return times | {"units_seconds": _command("units", path, "--out", out)}


def measure(num_units: int, options: argparse.Namespace) -> dict[str, float]:
    """Measure one number of units, the precomputation in a process of its own."""
    words = ["--rows", options.rows, "--steps", str(options.steps), "--block", options.block]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "UNLEARN_KEY_FILE": str(Path(folder) / "key"),
        }
        found: dict[str, float] = {}
        for stage in ("precompute", "delete"):
            here = ["--units", str(num_units), "--stage", stage, "--folder", folder]
            done = subprocess.run(
                [sys.executable, __file__, *here, *words],
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
            )
            found |= json.loads(done.stdout)
    return found


def main() -> None:
    """Measure every number of units; print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", default="1000,10000", help="numbers of units, by commas")
    parser.add_argument("--rows", choices=("computed", "made-up"), default="computed")
    parser.add_argument("--steps", type=int, default=50, help="steps of the training")
    parser.add_argument("--block", default="auto", help="units of a block (storage.block)")
    parser.add_argument("--folder", default=None, help="where the runs are made, and removed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stage", choices=("precompute", "delete"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    numbers = [int(number) for number in options.units.split(",")]
    if min(numbers) < 100:
        parser.error("--units must be at least 100")
    if options.stage == "precompute":
        run = make_run(Path(options.folder), numbers[0], options.steps, options.block)
        print(json.dumps(precomputed(run, options.rows == "made-up")))
    elif options.stage == "delete":
        run = RunDirectory.open(Path(options.folder) / "run")
        print(json.dumps(deleted(run, numbers[0])))
    else:
        report({number: measure(number, options) for number in numbers}, options.json)


def report(found: dict[int, dict[str, float]], as_json: bool) -> None:
    """Print what was measured, as JSON or as a table in Markdown."""
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"torch {version('torch')}, numpy {version('numpy')}; P = {NUM_PARAMETERS}; "
          f"load when it ended {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    names = list(next(iter(found.values())))
    print("| | " + " | ".join(f"{number:,}" for number in found) + " |")
    print("|---" * (len(found) + 1) + "|")
    for name in names:
        print(f"| {name} | " + " | ".join(f"{f[name]:.4g}" for f in found.values()) + " |")


if __name__ == "__main__":
    main()
