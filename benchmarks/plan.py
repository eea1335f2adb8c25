"""What `unlearn plan` says against what a precomputation takes, at three sizes.

    python benchmarks/plan.py [--rounds 3] [--only small] [--json]

The digits that scikit-learn ships, repeated with a little noise where more are needed; one worker in
this process, without Ray. Each size once with samples as units and once with users of ten samples. For
each, one after another in each round, so that what else the machine does meets all alike:

    counted     `plan --units --samples`: from counts and stated rates, nothing measured
    measured    `plan`, which times some steps in a process of its own
    row         "users of 10 samples as units" in the plan of samples as units
    taken       loading and precomputing, really

Medians of the rounds, in seconds, and the medians of the ratios to what was taken.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sklearn.datasets import load_digits

from cluster.console import Reporter
from cluster.counted import Counts
from cluster.counted_plan import Hardware, plan_counts
from cluster.plan_stage import plan
from cluster.worker_pool import pool_in_process
from pipeline import RunConfig, train
from pipeline.approximators.precompute import PrecomputeJob
from pipeline.heap import keep_freed_memory
from pipeline.run.directory import RunDirectory

ROW = "users of 10 samples as units"
# Samples, model, epochs: the small one is bound by arithmetic, the large one by its many small steps.
SIZES: dict[str, tuple[int, dict[str, Any], int]] = {
    "small": (300, {"name": "cnn", "activation": "tanh", "pooling": "average"}, 4),
    "medium": (1430, {"name": "mlp", "hidden": [64, 32], "activation": "tanh"}, 3),
    "large": (5120, {"name": "logistic"}, 2),
}


def write_data(path: Path, num_samples: int) -> None:
    """Write digits, their owners drawn at random, ten samples each."""
    bunch, generator = load_digits(), np.random.default_rng(0)
    chosen = np.arange(num_samples) % len(bunch.target)
    noise = generator.standard_normal((num_samples, 1, 8, 8), np.float32)
    x = (bunch.images[chosen] / 16).astype(np.float32)[:, None] + 0.02 * noise
    owners = generator.permutation(num_samples) // 10
    y = bunch.target[chosen]
    np.savez(path, x=x, y=y, unit=owners, x_test=x[:100], y_test=y[:100])


def configuration(path: Path, size: str, unit: str) -> RunConfig:
    """The run of a size."""
    _, model, epochs = SIZES[size]
    return RunConfig.from_values(
        {
            "name": "plan",
            "data": {"source": "arrays", "path": str(path), "unit": unit},
            "model": model,
            "training": {"epochs": epochs, "batch_size": 32, "learning_rate": 0.05, "l2": 0.01},
            "cluster": {"address": "none", "num_workers": 1},
        }
    )


def taken(config: RunConfig, folder: Path) -> float:
    """Seconds of a precomputation, loading the data included."""
    run = train(config, folder)
    began = time.perf_counter()
    run = RunDirectory.open(run.path)
    problem = run.problem()
    pool = pool_in_process(run, problem)
    pool.compute(PrecomputeJob.of_training(run, problem), "precompute", Reporter(quiet=True))
    seconds = time.perf_counter() - began
    pool.close()
    return seconds


def one_round(size: str, folder: Path) -> dict[str, dict[str, float]]:
    """Plans and runs of a size, by what a unit is."""
    path, num_samples = folder / "data.npz", SIZES[size][0]
    write_data(path, num_samples)
    found: dict[str, dict[str, float]] = {}
    row = float("nan")
    for unit, num_units in (("sample", num_samples), ("user", num_samples // 10)):
        config = configuration(path, size, unit)
        counts = Counts(num_units, num_samples, (1, 8, 8), 10)
        measured = plan(config, Hardware(workers=1))
        found[unit] = {
            "counted": plan_counts(config, counts, Hardware(workers=1))["precompute_seconds"],
            "measured": measured["precompute_seconds"],
            "taken": taken(config, folder / f"run-{unit}"),
        }
        if unit == "user":
            found[unit]["row"] = row
        else:
            row = next(r for r in measured["savings"] if r["choice"] == ROW)["precompute_seconds"]
    return found


def main() -> None:
    """Compare; print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=tuple(SIZES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    rounds: list[dict[str, dict[str, dict[str, float]]]] = []
    sizes = [options.only] if options.only else list(SIZES)
    for _ in range(options.rounds):
        rounds.append({})
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                rounds[-1][size] = one_round(size, Path(folder))
            print(json.dumps({size: rounds[-1][size]}), file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(rounds))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"torch {version('torch')}; load when it ended {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| size | unit | counted, s | measured, s | row, s | taken, s | counted / taken "
          "| measured / taken | row / taken |")  # fmt: skip
    print("|---" * 9 + "|")
    for size in sizes:
        for unit in ("sample", "user"):
            each = [found[size][unit] for found in rounds]
            names = ("counted", "measured", "row")
            seconds = [_median([e.get(n, float("nan")) for e in each]) for n in (*names, "taken")]
            ratios = [_median([e.get(n, float("nan")) / e["taken"] for e in each]) for n in names]
            cells = ["-" if value != value else f"{value:.3g}" for value in (*seconds, *ratios)]
            print(f"| {size}, {SIZES[size][0]:,} samples | {unit} | " + " | ".join(cells) + " |")


def _median(values: list[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
